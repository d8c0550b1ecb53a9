//! The double that sends bytes which mean nothing: to its postbox, to its peers, to clients. What it honestly says goes
//! out, too, so that its streams stay open and whoever listens has something to lose.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use twinbft_types::wire::pb;

/// Whether this process sends garbage: the network's tasks ask here.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// One message to a peer in so many breaks the frame that it is in, and with it the stream.
const BREAKS_ONE_IN: u32 = 16;
const BYTES_MAX: usize = 200;

pub(super) fn switch(on: bool) {
    IS_ON.store(on, Ordering::Relaxed);
}

fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

fn random() -> Vec<u8> {
    let count = rand::random_range(0..BYTES_MAX);
    (0..count).map(|_| rand::random()).collect()
}

/// An entry of the postbox that is none.
pub(super) fn entry() -> Vec<u8> {
    random()
}

/// A peer's message, encoded as a part of a frame, with garbage behind it: mostly in the form of a message, which the
/// receiver can pass over, and now and then in none.
pub fn behind(message: Bytes) -> Bytes {
    if !is_on() {
        return message;
    }
    let mut bytes = BytesMut::from(&message[..]);
    let garbage = random();
    if rand::random_range(0..BREAKS_ONE_IN) > 0 {
        let frame = pb::PeerFrame {
            messages: vec![pb::PeerMessage::default()],
        };
        bytes.extend_from_slice(&prost::Message::encode_to_vec(&frame));
    } else {
        bytes.extend_from_slice(&garbage);
    }
    bytes.freeze()
}

/// A frame for a client with parts that make no sense beside those that do.
pub fn beside(frame: &mut pb::ReplicaFrame) {
    if !is_on() {
        return;
    }
    let reply = pb::Reply {
        host: rand::random(),
        incarnation: rand::random(),
        slot: rand::random(),
        session: frame
            .replies
            .first()
            .map_or_else(rand::random, |reply| reply.session),
        seq: frame
            .replies
            .first()
            .map_or_else(rand::random, |reply| reply.seq),
        outcome: Some(pb::reply::Outcome::ResultDigest(random().into())),
        macs: (0..rand::random_range(0..20))
            .map(|_| pb::TwinMac {
                twin: rand::random(),
                mac: random().into(),
            })
            .collect(),
        ..pb::Reply::default()
    };
    frame.replies.insert(0, reply);
    frame.replies.push(pb::Reply::default());
    frame.answers.push(pb::QueryAnswer {
        host: rand::random(),
        twin: rand::random(),
        ..pb::QueryAnswer::default()
    });
}
