//! What the twins see of faults: events for operators (protocol.md 9).

use twinbft_types::{Digest, HostId, Slot, TwinId};

/// One observed fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The host it was seen on.
    pub host: HostId,
    /// The twin that it is about, when that is known.
    pub twin: Option<TwinId>,
    /// The slot, when there is one.
    pub slot: Option<Slot>,
    /// What was seen.
    pub kind: EventKind,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Two twins disagree about the results of a slot with equal history.
    Divergence {
        /// Of which output.
        output: Output,
        /// This twin's digest.
        ours: Digest,
        /// The sibling's digest.
        theirs: Digest,
    },
    /// `Q` hosts agree on a slot's results and exactly this twin does not.
    Culprit {
        /// What `Q` hosts agree on.
        agreed: Digest,
        /// What the twin said.
        said: Digest,
    },
    /// A divergence in which no twin matches what `Q` hosts agree on.
    NotDeterministic {
        /// What `Q` hosts agree on.
        agreed: Digest,
    },
    /// A sibling stopped posting.
    Mute,
    /// `q` twins have voted to ignore this one.
    Quarantined,
    /// `q` twins listen to it again.
    Readmitted,
    /// The host goes on from what its disks hold, because an operator has ordered it (protocol.md 8); up to this slot.
    ByOrder,
    /// An entry that no correct twin would post, whatever it received.
    Invalid {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A client's request that failed at a follower though the leader posted its body.
    BadClient {
        /// The number of the client's key.
        client_key: u32,
    },
}

/// What twins compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// RESULT.
    Results,
    /// CHECKPOINT.
    Checkpoint,
}

impl EventKind {
    /// The name that operators and metrics see.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Divergence { .. } => "divergence",
            Self::Culprit { .. } => "culprit",
            Self::NotDeterministic { .. } => "not-deterministic",
            Self::Mute => "mute",
            Self::Quarantined => "quarantined",
            Self::Readmitted => "readmitted",
            Self::ByOrder => "by-order",
            Self::Invalid { .. } => "invalid",
            Self::BadClient { .. } => "bad-client",
        }
    }
}
