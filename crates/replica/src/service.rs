//! The service and the threads that work for it.
//!
//! Cheap batches are executed on the core's thread: handing a batch over and back costs two thread switches, which
//! is more than the batch itself. A large batch, and every batch while batches take long, goes to the service's
//! thread *with* the service, so there is no lock and slots stay in order; what comes in meanwhile waits for it to
//! come back. The slow part of a checkpoint always runs on a thread of its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError, mpsc::Sender};
use std::time::Instant;

use bytes::Bytes;
use twinbft_app::{
    AppError, Application, BatchContext, CheckpointWork, ChunkId, Operation, Snapshot,
};
use twinbft_core::{Checkpoint, Execute, Input};
use twinbft_types::{Digest, Slot};

use crate::driver::Inbox;
use crate::storage::{Journal, StorageError};

/// A batch with more bytes than this goes to the service's thread.
const INLINE_BYTES_MAX: usize = 256 << 10;
/// When batches take longer than this on average, they go to the service's thread.
const INLINE_US_MAX: u64 = 1_000;
/// At most one answer of the service's thread, one of the checkpoint's, and four chunks are under way.
pub const ANSWERS_MAX: usize = 8;
/// Chunks that a restore tells the core of at a time.
const WANTED_MAX: usize = 4096;
/// Jobs that may wait while the service is away. Invariant: the core asks for at most 16 slots, one checkpoint and
/// its bounded number of fast reads at a time.
const JOBS_MAX: usize = 64 * 1024;

/// Something that the core asked for.
#[derive(Debug)]
pub enum Job {
    /// Execute a batch.
    Execute(Execute),
    /// Drop what was executed above the last checkpoint, or genesis, which is this slot.
    Rollback {
        /// Where the service stands then.
        slot: Slot,
    },
    /// Make a checkpoint.
    Checkpoint(Box<Checkpoint>),
    /// Begin to restore the state of a checkpoint, or go on.
    RestoreBegin {
        /// The state after this slot.
        slot: Slot,
        /// Its root.
        digest: Digest,
    },
    /// Verify a chunk and keep it.
    RestoreChunk {
        /// Which one.
        id: u64,
        /// What was sent.
        bytes: Bytes,
    },
    /// Make the restored state the service's own.
    RestoreActivate(Box<Checkpoint>),
    /// Answer a fast read.
    Query {
        /// Names the answer.
        token: u64,
        /// For the service.
        operation: Bytes,
    },
}

/// What comes back from a thread of the service.
pub enum Answer {
    /// The service with its answers.
    Back {
        /// The service.
        app: Box<dyn Application>,
        /// In the order of the jobs.
        inputs: Vec<Input>,
        /// What a batch took on average.
        batch_us: u64,
    },
    /// A checkpoint is done.
    Checkpointed(Input),
    /// A chunk is read.
    Read(Input),
    /// The service cannot go on.
    Failed(ServiceError),
}

/// The service cannot go on; the node stops.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The service itself.
    #[error(transparent)]
    App(#[from] AppError),
    /// The checkpoints' journal.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

enum Work {
    /// The service, the slot of the restore that is under way, and what is to be done.
    Jobs(Box<dyn Application>, Slot, Vec<Job>),
    Checkpoint(CheckpointWork, Box<Checkpoint>),
    Read {
        snapshot: Option<Arc<dyn Snapshot>>,
        slot: Slot,
        id: u64,
    },
}

/// What the threads share: the checkpoint's writes to it, and the service's when it takes a state over. Never both at
/// the same time.
type SharedJournal = Arc<Mutex<Option<Journal>>>;

/// Numbers for operators.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct ServiceStatus {
    /// Batches executed on the core's thread.
    pub batches_inline: u64,
    /// Batches executed on the service's thread.
    pub batches_handed_over: u64,
    /// What a batch takes on average, in microseconds.
    pub batch_us: u64,
    /// Jobs that wait.
    pub waiting: usize,
}

/// The service, as the core's thread sees it.
pub struct Service {
    /// `None` while it is on its own thread.
    app: Option<Box<dyn Application>>,
    jobs: VecDeque<Job>,
    checkpointing: bool,
    worker: Sender<Work>,
    checkpointer: Sender<Work>,
    reader: Sender<Work>,
    /// Snapshots of late checkpoints, for those who fetch them.
    snapshots: BTreeMap<Slot, Arc<dyn Snapshot>>,
    /// The service has a checkpoint of which there is no snapshot here yet.
    snapshot_due: bool,
    /// The restore that is under way.
    restoring: Slot,
    batch_us: u64,
    status: ServiceStatus,
}

