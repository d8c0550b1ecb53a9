//! A state of a whole cluster. Copies share what they can: a step copies the one twin that takes it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use twinbft_core::Replica;
use twinbft_sim::{Observer, Truth};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, ReplicaId, Slot, TwinId};

/// One twin.
#[derive(Clone)]
pub struct Node {
    pub core: Arc<Replica>,
    /// Of the core's state; see [`print`]. `None` while it changes.
    pub print: Option<u64>,
    /// Its monotonic clock.
    pub now_us: u64,
    /// The next position that it reads.
    pub read: u64,
    /// What it has posted and the broker has not taken yet.
    pub posts: VecDeque<Bytes>,
    /// What a Byzantine twin holds back and may still post.
    pub held_back: Option<Bytes>,
    /// The slots that its write-ahead log has: by their history, the slot and the history before.
    pub durable: BTreeMap<Digest, (Slot, Digest)>,
    /// A Byzantine twin whose core did not survive its own lies.
    pub is_down: bool,
}

impl Node {
    pub fn is_timer_due(&self) -> bool {
        let at = self.core.deadline().filter(|_| !self.is_down);
        at.is_some_and(|at| at <= self.now_us)
    }

    /// 6: whether the slots of this log, down to genesis, are in its write-ahead log.
    pub fn holds(&self, slot: Slot, history: Digest) -> bool {
        let mut end = (slot, history);
        while end.0 > Slot(0) {
            match self.durable.get(&end.1) {
                Some((of, before)) if *of == end.0 => end = (Slot(end.0.0 - 1), *before),
                _ => return false,
            }
        }
        end.1 == Digest::ZERO
    }
}

/// The log of one host, as far as somebody still has to read it.
#[derive(Clone)]
pub struct Postbox {
    /// The position of the first of `unread`.
    pub begin: u64,
    pub unread: VecDeque<(TwinId, Bytes)>,
    pub observer: Arc<Observer>,
    /// Of what the observer remembers. `None` while that changes.
    pub print: Option<u64>,
}

/// A message under way.
#[derive(Clone)]
pub struct Letter {
    pub from: ReplicaId,
    pub to: ReplicaId,
    pub message: Arc<PeerMessage>,
    pub print: u64,
}

/// What else may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    pub lies: u8,
    pub timeouts: u8,
    pub delays: u8,
    pub moments: u8,
}

/// What was reached on the way: a check that reaches nothing shows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reached {
    /// A client got a certified result for every request.
    pub replies: u8,
    /// A host installed a view above 0.
    pub view_changed: bool,
}

/// A state.
#[derive(Clone)]
pub struct State {
    pub(crate) nodes: Vec<Node>,
    pub(crate) hosts: Vec<Postbox>,
    /// In the order in which they were sent.
    pub(crate) letters: VecDeque<Letter>,
    /// Hosts, one bit each, to which nothing is delivered now.
    pub(crate) held: u32,
    pub(crate) truth: Arc<Truth>,
    pub(crate) truth_print: u64,
    pub(crate) left: Left,
    /// Whether something has happened at the host of the Byzantine twin since the last thing that could be chosen.
    pub(crate) is_news: bool,
    pub(crate) reached: Reached,
    pub(crate) violation: Option<Arc<str>>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, to: &mut H) {
        self.hash_cluster(to);
        (self.left, self.is_news).hash(to);
        for node in &self.nodes {
            node.held_back.hash(to);
        }
    }
}

impl State {
    /// All but what may still be chosen.
    fn hash_cluster<H: Hasher>(&self, to: &mut H) {
        let twins = self.nodes.len() / self.hosts.len();
        for (index, node) in self.nodes.iter().enumerate() {
            // Positions name entries and nothing else: how far behind the end it is counts.
            let read = node.read.saturating_sub(self.hosts[index / twins].begin);
            (node.print, node.now_us, read, node.is_down).hash(to);
            node.posts.hash(to);
            node.durable.hash(to);
        }
        for host in &self.hosts {
            host.print.hash(to);
            host.unread.hash(to);
        }
        to.write_usize(self.letters.len());
        for letter in &self.letters {
            (letter.from, letter.to, letter.print).hash(to);
        }
        (self.held, self.truth_print, self.reached).hash(to);
        self.violation.hash(to);
    }

    /// What stands for the cluster, whatever may still be chosen.
    pub(crate) fn cluster_print(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_cluster(&mut hasher);
        hasher.finish()
    }
}

/// As far as the checker can tell states apart.
impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let digest = |state: &Self| {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        digest(self) == digest(other)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.left, self.reached)?;
        for node in &self.nodes {
            let status = node.core.status();
            write!(
                f,
                "; {} {} executed {}",
                status.replica, status.state, status.executed
            )?;
        }
        match &self.violation {
            Some(what) => write!(f, "; {what}"),
            None => Ok(()),
        }
    }
}

/// Sixty-four bits that stand for what is written: the same for the same text, in every process.
pub fn print(write: impl FnOnce(&mut String) -> fmt::Result) -> u64 {
    let mut text = String::with_capacity(TEXT_BYTES);
    write(&mut text).expect("a string takes everything");
    drop_counters(&mut text);
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// Leaves out of the text of a core, or of an observer, what nothing rests on in these cases:
///
/// - where its host's log ends, how long it is and who has appended how much, which counts once the log is trimmed: no
///   case is as long as that. So an entry that changes nothing else changes nothing;
/// - for how many entries a sibling was silent, which is told after four times `suspect_after`: no case lasts as long.
fn drop_counters(text: &mut String) {
    drop_between(text, ", end: p", ", installed: v");
    drop_between(text, "Mutes { siblings: [", "] }");
}

/// All of `text` from each `begin` to the first `end` behind it.
fn drop_between(text: &mut String, begin: &str, end: &str) {
    let mut from = 0;
    while let Some(at) = text[from..].find(begin).map(|at| from + at) {
        let behind = at + begin.len();
        let Some(length) = text[behind..].find(end) else {
            return;
        };
        if length < DROPPED_BYTES_MAX {
            text.replace_range(at..behind + length, "");
        }
        from = at + end.len();
    }
}

/// Nothing that is dropped is as long: what is, is something else.
const DROPPED_BYTES_MAX: usize = 512;
/// What a core's state takes as text, about.
const TEXT_BYTES: usize = 16 * 1024;
