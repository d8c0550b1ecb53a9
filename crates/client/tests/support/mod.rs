//! Scripted replicas: they have the right keys and say what a test tells them to say.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod server;

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use twinbft_types::wire::{Outcome, Reply};
use twinbft_types::{
    ClientId, Digest, Domain, HostId, Incarnation, KeyContext, KeyRing, Mac, Nonce, ProcessId,
    QueryAnswer, ReplicaId, SecretKey, Seq, Shape, Signed, Slot, Statement, TwinId, View,
};

pub const CLIENT_KEY: u32 = 7;

/// All key rings of a cluster and of one client.
#[derive(Clone)]
pub struct Cluster {
    pub shape: Shape,
    pub client: KeyRing,
    twins: BTreeMap<ReplicaId, KeyRing>,
}

/// What a host says about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub slot: u64,
    pub view: Option<u64>,
    pub result: Vec<u8>,
    pub whole: bool,
}

impl Said {
    pub fn committed(slot: u64, result: &[u8]) -> Self {
        Self {
            slot,
            view: None,
            result: result.to_vec(),
            whole: true,
        }
    }

    pub fn tentative(slot: u64, view: u64, result: &[u8]) -> Self {
        Self {
            view: Some(view),
            ..Self::committed(slot, result)
        }
    }

    pub fn digest_only(mut self) -> Self {
        self.whole = false;
        self
    }
}

fn secret(process: ProcessId) -> SecretKey {
    let mut bytes = [1u8; 32];
    match process {
        ProcessId::Twin(replica) => {
            bytes[1] = replica.host.0 + 1;
            bytes[2] = replica.twin.0 + 1;
        }
        ProcessId::Client(key) | ProcessId::Admin(key) => {
            bytes[3..7].copy_from_slice(&key.to_le_bytes())
        }
    }
    SecretKey::from_bytes(bytes)
}

impl Cluster {
    pub fn new(hosts: u8, twins: u8) -> Self {
        // Deriving all keys takes longer than most tests.
        static MADE: Mutex<BTreeMap<(u8, u8), Cluster>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().unwrap();
        made.entry((hosts, twins))
            .or_insert_with(|| Self::make(hosts, twins))
            .clone()
    }

    fn make(hosts: u8, twins: u8) -> Self {
        let shape = Shape::new(hosts, twins).unwrap();
        let context = KeyContext {
            cluster_id: "test".into(),
            key_epoch: 1,
        };
        let processes: Vec<ProcessId> = shape
            .all_replicas()
            .map(ProcessId::Twin)
            .chain([ProcessId::Client(CLIENT_KEY)])
            .collect();
        let public: BTreeMap<_, _> = processes
            .iter()
            .map(|p| (*p, secret(*p).public()))
            .collect();
        let ring = |p: ProcessId| KeyRing::new(context.clone(), p, secret(p), public.clone());
        Self {
            shape,
            client: ring(ProcessId::Client(CLIENT_KEY)),
            twins: shape
                .all_replicas()
                .map(|r| (r, ring(ProcessId::Twin(r))))
                .collect(),
        }
    }

    /// Whether this twin finds its MAC in the request to be right.
    pub fn request_is_authentic(
        &mut self,
        at: ReplicaId,
        signed: &twinbft_types::SignedRequest,
    ) -> bool {
        let mac = signed.macs[usize::from(at.twin.0)];
        signed.host == at.host
            && self.twins.get_mut(&at).unwrap().verify(
                ProcessId::Client(CLIENT_KEY),
                Domain::Request,
                signed.request.digest(),
                &mac,
            )
    }

    pub fn query_is_authentic(
        &mut self,
        at: ReplicaId,
        query: &twinbft_types::Query,
        mac: &Mac,
    ) -> bool {
        self.twins.get_mut(&at).unwrap().verify(
            ProcessId::Client(CLIENT_KEY),
            Domain::Query,
            query.digest(),
            mac,
        )
    }

    /// A reply of `host` with the MACs of these twins.
    pub fn reply(
        &mut self,
        host: u8,
        twins: &[u8],
        client: ClientId,
        seq: Seq,
        said: &Said,
    ) -> Reply {
        let digest = Signed {
            host: HostId(host),
            incarnation: Incarnation(0),
            statement: Statement::Reply {
                view: said.view.map(View),
                slot: Slot(said.slot),
                client,
                seq,
                result: Digest::of(&said.result),
            },
        }
        .digest();
        let macs = twins
            .iter()
            .map(|twin| {
                let ring = self.twins.get_mut(&ReplicaId::new(host, *twin)).unwrap();
                let to = ProcessId::Client(CLIENT_KEY);
                (
                    TwinId(*twin),
                    ring.mac(to, Domain::Statement, digest).unwrap(),
                )
            })
            .collect();
        Reply {
            host: HostId(host),
            incarnation: Incarnation(0),
            slot: Slot(said.slot),
            view: said.view.map(View),
            client,
            seq,
            outcome: if said.whole {
                Outcome::Result(Bytes::from(said.result.clone()))
            } else {
                Outcome::Digest(Digest::of(&said.result))
            },
            macs,
        }
    }

    /// A reply of `host` with the MACs of all of its twins.
    pub fn certified(&mut self, host: u8, client: ClientId, seq: Seq, said: &Said) -> Reply {
        let twins: Vec<u8> = (0..self.shape.twins()).collect();
        self.reply(host, &twins, client, seq, said)
    }

    /// The answer of one twin to a fast read.
    pub fn answer(
        &mut self,
        replica: ReplicaId,
        client: ClientId,
        nonce: Nonce,
        version: u64,
        result: &[u8],
    ) -> (QueryAnswer, Bytes, Mac) {
        let answer = QueryAnswer {
            replica,
            client,
            nonce,
            view: None,
            version,
            result: Digest::of(result),
        };
        let ring = self.twins.get_mut(&replica).unwrap();
        let mac = ring
            .mac(
                ProcessId::Client(CLIENT_KEY),
                Domain::QueryAnswer,
                answer.digest(),
            )
            .unwrap();
        (answer, Bytes::copy_from_slice(result), mac)
    }
}
