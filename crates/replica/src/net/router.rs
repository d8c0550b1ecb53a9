//! Takes what the core's thread has decided to send and puts it on the right streams.

use std::sync::Arc;

use bytes::Bytes;
use twinbft_types::wire::PeerMessage;

use super::Shared;
use super::convert::{FramePart, encode_peer_message};
use crate::driver::Outbound;
use crate::metrics::Kind;

/// Runs for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        while let Some(round) = shared.egress.pop() {
            dispatch(&shared, round);
        }
        shared.egress.wait().await;
    }
}

fn dispatch(shared: &Shared, round: Outbound) {
    // A message to several peers is encoded once; its copies are neighbours or nearly so.
    let mut encoded: Vec<(*const PeerMessage, Bytes)> = Vec::new();
    for (to, message) in &round.peers {
        let Some(peer) = shared.peers.get(to) else {
            debug_assert!(false, "the core sends to peers of cluster.toml only");
            continue;
        };
        let pointer = Arc::as_ptr(message);
        let bytes = match encoded.iter().rev().find(|(known, _)| *known == pointer) {
            Some((_, bytes)) => bytes.clone(),
            None => {
                let bytes = encode_peer_message(message);
                encoded.push((pointer, bytes.clone()));
                bytes
            }
        };
        shared.metrics.sent.of(Kind::of(message)).add_one();
        peer.send(bytes);
    }
    shared.hub.set_view(round.view.0);
    if round.clients.is_empty() {
        return;
    }
    let parts = round
        .clients
        .into_iter()
        .map(|message| (message.client(), FramePart::new(message)));
    let lost = shared.hub.deliver(parts);
    shared.metrics.replies_without_stream.add(lost);
}
