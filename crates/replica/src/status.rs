//! The state of a replica as one JSON document (the `Status` call).

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use twinbft_core::{Event, PeerFault, Status};
use twinbft_evidence::{Record, Store};
use twinbft_types::ReplicaId;

use crate::queues::QueueStatus;
use crate::service::ServiceStatus;
use crate::storage::StorageStatus;

/// Events that are kept for operators in memory; the oldest give way. All of them are logged.
pub const EVENTS_MAX: usize = 1024;

/// What was seen of faults (protocol.md 9): the last events, and the file that outlives this process.
#[derive(Debug)]
pub struct Events {
    store: Store,
    ring: VecDeque<Record>,
}

impl Events {
    /// Opens the file in a replica's data directory; what it remembers is there again.
    ///
    /// # Errors
    /// When the file cannot be read or written. What is damaged in it is logged and passed over.
    pub fn open(data: &Path) -> anyhow::Result<Self> {
        let (store, found) = Store::open(data)?;
        for damage in &found.damage {
            tracing::warn!("evidence of an earlier run: {damage}");
        }
        let skip = found.records.len().saturating_sub(EVENTS_MAX);
        Ok(Self {
            store,
            ring: found.records.into_iter().skip(skip).collect(),
        })
    }

    /// Logs an event and keeps it. `wall_us` is microseconds since the Unix epoch. While the postbox's log is read again,
    /// what an earlier run has seen is not counted twice.
    ///
    /// # Errors
    /// When the disk failed.
    pub fn record(
        &mut self,
        me: ReplicaId,
        event: &Event,
        wall_us: u64,
        is_again: bool,
    ) -> anyhow::Result<()> {
        let record = Record::new(me, event, wall_us);
        if is_again && self.ring.iter().any(|known| known.is_same(&record)) {
            return Ok(());
        }
        let record = self.store.note(record)?;
        tracing::warn!(
            event_host = %event.host,
            event_twin = event.twin.map(tracing::field::display),
            slot = record.slot,
            kind = record.kind,
            detail = record.detail,
            ours = record.ours,
            theirs = record.theirs,
            count = record.count,
            "fault observed"
        );
        if self.ring.len() == EVENTS_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back(record);
        Ok(())
    }

    /// What is kept, oldest first.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Record> {
        self.ring.iter().cloned().collect()
    }

    /// How many there were of each kind, earlier runs included as far as the file remembers them.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, u64> {
        self.store.totals()
    }
}

/// Faults by name, and a log line for each name at most every so often.
#[derive(Debug, Default)]
pub struct Faults {
    counts: BTreeMap<&'static str, u64>,
    logged_us: BTreeMap<&'static str, u64>,
}

/// A kind of fault is logged at most this often; all are counted.
const FAULT_LOG_EVERY_US: u64 = 1_000_000;

impl Faults {
    /// Counts a fault.
    pub fn record(&mut self, fault: &PeerFault, now_us: u64) {
        let name = fault.name();
        let count = self.counts.entry(name).or_default();
        *count += 1;
        let due = self
            .logged_us
            .get(name)
            .is_none_or(|at| at + FAULT_LOG_EVERY_US <= now_us);
        if due {
            self.logged_us.insert(name, now_us);
            tracing::warn!(fault = name, count = *count, "{fault}");
        } else {
            tracing::debug!(fault = name, "{fault}");
        }
    }

    /// By name.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.clone()
    }
}

/// The postbox as the core's thread sees it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PostboxReport {
    /// The log's epoch.
    pub epoch: u64,
    /// Position of the next entry to read.
    pub position: u64,
    /// Position of the first retained entry.
    pub head: u64,
    /// Position behind the last entry.
    pub end: u64,
    /// Own entries handed to the appender.
    pub appended: u64,
    /// Notices to the broker for them.
    pub flushes: u64,
    /// Own entries without an outcome.
    pub unconfirmed: usize,
    /// Own entries that wait here.
    pub waiting: usize,
    /// Appends that the log had no room for at first.
    pub refused: u64,
    /// How often the broker came back.
    pub reconnects: u64,
}

/// What the core's thread does with its time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct DriverReport {
    /// Rounds of work.
    pub rounds: u64,
    /// Times that it had nothing to do and waited.
    pub waits: u64,
    /// Inputs that the core took.
    pub steps: u64,
    /// Log entries among them.
    pub entries: u64,
    /// Rounds that had something to send.
    pub sends: u64,
}

