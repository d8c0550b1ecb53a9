//! Invariants 6 and 7: whoever is named is Byzantine, and no host with only correct twins reports a divergence.

use std::collections::BTreeSet;

use twinbft_core::audit::Finding;
use twinbft_core::{Event, EventKind};
use twinbft_types::{HostId, ReplicaId};

use super::{Violation, violation};

/// `event` was reported by a correct twin; `byzantine` are those that deviate.
pub fn check_event(event: &Event, byzantine: &BTreeSet<ReplicaId>) -> Result<(), Violation> {
    let named = event.twin.map(|twin| ReplicaId {
        host: event.host,
        twin,
    });
    let host_is_correct = byzantine.iter().all(|r| r.host != event.host);
    let innocent = named.filter(|named| !byzantine.contains(named));
    match &event.kind {
        EventKind::Culprit { .. } | EventKind::Invalid { .. } | EventKind::Quarantined => {
            match innocent {
                Some(named) => Err(violation(6, format!("{named} was named: {event:?}"))),
                None => Ok(()),
            }
        }
        // Two liars can be the first to be compared.
        EventKind::NotDeterministic { .. }
            if byzantine.iter().filter(|r| r.host == event.host).count() < 2 =>
        {
            Err(violation(
                6,
                format!("the service is deterministic: {event:?}"),
            ))
        }
        EventKind::NotDeterministic { .. } => Ok(()),
        EventKind::Divergence { .. } if host_is_correct => Err(violation(
            7,
            format!("a divergence of correct twins: {event:?}"),
        )),
        EventKind::Divergence { .. }
        | EventKind::Mute
        | EventKind::Readmitted
        | EventKind::ByOrder
        | EventKind::BadClient { .. } => Ok(()),
    }
}

/// What an audit of a host's log says; answers with whom it names.
pub fn check_audit(
    host: HostId,
    found: &[Finding],
    byzantine: &BTreeSet<ReplicaId>,
) -> Result<Vec<ReplicaId>, Violation> {
    let mut named = Vec::new();
    for finding in found.iter().filter(|finding| finding.names_twin()) {
        let twin = ReplicaId {
            host,
            twin: finding.twin,
        };
        if !byzantine.contains(&twin) {
            return Err(violation(6, format!("an audit named {twin}: {finding:?}")));
        }
        named.push(twin);
    }
    Ok(named)
}
