//! The service and the threads that work for it.
//!
//! Cheap batches are executed on the core's thread: handing a batch over and back costs two thread switches, which
//! is more than the batch itself. A large batch, and every batch while batches take long, goes to the service's
//! thread *with* the service, so there is no lock and slots stay in order; what comes in meanwhile waits for it to
//! come back. The slow part of a checkpoint always runs on a thread of its own.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::sync::{Arc, mpsc::Sender};
use std::time::Instant;

use bytes::Bytes;
use twinbft_app::{AppError, Application, BatchContext, CheckpointWork, Operation};
use twinbft_core::{Checkpoint, Execute, Input};

use crate::driver::Inbox;
use crate::storage::{Journal, StorageError};

/// A batch with more bytes than this goes to the service's thread.
const INLINE_BYTES_MAX: usize = 256 << 10;
/// When batches take longer than this on average, they go to the service's thread.
const INLINE_US_MAX: u64 = 1_000;
/// At most one answer of the service's thread and one of the checkpoint's are under way.
pub const ANSWERS_MAX: usize = 4;
/// Jobs that may wait while the service is away. Invariant: the core asks for at most 16 slots, one checkpoint and
/// its bounded number of fast reads at a time.
const JOBS_MAX: usize = 64 * 1024;

/// Something that the core asked for.
#[derive(Debug)]
pub enum Job {
    /// Execute a batch.
    Execute(Execute),
    /// Make a checkpoint.
    Checkpoint(Box<Checkpoint>),
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
    Jobs(Box<dyn Application>, Vec<Job>),
    Checkpoint(CheckpointWork, Box<Checkpoint>),
}

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
        Ok(Self {
            app: Some(app),
            jobs: VecDeque::new(),
            checkpointing: false,
            worker: spawn("service", None, inbox.clone())?,
            checkpointer: spawn("checkpoint", journal, inbox.clone())?,
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
                ready.extend(inputs);
                self.app = Some(app);
            }
            Answer::Checkpointed(input) => {
                self.checkpointing = false;
                ready.push_back(input);
            }
            Answer::Failed(error) => return Err(error),
        }
        self.pump(ready)
    }

    fn note_batch(&mut self, batch_us: u64) {
        self.batch_us = (self.batch_us * 7 + batch_us) / 8;
    }

    /// Does what can be done here, in order, until the service is away or there is nothing left.
    fn pump(&mut self, ready: &mut VecDeque<Input>) -> Result<(), ServiceError> {
        loop {
            let heavy = self.is_heavy();
            let (Some(app), Some(job)) = (&mut self.app, self.jobs.front()) else {
                return Ok(());
            };
            match job {
                // The one before must be done first; nothing may overtake it.
                Job::Checkpoint(_) if self.checkpointing => return Ok(()),
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
                Job::Query { .. } | Job::Checkpoint(_) => false,
            })
    }

    /// Sends the service and the jobs before the next checkpoint to its thread.
    fn hand_over(&mut self) {
        let until = self
            .jobs
            .iter()
            .position(|job| matches!(job, Job::Checkpoint(_)))
            .unwrap_or(self.jobs.len());
        let jobs: Vec<Job> = self.jobs.drain(..until).collect();
        let batches = jobs
            .iter()
            .filter(|job| matches!(job, Job::Execute(_)))
            .count();
        self.status.batches_handed_over += batches as u64;
        let app = self.app.take().expect("it is here");
        self.worker
            .send(Work::Jobs(app, jobs))
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

fn elapsed_us(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn spawn(
    name: &str,
    mut journal: Option<Journal>,
    inbox: Arc<Inbox>,
) -> std::io::Result<Sender<Work>> {
    let (sender, receiver) = mpsc::channel::<Work>();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            for work in receiver {
                let answer = run(work, journal.as_mut()).unwrap_or_else(Answer::Failed);
                assert!(
                    inbox.answers.push(answer).is_ok(),
                    "a bounded number of jobs is under way"
                );
                inbox.wake();
            }
        })?;
    Ok(sender)
}

fn run(work: Work, journal: Option<&mut Journal>) -> Result<Answer, ServiceError> {
    match work {
        Work::Checkpoint(work, checkpoint) => {
            let done = match journal {
                // First, so that whatever checkpoint the service has, the journal has too.
                Some(journal) => {
                    journal.write(&checkpoint)?;
                    let done = work.run()?;
                    journal.done(done.slot, done.digest)?;
                    done
                }
                None => work.run()?,
            };
            Ok(Answer::Checkpointed(Input::Checkpointed {
                slot: done.slot,
                digest: done.digest,
            }))
        }
        Work::Jobs(mut app, jobs) => {
            let began = Instant::now();
            let inputs: Vec<Input> = jobs
                .iter()
                .map(|job| carry_out(&mut *app, job))
                .collect::<Result<_, _>>()?;
            let batch_us = elapsed_us(began) / inputs.len().max(1) as u64;
            Ok(Answer::Back {
                app,
                inputs,
                batch_us,
            })
        }
    }
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
        Job::Checkpoint(_) => unreachable!("checkpoints are begun on the core's thread"),
    }
}

#[cfg(test)]
mod tests {
    use twinbft_app::{Null, NullOptions};
    use twinbft_types::{ClientId, Digest, Request, Seq, Slot};

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
