//! One event, as operators and programs see it.

use serde::{Deserialize, Serialize};
use twinbft_core::{Event, EventKind, Output};
use twinbft_types::ReplicaId;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since the Unix epoch, by the clock of whoever saw it.
    pub time_us: u64,
    /// Who saw it, as in `h1/t0`.
    pub seen_by: String,
    /// The host it was seen on.
    pub host: u8,
    /// The twin that it is about, when that is known.
    pub twin: Option<u8>,
    /// The slot, when there is one.
    pub slot: Option<u64>,
    /// `divergence`, `culprit`, …: [`EventKind::name`].
    pub kind: String,
    /// What the kind does not say.
    pub detail: Option<String>,
    /// This side's digest; of a culprit, what `Q` hosts agree on.
    pub ours: Option<String>,
    /// The other side's digest; of a culprit, what the twin said.
    pub theirs: Option<String>,
    /// The number of this event among those of its kind, twin and detail that the same replica has seen.
    pub count: u64,
}

impl Record {
    /// What `me` saw at `time_us`, microseconds since the Unix epoch. The first of its kind, until somebody counts.
    #[must_use]
    pub fn new(me: ReplicaId, event: &Event, time_us: u64) -> Self {
        let (detail, ours, theirs) = digests(&event.kind);
        Self {
            time_us,
            seen_by: me.to_string(),
            host: event.host.0,
            twin: event.twin.map(|twin| twin.0),
            slot: event.slot.map(|slot| slot.0),
            kind: event.kind.name().to_owned(),
            detail,
            ours,
            theirs,
            count: 1,
        }
    }

    /// Whether both tell of the same thing, at whatever time it was seen.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let told = |record: &Self| {
            let Self {
                time_us: _,
                count: _,
                seen_by,
                host,
                twin,
                slot,
                kind,
                detail,
                ours,
                theirs,
            } = record.clone();
            (seen_by, host, twin, slot, kind, detail, ours, theirs)
        };
        told(self) == told(other)
    }
}

/// What an event says besides its place: a detail, this side's digest, the other side's.
fn digests(kind: &EventKind) -> (Option<String>, Option<String>, Option<String>) {
    match kind {
        EventKind::Divergence {
            output,
            ours,
            theirs,
        } => {
            let what = match output {
                Output::Results => "results",
                Output::Checkpoint => "checkpoint",
            };
            (
                Some(what.to_owned()),
                Some(ours.to_string()),
                Some(theirs.to_string()),
            )
        }
        EventKind::Culprit { agreed, said } => (
            Some("the hosts agree on the first digest, the twin said the second".to_owned()),
            Some(agreed.to_string()),
            Some(said.to_string()),
        ),
        EventKind::NotDeterministic { agreed } => (
            Some("no twin matches what the hosts agree on: service not deterministic?".to_owned()),
            Some(agreed.to_string()),
            None,
        ),
        EventKind::Mute | EventKind::Quarantined | EventKind::Readmitted => (None, None, None),
        EventKind::ByOrder => (
            Some(
                "an operator ordered the host to go on from what its disks hold; recover.log says who and why"
                    .to_owned(),
            ),
            None,
            None,
        ),
        EventKind::Invalid { problem } => (Some((*problem).to_owned()), None, None),
        EventKind::BadClient { client_key } => {
            (Some(format!("client key {client_key}")), None, None)
        }
    }
}
