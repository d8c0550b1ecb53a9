//! A twin without its disk is to have what its host has accepted before it speaks (protocol.md 8, row 2). What may be in its way: its
//! host's log has lost meanwhile, and another one is committed, to which the others' checkpoints lead it (5); what it needs of its own
//! host to believe them is not in the log any more; and nobody tells it by itself what is committed (4.6).

mod common;

use common::Host;
use common::logs::*;
use twinbft_core::{Input, Record, Recovered};
use twinbft_types::wire::{ChainSlot, ChunkMessage, ChunkName, PeerMessage};
use twinbft_types::{Digest, Entry, Position, ReplicaId, Slot, Statement};

/// This twin of a host of two, without its disk; the test plays its sibling.
fn started(me: ReplicaId, hosts: u8, entries: u64) -> Host {
    let recovered = Recovered {
        log_end: Position(entries),
        ..Recovered::default()
    };
    started_with(me, (hosts, 2), CHECKPOINT, recovered)
}

fn has_joined(host: &mut Host) -> bool {
    let records = host.done(1).records.iter();
    records
        .into_iter()
        .any(|r| matches!(r, Record::Joined { .. }))
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
    accept(&mut host, &own[2]);
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

/// What is fetched stays of use while its host goes on.
#[test]
fn a_gap_is_filled_while_its_host_accepts_more() {
    let me = ReplicaId::new(1, 2);
    let mut host = started_with(me, (3, 3), Slot(64), Recovered::default());
    let own = log_of(&host, 0, 0, 9);
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

/// A twin of h2 that has made no progress for as long as it takes until one host's word is enough.
fn stuck() -> Host {
    let me = ReplicaId::new(2, 1);
    let mut host = started_with(me, (3, 2), CHECKPOINT, Recovered::default());
    host.pass(1_000);
    let order = host.keys.order(5, Digest::ZERO, Vec::new());
    host.peer(1, ReplicaId::new(0, 0), PeerMessage::Order(order));
    offer(&mut host, &[0], LONE, HISTORY);
    assert_eq!(fetches(&mut host), [], "one of two");
    host.pass(2_000_000);
    host
}

const HISTORY: Digest = Digest([9; 32]);
/// A checkpoint at the high mark.
const LONE: Slot = Slot(2 * CHECKPOINT.0);

/// The chunks that were asked for since the last call, and of whom.
fn fetches(host: &mut Host) -> Vec<(ReplicaId, ChunkName)> {
    if let Some(progress) = host.twins[1].core.status().transfer {
        let wanted = Input::Restoring {
            slot: progress.slot,
            chunk: None,
            wanted: vec![0],
        };
        host.step(1, wanted);
    }
    let sends = std::mem::take(&mut host.done(1).sends);
    let asked = sends.iter().filter_map(|(to, message)| match **message {
        PeerMessage::FetchChunk(name) => Some((*to, name)),
        _ => None,
    });
    asked.collect()
}

/// The other words may be gone for good: with one host's log and with another host.
#[test]
fn one_hosts_word_for_a_checkpoint_is_enough_after_a_while() {
    let mut host = stuck();
    offer(&mut host, &[0], LONE, HISTORY);
    assert_eq!(fetches(&mut host)[0].1.slot, LONE);
}

/// A higher one that one host alone has certified may be in nobody's hands any more.
#[test]
fn a_checkpoint_that_hosts_agree_on_goes_before_one_hosts_word() {
    let agreed = Slot(4 * CHECKPOINT.0);
    let lone = Slot(6 * CHECKPOINT.0);
    for agreed_first in [true, false] {
        let mut host = stuck();
        let offers: [(&[u8], Slot); 2] = [(&[0, 1], agreed), (&[0], lone)];
        let mut offers = offers.to_vec();
        if !agreed_first {
            offers.reverse();
        }
        for (of, slot) in offers {
            offer_at_once(&mut host, of, slot, HISTORY);
        }
        host.pass(100_000);
        assert_eq!(fetches(&mut host)[0].1.slot, agreed, "{agreed_first}");
    }
}

/// Whoever certified it is gone, and nobody else has that state: something else may help meanwhile.
#[test]
fn one_hosts_word_that_leads_nowhere_is_not_followed_again_at_once() {
    let mut host = stuck();
    offer(&mut host, &[0], LONE, HISTORY);
    while host.twins[1].core.status().transfer.is_some() {
        for (from, name) in fetches(&mut host) {
            let nothing = ChunkMessage { name, bytes: None };
            host.peer(1, from, PeerMessage::Chunk(nothing));
        }
        host.pass(100_000);
    }
    offer(&mut host, &[0], LONE, HISTORY);
    assert_eq!(fetches(&mut host), []);
    host.pass(10_000_000);
    offer(&mut host, &[0], LONE, HISTORY);
    assert_eq!(fetches(&mut host)[0].1.slot, LONE);
}
