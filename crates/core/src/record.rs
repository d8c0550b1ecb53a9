//! What a twin must not forget: the records of its write-ahead log (protocol.md 3, durability rule).

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{Certificate, Digest, Entry, Epoch, Request, Slot, View};

/// Certificates about checkpoints that are kept of one host; its lowest gives way.
pub const PROOFS_OF_A_HOST_MAX: usize = 4;

/// The last stable checkpoint of a write-ahead log, or genesis. With one host a start stands there, when its service still has
/// that state: what this twin alone has made above it does not help a sibling that has lost its disk (protocol.md 8, row 2),
/// and is made again from the slots, which are kept from here on.
#[must_use]
pub fn last_stable(records: &[Record]) -> Slot {
    let stable = records.iter().filter_map(|record| match record {
        Record::Stable { slot, .. } => Some(*slot),
        Record::Promise(_)
        | Record::Slot { .. }
        | Record::Joined { .. }
        | Record::Installed { .. }
        | Record::Forgotten { .. }
        | Record::Proof(_) => None,
    });
    stable.max().unwrap_or_default()
}

/// One record of a twin's write-ahead log.
///
/// Borsh's tag byte of each variant is part of the format: new variants go to the end.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Record {
    /// A promise that is about to be revealed: an ENDORSE, ACCEPT, NV-ACCEPT, JUMP, PEER, QUARANTINE,
    /// LEAVE, CHECKPOINT, or a SIGN of ORDER or NEW-VIEW.
    Promise(Entry),
    /// A slot that a promise rests on.
    Slot {
        /// The slot.
        slot: Slot,
        /// `h_{n−1}`.
        previous: Digest,
        /// The batch's timestamp.
        timestamp_us: u64,
        /// The batch.
        bodies: Vec<Request>,
        /// The ORDER certificate, where this twin has one.
        certificate: Option<Certificate>,
    },
    /// A stable checkpoint: everything up to it may be trimmed.
    Stable {
        /// The slot.
        slot: Slot,
        /// Its digest.
        digest: Digest,
    },
    /// This twin has taken part in the postbox log of this epoch, so that what it promised there is in this log.
    Joined {
        /// The epoch.
        epoch: Epoch,
    },
    /// The host has installed a view with this log: where a HELLO begins (protocol.md 8).
    Installed {
        /// The view.
        view: View,
        /// Its log's end.
        slot: Slot,
        /// Its history.
        history: Digest,
    },
    /// In this epoch the host has begun without a memory (protocol.md 8, last row): once the epoch is joined, promises and
    /// installs before this record are void. Until then they are all that there is: an operator may order to believe them.
    /// Slots stay: their hash chain verifies them.
    Forgotten {
        /// The epoch.
        epoch: Epoch,
    },
    /// A host's CHECKPOINT, this one's own included, of the last stable checkpoint or a later one (protocol.md 5). Should this
    /// host's log be lost, what the others had certified is nowhere else here, and who lags may need it to have `Q`.
    Proof(Certificate),
}
