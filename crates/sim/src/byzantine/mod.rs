//! Byzantine doubles: an honest core whose effects are rewritten before they leave the twin ([`rewrite`]), and which
//! does things of its own in between ([`forge`]). A double has its twin's keys and nobody else's.

mod forge;
mod late;
mod rewrite;

use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use twinbft_types::wire::{PeerMessage, Reply};
use twinbft_types::{Entry, KeyRing, ReplicaId, Shape, SignedRequest};

pub use forge::Hints;
use late::{Signatures, Votes};

/// How a twin deviates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Double {
    /// Posts and sends nothing.
    Mute,
    /// Its RESULTs carry wrong digests.
    WrongResult,
    /// Its service computes wrong results: all that it says about them fits together.
    WrongService,
    /// Its CHECKPOINTs carry wrong digests.
    WrongCheckpoint,
    /// Its fast reads are answered wrongly, under a valid MAC.
    WrongAnswer,
    /// Its signatures are right for some receivers only.
    SpoiltMacs,
    /// Votes for nothing.
    NoVotes,
    /// NACKs whatever it is asked to endorse.
    NackAll,
    /// Drops half of what it would send or post.
    Forgetful,
    /// Posts and sends everything late, out of order.
    Reordering,
    /// Posts everything twice.
    Repeating,
    /// Posts and sends again what it has once posted and sent, at any time.
    Replaying,
    /// Posts random bytes and well-formed nonsense in between.
    Noisy,
    /// Posts entries of every kind with values near the right ones.
    Forging,
    /// Sends statements that its host never decided, under its own valid signature, and replies nobody agreed on.
    Lying,
    /// Sends different ORDERs to different receivers, and proposes twice for one slot.
    Equivocating,
    /// Posts one kind of entry until its quota is full.
    Spamming,
    /// Its fast reads are answered from the state some writes ago, under a valid MAC.
    StaleAnswer,
    /// Posts its votes again after a fence, and some of them only then.
    Belated,
    /// Sends a certificate as soon as its own signature makes it one, whatever the log says.
    Assembling,
    /// As a leader: its batches carry a wrong time.
    Backdating,
    /// As a leader: puts a request into its batches that it has received and that has no place there.
    Greedy,
}

const ALL: [Double; 22] = [
    Double::Mute,
    Double::WrongResult,
    Double::WrongService,
    Double::WrongCheckpoint,
    Double::WrongAnswer,
    Double::SpoiltMacs,
    Double::NoVotes,
    Double::NackAll,
    Double::Forgetful,
    Double::Reordering,
    Double::Repeating,
    Double::Replaying,
    Double::Noisy,
    Double::Forging,
    Double::Lying,
    Double::Equivocating,
    Double::Spamming,
    Double::StaleAnswer,
    Double::Belated,
    Double::Assembling,
    Double::Backdating,
    Double::Greedy,
];

/// Most acts of its own of one double in one run: the log and the run stay short.
const ACTS_MAX: u32 = 150;
/// Entries and messages that a double remembers.
const MEMORY_MAX: usize = 24;

impl Double {
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        ALL[rng.random_range(0..ALL.len())]
    }
}

/// Something that a double does.
#[derive(Debug)]
pub enum Act {
    Post(Entry),
    PostBytes(Bytes),
    Send(ReplicaId, Arc<PeerMessage>),
    Reply(Reply),
}

/// A double at work.
#[derive(Debug)]
pub struct Puppet {
    pub double: Double,
    me: ReplicaId,
    shape: Shape,
    keys: KeyRing,
    /// Entries that it has posted or read.
    entries: Vec<Entry>,
    /// Messages that it has sent or received.
    messages: Vec<Arc<PeerMessage>>,
    replies: Vec<Reply>,
    acts_left: u32,
    /// What [`Double::Reordering`] holds back.
    held: Vec<twinbft_core::Effect>,
    /// Which kind [`Double::Spamming`] posts.
    kind: u32,
    votes: Votes,
    signatures: Signatures,
    /// Requests that it has received.
    requests: Vec<SignedRequest>,
}

impl Puppet {
    pub fn new(
        double: Double,
        me: ReplicaId,
        shape: Shape,
        keys: KeyRing,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        Self {
            double,
            me,
            shape,
            keys,
            entries: Vec::new(),
            messages: Vec::new(),
            replies: Vec::new(),
            acts_left: ACTS_MAX,
            held: Vec::new(),
            kind: rng.random_range(0..forge::ENTRY_KINDS),
            votes: Votes::default(),
            signatures: Signatures::default(),
            requests: Vec::new(),
        }
    }

