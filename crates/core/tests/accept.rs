//! A backup that goes on before it has read its own ACCEPT back (docs/adr/0008-last-twin-replies.md), and what must not
//! leave it before it has.

mod common;

use common::Host;
use twinbft_core::{Record, Tuning};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Certificate, Digest, Entry, Mac, ReplicaId, Request, ResultMac, Slot, Statement, View,
};

const LEADER: ReplicaId = ReplicaId::new(0, 0);

/// Twin 0 of host 1, whose sibling has accepted slot 1 before it. Its own ACCEPT is not in the log yet.
fn foreseen() -> (Host, Digest) {
    let mut host = Host::new(1, 3, 2, &Tuning::default());
    host.byzantine = vec![1];
    let request: Request = host.keys.request(0, 1, &[]).request;
    let order = host.keys.order(1, Digest::ZERO, vec![request]);
    let Statement::Order { history, .. } = order.certificate.signed.statement else {
        panic!("it is an ORDER");
    };
    let accept = Entry::Accept {
        view: View(0),
        slot: Slot(1),
        history,
    };
    host.post_as(1, &accept);
    host.read(0);
    host.holding = vec![0];
    host.peer(0, LEADER, PeerMessage::Order(order));
    (host, history)
}

fn ack(history: Digest) -> Statement {
    Statement::Ack {
        view: View(0),
        slot: Slot(1),
        history,
        beat: None,
    }
}

fn sibling_signs(host: &mut Host, statement: Statement) {
    let mut certificate: Certificate = host.keys.certificate(1, &[1], statement.clone());
    let authenticator = certificate.authenticators.remove(0);
    host.post_as(
        1,
        &Entry::Sign {
            statement,
            authenticator,
        },
    );
}

fn acks_sent(host: &mut Host) -> usize {
    let is_ack = |message: &PeerMessage| {
        matches!(message, PeerMessage::Certificate(c)
            if matches!(c.signed.statement, Statement::Ack { .. }))
    };
    host.done(0).sends.iter().filter(|(_, m)| is_ack(m)).count()
}

/// It executes at once; but no certificate of its acceptance leaves before that stands in the log, whatever its sibling
/// has signed.
#[test]
fn no_ack_leaves_before_the_own_accept_is_read_back() {
    let (mut host, history) = foreseen();
    assert_eq!(host.done(0).executes.len(), 1);
    sibling_signs(&mut host, ack(history));
    host.read(0);
    assert_eq!(acks_sent(&mut host), 0);
    host.release();
    host.read(0);
    assert_eq!(host.posted(0, "SIGN"), 1);
    sibling_signs(&mut host, ack(history));
    host.read(0);
    assert_eq!(acks_sent(&mut host), 1);
}

/// A sibling's RESULT that came before the acceptance counts for nothing: no reply rests on it.
#[test]
fn no_reply_rests_on_a_result_before_the_acceptance() {
    let (mut host, history) = foreseen();
    let result = ResultMac {
        digest: Digest::of(b"operation"),
        mac: Mac::default(),
    };
    let results = Entry::Results {
        slot: Slot(1),
        history,
        view: None,
        results: vec![result],
    };
    host.post_as(1, &results);
    host.read(0);
    host.serve(0);
    assert_eq!(host.done(0).replies.len(), 0);
    host.release();
    host.read(0);
    assert_eq!(host.done(0).replies.len(), 0);
    host.post_as(1, &results);
    host.read(0);
    // It is the last one's to send, which would be the sibling.
    assert_eq!(host.twins[0].core.status().cross_checked, 1);
}

/// RESULTs of slots far ahead, or longer than a batch, are not kept and push nothing out.
#[test]
fn invented_results_push_no_real_ones_out() {
    let (mut host, history) = foreseen();
    host.release();
    host.read(0);
    let result = |digest| ResultMac {
        digest,
        mac: Mac::default(),
    };
    for slot in 1000..1300 {
        let invented = Entry::Results {
            slot: Slot(slot),
            history,
            view: None,
            results: vec![result(Digest::ZERO); 300],
        };
        host.post_as(1, &invented);
    }
    let real = Entry::Results {
        slot: Slot(1),
        history,
        view: None,
        results: vec![result(Digest::of(b"operation"))],
    };
    host.post_as(1, &real);
    host.read(0);
    host.serve(0);
    assert_eq!(host.done(0).replies.len(), 1);
}