impl Service {
    /// Starts the threads; they end when this is dropped. Answers go to `inbox`. Without a journal nothing outlives
    /// this process.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        app: Box<dyn Application>,
        journal: Option<Journal>,
        inbox: &Arc<Inbox>,
    ) -> std::io::Result<Self> {
        let journal: SharedJournal = Arc::new(Mutex::new(journal));
        Ok(Self {
            app: Some(app),
            jobs: VecDeque::new(),
            checkpointing: false,
            worker: spawn("service", journal.clone(), inbox.clone())?,
            checkpointer: spawn("checkpoint", journal.clone(), inbox.clone())?,
            reader: spawn("snapshot", journal, inbox.clone())?,
            snapshots: BTreeMap::new(),
            // A start stands at the last checkpoint, if there is one.
            snapshot_due: true,
            restoring: Slot(0),
            batch_us: 0,
            status: ServiceStatus::default(),
        })
    }

    /// Takes a job in. Answers that are there at once are added to `ready`.
    ///
    /// # Errors
    /// When the service fails; the node stops.
    pub fn submit(&mut self, job: Job, ready: &mut VecDeque<Input>) -> Result<(), ServiceError> {
        assert!(
            self.jobs.len() < JOBS_MAX,
            "the core bounds what it asks of the service"
        );
        self.jobs.push_back(job);
        self.pump(ready)
    }

    /// Takes what came back from a thread.
    ///
    /// # Errors
    /// When the service failed; the node stops.
    pub fn handle_answer(
        &mut self,
        answer: Answer,
        ready: &mut VecDeque<Input>,
    ) -> Result<(), ServiceError> {
        match answer {
            Answer::Back {
                app,
                inputs,
                batch_us,
            } => {
                self.note_batch(batch_us);
                self.snapshot_due |= inputs
                    .iter()
                    .any(|input| matches!(input, Input::Restored { .. }));
                ready.extend(inputs);
                self.app = Some(app);
            }
            Answer::Checkpointed(input) => {
                self.checkpointing = false;
                self.snapshot_due = true;
                ready.push_back(input);
            }
            Answer::Read(input) => ready.push_back(input),
            Answer::Failed(error) => return Err(error),
        }
        self.pump(ready)
    }

    /// Only these snapshots, and later ones, are still of use.
    pub fn keep_snapshots(&mut self, slots: &[Slot]) {
        let last = slots.iter().max().copied().unwrap_or_default();
        self.snapshots
            .retain(|slot, _| slots.contains(slot) || *slot > last);
    }

    /// Has a chunk of a snapshot read; the answers come in the order of the questions.
    pub fn read_chunk(&self, slot: Slot, id: u64) {
        let snapshot = self.snapshots.get(&slot).cloned();
        let work = Work::Read { snapshot, slot, id };
        self.reader
            .send(work)
            .expect("the thread ends with this handle");
    }

    fn take_snapshot(&mut self) -> Result<(), AppError> {
        if let Some(app) = self.app.as_mut().filter(|_| self.snapshot_due) {
            self.snapshot_due = false;
            if let Some(snapshot) = app.snapshot()? {
                self.snapshots.insert(snapshot.slot(), snapshot);
            }
        }
        Ok(())
    }

    fn note_batch(&mut self, batch_us: u64) {
        self.batch_us = (self.batch_us * 7 + batch_us) / 8;
    }

    /// Does what can be done here, in order, until the service is away or there is nothing left.
    fn pump(&mut self, ready: &mut VecDeque<Input>) -> Result<(), ServiceError> {
        loop {
            self.take_snapshot()?;
            let heavy = self.is_heavy();
            let (Some(app), Some(job)) = (&mut self.app, self.jobs.front()) else {
                return Ok(());
            };
            match job {
                // The one before must be done first; nothing may overtake it.
                Job::Checkpoint(_) | Job::RestoreActivate(_) if self.checkpointing => {
                    return Ok(());
                }
                Job::Rollback { slot } => {
                    assert_eq!(app.rollback(), *slot, "the core knows the last checkpoint");
                    self.jobs.pop_front();
                }
                Job::RestoreBegin { .. } | Job::RestoreChunk { .. } | Job::RestoreActivate(_) => {
                    self.hand_over();
                }
                Job::Checkpoint(checkpoint) => {
                    let work = app.checkpoint_begin(checkpoint.slot)?;
                    self.checkpointing = true;
                    let Some(Job::Checkpoint(checkpoint)) = self.jobs.pop_front() else {
                        unreachable!("seen before");
                    };
                    self.checkpointer
                        .send(Work::Checkpoint(work, checkpoint))
                        .expect("the thread ends with this handle");
                }
                Job::Execute(_) | Job::Query { .. } if heavy => self.hand_over(),
                Job::Execute(_) | Job::Query { .. } => {
                    let began = Instant::now();
                    ready.push_back(carry_out(&mut **app, job)?);
                    if matches!(job, Job::Execute(_)) {
                        self.status.batches_inline += 1;
                        self.note_batch(elapsed_us(began));
                    }
                    self.jobs.pop_front();
                }
            }
        }
    }

    fn is_heavy(&self) -> bool {
        self.batch_us > INLINE_US_MAX
            || self.jobs.front().is_some_and(|job| match job {
                Job::Execute(batch) => {
                    batch
                        .requests
                        .iter()
                        .map(|r| r.operation.len())
                        .sum::<usize>()
                        > INLINE_BYTES_MAX
                }
                Job::Query { .. }
                | Job::Rollback { .. }
                | Job::Checkpoint(_)
                | Job::RestoreBegin { .. }
                | Job::RestoreChunk { .. }
                | Job::RestoreActivate(_) => false,
            })
    }

    /// Sends the service and the jobs before the next checkpoint, or undo, to its thread.
    fn hand_over(&mut self) {
        let until = self
            .jobs
            .iter()
            .skip(1)
            .position(|job| {
                matches!(
                    job,
                    Job::Checkpoint(_) | Job::Rollback { .. } | Job::RestoreActivate(_)
                )
            })
            .map_or(self.jobs.len(), |behind_first| behind_first + 1);
        let jobs: Vec<Job> = self.jobs.drain(..until).collect();
        let batches = jobs
            .iter()
            .filter(|job| matches!(job, Job::Execute(_)))
            .count();
        self.status.batches_handed_over += batches as u64;
        let app = self.app.take().expect("it is here");
        let restoring = self.restoring;
        // It need not be the first of them: it may go along behind batches.
        self.restoring = restored_by(&jobs, restoring);
        self.worker
            .send(Work::Jobs(app, restoring, jobs))
            .expect("the thread ends with this handle");
    }

    /// Numbers for operators.
    #[must_use]
    pub fn status(&self) -> ServiceStatus {
        ServiceStatus {
            batch_us: self.batch_us,
            waiting: self.jobs.len(),
            ..self.status
        }
    }
}

