//! Entries and messages out of nothing: well-formed, of every kind, with values near those that matter.

use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use twinbft_types::wire::{ChainSlot, ForwardMessage, OrderMessage, Outcome, PeerMessage, Reply};
use twinbft_types::{
    Attempt, Authenticator, Certificate, ClientId, Digest, Domain, Entry, Epoch, HelloState,
    HostId, Incarnation, Mac, Position, ProcessId, Request, RequestRef, ResultMac, Seq, Signed,
    SignedRequest, Slot, Statement, TwinId, View,
};

use super::{Act, Puppet, pick};

/// How many kinds of entries there are.
pub const ENTRY_KINDS: u32 = 27;
const STATEMENT_KINDS: u32 = 13;

/// What a double knows of its host.
#[derive(Clone, Copy, Debug)]
pub struct Hints {
    pub view: View,
    pub accepted: Slot,
    pub history: Digest,
    pub log_end: Position,
    pub clients: u32,
}

impl Hints {
    fn slot(&self, rng: &mut ChaCha8Rng) -> Slot {
        let near = self.accepted.0.saturating_sub(4) + rng.random_range(0..10);
        Slot([near, 0, u64::MAX, 1000][usual(rng)])
    }

    fn view(&self, rng: &mut ChaCha8Rng) -> View {
        View([self.view.0, self.view.0 + 1, u64::MAX, 7][usual(rng)])
    }

    fn history(&self, rng: &mut ChaCha8Rng) -> Digest {
        if rng.random_bool(0.5) {
            self.history
        } else {
            digest(rng)
        }
    }

    fn client(&self, rng: &mut ChaCha8Rng) -> ClientId {
        ClientId {
            key: rng.random_range(0..self.clients + 1),
            session: [1, 1, 2, u64::MAX][usual(rng)],
        }
    }

    fn request(&self, rng: &mut ChaCha8Rng) -> RequestRef {
        RequestRef {
            client: self.client(rng),
            seq: seq(rng),
            digest: digest(rng),
        }
    }

    fn requests(&self, rng: &mut ChaCha8Rng) -> Vec<RequestRef> {
        let count = rng.random_range(0..4);
        (0..count).map(|_| self.request(rng)).collect()
    }
}

/// The first value most of the time.
fn usual(rng: &mut ChaCha8Rng) -> usize {
    let special = rng.random_bool(0.2);
    if special { rng.random_range(1..4) } else { 0 }
}

fn digest(rng: &mut ChaCha8Rng) -> Digest {
    let mut digest = Digest::ZERO;
    rng.fill(&mut digest.0[..4]);
    digest
}

fn seq(rng: &mut ChaCha8Rng) -> Seq {
    Seq([rng.random_range(0..12), 0, u64::MAX, 1000][usual(rng)])
}

fn mac(rng: &mut ChaCha8Rng) -> Mac {
    let mut mac = Mac::default();
    rng.fill(&mut mac.0[..4]);
    mac
}

impl Puppet {
    /// An entry of any kind: one that it has seen, changed a little, or a new one.
    pub(super) fn forge_entry(&mut self, hints: &Hints, rng: &mut ChaCha8Rng) -> Entry {
        match pick(&self.entries, rng) {
            Some(seen) if rng.random_bool(0.4) => self.altered(seen, hints, rng),
            Some(_) | None => {
                let kind = rng.random_range(0..ENTRY_KINDS);
                self.new_entry(kind, hints, rng)
            }
        }
    }

    /// Its one kind, small or as large as an entry may be.
    pub(super) fn spam(&mut self, hints: &Hints, rng: &mut ChaCha8Rng) -> Entry {
        let kind = self.kind;
        self.new_entry(kind, hints, rng)
    }

