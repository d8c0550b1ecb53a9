use twinbft_types::HostId;

use super::*;

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
