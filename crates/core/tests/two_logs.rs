//! A twin that has slots of two logs: what its host has accepted in a view that is over, and what the others have committed (protocol.md
//! 5, 6, 8; docs/adr/0026-without-its-disk.md). What is committed is overwritten by nothing, and no slot is executed, or given away, on
//! top of another log than its own.

mod common;

use common::Host;
use common::logs::*;
use twinbft_core::{Checkpoint, Execution, Record, Recovered, SessionImage, Tuning};
use twinbft_types::wire::{ChainSlot, PeerMessage};
use twinbft_types::{Digest, Entry, Epoch, HostId, Position, ReplicaId, Slot, Statement, View};

/// The primary of view 0 sends this slot to twin 2.
fn order(host: &mut Host, slot: &ChainSlot) {
    let order = host
        .keys
        .order(slot.slot.0, slot.previous, slot.bodies.clone());
    host.peer(2, ReplicaId::new(0, 2), PeerMessage::Order(order));
}

/// The histories under which twin 2 has handed slots over that its service has not answered.
fn executed(host: &mut Host) -> Vec<Digest> {
    let executes = host.done(2).executes.iter();
    executes.map(|execute| execute.seed).collect()
}

fn histories(log: &[(ChainSlot, Digest)]) -> Vec<Digest> {
    log.iter().map(|(_, history)| *history).collect()
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
    let accepts = before.iter().map(accept_of);
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

/// 5: its siblings have jumped to another log than what this twin has accepted, alone of its host. That this is committed it hears
/// before it has it.
#[test]
fn slots_of_two_logs_are_not_executed_as_one() {
    let me = ReplicaId::new(1, 2);
    let mut host = started_with(me, (5, 3), Slot(8), Recovered::default());
    host.pass(1_000);
    let (alone, other) = (log_of(&host, 0, 0, 2), log_of(&host, 1, 0, 3));
    alone.iter().for_each(|(slot, _)| order(&mut host, slot));
    host.pass(1_000);
    assert_eq!(host.twins[2].core.history_at(Slot(2)), Some(alone[1].1));
    let (slot, history) = (Slot(3), other[2].1);
    for twin in [0, 1] {
        host.post_as(twin, &Entry::Jump { slot, history });
    }
    let committed = Statement::Committed { slot, history };
    let certificate = host.keys.certificate(3, &[0, 1, 2], committed);
    let from = ReplicaId::new(3, 2);
    host.peer(2, from, PeerMessage::Certificate(certificate));
    host.pass(100_000);
    assert_eq!(executed(&mut host), [], "of a log that is over");
    host.peer(2, from, chain_of(&other));
    host.pass(100_000);
    assert_eq!(executed(&mut host), histories(&other));
}

/// 4.7: what was executed tentatively of the log before is undone when the other one is here.
#[test]
fn what_was_executed_of_the_log_before_is_undone() {
    let tuning = Tuning {
        execution: Execution::Tentative,
        checkpoint_slots: 8,
        ..Tuning::default()
    };
    let mut host = Host::new(1, 5, 3, &tuning);
    host.start_again(2, 1, Recovered::default());
    host.pass(1_000);
    let (before, after) = (log_of(&host, 0, 0, 2), log_of(&host, 1, 0, 3));
    for slot in &before {
        order(&mut host, &slot.0);
        accept(&mut host, slot);
    }
    host.pass(1_000);
    assert_eq!(executed(&mut host), histories(&before));
    host.serve(2);
    let (slot, history) = (Slot(3), after[2].1);
    for twin in [0, 1] {
        host.post_as(twin, &Entry::Jump { slot, history });
    }
    host.pass(100_000);
    host.peer(2, ReplicaId::new(3, 2), chain_of(&after));
    host.pass(1_000);
    assert_eq!(host.done(2).rollbacks, [Slot(0)]);
    assert_eq!(executed(&mut host), histories(&after));
}

/// A backup is sent, late, what its old primary has ordered in place of what this twin has been brought by batches.
#[test]
fn a_late_order_of_a_view_that_is_over_is_not_accepted() {
    let checkpoint = Slot(20);
    let me = ReplicaId::new(1, 1);
    let mut host = started_with(me, (5, 2), checkpoint, Recovered::default());
    host.pass(1_000);
    let (lost, other) = (log_of(&host, 0, 16, 17), log_of(&host, 1, 16, 20));
    let beyond = host.keys.order(21, Digest::ZERO, Vec::new());
    host.peer(1, ReplicaId::new(0, 0), PeerMessage::Order(beyond));
    offer(&mut host, &[2, 3, 4], checkpoint, other[19].1);
    host.peer(1, ReplicaId::new(2, 1), chain_of(&other));
    host.pass(1_000);
    assert_eq!(host.done(1).executes.len(), 16);
    let (late, previous) = (lost[16].0.bodies.clone(), lost[16].0.previous);
    let late = host.keys.order(17, previous, late);
    host.peer(1, ReplicaId::new(0, 0), PeerMessage::Order(late));
    host.pass(1_000);
    assert_eq!(history_at(&host, Slot(17)), Some(other[16].1));
    assert_eq!(host.done(1).faults, [], "it was right in its view");
}

/// Above what is committed stands a slot that its host decides in a view that is over. Whoever asks for that gets no slot that names
/// another one below it.
#[test]
fn a_slot_is_given_away_only_with_what_it_extends() {
    let me = ReplicaId::new(0, 1);
    let mut host = started_with(me, (3, 2), CHECKPOINT, Recovered::default());
    let (lost, other) = (log_of(&host, 0, 0, 3), log_of(&host, 1, 0, 2));
    let beyond = host.keys.order(3, Digest::ZERO, Vec::new());
    host.peer(1, ReplicaId::new(0, 0), PeerMessage::Order(beyond));
    offer(&mut host, &[1, 2], CHECKPOINT, other[1].1);
    host.peer(1, ReplicaId::new(1, 1), chain_of(&other));
    host.pass(1_000);
    host.serve(1);
    let request = host.keys.request(0, 3, &[0, 1]);
    host.request(1, &request);
    lost.iter().for_each(|slot| decide(&mut host, slot));
    host.pass(1_000);
    let (slot, history) = (Slot(3), lost[2].1);
    assert_eq!(history_at(&host, slot), Some(history));
    assert_eq!(history_at(&host, CHECKPOINT), Some(other[1].1));
    host.done(1).sends.clear();
    let question = PeerMessage::FetchChain { slot, history };
    host.peer(1, ReplicaId::new(0, 0), question);
    let mut sends = host.done(1).sends.iter();
    assert!(!sends.any(|(_, message)| matches!(**message, PeerMessage::Chain(_))));
}

/// What its host has decided in an earlier view is no sign that the log has lost with which the present one began.
#[test]
fn a_log_has_not_lost_because_an_earlier_one_has() {
    let me = ReplicaId::new(0, 1);
    let recovered = Recovered {
        log_end: Position(8),
        ..Recovered::default()
    };
    let mut host = started_with(me, (3, 2), CHECKPOINT, recovered);
    let (before, present) = (log_of(&host, 0, 0, 2), log_of(&host, 1, 0, 3));
    before.iter().for_each(|slot| decide(&mut host, slot));
    enter(&mut host, &present[2]);
    host.pass(100_000);
    assert_eq!(host.twins[1].core.host_log().installed(), VIEW);
    offer(&mut host, &[1, 2], CHECKPOINT, present[1].1);
    host.peer(1, ReplicaId::new(1, 1), chain_of(&present[..2]));
    host.pass(1_000);
    host.serve(1);
    host.peer(1, ReplicaId::new(1, 1), chain_of(&present[2..]));
    host.pass(1_000);
    assert_eq!(history_at(&host, Slot(3)), Some(present[2].1));
}
