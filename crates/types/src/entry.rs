//! What twins append to their host's postbox (protocol.md 2 to 9). Senders and positions are stamped by the
//! broker and stand outside.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::digest::Digest;
use crate::ids::{Attempt, ClientId, HostId, Incarnation, Position, Seq, Slot, TwinId, View};
use crate::keys::Mac;
use crate::request::{RequestRef, SignedRequest};
use crate::statement::{Authenticator, Certificate, Statement};
use crate::wire::OrderMessage;

/// The digest and the client's MAC of one result: one twin's part of a REPLY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ResultMac {
    /// SHA-256 of the result.
    pub digest: Digest,
    /// The twin's MAC over the REPLY, for the client.
    pub mac: Mac,
}

/// What a host brings along into a new epoch of its log (protocol.md 8, HELLO).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct HelloState {
    /// The highest LEAVE that this twin has posted.
    pub leave: View,
    /// The view that the host last installed.
    pub last_normal: View,
    /// The last accepted slot.
    pub accepted: Slot,
    /// Its history.
    pub history: Digest,
    /// The highest incarnation of every host that this twin's PEERs name, its own among them.
    pub incarnations: Vec<Incarnation>,
}

/// One entry of a postbox log.
///
/// Borsh's tag byte of each variant is part of the format: new variants go to the end.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Entry {
    /// The leader orders a batch (4.2). The batch digest `d` follows from `requests`.
    Propose {
        /// The view.
        view: View,
        /// The slot.
        slot: Slot,
        /// Grows with each proposal for this slot in this view.
        attempt: Attempt,
        /// `h_{n−1}`.
        previous: Digest,
        /// Microseconds since the Unix epoch.
        timestamp_us: u64,
        /// The batch.
        requests: Vec<RequestRef>,
    },
    /// A follower's vote for a candidate (4.3). Carries its signature on the ORDER for `m = q` only (3).
    Endorse {
        /// The view.
        view: View,
        /// The slot.
        slot: Slot,
        /// The candidate.
        attempt: Attempt,
        /// `h_n`.
        history: Digest,
        /// The signature on ORDER(view, slot, history).
        signature: Option<Authenticator>,
    },
    /// A follower's vote against a candidate (4.3).
    Nack {
        /// The view.
        view: View,
        /// The slot.
        slot: Slot,
        /// The candidate.
        attempt: Attempt,
        /// `h_n`.
        history: Digest,
        /// The requests whose leader's BODY fails; none for a late timestamp.
        requests: Vec<RequestRef>,
    },
    /// The leader voids a candidate and all that is chained on it (4.3).
    Withdraw {
        /// The view.
        view: View,
        /// The slot.
        slot: Slot,
        /// The candidate.
        attempt: Attempt,
    },
    /// A twin lacks the body of a request (4.3).
    Need {
        /// The request.
        digest: Digest,
    },
    /// A body for those who need it (4.3).
    Body {
        /// The request and its client's MACs.
        request: SignedRequest,
    },
    /// This twin holds an authentic copy of a request (4.3).
    Have {
        /// The request.
        request: RequestRef,
    },
    /// A signature on a decision (3, 4.4).
    Sign {
        /// What the host decided.
        statement: Statement,
        /// The signature.
        authenticator: Authenticator,
    },
    /// A backup twin takes a slot over (4.5).
    Accept {
        /// The view.
        view: View,
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
    },
    /// The results of one slot (4.8).
    Results {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
        /// Only when executed tentatively.
        view: Option<View>,
        /// For each request of the batch, in its order.
        results: Vec<ResultMac>,
    },
    /// A result from the session table, for a retransmission (4.8).
    ResultAgain {
        /// Whose request.
        client: ClientId,
        /// Which request.
        seq: Seq,
        /// Where it was executed.
        slot: Slot,
        /// The history there.
        history: Digest,
        /// Only when executed tentatively.
        view: Option<View>,
        /// The result.
        result: ResultMac,
    },
    /// This twin's digest of the state after `slot` (5).
    Checkpoint {
        /// The slot.
        slot: Slot,
        /// The digest.
        digest: Digest,
    },
    /// An authentic, in-window retransmission that this twin has not executed (6).
    Retransmission {
        /// The request.
        request: RequestRef,
    },
    /// This twin wishes to go to `view` (6); its current view takes the wish back.
    Suspect {
        /// The view.
        view: View,
    },
    /// This twin leaves all views below `view` (6).
    Leave {
        /// The view.
        view: View,
        /// WISHes of `Q` hosts or a NEW-VIEW.
        certificates: Vec<Certificate>,
    },
    /// The leader of a new view proposes its log (6).
    NvPropose {
        /// The view.
        view: View,
        /// The VIEW-CHANGEs it rests on.
        hosts: Vec<(HostId, Digest)>,
        /// The chosen log's end.
        slot: Slot,
        /// Its history.
        history: Digest,
    },
    /// A sibling's vote for an NV-PROPOSE (6). Never carries a signature.
    NvEndorse {
        /// The view.
        view: View,
        /// Where the NV-PROPOSE stands in the log.
        proposal: Position,
    },
    /// A twin of another host takes the chosen log of `view` over (6).
    NvAccept {
        /// The view.
        view: View,
        /// The chosen log's end.
        slot: Slot,
        /// Its history.
        history: Digest,
    },
    /// This twin knows `slot` committed and holds it durably (5).
    Jump {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
    },
    /// The leader is alive (6).
    Beat {
        /// The view.
        view: View,
        /// Grows with each.
        count: u64,
    },
    /// Another host has taken an incarnation (8).
    Peer {
        /// The host.
        host: HostId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// The nonce of its question.
        nonce: Digest,
    },
    /// What this twin remembers, in a new epoch (8).
    Hello {
        /// The memory.
        state: HelloState,
    },
    /// This twin has lost its memory (8).
    Amnesia {
        /// Part of the host's nonce.
        nonce: Digest,
    },
    /// This twin votes to ignore a sibling (9).
    Quarantine {
        /// The sibling.
        twin: TwinId,
    },
    /// This twin votes to listen to a sibling again (9).
    Readmit {
        /// The sibling.
        twin: TwinId,
    },
    /// A certificate passed on to siblings (3).
    Relay {
        /// The certificate.
        certificate: Certificate,
    },
    /// An ORDER certificate with its batch, passed on to siblings (3).
    RelayOrder {
        /// The order.
        order: OrderMessage,
    },
}

