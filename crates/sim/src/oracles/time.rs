//! 4.3: the only clock that the service sees goes forward, and is no further ahead than the furthest clock of a correct twin.

use twinbft_core::Execute;

use super::{Violation, violation};

/// `timestamp_us` is that of the last slot, `latest_us` what the furthest clock shows now with the bound of the rule.
pub fn check(timestamp_us: &mut u64, latest_us: u64, execute: &Execute) -> Result<(), Violation> {
    let (last, next) = (*timestamp_us, execute.timestamp_us);
    if next > latest_us.max(last + 1) {
        return Err(violation(
            1,
            format!(
                "{} is of {next}, and no clock is beyond {latest_us}",
                execute.slot
            ),
        ));
    }
    if next <= last {
        return Err(violation(
            1,
            format!(
                "{} is of {next}, and the slot before it of {last}",
                execute.slot
            ),
        ));
    }
    *timestamp_us = next;
    Ok(())
}