/// Which checkpoint is restored after these jobs, when it was `before` until then.
fn restored_by(jobs: &[Job], before: Slot) -> Slot {
    let begun = jobs.iter().rev().find_map(|job| match job {
        Job::RestoreBegin { slot, .. } => Some(*slot),
        Job::RestoreChunk { .. }
        | Job::RestoreActivate(_)
        | Job::Execute(_)
        | Job::Query { .. }
        | Job::Rollback { .. }
        | Job::Checkpoint(_) => None,
    });
    begun.unwrap_or(before)
}

fn elapsed_us(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn spawn(name: &str, journal: SharedJournal, inbox: Arc<Inbox>) -> std::io::Result<Sender<Work>> {
    let (sender, receiver) = mpsc::channel::<Work>();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            for work in receiver {
                let answer = run(work, &journal).unwrap_or_else(Answer::Failed);
                assert!(
                    inbox.answers.push(answer).is_ok(),
                    "a bounded number of jobs is under way"
                );
                inbox.wake();
            }
        })?;
    Ok(sender)
}

/// Writes a checkpoint into the journal around what makes the service's state durable: first, so that whatever
/// checkpoint the service has, the journal has too.
fn journaled(
    journal: &SharedJournal,
    checkpoint: &Checkpoint,
    make: impl FnOnce() -> Result<Digest, AppError>,
) -> Result<Digest, ServiceError> {
    let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(journal) = journal.as_mut() else {
        return Ok(make()?);
    };
    journal.write(checkpoint)?;
    let digest = make()?;
    journal.done(checkpoint.slot, digest)?;
    Ok(digest)
}

