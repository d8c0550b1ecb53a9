//! Rules of protocol.md 6 as a whole cluster carries them out: who suspects, who leaves with whom, what is said again.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{ReplicaId, Statement};

use super::script_tests::{keeps_alive, plain, world};
use super::{Happening, World};
use crate::scenario::{CLIENTS, Fault, Span};
use crate::trace::Tracer;

/// 500 ms, the default: `suspect_after`.
const SUSPECT_AFTER_US: u64 = 500_000;

fn statement(message: &PeerMessage) -> Option<&Statement> {
    match message {
        PeerMessage::Certificate(c) => Some(&c.signed.statement),
        _ => None,
    }
}

fn is_wish(message: &PeerMessage) -> bool {
    matches!(statement(message), Some(Statement::Wish { .. }))
}

fn is_of_views(message: &PeerMessage) -> bool {
    matches!(
        statement(message),
        Some(Statement::Wish { .. } | Statement::ViewChange { .. } | Statement::NewView { .. })
    )
}

/// The view that a twin has left for last, and the one that it wishes for, by its host's log.
fn left_and_wished(world: &mut World, twin: ReplicaId) -> (u64, u64) {
    let log = world.twin(twin).core.host_log();
    let (left, wished) = log.standing_of(twin.twin);
    (left.0, wished.0)
}

fn view(world: &mut World, host: u8) -> u64 {
    world.twin(ReplicaId::new(host, 0)).core.status().view.0
}

/// No request of a client reaches the twins of h0, the primary.
fn primary_is_deaf_to_clients() -> World {
    let mut scenario = plain(3, 2, 3, 1);
    scenario.heal_at_us = 30_000_000;
    scenario.faults.push(Fault::Cut {
        span: Span {
            from_us: 0,
            to_us: 30_000_000,
        },
        from: CLIENTS,
        to: 1,
        both: false,
    });
    World::new(scenario, Tracer::digesting())
}

/// FORWARD: what `q` twins of a host were sent again goes to the primary's twins, where it stands for the client's MAC.
#[test]
fn what_does_not_reach_the_primary_is_forwarded_to_it() {
    let mut world = primary_is_deaf_to_clients();
    world.go_to(20_000_000);
    assert!(world.is_done(), "{}", world.summary());
    assert_eq!(view(&mut world, 1), 0, "{}", world.summary());
}

/// A primary that is alive and does not order what was forwarded to it is replaced when the timer of that request ends.
#[test]
fn a_primary_that_ignores_what_is_forwarded_is_replaced() {
    let mut world = primary_is_deaf_to_clients();
    world.script.loses = Some(Box::new(|_, _, to, message| {
        to.host.0 == 0 && matches!(message, PeerMessage::Forward(_))
    }));
    world.go_to(20_000_000);
    assert!(world.is_done(), "{}", world.summary());
    assert!(view(&mut world, 1) > 0, "{}", world.summary());
}

/// A primary suspects itself when `Q − 1` others have not ACKed in time; alone it deposes nobody, not even itself, and it
/// takes its wish back when it hears of them again.
#[test]
fn a_primary_that_nobody_acknowledges_suspects_itself() {
    // Fewer than may be under way: it orders everything, and nobody else has a reason to suspect it.
    let mut world = world(3, 2, 3, 1);
    let heals_us = 3_000_000;
    world.script.loses = Some(Box::new(move |now_us, _, to, _| {
        to.host.0 == 0 && (1_000..heals_us).contains(&now_us)
    }));
    world.go_to(heals_us - 1);
    for twin in 0..2 {
        let primary = ReplicaId::new(0, twin);
        assert_eq!(
            left_and_wished(&mut world, primary),
            (0, 1),
            "{}",
            world.summary()
        );
        let backup = ReplicaId::new(1, twin);
        assert_eq!(
            left_and_wished(&mut world, backup),
            (0, 0),
            "{}",
            world.summary()
        );
    }
    world.go_to(heals_us + 5_000_000);
    assert!(world.is_done(), "{}", world.summary());
    let primary = ReplicaId::new(0, 1);
    assert_eq!(
        left_and_wished(&mut world, primary),
        (0, 0),
        "{}",
        world.summary()
    );
    assert_eq!(view(&mut world, 0), 0);
}

