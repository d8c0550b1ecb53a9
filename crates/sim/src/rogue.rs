//! Byzantine clients without a session: they have a key of `cluster.toml` and send what they like with it.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use twinbft_types::{
    ClientId, Domain, HostId, KeyRing, Mac, ProcessId, ReplicaId, Request, Seq, Shape,
    SignedRequest,
};

use crate::client::KEYS;
use crate::scenario::{ClientKind, ClientPlan};
use crate::service::Operation;

/// A request and the twin that it goes to.
pub type Shot = (ReplicaId, SignedRequest, bool);

/// Such a client.
#[derive(Debug)]
pub struct Rogue {
    pub plan: ClientPlan,
    keys: KeyRing,
    shape: Shape,
    window: u64,
    sent: u64,
}

impl Rogue {
    pub fn new(plan: ClientPlan, keys: KeyRing, shape: Shape, window: u64) -> Self {
        Self {
            plan,
            keys,
            shape,
            window,
            sent: 0,
        }
    }

    /// Whether it has more to send.
    pub fn goes_on(&self) -> bool {
        self.sent < 2 * u64::from(self.plan.operations) + 4
    }

    /// One round of what it sends: to all twins of the primary host most of the time.
    pub fn shoot(&mut self, rng: &mut ChaCha8Rng) -> Vec<Shot> {
        self.sent += 1;
        let host = if rng.random_bool(0.8) {
            HostId(0)
        } else {
            HostId(rng.random_range(0..self.shape.hosts()))
        };
        let retransmission = rng.random_bool(0.2);
        let twins: Vec<_> = self.shape.all_twins().collect();
        let mut shots = Vec::new();
        let shared = self.request(rng);
        for twin in twins {
            let to = ReplicaId { host, twin };
            let request = match self.plan.kind {
                ClientKind::TwoFaced if rng.random_bool(0.5) => {
                    let mut other = shared.clone();
                    other.operation = self.operation(rng);
                    other
                }
                _ => shared.clone(),
            };
            let mut signed = self.sign(host, request);
            if self.plan.kind == ClientKind::Malformed {
                self.deform(&mut signed, rng);
            }
            if rng.random_bool(0.9) {
                shots.push((to, signed, retransmission));
            }
        }
        shots
    }

    fn request(&self, rng: &mut ChaCha8Rng) -> Request {
        let session = match self.plan.kind {
            ClientKind::ManySessions => rng.random_range(1..40),
            _ => 1,
        };
        let seq = match self.plan.kind {
            ClientKind::OutOfWindow => {
                let edges = [
                    0,
                    1,
                    self.window,
                    self.window + 1,
                    2 * self.window + 1,
                    u64::MAX,
                ];
                edges[rng.random_range(0..edges.len())]
            }
            ClientKind::Backwards => {
                let number = self.sent - 1;
                let (round, step) = (number / self.window, number % self.window);
                (round + 1) * self.window - step
            }
            ClientKind::ManySessions => rng.random_range(1..3),
            _ => 1 + self.sent / 2,
        };
        Request {
            client: ClientId {
                key: self.plan.key,
                session,
            },
            seq: Seq(seq),
            operation: self.operation(rng),
        }
    }

    fn operation(&self, rng: &mut ChaCha8Rng) -> bytes::Bytes {
        let key = rng.random_range(KEYS..2 * KEYS);
        let value = u64::from(self.plan.key + 1) << 32 | rng.random_range(1..1 << 20);
        Operation::Write { key, value }.encode()
    }

    fn sign(&mut self, host: HostId, request: Request) -> SignedRequest {
        let digest = request.digest();
        let macs: Vec<Mac> = self
            .shape
            .all_twins()
            .map(|twin| {
                let to = ProcessId::Twin(ReplicaId { host, twin });
                self.keys
                    .mac(to, Domain::Request, digest)
                    .unwrap_or_default()
            })
            .collect();
        SignedRequest {
            request,
            host,
            macs,
        }
    }

    fn deform(&mut self, signed: &mut SignedRequest, rng: &mut ChaCha8Rng) {
        match rng.random_range(0..6) {
            0 => signed.macs.clear(),
            1 => signed.macs.extend_from_slice(&[Mac::default(); 9]),
            2 => signed.host = HostId(signed.host.0.wrapping_add(1)),
            3 => {
                // Another's name, under its own keys.
                signed.request.client.key = rng.random_range(0..self.plan.key + 2);
                *signed = self.sign(signed.host, signed.request.clone());
            }
            4 => {
                signed.request.operation = vec![9; 1025].into();
                *signed = self.sign(signed.host, signed.request.clone());
            }
            _ => {
                signed.request.operation = bytes::Bytes::from_static(b"no operation");
                *signed = self.sign(signed.host, signed.request.clone());
            }
        }
    }
}
