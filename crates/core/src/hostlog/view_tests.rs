//! Section 6, as far as it is read off the log: WISH, fence, VIEW-CHANGE, NV-PROPOSE, NV-ACCEPT, HEARTBEAT.

use twinbft_types::Statement;

use super::*;

const BOUNDS: Bounds = Bounds {
    checkpoint_slots: 4,
    batch_requests_max: 8,
    pipeline_depth: 4,
    trim_multiple: 4,
    trim_entries: 8,
    trim_bytes: 1000,
};

fn host(id: u8, twins: u8) -> HostLog {
    HostLog::genesis(Shape::new(3, twins).unwrap(), HostId(id), BOUNDS)
}

fn apply(log: &mut HostLog, twin: u8, entry: &Entry) -> Vec<Decision> {
    let mut out = Vec::new();
    log.apply(TwinId(twin), entry, &mut out)
        .expect("the entry is one that a correct twin may post");
    out
}

fn refused(log: &mut HostLog, twin: u8, entry: &Entry) -> &'static str {
    log.apply(TwinId(twin), entry, &mut Vec::new())
        .expect_err("no correct twin posts this")
        .0
}

fn suspect(view: u64) -> Entry {
    Entry::Suspect { view: View(view) }
}

fn leave(view: u64) -> Entry {
    Entry::Leave {
        view: View(view),
        certificates: Vec::new(),
    }
}

