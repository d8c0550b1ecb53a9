//! One simulated twin: the real core, a service, a channel to its host's postbox.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use twinbft_core::{CoreConfig, Effect, Effects, Execute, Input, PeerFault, Record, Replica, Tick};
use twinbft_types::{Entry, ReplicaId, Slot};

use crate::byzantine::Puppet;
use crate::oracles::{Busy, Undone};
use crate::service::{Restoring, Service};
use crate::world::Disk;

/// True time, since 1970, when a run begins.
pub const BEGINNING_US: u64 = 1_700_000_000_000_000;

/// A post under way: the bytes, and the entry when they are one.
#[derive(Debug)]
pub struct Post {
    pub bytes: Bytes,
    pub entry: Option<Box<Entry>>,
}

/// A twin.
#[derive(Debug)]
pub struct Twin {
    pub id: ReplicaId,
    pub core: Replica,
    pub service: Service,
    /// The last checkpoint begun, or genesis: where an undo leads back to.
    pub base: (Slot, Service),
    /// What it has executed and does not know to be committed, or has not read back as accepted, with what the furthest
    /// clock showed then.
    pub unsettled: BTreeMap<Slot, (Execute, u64)>,
    /// Of a double that answers fast reads from earlier states: the last ones, oldest first.
    pub earlier: VecDeque<Service>,
    /// `None` for a correct twin.
    pub puppet: Option<Puppet>,
    /// The states of late checkpoints, for those who fetch them.
    pub snapshots: BTreeMap<Slot, Service>,
    /// The state that is fetched.
    pub restoring: Option<Restoring>,
    /// The next position of the log to read.
    pub position: u64,
    /// When the next reading of the log is scheduled.
    pub read_at_us: Option<u64>,
    /// The next append number.
    pub append_number: u64,
    /// Entries that the postbox has not taken yet, in order.
    pub posts: VecDeque<Post>,
    /// What this twin's clock shows beyond true time, in microseconds.
    pub skew_us: i64,
    /// The timer that is set, to ignore earlier ones.
    pub timer_us: Option<u64>,
    /// When its service is free again: it answers in order.
    pub service_free_us: u64,
    pub disk: Disk,
    /// What waits for records to be durable, and for how many.
    pub held: VecDeque<(usize, Effect)>,
    /// Crashed, and not started again.
    pub is_down: bool,
    /// Grows with each crash: what an earlier life asked for is not answered in this one.
    pub life: u32,
    /// How often it may crash.
    pub crashes_left: u32,
    pub busy: Busy,
    pub undone: Undone,
}

impl Twin {
    /// A twin at genesis.
    pub fn new(config: CoreConfig, puppet: Option<Puppet>, skew_us: i64) -> Self {
        let mut disk = Disk::default();
        disk.records.push(Record::Joined {
            epoch: config.epoch,
        });
        disk.synced = 1;
        Self {
            id: config.me,
            core: Replica::new(config),
            service: Service::default(),
            base: (Slot(0), Service::default()),
            unsettled: BTreeMap::new(),
            earlier: VecDeque::new(),
            puppet,
            snapshots: BTreeMap::new(),
            restoring: None,
            position: 0,
            read_at_us: None,
            append_number: 0,
            posts: VecDeque::new(),
            skew_us,
            timer_us: None,
            service_free_us: 0,
            disk,
            held: VecDeque::new(),
            is_down: false,
            life: 0,
            crashes_left: 3,
            busy: Busy::default(),
            undone: Undone::default(),
        }
    }

    /// The process dies.
    pub fn go_down(&mut self) {
        self.is_down = true;
        self.life += 1;
        self.posts.clear();
        self.held.clear();
        self.timer_us = None;
        self.read_at_us = None;
    }

    pub const fn is_correct(&self) -> bool {
        self.puppet.is_none()
    }

    /// One step of the core at true time `now_us`.
    pub fn step(
        &mut self,
        now_us: u64,
        input: Input,
        effects: &mut Effects,
    ) -> Result<(), PeerFault> {
        let tick = Tick {
            mono_us: now_us,
            wall_us: (BEGINNING_US + now_us).saturating_add_signed(self.skew_us),
        };
        self.core.step(tick, input, effects)
    }
}
