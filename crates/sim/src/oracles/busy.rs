//! Not of section 11: a core that has nothing to do is left alone. Its deadline is in the future once its timer has been
//! handled; one that asks to be called again at once, and again, keeps a processor of a real host busy.

use twinbft_core::Replica;

use super::{Violation, violation};

/// Timers in a row, without any other input, each due as soon as the one before.
const CALLS_MAX: u32 = 8;

/// Counts how often a core asked to be called again at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    calls: u32,
}

impl Busy {
    /// After a step at `now_us`.
    pub fn check(&mut self, core: &Replica, was_timer: bool, now_us: u64) -> Result<(), Violation> {
        if !was_timer || core.deadline().is_none_or(|at| at > now_us) {
            self.calls = 0;
            return Ok(());
        }
        self.calls += 1;
        if self.calls <= CALLS_MAX {
            return Ok(());
        }
        let due = core.deadlines().into_iter();
        let due: Vec<_> = due
            .filter(|(_, at)| at.is_some_and(|at| at <= now_us))
            .collect();
        Err(violation(
            10,
            format!(
                "a core asks to be called again at once, {CALLS_MAX} times now: {due:?} at {now_us}"
            ),
        ))
    }
}