    fn altered(&self, mut entry: Entry, hints: &Hints, rng: &mut ChaCha8Rng) -> Entry {
        match &mut entry {
            Entry::Propose {
                slot,
                attempt,
                previous,
                timestamp_us,
                requests,
                ..
            } => match rng.random_range(0..5) {
                0 => *slot = hints.slot(rng),
                1 => *attempt = Attempt(attempt.0.wrapping_add(1)),
                2 => *previous = digest(rng),
                3 => *timestamp_us = rng.random(),
                _ => requests.extend(requests.first().copied()),
            },
            Entry::Endorse { slot, history, .. }
            | Entry::Accept { slot, history, .. }
            | Entry::Results { slot, history, .. } => match rng.random_range(0..2) {
                0 => *slot = hints.slot(rng),
                _ => *history = hints.history(rng),
            },
            Entry::Nack { requests, .. } => *requests = hints.requests(rng),
            Entry::Checkpoint { slot, digest: d } => match rng.random_range(0..2) {
                0 => *slot = hints.slot(rng),
                _ => *d = digest(rng),
            },
            Entry::Sign { authenticator, .. } => match rng.random_range(0..3) {
                0 => authenticator.macs.truncate(1),
                1 => authenticator.macs.extend([Mac::default(); 40]),
                _ => authenticator.twin = TwinId(rng.random_range(0..9)),
            },
            Entry::Body { request } => match rng.random_range(0..3) {
                0 => request.macs.clear(),
                1 => request.macs.iter_mut().for_each(|m| m.0[0] ^= 1),
                _ => request.request.operation = Bytes::from_static(b"other"),
            },
            Entry::RelayOrder { order } => match rng.random_range(0..3) {
                0 => order.bodies.clear(),
                1 => order.timestamp_us ^= 1,
                _ => order.certificate.authenticators.clear(),
            },
            Entry::Relay { certificate } => {
                certificate.signed.statement = self.statement(hints, rng);
            }
            _ => {}
        }
        entry
    }

    fn new_entry(&self, kind: u32, hints: &Hints, rng: &mut ChaCha8Rng) -> Entry {
        let (view, slot, history) = (hints.view(rng), hints.slot(rng), hints.history(rng));
        let attempt = Attempt([0, 1, u32::MAX, 5][usual(rng)]);
        match kind {
            0 => Entry::Propose {
                view,
                slot,
                attempt,
                previous: history,
                timestamp_us: rng.random(),
                requests: hints.requests(rng),
            },
            1 => Entry::Endorse {
                view,
                slot,
                attempt,
                history,
                signature: rng.random_bool(0.5).then(|| self.authenticator(rng)),
            },
            2 => Entry::Nack {
                view,
                slot,
                attempt,
                history,
                requests: hints.requests(rng),
            },
            3 => Entry::Withdraw {
                view,
                slot,
                attempt,
            },
            4 => Entry::Need {
                digest: digest(rng),
            },
            5 => Entry::Body {
                request: self.signed_request(hints, rng),
            },
            6 => Entry::Have {
                request: hints.request(rng),
            },
            7 => Entry::Sign {
                statement: self.statement(hints, rng),
                authenticator: self.authenticator(rng),
            },
            8 => Entry::Accept {
                view,
                slot,
                history,
            },
            9 => Entry::Results {
                slot,
                history,
                view: None,
                results: (0..rng.random_range(0..5))
                    .map(|_| ResultMac {
                        digest: digest(rng),
                        mac: mac(rng),
                    })
                    .collect(),
            },
            10 => Entry::ResultAgain {
                client: hints.client(rng),
                seq: seq(rng),
                slot,
                history,
                view: None,
                result: ResultMac {
                    digest: digest(rng),
                    mac: mac(rng),
                },
            },
            11 => Entry::Checkpoint {
                slot,
                digest: digest(rng),
            },
            12 => Entry::Retransmission {
                request: hints.request(rng),
            },
            13 => Entry::Suspect { view },
            14 => Entry::Leave {
                view,
                certificates: Vec::new(),
            },
            15 => Entry::NvPropose {
                view,
                hosts: self.shape.all_hosts().map(|h| (h, digest(rng))).collect(),
                slot,
                history,
            },
            16 => Entry::NvEndorse {
                view,
                proposal: Position(hints.log_end.0.saturating_sub(rng.random_range(0..8))),
            },
            17 => Entry::NvAccept {
                view,
                slot,
                history,
            },
            18 => Entry::Jump { slot, history },
            19 => Entry::Beat {
                view,
                count: rng.random_range(0..5),
            },
            20 => Entry::Peer {
                host: HostId(rng.random_range(0..9)),
                incarnation: Incarnation(rng.random_range(0..3)),
                nonce: digest(rng),
            },
            21 => Entry::Hello {
                state: HelloState {
                    leave: view,
                    last_normal: hints.view(rng),
                    accepted: slot,
                    history,
                    incarnations: vec![Incarnation(0); usize::from(self.shape.hosts())],
                },
            },
            22 => Entry::Amnesia { nonce: digest(rng) },
            23 => Entry::Quarantine {
                twin: TwinId(rng.random_range(0..9)),
            },
            24 => Entry::Readmit {
                twin: TwinId(rng.random_range(0..9)),
            },
            25 => Entry::Relay {
                certificate: self.certificate(hints, rng),
            },
            _ => Entry::RelayOrder {
                order: self.order(hints, rng),
            },
        }
    }

