//! What correct twins report about a double (protocol.md 9), and what they report when there is none.

use std::collections::BTreeSet;

use twinbft_core::{EventKind, Input};
use twinbft_types::ReplicaId;

use super::script_tests::plain;
use super::{Happening, World};
use crate::byzantine::Double;
use crate::scenario::Loss;
use crate::trace::Tracer;

/// A quick cluster with one double, or none.
fn world(hosts: u8, twins: u8, double: Option<(ReplicaId, Double)>) -> World {
    world_of(200, hosts, twins, double)
}

/// With so many operations of each client.
fn world_of(operations: u32, hosts: u8, twins: u8, double: Option<(ReplicaId, Double)>) -> World {
    let mut scenario = plain(hosts, twins, operations, 2);
    scenario.tuning.checkpoint_slots = 8;
    scenario.doubles.extend(double);
    World::new(scenario, Tracer::digesting())
}

/// Who reported this kind, and about whom.
fn reports(world: &World, kind: &str) -> BTreeSet<(ReplicaId, Option<ReplicaId>)> {
    let of_kind = world
        .events
        .iter()
        .filter(|(_, event)| event.kind.name() == kind);
    of_kind
        .map(|(by, event)| {
            let host = event.host;
            (*by, event.twin.map(|twin| ReplicaId { host, twin }))
        })
        .collect()
}

#[test]
fn a_twin_that_stops_posting_is_mute_to_its_siblings_alone() {
    let mute = ReplicaId::new(1, 2);
    let mut world = world(3, 3, Some((mute, Double::Mute)));
    world.go_to(10_000_000);
    assert!(world.is_done(), "{}", world.summary());
    let siblings = [ReplicaId::new(1, 0), ReplicaId::new(1, 1)];
    assert_eq!(
        reports(&world, "mute"),
        siblings.map(|by| (by, Some(mute))).into()
    );
    // Once, however long it lasts.
    let times = world
        .events
        .iter()
        .filter(|(_, e)| e.kind == EventKind::Mute);
    assert_eq!(times.count(), 2);
}

#[test]
fn nothing_is_reported_of_correct_twins() {
    for (hosts, twins) in [(3, 2), (3, 3), (1, 3), (5, 2)] {
        let mut world = world(hosts, twins, None);
        world.go_to(20_000_000);
        assert!(world.is_done(), "{}", world.summary());
        assert_eq!(world.events, [], "{}", world.summary());
    }
}

#[test]
fn a_wrong_checkpoint_names_its_twin() {
    let liar = ReplicaId::new(1, 1);
    let mut world = world(3, 2, Some((liar, Double::WrongCheckpoint)));
    world.go_to(10_000_000);
    assert!(world.is_done(), "{}", world.summary());
    let sibling = ReplicaId::new(1, 0);
    assert_eq!(
        reports(&world, "culprit"),
        [(sibling, Some(liar))].into(),
        "{:?}",
        world.events
    );
}

/// With one host alone, and three twins, the host that has decided is the one that agrees.
#[test]
fn a_single_host_names_the_one_of_three_that_lies() {
    let liar = ReplicaId::new(0, 2);
    let mut world = world(1, 3, Some((liar, Double::WrongResult)));
    world.go_to(60_000_000);
    assert!(world.is_done(), "{}", world.summary());
    let siblings = [ReplicaId::new(0, 0), ReplicaId::new(0, 1)];
    assert_eq!(
        reports(&world, "culprit"),
        siblings.map(|by| (by, Some(liar))).into()
    );
}

/// Three hosts of three twins, one of which lies, under the policy `quarantine`.
fn quarantining(liar: ReplicaId, double: Double) -> World {
    let mut scenario = plain(3, 3, 400, 2);
    scenario.tuning.checkpoint_slots = 8;
    scenario.quarantines = true;
    scenario.doubles.insert(liar, double);
    World::new(scenario, Tracer::digesting())
}

fn is_quarantined(world: &mut World, twin: ReplicaId) -> bool {
    let sibling = ReplicaId::new(twin.host.0, 0);
    let log = world.twin(sibling).core.host_log();
    log.is_quarantined(twin.twin)
}

#[test]
fn a_host_of_three_quarantines_its_liar_and_lives_on() {
    for double in [
        Double::WrongResult,
        Double::WrongService,
        Double::WrongCheckpoint,
    ] {
        let liar = ReplicaId::new(1, 2);
        let mut world = quarantining(liar, double);
        world.go_to(20_000_000);
        assert!(world.is_done(), "{}", world.summary());
        assert!(is_quarantined(&mut world, liar), "{double:?}");
        let siblings = [ReplicaId::new(1, 0), ReplicaId::new(1, 1)];
        let expected = siblings.map(|by| (by, Some(liar)));
        assert_eq!(
            reports(&world, "quarantined"),
            expected.into(),
            "{double:?}"
        );
        // The host takes part to the end.
        let last = world.twin(ReplicaId::new(0, 0)).core.status().executed;
        for sibling in siblings {
            assert_eq!(world.twin(sibling).core.status().executed, last);
        }
    }
}

