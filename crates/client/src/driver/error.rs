//! How a call can end without an answer.

use std::fmt;
use std::time::Duration;

use twinbft_types::wire::pb::RefusalReason;
use twinbft_types::{HostId, ReplicaId};

use super::target::TargetError;

/// Why a client has no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration does not stand.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Not one replica could be reached.
    #[error("no replica can be reached ({}); is the cluster up? `twinbft up` starts it", Unreachable(.0))]
    NobodyThere(Vec<(ReplicaId, String)>),
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// Too few hosts have certified an answer in time. The operation may have been executed, or be executed later.
    #[error("{0}")]
    TimedOut(Box<Unanswered>),
    /// `q` twins of each of `Q` hosts refuse.
    #[error("the replicas refuse the request: {}", explain_refusal(*.0))]
    Refused(RefusalReason),
    /// Another request of the session was refused, and that ended the session. The operation may have been executed.
    #[error("the session ended before the answer came: {}", explain_refusal(*.0))]
    SessionEnded(RefusalReason),
    /// Larger than the cluster takes. Nothing was sent.
    #[error(
        "the operation has {bytes} bytes, and request_bytes_max of cluster.toml allows {bytes_max}"
    )]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// Too many operations wait for room in the window. Nothing was sent.
    #[error(
        "{waiting} operations of this session wait already; wait for answers, or open more sessions"
    )]
    Overloaded {
        /// How many.
        waiting: usize,
    },
}

impl CallError {
    /// The error in a few words that are the same each time, to count it under.
    #[must_use]
    pub const fn summary(&self) -> &'static str {
        match self {
            Self::TimedOut(_) => "timed out",
            Self::Refused(reason) | Self::SessionEnded(reason) => explain_refusal(*reason),
            Self::TooLarge { .. } => "larger than request_bytes_max of cluster.toml",
            Self::Overloaded { .. } => "too many operations wait in one session",
        }
    }

    /// Whether it is certain that the operation was not and will not be executed.
    #[must_use]
    pub const fn is_without_effect(&self) -> bool {
        match self {
            Self::TooLarge { .. } | Self::Overloaded { .. } => true,
            Self::TimedOut(_) | Self::Refused(_) | Self::SessionEnded(_) => false,
        }
    }
}

/// How far an operation came that timed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// How long the caller waited.
    pub waited: Duration,
    /// Whether it was sent at all, or waited for room in the session's window.
    pub sent: bool,
    /// How many hosts must agree.
    pub hosts_needed: usize,
    /// Hosts that certified an answer.
    pub answered: Vec<HostId>,
    /// Hosts that did not.
    pub silent: Vec<HostId>,
    /// What single replicas said instead.
    pub refusals: Vec<(ReplicaId, RefusalReason)>,
    /// Replicas without a connection, and why.
    pub unreachable: Vec<(ReplicaId, String)>,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.waited.as_secs_f64();
        if !self.sent {
            return write!(
                f,
                "not sent within {seconds:.1} s: the session's window is full of requests without an answer"
            );
        }
        write!(
            f,
            "no certified answer within {seconds:.1} s: {} hosts must agree; answered: {}; silent: {}",
            self.hosts_needed,
            Hosts(&self.answered),
            Hosts(&self.silent),
        )?;
        if !self.unreachable.is_empty() {
            write!(f, "; unreachable: {}", Unreachable(&self.unreachable))?;
        }
        for (replica, reason) in &self.refusals {
            write!(f, "; {replica} refused: {}", explain_refusal(*reason))?;
        }
        f.write_str(". The operation may or may not take effect; read before you repeat it")
    }
}

struct Hosts<'a>(&'a [HostId]);

impl fmt::Display for Hosts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, host) in self.0.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

struct Unreachable<'a>(&'a [(ReplicaId, String)]);

impl fmt::Display for Unreachable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (replica, why)) in self.0.iter().enumerate() {
            write!(f, "{}{replica}: {why}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What a refusal means and what to do about it.
#[must_use]
pub const fn explain_refusal(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::Unspecified => "no reason given",
        RefusalReason::UnknownClient => {
            "this client key is not in cluster.toml; have it added on every host"
        }
        RefusalReason::BadMac => {
            "the MAC is wrong; compare the client's key file and key_epoch with cluster.toml"
        }
        RefusalReason::TooLarge => "the operation is larger than request_bytes_max of cluster.toml",
        RefusalReason::OutsideWindow => "the request is outside the session's window",
        RefusalReason::Busy => "too many requests wait; send more slowly",
        RefusalReason::SessionExpired => {
            "the session was forgotten, or too many sessions use this key; open a new one"
        }
        RefusalReason::ResultDiscarded => {
            "it was executed, and its result is no longer kept; read to see the state"
        }
        RefusalReason::Recovering => "the replica is recovering",
    }
}