/// A snapshot by the core's thread.
#[derive(Debug)]
pub struct CoreReport {
    /// The core's own.
    pub status: Status,
    /// A state of the driver that hides the core's.
    pub state: Option<&'static str>,
    /// Dropped inputs by reason.
    pub faults: BTreeMap<&'static str, u64>,
    /// The last events.
    pub events: Vec<Record>,
    /// All events by kind.
    pub event_totals: BTreeMap<String, u64>,
    /// The postbox.
    pub postbox: PostboxReport,
    /// The write-ahead log.
    pub storage: StorageStatus,
    /// Rounds of messages that wait for the write-ahead log.
    pub held: QueueStatus,
    /// The service.
    pub service: ServiceStatus,
    /// The thread.
    pub driver: DriverReport,
    /// What the core keeps, by name.
    pub footprint: BTreeMap<&'static str, usize>,
    /// The double that is acted, if any.
    pub double: Option<&'static str>,
}

/// The queues of the process by name.
pub type Queues = BTreeMap<String, QueueStatus>;

/// What the process uses.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Resident memory.
    pub rss_bytes: u64,
    /// CPU time of all threads, user and system.
    pub cpu_ms: u64,
}

/// Asks the kernel.
#[must_use]
pub fn usage() -> Usage {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    const PAGE_BYTES: u64 = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    let cpu_ms = getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds());
    Usage {
        rss_bytes: pages.unwrap_or(0) * PAGE_BYTES,
        cpu_ms: cpu_ms
            .ok()
            .and_then(|ms| u64::try_from(ms).ok())
            .unwrap_or(0),
    }
}

/// The core's part of the document.
#[must_use]
pub fn core_json(report: &CoreReport) -> Value {
    let status = &report.status;
    json!({
        "state": report.state.unwrap_or(status.state),
        "role": status.role.name(),
        "view": status.view.0,
        "view_changes": status.view_changes,
        "incarnation": status.incarnation.0,
        "memory": status.memory,
        "undone": status.undone,
        // On the primary host the last accepted slot is the last decided one.
        "decided": status.accepted.0,
        "accepted": status.accepted.0,
        "committed": status.committed.0,
        "executed": status.executed.0,
        "stable": status.stable.0,
        "cross_checked": status.cross_checked,
        "diverged": status.diverged,
        "pending": status.pending,
        "transfer": status.transfer.map(|transfer| json!({
            "slot": transfer.slot.0,
            "chunks": transfer.chunks,
            "known": transfer.known,
        })),
        "transfers": status.transfers,
        "bridges": status.bridges,
        "quarantined": status.quarantined.iter().map(|twin| twin.0).collect::<Vec<_>>(),
        "faults": report.faults,
        "events": report.events,
        "event_totals": report.event_totals,
        "postbox": report.postbox,
        "storage": report.storage,
        "held_rounds": report.held,
        "service": report.service,
        "driver": report.driver,
        "footprint": report.footprint,
        "double": report.double,
    })
}

#[cfg(test)]
mod tests {
    use twinbft_core::EventKind;
    use twinbft_types::{HostId, Slot, TwinId};

    use super::*;

    #[test]
    fn events_are_bounded_counted_and_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::open(dir.path()).unwrap();
        for n in 0..2000 {
            let event = Event {
                host: HostId(1),
                twin: Some(TwinId(1)),
                slot: Some(Slot(n)),
                kind: EventKind::Culprit {
                    agreed: twinbft_types::Digest([1; 32]),
                    said: twinbft_types::Digest([2; 32]),
                },
            };
            events
                .record(ReplicaId::new(1, 0), &event, n, false)
                .unwrap();
        }
        let kept = events.snapshot();
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept[EVENTS_MAX - 1].slot, Some(1999));
        assert_eq!(kept[0].kind, "culprit");
        assert_eq!(events.totals()["culprit"], 2000);
        drop(events);
        // Of a flood the first hundred are written.
        let mut again = Events::open(dir.path()).unwrap();
        assert_eq!(again.snapshot().len(), 100);
        assert_eq!(again.totals()["culprit"], 100);
        // What the log says again is known.
        let event = |slot| Event {
            host: HostId(1),
            twin: Some(TwinId(1)),
            slot: Some(Slot(slot)),
            kind: EventKind::Culprit {
                agreed: twinbft_types::Digest([1; 32]),
                said: twinbft_types::Digest([2; 32]),
            },
        };
        for slot in [7, 7777] {
            let me = ReplicaId::new(1, 0);
            again.record(me, &event(slot), 9, true).unwrap();
        }
        assert_eq!(again.totals()["culprit"], 101);
    }

    #[test]
    fn usage_is_that_of_this_process() {
        assert!(usage().rss_bytes > 0);
    }
}
