use twinbft_types::Digest;

use super::*;
use crate::config::Tuning;
use crate::twinbft::testing::{replica, slot};

/// However they came to stand together, and whatever is said to be committed.
#[test]
fn what_does_not_extend_what_is_executed_is_let_go() {
    let mut replica = replica(Tuning::default());
    let (first, one) = slot(Slot(1), Digest::ZERO, 0);
    let (_, other) = slot(Slot(1), Digest::ZERO, 1);
    let (second, _) = slot(Slot(2), other, 1);
    replica.slots.insert(Slot(1), first);
    replica.slots.insert(Slot(2), second);
    replica.commit.stand_at(Slot(2));
    let mut out = Effects::default();
    replica.poll_execution(&mut out);
    assert_eq!(replica.execution.begun(), Slot(1));
    assert_eq!(replica.history_of(Slot(2)), None);
    // The one that does takes its place.
    let (second, two) = slot(Slot(2), one, 0);
    replica.slots.insert(Slot(2), second);
    replica.poll_execution(&mut out);
    assert_eq!(replica.execution.begun(), Slot(2));
    assert_eq!(replica.history_of(Slot(2)), Some(two));
}
