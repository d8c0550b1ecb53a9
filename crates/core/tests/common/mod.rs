//! One host: the real cores of its twins on one log, and a test that plays everybody else.
#![allow(dead_code, reason = "each test file uses its own share")]

pub mod logs;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use twinbft_core::{
    CoreConfig, Effect, Effects, Event, Execute, Input, PeerFault, Record, Recovered, Replica,
    Tick, Tuning,
};
use twinbft_types::wire::{OrderMessage, PeerMessage, Reply};
use twinbft_types::{
    Certificate, ClientId, Digest, Domain, Entry, Epoch, HostId, Incarnation, KeyContext, KeyRing,
    Mac, Position, ProcessId, PublicKey, ReplicaId, Request, RequestRef, SecretKey, Seq, Shape,
    Signed, SignedRequest, Slot, Statement, TwinId, View, batch_digest, canonical, history,
};

pub const CLIENTS: u32 = 6;
/// The wall clock when the monotonic one is at 0.
pub const BEGINNING_US: u64 = 1_700_000_000_000_000;

/// Everybody's keys in a cluster of this shape.
pub struct Keys {
    shape: Shape,
    secrets: BTreeMap<ProcessId, SecretKey>,
    public: BTreeMap<ProcessId, PublicKey>,
}

impl Keys {
    pub fn new(shape: Shape) -> Self {
        let ids = shape
            .all_replicas()
            .map(ProcessId::Twin)
            .chain((0..CLIENTS).map(ProcessId::Client));
        let secrets: BTreeMap<ProcessId, SecretKey> = ids
            .enumerate()
            .map(|(n, id)| {
                (
                    id,
                    SecretKey::from_bytes([u8::try_from(n + 1).unwrap(); 32]),
                )
            })
            .collect();
        let public = secrets
            .iter()
            .map(|(id, key)| (*id, key.public()))
            .collect();
        Self {
            shape,
            secrets,
            public,
        }
    }

    pub fn ring(&self, id: ProcessId) -> KeyRing {
        let context = KeyContext {
            cluster_id: "test".to_owned(),
            key_epoch: 0,
        };
        KeyRing::new(context, id, self.secrets[&id].clone(), self.public.clone())
    }

    /// A certificate of a host, signed by these twins.
    pub fn certificate(&self, host: u8, twins: &[u8], statement: Statement) -> Certificate {
        let signed = Signed {
            host: HostId(host),
            incarnation: Incarnation(0),
            statement,
        };
        let authenticators = twins
            .iter()
            .map(|twin| {
                let ring = self.ring(ProcessId::Twin(ReplicaId::new(host, *twin)));
                ring.sign(self.shape, &signed)
            })
            .collect();
        Certificate {
            signed,
            authenticators,
        }
    }

    /// ORDER of host 0 in view 0, certified by all its twins.
    pub fn order(&self, slot: u64, previous: Digest, bodies: Vec<Request>) -> OrderMessage {
        let requests: Vec<RequestRef> = bodies.iter().map(Request::reference).collect();
        let timestamp_us = BEGINNING_US + slot;
        let statement = Statement::Order {
            view: View(0),
            slot: Slot(slot),
            history: history(previous, Slot(slot), batch_digest(&requests), timestamp_us),
        };
        let twins: Vec<u8> = self.shape.all_twins().map(|t| t.0).collect();
        OrderMessage {
            certificate: self.certificate(0, &twins, statement),
            timestamp_us,
            bodies,
        }
    }

    /// A request of client `key` whose MACs are right for these twins of host 0 only.
    pub fn request(&self, key: u32, seq: u64, good_for: &[u8]) -> SignedRequest {
        self.request_of(ClientId { key, session: 1 }, seq, b"operation", good_for)
    }

    pub fn request_of(
        &self,
        client: ClientId,
        seq: u64,
        operation: &[u8],
        good_for: &[u8],
    ) -> SignedRequest {
        let request = Request {
            client,
            seq: Seq(seq),
            operation: Bytes::copy_from_slice(operation),
        };
        let digest = request.digest();
        let mut ring = self.ring(ProcessId::Client(client.key));
        let macs = self
            .shape
            .all_twins()
            .map(|twin| {
                let to = ProcessId::Twin(ReplicaId {
                    host: HostId(0),
                    twin,
                });
                if good_for.contains(&twin.0) {
                    ring.mac(to, Domain::Request, digest).unwrap()
                } else {
                    Mac([9; 16])
                }
            })
            .collect();
        SignedRequest {
            request,
            host: HostId(0),
            macs,
        }
    }
}

