//! Statements of hosts, authenticators and certificates (protocol.md 3).

use borsh::{BorshDeserialize, BorshSerialize};

use crate::digest::Digest;
use crate::ids::{ClientId, Epoch, HostId, Incarnation, Position, Seq, Slot, TwinId, View};
use crate::keys::Mac;

/// A message of a host: what its twins decided together, by its log alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum Statement {
    /// The primary host decided slot `slot` (4.4).
    Order {
        /// The view.
        view: View,
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
    },
    /// This host has accepted everything up to `slot` in `view` (4.6). Cumulative.
    Ack {
        /// The view.
        view: View,
        /// The last accepted slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
        /// The count of the HEARTBEAT that this answers.
        beat: Option<u64>,
    },
    /// The result of one request (4.8).
    Reply {
        /// Only when executed tentatively.
        view: Option<View>,
        /// Where it was executed.
        slot: Slot,
        /// Whose request.
        client: ClientId,
        /// Which request.
        seq: Seq,
        /// SHA-256 of the result.
        result: Digest,
    },
    /// An authentic request that this host waits for (6).
    Forward {
        /// Whose request.
        client: ClientId,
        /// Which request.
        seq: Seq,
        /// Its digest.
        digest: Digest,
    },
    /// The digest of the state after `slot` (5).
    Checkpoint {
        /// The slot.
        slot: Slot,
        /// The root of the state's tree.
        digest: Digest,
    },
    /// The primary is alive (6).
    Heartbeat {
        /// The view.
        view: View,
        /// Grows with each.
        count: u64,
        /// The last decided slot.
        slot: Slot,
        /// Its history.
        history: Digest,
    },
    /// This host wishes to leave all views below `view` (6). Only the newest of a host counts.
    Wish {
        /// The view wished for.
        view: View,
        /// Orders wishes of one host: by incarnation (in [`Signed`]), epoch, position.
        epoch: Epoch,
        /// The entry that fixed it.
        position: Position,
    },
    /// What this host had accepted when it left the views below `view` (6).
    ViewChange {
        /// The view it goes to.
        view: View,
        /// The view that it last installed.
        last_normal: View,
        /// The last accepted slot.
        accepted: Slot,
        /// `h_{n_acc}`.
        history: Digest,
        /// The incarnation of every host, as this host's PEER entries show it.
        incarnations: Vec<Incarnation>,
    },
    /// The log with which `view` begins (6).
    NewView {
        /// The view.
        view: View,
        /// The chosen log's end.
        slot: Slot,
        /// Its history.
        history: Digest,
        /// The VIEW-CHANGEs that it was chosen from, by host and digest.
        hosts: Vec<(HostId, Digest)>,
    },
    /// `slot` is committed (5).
    Committed {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
    },
    /// All results of one slot (9).
    SlotResult {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
        /// [`crate::results_digest`] of the result digests of the slot.
        results: Digest,
    },
    /// A host that lost its memory asks for its promises (8).
    Recovery {
        /// The incarnation that it takes.
        incarnation: Incarnation,
        /// Made of `q` twins' nonces.
        nonce: Digest,
    },
    /// The answer to a RECOVERY (8).
    RecoveryAnswer {
        /// Who asked.
        to: HostId,
        /// The question's incarnation.
        incarnation: Incarnation,
        /// The question's nonce.
        nonce: Digest,
        /// The installed view.
        view: View,
        /// The last accepted slot.
        accepted: Slot,
        /// Its history.
        history: Digest,
        /// The incarnation of every host, as the answering host's PEER entries show it.
        incarnations: Vec<Incarnation>,
    },
    /// The highest incarnation of a host that this host's PEER entries show, for that host, which may have forgotten (8).
    Report {
        /// Of whom, and to whom.
        of: HostId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// The question's nonce.
        nonce: Digest,
    },
}

impl Statement {
    /// The slot that a statement is about.
    #[must_use]
    pub const fn slot(&self) -> Option<Slot> {
        match self {
            Self::Order { slot, .. }
            | Self::Ack { slot, .. }
            | Self::Reply { slot, .. }
            | Self::Checkpoint { slot, .. }
            | Self::Heartbeat { slot, .. }
            | Self::NewView { slot, .. }
            | Self::Committed { slot, .. }
            | Self::SlotResult { slot, .. } => Some(*slot),
            Self::ViewChange { accepted, .. } | Self::RecoveryAnswer { accepted, .. } => {
                Some(*accepted)
            }
            Self::Forward { .. }
            | Self::Wish { .. }
            | Self::Recovery { .. }
            | Self::Report { .. } => None,
        }
    }
}

/// A statement as its authenticators cover it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Signed {
    /// Whose statement.
    pub host: HostId,
    /// The host's incarnation (8).
    pub incarnation: Incarnation,
    /// The statement.
    pub statement: Statement,
}

impl Signed {
    /// What the MACs are over.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_canonical(b"tbft/stm", self)
    }
}

/// One twin's MACs over a statement of its host.
///
/// For a statement to hosts: one MAC for each twin of each *other* host, ascending by host, then twin
/// ([`crate::Shape::receiver_index`]). For a REPLY: one, for the client.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Authenticator {
    /// Who signs.
    pub twin: TwinId,
    /// The MACs.
    pub macs: Vec<Mac>,
}

/// A statement with the authenticators of its host's twins, as received: nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Certificate {
    /// The statement.
    pub signed: Signed,
    /// Of distinct twins, at least `q` of them when it is valid.
    pub authenticators: Vec<Authenticator>,
}

/// What SLOT-RESULT compares: the digest of the list of a slot's result digests.
#[must_use]
pub fn results_digest(results: &[Digest]) -> Digest {
    Digest::of_canonical(b"tbft/res", results)
}
