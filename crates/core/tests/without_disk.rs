//! A twin without its disk is to have what its host has accepted before it speaks (protocol.md 8, row 2). What may be in its way: its
//! host's log has lost meanwhile, and another one is committed, to which the others' checkpoints lead it (5); what it needs of its own
//! host to believe them is not in the log any more; and nobody tells it by itself what is committed (4.6).

mod common;

use common::{BEGINNING_US, Host};
use twinbft_core::{Checkpoint, Input, Record, Recovered, SessionImage, Tuning};
use twinbft_types::wire::{ChainSlot, CheckpointOffer, CheckpointParts, PeerMessage};
use twinbft_types::{
    Attempt, Digest, Entry, Epoch, HostId, Position, ReplicaId, Request, RequestRef, Slot,
    Statement, View, batch_digest, history,
};

const CHECKPOINT: Slot = Slot(2);
/// A view of host 0 whose leader is twin 0.
const VIEW: View = View(6);

/// Slots 1 to `end` of a log, each with one request, and their histories. Two logs are the same up to the slot that they part at.
fn log_of(host: &Host, client: u32, parts_at: u64, end: u64) -> Vec<(ChainSlot, Digest)> {
    let mut previous = Digest::ZERO;
    let slots = (1..=end).map(|n| {
        let client = if n <= parts_at { 5 } else { client };
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
        previous = own;
        (slot, own)
    });
    slots.collect()
}

