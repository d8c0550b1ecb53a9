//! Logs of a host beside the one that others have committed, for tests of what a twin makes of both.

use twinbft_core::{Recovered, Tuning};
use twinbft_types::wire::{ChainSlot, CheckpointOffer, CheckpointParts, PeerMessage};
use twinbft_types::{
    Attempt, Digest, Entry, HostId, Position, ReplicaId, Request, RequestRef, Slot, Statement,
    View, batch_digest, history,
};

use super::{BEGINNING_US, Host};

pub const CHECKPOINT: Slot = Slot(2);
/// A view of host 0 whose leader is twin 0.
pub const VIEW: View = View(6);

/// A slot with one request of this client, and its history.
pub fn slot_of(host: &Host, client: u32, n: u64, previous: Digest) -> (ChainSlot, Digest) {
    let bodies = vec![host.keys.request(client, n, &[0, 1]).request];
    let requests: Vec<RequestRef> = bodies.iter().map(Request::reference).collect();
    let timestamp_us = BEGINNING_US + n;
    let own = history(previous, Slot(n), batch_digest(&requests), timestamp_us);
    let slot = ChainSlot {
        slot: Slot(n),
        previous,
        timestamp_us,
        bodies,
    };
    (slot, own)
}

/// Slots 1 to `end` of a log, each with one request, and their histories. Two logs are the same up to the slot that they part at.
pub fn log_of(host: &Host, client: u32, parts_at: u64, end: u64) -> Vec<(ChainSlot, Digest)> {
    let mut previous = Digest::ZERO;
    let slots = (1..=end).map(|n| {
        let client = if n <= parts_at { 5 } else { client };
        let slot = slot_of(host, client, n, previous);
        previous = slot.1;
        slot
    });
    slots.collect()
}

/// Both twins of the primary host decide this slot.
pub fn decide(host: &mut Host, (slot, history): &(ChainSlot, Digest)) {
    let propose = Entry::Propose {
        view: View(0),
        slot: slot.slot,
        attempt: Attempt(0),
        previous: slot.previous,
        timestamp_us: slot.timestamp_us,
        requests: slot.bodies.iter().map(Request::reference).collect(),
    };
    let endorse = Entry::Endorse {
        view: View(0),
        slot: slot.slot,
        attempt: Attempt(0),
        history: *history,
        signature: None,
    };
    host.post_as(0, &propose);
    host.post_as(1, &endorse);
}

/// The ACCEPT of this slot in view 0.
pub fn accept_of((slot, history): &(ChainSlot, Digest)) -> Entry {
    Entry::Accept {
        view: View(0),
        slot: slot.slot,
        history: *history,
    }
}

/// Twins 0 and 1 of a backup host accept this slot.
pub fn accept(host: &mut Host, slot: &(ChainSlot, Digest)) {
    let entry = accept_of(slot);
    host.post_as(0, &entry);
    host.post_as(1, &entry);
}

/// The host has entered [`VIEW`] with a log that ends so.
pub fn enter(host: &mut Host, (slot, history): &(ChainSlot, Digest)) {
    let leave = Entry::Leave {
        view: VIEW,
        certificates: Vec::new(),
    };
    host.post_as(0, &leave);
    host.post_as(1, &leave);
    let proposal = Position(host.log.len() as u64);
    let propose = Entry::NvPropose {
        view: VIEW,
        hosts: vec![(HostId(0), Digest::ZERO), (HostId(1), Digest::ZERO)],
        slot: slot.slot,
        history: *history,
    };
    host.post_as(0, &propose);
    let endorse = Entry::NvEndorse {
        view: VIEW,
        proposal,
    };
    host.post_as(1, &endorse);
}

/// This twin of a host, with what it finds; the test plays its siblings.
pub fn started_with(
    me: ReplicaId,
    (hosts, twins): (u8, u8),
    checkpoint: Slot,
    recovered: Recovered,
) -> Host {
    let tuning = Tuning {
        checkpoint_slots: checkpoint.0,
        ..Tuning::default()
    };
    let mut host = Host::new(me.host.0, hosts, twins, &tuning);
    host.start_again(me.twin.0, 1, recovered);
    host
}

/// A checkpoint with this history that these hosts have certified is offered to twin 1, and time passes.
pub fn offer(host: &mut Host, of: &[u8], slot: Slot, history: Digest) {
    offer_at_once(host, of, slot, history);
    host.pass(100_000);
}

/// The same, and no time passes.
pub fn offer_at_once(host: &mut Host, of: &[u8], slot: Slot, history: Digest) {
    let parts = CheckpointParts {
        service: Digest([1; 32]),
        sessions: Digest([2; 32]),
        config: Digest::ZERO,
        history,
        timestamp_us: 1,
    };
    let digest = parts.digest();
    let statement = Statement::Checkpoint { slot, digest };
    let certificates = of
        .iter()
        .map(|id| host.keys.certificate(*id, &[0, 1], statement.clone()));
    let offer = CheckpointOffer {
        slot,
        parts,
        certificates: certificates.collect(),
    };
    let from = ReplicaId::new(of[0], 0);
    host.peer(1, from, PeerMessage::Checkpoint(Box::new(offer)));
}

/// The ends of logs that twin 1 has asked for since the last call.
pub fn asked_for(host: &mut Host) -> Vec<(Slot, Digest)> {
    let sends = std::mem::take(&mut host.done(1).sends);
    let asked = sends.iter().filter_map(|(_, message)| match **message {
        PeerMessage::FetchChain { slot, history } => Some((slot, history)),
        _ => None,
    });
    asked.collect()
}

pub fn chain_of(log: &[(ChainSlot, Digest)]) -> PeerMessage {
    let slots = log.iter().rev().map(|(slot, _)| slot.clone());
    PeerMessage::Chain(slots.collect())
}

pub fn history_at(host: &Host, slot: Slot) -> Option<Digest> {
    host.twins[1].core.history_at(slot)
}

/// h0 has a log of two slots more than the checkpoint that others have committed in a later view: theirs is another one from
/// `parts_at` on. Twin 1 is led to the checkpoint, and has got its batches.
pub fn overtaken(
    host: &mut Host,
    checkpoint: Slot,
    parts_at: u64,
    is_decided: bool,
) -> [Digest; 2] {
    let own = log_of(host, 0, parts_at, checkpoint.0 + 2);
    let other = log_of(host, 1, parts_at, checkpoint.0);
    if is_decided {
        own.iter().for_each(|slot| decide(host, slot));
    } else {
        enter(host, own.last().unwrap());
    }
    host.pass(100_000);
    assert_eq!(host.accepted(1), checkpoint.0 + 2);
    let (end, agreed) = (own.last().unwrap().1, other.last().unwrap().1);
    offer(host, &[1, 2], checkpoint, agreed);
    assert!(asked_for(host).contains(&(checkpoint, agreed)));
    host.peer(1, ReplicaId::new(1, 1), chain_of(&other));
    host.pass(100_000);
    [end, agreed]
}
