//! The replicated log between the marks: what this twin knows of each slot (protocol.md 4, 5).

use std::collections::BTreeMap;
use std::sync::Arc;

use twinbft_types::wire::{OrderMessage, PeerMessage};
use twinbft_types::{
    Authenticator, Certificate, Digest, HostId, Incarnation, Request, RequestRef, Signed, Slot,
    Statement, View, batch_digest, history,
};

use crate::record::Record;

/// One slot that this twin's host has decided, or for which this twin holds a valid ORDER certificate.
#[derive(Clone, Debug)]
pub struct SlotData {
    pub view: View,
    pub history: Digest,
    pub timestamp_us: u64,
    pub requests: Vec<RequestRef>,
    /// Invariant: as long as `requests`.
    pub bodies: Vec<Option<Request>>,
    /// Whose ORDER it is.
    pub primary: HostId,
    pub incarnation: Incarnation,
    /// Of distinct twins of the primary host.
    pub authenticators: Vec<Authenticator>,
    /// The ORDER with its bodies, once both are complete.
    message: Option<Arc<PeerMessage>>,
    /// Whether this twin has sent it to the backups of its own accord.
    pub sent: bool,
    /// When this twin first had it, or last sent it again.
    pub since_us: u64,
    /// How often it was sent again.
    pub repeats: u32,
    /// Whether it is in the write-ahead log.
    pub is_persisted: bool,
}

impl SlotData {
    /// A slot without signatures.
    pub fn new(
        (view, primary, incarnation): (View, HostId, Incarnation),
        history: Digest,
        timestamp_us: u64,
        requests: Vec<RequestRef>,
        bodies: Vec<Option<Request>>,
        now_us: u64,
    ) -> Self {
        assert_eq!(requests.len(), bodies.len());
        Self {
            view,
            history,
            timestamp_us,
            requests,
            bodies,
            primary,
            incarnation,
            authenticators: Vec::new(),
            message: None,
            sent: false,
            since_us: now_us,
            repeats: 0,
            is_persisted: false,
        }
    }

    /// The slot for the write-ahead log; only when it is complete. The signatures of this host's own twins can be
    /// asked for again.
    pub fn record(&self, slot: Slot, previous: Digest) -> Record {
        Record::Slot {
            slot,
            previous,
            timestamp_us: self.timestamp_us,
            bodies: self.bodies.iter().flatten().cloned().collect(),
            certificate: None,
        }
    }

    /// Whether this is slot `slot` of a log whose history below it is `previous`.
    pub fn extends(&self, previous: Digest, slot: Slot) -> bool {
        let batch = batch_digest(&self.requests);
        history(previous, slot, batch, self.timestamp_us) == self.history
    }

    /// Whether every body is here.
    pub fn is_complete(&self) -> bool {
        self.bodies.iter().all(Option::is_some)
    }

    /// Fills in a body wherever it is missing.
    pub fn fill(&mut self, digest: Digest, request: &Request) {
        for (reference, body) in self.requests.iter().zip(&mut self.bodies) {
            if reference.digest == digest && body.is_none() {
                *body = Some(request.clone());
            }
        }
    }

    /// Whether this body is missing.
    pub fn lacks(&self, digest: Digest) -> bool {
        let mut pairs = self.requests.iter().zip(&self.bodies);
        pairs.any(|(reference, body)| reference.digest == digest && body.is_none())
    }

    /// The bodies that are missing.
    pub fn missing(&self) -> Vec<Digest> {
        let pairs = self.requests.iter().zip(&self.bodies);
        pairs
            .filter(|(_, body)| body.is_none())
            .map(|(reference, _)| reference.digest)
            .collect()
    }

    /// Adds a twin's signature on ORDER; whether it was new.
    pub fn add_signature(&mut self, authenticator: Authenticator) -> bool {
        let known = self
            .authenticators
            .iter()
            .any(|a| a.twin == authenticator.twin);
        if !known {
            self.authenticators.push(authenticator);
            self.message = None;
        }
        !known
    }

    /// The certificate, when it has `quorum` signatures.
    pub fn certificate(&self, slot: Slot, quorum: usize) -> Option<Certificate> {
        (self.authenticators.len() >= quorum).then(|| Certificate {
            signed: Signed {
                host: self.primary,
                incarnation: self.incarnation,
                statement: Statement::Order {
                    view: self.view,
                    slot,
                    history: self.history,
                },
            },
            authenticators: self.authenticators.clone(),
        })
    }

    /// The ORDER certificate with its bodies, made once and shared between receivers.
    pub fn order(&mut self, slot: Slot, quorum: usize) -> Option<Arc<PeerMessage>> {
        if self.message.is_none() {
            let bodies: Option<Vec<Request>> = self.bodies.iter().cloned().collect();
            let order = OrderMessage {
                certificate: self.certificate(slot, quorum)?,
                timestamp_us: self.timestamp_us,
                bodies: bodies?,
            };
            self.message = Some(Arc::new(PeerMessage::Order(order)));
        }
        self.message.clone()
    }

    /// Bytes of the operations that are here.
    pub fn bytes(&self) -> usize {
        self.bodies
            .iter()
            .flatten()
            .map(|request| request.operation.len())
            .sum()
    }
}

/// Slots above the last one dropped.
#[derive(Clone, Debug, Default)]
pub struct SlotLog {
    slots: BTreeMap<Slot, SlotData>,
}

impl SlotLog {
    pub fn get(&self, slot: Slot) -> Option<&SlotData> {
        self.slots.get(&slot)
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut SlotData> {
        self.slots.get_mut(&slot)
    }

    pub fn insert(&mut self, slot: Slot, data: SlotData) {
        self.slots.insert(slot, data);
    }

    pub fn iter_mut_from(&mut self, slot: Slot) -> impl Iterator<Item = (Slot, &mut SlotData)> {
        self.slots
            .range_mut(slot..)
            .map(|(slot, data)| (*slot, data))
    }

    pub fn iter_from(&self, slot: Slot) -> impl Iterator<Item = (Slot, &SlotData)> {
        self.slots.range(slot..).map(|(slot, data)| (*slot, data))
    }

    /// Drops `slot` and everything above it: another log takes its place (6).
    pub fn drop_from(&mut self, slot: Slot) {
        self.slots.split_off(&slot);
    }

    /// The body of a request in any slot, the latest first.
    pub fn find_body(&self, digest: Digest) -> Option<(Slot, &Request)> {
        self.slots.iter().rev().find_map(|(slot, data)| {
            let mut pairs = data.requests.iter().zip(&data.bodies);
            let body = pairs.find(|(r, _)| r.digest == digest)?.1.as_ref()?;
            Some((*slot, body))
        })
    }

    /// `h_n`, also for genesis.
    pub fn history(&self, slot: Slot) -> Option<Digest> {
        if slot == Slot(0) {
            return Some(Digest::ZERO);
        }
        self.slots.get(&slot).map(|data| data.history)
    }

    /// Gives up everything up to `slot`.
    pub fn trim(&mut self, slot: Slot) {
        self.slots = self.slots.split_off(&slot.next());
    }

    /// Takes out the lowest slot when it is not above `slot`.
    pub fn pop_up_to(&mut self, slot: Slot) -> Option<(Slot, SlotData)> {
        let lowest = self.slots.first_entry()?;
        (*lowest.key() <= slot).then(|| lowest.remove_entry())
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }
}