/// Leaving together: a host that alone hears nothing of the primary wishes, and nobody leaves; when it hears of it again it
/// takes its wish back.
#[test]
fn one_host_with_a_bad_link_deposes_nobody() {
    for hosts in [3, 5] {
        let last = hosts - 1;
        let mut world = world(hosts, 2, 10, 1);
        let heals_us = 4_000_000;
        world.script.loses = Some(Box::new(move |now_us, from, to, _| {
            from.host.0 == 0 && to.host.0 == last && (1_000..heals_us).contains(&now_us)
        }));
        world.go_to(heals_us - 1);
        let cut_off = ReplicaId::new(last, 0);
        assert_eq!(
            left_and_wished(&mut world, cut_off),
            (0, 1),
            "{}",
            world.summary()
        );
        world.go_to(heals_us + 5_000_000);
        assert!(world.is_done(), "{}", world.summary());
        assert_eq!(
            left_and_wished(&mut world, cut_off),
            (0, 0),
            "{}",
            world.summary()
        );
        for host in 0..hosts {
            assert_eq!(view(&mut world, host), 0, "{}", world.summary());
        }
    }
}

/// A host's newest WISH counts, and a lower one withdraws: an old one that comes late makes nobody leave.
#[test]
fn a_wish_that_was_taken_back_does_not_count_again() {
    let mut world = world(3, 2, 10, 1);
    let kept = Rc::new(RefCell::new(Vec::new()));
    let keeps = kept.clone();
    let (first, second) = (1_000..1_500_000, 4_000_000..6_000_000);
    world.script.loses = Some(Box::new(move |now_us, from, to, message| {
        if is_wish(message) && (from.host.0, to.host.0) == (2, 1) && first.contains(&now_us) {
            keeps.borrow_mut().push((from, to, message.clone()));
        }
        // First h2 hears nothing of the primary, and after that is mended, h1.
        let is_deaf = match to.host.0 {
            2 => first.contains(&now_us),
            1 => second.contains(&now_us),
            _ => false,
        };
        is_deaf && keeps_alive(message)
    }));
    world.go_to(3_900_000);
    assert_eq!(left_and_wished(&mut world, ReplicaId::new(2, 0)), (0, 0));
    let kept = kept.take();
    assert!(!kept.is_empty(), "{}", world.summary());
    for (from, to, message) in kept {
        let message = Arc::new(message);
        world.schedule(1_000_000, Happening::Peer { to, from, message });
    }
    world.go_to(5_900_000);
    let h1 = ReplicaId::new(1, 0);
    assert_eq!(
        left_and_wished(&mut world, h1),
        (0, 1),
        "{}",
        world.summary()
    );
    world.go_to(10_000_000);
    assert!(world.is_done(), "{}", world.summary());
    assert_eq!(view(&mut world, 1), 0, "{}", world.summary());
}

/// A VIEW-CHANGE(w) counts as its host's WISH(w): nobody is left behind alone in the old view.
#[test]
fn a_view_change_counts_as_a_wish() {
    let mut world = world(3, 2, 10, 1);
    world.script.loses = Some(Box::new(|now_us, from, to, message| {
        let is_dead = from.host.0 == 0 || to.host.0 == 0;
        let is_unheard = is_wish(message) && (from.host.0, to.host.0) == (1, 2);
        now_us > 1_000 && (is_dead || is_unheard)
    }));
    world.go_to(20_000_000);
    assert!(world.is_done(), "{}", world.summary());
    assert_eq!(view(&mut world, 2), 1, "{}", world.summary());
}

/// A host that sees a higher view asks for its NEW-VIEW, and leaves with that certificate alone.
#[test]
fn who_missed_a_view_change_enters_by_its_new_view() {
    let mut world = world(5, 2, 20, 1);
    world.script.loses = Some(Box::new(|now_us, from, to, message| {
        let is_dead = from.host.0 == 0 || to.host.0 == 0;
        // Whatever is said of views of its own accord does not reach h4, nor does anything at first.
        let is_away = (from.host.0 == 4 || to.host.0 == 4) && now_us < 3_000_000;
        let is_unheard = to.host.0 == 4 && is_of_views(message) && now_us < 4_000_000;
        now_us > 1_000 && (is_dead || is_away || is_unheard)
    }));
    world.go_to(3_000_000);
    assert_eq!((view(&mut world, 3), view(&mut world, 4)), (1, 0));
    world.go_to(20_000_000);
    assert!(world.is_done(), "{}", world.summary());
    assert_eq!(view(&mut world, 4), 1, "{}", world.summary());
    let executed = |world: &mut World, host| {
        let status = world.twin(ReplicaId::new(host, 1)).core.status();
        status.executed
    };
    assert_eq!(executed(&mut world, 4), executed(&mut world, 3));
}

/// Timeouts double for each view that fails.
#[test]
fn time_outs_double_for_each_view_that_fails() {
    assert_time_outs(6, &[1, 2, 4, 8]);
}

