//! Executions that a reviewer wrote down against view changes: who hears what, and when, is said message by message.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use twinbft_core::{Execution, Tuning};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{HostId, Incarnation, ReplicaId, Shape, Statement, View};

use super::{Happening, World};
use crate::oracles::{check_histories, check_linearizable};
use crate::scenario::{ClientKind, ClientPlan, HostLoss, Loss, Scenario};
use crate::trace::Tracer;

type Loses = Box<dyn Fn(u64, ReplicaId, ReplicaId, &PeerMessage) -> bool>;

/// What is lost, and what was sent.
#[derive(Default)]
pub struct Script {
    pub(super) loses: Option<Loses>,
    sent: BTreeMap<&'static str, u64>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.sent)
    }
}

impl Script {
    pub fn loses(
        &mut self,
        now_us: u64,
        from: ReplicaId,
        to: ReplicaId,
        message: &PeerMessage,
    ) -> bool {
        *self.sent.entry(kind(message)).or_default() += 1;
        self.loses
            .as_ref()
            .is_some_and(|loses| loses(now_us, from, to, message))
    }
}

fn kind(message: &PeerMessage) -> &'static str {
    match message {
        PeerMessage::FetchChain { .. } => "fetch chain",
        PeerMessage::Chain(_) => "chain",
        _ => "other",
    }
}

pub(super) fn keeps_alive(message: &PeerMessage) -> bool {
    match message {
        PeerMessage::Order(_) => true,
        PeerMessage::Certificate(c) => matches!(c.signed.statement, Statement::Heartbeat { .. }),
        _ => false,
    }
}

/// A cluster without chance: correct twins, a quick network, two clients.
pub(super) fn world(hosts: u8, twins: u8, operations: u32, depth: usize) -> World {
    World::new(plain(hosts, twins, operations, depth), Tracer::digesting())
}

/// Its scenario.
pub fn plain(hosts: u8, twins: u8, operations: u32, depth: usize) -> Scenario {
    let mut scenario = Scenario::from_seed(1);
    scenario.shape = Shape::new(hosts, twins).expect("a valid shape");
    scenario.tuning = Tuning {
        batch_requests_max: 1,
        ..Tuning::default()
    };
    scenario.clients = (0..2)
        .map(|key| ClientPlan {
            key,
            kind: ClientKind::Honest,
            operations,
            depth,
            fast_reads: 0,
        })
        .collect();
    scenario.loss = 0;
    scenario.duplication = 0;
    scenario.delay_us_max = 100;
    scenario.faults.clear();
    scenario.doubles.clear();
    scenario.sync_us_max = 0;
    scenario.reads_max = 256;
    scenario.heal_at_us = 0;
    scenario
}

/// The same with tentative execution and one client.
fn tentative(hosts: u8, twins: u8, operations: u32) -> World {
    let mut scenario = plain(hosts, twins, operations, 1);
    scenario.tuning.execution = Execution::Tentative;
    scenario.clients.truncate(1);
    World::new(scenario, Tracer::digesting())
}

impl World {
    /// Goes on until this time; a broken invariant fails the test.
    pub(super) fn go_to(&mut self, end_us: u64) {
        while let Some((at_us, happening)) = self.agenda.pop() {
            if at_us > end_us {
                self.agenda.schedule(at_us, happening);
                return;
            }
            self.now_us = at_us;
            self.happen(happening)
                .unwrap_or_else(|violation| panic!("{violation}"));
        }
    }

    /// Whether everything is done, and every client saw what the log says.
    fn check_end(&self) {
        assert!(self.is_done(), "{}", self.summary());
        let histories: Vec<_> = self.clients.iter().flat_map(|c| &c.history).collect();
        check_histories(&self.truth, &histories)
            .and_then(|()| check_linearizable(&self.history))
            .unwrap_or_else(|violation| panic!("{violation}"));
    }

    fn sent(&self, kind: &'static str) -> u64 {
        self.script.sent.get(kind).copied().unwrap_or(0)
    }
}

