//! Crashes and restarts (protocol.md 8): a process dies between two records of its write-ahead log or at any time, and
//! begins again with what its disk kept.

use std::collections::VecDeque;

use rand::RngExt;
use twinbft_core::{Checkpoint, Record, Recovered, Replica, last_stable};
use twinbft_types::{Digest, Position, ReplicaId, Slot};

use super::loss::joined;
use super::{Happening, World};
use crate::oracles::{Undone, Violation};
use crate::scenario::{CrashPoint, Fault, Loss};
use crate::service::Service;

/// As many as the replica's services keep.
const CHECKPOINTS_KEPT: usize = 3;

/// What a twin has on its disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The write-ahead log: the first `synced` records survive everything but the disk's loss.
    pub records: Vec<Record>,
    pub synced: usize,
    /// The last checkpoints of the service that are surely there, oldest first, and one that may be.
    pub checkpoints: VecDeque<Kept>,
    pub unsure: Option<Kept>,
    /// Whether something that was revealed may be missing.
    pub is_unsure: bool,
}

impl Disk {
    /// The checkpoint that may be there is.
    pub fn settle_checkpoint(&mut self) {
        self.checkpoints.extend(self.unsure.take());
        while self.checkpoints.len() > CHECKPOINTS_KEPT {
            self.checkpoints.pop_front();
        }
    }

    /// Where a start stands: with one host at the last stable checkpoint, if it is there, else at the last one.
    fn begin(&mut self, hosts: u8) -> Option<Kept> {
        let stable = last_stable(&self.records);
        let is_stable = |kept: &Kept| hosts == 1 && kept.checkpoint.slot == stable;
        if let Some(at) = self.checkpoints.iter().position(is_stable) {
            self.checkpoints.truncate(at + 1);
        }
        self.checkpoints.back().cloned()
    }
}

/// A checkpoint with all that a start from it needs.
#[derive(Clone, Debug)]
pub struct Kept {
    pub checkpoint: Checkpoint,
    pub digest: Digest,
    pub service: Service,
}

impl World {
    /// Writes a record ahead. Answers whether the twin is still there.
    pub(super) fn write_ahead(&mut self, id: ReplicaId, record: Record) -> bool {
        let most = self.scenario.sync_us_max;
        let index = self.index(id);
        let twin = &mut self.twins[index];
        twin.disk.records.push(record);
        let records = twin.disk.records.len();
        if most == 0 {
            twin.disk.synced = records;
        } else {
            let after = self.rng.random_range(1..=most);
            let life = self.twins[index].life;
            self.schedule(
                after,
                Happening::Synced {
                    of: id,
                    records,
                    life,
                },
            );
        }
        let due = self.scenario.faults.iter().find_map(|fault| match fault {
            Fault::Crash {
                twin,
                point: CrashPoint::Record(number),
                down_us,
                loss,
            } if *twin == id && *number == records => Some((*down_us, *loss)),
            _ => None,
        });
        match due {
            Some((down_us, loss)) if self.twins[index].crashes_left > 0 => {
                self.crash(id, down_us, loss);
                false
            }
            Some(_) | None => true,
        }
    }

    pub(super) fn crash(&mut self, id: ReplicaId, down_us: u64, loss: Loss) {
        let now_us = self.now_us;
        self.tracer.line(|| format!("{now_us} {id} crashes"));
        let index = self.index(id);
        let kept_unsure = self.rng.random_bool(0.5);
        let twin = &mut self.twins[index];
        if twin.is_down || !twin.is_correct() {
            return;
        }
        twin.go_down();
        twin.crashes_left = twin.crashes_left.saturating_sub(1);
        let disk = &mut twin.disk;
        let unsure = disk.unsure.take();
        match loss {
            Loss::Nothing => {}
            Loss::Unsynced => disk.records.truncate(disk.synced),
            Loss::Torn => {
                let left = self.rng.random_range(disk.synced..=disk.records.len());
                disk.records.truncate(left);
            }
            Loss::Disk => *disk = Disk::default(),
        }
        if kept_unsure && loss != Loss::Disk {
            disk.unsure = unsure;
            disk.settle_checkpoint();
        }
        disk.synced = disk.records.len();
        self.report.crashes += 1;
        self.schedule(down_us, Happening::Restart { of: id });
    }

    pub(super) fn restart(&mut self, of: ReplicaId) -> Result<(), Violation> {
        let index = self.index(of);
        let log = &self.logs[usize::from(of.host.0)];
        let config = self.core_config(of);
        let epoch = config.epoch;
        let seed = self.scenario.seed;
        let twin = &mut self.twins[index];
        let state = log.agreed_state();
        let kept = twin.disk.begin(self.scenario.shape.hosts());
        twin.service = kept.as_ref().map(|k| k.service.clone()).unwrap_or_default();
        twin.snapshots = kept
            .iter()
            .map(|k| (k.checkpoint.slot, k.service.clone()))
            .collect();
        let stands = kept.as_ref().map_or(Slot(0), |k| k.checkpoint.slot);
        twin.base = (stands, twin.service.clone());
        twin.unsettled.clear();
        twin.restoring = None;
        let begins_at = kept.as_ref().map_or(Slot(0), |k| k.checkpoint.slot);
        twin.undone = Undone::begin(begins_at);
        twin.position = state.map_or(0, |state| state.position);
        twin.append_number = log.ledger().next_number(of.twin.0);
        twin.service_free_us = self.now_us;
        twin.is_down = false;
        let joined = joined(&twin.disk.records);
        let recovered = Recovered {
            records: twin.disk.records.clone(),
            checkpoint: kept.map(|k| (k.checkpoint, k.digest)),
            log_state: state.map(|s| (Position(s.position), s.bytes.clone().into())),
            log_end: Position(log.end()),
            is_new_epoch: joined.is_some_and(|joined| joined != epoch),
            is_unsure: twin.disk.is_unsure,
            is_ordered: false,
            nonce: Digest::of_canonical(b"sim/once", &(seed, of, twin.life)),
        };
        twin.core = Replica::recover(config, recovered).expect("what was written decodes");
        let void = twin.core.take_start_faults();
        assert!(void.is_empty(), "what was written verifies: {void:?}");
        self.set_timer(index);
        self.schedule_reading(of);
        Ok(())
    }
}
