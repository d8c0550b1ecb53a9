//! A state is fetched no faster than this twin may take it, and from servers that have much to do (protocol.md 5).

mod common;

use bytes::Bytes;
use common::Host;
use twinbft_core::{Input, Tuning};
use twinbft_types::wire::{
    CheckpointOffer, CheckpointParts, ChunkMessage, ChunkName, PeerMessage, StatePart,
};
use twinbft_types::{Digest, ReplicaId, Slot, Statement};

/// Of each chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// A twin of h1 that fetches a checkpoint far above it, of which its service wants the chunks 0 to `wanted`.
struct Fetch {
    host: Host,
    slot: Slot,
    wanted: Vec<u64>,
}

impl Fetch {
    fn new(tuning: &Tuning, wanted: u64) -> Self {
        let mut host = Host::new(1, 3, 2, tuning);
        // Beyond the marks, where no batches lead.
        let slot = Slot(5 * tuning.checkpoint_slots);
        let order = host.keys.order(slot.0 + 1, Digest::ZERO, Vec::new());
        let from = ReplicaId::new(0, 0);
        host.peer(0, from, PeerMessage::Order(order));
        let parts = CheckpointParts {
            service: Digest([1; 32]),
            sessions: Digest([2; 32]),
            config: Digest::ZERO,
            history: Digest([3; 32]),
            timestamp_us: 1,
        };
        let digest = parts.digest();
        let statement = Statement::Checkpoint { slot, digest };
        let certificates = [0, 2].map(|of| host.keys.certificate(of, &[0, 1], statement.clone()));
        let offer = CheckpointOffer {
            slot,
            parts,
            certificates: certificates.into(),
        };
        host.peer(0, from, PeerMessage::Checkpoint(Box::new(offer)));
        host.pass(2 * tuning.fetch_after_us);
        let wanted: Vec<u64> = (0..wanted).collect();
        let input = Input::Restoring {
            slot,
            chunk: None,
            wanted: wanted.clone(),
        };
        host.step(0, input);
        Self { host, slot, wanted }
    }

    /// The chunks that were asked for since the last call, each with who was asked.
    fn asked(&mut self) -> Vec<(ReplicaId, u64)> {
        let sends = std::mem::take(&mut self.host.done(0).sends);
        let asked = |(to, message): &(ReplicaId, std::sync::Arc<PeerMessage>)| match **message {
            PeerMessage::FetchChunk(ChunkName {
                part: StatePart::Service,
                id,
                ..
            }) => Some((*to, id)),
            _ => None,
        };
        sends.iter().filter_map(asked).collect()
    }

    /// The chunk comes, and the service takes it.
    fn answer(&mut self, from: ReplicaId, id: u64) {
        let name = ChunkName {
            slot: self.slot,
            part: StatePart::Service,
            id,
        };
        let bytes = Some(Bytes::from(vec![7; CHUNK_BYTES]));
        let chunk = ChunkMessage { name, bytes };
        self.host.peer(0, from, PeerMessage::Chunk(chunk));
        self.wanted.retain(|wanted| *wanted != id);
        let input = Input::Restoring {
            slot: self.slot,
            chunk: Some((id, true)),
            wanted: self.wanted.clone(),
        };
        self.host.step(0, input);
    }
}

#[test]
fn a_state_is_taken_no_faster_than_it_may_be() {
    let tuning = Tuning {
        transfer_bytes_per_s: 4 << 20,
        ..Tuning::default()
    };
    // One that says how long they are, and then all.
    let mut fetch = Fetch::new(&tuning, 1);
    let [(server, 0)] = fetch.asked()[..] else {
        panic!("the only chunk is asked for once");
    };
    fetch.wanted.extend(1..200);
    fetch.answer(server, 0);
    let mut came = 0;
    // 0.9 s, in which sixteen a second are fourteen.
    for _ in 0..900 {
        for (server, id) in fetch.asked() {
            fetch.answer(server, id);
            came += 1;
        }
        fetch.host.pass(1_000);
    }
    assert!((14..=15).contains(&came), "{came} chunks in 0.9 s");
}

#[test]
fn a_fetch_whose_servers_are_all_late_goes_on_as_long_as_something_comes() {
    let mut fetch = Fetch::new(&Tuning::default(), 40);
    let first = fetch.asked();
    assert!(!first.is_empty(), "it has begun");
    let (server, id) = first[0];
    fetch.answer(server, id);
    // Everybody else says nothing for longer than a chunk is waited for.
    fetch.host.pass(1_000);
    fetch.asked();
    fetch.host.pass(1_100_000);
    let again = fetch.asked();
    let is_first = |(_, id): &(ReplicaId, u64)| first.iter().any(|(_, known)| known == id);
    assert!(again.iter().any(is_first), "asked again: {again:?}");
    // Nothing comes any more: another checkpoint is looked for.
    fetch.host.pass(1_100_000);
    fetch.asked();
    fetch.host.pass(1_100_000);
    let last = fetch.asked();
    assert!(last.is_empty(), "given up: {last:?}");
}