/// The leader of view 1 holds less than both logs that it may choose, and what it asks for comes late. Then it fetched one
/// and threw it away for the other, as fast as it could.
fn two_logs_to_choose_from(chain_from_us: u64) -> World {
    let mut world = world(3, 2, 300, 4);
    let leader = ReplicaId::new(1, 0);
    world.script.loses = Some(Box::new(move |now_us, from, to, message| {
        let to_first = to.host.0 == 1 && now_us > 5_000;
        let to_second = to.host.0 == 2 && now_us > 8_000;
        let late =
            matches!(message, PeerMessage::Chain(_)) && to == leader && now_us < chain_from_us;
        let of_old_view = from.host.0 == 0 || now_us < 500_000;
        late || (now_us < 1_050_000
            && (to_first || to_second)
            && keeps_alive(message)
            && of_old_view)
    }));
    world
}

#[test]
fn two_chosen_logs_are_fetched_beside_each_other_and_not_in_turns() {
    let mut world = two_logs_to_choose_from(508_400);
    world.go_to(3_000_000);
    assert!(world.is_done(), "{}", world.summary());
    assert!(world.sent("fetch chain") < 2_000, "{:?}", world.script);
}

#[test]
fn a_log_that_was_voted_for_is_still_there_when_its_view_begins() {
    let mut world = two_logs_to_choose_from(0);
    world.go_to(3_000_000);
    assert!(world.is_done(), "{}", world.summary());
    assert!(world.sent("fetch chain") < 2_000, "{:?}", world.script);
}

/// A twin that lags behind its own host when a view begins waits for the slots that it lacks, takes no ORDER as if it had
/// them, and goes on when they are there.
#[test]
fn a_twin_that_lags_when_a_view_begins_comes_after() {
    let mut world = world(3, 3, 1000, 1);
    let lagging = ReplicaId::new(2, 2);
    world.script.loses = Some(Box::new(move |now_us, from, to, message| {
        let deaf = to == lagging && now_us > 2_000 && now_us < 510_150;
        let late = to == lagging && now_us < 1_600_000 && matches!(message, PeerMessage::Chain(_));
        let dead = now_us > 10_000 && (to.host.0 == 0 || from.host.0 == 0);
        deaf || late || dead
    }));
    world.go_to(1_500_000);
    world.go_to(8_000_000);
    assert!(world.is_done(), "{}", world.summary());
    let executed = world.twin(lagging).core.status().executed;
    let by_sibling = world.twin(ReplicaId::new(2, 0)).core.status().executed;
    assert_eq!(executed, by_sibling, "{}", world.summary());
}

/// An idle cluster of any shape is at rest in view 0: nobody suspects anybody.
#[test]
fn an_idle_cluster_suspects_nobody() {
    for (hosts, twins) in [(3, 2), (3, 3), (2, 3), (5, 3), (1, 3), (4, 4)] {
        let mut world = world(hosts, twins, 1, 1);
        world.go_to(10_000_000);
        for twin in &world.twins {
            let log = twin.core.host_log();
            let standing = log.standing_of(twin.id.twin);
            assert_eq!(log.wish(), None, "{}", world.summary());
            assert_eq!((standing.0.0, standing.1.0), (0, 0), "{}", world.summary());
            assert_eq!(twin.core.status().state, "running", "{}", world.summary());
        }
    }
}

/// A host that missed a view change comes back when the log with which that view began is let go everywhere: it stands at
/// a checkpoint above it, and what the primary orders in that view shows that the checkpoint contains it (6, to hold).
#[test]
fn a_host_that_missed_a_view_and_fetched_a_checkpoint_enters_that_view() {
    for twins in [2, 3] {
        let mut world = world(3, twins, 600, 4);
        world.script.loses = Some(Box::new(|now_us, from, to, message| {
            let cut_off =
                (from.host.0 == 2 || to.host.0 == 2) && (5_000..1_200_000).contains(&now_us);
            let of_view_0 =
                from.host.0 == 0 && to.host.0 == 1 && (5_000..900_000).contains(&now_us);
            cut_off || (of_view_0 && keeps_alive(message))
        }));
        world.go_to(5_000_000);
        assert!(world.is_done(), "{}", world.summary());
        for twin in &world.twins {
            let status = twin.core.status();
            assert_eq!(status.state, "running", "{}", world.summary());
            assert!(
                status.view.0 > 0 && status.executed.0 >= 1000,
                "{}",
                world.summary()
            );
        }
    }
}