impl Entry {
    /// The slot that the entry is about.
    #[must_use]
    pub const fn slot(&self) -> Option<Slot> {
        match self {
            Self::Propose { slot, .. }
            | Self::Endorse { slot, .. }
            | Self::Nack { slot, .. }
            | Self::Withdraw { slot, .. }
            | Self::Accept { slot, .. }
            | Self::Results { slot, .. }
            | Self::ResultAgain { slot, .. }
            | Self::Checkpoint { slot, .. }
            | Self::NvPropose { slot, .. }
            | Self::NvAccept { slot, .. }
            | Self::Jump { slot, .. } => Some(*slot),
            Self::Sign { statement, .. } => statement.slot(),
            Self::Need { .. }
            | Self::Body { .. }
            | Self::Have { .. }
            | Self::Retransmission { .. }
            | Self::Suspect { .. }
            | Self::Leave { .. }
            | Self::NvEndorse { .. }
            | Self::Beat { .. }
            | Self::Peer { .. }
            | Self::Hello { .. }
            | Self::Amnesia { .. }
            | Self::Quarantine { .. }
            | Self::Readmit { .. }
            | Self::Relay { .. }
            | Self::RelayOrder { .. } => None,
        }
    }

    /// The name that operators and metrics see.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Propose { .. } => "PROPOSE",
            Self::Endorse { .. } => "ENDORSE",
            Self::Nack { .. } => "NACK",
            Self::Withdraw { .. } => "WITHDRAW",
            Self::Need { .. } => "NEED",
            Self::Body { .. } => "BODY",
            Self::Have { .. } => "HAVE",
            Self::Sign { .. } => "SIGN",
            Self::Accept { .. } => "ACCEPT",
            Self::Results { .. } => "RESULT",
            Self::ResultAgain { .. } => "RESULT-AGAIN",
            Self::Checkpoint { .. } => "CHECKPOINT",
            Self::Retransmission { .. } => "RETRANSMISSION",
            Self::Suspect { .. } => "SUSPECT",
            Self::Leave { .. } => "LEAVE",
            Self::NvPropose { .. } => "NV-PROPOSE",
            Self::NvEndorse { .. } => "NV-ENDORSE",
            Self::NvAccept { .. } => "NV-ACCEPT",
            Self::Jump { .. } => "JUMP",
            Self::Beat { .. } => "BEAT",
            Self::Peer { .. } => "PEER",
            Self::Hello { .. } => "HELLO",
            Self::Amnesia { .. } => "AMNESIA",
            Self::Quarantine { .. } => "QUARANTINE",
            Self::Readmit { .. } => "READMIT",
            Self::Relay { .. } => "RELAY",
            Self::RelayOrder { .. } => "RELAY-ORDER",
        }
    }
}
