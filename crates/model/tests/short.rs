//! The cases that are small enough for every run, each to its last state.

use twinbft_model::{CASES, check};

#[test]
fn no_state_of_a_short_case_breaks_an_invariant() {
    for case in CASES.iter().filter(|case| case.is_short) {
        let outcome = check(*case, None, None);
        println!("{}: {} states", case.name, outcome.states);
        assert_eq!(outcome.violation, None, "{}", case.name);
        assert!(outcome.is_complete, "{}", case.name);
        // A case that never reaches what it is about would hold for nothing.
        assert!(
            outcome.missed.is_empty(),
            "{}: never {:?}",
            case.name,
            outcome.missed
        );
    }
}
