//! A fuzz target of what replicas send to a client; `scripts/fuzz` drives it by coverage. Their MACs are wrong: what liars with
//! keys can do is in `hostile.rs`.

mod support;

use bolero::check;
use bytes::Bytes;
use prost::Message as _;
use support::{CLIENT_KEY, Cluster};
use twinbft_client::session::{Event, Session, SessionConfig};
use twinbft_types::wire::{Reply, answer_from_wire, pb};
use twinbft_types::{ClientId, ReplicaId, Seq};

const CLIENT: ClientId = ClientId {
    key: CLIENT_KEY,
    session: 5,
};

/// No frame completes a request or a read; refusals, which are not authenticated, end it only when `Q` hosts refuse.
#[test]
fn replica_frames() {
    check!().with_iterations(500).for_each(|bytes: &[u8]| {
        let cluster = Cluster::new(3, 2);
        let config = SessionConfig::new(cluster.shape, CLIENT, cluster.client.clone());
        let mut session = Session::new(config);
        session.submit(0, Bytes::new()).expect("there is room");
        session.query(0, Bytes::new()).expect("there is room");
        let mut rest = bytes;
        for (number, replica) in (1..).zip(cluster.shape.all_replicas().take(2)) {
            let (bytes, next) = rest.split_at(if number == 1 {
                rest.len() / 2
            } else {
                rest.len()
            });
            rest = next;
            take_in(&mut session, replica, bytes, number * 300_000);
        }
        assert!(session.outstanding() <= 2);
    });
}

fn take_in(session: &mut Session, from: ReplicaId, bytes: &[u8], now_us: u64) {
    let Ok(frame) = pb::ReplicaFrame::decode(bytes) else {
        return;
    };
    for reply in frame.replies {
        if let Ok(reply) = Reply::try_from(reply) {
            session.handle_reply(from, &reply);
        }
    }
    for answer in frame.answers {
        if let Ok((answer, result, mac)) = answer_from_wire(answer, CLIENT_KEY) {
            session.handle_answer(from, &answer, &result, &mac);
        }
    }
    for refusal in frame.refusals {
        session.handle_refusal(now_us, from, Seq(refusal.seq), refusal.reason());
    }
    session.handle_timeout(now_us);
    while session.poll_transmit().is_some() {}
    while let Some(event) = session.poll_event() {
        match event {
            Event::QueryFallBack { .. } => {}
            other => panic!("one host has ended something: {other:?}"),
        }
    }
}
