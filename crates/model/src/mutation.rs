//! Rules that are taken out, on the thread that runs the core.

use twinbft_core::mutants::Rule;

/// Takes a rule out on this thread, or puts all back.
#[cfg(feature = "mutants")]
pub fn take_out(rule: Option<Rule>) {
    twinbft_core::mutants::take_out(rule);
}

/// Without the feature `mutants` the rules are there for good.
#[cfg(not(feature = "mutants"))]
pub fn take_out(rule: Option<Rule>) {
    assert!(rule.is_none(), "built without the feature `mutants`");
}
