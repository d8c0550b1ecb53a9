//! The session against scripted replicas (protocol.md 4.1, 4.9, 7).

mod support;

use bytes::Bytes;
use support::{CLIENT_KEY, Cluster, Said};
use twinbft_client::session::{
    Event, FailReason, FallBackReason, Message, ReplicaFault, Session, SessionConfig, SubmitError,
};
use twinbft_types::wire::pb::RefusalReason;
use twinbft_types::{ClientId, HostId, Nonce, ReplicaId, Seq, Slot, View};

const CLIENT: ClientId = ClientId {
    key: CLIENT_KEY,
    session: 1000,
};

fn set_up(hosts: u8, twins: u8) -> (Cluster, Session) {
    set_up_with(hosts, twins, |_| {})
}

fn set_up_with(
    hosts: u8,
    twins: u8,
    change: impl FnOnce(&mut SessionConfig),
) -> (Cluster, Session) {
    let cluster = Cluster::new(hosts, twins);
    let mut config = SessionConfig::new(cluster.shape, CLIENT, cluster.client.clone());
    config.window = 4;
    config.retransmit_after_us = 1_000;
    config.retransmit_us_max = 4_000;
    config.query_timeout_us = 500;
    change(&mut config);
    (cluster, Session::new(config))
}

fn receivers(session: &mut Session) -> Vec<(ReplicaId, bool)> {
    std::iter::from_fn(|| session.poll_transmit())
        .map(|transmit| match transmit.message {
            Message::Request { retransmission, .. } => (transmit.to, retransmission),
            Message::Query { .. } => panic!("no fast read is open"),
        })
        .collect()
}

fn give(session: &mut Session, cluster: &mut Cluster, host: u8, seq: Seq, said: &Said) {
    let reply = cluster.certified(host, CLIENT, seq, said);
    session.handle_reply(ReplicaId::new(host, 0), &reply);
}