fn history(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn accept(view: u64, slot: u64) -> Entry {
    Entry::Accept {
        view: View(view),
        slot: Slot(slot),
        history: history(slot),
    }
}

fn nv_accept(view: u64, slot: u64) -> Entry {
    Entry::NvAccept {
        view: View(view),
        slot: Slot(slot),
        history: history(slot),
    }
}

fn nv_propose(view: u64, slot: u64) -> Entry {
    Entry::NvPropose {
        view: View(view),
        hosts: vec![(HostId(0), history(100)), (HostId(1), history(101))],
        slot: Slot(slot),
        history: history(slot),
    }
}

fn nv_endorse(view: u64, proposal: u64) -> Entry {
    Entry::NvEndorse {
        view: View(view),
        proposal: Position(proposal),
    }
}

fn wishes(decisions: &[Decision]) -> Vec<u64> {
    decisions
        .iter()
        .filter_map(|d| match d {
            Decision::Wished { wish } => Some(wish.view.0),
            _ => None,
        })
        .collect()
}

fn installed(decisions: &[Decision]) -> Option<(View, Slot)> {
    decisions.iter().find_map(|d| match d {
        Decision::Installed { installed } => Some((installed.view, installed.slot)),
        _ => None,
    })
}

fn fence(log: &mut HostLog, twins: u8, view: u64) {
    for twin in 0..twins {
        apply(log, twin, &leave(view));
    }
}

/// When `q` twins wish `≥ w` the host wishes for `w`; a twin's latest SUSPECT counts, and a lower WISH withdraws.
#[test]
fn the_wish_of_a_host_is_what_q_twins_wish_at_least() {
    let mut log = host(1, 3);
    assert_eq!(wishes(&apply(&mut log, 0, &suspect(2))), []);
    assert_eq!(wishes(&apply(&mut log, 1, &suspect(1))), [1]);
    assert_eq!(log.wish().map(|w| w.position), Some(Position(1)));
    assert_eq!(wishes(&apply(&mut log, 2, &suspect(5))), [2]);
    assert_eq!(wishes(&apply(&mut log, 2, &suspect(0))), [1]);
    assert_eq!(wishes(&apply(&mut log, 0, &suspect(0))), [0]);
    assert_eq!(log.wish(), None);
    assert_eq!(log.last_wish().map(|w| w.position), Some(Position(4)));
}

/// A WISH never falls below the view fenced to, and one twin's SUSPECT is no wish.
#[test]
fn a_wish_never_falls_below_the_fence() {
    let mut log = host(1, 2);
    fence(&mut log, 2, 3);
    assert_eq!(wishes(&apply(&mut log, 0, &suspect(9))), []);
    assert_eq!(wishes(&apply(&mut log, 1, &suspect(4))), [4]);
    assert_eq!(wishes(&apply(&mut log, 1, &suspect(1))), [3]);
    assert_eq!(log.wish(), None);
}

/// The fence is the first entry at which `q` twins have posted LEAVE(≥ w); where one entry fences several views the
/// highest counts. VIEW-CHANGE is what was accepted by then, whatever comes later.
#[test]
fn view_change_is_what_the_log_says_at_the_fence() {
    let mut log = host(1, 3);
    for twin in [0, 1] {
        apply(&mut log, twin, &accept(0, 1));
    }
    apply(&mut log, 0, &accept(0, 2));
    assert_eq!(apply(&mut log, 2, &leave(7)), []);
    // Until the fence the host goes on accepting.
    assert!(log.live_view().is_some());
    assert_eq!(
        apply(&mut log, 1, &leave(4)),
        [Decision::Fenced { view: View(4) }]
    );
    assert_eq!(apply(&mut log, 1, &accept(0, 2)), []);
    let Some(Statement::ViewChange {
        view,
        last_normal,
        accepted,
        history: at,
        ..
    }) = log.view_change()
    else {
        panic!("a fenced host has a VIEW-CHANGE");
    };
    assert_eq!((view, last_normal), (View(4), View(0)));
    assert_eq!((accepted, at), (Slot(1), history(1)));
    // One that comes late changes neither, and the next fence says the same of a higher view.
    assert_eq!(apply(&mut log, 0, &leave(4)), []);
    assert_eq!(
        apply(&mut log, 0, &leave(6)),
        [Decision::Fenced { view: View(6) }]
    );
}

/// The first NV-PROPOSE to gather `q` votes is the only decision; it counts as the primary's acceptance.
#[test]
fn the_first_proposal_with_q_votes_begins_the_view() {
    let mut log = host(1, 3);
    fence(&mut log, 2, 1);
    apply(&mut log, 0, &nv_propose(1, 4));
    apply(&mut log, 0, &nv_propose(1, 6));
    assert_eq!(log.nv_proposals().count(), 2);
    let decided = apply(&mut log, 2, &nv_endorse(1, 3));
    assert_eq!(installed(&decided), Some((View(1), Slot(6))));
    assert_eq!(log.accepted(), (Slot(6), history(6)));
    assert_eq!(log.live_view(), Some(View(1)));
    assert_eq!(apply(&mut log, 1, &nv_endorse(1, 2)), []);
    assert!(matches!(
        log.new_view(),
        Some(Statement::NewView { slot: Slot(6), .. })
    ));
    assert_eq!(log.view_change(), None);
}

/// NV-PROPOSE(w) and its votes count only between the fence of the views below `w` and the fence of `w`.
#[test]
fn proposals_and_votes_count_between_the_fences_only() {
    let mut log = host(1, 2);
    apply(&mut log, 0, &nv_propose(1, 4));
    fence(&mut log, 2, 1);
    assert_eq!(apply(&mut log, 1, &nv_endorse(1, 0)), []);
    let position = log.end().0;
    apply(&mut log, 0, &nv_propose(1, 4));
    fence(&mut log, 2, 2);
    assert_eq!(apply(&mut log, 1, &nv_endorse(1, position)), []);
    assert_eq!(log.live_view(), None);
    assert_eq!(log.new_view(), None);
}

/// NV-ACCEPT(w) counts in the same window; of each twin its latest; `q` equal ones install, and `n_acc` may fall.
#[test]
fn q_equal_nv_accepts_install_the_view_even_with_a_shorter_log() {
    let mut log = host(2, 3);
    for slot in 1..=3 {
        for twin in [0, 1] {
            apply(&mut log, twin, &accept(0, slot));
        }
    }
    assert_eq!(apply(&mut log, 0, &nv_accept(1, 2)), []);
    fence(&mut log, 2, 1);
    assert_eq!(apply(&mut log, 1, &nv_accept(1, 2)), []);
    assert_eq!(apply(&mut log, 2, &nv_accept(1, 1)), []);
    let decided = apply(&mut log, 2, &nv_accept(1, 2));
    assert_eq!(installed(&decided), Some((View(1), Slot(2))));
    assert_eq!(log.accepted(), (Slot(2), history(2)));
    // Installed once: what comes later changes nothing.
    for twin in [0, 1] {
        assert_eq!(apply(&mut log, twin, &nv_accept(1, 3)), []);
    }
    // The next VIEW-CHANGE names the view that was installed.
    fence(&mut log, 2, 2);
    assert!(matches!(
        log.view_change(),
        Some(Statement::ViewChange {
            last_normal: View(1),
            accepted: Slot(2),
            ..
        })
    ));
}

/// ACCEPTs of a view count only once it is installed.
#[test]
fn an_accept_counts_only_after_the_install() {
    let mut log = host(2, 2);
    fence(&mut log, 2, 1);
    for twin in [0, 1] {
        assert_eq!(apply(&mut log, twin, &accept(1, 1)), []);
    }
    for twin in [0, 1] {
        apply(&mut log, twin, &nv_accept(1, 0));
    }
    assert_eq!(log.accepted().0, Slot(0));
    for twin in [0, 1] {
        apply(&mut log, twin, &accept(1, 1));
    }
    assert_eq!(log.accepted(), (Slot(1), history(1)));
}

/// HEARTBEAT is fixed by the leader's BEAT before the fence, with a count that grows.
#[test]
fn a_heartbeat_is_the_leaders_beat_before_the_fence() {
    let mut log = host(0, 2);
    let beat = |count| Entry::Beat {
        view: View(0),
        count,
    };
    let fixed = Decision::Beat {
        view: View(0),
        count: 3,
        slot: Slot(0),
        history: Digest::ZERO,
    };
    assert_eq!(apply(&mut log, 0, &beat(3)), [fixed]);
    assert!(refused(&mut log, 0, &beat(3)).contains("BEAT"));
    refused(&mut log, 1, &beat(4));
    fence(&mut log, 2, 1);
    assert_eq!(apply(&mut log, 0, &beat(4)), []);
}

/// What no correct twin posts, whatever it received.
#[test]
fn entries_of_a_view_change_that_no_correct_twin_posts_are_invalid() {
    let mut primary = host(1, 2);
    fence(&mut primary, 2, 1);
    refused(&mut primary, 1, &nv_propose(1, 1));
    refused(&mut primary, 0, &nv_endorse(1, 2));
    refused(&mut primary, 0, &nv_accept(1, 1));
    let mut twice = nv_propose(1, 1);
    if let Entry::NvPropose { hosts, .. } = &mut twice {
        hosts[1] = hosts[0];
    }
    assert!(refused(&mut primary, 0, &twice).contains("Q hosts"));
    let mut stranger = nv_propose(1, 1);
    if let Entry::NvPropose { hosts, .. } = &mut stranger {
        hosts[1].0 = HostId(9);
    }
    refused(&mut primary, 0, &stranger);
    assert_eq!(primary.nv_proposals().count(), 0);
}

/// 2: the state of a host in the middle of a view change survives its encoding, and a bad leader cannot make it grow.
#[test]
fn the_state_between_two_fences_survives_its_encoding_and_is_bounded() {
    let shape = Shape::new(3, 2).unwrap();
    let mut log = host(1, 2);
    apply(&mut log, 0, &suspect(1));
    apply(&mut log, 1, &suspect(2));
    fence(&mut log, 2, 1);
    for slot in 0..200 {
        apply(&mut log, 0, &nv_propose(1, slot));
    }
    let state = log.to_state();
    assert!(state.len() as u64 <= BOUNDS.state_bytes_max(shape));
    assert_eq!(
        HostLog::from_state(shape, HostId(1), &state).unwrap(),
        log.clone()
    );
    assert!(log.nv_proposals().count() <= 16);
}

fn result(view: Option<u64>, slot: u64, of: Digest) -> Entry {
    Entry::Results {
        slot: Slot(slot),
        history: of,
        view: view.map(View),
        results: vec![twinbft_types::ResultMac {
            digest: history(7),
            mac: twinbft_types::Mac::default(),
        }],
    }
}

fn certifies(decisions: &[Decision]) -> bool {
    let mut all = decisions.iter();
    all.any(|d| matches!(d, Decision::Certified { .. }))
}

/// 4.7, 4.8: a twin may have executed tentatively what its host's next view has dropped, and its RESULT may come after the
/// install. That is no fault, and does not stand in the way of the RESULT that it posts of the new log.
#[test]
fn a_tentative_result_of_a_view_that_was_left_is_no_fault_and_gives_way() {
    let mut log = host(2, 2);
    for slot in [1, 2] {
        apply(&mut log, 0, &accept(0, slot));
        apply(&mut log, 1, &accept(0, slot));
    }
    fence(&mut log, 2, 1);
    apply(&mut log, 0, &nv_accept(1, 1));
    apply(&mut log, 1, &nv_accept(1, 1));
    let instead = Entry::Accept {
        view: View(1),
        slot: Slot(2),
        history: history(20),
    };
    apply(&mut log, 0, &instead);
    apply(&mut log, 1, &instead);
    assert!(!certifies(&apply(
        &mut log,
        0,
        &result(Some(0), 2, history(2))
    )));
    let as_of_now = result(Some(1), 2, history(2));
    assert!(refused(&mut log, 1, &as_of_now).contains("never had"));
    assert!(refused(&mut log, 1, &result(Some(2), 2, history(20))).contains("not entered"));
    apply(&mut log, 1, &result(Some(1), 2, history(20)));
    assert!(certifies(&apply(
        &mut log,
        0,
        &result(Some(1), 2, history(20))
    )));
}