/// Both twins of the primary host decide this slot.
fn decide(host: &mut Host, (slot, history): &(ChainSlot, Digest)) {
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

/// The host has entered [`VIEW`] with a log that ends so.
fn enter(host: &mut Host, (slot, history): &(ChainSlot, Digest)) {
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

/// This twin of a host of two, without its disk; the test plays its sibling.
fn started(me: ReplicaId, hosts: u8, entries: u64) -> Host {
    let recovered = Recovered {
        log_end: Position(entries),
        ..Recovered::default()
    };
    started_with(me, (hosts, 2), CHECKPOINT, recovered)
}

/// This twin of a host, with what it finds; the test plays its siblings.
fn started_with(
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

/// A checkpoint with this history that these hosts have certified is offered to twin 1.
fn offer(host: &mut Host, of: &[u8], slot: Slot, history: Digest) {
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
    host.pass(100_000);
}

/// The ends of logs that twin 1 has asked for since the last call.
fn asked_for(host: &mut Host) -> Vec<(Slot, Digest)> {
    let sends = std::mem::take(&mut host.done(1).sends);
    let asked = sends.iter().filter_map(|(_, message)| match **message {
        PeerMessage::FetchChain { slot, history } => Some((slot, history)),
        _ => None,
    });
    asked.collect()
}

fn has_joined(host: &mut Host) -> bool {
    let records = host.done(1).records.iter();
    records
        .into_iter()
        .any(|r| matches!(r, Record::Joined { .. }))
}

fn chain_of(log: &[(ChainSlot, Digest)]) -> PeerMessage {
    let slots = log.iter().rev().map(|(slot, _)| slot.clone());
    PeerMessage::Chain(slots.collect())
}

/// h0 has a log of two slots more than the checkpoint that others have committed in a later view: theirs is another one from
/// `parts_at` on. Twin 1 is led to the checkpoint, and has got its batches.
fn overtaken(host: &mut Host, checkpoint: Slot, parts_at: u64, is_decided: bool) -> [Digest; 2] {
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

fn history_at(host: &Host, slot: Slot) -> Option<Digest> {
    host.twins[1].core.history_at(slot)
}

/// The log remembers what it has decided: nobody need have those slots any more.
#[test]
fn a_log_that_is_known_to_have_lost_is_not_waited_for() {
    let me = ReplicaId::new(0, 1);
    let mut host = started(me, 3, 8);
    let [end, agreed] = overtaken(&mut host, CHECKPOINT, 0, true);
    host.serve(1);
    host.pass(100_000);
    assert_eq!(history_at(&host, CHECKPOINT), Some(agreed));
    assert!(has_joined(&mut host), "no view will begin with that log");
    asked_for(&mut host);
    host.pass(100_000);
    let end = (Slot(CHECKPOINT.0 + 2), end);
    assert!(!asked_for(&mut host).contains(&end), "asked for no more");
}

/// Of a log that it has entered a view with it knows the end, and so much of it comes.
#[test]
fn a_log_that_turns_out_to_have_lost_is_put_over_nothing() {
    for came in [2, 4] {
        let mut host = started(ReplicaId::new(0, 1), 3, 4);
        let [end, agreed] = overtaken(&mut host, CHECKPOINT, 0, false);
        host.serve(1);
        host.pass(100_000);
        let end = (Slot(CHECKPOINT.0 + 2), end);
        assert!(asked_for(&mut host).contains(&end));
        assert!(!has_joined(&mut host), "it lacks what its host accepted");
        let own = log_of(&host, 0, 0, end.0.0);
        let from = ReplicaId::new(0, 0);
        host.peer(1, from, chain_of(&own[own.len() - came..]));
        host.pass(100_000);
        assert_eq!(history_at(&host, CHECKPOINT), Some(agreed), "{came} came");
        assert!(has_joined(&mut host), "{came} came");
        asked_for(&mut host);
        host.pass(100_000);
        assert!(!asked_for(&mut host).contains(&end), "asked for no more");
    }
}

/// More slots than the service is handed at once. Its host's log parts from the committed one where nothing is executed yet.
#[test]
fn a_log_that_has_lost_is_not_put_over_what_waits_for_the_service() {
    let checkpoint = Slot(20);
    let me = ReplicaId::new(0, 1);
    let recovered = Recovered {
        log_end: Position(4),
        ..Recovered::default()
    };
    let mut host = started_with(me, (3, 2), checkpoint, recovered);
    let [_, agreed] = overtaken(&mut host, checkpoint, 17, false);
    assert_eq!(host.done(1).executes.len(), 16);
    let own = log_of(&host, 0, 17, 22);
    host.peer(1, ReplicaId::new(0, 0), chain_of(&own[17..]));
    host.pass(100_000);
    assert_eq!(history_at(&host, checkpoint), Some(agreed));
    host.serve(1);
    assert_eq!(host.twins[1].core.status().executed, checkpoint);
}

/// The same when its host decides that log only now.
#[test]
fn what_its_host_decides_late_is_not_put_over_what_waits_for_the_service() {
    let checkpoint = Slot(20);
    let me = ReplicaId::new(0, 1);
    let mut host = started_with(me, (3, 2), checkpoint, Recovered::default());
    let other = log_of(&host, 1, 0, checkpoint.0);
    let order = host.keys.order(checkpoint.0 + 1, Digest::ZERO, Vec::new());
    host.peer(1, ReplicaId::new(0, 0), PeerMessage::Order(order));
    offer(&mut host, &[1, 2], checkpoint, other[19].1);
    host.peer(1, ReplicaId::new(1, 1), chain_of(&other));
    host.pass(1_000);
    assert_eq!(host.done(1).executes.len(), 16);
    for slot in &log_of(&host, 0, 0, 18) {
        decide(&mut host, slot);
    }
    host.pass(100_000);
    assert_eq!(host.accepted(1), 18);
    assert_eq!(history_at(&host, Slot(18)), Some(other[17].1));
}

/// What it has of that log joins nothing that it has, so it is given to nobody: the receiver would blame this twin.
#[test]
fn slots_of_a_log_that_has_lost_are_not_given_away_as_what_they_are_not() {
    let me = ReplicaId::new(0, 1);
    let keys = Host::new(0, 3, 2, &Tuning::default());
    let own = log_of(&keys, 0, 0, 3);
    let (slot, end) = own[2].clone();
    let checkpoint = Checkpoint {
        slot: CHECKPOINT,
        history: Digest([9; 32]),
        timestamp_us: 7,
        sessions: SessionImage::default(),
    };
    let record = Record::Slot {
        slot: slot.slot,
        previous: slot.previous,
        timestamp_us: slot.timestamp_us,
        bodies: slot.bodies,
        certificate: None,
    };
    let recovered = Recovered {
        records: vec![Record::Joined { epoch: Epoch(1) }, record],
        checkpoint: Some((checkpoint, Digest([5; 32]))),
        log_end: Position(4),
        ..Recovered::default()
    };
    let mut host = started_with(me, (3, 2), CHECKPOINT, recovered);
    enter(&mut host, &own[2]);
    host.pass(100_000);
    assert_eq!(host.accepted(1), 3);
    let question = PeerMessage::FetchChain {
        slot: Slot(3),
        history: end,
    };
    host.peer(1, ReplicaId::new(0, 0), question);
    let mut sends = host.done(1).sends.iter();
    assert!(!sends.any(|(_, message)| matches!(**message, PeerMessage::Chain(_))));
}

/// 5: what its host has left behind by a JUMP is not what it waits for.
#[test]
fn what_its_host_has_jumped_over_is_not_waited_for() {
    let me = ReplicaId::new(1, 2);
    let recovered = Recovered {
        log_end: Position(2),
        ..Recovered::default()
    };
    let mut host = started_with(me, (5, 3), Slot(8), recovered);
    let (own, other) = (log_of(&host, 0, 0, 3), log_of(&host, 1, 0, 5));
    for twin in [0, 1] {
        let accept = Entry::Accept {
            view: View(0),
            slot: Slot(3),
            history: own[2].1,
        };
        host.post_as(twin, &accept);
    }
    host.pass(100_000);
    let asked = |host: &mut Host| {
        let sends = std::mem::take(&mut host.done(2).sends);
        let asked = sends.iter().filter_map(|(_, message)| match **message {
            PeerMessage::FetchChain { slot, history } => Some((slot, history)),
            _ => None,
        });
        asked.collect::<std::collections::BTreeSet<_>>()
    };
    let expected = |end: &(ChainSlot, Digest)| [(end.0.slot, end.1)].into();
    assert_eq!(asked(&mut host), expected(&own[2]));
    for twin in [0, 1] {
        let jump = Entry::Jump {
            slot: Slot(5),
            history: other[4].1,
        };
        host.post_as(twin, &jump);
    }
    host.pass(100_000);
    assert_eq!(host.accepted(2), 5);
    assert_eq!(asked(&mut host), expected(&other[4]));
}

/// STATE has only the last checkpoint that its host has certified (2), and the others stand at the one before.
#[test]
fn the_last_word_of_its_own_host_stands_for_the_ones_before() {
    let mut host = started(ReplicaId::new(1, 1), 2, 2);
    let history = log_of(&host, 0, 0, CHECKPOINT.0)[1].1;
    let later = Entry::Checkpoint {
        slot: Slot(2 * CHECKPOINT.0),
        digest: Digest([7; 32]),
    };
    for twin in [0, 1] {
        host.post_as(twin, &later);
    }
    host.pass(1_000);
    let order = host.keys.order(5, Digest::ZERO, Vec::new());
    host.peer(1, ReplicaId::new(0, 0), PeerMessage::Order(order));
    asked_for(&mut host);
    offer(&mut host, &[0], CHECKPOINT, history);
    assert!(asked_for(&mut host).contains(&(CHECKPOINT, history)));
}

/// The leader has nothing to repeat yet that would bring ACKs.
#[test]
fn a_leader_that_says_nothing_yet_asks_what_is_committed() {
    let mut host = started(ReplicaId::new(0, 0), 2, 2);
    let own = log_of(&host, 0, 0, 1);
    decide(&mut host, &own[0]);
    host.pass(100_000);
    assert_eq!(host.accepted(0), 1);
    let mut sends = host.done(0).sends.iter();
    let asks = sends.any(|(_, message)| matches!(**message, PeerMessage::FetchSlots { .. }));
    assert!(asks, "its own host's acceptance is one of two");
}

#[test]
fn what_another_host_certifies_of_its_hosts_log_is_committed_before_it_is_here() {
    let committed = |certified: Option<Digest>| {
        let mut host = started(ReplicaId::new(0, 0), 2, 2);
        let own = log_of(&host, 0, 0, 1);
        decide(&mut host, &own[0]);
        host.pass(1_000);
        let (slot, history) = (Slot(1), certified.unwrap_or(own[0].1));
        let statement = Statement::Committed { slot, history };
        let certificate = host.keys.certificate(1, &[0, 1], statement);
        let message = PeerMessage::Certificate(certificate);
        host.peer(0, ReplicaId::new(1, 0), message);
        host.pass(1_000);
        host.twins[0].core.status().committed
    };
    assert_eq!(committed(None), Slot(1));
    assert_eq!(committed(Some(Digest([9; 32]))), Slot(0), "of another log");
}

/// The view that a host is about to enter begins with a log that has lost against what this twin is brought by batches meanwhile.
#[test]
fn a_view_that_is_over_puts_nothing_over_what_waits_for_the_service() {
    let checkpoint = Slot(20);
    let me = ReplicaId::new(2, 1);
    let mut host = started_with(me, (3, 2), checkpoint, Recovered::default());
    let (lost, other) = (log_of(&host, 0, 17, 19), log_of(&host, 1, 17, 20));
    let (slot, history) = (Slot(19), lost[18].1);
    let view = View(1);
    let leave = Entry::Leave {
        view,
        certificates: Vec::new(),
    };
    host.pass(10_000);
    host.post_as(0, &leave);
    let new_view = Statement::NewView {
        view,
        slot,
        history,
        hosts: vec![(HostId(0), Digest::ZERO), (HostId(1), Digest::ZERO)],
    };
    let certificate = host.keys.certificate(1, &[0, 1], new_view);
    host.peer(
        1,
        ReplicaId::new(1, 1),
        PeerMessage::Certificate(certificate),
    );
    host.pass(10_000);
    assert!(asked_for(&mut host).contains(&(slot, history)));
    host.peer(1, ReplicaId::new(1, 1), chain_of(&lost));
    host.pass(10_000);
    assert_eq!(host.posted(1, "NV-ACCEPT"), 1);
    offer(&mut host, &[0, 1], checkpoint, other[19].1);
    host.peer(1, ReplicaId::new(0, 1), chain_of(&other));
    host.pass(10_000);
    assert_eq!(host.done(1).executes.len(), 16);
    let enters = Entry::NvAccept {
        view,
        slot,
        history,
    };
    host.post_as(0, &enters);
    host.pass(10_000);
    assert_eq!(host.twins[1].core.host_log().installed(), view);
    assert_eq!(history_at(&host, checkpoint), Some(other[19].1));
    host.serve(1);
    assert_eq!(host.twins[1].core.status().executed, checkpoint);
}

/// A plain restart: in its write-ahead log are the log that its host has accepted first, and the one that it has jumped to.
#[test]
fn what_its_host_has_jumped_to_is_executed_and_not_what_was_there_before() {
    let me = ReplicaId::new(1, 1);
    let keys = Host::new(1, 5, 2, &Tuning::default());
    let (before, after) = (log_of(&keys, 0, 0, 3), log_of(&keys, 1, 0, 5));
    let record = |(slot, _): &(ChainSlot, Digest)| Record::Slot {
        slot: slot.slot,
        previous: slot.previous,
        timestamp_us: slot.timestamp_us,
        bodies: slot.bodies.clone(),
        certificate: None,
    };
    let accepts = before.iter().map(|(slot, history)| Entry::Accept {
        view: View(0),
        slot: slot.slot,
        history: *history,
    });
    let (slot, history) = (Slot(5), after[4].1);
    let jump = Entry::Jump { slot, history };
    let committed = Statement::Committed { slot, history };
    let certificate = keys.keys.certificate(3, &[0, 1], committed);
    let mut entries: Vec<Entry> = accepts.collect();
    entries.push(jump);
    let mut records = vec![Record::Joined { epoch: Epoch(1) }];
    records.extend(before.iter().chain(&after).map(record));
    records.extend(entries.iter().cloned().map(Record::Promise));
    let recovered = Recovered {
        records,
        log_end: Position(2 * entries.len() as u64 + 1),
        ..Recovered::default()
    };
    let mut host = started_with(me, (5, 2), Slot(20), recovered);
    let (jump, accepts) = entries.split_last().unwrap();
    for accept in accepts {
        host.post_as(0, accept);
        host.post_as(1, accept);
    }
    host.post_as(0, &Entry::Relay { certificate });
    host.post_as(0, jump);
    host.post_as(1, jump);
    host.pass(100_000);
    assert_eq!(host.accepted(1), 5);
    let executes = host.done(1).executes.iter();
    let seeds: Vec<Digest> = executes.map(|execute| execute.seed).collect();
    let expected: Vec<Digest> = after.iter().map(|(_, history)| *history).collect();
    assert_eq!(seeds, expected);
}

/// What is fetched stays of use while its host goes on.
#[test]
fn a_gap_is_filled_while_its_host_accepts_more() {
    let me = ReplicaId::new(1, 2);
    let mut host = started_with(me, (3, 3), Slot(64), Recovered::default());
    let own = log_of(&host, 0, 0, 9);
    let accept = |host: &mut Host, (slot, history): &(ChainSlot, Digest)| {
        let entry = Entry::Accept {
            view: View(0),
            slot: slot.slot,
            history: *history,
        };
        host.post_as(0, &entry);
        host.post_as(1, &entry);
    };
    own[..6].iter().for_each(|slot| accept(&mut host, slot));
    host.pass(100_000);
    // It comes in two parts, and more is accepted before each.
    for (part, more) in [(&own[3..6], 6), (&own[..3], 7)] {
        accept(&mut host, &own[more]);
        host.pass(1_000);
        host.peer(2, ReplicaId::new(0, 2), chain_of(part));
        host.pass(1_000);
    }
    assert_eq!(host.twins[2].core.history_at(Slot(6)), Some(own[5].1));
}

/// The other words may be gone for good: with one host's log and with another host.
#[test]
fn one_hosts_word_for_a_checkpoint_is_enough_after_a_while() {
    let me = ReplicaId::new(2, 1);
    let mut host = started_with(me, (3, 2), CHECKPOINT, Recovered::default());
    host.pass(1_000);
    let order = host.keys.order(5, Digest::ZERO, Vec::new());
    host.peer(1, ReplicaId::new(0, 0), PeerMessage::Order(order));
    let slot = Slot(2 * CHECKPOINT.0);
    let fetches = |host: &mut Host| {
        let sends = std::mem::take(&mut host.done(1).sends);
        let asks =
            |(_, m): &(_, std::sync::Arc<PeerMessage>)| matches!(**m, PeerMessage::FetchChunk(_));
        sends.iter().any(asks)
    };
    offer(&mut host, &[0], slot, Digest([9; 32]));
    assert!(!fetches(&mut host), "one of two");
    host.pass(2_000_000);
    offer(&mut host, &[0], slot, Digest([9; 32]));
    let wanted = Input::Restoring {
        slot,
        chunk: None,
        wanted: vec![0],
    };
    host.step(1, wanted);
    assert!(fetches(&mut host));
}

/// 5: its siblings have jumped to another log than what this twin has accepted, alone of its host, and one more is accepted behind it.
#[test]
fn slots_of_two_logs_are_not_executed_as_one() {
    let me = ReplicaId::new(1, 2);
    let mut host = started_with(me, (5, 3), Slot(8), Recovered::default());
    host.pass(1_000);
    let (alone, other) = (log_of(&host, 0, 0, 2), log_of(&host, 1, 0, 3));
    for (slot, _) in &alone {
        let order = host
            .keys
            .order(slot.slot.0, slot.previous, slot.bodies.clone());
        host.peer(2, ReplicaId::new(0, 2), PeerMessage::Order(order));
    }
    host.pass(1_000);
    assert_eq!(host.twins[2].core.history_at(Slot(2)), Some(alone[1].1));
    let (slot, history) = (Slot(3), other[2].1);
    for twin in [0, 1] {
        host.post_as(twin, &Entry::Jump { slot, history });
    }
    host.pass(100_000);
    host.peer(2, ReplicaId::new(3, 2), chain_of(&other));
    let committed = Statement::Committed { slot, history };
    let certificate = host.keys.certificate(3, &[0, 1, 2], committed);
    host.peer(
        2,
        ReplicaId::new(3, 2),
        PeerMessage::Certificate(certificate),
    );
    host.pass(100_000);
    let executes = host.done(2).executes.iter();
    let seeds: Vec<Digest> = executes.map(|execute| execute.seed).collect();
    let expected: Vec<Digest> = other.iter().map(|(_, history)| *history).collect();
    assert_eq!(seeds, expected);
}