fn run(work: Work, journal: &SharedJournal) -> Result<Answer, ServiceError> {
    match work {
        Work::Checkpoint(work, checkpoint) => {
            let digest = journaled(journal, &checkpoint, || Ok(work.run()?.digest))?;
            Ok(Answer::Checkpointed(Input::Checkpointed {
                slot: checkpoint.slot,
                digest,
            }))
        }
        Work::Read { snapshot, slot, id } => {
            let bytes = match snapshot {
                Some(snapshot) => snapshot.read_chunk(ChunkId(id))?,
                None => None,
            };
            Ok(Answer::Read(Input::ChunkRead { slot, id, bytes }))
        }
        Work::Jobs(mut app, restoring, jobs) => {
            let began = Instant::now();
            let mut restoring = restoring;
            let inputs: Vec<Input> = jobs
                .iter()
                .map(|job| match job {
                    Job::RestoreBegin { .. }
                    | Job::RestoreChunk { .. }
                    | Job::RestoreActivate(_) => {
                        restoring = restored_by(std::slice::from_ref(job), restoring);
                        restore(&mut *app, restoring, job, journal)
                    }
                    Job::Execute(_)
                    | Job::Query { .. }
                    | Job::Rollback { .. }
                    | Job::Checkpoint(_) => Ok(carry_out(&mut *app, job)?),
                })
                .collect::<Result<_, ServiceError>>()?;
            let batch_us = elapsed_us(began) / inputs.len().max(1) as u64;
            Ok(Answer::Back {
                app,
                inputs,
                batch_us,
            })
        }
    }
}

/// One step of a restore.
fn restore(
    app: &mut dyn Application,
    slot: Slot,
    job: &Job,
    journal: &SharedJournal,
) -> Result<Input, ServiceError> {
    let chunk = match job {
        Job::RestoreBegin { slot, digest } => {
            let (slot, digest) = (*slot, *digest);
            app.restore_begin(twinbft_app::Checkpoint { slot, digest })?;
            None
        }
        Job::RestoreChunk { id, bytes } => {
            let accepted = app.restore_accept(ChunkId(*id), bytes)?;
            if let Err(refused) = &accepted {
                tracing::warn!("{refused}");
            }
            Some((*id, accepted.is_ok()))
        }
        Job::RestoreActivate(checkpoint) => {
            journaled(journal, checkpoint, || {
                app.restore_activate()?;
                let stands = app.last_checkpoint();
                Ok(stands.expect("it was restored").digest)
            })?;
            return Ok(Input::Restored {
                slot: checkpoint.slot,
            });
        }
        Job::Execute(_) | Job::Query { .. } | Job::Rollback { .. } | Job::Checkpoint(_) => {
            unreachable!("no part of a restore")
        }
    };
    let wanted = app.restore_wanted(WANTED_MAX);
    Ok(Input::Restoring {
        slot,
        chunk,
        wanted: wanted.into_iter().map(|id| id.0).collect(),
    })
}

fn carry_out(app: &mut dyn Application, job: &Job) -> Result<Input, AppError> {
    match job {
        Job::Execute(batch) => {
            let context = BatchContext {
                slot: batch.slot,
                timestamp_us: batch.timestamp_us,
                seed: batch.seed,
            };
            let operations: Vec<Operation<'_>> = batch
                .requests
                .iter()
                .map(|request| Operation {
                    client: request.client,
                    seq: request.seq,
                    bytes: &request.operation,
                })
                .collect();
            let mut results = Vec::with_capacity(operations.len());
            app.execute(&context, &operations, &mut results)?;
            assert_eq!(
                results.len(),
                operations.len(),
                "the service gives one result for each request"
            );
            Ok(Input::Executed {
                slot: batch.slot,
                results,
            })
        }
        Job::Query { token, operation } => {
            let answer = app.query(operation)?;
            Ok(Input::Queried {
                token: *token,
                result: answer.result,
                version: answer.version,
            })
        }
        Job::Checkpoint(_)
        | Job::Rollback { .. }
        | Job::RestoreBegin { .. }
        | Job::RestoreChunk { .. }
        | Job::RestoreActivate(_) => unreachable!("done elsewhere"),
    }
}

#[cfg(test)]
mod tests {
    use twinbft_app::{Null, NullOptions};
    use twinbft_types::{ClientId, Request, Seq};

    use super::*;

    fn service() -> (Service, Arc<Inbox>) {
        let inbox = Arc::new(Inbox::new(twinbft_postbox::Waker::new().unwrap()));
        let app = Box::new(Null::new(NullOptions::default()).unwrap());
        (Service::start(app, None, &inbox).unwrap(), inbox)
    }

    fn execute(slot: u64, bytes: usize) -> Job {
        Job::Execute(Execute {
            slot: Slot(slot),
            timestamp_us: slot,
            seed: Digest::ZERO,
            requests: vec![Request {
                client: ClientId { key: 0, session: 0 },
                seq: Seq(slot),
                operation: vec![0; bytes].into(),
            }],
        })
    }

    fn checkpoint(slot: u64) -> Job {
        Job::Checkpoint(Box::new(Checkpoint {
            slot: Slot(slot),
            history: Digest::ZERO,
            timestamp_us: slot,
            sessions: twinbft_core::SessionImage::default(),
        }))
    }

