//! Invariant 4: a request is executed at most once.

use std::collections::BTreeMap;

use twinbft_types::{ClientId, Request, Seq, Slot};

use super::{Violation, violation};

pub fn check(
    executed: &mut BTreeMap<(ClientId, Seq), Slot>,
    slot: Slot,
    requests: &[Request],
) -> Result<(), Violation> {
    for request in requests {
        if let Some(earlier) = executed.insert((request.client, request.seq), slot) {
            return Err(violation(
                4,
                format!(
                    "{} {} was executed in {earlier} and in {slot}",
                    request.client, request.seq
                ),
            ));
        }
    }
    Ok(())
}