    /// Whether it remembers what it reads: only those that use it do.
    pub const fn listens(&self) -> bool {
        matches!(
            self.double,
            Double::Forging
                | Double::Lying
                | Double::Replaying
                | Double::Equivocating
                | Double::Belated
                | Double::Assembling
        )
    }

    /// It has read this entry.
    pub fn note_entry(&mut self, entry: &Entry, rng: &mut ChaCha8Rng) {
        match self.double {
            Double::Belated => return self.votes.note_entry(entry),
            Double::Assembling => return self.signatures.note_entry(entry, self.me),
            _ => {}
        }
        remember(&mut self.entries, entry.clone(), rng);
    }

    /// It has received this request.
    pub fn note_request(&mut self, request: &SignedRequest, rng: &mut ChaCha8Rng) {
        if self.double == Double::Greedy {
            remember(&mut self.requests, request.clone(), rng);
        }
    }

    /// It has received this message.
    pub fn note_message(&mut self, message: &Arc<PeerMessage>, rng: &mut ChaCha8Rng) {
        remember(&mut self.messages, message.clone(), rng);
    }

    /// What it does besides, after a step of its core.
    pub fn act(&mut self, hints: &Hints, rng: &mut ChaCha8Rng) -> Vec<Act> {
        let chance = match self.double {
            Double::Noisy => 0.05,
            Double::Forging | Double::Replaying => 0.15,
            Double::Lying | Double::Equivocating => 0.1,
            Double::Spamming | Double::Belated => 0.3,
            Double::Assembling => 1.0,
            _ => return Vec::new(),
        };
        if self.acts_left == 0 || self.has_nothing_to_do() || !rng.random_bool(chance) {
            return Vec::new();
        }
        self.acts_left -= 1;
        match self.double {
            Double::Noisy => vec![Act::PostBytes(garbage(rng))],
            Double::Forging => vec![Act::Post(self.forge_entry(hints, rng))],
            Double::Replaying => self.replay(rng).into_iter().collect(),
            Double::Lying => self.lie(hints, rng),
            Double::Equivocating => self.equivocate(hints, rng),
            Double::Spamming => (0..4).map(|_| Act::Post(self.spam(hints, rng))).collect(),
            Double::Belated => self.votes.late.drain(..).map(Act::Post).collect(),
            Double::Assembling => {
                let certificate = self.signatures.assemble(self.shape, self.me, &self.keys);
                let message = certificate.map(PeerMessage::Certificate).map(Arc::new);
                let to = self.any_peer(rng);
                to.zip(message)
                    .map(|(to, message)| Act::Send(to, message))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    const fn has_nothing_to_do(&self) -> bool {
        match self.double {
            Double::Belated => self.votes.late.is_empty(),
            Double::Assembling => self.signatures.open.is_empty(),
            _ => false,
        }
    }

    fn replay(&self, rng: &mut ChaCha8Rng) -> Option<Act> {
        match rng.random_range(0..3) {
            0 => pick(&self.entries, rng).map(Act::Post),
            1 => {
                let to = self.any_peer(rng)?;
                pick(&self.messages, rng).map(|message| Act::Send(to, message))
            }
            _ => pick(&self.replies, rng).map(Act::Reply),
        }
    }

    fn any_peer(&self, rng: &mut ChaCha8Rng) -> Option<ReplicaId> {
        let peers: Vec<ReplicaId> = self.shape.receivers(self.me.host).collect();
        pick(&peers, rng)
    }
}

fn remember<T>(memory: &mut Vec<T>, item: T, rng: &mut ChaCha8Rng) {
    if memory.len() < MEMORY_MAX {
        memory.push(item);
    } else {
        let place = rng.random_range(0..MEMORY_MAX);
        memory[place] = item;
    }
}

fn pick<T: Clone>(from: &[T], rng: &mut ChaCha8Rng) -> Option<T> {
    if from.is_empty() {
        return None;
    }
    Some(from[rng.random_range(0..from.len())].clone())
}

/// Bytes that are no entry.
fn garbage(rng: &mut ChaCha8Rng) -> Bytes {
    let mut bytes = vec![0; rng.random_range(0..64)];
    rng.fill(&mut bytes[..]);
    bytes.into()
}