    fn statement(&self, hints: &Hints, rng: &mut ChaCha8Rng) -> Statement {
        let (view, slot, history) = (hints.view(rng), hints.slot(rng), hints.history(rng));
        match rng.random_range(0..STATEMENT_KINDS) {
            0 => Statement::Order {
                view,
                slot,
                history,
            },
            1 => Statement::Ack {
                view,
                slot,
                history,
                beat: None,
            },
            2 => Statement::Reply {
                view: None,
                slot,
                client: hints.client(rng),
                seq: seq(rng),
                result: digest(rng),
            },
            3 => Statement::Forward {
                client: hints.client(rng),
                seq: seq(rng),
                digest: digest(rng),
            },
            4 => Statement::Checkpoint {
                slot,
                digest: digest(rng),
            },
            5 => Statement::Heartbeat {
                view,
                count: rng.random_range(0..5),
                slot,
                history,
            },
            6 => Statement::Wish {
                view,
                epoch: Epoch(0),
                position: hints.log_end,
            },
            7 => Statement::ViewChange {
                view,
                last_normal: hints.view(rng),
                accepted: slot,
                history,
                incarnations: vec![Incarnation(0); usize::from(self.shape.hosts())],
            },
            8 => Statement::NewView {
                view,
                slot,
                history,
                hosts: self.shape.all_hosts().map(|h| (h, digest(rng))).collect(),
            },
            9 => Statement::Committed { slot, history },
            10 => Statement::SlotResult {
                slot,
                history,
                results: digest(rng),
            },
            11 => Statement::Recovery {
                incarnation: Incarnation(rng.random_range(0..3)),
                nonce: digest(rng),
            },
            12 => Statement::RecoveryAnswer {
                to: HostId(rng.random_range(0..self.shape.hosts())),
                incarnation: Incarnation(rng.random_range(0..3)),
                nonce: digest(rng),
                view,
                accepted: slot,
                history,
                incarnations: vec![Incarnation(0); usize::from(self.shape.hosts())],
            },
            _ => Statement::Report {
                of: HostId(rng.random_range(0..self.shape.hosts())),
                incarnation: Incarnation(rng.random_range(0..3)),
                nonce: digest(rng),
            },
        }
    }

    fn authenticator(&self, rng: &mut ChaCha8Rng) -> Authenticator {
        let receivers = self.shape.receivers(self.me.host).count();
        let count = [receivers, 0, receivers + 1, 100][usual(rng)];
        Authenticator {
            twin: self.me.twin,
            macs: (0..count).map(|_| mac(rng)).collect(),
        }
    }

    /// Signed by itself for good, and by its siblings with whatever it can make up.
    fn certificate(&self, hints: &Hints, rng: &mut ChaCha8Rng) -> Certificate {
        let host = if rng.random_bool(0.8) {
            self.me.host
        } else {
            HostId(rng.random_range(0..self.shape.hosts() + 1))
        };
        let signed = Signed {
            host,
            incarnation: Incarnation([0, 1, 2, 3][usual(rng)]),
            statement: self.statement(hints, rng),
        };
        let own = self.keys.sign(self.shape, &signed);
        let authenticators = self
            .shape
            .all_twins()
            .map(|twin| {
                let mut copy = own.clone();
                copy.twin = if rng.random_bool(0.8) {
                    twin
                } else {
                    self.me.twin
                };
                copy
            })
            .collect();
        Certificate {
            signed,
            authenticators,
        }
    }

