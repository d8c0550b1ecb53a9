//! CI's share of `twinbft-sim mutants`: the rules whose absence shows soonest are missed within a few hundred seeds.
#![cfg(feature = "mutants")]

use twinbft_core::mutants::Rule;
use twinbft_sim::mutation::first_to_catch;

/// Rules, and within how many seeds each is missed: some three times as many as it took.
const SOONEST: [(Rule, u64); 8] = [
    (Rule::AcceptQuorum, 20),
    (Rule::AcceptView, 30),
    (Rule::VoteQuorum, 40),
    (Rule::Candidate, 100),
    (Rule::ClientMac, 100),
    (Rule::ResultQuorum, 200),
    (Rule::OrderHistory, 300),
    (Rule::Once, 600),
];

#[test]
fn the_absence_of_a_rule_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let survivors: Vec<_> = SOONEST
        .iter()
        .filter(|(rule, seeds)| first_to_catch(*rule, 0..*seeds).is_none())
        .collect();
    let _default = std::panic::take_hook();
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
