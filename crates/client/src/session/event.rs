//! What a session reports.

use bytes::Bytes;
use twinbft_types::wire::pb::RefusalReason;
use twinbft_types::{Nonce, Seq, Slot};

/// Something that has happened to a request or a fast read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `Q` hosts certified this result (protocol.md 4.9).
    Completed {
        /// Which request.
        seq: Seq,
        /// Where it was executed.
        slot: Slot,
        /// What the service said. It may share the memory of the message that it came in.
        result: Bytes,
        /// Length of the longest chain of network messages, the request itself included, that the accepted quorum
        /// rests on; `None` when the request was sent more than once, or to all hosts at once, because then nobody
        /// can tell which copy it was.
        ///
        /// Messages carry no hop count, so this is derived from who was asked and who answered. The request went to
        /// the twins of one host alone, so that host ordered it. It is the primary `p`. A reply of a backup then rests
        /// on client → p → backup → client: 3 steps, and on one more where a backup cannot know the commit by itself
        /// (`Q > 2` and execution "committed", 4.6). A reply of `p` rests on a backup's ACK, client → p → backup → p
        /// → client: 4 steps, or on nothing but itself when execution is tentative or `N = 1`: 2 steps.
        steps: Option<u8>,
        /// Hosts whose certified replies made the quorum, one bit each.
        hosts: u32,
    },
    /// The request will not be answered in this session. Unless the reason says otherwise, nobody knows whether it
    /// was or will be executed.
    Failed {
        /// Which request.
        seq: Seq,
        /// Why.
        reason: FailReason,
    },
    /// `Q` hosts agree on a fast read (protocol.md 7).
    QueryCompleted {
        /// Which one.
        nonce: Nonce,
        /// The slot of the last write to what was read.
        version: u64,
        /// What was read.
        result: Bytes,
    },
    /// A fast read found no agreement: an ordered read is needed.
    QueryFallBack {
        /// Which one.
        nonce: Nonce,
        /// Why.
        reason: FallBackReason,
    },
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailReason {
    /// `q` twins of each of `Q` hosts refused it with this reason.
    Refused(RefusalReason),
    /// Another request was refused with this reason, and that closed the session.
    SessionClosed(RefusalReason),
}

/// Why a fast read falls back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallBackReason {
    /// The answers differ so that no further one can make `Q` hosts agree.
    NoAgreement,
    /// Too few answers in time.
    TimedOut,
}

/// A request that was not taken on. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// `W` requests are outstanding, counted from the lowest one without an answer.
    #[error(
        "the session's window is full: request {lowest_unanswered} is not answered yet; wait for it"
    )]
    WindowFull {
        /// The request that holds the window.
        lowest_unanswered: Seq,
    },
    /// As many fast reads are open as the session may have.
    #[error("{open} fast reads are open, which is the most that a session may have; wait for one")]
    TooManyQueries {
        /// How many.
        open: usize,
    },
    /// The operation is over the limit.
    #[error(
        "the operation has {bytes} bytes, and request_bytes_max of cluster.toml allows {bytes_max}"
    )]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// The replicas have refused this session for good.
    #[error("the replicas refuse this session ({}); open a new one", reason.as_str_name())]
    Closed {
        /// What they said.
        reason: RefusalReason,
    },
}