    fn order(&self, hints: &Hints, rng: &mut ChaCha8Rng) -> OrderMessage {
        OrderMessage {
            certificate: self.certificate(hints, rng),
            timestamp_us: rng.random(),
            bodies: (0..rng.random_range(0..4))
                .map(|_| self.request(hints, rng))
                .collect(),
        }
    }

    /// What would be the next ORDER, had its host decided it: everything fits but the signatures.
    fn next_order(&self, hints: &Hints, rng: &mut ChaCha8Rng) -> OrderMessage {
        let bodies = vec![self.request(hints, rng)];
        let requests: Vec<RequestRef> = bodies.iter().map(Request::reference).collect();
        let slot = hints.accepted.next();
        let timestamp_us = 1_700_000_000_000_000 + rng.random_range(0..1_000_000);
        let batch = twinbft_types::batch_digest(&requests);
        let signed = Signed {
            host: self.me.host,
            incarnation: Incarnation(0),
            statement: Statement::Order {
                view: hints.view,
                slot,
                history: twinbft_types::history(hints.history, slot, batch, timestamp_us),
            },
        };
        let own = self.keys.sign(self.shape, &signed);
        let twins = self.shape.all_twins();
        let authenticators = twins.map(|twin| Authenticator {
            twin,
            macs: own.macs.clone(),
        });
        OrderMessage {
            certificate: Certificate {
                authenticators: authenticators.collect(),
                signed,
            },
            timestamp_us,
            bodies,
        }
    }

    fn request(&self, hints: &Hints, rng: &mut ChaCha8Rng) -> Request {
        let bytes = [10, 0, 1, 4000][usual(rng)];
        Request {
            client: hints.client(rng),
            seq: seq(rng),
            operation: vec![1; bytes].into(),
        }
    }

    fn signed_request(&self, hints: &Hints, rng: &mut ChaCha8Rng) -> SignedRequest {
        SignedRequest {
            request: self.request(hints, rng),
            host: self.me.host,
            macs: (0..self.shape.twins()).map(|_| mac(rng)).collect(),
        }
    }

    /// A message to another host or to a client that its own host never decided.
    pub(super) fn lie(&mut self, hints: &Hints, rng: &mut ChaCha8Rng) -> Vec<Act> {
        if rng.random_bool(0.3) {
            return vec![self.false_reply(hints, rng)];
        }
        let Some(to) = self.any_peer(rng) else {
            return Vec::new();
        };
        let seen = pick(&self.messages, rng);
        let message = match rng.random_range(0..11) {
            0 => PeerMessage::FetchSlots {
                first: hints.slot(rng),
                last: hints.slot(rng),
            },
            1 => PeerMessage::FetchSlotResult {
                slot: hints.slot(rng),
                history: hints.history(rng),
            },
            2 if rng.random_bool(0.7) => PeerMessage::Order(self.next_order(hints, rng)),
            2 => PeerMessage::Order(self.order(hints, rng)),
            8 => PeerMessage::FetchNewView {
                view: hints.view(rng),
            },
            9 => PeerMessage::FetchChain {
                slot: hints.slot(rng),
                history: hints.history(rng),
            },
            10 => self.false_content(hints, rng),
            3 | 4 => match seen {
                Some(seen) => self.twisted((*seen).clone(), hints, rng),
                None => PeerMessage::Certificate(self.certificate(hints, rng)),
            },
            _ => PeerMessage::Certificate(self.certificate(hints, rng)),
        };
        vec![Act::Send(to, Arc::new(message))]
    }

