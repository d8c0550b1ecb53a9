//! The one door into the core and the one door out of it (docs/ARCHITECTURE.md).

use std::sync::Arc;

use bytes::Bytes;
use twinbft_types::wire::{PeerMessage, Reply};
use twinbft_types::{
    ClientId, Digest, Entry, Mac, Nonce, Position, Query, QueryAnswer, ReplicaId, Request, Seq,
    SignedRequest, Slot, TwinId,
};

use crate::evidence::Event;
use crate::record::Record;
use crate::session::SessionImage;

/// Time as the driver sees it when it calls the core. The core has no clock of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// Microseconds since the process started; never goes back. All timers use this.
    pub mono_us: u64,
    /// Microseconds since the Unix epoch; may jump. Only batch timestamps use this (protocol.md 4.3).
    pub wall_us: u64,
}

/// Something that happened to this replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client's request reached this twin.
    Request {
        /// The request.
        request: SignedRequest,
        /// Whether the client says that it sent it before.
        retransmission: bool,
        /// Whether the client says that it sent it to the leader alone. A hint: a wrong one costs that client time.
        leader_alone: bool,
    },
    /// A client's fast read reached this twin (protocol.md 7).
    Query {
        /// The query.
        query: Query,
        /// The client's MAC for this twin.
        mac: Mac,
        /// The true end of the postbox log when it arrived: the position after the last entry.
        log_end: Position,
    },
    /// A message of another replica; `from` is what the transport authenticated.
    Peer {
        /// Who sent it.
        from: ReplicaId,
        /// What.
        message: PeerMessage,
    },
    /// The next entry of the postbox log. Positions come without gaps.
    Entry {
        /// Its position.
        position: Position,
        /// Who appended it, as the broker stamped it.
        sender: TwinId,
        /// What it appended.
        bytes: Bytes,
    },
    /// This twin has read too slowly: the log was trimmed beyond it. It goes on from the agreed STATE and nothing else
    /// (protocol.md 2); entries come from its position on.
    Lapped {
        /// Where the log begins now.
        position: Position,
        /// What `q` twins of this host agreed on.
        state: Bytes,
    },
    /// The service has executed [`Effect::Execute`].
    Executed {
        /// The slot.
        slot: Slot,
        /// One result for each request that was handed over, in order.
        results: Vec<Bytes>,
    },
    /// The service has carried out [`Effect::Checkpoint`].
    Checkpointed {
        /// The slot.
        slot: Slot,
        /// The service's state digest.
        digest: Digest,
    },
    /// The service has answered [`Effect::ReadChunk`], in the order of the questions.
    ChunkRead {
        /// Of the state after this slot.
        slot: Slot,
        /// Which chunk.
        id: u64,
        /// The chunk; `None` when the snapshot is gone or has none of this number.
        bytes: Option<Bytes>,
    },
    /// The service has carried out [`Effect::RestoreBegin`] or [`Effect::RestoreChunk`].
    Restoring {
        /// The checkpoint that is restored.
        slot: Slot,
        /// The chunk, and whether it is what the digest commits to; `None` at the beginning.
        chunk: Option<(u64, bool)>,
        /// Chunks that are still wanted, as far as they are known.
        wanted: Vec<u64>,
    },
    /// The service has carried out [`Effect::RestoreActivate`].
    Restored {
        /// The slot that it stands at.
        slot: Slot,
    },
    /// The service has answered [`Effect::Query`].
    Queried {
        /// Names the query.
        token: u64,
        /// The answer.
        result: Bytes,
        /// The slot of the last write to what was read.
        version: u64,
    },
    /// An operator wants this sibling to be listened to again (protocol.md 9).
    Readmit {
        /// The sibling.
        twin: TwinId,
    },
    /// Time has passed; see [`crate::Replica::deadline`].
    Timer,
}