fn completed(session: &mut Session) -> Option<(Seq, Slot, Bytes, Option<u8>)> {
    match session.poll_event()? {
        Event::Completed {
            seq,
            slot,
            result,
            steps,
            ..
        } => Some((seq, slot, result, steps)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn first_send_goes_to_the_primarys_twins_with_a_right_mac_for_each() {
    let (mut cluster, mut session) = set_up(3, 2);
    session.set_view(View(4));
    session.submit(0, Bytes::from_static(b"op")).unwrap();
    let mut to = Vec::new();
    while let Some(transmit) = session.poll_transmit() {
        let Message::Request {
            signed,
            retransmission,
            leader_alone,
        } = transmit.message
        else {
            panic!("a request was submitted")
        };
        assert!(!retransmission && !leader_alone);
        assert!(cluster.request_is_authentic(transmit.to, &signed));
        to.push(transmit.to);
    }
    assert_eq!(to, [ReplicaId::new(1, 0), ReplicaId::new(1, 1)]);
}

#[test]
fn while_little_is_under_way_small_requests_go_to_the_leader_alone() {
    let (mut cluster, mut session) = set_up_with(3, 2, |config| config.leader_alone_bytes_max = 8);
    // View 4 is led by twin 1 of host 1.
    session.set_view(View(4));
    let leader = ReplicaId::new(1, 1);
    session.submit(0, Bytes::from_static(b"small")).unwrap();
    let transmit = session.poll_transmit().unwrap();
    let Message::Request {
        signed,
        retransmission,
        leader_alone,
    } = transmit.message
    else {
        panic!("a request was submitted")
    };
    assert_eq!(transmit.to, leader);
    assert!(leader_alone && !retransmission);
    // Its siblings check the copy that the leader passes on.
    for twin in 0..2 {
        assert!(cluster.request_is_authentic(ReplicaId::new(1, twin), &signed));
    }
    assert!(session.poll_transmit().is_none());
    session
        .submit(0, Bytes::from_static(b"as large as it gets"))
        .unwrap();
    assert_eq!(receivers(&mut session).len(), 2);
    // The third one under way, and what other sessions crowd out.
    session.submit(0, Bytes::from_static(b"small")).unwrap();
    assert_eq!(receivers(&mut session).len(), 2);
    let (_, mut session) = set_up_with(3, 2, |config| config.leader_alone_bytes_max = 8);
    session.set_crowded(true);
    session.submit(0, Bytes::new()).unwrap();
    assert_eq!(receivers(&mut session).len(), 2);
}

#[test]
fn retransmission_goes_to_everybody_and_backs_off() {
    let (mut cluster, mut session) = set_up(3, 2);
    session.submit(0, Bytes::from_static(b"op")).unwrap();
    receivers(&mut session);
    assert_eq!(session.poll_timeout(), Some(1_000));
    session.handle_timeout(999);
    assert!(session.poll_transmit().is_none());
    session.handle_timeout(1_000);
    let mut count = 0;
    while let Some(transmit) = session.poll_transmit() {
        let Message::Request {
            signed,
            retransmission,
            leader_alone,
        } = transmit.message
        else {
            panic!("a request was submitted")
        };
        assert!(!leader_alone);
        assert!(retransmission && cluster.request_is_authentic(transmit.to, &signed));
        count += 1;
    }
    assert_eq!(count, 6);
    // 1000 doubles to 2000, then to 4000, where it stays.
    for due in [3_000, 7_000, 11_000] {
        assert_eq!(session.poll_timeout(), Some(due));
        session.handle_timeout(due);
        assert_eq!(receivers(&mut session).len(), 6);
    }
}

#[test]
fn an_announcement_goes_to_everybody_once_and_is_no_retransmission() {
    let (mut cluster, mut session) = set_up_with(3, 2, |config| config.announce = true);
    let first = session.submit(0, Bytes::new()).unwrap();
    let sent = receivers(&mut session);
    assert!(sent.len() == 6 && sent.iter().all(|(_, again)| !again));
    for host in 1..3 {
        give(
            &mut session,
            &mut cluster,
            host,
            first,
            &Said::committed(9, b"a"),
        );
    }
    assert_eq!(
        completed(&mut session).unwrap().3,
        None,
        "nobody can tell which copy it was"
    );
    session.submit(0, Bytes::new()).unwrap();
    assert_eq!(receivers(&mut session).len(), 2);
    session.announce();
    session.submit(0, Bytes::new()).unwrap();
    session.submit(0, Bytes::new()).unwrap();
    assert_eq!(receivers(&mut session).len(), 6 + 2);
}

#[test]
fn retransmissions_do_not_pile_up_when_nobody_sends_them() {
    let (_, mut session) = set_up(3, 2);
    session.submit(0, Bytes::from_static(b"op")).unwrap();
    receivers(&mut session);
    for due in 1..50 {
        session.handle_timeout(due * 10_000);
    }
    assert_eq!(receivers(&mut session).len(), 6);
}

#[test]
fn quorum_of_hosts_completes_and_names_the_steps() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    let said = Said::committed(9, b"result");
    give(&mut session, &mut cluster, 1, seq, &said);
    assert!(session.poll_event().is_none());
    give(
        &mut session,
        &mut cluster,
        2,
        seq,
        &said.clone().digest_only(),
    );
    // Both are backups: client, primary, backup, client.
    assert_eq!(
        completed(&mut session),
        Some((seq, Slot(9), Bytes::from_static(b"result"), Some(3)))
    );
    assert_eq!(session.poll_timeout(), None);

    let seq = session.submit(0, Bytes::new()).unwrap();
    give(&mut session, &mut cluster, 0, seq, &said);
    give(&mut session, &mut cluster, 2, seq, &said);
    // The primary learned of the commit from an ACK, one step more.
    assert_eq!(completed(&mut session).unwrap().3, Some(4));
    assert_eq!(session.faults().total(), 0);
}

#[test]
fn steps_follow_the_commit_rule_of_each_shape() {
    for (hosts, view, answering, steps) in [
        (1, None, vec![0], 2),
        (5, None, vec![1, 2, 3], 4),
        (5, Some(0), vec![1, 2, 3], 3),
        (5, Some(0), vec![0, 1, 2], 3),
    ] {
        let (mut cluster, mut session) = set_up(hosts, 2);
        let seq = session.submit(0, Bytes::new()).unwrap();
        let mut said = Said::committed(9, b"result");
        said.view = view;
        for host in &answering {
            give(&mut session, &mut cluster, *host, seq, &said);
        }
        assert_eq!(
            completed(&mut session).unwrap().3,
            Some(steps),
            "{hosts} hosts, {answering:?}"
        );
    }
}

#[test]
fn steps_of_a_repeated_request_are_not_known() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    session.handle_timeout(1_000);
    let said = Said::committed(9, b"result");
    give(&mut session, &mut cluster, 1, seq, &said);
    give(&mut session, &mut cluster, 2, seq, &said);
    assert_eq!(completed(&mut session).unwrap().3, None);
}

#[test]
fn digests_alone_are_no_result() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    let said = Said::committed(9, b"result");
    for host in [0, 1] {
        give(
            &mut session,
            &mut cluster,
            host,
            seq,
            &said.clone().digest_only(),
        );
    }
    assert!(session.poll_event().is_none());
    // On a retransmission every host sends the full result, and one that counts already may bring it.
    give(&mut session, &mut cluster, 0, seq, &said);
    assert_eq!(
        completed(&mut session).unwrap().2,
        Bytes::from_static(b"result")
    );
}