    /// Spins for the threads' answers: they come within microseconds, and a test that waits for ever is a failure.
    fn settle(service: &mut Service, inbox: &Inbox, ready: &mut VecDeque<Input>, want: usize) {
        while ready.len() < want {
            match inbox.answers.pop() {
                Some(answer) => service.handle_answer(answer, ready).unwrap(),
                None => std::thread::yield_now(),
            }
        }
    }

    fn names(ready: &VecDeque<Input>) -> Vec<String> {
        ready
            .iter()
            .map(|input| match input {
                Input::Executed { slot, .. } => format!("executed {slot}"),
                Input::Checkpointed { slot, .. } => format!("checkpointed {slot}"),
                Input::Queried { token, .. } => format!("queried {token}"),
                Input::Restoring { slot, .. } => format!("restoring {slot}"),
                other => panic!("unexpected {other:?}"),
            })
            .collect()
    }

    #[test]
    fn cheap_batches_are_answered_at_once() {
        let (mut service, _inbox) = service();
        let mut ready = VecDeque::new();
        service.submit(execute(1, 10), &mut ready).unwrap();
        let query = Job::Query {
            token: 7,
            operation: Bytes::new(),
        };
        service.submit(query, &mut ready).unwrap();
        assert_eq!(names(&ready), ["executed n1", "queried 7"]);
    }

    #[test]
    fn large_batches_go_to_the_thread_and_order_is_kept() {
        let (mut service, inbox) = service();
        let mut ready = VecDeque::new();
        service
            .submit(execute(1, INLINE_BYTES_MAX + 1), &mut ready)
            .unwrap();
        service.submit(execute(2, 10), &mut ready).unwrap();
        service.submit(checkpoint(2), &mut ready).unwrap();
        assert_eq!(service.status().batches_handed_over, 1);
        settle(&mut service, &inbox, &mut ready, 3);
        assert_eq!(
            names(&ready),
            ["executed n1", "executed n2", "checkpointed n2"]
        );
        assert_eq!(service.status().batches_inline, 1);
    }

    /// The core passes over what is said of another restore than its own, and would wait for ever.
    #[test]
    fn a_restore_that_begins_behind_a_large_batch_is_answered_as_itself() {
        let (mut service, inbox) = service();
        let mut ready = VecDeque::new();
        for slot in 1..=2 {
            let large = execute(slot, INLINE_BYTES_MAX + 1);
            service.submit(large, &mut ready).unwrap();
        }
        let mut other = Null::new(NullOptions::default()).unwrap();
        let empty = other.checkpoint_begin(Slot(0)).unwrap().run().unwrap();
        let begin = Job::RestoreBegin {
            slot: Slot(7),
            digest: empty.digest,
        };
        service.submit(begin, &mut ready).unwrap();
        settle(&mut service, &inbox, &mut ready, 3);
        assert_eq!(
            names(&ready),
            ["executed n1", "executed n2", "restoring n7"]
        );
        assert_eq!(service.status().batches_handed_over, 2);
    }

    /// Protocol.md 4.7: what was handed over before an undo is answered, and then executed again from the checkpoint on,
    /// also while that is being written and the service is away with a large batch.
    #[test]
    fn an_undo_goes_back_to_the_last_checkpoint_begun() {
        let (mut service, inbox) = service();
        let mut ready = VecDeque::new();
        service.submit(execute(1, 1), &mut ready).unwrap();
        service.submit(checkpoint(1), &mut ready).unwrap();
        service
            .submit(execute(2, INLINE_BYTES_MAX + 1), &mut ready)
            .unwrap();
        service.submit(execute(3, 1), &mut ready).unwrap();
        let undo = Job::Rollback { slot: Slot(1) };
        service.submit(undo, &mut ready).unwrap();
        service.submit(execute(2, 1), &mut ready).unwrap();
        settle(&mut service, &inbox, &mut ready, 5);
        let mut names = names(&ready);
        names.retain(|name| name.starts_with("executed"));
        assert_eq!(
            names,
            ["executed n1", "executed n2", "executed n3", "executed n2"]
        );
    }

    #[test]
    fn a_second_checkpoint_waits_for_the_first() {
        let (mut service, inbox) = service();
        let mut ready = VecDeque::new();
        for slot in [1, 2] {
            service.submit(execute(slot, 1), &mut ready).unwrap();
            service.submit(checkpoint(slot), &mut ready).unwrap();
        }
        settle(&mut service, &inbox, &mut ready, 4);
        let mut names = names(&ready);
        names.retain(|name| name.starts_with("checkpointed"));
        assert_eq!(names, ["checkpointed n1", "checkpointed n2"]);
    }
}