/// With one host nothing but the RESULT shows what was executed: it is in the write-ahead log before any reply.
#[test]
fn a_lone_host_logs_its_results_before_it_replies() {
    let mut host = Host::new(0, 1, 2, &Tuning::default());
    let request = host.keys.request(0, 1, &[0, 1]);
    host.request(0, &request);
    host.request(1, &request);
    host.settle();
    for twin in [0, 1] {
        host.done(twin).order.clear();
        host.serve(twin);
        host.settle();
        let order = host.done(twin).order.clone();
        let persisted = order.iter().position(|what| *what == "persist");
        let posted = order.iter().position(|what| *what == "RESULT");
        assert!(persisted.is_some() && persisted < posted, "{order:?}");
        let replied = order.iter().position(|what| *what == "reply");
        assert!(replied.is_none_or(|at| persisted < Some(at)), "{order:?}");
        let is_results = |record: &Record| matches!(record, Record::Promise(Entry::Results { .. }));
        assert!(host.done(twin).records.iter().any(is_results));
    }
    assert_eq!(host.done(0).replies.len() + host.done(1).replies.len(), 1);
}

/// 3: the slot that a leader's signature rests on is in its write-ahead log before the signature.
#[test]
fn a_leader_logs_its_slot_before_it_signs() {
    let mut host = Host::new(0, 3, 2, &Tuning::default());
    let request = host.keys.request(0, 1, &[0, 1]);
    host.request(0, &request);
    host.request(1, &request);
    host.settle();
    let records = &host.done(0).records;
    let slot = records
        .iter()
        .position(|r| matches!(r, Record::Slot { slot: Slot(1), .. }));
    let sign = records
        .iter()
        .position(|r| matches!(r, Record::Promise(Entry::Sign { .. })));
    assert!(slot.is_some() && slot < sign, "{records:?}");
}

/// A batch that does not belong to its certificate is dropped when its turn comes, and a right one from another twin is
/// taken, whichever came first.
#[test]
fn a_wrong_batch_under_a_valid_certificate_blocks_nothing() {
    let mut host = Host::new(1, 3, 2, &Tuning::default());
    host.byzantine = vec![1];
    let bodies: Vec<Request> = (1..=2)
        .map(|s| host.keys.request(0, s, &[]).request)
        .collect();
    let first = host.keys.order(1, Digest::ZERO, vec![bodies[0].clone()]);
    let Statement::Order { history, .. } = first.certificate.signed.statement else {
        panic!("it is an ORDER");
    };
    let second = host.keys.order(2, history, vec![bodies[1].clone()]);
    let mut wrong = second.clone();
    wrong.bodies = vec![bodies[0].clone()];
    let other = ReplicaId::new(0, 1);
    host.peer(0, LEADER, PeerMessage::Order(wrong));
    host.peer(0, other, PeerMessage::Order(second));
    host.peer(0, LEADER, PeerMessage::Order(first));
    host.read(0);
    assert_eq!(host.posted(0, "ACCEPT"), 2);
}

/// What waits for its turn is bounded in bytes: the highest slots give way and are fetched again.
#[test]
fn orders_that_wait_are_bounded_in_bytes() {
    let tuning = Tuning {
        batch_bytes_max: 1 << 20,
        ..Tuning::default()
    };
    let mut host = Host::new(1, 3, 2, &tuning);
    host.byzantine = vec![1];
    let mut large = host.keys.request(0, 1, &[]).request;
    large.operation = vec![7; 1 << 20].into();
    for slot in 2..=60 {
        let order = host.keys.order(slot, Digest::ZERO, vec![large.clone()]);
        host.peer(0, LEADER, PeerMessage::Order(order));
    }
    let waiting = |host: &Host| {
        let footprint = host.twins[0].core.footprint();
        let found = footprint.iter().find(|(what, _)| *what == "waiting_orders");
        found.expect("it is counted").1
    };
    assert!(waiting(&host) <= 33, "{}", waiting(&host));
    // And no batch is longer than a leader makes them.
    let mut host = Host::new(1, 3, 2, &tuning);
    let order = host.keys.order(2, Digest::ZERO, vec![large; 2]);
    host.peer(0, LEADER, PeerMessage::Order(order));
    assert_eq!(waiting(&host), 0);
}
