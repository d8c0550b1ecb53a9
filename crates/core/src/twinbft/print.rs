//! All of a replica's state as text: what a model checker tells states apart by.

use std::fmt::{Result, Write};

use super::Replica;

impl Replica {
    /// Writes everything that the next steps of this replica depend on besides its configuration, which never changes.
    /// Two replicas of one configuration that write the same behave the same. The form is nobody's contract.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_state(&self, to: &mut impl Write) -> Result {
        // All fields are named, so that a new one cannot be left out by oversight.
        let Self {
            config: _,
            decisions: _,
            now,
            log,
            slots,
            stable,
            sessions,
            pool,
            book,
            leader,
            voting,
            backup,
            commit,
            execution,
            replies,
            checkpoints,
            divergences,
            reads,
            views,
            suspicion,
            forwards,
            heartbeats,
            chain,
            catchup,
            transfer,
            serving,
            recovery,
            own,
            amnesia,
            peers,
            past,
            mutes,
            quarantine,
            vouching,
        } = self;
        write!(to, "{now:?}{log:?}{slots:?}{stable:?}{sessions:?}{pool:?}")?;
        write!(to, "{book:?}{leader:?}{voting:?}{backup:?}{commit:?}")?;
        write!(to, "{execution:?}{replies:?}{checkpoints:?}{divergences:?}")?;
        write!(to, "{reads:?}{views:?}{suspicion:?}{forwards:?}")?;
        write!(to, "{heartbeats:?}{chain:?}{catchup:?}{transfer:?}")?;
        write!(to, "{serving:?}{recovery:?}{own:?}{amnesia:?}{peers:?}")?;
        write!(to, "{past:?}{mutes:?}{quarantine:?}{vouching:?}")
    }
}