/// The only host has nobody but its own twins: one that lost its disk fetches the checkpoint from a sibling (8), also from
/// one that has started again since it made it.
#[test]
fn a_twin_of_the_only_host_gets_its_checkpoint_from_a_sibling() {
    for (twins, sibling_starts_again) in [(2, false), (2, true), (3, true)] {
        let mut world = world(1, twins, 400, 4);
        let lost = ReplicaId::new(0, 0);
        let mut until_us = 0;
        // Some slots beyond the third checkpoint.
        while world.twin(lost).core.status().executed.0 < 450 {
            until_us += 1_000;
            world.go_to(until_us);
        }
        if sibling_starts_again {
            (1..twins).for_each(|twin| world.crash(ReplicaId::new(0, twin), 500, Loss::Nothing));
            world.go_to(until_us + 5_000);
        }
        world.crash(lost, 500, Loss::Disk);
        world.go_to(until_us + 5_000_000);
        assert!(world.is_done(), "{}", world.summary());
        let fetched = world.twin(lost).core.status().transfers;
        assert!(fetched > 0, "{}", world.summary());
    }
}

/// A host that misses a hundred checkpoints, and whose state takes far longer to fetch than the others need for the next
/// ones: it goes by the batches that they have kept, while they go on (5).
#[test]
fn a_host_that_is_far_behind_catches_up_under_load() {
    for twins in [2, 3] {
        let mut world = world(3, twins, 1500, 4);
        let is_away = Rc::new(Cell::new(true));
        let cut_off = Rc::clone(&is_away);
        world.script.loses = Some(Box::new(move |_, from, to, _| {
            (from.host.0 == 2 || to.host.0 == 2) && cut_off.get()
        }));
        let mut now_us = 0;
        while world.twins[0].core.status().executed.0 < 1300 {
            now_us += 10_000;
            world.go_to(now_us);
        }
        is_away.set(false);
        world.go_to(now_us + 5_000_000);
        assert!(world.is_done(), "{}", world.summary());
        let [first, .., last] = &*world.twins else {
            unreachable!("a cluster has twins");
        };
        let (first, last) = (first.core.status(), last.core.status());
        assert_eq!(last.state, "running", "{}", world.summary());
        assert!(last.bridges > 5 && last.transfers == 0, "{last:?}");
        assert_eq!(last.executed, first.executed);
    }
}

/// N = 3. h2 leaves view 0, which nobody hears; it loses its memory and comes back into view 0 under another incarnation,
/// where its acceptances commit slots that h1 never hears of. Then its old VIEW-CHANGE reaches h1, the primary of view 1: with
/// h1's own it would make up `Q`, and drop those slots (8; Michael et al. 2017).
fn an_old_view_change_arrives() -> (World, u64) {
    use std::cell::RefCell;
    use std::rc::Rc;

    let mut world = world(3, 2, 2000, 1);
    let kept = Rc::new(RefCell::new(Vec::new()));
    let keeps = kept.clone();
    let (deaf_us, cut_us) = (5_000, 1_000_000);
    world.script.loses = Some(Box::new(move |now_us, from, to, message| {
        let leaves = match message {
            PeerMessage::Certificate(c) => matches!(
                c.signed.statement,
                Statement::Wish { .. } | Statement::ViewChange { .. }
            ),
            _ => false,
        };
        if now_us < 800_000 {
            let of_h2 = leaves && from.host.0 == 2;
            if of_h2 && to.host.0 == 1 {
                keeps.borrow_mut().push((from, to, message.clone()));
            }
            let suspects = to.host.0 != 0 && keeps_alive(message);
            return (leaves && to.host.0 != 2)
                || (suspects && (deaf_us..600_000).contains(&now_us));
        }
        // h1 hears nothing of what the two others commit.
        to.host.0 == 1 && now_us > cut_us && now_us < 2_500_000
    }));
    world.go_to(800_000);
    let log = world.twin(ReplicaId::new(2, 0)).core.host_log();
    assert_eq!(log.entering(), Some(View(1)), "{}", world.summary());
    world.lose_host(HostId(2), 10_000, HostLoss::Disks);
    world.go_to(cut_us);
    let before = world.twin(ReplicaId::new(1, 0)).core.status().executed.0;
    let log = world.twin(ReplicaId::new(2, 0)).core.host_log();
    let standing = (log.live_view(), log.incarnation(HostId(2)));
    assert_eq!(
        standing,
        (Some(View(0)), Incarnation(1)),
        "{}",
        world.summary()
    );
    world.go_to(1_300_000);
    let after = world.twin(ReplicaId::new(2, 0)).core.status().executed.0;
    assert!(after > before, "{}", world.summary());
    let held = kept.borrow();
    assert!(!held.is_empty());
    for (from, to, message) in held.iter() {
        let message = Arc::new(message.clone());
        let (from, to) = (*from, *to);
        world.schedule(300_000, Happening::Peer { to, from, message });
    }
    drop(held);
    (world, after)
}

