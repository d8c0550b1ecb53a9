//! Invariant 3: a result that a client accepted is that of the agreed log, no write is lost, and an operation
//! that began after another had returned is ordered behind it, fast reads included.

use std::collections::BTreeMap;

use super::{Truth, Violation, violation};
use crate::client::Recorded;
use crate::service::{Operation, Service};

/// Checks all clients' histories against what was executed.
pub fn check_histories(truth: &Truth, histories: &[&Recorded]) -> Result<(), Violation> {
    check_results(truth, histories)?;
    check_real_time(histories)
}

/// Each ordered result is the one of the executed log at its slot, each fast read's the value of its version.
fn check_results(truth: &Truth, histories: &[&Recorded]) -> Result<(), Violation> {
    let mut service = Service::default();
    let mut results: BTreeMap<(u64, Vec<u8>), Vec<Vec<u8>>> = BTreeMap::new();
    for (slot, (_, requests)) in &truth.slots {
        for (client, _, operation) in requests {
            let value = service.execute(slot.0, operation).to_vec();
            let mut key = client.key.to_le_bytes().to_vec();
            key.extend_from_slice(operation);
            results.entry((slot.0, key)).or_default().push(value);
        }
    }
    for recorded in histories {
        let Some(returned) = &recorded.returned else {
            continue;
        };
        let right = if returned.fast {
            let Operation::Read { key } = recorded.operation else {
                return Err(violation(3, "a fast write"));
            };
            value_at_version(truth, key, returned.slot) == Some(returned.value.clone())
        } else {
            let mut key = recorded.client.key.to_le_bytes().to_vec();
            key.extend_from_slice(&recorded.operation.encode());
            results
                .get(&(returned.slot, key))
                .is_some_and(|values| values.contains(&returned.value))
        };
        if !right {
            return Err(violation(
                3,
                format!("a result that the log does not give: {recorded:?}"),
            ));
        }
    }
    Ok(())
}

/// The value that the last write of slot `version` left in a register; 0 before the first.
fn value_at_version(truth: &Truth, key: u8, version: u64) -> Option<Vec<u8>> {
    if version == 0 {
        return Some(0u64.to_le_bytes().to_vec());
    }
    let writes = truth.writes.get(&key)?;
    let (_, value) = writes.iter().rev().find(|(slot, _)| slot.0 == version)?;
    Some(value.to_le_bytes().to_vec())
}

/// What returned before another operation began on the same register is visible to it.
fn check_real_time(histories: &[&Recorded]) -> Result<(), Violation> {
    for later in histories {
        let Some(after) = &later.returned else {
            continue;
        };
        for earlier in histories {
            let Some(before) = &earlier.returned else {
                continue;
            };
            if before.at_us >= later.invoked_us || key_of(earlier) != key_of(later) {
                continue;
            }
            // A version is the slot of a write; a read's version may be lower than the slot of a read before it.
            let lower_bound = match earlier.operation {
                Operation::Write { .. } => before.slot,
                Operation::Read { .. } if before.fast => before.slot,
                Operation::Read { .. } => continue,
            };
            if after.slot < lower_bound {
                return Err(violation(
                    3,
                    format!("{later:?} began after {earlier:?} had returned and does not see it"),
                ));
            }
        }
    }
    Ok(())
}

const fn key_of(recorded: &Recorded) -> u8 {
    match recorded.operation {
        Operation::Read { key } | Operation::Write { key, .. } => key,
    }
}
