//! From the messages of the key-value service.

use bytes::Bytes;
use twinbft_types::kv::compare_and_swap::{Expected, Replacement};
use twinbft_types::kv::{operation, outcome};

use super::{Action, Observed};

/// The key and the action of an operation. `None` for what a register does not have: scans, lists, and a
/// compare-and-swap that expects a revision.
#[must_use]
pub fn action_of(operation: &operation::Kind) -> Option<(Bytes, Action)> {
    match operation {
        operation::Kind::Get(get) => Some((get.key.clone(), Action::Read)),
        operation::Kind::Put(put) => Some((put.key.clone(), Action::Write(put.value.clone()))),
        operation::Kind::Delete(delete) => Some((delete.key.clone(), Action::Delete)),
        operation::Kind::CompareAndSwap(swap) => {
            let expect = match swap.expected.as_ref()? {
                Expected::Absent(_) => None,
                Expected::Value(value) => Some(value.clone()),
                Expected::Revision(_) => return None,
            };
            let new = match swap.replacement.as_ref()? {
                Replacement::NewValue(value) => Some(value.clone()),
                Replacement::Delete(_) => None,
            };
            Some((swap.key.clone(), Action::CompareAndSwap { expect, new }))
        }
        operation::Kind::Scan(_) | operation::Kind::List(_) => None,
    }
}

/// What an outcome says in answer to this action. `None` when it answers something else.
#[must_use]
pub fn observed_of(action: &Action, outcome: &outcome::Kind) -> Option<Observed> {
    match (action, outcome) {
        (Action::Read, outcome::Kind::Value(value)) => {
            Some(Observed::Value(Some(value.value.clone())))
        }
        (Action::Read, outcome::Kind::Absent(_)) => Some(Observed::Value(None)),
        (Action::Write(_), outcome::Kind::Written(_)) => Some(Observed::Written),
        (Action::Delete, outcome::Kind::Deleted(_)) => Some(Observed::Deleted(true)),
        (Action::Delete, outcome::Kind::Absent(_)) => Some(Observed::Deleted(false)),
        (Action::CompareAndSwap { .. }, outcome::Kind::Written(_) | outcome::Kind::Deleted(_)) => {
            Some(Observed::Swapped(true))
        }
        (Action::CompareAndSwap { .. }, outcome::Kind::Mismatch(_)) => {
            Some(Observed::Swapped(false))
        }
        (Action::Read | Action::Write(_) | Action::Delete | Action::CompareAndSwap { .. }, _) => {
            None
        }
    }
}