#[test]
fn one_twin_is_not_its_host() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    let said = Said::committed(9, b"result");
    for host in 0..3 {
        let reply = cluster.reply(host, &[1], CLIENT, seq, &said);
        session.handle_reply(ReplicaId::new(host, 1), &reply);
    }
    assert!(session.poll_event().is_none());
    // The other twin's MAC may come in a message of its own.
    for host in 0..2 {
        let reply = cluster.reply(host, &[0], CLIENT, seq, &said);
        session.handle_reply(ReplicaId::new(host, 0), &reply);
    }
    assert!(completed(&mut session).is_some());
}

#[test]
fn slots_and_results_must_agree() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    give(
        &mut session,
        &mut cluster,
        0,
        seq,
        &Said::committed(9, b"a"),
    );
    give(
        &mut session,
        &mut cluster,
        1,
        seq,
        &Said::committed(9, b"b"),
    );
    give(
        &mut session,
        &mut cluster,
        2,
        seq,
        &Said::committed(8, b"a"),
    );
    assert!(session.poll_event().is_none());
    assert_eq!(session.faults().count(ReplicaFault::HostsDisagree), 2);
    // A host does not get a second opinion.
    give(
        &mut session,
        &mut cluster,
        2,
        seq,
        &Said::committed(9, b"b"),
    );
    assert!(session.poll_event().is_none());
    assert_eq!(session.faults().count(ReplicaFault::ContradictingReply), 2);
}

#[test]
fn tentative_replies_must_agree_in_the_view_and_a_committed_one_matches_any() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    give(
        &mut session,
        &mut cluster,
        0,
        seq,
        &Said::tentative(9, 1, b"a"),
    );
    give(
        &mut session,
        &mut cluster,
        1,
        seq,
        &Said::tentative(9, 2, b"a"),
    );
    assert!(session.poll_event().is_none());
    give(
        &mut session,
        &mut cluster,
        2,
        seq,
        &Said::committed(9, b"a"),
    );
    assert_eq!(completed(&mut session).unwrap().1, Slot(9));
    assert_eq!(session.faults().total(), 0);
}