/// Every twin of the host crashes and starts again, the one with its disk lost: nobody is forgiven by that.
#[test]
fn a_quarantine_outlives_restarts_and_ends_with_readmission() {
    let liar = ReplicaId::new(1, 2);
    let mut world = quarantining(liar, Double::WrongResult);
    world.go_to(20_000);
    assert!(is_quarantined(&mut world, liar), "{}", world.summary());
    for (twin, loss) in [(0, Loss::Unsynced), (1, Loss::Disk)] {
        let crash = Happening::Crash {
            of: ReplicaId::new(1, twin),
            down_us: 5_000,
            loss,
        };
        world.schedule(1, crash);
        let now_us = world.now_us;
        world.go_to(now_us + 1_000_000);
        assert!(is_quarantined(&mut world, liar), "{}", world.summary());
    }
    // Its guest is rebuilt, and an operator says so.
    world.twin(liar).puppet = None;
    for twin in [0, 1] {
        let input = Box::new(Input::Readmit { twin: liar.twin });
        let to = ReplicaId::new(1, twin);
        world.schedule(1, Happening::Input { to, input });
    }
    let now_us = world.now_us;
    world.go_to(now_us + 40_000_000);
    assert!(world.is_done(), "{}", world.summary());
    assert!(!is_quarantined(&mut world, liar), "{}", world.summary());
    let times = |kind: &str| {
        let of_kind = world
            .events
            .iter()
            .filter(|(_, event)| event.kind.name() == kind);
        of_kind.count()
    };
    // Each of the two siblings reports it; a restart may report it again, and readmission is the last word.
    assert!(times("readmitted") >= 2);
    let last = (world.events.iter().rev())
        .find(|(_, event)| matches!(event.kind, EventKind::Quarantined | EventKind::Readmitted));
    assert_eq!(last.map(|(_, event)| event.kind.name()), Some("readmitted"));
    let executed = world.twin(liar).core.status().executed;
    let by_sibling = world.twin(ReplicaId::new(1, 0)).core.status().executed;
    assert_eq!(executed, by_sibling, "{}", world.summary());
}

/// Whom an audit of the recorded logs names when this twin is this double, or the reason why the log cannot show it
/// (docs/operations/evidence.md has the same table). `Reordering` is left out: its ACCEPTs come out of order, its host
/// passes slots over and acknowledges them, and the oracle of invariant 2 does not know that the chain shows them accepted.
#[test]
fn an_audit_names_each_double_that_its_log_can_show() {
    /// In the log of two twins, and in that of three; `None` where it depends on what it happens to say.
    const SHOWN: [(Double, Option<bool>, Option<bool>); 16] = [
        // It posts nothing: that may be a crash.
        (Double::Mute, Some(false), Some(false)),
        // One of two is wrong, and only other hosts know which; of three, two agree.
        (Double::WrongResult, Some(false), Some(true)),
        (Double::WrongService, Some(false), Some(true)),
        (Double::WrongCheckpoint, Some(false), Some(true)),
        // Its answers to fast reads are in no log.
        (Double::WrongAnswer, Some(false), Some(false)),
        // An auditor has no keys.
        (Double::SpoiltMacs, Some(false), Some(false)),
        // A vote that is not given, or a NACK, may be right: it depends on MACs and clocks.
        (Double::NoVotes, Some(false), Some(false)),
        (Double::NackAll, Some(false), Some(false)),
        // What it does post is right.
        (Double::Forgetful, Some(false), Some(false)),
        // As leader: a BEAT's count grows.
        (Double::Repeating, Some(true), Some(true)),
        (Double::Replaying, None, None),
        (Double::Noisy, Some(true), Some(true)),
        (Double::Forging, Some(true), Some(true)),
        // It lies to others alone.
        (Double::Lying, Some(false), Some(false)),
        (Double::Equivocating, Some(true), Some(true)),
        (Double::Spamming, None, None),
    ];
    let mut wrong = Vec::new();
    for (double, of_two, of_three) in SHOWN {
        for (twins, expected) in [(2, of_two), (3, of_three)] {
            let mut named = BTreeSet::new();
            // As leader, as follower and as a backup.
            for at in [(0, 0), (0, 1), (1, 1)] {
                let liar = ReplicaId::new(at.0, at.1);
                let mut world = world_of(40, 3, twins, Some((liar, double)));
                // Nobody else is named: the oracle of invariant 6.
                world.go_to(700_000);
                named.extend(world.audited.iter().copied());
            }
            if expected.is_some_and(|expected| named.is_empty() == expected) {
                wrong.push((double, twins, named));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