#[test]
fn a_view_change_of_an_earlier_incarnation_is_worth_nothing() {
    let (mut world, _) = an_old_view_change_arrives();
    world.go_to(2_400_000);
    let log = world.twin(ReplicaId::new(1, 0)).core.host_log();
    assert!(log.new_view().is_none(), "{}", world.summary());
    world.go_to(8_000_000);
    assert!(world.is_done(), "{}", world.summary());
}

#[cfg(feature = "mutants")]
#[test]
fn without_incarnations_an_acknowledged_write_is_dropped() {
    use twinbft_core::mutants::{Rule, take_out};
    take_out(Some(Rule::Incarnations));
    let (mut world, committed) = an_old_view_change_arrives();
    let run = std::panic::AssertUnwindSafe(|| {
        world.go_to(1_700_000);
        let log = world.twin(ReplicaId::new(1, 0)).core.host_log();
        let begun = log.installed_log().expect("the old one was taken for good");
        assert!(begun.slot.0 >= committed, "an acknowledged write is gone");
    });
    let outcome = std::panic::catch_unwind(run);
    take_out(None);
    assert!(outcome.is_err(), "nobody noticed");
}

/// Rules that random seeds do not miss within 10,000, because what they are for seldom comes together: the script that brings it
/// about fails without them.
#[cfg(feature = "mutants")]
#[test]
fn without_a_rule_the_script_that_is_for_it_fails() {
    use twinbft_core::mutants::{Rule, take_out};
    let scripts: [(Rule, fn()); 2] = [
        (
            Rule::Committed,
            a_host_for_which_the_primary_spoils_its_macs_follows_by_committed,
        ),
        (
            Rule::ReplyView,
            tentative_replies_of_two_views_are_no_quorum,
        ),
    ];
    for (rule, script) in scripts {
        script();
        take_out(Some(rule));
        let outcome = std::panic::catch_unwind(script);
        take_out(None);
        assert!(outcome.is_err(), "nobody missed {rule:?}");
    }
}

/// A bad twin of the primary that spoils its MACs for one host keeps it from every ORDER and HEARTBEAT. Another host's
/// COMMITTED lets it fetch and jump, though no checkpoint comes (5).
#[test]
fn a_host_for_which_the_primary_spoils_its_macs_follows_by_committed() {
    for (hosts, twins) in [(3, 2), (3, 3), (5, 2)] {
        let mut world = world(hosts, twins, 30, 1);
        world.script.loses = Some(Box::new(|_, _, to, message| {
            to.host.0 == 2 && keeps_alive(message)
        }));
        world.go_to(5_000_000);
        assert!(world.is_done(), "{}", world.summary());
        let ahead = world.twin(ReplicaId::new(1, 0)).core.status();
        for twin in 0..twins {
            let behind = world.twin(ReplicaId::new(2, twin)).core.status();
            assert_eq!(behind.executed, ahead.executed, "{}", world.summary());
            assert_eq!(behind.view.0, 0, "{}", world.summary());
        }
    }
}

