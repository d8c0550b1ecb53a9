//! CI's share of `twinbft-sim mutants`: the rules whose absence shows soonest are missed within a few hundred seeds.
#![cfg(feature = "mutants")]

use twinbft_core::mutants::Rule;
use twinbft_sim::mutation::first_to_catch;

/// Rules, and within how many seeds each is missed: several times as many as it took.
const SOONEST: [(Rule, u64); 8] = [
    (Rule::AcceptQuorum, 60),
    (Rule::AcceptView, 1000),
    (Rule::VoteQuorum, 60),
    (Rule::Candidate, 1000),
    (Rule::ClientMac, 1000),
    (Rule::ResultQuorum, 400),
    (Rule::OrderHistory, 600),
    (Rule::Once, 1000),
];

#[test]
fn the_absence_of_a_rule_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let noticed: Vec<_> = SOONEST
        .iter()
        .map(|(rule, seeds)| {
            (
                *rule,
                first_to_catch(*rule, 0..*seeds).map(|(seed, _)| seed),
            )
        })
        .collect();
    let _default = std::panic::take_hook();
    assert!(
        noticed.iter().all(|(_, seed)| seed.is_some()),
        "{noticed:?}"
    );
}
