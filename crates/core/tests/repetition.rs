//! What is asked for and sent again (protocol.md 4.4, 6, 9): more and more rarely, and only what is lacking.

mod common;

use common::Host;
use twinbft_core::Tuning;
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, Entry, Mac, ReplicaId, Request, ResultMac, Slot, Statement, View};

/// Nobody suspects anybody in these tests.
fn patient() -> Tuning {
    Tuning {
        suspect_after_us: 1 << 50,
        ..Tuning::default()
    }
}

fn order(host: &mut Host, seq: u64) {
    let request = host.keys.request(0, seq, &[0, 1]);
    host.request(0, &request);
    host.request(1, &request);
    host.settle();
}

/// The first slots of all questions that a twin has sent.
fn questions(host: &mut Host, twin: u8) -> Vec<u64> {
    let sends = host.done(twin).sends.iter();
    let first = |message: &PeerMessage| match message {
        PeerMessage::FetchSlots { first, .. } => Some(first.0),
        _ => None,
    };
    sends.filter_map(|(_, message)| first(message)).collect()
}

/// Under load something is always accepted and not committed. While commits come, nobody asks for ACKs.
#[test]
fn a_follower_that_sees_commits_asks_for_nothing() {
    let mut host = Host::new(0, 3, 2, &patient());
    let mut before = None;
    for seq in 1..=20 {
        order(&mut host, seq);
        if let Some((slot, history)) = before {
            host.acknowledge_as(0, &[1], slot, history);
            host.acknowledge_as(1, &[1], slot, history);
        }
        before = Some(host.twins[1].core.host_log().accepted());
        assert_eq!(host.accepted(1), seq);
        host.pass(15_000);
    }
    assert_eq!(questions(&mut host, 1), []);
}

/// A question for ACKs is repeated more and more rarely, and names a slot that the asker lacks: no bodies come back.
#[test]
fn a_question_for_acks_backs_off_and_brings_no_bodies() {
    let mut host = Host::new(0, 3, 2, &patient());
    order(&mut host, 1);
    host.pass(10_000_000);
    let asked = questions(&mut host, 1);
    assert!(asked.iter().all(|first| *first == 2), "{asked:?}");
    // Two hosts, 6 doublings from 20 ms to a second, and one a second then.
    assert!((20..=34).contains(&asked.len()), "{}", asked.len());
}

/// ORDERs go again to those hosts only that have not acknowledged them, and more and more rarely.
#[test]
fn orders_go_again_to_those_who_lack_them() {
    let mut host = Host::new(0, 5, 2, &patient());
    order(&mut host, 1);
    let (slot, history) = host.twins[0].core.host_log().accepted();
    host.acknowledge_as(0, &[1], slot, history);
    host.done(0).sends.clear();
    host.pass(10_000_000);
    let is_order = |message: &PeerMessage| matches!(message, PeerMessage::Order(_));
    let mut to: Vec<u8> = host
        .done(0)
        .sends
        .iter()
        .filter(|(_, m)| is_order(m))
        .map(|(to, _)| to.host.0)
        .collect();
    assert!((30..=51).contains(&to.len()), "{}", to.len());
    to.sort_unstable();
    to.dedup();
    assert_eq!(to, [2, 3, 4]);
}

/// 9: the question about a divergence is repeated until the hosts have answered.
#[test]
fn the_question_about_a_divergence_is_repeated() {
    let mut host = Host::new(1, 3, 2, &patient());
    host.byzantine = vec![1];
    let request: Request = host.keys.request(0, 1, &[]).request;
    let order = host.keys.order(1, Digest::ZERO, vec![request]);
    let Statement::Order { history, .. } = order.certificate.signed.statement else {
        panic!("it is an ORDER");
    };
    host.peer(0, ReplicaId::new(0, 0), PeerMessage::Order(order));
    host.post_as(
        1,
        &Entry::Accept {
            view: View(0),
            slot: Slot(1),
            history,
        },
    );
    host.read(0);
    host.post_as(
        1,
        &Entry::Results {
            slot: Slot(1),
            history,
            view: None,
            results: vec![ResultMac {
                digest: Digest::ZERO,
                mac: Mac::default(),
            }],
        },
    );
    host.read(0);
    host.serve(0);
    host.settle();
    host.pass(3_000_000);
    let is_question = |m: &PeerMessage| matches!(m, PeerMessage::FetchSlotResult { .. });
    let asked = host.done(0).sends.iter().filter(|(_, m)| is_question(m));
    let twins: Vec<u8> = asked.map(|(to, _)| to.twin.0).collect();
    assert!((10..=20).contains(&twins.len()), "{}", twins.len());
    assert!(twins.contains(&0) && twins.contains(&1));
}
