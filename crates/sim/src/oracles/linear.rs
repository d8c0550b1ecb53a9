//! Invariant 3, the part that needs no knowledge of the log: what clients did and saw is linearizable, register by
//! register, by the checker of the client library (Wing, Gong, Lowe).

use twinbft_client::history::{History, Verdict};

use super::{Violation, violation};

/// Bounds the search for each register; a run's histories need a few hundred.
const STEPS_MAX: u64 = 1_000_000;

pub fn check_linearizable(history: &History) -> Result<(), Violation> {
    match history.check(STEPS_MAX) {
        Verdict::Linearizable => Ok(()),
        Verdict::Violated(found) => Err(violation(3, found.to_string())),
        Verdict::Undecided { key } => Err(violation(
            3,
            format!("register {key:?}: no order was found within {STEPS_MAX} steps"),
        )),
    }
}
