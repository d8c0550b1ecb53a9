//! A whole host goes down: its postbox's log is lost, and what its twins' disks have kept decides how it comes back
//! (protocol.md 8, the last two rows).

use rand::RngExt;
use twinbft_core::Record;
use twinbft_core::audit::Auditor;
use twinbft_types::{Epoch, HostId, ReplicaId};

use super::{Disk, World};
use crate::oracles::{Violation, violation};
use crate::scenario::{Fault, HostLoss};

/// Where a host stands between its loss and its return.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    is_down: bool,
    /// Whether it may come back without a memory.
    forgets: bool,
}

/// The epoch that was joined last, by these records.
pub(super) fn joined(records: &[Record]) -> Option<Epoch> {
    records.iter().rev().find_map(|record| match record {
        Record::Joined { epoch } => Some(*epoch),
        Record::Promise(_)
        | Record::Slot { .. }
        | Record::Stable { .. }
        | Record::Forgotten { .. }
        | Record::Proof(_)
        | Record::Installed { .. } => None,
    })
}

impl World {
    fn twins_of(&self, host: HostId) -> impl Iterator<Item = ReplicaId> + use<> {
        let twins = self.scenario.shape.all_twins();
        twins.map(move |twin| ReplicaId { host, twin })
    }

    /// At most `f` hosts are without their memory at a time; a loss that would be one too many does not happen.
    pub(super) fn lose_host(&mut self, host: HostId, down_us: u64, what: HostLoss) {
        let index = usize::from(host.0);
        let forgets = what != HostLoss::Log
            || self.twins_of(host).any(|id| {
                let twin = &self.twins[self.index(id)];
                joined(&twin.disk.records[..twin.disk.synced]) != Some(self.epochs[index])
            });
        // Those that will be silent for good count, too: they are of the same `f`.
        let silent = |host: HostId| {
            let faults = self.scenario.faults.iter();
            let mut silences =
                faults.filter(|f| matches!(f, Fault::Silence { host: h, .. } if *h == host.0));
            silences.next().is_some()
        };
        let others = self.scenario.shape.all_hosts().filter(|h| *h != host);
        let without_memory = others
            .filter(|h| silent(*h) || self.is_without_memory(*h))
            .count();
        if self.hosts[index].is_down
            || (forgets && without_memory >= self.scenario.shape.host_faults())
        {
            return;
        }
        let now_us = self.now_us;
        self.tracer
            .line(|| format!("{now_us} {host} loses {what:?}"));
        self.hosts[index] = Standing {
            is_down: true,
            forgets,
        };
        let unlucky = self.rng.random_range(0..self.scenario.shape.twins());
        for id in self.twins_of(host) {
            let index = self.index(id);
            let epoch = self.epochs[usize::from(host.0)];
            let twin = &mut self.twins[index];
            twin.go_down();
            let disk = &mut twin.disk;
            disk.is_unsure &= joined(&disk.records) != Some(epoch);
            match what {
                HostLoss::OneDisk if id.twin.0 == unlucky => *disk = Disk::default(),
                HostLoss::Log | HostLoss::OneDisk => disk.records.truncate(disk.synced),
                HostLoss::Moment => {
                    let first = disk.synced - disk.synced / 8;
                    let left = self.rng.random_range(first..=disk.synced);
                    disk.records.truncate(left);
                    disk.is_unsure = true;
                }
                HostLoss::Disks => *disk = Disk::default(),
            }
            disk.synced = disk.records.len();
        }
        self.report.crashes += 1;
        self.schedule(down_us, super::Happening::HostReturn { host });
    }

    /// Whether a host is without its memory, or may be when it comes back.
    fn is_without_memory(&self, host: HostId) -> bool {
        let standing = self.hosts[usize::from(host.0)];
        let log = self.observers[usize::from(host.0)].log();
        let forgets = standing.forgets || log.amnesias().next().is_some();
        forgets && (standing.is_down || log.is_opening())
    }

    pub(super) fn return_host(&mut self, host: HostId) -> Result<(), Violation> {
        let index = usize::from(host.0);
        let shape = self.scenario.shape;
        self.logs[index].restart_lost();
        self.epochs[index] = Epoch(self.epochs[index].0 + 1);
        self.observers[index].begin_epoch(self.epochs[index]);
        self.auditors[index] = Auditor::reopened(shape, host, self.scenario.tuning.host_bounds());
        self.hosts[index].is_down = false;
        for id in self.twins_of(host) {
            self.restart(id)?;
        }
        Ok(())
    }

    pub(super) fn is_host_down(&self, host: HostId) -> bool {
        self.hosts[usize::from(host.0)].is_down
    }

    /// Whether a host takes part, as far as its log tells.
    pub(super) fn takes_part(&self, host: HostId) -> bool {
        let is_opening = self.observers[usize::from(host.0)].log().is_opening();
        !is_opening && !self.is_host_down(host)
    }

    /// A host that is up and does not take part, though its twins are correct and enough others could tell it all it needs.
    pub(super) fn returning(&self) -> Option<HostId> {
        if self.epochs.iter().all(|epoch| *epoch == Epoch(1)) {
            return None;
        }
        let shape = self.scenario.shape;
        let silent = self.silent_hosts();
        let has_twins = |host: HostId| {
            if silent & (1 << host.0) != 0 {
                return false;
            }
            let twins = self.twins_of(host).map(|id| &self.twins[self.index(id)]);
            let correct = twins.filter(|twin| twin.is_correct() && !twin.is_down);
            correct.count() >= shape.twin_quorum()
        };
        let others = shape.all_hosts();
        let live = others.filter(|host| self.takes_part(*host) && has_twins(*host));
        if live.count() < shape.host_quorum() {
            return None;
        }
        let mut hosts = shape.all_hosts();
        hosts.find(|host| !self.takes_part(*host) && !self.is_host_down(*host) && has_twins(*host))
    }

    /// 8: with `Q` other hosts live a host comes back, whatever it has lost.
    pub(super) fn check_returned(&self) -> Result<(), Violation> {
        match self.returning() {
            Some(host) => Err(violation(
                8,
                format!("{host} is still mute{}", self.summary()),
            )),
            None => Ok(()),
        }
    }
}