/// What a twin did besides posting.
#[derive(Default)]
pub struct Done {
    pub sends: Vec<(ReplicaId, Arc<PeerMessage>)>,
    pub replies: Vec<Reply>,
    pub records: Vec<Record>,
    pub events: Vec<Event>,
    /// The slots that the service was told to go back to.
    pub rollbacks: Vec<Slot>,
    pub refused: Vec<Effect>,
    /// Batches that wait for the service.
    pub executes: Vec<Execute>,
    pub faults: Vec<PeerFault>,
    /// The names of all effects, in order.
    pub order: Vec<&'static str>,
}

pub struct Twin {
    pub core: Replica,
    read: usize,
    pub skew_us: i64,
    pub done: Done,
}

/// One host of a cluster. Its service answers only when it is told to.
pub struct Host {
    pub id: u8,
    pub keys: Keys,
    pub shape: Shape,
    pub tuning: Tuning,
    pub twins: Vec<Twin>,
    pub log: Vec<(TwinId, Bytes)>,
    pub now_us: u64,
    /// Twins of which the test posts what it likes: their cores neither read nor post.
    pub byzantine: Vec<u8>,
    /// Posts of these twins wait until [`Host::release`].
    pub holding: Vec<u8>,
    held: Vec<(u8, Bytes)>,
    /// Posts of these names never reach the log, whatever these twins believe.
    pub losing: Vec<(u8, &'static str)>,
}

impl Host {
    pub fn new(id: u8, hosts: u8, twins: u8, tuning: &Tuning) -> Self {
        let shape = Shape::new(hosts, twins).unwrap();
        let keys = Keys::new(shape);
        let twins = shape
            .all_twins()
            .map(|twin| {
                let me = ReplicaId {
                    host: HostId(id),
                    twin,
                };
                let core = Replica::new(CoreConfig {
                    shape,
                    me,
                    keys: keys.ring(ProcessId::Twin(me)),
                    epoch: Epoch(0),
                    config_digest: Digest::ZERO,
                    quarantines: false,
                    tuning: tuning.clone(),
                });
                Twin {
                    core,
                    read: 0,
                    skew_us: 0,
                    done: Done::default(),
                }
            })
            .collect();
        Self {
            id,
            keys,
            shape,
            tuning: tuning.clone(),
            twins,
            log: Vec::new(),
            now_us: 1,
            byzantine: Vec::new(),
            holding: Vec::new(),
            held: Vec::new(),
            losing: Vec::new(),
        }
    }

    /// This twin starts again with what it finds, in this epoch of its log; its siblings are the test's.
    pub fn start_again(&mut self, twin: u8, epoch: u64, recovered: Recovered) {
        let others = self.shape.all_twins().map(|t| t.0);
        self.byzantine = others.filter(|other| *other != twin).collect();
        let me = ReplicaId::new(self.id, twin);
        let config = CoreConfig {
            shape: self.shape,
            me,
            keys: self.keys.ring(ProcessId::Twin(me)),
            epoch: Epoch(epoch),
            config_digest: Digest::ZERO,
            quarantines: false,
            tuning: self.tuning.clone(),
        };
        self.twins[usize::from(twin)].core = Replica::recover(config, recovered).unwrap();
    }

    pub fn step(&mut self, twin: u8, input: Input) {
        let this = &mut self.twins[usize::from(twin)];
        let wall = i64::try_from(BEGINNING_US + self.now_us).unwrap() + this.skew_us;
        let now = Tick {
            mono_us: self.now_us,
            wall_us: u64::try_from(wall).unwrap(),
        };
        let mut effects = Effects::default();
        if let Err(fault) = this.core.step(now, input, &mut effects) {
            this.done.faults.push(fault);
        }
        for effect in effects.0 {
            let done = &mut this.done;
            done.order.push(name(&effect));
            match effect {
                Effect::Post { entry, .. } => {
                    let bytes = Bytes::from(canonical(&entry));
                    let is_lost = self.losing.contains(&(twin, entry.name()));
                    if is_lost || self.byzantine.contains(&twin) {
                        continue;
                    }
                    if self.holding.contains(&twin) {
                        self.held.push((twin, bytes));
                    } else {
                        self.log.push((TwinId(twin), bytes));
                    }
                }
                Effect::Send { to, message } => done.sends.push((to, message)),
                Effect::Reply(reply) => done.replies.push(reply),
                Effect::Persist(record) => done.records.push(record),
                Effect::Evidence(event) => done.events.push(event),
                Effect::Execute(execute) => done.executes.push(execute),
                Effect::Rollback { slot } => done.rollbacks.push(slot),
                Effect::Refuse { .. } | Effect::RefuseQuery { .. } => done.refused.push(effect),
                // Checkpoints, reads, trims and state transfer have tests of their own.
                _ => {}
            }
        }
    }

    /// Lets this twin read what is in the log.
    pub fn read(&mut self, twin: u8) {
        while let Some((sender, bytes)) = self.log.get(self.twins[usize::from(twin)].read).cloned()
        {
            let position = Position(self.twins[usize::from(twin)].read as u64);
            self.twins[usize::from(twin)].read += 1;
            self.step(
                twin,
                Input::Entry {
                    position,
                    sender,
                    bytes,
                },
            );
        }
    }

