//! The release rule (protocol.md 3), read off the log: a SIGN stands behind the entries that make its statement a
//! decision of the host.

use twinbft_types::{Authenticator, HostId, Shape, Statement, TwinId};

use super::What;
use super::facts::Facts;
use crate::hostlog::HostLog;

/// What is wrong with a SIGN at the end of the log.
pub(super) fn judge(
    facts: &Facts,
    log: &HostLog,
    (shape, host): (Shape, HostId),
    sender: TwinId,
    statement: &Statement,
    authenticator: &Authenticator,
) -> Option<What> {
    let wrong = |problem| {
        Some(What::Contradiction {
            problem,
            earlier: None,
        })
    };
    if authenticator.twin != sender {
        return wrong("a signature in another twin's name");
    }
    if authenticator.macs.len() != shape.receivers(host).count() {
        return wrong("a signature without one MAC for each receiver");
    }
    if is_undecided(facts, log, statement) {
        return wrong("a signature on what the log had not decided");
    }
    None
}

/// Whether the log shows that this was not decided; `false` where that is not known.
fn is_undecided(facts: &Facts, log: &HostLog, statement: &Statement) -> bool {
    let start = facts.start;
    // A new epoch says nothing of what its twins decided in the one before.
    if log.is_opening() {
        return false;
    }
    match statement {
        Statement::Order {
            view,
            slot,
            history,
        } => {
            start.is_after(*view, *slot)
                && facts.knows(*slot)
                && !facts.has_ordered(*view, *slot, *history)
        }
        Statement::Checkpoint { slot, digest } => {
            *slot > start.accepted && facts.knows(*slot) && !facts.has_checkpoint(*slot, *digest)
        }
        Statement::SlotResult {
            slot,
            history,
            results,
        } => {
            *slot > start.accepted
                && facts.knows(*slot)
                && !facts.has_results(*slot, *history, *results)
                && log.slot_result(*slot) != Some((*history, *results))
        }
        Statement::Heartbeat {
            view,
            count,
            slot,
            history,
        } => {
            (*view, *count) > (start.installed, start.beat)
                && facts.has_beat(*view, *count, (*slot, *history)) == Some(false)
        }
        Statement::ViewChange { view, .. } => {
            *view > start.fenced_to && facts.has_view(statement) == Some(false)
        }
        Statement::NewView { view, .. } => {
            *view > start.installed && facts.has_view(statement) == Some(false)
        }
        // A twin joins a sibling's ACK of any slot that it holds and its host has passed, and the ACK of a HEARTBEAT names
        // the slot of its sender's: this log does not show every one of them. FORWARD and WISH may be
        // repeated long after their decision. The others are no SIGN, or part of recovery (8).
        Statement::Ack { .. }
        | Statement::Reply { .. }
        | Statement::Forward { .. }
        | Statement::Wish { .. }
        | Statement::Committed { .. }
        | Statement::Recovery { .. }
        | Statement::RecoveryAnswer { .. }
        | Statement::Report { .. } => false,
    }
}
