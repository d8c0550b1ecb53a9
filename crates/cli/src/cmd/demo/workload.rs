//! Sessions that read, write and compare-and-swap for as long as the demonstration runs, and remember what they saw.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use twinbft_cli::cluster::Cluster;
use twinbft_client::history::{Action, End, History, Observed, OperationId};
use twinbft_client::kv::{Expect, KvClient, KvError, Swapped};
use twinbft_client::session::FaultCounters;
use twinbft_client::{Client, ClientOptions, Target};

/// Sessions at work.
pub const SESSIONS: u64 = 6;
/// Clients, each with its own key and connections, that share the sessions.
pub const CLIENTS: u32 = 3;
/// Keys that all sessions read and write.
const REGISTERS: usize = 4;
/// A session begins an operation this often, when the one before is answered: a demonstration is no benchmark.
const PACE: Duration = Duration::from_millis(4);
/// Longer than a call takes to give up.
const GRACE: Duration = Duration::from_secs(12);
/// Keys that are written once and read again at the end begin like this.
const KEPT: &str = "kept/";
/// Values read at a time.
const PAGE: u32 = 500;

/// What the sessions have seen so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Everything, for the check.
    pub history: History,
    /// Keys of their own with their values, whose writes were acknowledged.
    pub kept: BTreeMap<Bytes, Bytes>,
    /// Operations with a certified answer.
    pub operations: u64,
    /// Fast reads among them that were not ordered.
    pub fast_reads: u64,
    /// Operations without an answer.
    pub errors: u64,
    /// The first of those.
    pub first_error: Option<String>,
    /// The longest time without an answer so far.
    pub longest_stall: Duration,
    /// The slowest operation that was answered.
    pub slowest: Duration,
    /// The last answer, or the beginning; `None` while the sessions do not ask.
    last_answer: Option<Instant>,
    /// Whether the sessions have been told to stop: what they still wait for is no stall of all.
    is_over: bool,
}

impl Record {
    fn answered(&mut self, asked: Instant, now: Instant) {
        self.operations += 1;
        self.slowest = self.slowest.max(now.saturating_duration_since(asked));
        self.note_time(now);
        self.last_answer = Some(now).filter(|_| !self.is_over);
    }

    /// The sessions stop asking.
    fn close(&mut self, now: Instant) {
        self.note_time(now);
        self.last_answer = None;
        self.is_over = true;
    }

    /// Nothing was answered from the last answer until now.
    fn note_time(&mut self, now: Instant) {
        if let Some(last) = self.last_answer {
            self.longest_stall = self.longest_stall.max(now.saturating_duration_since(last));
        }
    }

    fn failed(&mut self, error: &KvError) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }
}

/// The sessions.
pub struct Workload {
    clients: Vec<Client>,
    record: Arc<Mutex<Record>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

fn locked(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    // Nothing panics under the lock but a broken invariant, and that task's panic is passed on.
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workload {
    /// Connects and sets the sessions to work.
    ///
    /// # Errors
    /// When the cluster cannot be reached.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for client in 0..CLIENTS {
            let target = Target::of(&cluster.config, &cluster.file, client)?;
            let client = Client::connect(ClientOptions::new(target)).await;
            clients.push(client.context("connecting to the cluster")?);
        }
        let record = Arc::new(Mutex::new(Record::default()));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (number, client) in (0..SESSIONS).zip(clients.iter().cycle()) {
            let session = Session {
                number,
                kv: KvClient::new(client.session()),
                record: record.clone(),
                seen: vec![None; REGISTERS],
            };
            tasks.spawn(session.work(stopped.clone()));
        }
        Ok(Self {
            clients,
            record,
            stop,
            tasks,
        })
    }

    /// What the sessions have seen so far.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        locked(&self.record)
    }

    /// Lets the sessions finish, reads again what they wrote, and answers all that was seen, what replicas did wrong, and how many
    /// acknowledged writes are lost (`None`: the reads got no answer).
    pub async fn finish(mut self) -> (Record, FaultCounters, Option<u64>) {
        self.record().close(Instant::now());
        self.stop.send_replace(true);
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("sessions do not panic");
            }
        };
        // What has no answer by then stays unknown.
        let _in_time = tokio::time::timeout(GRACE, ended).await;
        let lost = self.count_lost().await.ok();
        let record = self.record().clone();
        let mut faults = FaultCounters::default();
        for client in &self.clients {
            faults.merge(&client.stats().await.faults);
        }
        (record, faults, lost)
    }

    /// Every register once more for the check, and every key that was written once.
    async fn count_lost(&self) -> Result<u64, KvError> {
        let kv = KvClient::new(self.clients[0].session());
        for register in 0..REGISTERS {
            let key = register_key(register);
            let id = self
                .record()
                .history
                .begin(SESSIONS, key.clone(), Action::Read);
            let value = kv.get(key).await?.map(|value| value.value);
            let end = End::Observed(Observed::Value(value));
            self.record().history.end(id, end);
        }
        let mut found = BTreeMap::new();
        let end = Bytes::from_static(b"kept0");
        let mut start = Bytes::from_static(KEPT.as_bytes());
        loop {
            let page = kv.scan(start.clone(), end.clone(), PAGE).await?;
            let is_last = page.continuation.is_empty();
            found.extend(page.items.into_iter().map(|item| (item.key, item.value)));
            if is_last {
                break;
            }
            start = page.continuation;
        }
        let record = self.record();
        let lost = record
            .kept
            .iter()
            .filter(|(key, value)| found.get(*key) != Some(value));
        Ok(lost.count() as u64)
    }
}