#[test]
fn a_later_view_may_change_a_tentative_outcome_and_an_earlier_one_may_not() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    give(
        &mut session,
        &mut cluster,
        0,
        seq,
        &Said::tentative(9, 1, b"a"),
    );
    give(
        &mut session,
        &mut cluster,
        0,
        seq,
        &Said::tentative(12, 2, b"b"),
    );
    // Late copy of what was dropped.
    give(
        &mut session,
        &mut cluster,
        0,
        seq,
        &Said::tentative(9, 1, b"a"),
    );
    give(
        &mut session,
        &mut cluster,
        1,
        seq,
        &Said::tentative(9, 1, b"a"),
    );
    assert!(session.poll_event().is_none());
    give(
        &mut session,
        &mut cluster,
        2,
        seq,
        &Said::tentative(12, 2, b"b"),
    );
    assert_eq!(completed(&mut session).unwrap().1, Slot(12));
    assert_eq!(session.faults().total(), 0);
}

#[test]
fn a_late_reply_that_contradicts_is_counted_and_one_that_agrees_is_not() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    let said = Said::committed(9, b"a");
    give(&mut session, &mut cluster, 0, seq, &said);
    give(&mut session, &mut cluster, 1, seq, &said);
    give(&mut session, &mut cluster, 2, seq, &said);
    assert!(completed(&mut session).is_some() && session.poll_event().is_none());
    assert_eq!((session.faults().total(), session.late_replies()), (0, 1));
    give(
        &mut session,
        &mut cluster,
        2,
        seq,
        &Said::committed(9, b"b"),
    );
    assert_eq!(session.faults().count(ReplicaFault::ContradictsAccepted), 1);
}

#[test]
fn the_window_is_counted_from_the_lowest_unanswered_request() {
    let (mut cluster, mut session) = set_up(3, 2);
    for seq in 1..=4 {
        assert_eq!(session.submit(0, Bytes::new()), Ok(Seq(seq)));
    }
    let full = Err(SubmitError::WindowFull {
        lowest_unanswered: Seq(1),
    });
    assert_eq!(session.submit(0, Bytes::new()), full);
    let said = Said::committed(9, b"a");
    for seq in [2, 3] {
        give(&mut session, &mut cluster, 0, Seq(seq), &said);
        give(&mut session, &mut cluster, 1, Seq(seq), &said);
    }
    assert_eq!(session.submit(0, Bytes::new()), full);
    give(&mut session, &mut cluster, 0, Seq(1), &said);
    give(&mut session, &mut cluster, 1, Seq(1), &said);
    for seq in 5..=7 {
        assert_eq!(session.submit(0, Bytes::new()), Ok(Seq(seq)));
    }
    assert!(session.submit(0, Bytes::new()).is_err());
    assert_eq!((session.outstanding(), session.room()), (4, 0));
}