/// Something that the driver must do, in order. A failed effect stops the node.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Make this durable as the configured policy says. Posts that follow wait for it.
    Persist(Record),
    /// Append to the postbox, after everything persisted before it.
    Post {
        /// What.
        entry: Entry,
        /// Whether it may wait for the next urgent post, [`LAZY_POST_US`] at most.
        lazy: bool,
    },
    /// Send to another replica. May be lost; the protocol repeats what matters.
    Send {
        /// To whom.
        to: ReplicaId,
        /// What; shared between receivers.
        message: Arc<PeerMessage>,
    },
    /// Hand a batch to the service; answered by [`Input::Executed`]. Strictly in slot order.
    Execute(Execute),
    /// Have the service drop what it has executed above its last checkpoint, or genesis, which is this slot
    /// (protocol.md 4.7). What was handed over before is still answered; what follows is executed again.
    Rollback {
        /// Where it stands then.
        slot: Slot,
    },
    /// Have the service make its state after a slot that is executed durable, and this beside it, first: it is what
    /// a start from that checkpoint needs. Answered by [`Input::Checkpointed`].
    Checkpoint(Checkpoint),
    /// Of the snapshots of checkpoints only these, and those of later slots, are still of use.
    KeepSnapshots {
        /// Their slots.
        slots: Vec<Slot>,
    },
    /// Read a chunk of the snapshot of a checkpoint; answered by [`Input::ChunkRead`].
    ReadChunk {
        /// Of the state after this slot.
        slot: Slot,
        /// Which chunk.
        id: u64,
    },
    /// Have the service begin to restore the state of a checkpoint, or go on; answered by [`Input::Restoring`].
    RestoreBegin {
        /// The state after this slot.
        slot: Slot,
        /// Its root.
        digest: Digest,
    },
    /// Have the service verify a chunk and keep it; answered by [`Input::Restoring`].
    RestoreChunk {
        /// Which one.
        id: u64,
        /// What was sent for it.
        bytes: Bytes,
    },
    /// Have the service make the restored state its own, durably, with this beside it; answered by [`Input::Restored`].
    RestoreActivate(Checkpoint),
    /// Ask the service without changing it; answered by [`Input::Queried`].
    Query {
        /// Names the answer.
        token: u64,
        /// For the service.
        operation: Bytes,
    },
    /// Send a certified reply to a client. May be lost; the client asks again.
    Reply(Reply),
    /// Send the answer to a fast read to a client.
    Answer {
        /// What the MAC covers.
        answer: QueryAnswer,
        /// The result.
        result: Bytes,
        /// This twin's MAC for the client.
        mac: Mac,
    },
    /// Tell a client why its request goes nowhere.
    Refuse {
        /// Whom.
        client: ClientId,
        /// Which request.
        seq: Seq,
        /// Why.
        reason: Refusal,
    },
    /// Tell a client why its fast read goes nowhere; it falls back to an ordered read.
    RefuseQuery {
        /// Whom.
        client: ClientId,
        /// Which query.
        nonce: Nonce,
        /// Why.
        reason: Refusal,
    },
    /// Propose to drop the log below `position`; everything that is still needed is in `state` (protocol.md 2).
    Trim {
        /// A multiple of `k`.
        position: Position,
        /// The host automaton's state there.
        state: Bytes,
    },
    /// Record what was seen (protocol.md 9).
    Evidence(Event),
}

/// How long a lazy post may wait, in microseconds.
pub const LAZY_POST_US: u64 = 1_000;

/// What a checkpoint holds besides the service's state (protocol.md 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The slot.
    pub slot: Slot,
    /// `h_n`.
    pub history: Digest,
    /// The slot's timestamp.
    pub timestamp_us: u64,
    /// The session table after the slot.
    pub sessions: SessionImage,
}

/// A batch for the service.
#[derive(Clone, Debug)]
pub struct Execute {
    /// The slot.
    pub slot: Slot,
    /// The agreed time, microseconds since the Unix epoch.
    pub timestamp_us: u64,
    /// `h_n`: the agreed seed.
    pub seed: Digest,
    /// The requests to execute, in order; those that are no-ops are already left out.
    pub requests: Vec<Request>,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key is not in `cluster.toml`.
    #[error("this client key is not in cluster.toml; have it added on every host")]
    UnknownClient,
    /// The MAC for this twin is wrong.
    #[error("the request's MAC is wrong for this twin; check the client's key file and key_epoch")]
    BadMac,
    /// The operation is larger than `request_bytes_max`.
    #[error("the operation is larger than request_bytes_max of cluster.toml")]
    TooLarge,
    /// The number is beyond the session's window.
    #[error("the request's number is outside the session's window; wait for earlier answers")]
    OutsideWindow,
    /// Too many requests wait.
    #[error("too many requests wait for a slot; try again later")]
    Busy,
    /// The session was forgotten, or is older than one that was.
    #[error("the session is too old; start a new one")]
    SessionExpired,
    /// The request was executed, but its result is no longer kept.
    #[error("the request was executed; its result is no longer kept")]
    ResultDiscarded,
    /// This replica cannot answer now.
    #[error("this replica is recovering")]
    Recovering,
}

/// Effects in the order in which they were decided.
#[derive(Debug, Default)]
pub struct Effects(pub Vec<Effect>);

impl Effects {
    /// Adds one.
    pub fn push(&mut self, effect: Effect) {
        self.0.push(effect);
    }

    /// An urgent post.
    pub fn post(&mut self, entry: Entry) {
        self.push(Effect::Post { entry, lazy: false });
    }

    /// A post that may wait for the next urgent one.
    pub fn post_lazy(&mut self, entry: Entry) {
        self.push(Effect::Post { entry, lazy: true });
    }

    /// Takes all out.
    pub fn drain(&mut self) -> impl Iterator<Item = Effect> + '_ {
        self.0.drain(..)
    }
}