#[test]
fn time_outs_double_no_oftener_than_configured() {
    assert_time_outs(1, &[1, 2, 2, 2]);
    assert_time_outs(0, &[1, 1, 1, 1]);
}

/// Every view fails; they last so many times `suspect_after`.
fn assert_time_outs(doublings_max: u32, times: &[u64]) {
    let mut scenario = plain(3, 2, 10, 1);
    scenario.tuning.suspect_doublings_max = doublings_max;
    let mut world = World::new(scenario, Tracer::digesting());
    // Views are left, and none begins.
    world.script.loses = Some(Box::new(|now_us, _, _, message| {
        let leaves = matches!(
            statement(message),
            Some(Statement::Wish { .. } | Statement::ViewChange { .. })
        );
        now_us > 1_000 && !leaves
    }));
    let (mut left_at_us, mut known) = (Vec::new(), 0);
    for step in 0..4_000 {
        let now_us = step * 5_000;
        world.go_to(now_us);
        let log = world.twin(ReplicaId::new(1, 0)).core.host_log();
        let current = log.current_view().0;
        if current > known {
            known = current;
            left_at_us.push(now_us);
        }
    }
    let lasted: Vec<u64> = left_at_us
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .collect();
    assert!(lasted.len() >= times.len(), "{left_at_us:?}");
    // The first view had committed something.
    for (lasted, times) in lasted.iter().zip(times) {
        let wanted = SUSPECT_AFTER_US * times;
        // Messages and the steps above take a little.
        let bounds = wanted..wanted + wanted / 5 + 20_000;
        assert!(bounds.contains(lasted), "{left_at_us:?}");
    }
}

/// WISH, VIEW-CHANGE and NEW-VIEW are sent again until they are superseded.
#[test]
fn what_is_said_of_views_is_said_again() {
    let mut world = world(3, 2, 10, 1);
    let heard_from_us = 1_200_000;
    world.script.loses = Some(Box::new(move |now_us, from, to, message| {
        let is_dead = from.host.0 == 0 || to.host.0 == 0;
        let is_lost = match statement(message) {
            Some(Statement::Wish { .. }) => now_us < heard_from_us,
            Some(Statement::ViewChange { .. }) => now_us < heard_from_us + 200_000,
            Some(Statement::NewView { .. }) => now_us < heard_from_us + 400_000,
            _ => false,
        };
        now_us > 1_000 && (is_dead || is_lost)
    }));
    world.go_to(20_000_000);
    assert!(world.is_done(), "{}", world.summary());
    // In the first view after the dead one: nothing failed but the network.
    assert_eq!(view(&mut world, 2), 1, "{}", world.summary());
}

/// A host leaves its view with the wish of another one, who takes it back before anybody else has heard of the two: the others
/// follow, and it is not left behind alone.
#[test]
fn a_host_that_left_alone_is_followed() {
    let mut world = world(3, 2, 3, 1);
    let (taken_back_us, heals_us) = (1_200_000, 2_500_000);
    // Nobody hears the primary, until h1 does; nobody hears h2, until all is well, nor what h0 and h1 wish but h2.
    world.script.loses = Some(Box::new(move |now_us, from, to, message| {
        let of_primary = from.host.0 == 0 && (1_000..taken_back_us).contains(&now_us);
        let to_h2 = from.host.0 == 0 && to.host.0 == 2;
        let of_h2 = from.host.0 == 2 && to.host.0 != 2;
        let wish = is_wish(message) && to.host.0 != 2;
        of_primary || ((to_h2 || of_h2 || wish) && (1_000..heals_us).contains(&now_us))
    }));
    world.go_to(heals_us - 1);
    let [h1, h2] = [1, 2].map(|host| ReplicaId::new(host, 0));
    assert_eq!(
        left_and_wished(&mut world, h1),
        (0, 0),
        "{}",
        world.summary()
    );
    assert_eq!(left_and_wished(&mut world, h2).0, 1, "{}", world.summary());
    world.go_to(heals_us + 5_000_000);
    assert!(world.is_done(), "{}", world.summary());
    let views = [0, 1, 2].map(|host| view(&mut world, host));
    assert!(
        views[0] > 0 && views == [views[0]; 3],
        "{}",
        world.summary()
    );
    let states = [0, 1, 2].map(|host| {
        let status = world.twin(ReplicaId::new(host, 0)).core.status();
        status.state
    });
    assert!(
        states.iter().all(|state| *state == "running"),
        "{}",
        world.summary()
    );
}