/// 4.7: the primary and one backup execute tentatively what the three others never hear of. The view that these enter drops
/// it; the two go back to their last checkpoint and execute what the others have.
#[test]
fn what_a_view_change_drops_is_undone_where_it_was_executed_tentatively() {
    let mut world = tentative(5, 2, 300);
    world.script.loses = Some(Box::new(|now_us, from, to, _| {
        let is_cut = (from.host.0 < 2) != (to.host.0 < 2);
        is_cut && (3_000..3_000_000).contains(&now_us)
    }));
    world.go_to(400_000);
    let before = world.twin(ReplicaId::new(1, 0)).core.status();
    assert!(before.executed > before.committed, "{}", world.summary());
    world.go_to(20_000_000);
    world.check_end();
    for host in 0..5 {
        let status = world.twin(ReplicaId::new(host, 0)).core.status();
        assert_eq!(status.undone > 0, host < 2, "{}", world.summary());
        let service = world.twin(ReplicaId::new(host, 0)).service.digest();
        let first = world.twin(ReplicaId::new(0, 0)).service.digest();
        assert_eq!(service, first, "{}", world.summary());
    }
}

/// 4.8, 4.9: two hosts give the same request the same slot and the same result, each as primary of its view, and nobody else
/// accepts it: the client must not take the two words for a quorum, because the next view drops both.
#[test]
fn tentative_replies_of_two_views_are_no_quorum() {
    let mut world = tentative(3, 2, 60);
    world.script.loses = Some(Box::new(|now_us, from, to, message| {
        let cut = |host: u8| from.host.0 == host || to.host.0 == host;
        let is_order = matches!(message, PeerMessage::Order(_));
        match now_us {
            0..3_000 => false,
            3_000..700_000 => cut(0) || (is_order && to.host.0 == 2),
            700_000..6_000_000 => cut(1),
            _ => false,
        }
    }));
    world.go_to(690_000);
    for host in [0, 1] {
        let status = world.twin(ReplicaId::new(host, 0)).core.status();
        assert_eq!(status.view.0, host.into(), "{}", world.summary());
        assert!(status.executed > status.committed, "{}", world.summary());
    }
    let history = &world.clients[0].history;
    let open = history.last().filter(|r| r.returned.is_none());
    // It was sent before the first cut, and both hosts have executed it since.
    assert!(open.is_some_and(|r| r.invoked_us < 4_000), "{history:?}");
    world.go_to(20_000_000);
    world.check_end();
}

/// A bad twin of the primary sends no HEARTBEAT. Its counterparts hear it of their siblings, and suspect nobody (3, 6).
#[test]
fn a_twin_of_the_primary_that_sends_no_heartbeat_is_missed_by_nobody() {
    for (hosts, twins) in [(3, 2), (3, 3), (5, 2)] {
        let mut world = world(hosts, twins, 5, 1);
        let mute = ReplicaId::new(0, 1);
        world.script.loses = Some(Box::new(move |_, from, _, message| {
            from == mute && keeps_alive(message)
        }));
        world.go_to(10_000_000);
        assert!(world.is_done(), "{}", world.summary());
        for twin in &world.twins {
            let standing = twin.core.host_log().standing_of(twin.id.twin);
            assert_eq!((standing.0.0, standing.1.0), (0, 0), "{}", world.summary());
        }
    }
}

/// 6: time-outs double for each view that fails. One that has committed something has not: a primary that falls silent after
/// it began well is replaced as soon as the one before.
#[test]
fn time_outs_do_not_grow_while_views_make_progress() {
    let mut world = world(3, 2, 60_000, 1);
    world.script.loses = Some(Box::new(|now_us, _, _, message| {
        now_us % 1_500_000 >= 800_000 && keeps_alive(message)
    }));
    world.go_to(12_200_000);
    // Each of eight silences is just long enough for one time-out, not for twice as long.
    let status = world.twin(ReplicaId::new(1, 0)).core.status();
    assert!(status.view.0 >= 8, "{}", world.summary());
}
