//! The share of the simulation that every test run pays for.

use twinbft_sim::{Report, Scenario, Tracer, World, run};

const SEEDS: u64 = 2_000;

#[test]
fn no_invariant_breaks_in_two_thousand_seeds() {
    let mut total = Report::default();
    for seed in 0..SEEDS {
        let report = run(Scenario::from_seed(seed)).unwrap_or_else(|violation| {
            panic!("seed {seed}: {violation}\nrepeat with: cargo run --release -p twinbft-sim -- seed {seed}")
        });
        total.add(&report);
    }
    // A simulation in which nothing happens would find nothing.
    let completed = total.completed;
    assert!(completed > 20_000, "only {completed} operations completed");
    let named = total.detection.named;
    assert!(named > 100, "only {named} culprits were named");
}

/// Seeds beyond the share that failed once: 2113 without the CHECKPOINTs of twins ahead of their host (5), 2516 and 5102
/// when a chain was asked of one twin alone (4.5), 2455 without checkpoints from siblings (8), 9402 when a twin signed an
/// ACK of a slot that its log had not decided by itself (3), 15014 when a lapped twin overlooked that its own checkpoint was
/// stable (5), 16408 when a twin signed as ORDER what its view had begun with (3); why 4528 and 21126 did is in
/// no record.
#[test]
fn no_invariant_breaks_again_in_seeds_that_failed_once() {
    for seed in [2113, 2455, 2516, 4528, 5102, 9402, 15014, 16408, 21126] {
        if let Err(violation) = run(Scenario::from_seed(seed)) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..60 {
        let trace = || {
            let world = World::new(Scenario::from_seed(seed), Tracer::digesting());
            world.run().map(|report| report.trace)
        };
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}

/// Hosts that lose their postbox's log, with and without disks (8, rows 4 and 5), from the first seed that has such losses on.
#[test]
fn hosts_that_lose_their_log_come_back() {
    const FIRST: u64 = 1_000_000;
    let mut crashes = 0;
    for seed in FIRST..FIRST + 60 {
        let report = run(Scenario::from_seed(seed)).unwrap_or_else(|violation| {
            panic!("seed {seed}: {violation}\nrepeat with: cargo run --release -p twinbft-sim -- seed {seed}")
        });
        crashes += report.crashes;
    }
    assert!(crashes > 30, "only {crashes} crashes");
}
