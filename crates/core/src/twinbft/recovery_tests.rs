use twinbft_types::HostId;

use super::*;
use crate::config::Tuning;
use crate::twinbft::testing::{replica, slot};

fn leave(view: u64) -> Record {
    let certificates = Vec::new();
    let view = View(view);
    Record::Promise(Entry::Leave { view, certificates })
}

fn renewed() -> Record {
    Record::Promise(Entry::Peer {
        host: HostId(1),
        incarnation: twinbft_types::Incarnation(1),
        nonce: Digest::ZERO,
    })
}

fn read(records: Vec<Record>, epoch: u64) -> (usize, bool, &'static str) {
    let recovery = Recovery::new(records, Position(0), Epoch(epoch));
    (
        recovery.promises.len(),
        recovery.remembers,
        recovery.memory(),
    )
}

fn joined(epoch: u64) -> Record {
    let epoch = Epoch(epoch);
    Record::Joined { epoch }
}

fn forgotten(epoch: u64) -> Record {
    let epoch = Epoch(epoch);
    Record::Forgotten { epoch }
}

#[test]
fn promises_are_void_once_a_later_epoch_is_joined_without_them() {
    let records = vec![joined(1), leave(3), forgotten(2), renewed(), joined(2)];
    assert_eq!(read(records, 2), (1, true, "whole"));
}

#[test]
fn a_host_that_never_came_back_still_has_what_it_had() {
    let records = vec![joined(1), leave(3), forgotten(2), renewed()];
    // In the same epoch the postbox's log says that it has forgotten.
    assert_eq!(read(records.clone(), 2), (1, false, "whole"));
    assert_eq!(read(records.clone(), 3), (1, true, "whole"));
    let again = [records, vec![forgotten(3), renewed(), renewed()]].concat();
    assert_eq!(read(again.clone(), 4), (1, true, "whole"));
    assert_eq!(
        read([again, vec![joined(3)]].concat(), 4),
        (2, true, "whole")
    );
}

#[test]
fn an_empty_disk_remembers_nothing() {
    assert_eq!(read(Vec::new(), 2), (0, false, "lost"));
    assert_eq!(read(vec![forgotten(2), renewed()], 3), (0, false, "lost"));
}

/// A replica that holds slots 1 and 2 of a log, and has these slots of another one in its write-ahead log; with the end of that.
fn holds_another(kept: &[u64]) -> (Replica, Digest) {
    let mut replica = replica(Tuning::default());
    let (mut own, mut other) = (Digest::ZERO, Digest::ZERO);
    for n in 1..=2 {
        let (data, history) = slot(Slot(n), own, 0);
        replica.slots.insert(Slot(n), data);
        own = history;
        let (data, history) = slot(Slot(n), other, 1);
        if kept.contains(&n) {
            let kept = KeptSlot {
                previous: other,
                timestamp_us: n,
                bodies: data.bodies.into_iter().flatten().collect(),
                certificate: None,
            };
            replica.recovery.slots.insert((Slot(n), history), kept);
        }
        other = history;
    }
    (replica, other)
}

#[test]
fn the_end_of_a_log_alone_is_not_put_on_top_of_another_one() {
    let (mut replica, end) = holds_another(&[2]);
    assert_eq!(replica.take_over_chain(Slot(2), end), None);
    assert_ne!(replica.history_of(Slot(2)), Some(end));
    let (mut replica, end) = holds_another(&[1, 2]);
    assert_eq!(replica.take_over_chain(Slot(2), end), Some(Slot(1)));
    assert_eq!(replica.history_of(Slot(2)), Some(end));
}

/// 4.7: a view begins with a log of which the end is this twin's, out of its write-ahead log, and what it had was another one.
#[test]
fn what_another_log_is_put_in_place_of_is_not_sure() {
    let (mut replica, end) = holds_another(&[1, 2]);
    assert_eq!(replica.adopt(Slot(2), end), Slot(0));
    assert_eq!(replica.adopt(Slot(2), end), Slot(2), "it is its own now");
}