    /// Lets all twins read until nothing more is posted.
    pub fn settle(&mut self) {
        loop {
            let before = self.log.len();
            for twin in 0..self.shape.twins() {
                if !self.byzantine.contains(&twin) {
                    self.read(twin);
                }
            }
            if self.log.len() == before {
                return;
            }
        }
    }

    /// Time passes, with a timer wherever one is due.
    pub fn pass(&mut self, us: u64) {
        let end = self.now_us + us;
        for _ in 0..10_000 {
            self.settle();
            assert!(self.log.len() < 100_000, "posts without end");
            let due = (0..self.shape.twins())
                .filter(|twin| !self.byzantine.contains(twin))
                .filter_map(|twin| {
                    let at = self.twins[usize::from(twin)].core.deadline()?;
                    Some((at.max(self.now_us), twin))
                })
                .min();
            match due {
                Some((at, twin)) if at <= end => {
                    self.now_us = at.max(self.now_us + 1);
                    self.step(twin, Input::Timer);
                }
                Some(_) | None => {
                    self.now_us = end;
                    return;
                }
            }
        }
        panic!("timers without end");
    }

    pub fn post_as(&mut self, twin: u8, entry: &Entry) {
        self.log.push((TwinId(twin), canonical(entry).into()));
    }

    /// What a twin's core held back is in the log now.
    pub fn release(&mut self) {
        self.holding.clear();
        for (twin, bytes) in std::mem::take(&mut self.held) {
            self.log.push((TwinId(twin), bytes));
        }
    }

    pub fn request(&mut self, twin: u8, request: &SignedRequest) {
        self.step(
            twin,
            Input::Request {
                request: request.clone(),
                retransmission: false,
                leader_alone: false,
            },
        );
    }

    pub fn peer(&mut self, twin: u8, from: ReplicaId, message: PeerMessage) {
        self.step(twin, Input::Peer { from, message });
    }

    /// The service answers everything that waits, each request with its own operation.
    pub fn serve(&mut self, twin: u8) {
        loop {
            let executes = std::mem::take(&mut self.twins[usize::from(twin)].done.executes);
            if executes.is_empty() {
                return;
            }
            for execute in executes {
                let results = execute
                    .requests
                    .iter()
                    .map(|r| r.operation.clone())
                    .collect();
                let slot = execute.slot;
                self.step(twin, Input::Executed { slot, results });
            }
        }
    }

    /// ACK certificates of all other hosts for what this one has decided reach these twins.
    pub fn acknowledge(&mut self, twins: &[u8]) {
        let id = self.id;
        let others: Vec<u8> = (self.shape.all_hosts())
            .map(|h| h.0)
            .filter(|h| *h != id)
            .collect();
        for twin in twins {
            let (slot, history) = self.twins[usize::from(*twin)].core.host_log().accepted();
            self.acknowledge_as(*twin, &others, slot, history);
        }
    }

    /// ACK certificates of these hosts reach this twin.
    pub fn acknowledge_as(&mut self, twin: u8, hosts: &[u8], slot: Slot, history: Digest) {
        for host in hosts {
            let statement = Statement::Ack {
                view: View(0),
                slot,
                history,
                beat: None,
            };
            let signers: Vec<u8> = self.shape.all_twins().map(|t| t.0).collect();
            let certificate = self.keys.certificate(*host, &signers, statement);
            let from = ReplicaId::new(*host, 0);
            self.peer(twin, from, PeerMessage::Certificate(certificate));
        }
    }

    pub fn entries(&self) -> Vec<(u8, Entry)> {
        self.log
            .iter()
            .filter_map(|(twin, bytes)| Some((twin.0, twinbft_types::from_canonical(bytes).ok()?)))
            .collect()
    }

    /// How many entries of this name a twin posted.
    pub fn posted(&self, twin: u8, name: &str) -> usize {
        let entries = self.entries();
        let of = |(t, entry): &&(u8, Entry)| *t == twin && entry.name() == name;
        entries.iter().filter(of).count()
    }

    pub fn accepted(&self, twin: u8) -> u64 {
        self.twins[usize::from(twin)].core.host_log().accepted().0.0
    }

    pub fn done(&mut self, twin: u8) -> &mut Done {
        &mut self.twins[usize::from(twin)].done
    }
}

fn name(effect: &Effect) -> &'static str {
    match effect {
        Effect::Persist(_) => "persist",
        Effect::Post { entry, .. } => entry.name(),
        Effect::Send { .. } => "send",
        Effect::Execute(_) => "execute",
        Effect::Reply(_) => "reply",
        Effect::Refuse { .. } | Effect::RefuseQuery { .. } => "refuse",
        Effect::Evidence(_) => "evidence",
        _ => "other",
    }
}
