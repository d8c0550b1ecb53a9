//! Taking rules of the core out, to see that the oracles notice (feature `mutants`).

#[cfg(feature = "mutants")]
use twinbft_core::mutants::{Rule, take_out};

/// Runs this by the whole rules: the observer of a host's log must not share the mistake.
#[cfg(not(feature = "mutants"))]
pub fn pristine<T>(run: impl FnOnce() -> T) -> T {
    run()
}

/// Runs this by the whole rules: the observer of a host's log must not share the mistake.
#[cfg(feature = "mutants")]
pub fn pristine<T>(run: impl FnOnce() -> T) -> T {
    let mistaken = take_out(None);
    let result = run();
    take_out(mistaken);
    result
}

/// The first of these seeds that notices that `rule` is out, and what it sees. One that fails with all rules in says nothing.
#[cfg(feature = "mutants")]
#[must_use]
pub fn first_to_catch(rule: Rule, seeds: std::ops::Range<u64>) -> Option<(u64, crate::Violation)> {
    take_out(Some(rule));
    let caught = seeds.into_iter().find_map(|seed| {
        let result = crate::run_caught(crate::Scenario::from_seed(seed));
        // A panic inside `pristine` leaves the rule in.
        take_out(Some(rule));
        let violation = result.err()?;
        let is_teeth = pristine(|| crate::run_caught(crate::Scenario::from_seed(seed))).is_ok();
        is_teeth.then_some((seed, violation))
    });
    take_out(None);
    caught
}
