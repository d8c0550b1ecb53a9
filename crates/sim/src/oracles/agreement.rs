//! Invariant 1: two executed slots with the same number have the same `h_n`, on all correct twins. Slots are
//! executed without gaps; equal histories mean equal batches.

use std::collections::BTreeMap;

use twinbft_types::{Digest, Request, Slot};

use super::{Executed, Violation, violation};

/// Whether this is the first twin to execute the slot.
pub fn check(
    slots: &BTreeMap<Slot, Executed>,
    slot: Slot,
    history: Digest,
    requests: &[Request],
) -> Result<bool, Violation> {
    let Some((known, what)) = slots.get(&slot) else {
        let last = slots.keys().next_back().copied().unwrap_or_default();
        if slot != last.next() {
            return Err(violation(1, format!("{slot} was executed after {last}")));
        }
        return Ok(true);
    };
    if *known != history {
        return Err(violation(
            1,
            format!("{slot} was executed with histories {known:?} and {history:?}"),
        ));
    }
    let same = what.len() == requests.len()
        && what
            .iter()
            .zip(requests)
            .all(|((c, s, op), r)| (*c, *s, op) == (r.client, r.seq, &r.operation));
    if same {
        Ok(false)
    } else {
        Err(violation(
            1,
            format!("{slot} was executed with different requests"),
        ))
    }
}
