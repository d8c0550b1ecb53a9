//! Counters that several threads share. They only grow; rates are for whoever reads them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use twinbft_types::Statement;
use twinbft_types::wire::PeerMessage;

/// A number that grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Some more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! kinds {
    ($($kind:ident => $name:literal),* $(,)?) => {
        /// What travels between processes, as operators see it counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the names say it")]
        pub enum Kind { $($kind),* }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The name in the status document.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }
    };
}

kinds! {
    ClientFrame => "client_frame",
    Request => "request",
    Retransmission => "retransmission",
    Query => "query",
    ReplicaFrame => "replica_frame",
    Reply => "reply",
    Answer => "answer",
    Refusal => "refusal",
    PeerFrame => "peer_frame",
    Order => "order",
    FetchSlots => "fetch_slots",
    FetchSlotResult => "fetch_slot_result",
    FetchNewView => "fetch_new_view",
    FetchReport => "fetch_report",
    FetchChain => "fetch_chain",
    Chain => "chain",
    FetchCheckpoint => "fetch_checkpoint",
    CheckpointOffer => "checkpoint_offer",
    FetchChunk => "fetch_chunk",
    Chunk => "chunk",
    Ack => "ack",
    ReplyStatement => "reply_statement",
    Forward => "forward",
    Checkpoint => "checkpoint",
    Heartbeat => "heartbeat",
    Wish => "wish",
    ViewChange => "view_change",
    NewView => "new_view",
    Committed => "committed",
    SlotResult => "slot_result",
    Recovery => "recovery",
    RecoveryAnswer => "recovery_answer",
    Report => "report",
    StatusQuestion => "status_question",
    Command => "command",
}

impl Kind {
    /// The kind of a message between replicas.
    #[must_use]
    pub const fn of(message: &PeerMessage) -> Self {
        match message {
            PeerMessage::Order(_) => Self::Order,
            PeerMessage::FetchSlots { .. } => Self::FetchSlots,
            PeerMessage::FetchSlotResult { .. } => Self::FetchSlotResult,
            PeerMessage::FetchNewView { .. } => Self::FetchNewView,
            PeerMessage::FetchReport { .. } => Self::FetchReport,
            PeerMessage::FetchChain { .. } => Self::FetchChain,
            PeerMessage::Chain(_) => Self::Chain,
            PeerMessage::FetchCheckpoint { .. } => Self::FetchCheckpoint,
            PeerMessage::Checkpoint(_) => Self::CheckpointOffer,
            PeerMessage::FetchChunk(_) => Self::FetchChunk,
            PeerMessage::Chunk(_) => Self::Chunk,
            PeerMessage::Forward(_) => Self::Forward,
            PeerMessage::Certificate(certificate) => match certificate.signed.statement {
                Statement::Order { .. } => Self::Order,
                Statement::Ack { .. } => Self::Ack,
                Statement::Reply { .. } => Self::ReplyStatement,
                Statement::Forward { .. } => Self::Forward,
                Statement::Checkpoint { .. } => Self::Checkpoint,
                Statement::Heartbeat { .. } => Self::Heartbeat,
                Statement::Wish { .. } => Self::Wish,
                Statement::ViewChange { .. } => Self::ViewChange,
                Statement::NewView { .. } => Self::NewView,
                Statement::Committed { .. } => Self::Committed,
                Statement::SlotResult { .. } => Self::SlotResult,
                Statement::Recovery { .. } => Self::Recovery,
                Statement::RecoveryAnswer { .. } => Self::RecoveryAnswer,
                Statement::Report { .. } => Self::Report,
            },
        }
    }
}

/// A counter for each kind.
#[derive(Debug)]
pub struct ByKind(Vec<Counter>);

impl Default for ByKind {
    fn default() -> Self {
        Self(Kind::ALL.iter().map(|_| Counter::default()).collect())
    }
}

impl ByKind {
    /// The counter of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &Counter {
        &self.0[kind as usize]
    }

    /// Those that are not zero.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        Kind::ALL
            .iter()
            .map(|&kind| (kind.name(), self.of(kind).value()))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// Counters under names that come up while running. Names are `&'static str`, so their number is bounded by the
/// program; sources are members of the cluster, so theirs is by `cluster.toml`.
#[derive(Debug, Default)]
pub struct ByName(Mutex<BTreeMap<(String, &'static str), u64>>);

impl ByName {
    /// One more `name` caused by `source`.
    pub fn add_one(&self, source: &str, name: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(&(source.to_owned(), name)) {
            Some(count) => *count += 1,
            None => {
                counts.insert((source.to_owned(), name), 1);
            }
        }
    }

    /// By source, then name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<String, BTreeMap<&'static str, u64>> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: BTreeMap<String, BTreeMap<&'static str, u64>> = BTreeMap::new();
        for ((source, name), count) in counts.iter() {
            all.entry(source.clone()).or_default().insert(name, *count);
        }
        all
    }
}

/// What the network thread counts.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// Messages that left.
    pub sent: ByKind,
    /// Messages that came and had their form.
    pub received: ByKind,
    /// What came and was dropped because of its form or its sender, by who sent it.
    pub refused: ByName,
    /// Replies for clients that no open stream belongs to.
    pub replies_without_stream: Counter,
    /// Open client streams.
    pub client_streams_opened: Counter,
    /// Closed client streams.
    pub client_streams_closed: Counter,
    /// Open peer streams.
    pub peer_streams_opened: Counter,
    /// Closed peer streams.
    pub peer_streams_closed: Counter,
}