#[test]
fn misfits_are_dropped_each_under_its_name() {
    let (mut cluster, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    let said = Said::committed(9, b"a");
    let right = cluster.certified(0, CLIENT, seq, &said);
    let at = ReplicaId::new(0, 0);
    let check = |session: &mut Session, from, reply: &_, fault| {
        let before = session.faults().count(fault);
        session.handle_reply(from, reply);
        assert!(session.faults().count(fault) > before, "{fault:?}");
        assert!(session.poll_event().is_none());
    };
    let mut wrong = right.clone();
    wrong.host = HostId(3);
    check(&mut session, at, &wrong, ReplicaFault::UnknownHost);
    check(
        &mut session,
        ReplicaId::new(1, 0),
        &right,
        ReplicaFault::ForeignSender,
    );
    wrong = right.clone();
    wrong.client.session += 1;
    check(&mut session, at, &wrong, ReplicaFault::WrongClient);
    wrong = right.clone();
    wrong.seq = Seq(2);
    check(&mut session, at, &wrong, ReplicaFault::UnknownSeq);
    wrong = right.clone();
    wrong.slot = Slot(0);
    check(&mut session, at, &wrong, ReplicaFault::GenesisSlot);
    wrong = right.clone();
    wrong.slot = Slot(10);
    check(&mut session, at, &wrong, ReplicaFault::BadReplyMac);
    wrong = right.clone();
    wrong.macs.push(wrong.macs[0]);
    check(&mut session, at, &wrong, ReplicaFault::TooManyMacs);
    wrong = right.clone();
    wrong.macs[1] = wrong.macs[0];
    check(&mut session, at, &wrong, ReplicaFault::DuplicateTwin);
    wrong = right;
    wrong.macs[1].0.0 = 2;
    check(&mut session, at, &wrong, ReplicaFault::UnknownTwin);
}

#[test]
fn a_refusal_of_the_primary_host_hurries_and_those_of_a_quorum_end() {
    let (_, mut session) = set_up(3, 2);
    let first = session.submit(0, Bytes::new()).unwrap();
    let second = session.submit(0, Bytes::new()).unwrap();
    receivers(&mut session);
    let refuse = |session: &mut Session, host, twin| {
        session.handle_refusal(
            5,
            ReplicaId::new(host, twin),
            first,
            RefusalReason::UnknownClient,
        );
    };
    refuse(&mut session, 0, 0);
    assert_eq!(
        session.poll_timeout(),
        Some(1_000),
        "one twin hurries nobody"
    );
    refuse(&mut session, 0, 1);
    assert_eq!(session.poll_timeout(), Some(5));
    session.handle_timeout(5);
    assert_eq!(receivers(&mut session).len(), 6);
    refuse(&mut session, 1, 0);
    refuse(&mut session, 2, 0);
    assert!(session.poll_event().is_none());
    assert_eq!(session.progress(first).unwrap().refusals.len(), 4);
    refuse(&mut session, 1, 1);
    let reason = RefusalReason::UnknownClient;
    assert_eq!(
        session.poll_event(),
        Some(Event::Failed {
            seq: first,
            reason: FailReason::Refused(reason)
        })
    );
    assert_eq!(
        session.poll_event(),
        Some(Event::Failed {
            seq: second,
            reason: FailReason::SessionClosed(reason)
        })
    );
    assert_eq!(
        session.submit(6, Bytes::new()),
        Err(SubmitError::Closed { reason })
    );
}

#[test]
fn busy_ends_nothing_and_a_discarded_result_ends_one_request() {
    let (_, mut session) = set_up(3, 2);
    let seq = session.submit(0, Bytes::new()).unwrap();
    session.submit(0, Bytes::new()).unwrap();
    for replica in session_replicas() {
        session.handle_refusal(1, replica, seq, RefusalReason::Busy);
    }
    assert!(session.poll_event().is_none());
    for replica in session_replicas() {
        session.handle_refusal(1, replica, seq, RefusalReason::ResultDiscarded);
    }
    assert!(matches!(session.poll_event(), Some(Event::Failed { .. })));
    assert!(session.poll_event().is_none());
    assert_eq!(session.outstanding(), 1);
    assert!(session.submit(1, Bytes::new()).is_ok());
}

fn session_replicas() -> Vec<ReplicaId> {
    Cluster::new(3, 2).shape.all_replicas().collect()
}

fn begin_read(cluster: &mut Cluster, session: &mut Session) -> Nonce {
    let nonce = session.query(0, Bytes::from_static(b"read")).unwrap();
    let mut to = Vec::new();
    while let Some(transmit) = session.poll_transmit() {
        let Message::Query { query, mac } = transmit.message else {
            panic!("a fast read was begun")
        };
        assert!(cluster.query_is_authentic(transmit.to, &query, &mac));
        to.push(transmit.to);
    }
    assert!(to.into_iter().eq(cluster.shape.all_replicas()));
    nonce
}

fn answer(
    session: &mut Session,
    cluster: &mut Cluster,
    replica: (u8, u8),
    nonce: Nonce,
    version: u64,
    result: &[u8],
) {
    let replica = ReplicaId::new(replica.0, replica.1);
    let (answer, result, mac) = cluster.answer(replica, CLIENT, nonce, version, result);
    session.handle_answer(replica, &answer, &result, &mac);
}

#[test]
fn a_fast_read_needs_q_twins_of_quorum_hosts_that_agree_in_result_and_version() {
    let (mut cluster, mut session) = set_up(3, 2);
    let nonce = begin_read(&mut cluster, &mut session);
    for replica in [(0, 0), (0, 1), (1, 0), (2, 0)] {
        answer(&mut session, &mut cluster, replica, nonce, 5, b"x");
    }
    assert!(session.poll_event().is_none());
    answer(&mut session, &mut cluster, (2, 1), nonce, 5, b"x");
    assert_eq!(
        session.poll_event(),
        Some(Event::QueryCompleted {
            nonce,
            version: 5,
            result: Bytes::from_static(b"x")
        })
    );
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn equal_results_of_different_versions_do_not_agree() {
    let (mut cluster, mut session) = set_up(3, 2);
    let nonce = begin_read(&mut cluster, &mut session);
    for twin in 0..2 {
        answer(&mut session, &mut cluster, (0, twin), nonce, 5, b"x");
        answer(&mut session, &mut cluster, (1, twin), nonce, 6, b"x");
    }
    assert!(
        session.poll_event().is_none(),
        "the third host may agree with one of them"
    );
    answer(&mut session, &mut cluster, (2, 0), nonce, 7, b"x");
    assert_eq!(
        session.poll_event(),
        Some(Event::QueryFallBack {
            nonce,
            reason: FallBackReason::NoAgreement
        })
    );
}

#[test]
fn a_silent_fast_read_falls_back_in_time() {
    let (mut cluster, mut session) = set_up(3, 2);
    let nonce = begin_read(&mut cluster, &mut session);
    assert_eq!(session.poll_timeout(), Some(500));
    session.handle_timeout(499);
    assert!(session.poll_event().is_none());
    session.handle_timeout(500);
    assert_eq!(
        session.poll_event(),
        Some(Event::QueryFallBack {
            nonce,
            reason: FallBackReason::TimedOut
        })
    );
}

#[test]
fn a_twin_answers_once_and_for_itself() {
    let (mut cluster, mut session) = set_up(3, 2);
    let nonce = begin_read(&mut cluster, &mut session);
    let at = ReplicaId::new(1, 0);
    let (right, result, mac) = cluster.answer(at, CLIENT, nonce, 5, b"x");
    session.handle_answer(ReplicaId::new(1, 1), &right, &result, &mac);
    assert_eq!(session.faults().count(ReplicaFault::ForeignSender), 1);
    session.handle_answer(at, &right, &Bytes::from_static(b"y"), &mac);
    assert_eq!(session.faults().count(ReplicaFault::BadAnswerMac), 1);
    session.handle_answer(at, &right, &result, &mac);
    answer(&mut session, &mut cluster, (1, 0), nonce, 6, b"x");
    assert_eq!(session.faults().count(ReplicaFault::ContradictingAnswer), 1);
    answer(&mut session, &mut cluster, (1, 0), Nonce(9), 6, b"x");
    assert_eq!(session.faults().count(ReplicaFault::UnknownNonce), 1);
}

#[test]
fn open_fast_reads_are_bounded() {
    let (_, mut session) = set_up_with(3, 2, |config| config.queries_max = 2);
    assert!(session.query(0, Bytes::new()).is_ok());
    assert!(session.query(0, Bytes::new()).is_ok());
    assert_eq!(
        session.query(0, Bytes::new()),
        Err(SubmitError::TooManyQueries { open: 2 })
    );
}

/// 7: the check of an answer's MAC is missed where it is taken out; seeds of the simulator do not miss it.
#[cfg(feature = "mutants")]
#[test]
fn without_the_mac_of_an_answer_anybody_answers() {
    use twinbft_types::mutants::{Rule, take_out};
    take_out(Some(Rule::AnswerMac));
    let outcome = std::panic::catch_unwind(a_twin_answers_once_and_for_itself);
    take_out(None);
    assert!(outcome.is_err(), "nobody missed it");
}