    /// What no certificate covers as a whole: a chain out of nothing, or a request under a FORWARD of its own.
    fn false_content(&self, hints: &Hints, rng: &mut ChaCha8Rng) -> PeerMessage {
        if rng.random_bool(0.5) {
            return PeerMessage::Forward(ForwardMessage {
                certificate: self.certificate(hints, rng),
                request: self.request(hints, rng),
            });
        }
        let slot = hints.slot(rng);
        let count = slot.0.min(rng.random_range(0..4));
        let slots = (0..count).map(|below| ChainSlot {
            slot: Slot(slot.0 - below),
            previous: hints.history(rng),
            timestamp_us: rng.random(),
            bodies: vec![self.request(hints, rng)],
        });
        PeerMessage::Chain(slots.collect())
    }

    /// A real certificate with something in it changed.
    fn twisted(
        &self,
        mut message: PeerMessage,
        hints: &Hints,
        rng: &mut ChaCha8Rng,
    ) -> PeerMessage {
        match &mut message {
            PeerMessage::Order(order) => match rng.random_range(0..4) {
                0 => order.timestamp_us ^= 1,
                1 => order.bodies.clear(),
                2 => order.certificate.signed.incarnation = Incarnation(1),
                _ => {
                    let first = order.certificate.authenticators.first().cloned();
                    let all = &mut order.certificate.authenticators;
                    all.iter_mut()
                        .zip(first)
                        .for_each(|(copy, first)| *copy = first);
                }
            },
            PeerMessage::Certificate(certificate) => match rng.random_range(0..4) {
                0 => certificate.signed.statement = self.statement(hints, rng),
                1 => certificate.signed.host = self.me.host,
                2 => certificate.authenticators.truncate(1),
                _ => {
                    let first = certificate.authenticators.first().cloned();
                    for copy in &mut certificate.authenticators {
                        copy.clone_from(first.as_ref().expect("there is one"));
                    }
                }
            },
            PeerMessage::Forward(forward) => forward.request = self.request(hints, rng),
            PeerMessage::Chain(slots) => {
                for slot in slots {
                    slot.timestamp_us ^= 1;
                }
            }
            PeerMessage::Checkpoint(offer) => offer.parts.timestamp_us ^= 1,
            PeerMessage::Chunk(chunk) => {
                let bytes = chunk.bytes.iter().flatten().map(|byte| byte ^ 1);
                chunk.bytes = Some(bytes.collect());
            }
            PeerMessage::FetchSlots { .. }
            | PeerMessage::FetchSlotResult { .. }
            | PeerMessage::FetchNewView { .. }
            | PeerMessage::FetchReport { .. }
            | PeerMessage::FetchCheckpoint { .. }
            | PeerMessage::FetchChunk(_)
            | PeerMessage::FetchChain { .. } => {}
        }
        message
    }

    /// A reply that nobody agreed on: its own MAC, and what it can make up for its siblings'.
    fn false_reply(&mut self, hints: &Hints, rng: &mut ChaCha8Rng) -> Act {
        let client = ClientId {
            key: rng.random_range(0..hints.clients),
            session: 1,
        };
        let result = Bytes::from_static(&[0x66; 8]);
        let (slot, seq) = (hints.slot(rng), seq(rng));
        let signed = Signed {
            host: self.me.host,
            incarnation: Incarnation(0),
            statement: Statement::Reply {
                view: None,
                slot,
                client,
                seq,
                result: Digest::of(&result),
            },
        };
        let to = ProcessId::Client(client.key);
        let own = self
            .keys
            .mac(to, Domain::Statement, signed.digest())
            .unwrap_or_default();
        Act::Reply(Reply {
            host: self.me.host,
            incarnation: Incarnation(0),
            slot,
            view: None,
            client,
            seq,
            outcome: Outcome::Result(result),
            macs: self.shape.all_twins().map(|twin| (twin, own)).collect(),
        })
    }

    /// As a leader: a second PROPOSE for one slot. As anybody: votes both ways.
    pub(super) fn equivocate(&mut self, hints: &Hints, rng: &mut ChaCha8Rng) -> Vec<Act> {
        let Some(seen) = pick(&self.entries, rng) else {
            return Vec::new();
        };
        let other = self.altered(seen.clone(), hints, rng);
        vec![Act::Post(other), Act::Post(seen)]
    }
}
