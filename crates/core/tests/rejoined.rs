//! A twin without its disk counts as correct again once its new write-ahead log has its host's state (protocol.md 8, row 2): when
//! the log, too, is lost afterwards, its HELLO says nothing less than that.

mod common;

use common::Host;
use common::logs::slot_of;
use twinbft_core::{Record, Recovered, Tuning};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, Entry, HelloState, Incarnation, Position, ReplicaId, Slot, View};

/// Twin 1 of host 1, with what it finds; the test plays its sibling.
fn started(epoch: u64, recovered: Recovered) -> Host {
    let tuning = Tuning::default();
    let mut host = Host::new(1, 3, 2, &tuning);
    host.start_again(1, epoch, recovered);
    host
}

/// Twin 1 has lost its disk; this is in the log, of its sibling and of itself. It comes back, fetches the first slot, and joins. Then
/// the log is lost. What it says of it.
fn remembered(entries: &[(u8, Entry)]) -> HelloState {
    let recovered = Recovered {
        log_end: Position(entries.len() as u64),
        ..Recovered::default()
    };
    let mut host = started(1, recovered);
    for (twin, entry) in entries {
        host.post_as(*twin, entry);
    }
    host.pass(100_000);
    let (first, _) = slot_of(&host, 0, 1, Digest::ZERO);
    host.peer(1, ReplicaId::new(0, 1), PeerMessage::Chain(vec![first]));
    host.pass(100_000);
    let records = std::mem::take(&mut host.done(1).records);
    let has_joined = |record: &Record| matches!(record, Record::Joined { .. });
    assert!(records.iter().any(has_joined), "{records:?}");

    let recovered = Recovered {
        records,
        is_new_epoch: true,
        ..Recovered::default()
    };
    let mut host = started(2, recovered);
    host.pass(100_000);
    let said = host
        .entries()
        .into_iter()
        .find_map(|(_, entry)| match entry {
            Entry::Hello { state } => Some(state),
            _ => None,
        });
    said.expect("it has taken part")
}

fn accept(slot: u64, history: Digest) -> Entry {
    Entry::Accept {
        view: View(0),
        slot: Slot(slot),
        history,
    }
}

/// The histories of the first two slots.
fn histories() -> (Digest, Digest) {
    let host = Host::new(1, 3, 2, &Tuning::default());
    let (_, first) = slot_of(&host, 0, 1, Digest::ZERO);
    let (_, second) = slot_of(&host, 0, 2, first);
    (first, second)
}

#[test]
fn what_the_host_had_accepted_is_remembered() {
    let (first, _) = histories();
    let said = remembered(&[(0, accept(1, first)), (1, accept(1, first))]);
    assert_eq!((said.accepted, said.history), (Slot(1), first));
}

/// Its ACCEPT stands in the log, and its sibling's would decide it at any time.
#[test]
fn what_it_had_accepted_beyond_is_remembered() {
    let (first, second) = histories();
    let said = remembered(&[
        (0, accept(1, first)),
        (1, accept(1, first)),
        (1, accept(2, second)),
    ]);
    assert_eq!((said.accepted, said.history), (Slot(2), second));
}

/// The host's VIEW-CHANGE rests on it.
#[test]
fn what_it_had_left_is_remembered() {
    let (first, _) = histories();
    let leave = Entry::Leave {
        view: View(3),
        certificates: Vec::new(),
    };
    let said = remembered(&[
        (0, accept(1, first)),
        (1, accept(1, first)),
        (0, leave.clone()),
        (1, leave),
    ]);
    assert_eq!((said.leave, said.accepted), (View(3), Slot(1)));
}

/// The view that it had installed, which no record of its own says, and the log with which it had promised to enter the next one.
#[test]
fn what_view_it_was_in_is_remembered() {
    let (first, _) = histories();
    let left = |view| Entry::Leave {
        view: View(view),
        certificates: Vec::new(),
    };
    let enters = |view| Entry::NvAccept {
        view: View(view),
        slot: Slot(1),
        history: first,
    };
    let entries = [
        (0, left(2)),
        (1, left(2)),
        (0, enters(2)),
        (1, enters(2)),
        (0, left(3)),
        (1, left(3)),
    ];
    let said = remembered(&entries);
    assert_eq!((said.last_normal, said.accepted), (View(2), Slot(1)));
    let mut entries = entries.to_vec();
    entries.push((1, enters(3)));
    let said = remembered(&entries);
    assert_eq!((said.last_normal, said.leave), (View(3), View(3)));
    assert_eq!(said.incarnations, [Incarnation(0); 3]);
}