fn register_key(register: usize) -> Bytes {
    Bytes::from(format!("register/{register}"))
}

/// An operation on its way.
struct Begun {
    id: OperationId,
    asked: Instant,
}

/// One session: an operation at a time.
struct Session {
    number: u64,
    kv: KvClient,
    record: Arc<Mutex<Record>>,
    /// What it saw last in each register.
    seen: Vec<Option<Bytes>>,
}

impl Session {
    async fn work(mut self, mut stopped: watch::Receiver<bool>) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let start = Instant::now();
        locked(&self.record).last_answer.get_or_insert(start);
        for turn in 0_usize.. {
            pace.tick().await;
            // The sender going away is the end, too.
            if *stopped.borrow_and_update() || stopped.has_changed().is_err() {
                return;
            }
            // Each session goes through the registers in its own order, and the others come between.
            let register = (turn / 3 + usize::try_from(self.number).unwrap_or(0)) % REGISTERS;
            match turn % 6 {
                0 => self.get(register, false).await,
                1 | 4 => self.swap(register, turn).await,
                2 => self.put(register, turn).await,
                3 => self.get(register, true).await,
                _ => self.keep(turn).await,
            }
        }
    }

    fn value(&self, turn: usize) -> Bytes {
        Bytes::from(format!("s{}-{turn}", self.number))
    }

    async fn get(&mut self, register: usize, fast: bool) {
        let key = register_key(register);
        let id = self.begin(&key, Action::Read);
        let answer = if fast {
            self.kv.get_fast(key).await
        } else {
            self.kv.get(key).await.map(|value| (value, false))
        };
        let answer = answer.map(|(value, was_fast)| {
            let value = value.map(|value| value.value);
            self.seen[register].clone_from(&value);
            (Observed::Value(value), was_fast)
        });
        self.end(id, answer);
    }

    async fn put(&mut self, register: usize, turn: usize) {
        let (key, value) = (register_key(register), self.value(turn));
        let id = self.begin(&key, Action::Write(value.clone()));
        let answer = self.kv.put(key, value.clone()).await;
        self.seen[register] = Some(value);
        self.end(id, answer.map(|_| (Observed::Written, false)));
    }

    async fn swap(&mut self, register: usize, turn: usize) {
        let (key, value) = (register_key(register), self.value(turn));
        let seen = self.seen[register].clone();
        let action = Action::CompareAndSwap {
            expect: seen.clone(),
            new: Some(value.clone()),
        };
        let id = self.begin(&key, action);
        let expect = seen.map_or(Expect::Absent, Expect::Value);
        let answer = self
            .kv
            .compare_and_swap(key, expect, Some(value.clone()))
            .await;
        let answer = answer.map(|swapped| match swapped {
            Swapped::Written(_) | Swapped::Deleted(_) => {
                self.seen[register] = Some(value);
                (Observed::Swapped(true), false)
            }
            Swapped::Mismatch(_) => (Observed::Swapped(false), false),
        });
        self.end(id, answer);
    }

    /// Writes a key that nobody else writes.
    async fn keep(&mut self, turn: usize) {
        let key = Bytes::from(format!("{KEPT}s{}/{turn:08}", self.number));
        let value = self.value(turn);
        let id = self.begin(&key, Action::Write(value.clone()));
        let answer = self.kv.put(key.clone(), value.clone()).await;
        if answer.is_ok() {
            locked(&self.record).kept.insert(key, value);
        }
        self.end(id, answer.map(|_| (Observed::Written, false)));
    }

    fn begin(&self, key: &Bytes, action: Action) -> Begun {
        let mut record = locked(&self.record);
        Begun {
            id: record.history.begin(self.number, key.clone(), action),
            asked: Instant::now(),
        }
    }

    fn end(&self, Begun { id, asked }: Begun, answer: Result<(Observed, bool), KvError>) {
        let mut record = locked(&self.record);
        match answer {
            Ok((observed, was_fast)) => {
                record.answered(asked, Instant::now());
                record.fast_reads += u64::from(was_fast);
                record.history.end(id, End::Observed(observed));
            }
            Err(error) => {
                record.failed(&error);
                record.history.end(id, end_of(&error));
            }
        }
    }
}

/// What is certain about an operation without an outcome.
fn end_of(error: &KvError) -> End {
    match error {
        KvError::Call(call) if call.is_without_effect() => End::WithoutEffect,
        KvError::Refused(_) => End::WithoutEffect,
        KvError::Call(_) | KvError::NotKv(_) => End::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stall_is_the_longest_time_without_an_answer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut record = Record {
            last_answer: Some(start),
            ..Record::default()
        };
        record.answered(at(5), at(10));
        record.answered(at(2), at(40));
        record.answered(at(41), at(45));
        assert_eq!(record.longest_stall, Duration::from_millis(30));
        // Also when it lasts until the end.
        record.close(at(145));
        assert_eq!(record.longest_stall, Duration::from_millis(100));
        // And not when nobody asks any more.
        record.answered(at(100), at(400));
        assert_eq!(record.longest_stall, Duration::from_millis(100));
        assert_eq!(record.slowest, Duration::from_millis(300));
        assert_eq!(record.operations, 4);
    }

    #[test]
    fn an_operation_that_may_have_taken_effect_has_no_known_end() {
        use twinbft_client::CallError;
        use twinbft_types::wire::pb::RefusalReason;
        let overloaded = KvError::Call(CallError::Overloaded { waiting: 1 });
        assert_eq!(end_of(&overloaded), End::WithoutEffect);
        let ended = KvError::Call(CallError::SessionEnded(RefusalReason::Busy));
        assert_eq!(end_of(&ended), End::Unknown);
    }
}
