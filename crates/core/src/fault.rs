//! The ways in which a peer, a client or a sibling can deviate. Each is counted and can be seen by an operator.

use twinbft_types::{HostId, ReplicaId};

/// Why an input was dropped. The node goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// A client key that `cluster.toml` does not know.
    #[error("client key {key} is not in cluster.toml")]
    UnknownClient {
        /// The key's number.
        key: u32,
    },
    /// A client's MAC for this twin is wrong.
    #[error("wrong MAC of client key {key} for this twin")]
    BadClientMac {
        /// The key's number.
        key: u32,
    },
    /// A request above the limit.
    #[error("request of {bytes} bytes from client key {key}, the limit is {limit}")]
    RequestTooLarge {
        /// The key's number.
        key: u32,
        /// Its size.
        bytes: usize,
        /// `request_bytes_max`.
        limit: usize,
    },
    /// A request whose number is outside its session's window.
    #[error("request outside the session window of client key {key}")]
    OutsideWindow {
        /// The key's number.
        key: u32,
    },
    /// A request of a session that was forgotten.
    #[error("request of an expired session of client key {key}")]
    SessionExpired {
        /// The key's number.
        key: u32,
    },
    /// More requests wait than may.
    #[error("too many requests wait for a slot")]
    Busy,
    /// Two different requests under one number.
    #[error("client key {key} gave two requests one number")]
    ConflictingRequest {
        /// The key's number.
        key: u32,
    },
    /// A certificate of this replica's own host, or of none.
    #[error("{from} sent a certificate of host {host}, which is ours or none")]
    WrongHost {
        /// Who sent it.
        from: ReplicaId,
        /// Whose it claims to be.
        host: HostId,
    },
    /// A certificate with an incarnation that is not the host's.
    #[error("{from} sent a certificate of another incarnation of its host")]
    WrongIncarnation {
        /// Who sent it.
        from: ReplicaId,
    },
    /// A certificate in which fewer than `q` twins' MACs verify here.
    #[error("{from} sent a certificate with {valid} valid signatures of {needed}")]
    TooFewSignatures {
        /// Who sent it.
        from: ReplicaId,
        /// How many verify.
        valid: usize,
        /// `q`.
        needed: usize,
    },
    /// An ORDER of a host that is not the primary of its view.
    #[error("{from} sent an ORDER of a host that is not the primary")]
    NotPrimary {
        /// Who sent it.
        from: ReplicaId,
    },
    /// An ORDER whose bodies and history do not belong together.
    #[error("{from} sent an ORDER whose history does not match its batch")]
    HistoryMismatch {
        /// Who sent it.
        from: ReplicaId,
    },
    /// A batch or operation above the limits.
    #[error("{from} sent a batch above the limits")]
    BatchTooLarge {
        /// Who sent it.
        from: ReplicaId,
    },
    /// A statement that a peer does not send in this way.
    #[error("{from} sent a {statement} where none is expected")]
    UnexpectedStatement {
        /// Who sent it.
        from: ReplicaId,
        /// Its name.
        statement: &'static str,
    },
    /// A question for more than the answer may hold.
    #[error("{from} asked for too many slots")]
    FetchTooLong {
        /// Who asked.
        from: ReplicaId,
    },
    /// A replica that is not of another host of this cluster.
    #[error("{from} is no peer of this replica")]
    NotAPeer {
        /// Who it claims to be.
        from: ReplicaId,
    },
    /// An entry of a sibling that does not decode.
    #[error("an entry of {from} does not decode: {problem}")]
    MalformedEntry {
        /// The sibling.
        from: ReplicaId,
        /// What is wrong.
        problem: String,
    },
    /// An entry that no correct twin would post, whatever it received (protocol.md 9).
    #[error("an entry of {from} is invalid: {problem}")]
    InvalidEntry {
        /// The sibling.
        from: ReplicaId,
        /// What is wrong.
        problem: &'static str,
    },
    /// More fast reads wait than may.
    #[error("too many fast reads wait")]
    TooManyQueries,
    /// More questions for chunks of a state wait than may.
    #[error("{from} asks for too many chunks at a time")]
    TooManyChunks {
        /// Who asked.
        from: ReplicaId,
    },
    /// A chunk of a state that is not what `Q` hosts certified.
    #[error("a chunk that {from} sent is wrong: {problem}")]
    BadChunk {
        /// Who sent it.
        from: ReplicaId,
        /// What is wrong.
        problem: &'static str,
    },
    /// A checkpoint of another configuration.
    #[error(
        "{from} offers a checkpoint of another configuration; compare cluster.toml of both hosts"
    )]
    OtherConfiguration {
        /// Who offered it.
        from: ReplicaId,
    },
    /// A certificate in the own write-ahead log that does not verify.
    #[error(
        "the write-ahead log holds a CHECKPOINT of host {host} that does not verify, and it is not used; unless a key or key_epoch has changed, check the disk"
    )]
    VoidProof {
        /// Whose it claims to be.
        host: HostId,
    },
}

impl PeerFault {
    /// The name under which it is counted.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::UnknownClient { .. } => "unknown_client",
            Self::BadClientMac { .. } => "bad_client_mac",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::OutsideWindow { .. } => "outside_window",
            Self::SessionExpired { .. } => "session_expired",
            Self::Busy => "busy",
            Self::ConflictingRequest { .. } => "conflicting_request",
            Self::WrongHost { .. } => "wrong_host",
            Self::WrongIncarnation { .. } => "wrong_incarnation",
            Self::TooFewSignatures { .. } => "too_few_signatures",
            Self::NotPrimary { .. } => "not_primary",
            Self::HistoryMismatch { .. } => "history_mismatch",
            Self::BatchTooLarge { .. } => "batch_too_large",
            Self::UnexpectedStatement { .. } => "unexpected_statement",
            Self::FetchTooLong { .. } => "fetch_too_long",
            Self::NotAPeer { .. } => "not_a_peer",
            Self::MalformedEntry { .. } => "malformed_entry",
            Self::InvalidEntry { .. } => "invalid_entry",
            Self::TooManyQueries => "too_many_queries",
            Self::TooManyChunks { .. } => "too_many_chunks",
            Self::BadChunk { .. } => "bad_chunk",
            Self::OtherConfiguration { .. } => "other_configuration",
            Self::VoidProof { .. } => "void_proof",
        }
    }
}
