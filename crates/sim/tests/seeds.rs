//! The share of the simulation that every test run pays for.

use twinbft_sim::{Scenario, World};

fn run(seed: u64) -> twinbft_sim::Report {
    World::new(Scenario::from_seed(seed))
        .run()
        .unwrap_or_else(|violation| panic!("seed {seed}: {violation}\nrepeat with: cargo run --release -p twinbft-sim -- seed {seed}"))
}

#[test]
fn no_invariant_breaks_in_a_thousand_seeds() {
    let mut completed = 0;
    let mut culprits = 0;
    for seed in 0..1000 {
        let report = run(seed);
        completed += report.completed;
        culprits += report.culprits;
    }
    // A simulation in which nothing happens would find nothing.
    assert!(completed > 5_000, "only {completed} operations completed");
    assert!(culprits > 100, "only {culprits} culprits were named");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7, 42] {
        let trace = || {
            let mut scenario = Scenario::from_seed(seed);
            scenario.traced = true;
            World::new(scenario).run().expect("no violation").trace
        };
        assert_eq!(trace(), trace());
    }
}
