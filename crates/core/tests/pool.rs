//! Requests that wait for a slot are bounded, and nobody keeps others out (protocol.md 4.1, 11 invariant 9).

mod common;

use common::Host;
use twinbft_core::{Effect, PeerFault, Refusal, Tuning};
use twinbft_types::ClientId;

fn pooled(host: &Host, twin: usize) -> usize {
    let footprint = host.twins[twin].core.footprint();
    let pool = footprint.iter().find(|(what, _)| *what == "pool");
    pool.expect("it is counted").1
}

/// An early request of a session of which nothing was ever seen would wait for ever.
#[test]
fn early_requests_of_unknown_sessions_are_refused() {
    let mut host = Host::new(0, 3, 2, &Tuning::default());
    for session in 1..=10 {
        let client = ClientId { key: 0, session };
        let early = host.keys.request_of(client, 65, b"early", &[0, 1]);
        host.request(0, &early);
    }
    assert_eq!(pooled(&host, 0), 0);
    assert!(
        host.done(0)
            .faults
            .iter()
            .all(|f| matches!(f, PeerFault::OutsideWindow { .. }))
    );
    let is_outside = |e: &Effect| {
        matches!(
            e,
            Effect::Refuse {
                reason: Refusal::OutsideWindow,
                ..
            }
        )
    };
    assert!(host.done(0).refused.len() == 10 && host.done(0).refused.iter().all(is_outside));
    // A session that is under way may be ahead of a twin that lags.
    for seq in [1, 65] {
        let request = host.keys.request(1, seq, &[0, 1]);
        host.request(0, &request);
    }
    assert_eq!(pooled(&host, 0), 2);
}

/// A request that can no longer be proposed leaves the pool.
#[test]
fn a_request_of_an_expired_session_leaves_the_pool() {
    let tuning = Tuning {
        pipeline_depth: 1,
        batch_requests_max: 1,
        sessions_max: 1,
        ..Tuning::default()
    };
    let mut host = Host::new(0, 3, 2, &tuning);
    for (session, seq) in [(10, 1), (20, 1), (10, 2), (10, 3)] {
        let client = ClientId { key: 0, session };
        let request = host.keys.request_of(client, seq, b"op", &[0, 1]);
        host.request(0, &request);
        host.request(1, &request);
    }
    for _ in 0..4 {
        host.settle();
        host.acknowledge(&[0, 1]);
        host.serve(0);
        host.serve(1);
    }
    // The second request of the first session was under way when its session went, and is executed as a no-op.
    assert_eq!((host.accepted(0), host.accepted(1)), (3, 3));
    assert_eq!(pooled(&host, 0), 0);
}

/// One client's requests that nobody may propose do not fill the pool for others.
#[test]
fn one_client_does_not_fill_the_pool() {
    let tuning = Tuning {
        pending_requests_max: 64,
        batch_requests_max: 4,
        session_window: 8,
        ..Tuning::default()
    };
    let mut host = Host::new(0, 3, 2, &tuning);
    for session in 1..=32 {
        let client = ClientId { key: 0, session };
        for seq in [1, 9, 10, 11, 12] {
            let request = host.keys.request_of(client, seq, b"op", &[0]);
            host.request(0, &request);
        }
    }
    assert!(pooled(&host, 0) <= 16, "{}", pooled(&host, 0));
    let request = host.keys.request(1, 1, &[0, 1]);
    host.request(0, &request);
    host.request(1, &request);
    host.pass(100_000);
    assert_eq!(host.accepted(0), 1);
}
