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
/// stable (5), 16408 when a twin signed as ORDER what its view had begun with (3), 10631 when an audit took a NACK that HAVEs
/// had barred for a vote (4.3); why 4528 and 21126 did is in no record.
#[test]
fn no_invariant_breaks_again_in_seeds_that_failed_once() {
    for seed in [
        2113, 2455, 2516, 4528, 5102, 9402, 10631, 15014, 16408, 21126,
    ] {
        if let Err(violation) = run(Scenario::from_seed(seed)) {
            panic!("seed {seed}: {violation}");
        }
    }
}

/// The same of small clusters: 1404 when only the last CHECKPOINT was repeated (5), 5889 and 25439 when a twin without its disk
/// waited for the end of a view change that waited for it (8), 13334 when a leader that starts again ran its timer for ever,
/// 25301 when a twin that had started again kept slots far below `L` (9), 27278 when the state of a foreseen acceptance became
/// durable (5), 55783 when a twin signed as ORDER what it had fetched, and its host had decided otherwise (3),
/// 80219 when a twin that had started again had no slots left for a sibling without its disk (8), 293417 and 555296 when a
/// CHECKPOINT that came too early for the host's log was not posted again (5), 337936 when a log that had lost was put over what was
/// executed (8), 533167 and 635199 when a twin without its disk looked for its host's word on a checkpoint before its last one (5), 318227 when a leader
/// without its disk asked nobody what is committed (4.6), 2054140 and 2058544 when nobody was left to say a second word for a
/// checkpoint (5).
#[test]
fn no_invariant_breaks_again_in_small_clusters_that_failed_once() {
    for seed in [
        1404, 5889, 13334, 25301, 25439, 27278, 55783, 80219, 201211, 293417, 555296, 629087,
        646547, 945354, 999589, 357026, 2002902, 2003950, 2014472, 2051639, 2005375, 2019068,
        281912, 747872, 2027075, 2050183, 2014670, 2015321, 103002, 210326, 406512, 318227, 337936,
        529862, 533167, 635199, 838413, 2054140, 2058544,
    ] {
        if let Err(violation) = run(Scenario::small(seed)) {
            panic!("small seed {seed}: {violation}");
        }
    }
}

/// CI's share of the small clusters, at most three hosts of two twins.
#[test]
fn no_invariant_breaks_in_a_thousand_small_clusters() {
    let mut completed = 0;
    for seed in 0..1_000 {
        let report = run(Scenario::small(seed)).unwrap_or_else(|violation| {
            panic!("small seed {seed}: {violation}\nrepeat with: cargo run --release -p twinbft-sim -- seed {seed} --small")
        });
        completed += report.completed;
    }
    assert!(completed > 10_000, "only {completed} operations completed");
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
