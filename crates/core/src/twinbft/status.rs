//! What an operator sees of a replica.

use twinbft_types::{Incarnation, ReplicaId, Slot, View};

use super::{Replica, TransferProgress};

/// What this replica is in its view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Orders.
    Leader,
    /// Votes beside the leader.
    Follower,
    /// Accepts.
    Backup,
}

impl Role {
    /// The name that operators see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Backup => "backup",
        }
    }
}

/// A snapshot of a replica's state.
#[derive(Clone, Debug)]
pub struct Status {
    /// Who.
    pub replica: ReplicaId,
    /// What it does in its view.
    pub role: Role,
    /// `running`, `suspecting` (it wishes for another view), `changing-view` (the old one is left, the new one has not
    /// begun), `quarantined` (its siblings do not listen to it), `catching-up` (it fetches the log with which the view began) or `behind` (needs a state transfer).
    pub state: &'static str,
    /// The largest installed or fenced-to view.
    pub view: View,
    /// The last slot that its host has accepted; on the primary host, decided.
    pub accepted: Slot,
    /// The last slot that it knows to be committed.
    pub committed: Slot,
    /// The last executed slot.
    pub executed: Slot,
    /// The last stable checkpoint.
    pub stable: Slot,
    /// Results that `q` twins of its host agreed on.
    pub cross_checked: u64,
    /// Times that twins of its host disagreed.
    pub diverged: u64,
    /// Views that its host has installed since the process began.
    pub view_changes: u64,
    /// How often its host has come back without its memory (protocol.md 8).
    pub incarnation: Incarnation,
    /// What the disk remembered at the start, until it is over: `whole`, `unsure` (its last promises may be missing) or `lost`.
    pub memory: &'static str,
    /// How often slots that were executed tentatively were undone (protocol.md 4.7).
    pub undone: u64,
    /// Requests that wait for a slot here.
    pub pending: usize,
    /// How far the fetch of a checkpoint is, while there is one.
    pub transfer: Option<TransferProgress>,
    /// Checkpoints taken over from others since the start.
    pub transfers: u64,
    /// Checkpoints reached by batches that others had kept, since the start.
    pub bridges: u64,
    /// Twins of its host that are ignored (protocol.md 9).
    pub quarantined: Vec<twinbft_types::TwinId>,
}

impl Replica {
    /// A snapshot for operators and drivers.
    #[must_use]
    pub fn status(&self) -> Status {
        let shape = self.config.shape;
        let view = self.log.current_view();
        let me = self.config.me;
        let role = if shape.leader(view) == me {
            Role::Leader
        } else if shape.primary(view) == me.host {
            Role::Follower
        } else {
            Role::Backup
        };
        let transfer = self.transfer.progress();
        let state = if self.log.is_quarantined(me.twin) {
            "quarantined"
        } else if transfer.is_some() {
            "fetching-checkpoint"
        } else if self.transfer.bridge.is_under_way() {
            "catching-up"
        } else if let Some(state) = self.recovery.state() {
            state
        } else if self.log.live_view().is_none() {
            "changing-view"
        } else if self.behind().is_some() {
            "behind"
        } else if self.first_missing().is_some() {
            "catching-up"
        } else if self.suspicion.wished() > view {
            "suspecting"
        } else {
            "running"
        };
        Status {
            replica: me,
            role,
            state,
            view,
            accepted: self.log.accepted().0,
            committed: self.commit.committed(),
            executed: self.execution.executed(),
            stable: self.stable,
            cross_checked: self.replies.cross_checked(),
            diverged: self.divergences.total(),
            view_changes: self.views.changes(),
            incarnation: self.log.incarnation(me.host),
            memory: self.recovery.memory(),
            undone: self.execution.undone(),
            pending: self.pool.len(),
            transfer,
            transfers: self.transfer.done(),
            bridges: self.transfer.bridge.count(),
            quarantined: (shape.all_twins())
                .filter(|twin| self.log.is_quarantined(*twin))
                .collect(),
        }
    }

    /// The last slot that this replica knows to be committed.
    #[must_use]
    pub const fn committed(&self) -> Slot {
        self.commit.committed()
    }

    /// The view that a client should know: a hint for whom to ask.
    #[must_use]
    pub fn view_hint(&self) -> View {
        self.log.current_view()
    }

    /// The host's automaton, for oracles and audits.
    #[must_use]
    pub const fn host_log(&self) -> &crate::hostlog::HostLog {
        &self.log
    }

    /// `h_n` of a slot that this replica still holds.
    #[must_use]
    pub fn history_at(&self, slot: Slot) -> Option<twinbft_types::Digest> {
        self.history_of(slot)
    }
}
