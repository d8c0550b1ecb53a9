//! A state of a whole cluster. Copies share what they can: a step copies the one twin that takes it.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use twinbft_core::Replica;
use twinbft_sim::{Observer, Truth};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{ReplicaId, TwinId};

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
    /// A Byzantine twin whose core did not survive its own lies.
    pub is_down: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    pub lies: u8,
    pub timeouts: u8,
    pub delays: u8,
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
    pub(crate) reached: Reached,
    pub(crate) violation: Option<Arc<str>>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, to: &mut H) {
        for node in &self.nodes {
            (node.print, node.now_us, node.read, node.is_down).hash(to);
            node.posts.hash(to);
        }
        for host in &self.hosts {
            (host.begin, host.print).hash(to);
            host.unread.hash(to);
        }
        to.write_usize(self.letters.len());
        for letter in &self.letters {
            (letter.from, letter.to, letter.print).hash(to);
        }
        (self.held, self.truth_print, self.left, self.reached).hash(to);
        self.violation.hash(to);
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
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// What a core's state takes as text, about.
const TEXT_BYTES: usize = 16 * 1024;
