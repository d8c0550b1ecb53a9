//! One session in the dispatcher: its calls, what waits for room in its window, and who wants the answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use twinbft_types::wire::pb::RefusalReason;
use twinbft_types::{HostId, Nonce, Seq, Shape};

use super::call::{Answer, CallResult, Waiters};
use super::error::{CallError, Unanswered};
use super::mailbox::Mailbox;
use super::queue::{Completion, SessionKey};
use crate::session::{Event, FailReason, Progress, Session, SubmitError};

/// Operations of one session that wait for room in its window.
pub const WAITING_MAX: usize = 4096;
/// A result below this is copied out of the message that it came in, so that it does not keep the message alive.
const COPY_BYTES_MAX: usize = 4096;

/// Who is told of the answers of a session.
#[derive(Debug)]
pub(super) enum Owner {
    Waiters(Arc<Waiters>),
    Queue(Arc<Mailbox<Completion>>),
}

/// An operation that somebody waits for.
#[derive(Debug)]
struct Open {
    tag: u64,
    begun_us: u64,
    deadline_us: u64,
}

/// An operation as the caller hands it over.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) tag: u64,
    pub(super) bytes: Bytes,
    pub(super) fast: bool,
    pub(super) timeout_us: u64,
}

/// A session and everything around it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: SessionKey,
    pub(super) session: Session,
    owner: Owner,
    shape: Shape,
    /// The calls of requests `first ..`; `None` where nobody waits any more.
    calls: VecDeque<Option<Open>>,
    first: Seq,
    reads: Vec<(Nonce, Bytes, Open)>,
    waiting: VecDeque<(Bytes, Open)>,
    /// Whether it stands in the dispatcher's list of sessions to pump.
    pub(super) dirty: bool,
    /// Whether it stands in the dispatcher's list of sessions with something open.
    pub(super) active: bool,
}

impl Slot {
    pub(super) fn new(key: SessionKey, session: Session, owner: Owner, shape: Shape) -> Self {
        Self {
            key,
            session,
            owner,
            shape,
            calls: VecDeque::new(),
            first: Seq(1),
            reads: Vec::new(),
            waiting: VecDeque::new(),
            dirty: false,
            active: false,
        }
    }

    /// Whether something is still to happen by time alone.
    pub(super) fn is_busy(&self) -> bool {
        self.session.outstanding() > 0 || !self.waiting.is_empty() || !self.reads.is_empty()
    }

    /// Whether the session ended and every caller knows.
    pub(super) fn is_ended(&self) -> bool {
        self.session.closed().is_some() && !self.is_busy()
    }

    pub(super) fn submit(&mut self, now_us: u64, operation: Operation) {
        let open = Open {
            tag: operation.tag,
            begun_us: now_us,
            deadline_us: now_us.saturating_add(operation.timeout_us),
        };
        if !operation.fast {
            return self.submit_ordered(now_us, operation.bytes, open);
        }
        match self.session.query(now_us, operation.bytes.clone()) {
            Ok(nonce) => self.reads.push((nonce, operation.bytes, open)),
            Err(SubmitError::TooManyQueries { .. } | SubmitError::WindowFull { .. }) => {
                self.submit_ordered(now_us, operation.bytes, open);
            }
            Err(error) => self.refuse(&open, &error),
        }
    }

    fn submit_ordered(&mut self, now_us: u64, bytes: Bytes, open: Open) {
        if self.session.room() > 0 && self.waiting.is_empty() {
            return self.send(now_us, bytes, open);
        }
        if self.waiting.len() >= WAITING_MAX {
            let error = CallError::Overloaded {
                waiting: self.waiting.len(),
            };
            return self.finish(open.tag, Err(error));
        }
        self.waiting.push_back((bytes, open));
    }

    fn send(&mut self, now_us: u64, bytes: Bytes, open: Open) {
        match self.session.submit(now_us, bytes) {
            Ok(seq) => {
                if self.calls.is_empty() {
                    self.first = seq;
                }
                debug_assert_eq!(seq.0, self.first.0 + self.calls.len() as u64);
                self.calls.push_back(Some(open));
            }
            Err(error) => self.refuse(&open, &error),
        }
    }

    fn refuse(&self, open: &Open, error: &SubmitError) {
        let error = match *error {
            SubmitError::TooLarge { bytes, bytes_max } => CallError::TooLarge { bytes, bytes_max },
            SubmitError::Closed { reason } => CallError::SessionEnded(reason),
            SubmitError::WindowFull { .. } | SubmitError::TooManyQueries { .. } => {
                CallError::Overloaded {
                    waiting: self.waiting.len(),
                }
            }
        };
        self.finish(open.tag, Err(error));
    }

    fn finish(&self, tag: u64, result: CallResult) {
        match &self.owner {
            Owner::Waiters(waiters) => waiters.complete(tag, result),
            Owner::Queue(queue) => queue.push(Completion {
                session: self.key,
                tag,
                result,
            }),
        }
    }

    /// Takes the call of a request out; `None` when its caller has given up.
    fn take_call(&mut self, seq: Seq) -> Option<Open> {
        let index = usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?;
        let open = self.calls.get_mut(index)?.take();
        // A call that was given up leaves too: its answer, when it comes, then finds nothing.
        while self.calls.front().is_some_and(Option::is_none) {
            self.calls.pop_front();
            self.first = self.first.next();
        }
        open
    }

    /// Hands out what the session reports and sends what waited for room.
    pub(super) fn pump_events(&mut self, now_us: u64) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Completed {
                    seq,
                    slot,
                    result,
                    steps,
                    hosts: _,
                } => {
                    if let Some(open) = self.take_call(seq) {
                        let answer = Answer {
                            result: compact(result),
                            slot,
                            steps,
                            fast: false,
                        };
                        self.finish(open.tag, Ok(answer));
                    }
                }
                Event::Failed { seq, reason } => {
                    if let Some(open) = self.take_call(seq) {
                        self.finish(open.tag, Err(failure(reason)));
                    }
                }
                Event::QueryCompleted {
                    nonce,
                    version,
                    result,
                } => {
                    if let Some((_, open)) = self.take_read(nonce) {
                        let answer = Answer {
                            result: compact(result),
                            slot: twinbft_types::Slot(version),
                            steps: None,
                            fast: true,
                        };
                        self.finish(open.tag, Ok(answer));
                    }
                }
                Event::QueryFallBack { nonce, .. } => {
                    if let Some((bytes, open)) = self.take_read(nonce) {
                        self.submit_ordered(now_us, bytes, open);
                    }
                }
            }
        }
        self.fill_window(now_us);
    }

    fn fill_window(&mut self, now_us: u64) {
        if let Some(reason) = self.session.closed() {
            for (_, open) in std::mem::take(&mut self.waiting) {
                self.finish(open.tag, Err(CallError::SessionEnded(reason)));
            }
        }
        while self.session.room() > 0 {
            let Some((bytes, open)) = self.waiting.pop_front() else {
                return;
            };
            self.send(now_us, bytes, open);
        }
    }

    fn take_read(&mut self, nonce: Nonce) -> Option<(Bytes, Open)> {
        let index = self.reads.iter().position(|(of, ..)| *of == nonce)?;
        let (_, bytes, open) = self.reads.swap_remove(index);
        Some((bytes, open))
    }

    /// Tells the callers whose time is up. Their requests are sent on: a number that is given out must be used.
    pub(super) fn expire(&mut self, now_us: u64, unreachable: &dyn Fn() -> Unreachable) {
        let late = |open: &Open| open.deadline_us <= now_us;
        let calls = self.calls.iter().flatten();
        let waiting = self.waiting.iter().map(|(_, open)| open);
        let reads = self.reads.iter().map(|(.., open)| open);
        if !calls.chain(waiting).chain(reads).any(late) {
            return;
        }
        for index in 0..self.calls.len() {
            if self.calls[index].as_ref().is_some_and(late) {
                let open = self.calls[index].take().expect("it has just been seen");
                let progress = self.session.progress(Seq(self.first.0 + index as u64));
                let error = self.timed_out(now_us, &open, progress, true, unreachable());
                self.finish(open.tag, Err(error));
            }
        }
        // The window is full or the cluster slow: what waited first is late first, but time-outs may differ.
        for (bytes, open) in std::mem::take(&mut self.waiting) {
            if late(&open) {
                let error = self.timed_out(now_us, &open, None, false, unreachable());
                self.finish(open.tag, Err(error));
            } else {
                self.waiting.push_back((bytes, open));
            }
        }
        for (nonce, bytes, open) in std::mem::take(&mut self.reads) {
            if late(&open) {
                let error = self.timed_out(now_us, &open, None, true, unreachable());
                self.finish(open.tag, Err(error));
            } else {
                self.reads.push((nonce, bytes, open));
            }
        }
    }

    fn timed_out(
        &self,
        now_us: u64,
        open: &Open,
        progress: Option<Progress>,
        sent: bool,
        unreachable: Unreachable,
    ) -> CallError {
        let (answered, refusals) = progress.map_or((0, Vec::new()), |p| (p.answered, p.refusals));
        let (answered, silent): (Vec<HostId>, Vec<HostId>) = self
            .shape
            .all_hosts()
            .partition(|host| answered & (1 << host.0) != 0);
        CallError::TimedOut(Box::new(Unanswered {
            waited: Duration::from_micros(now_us.saturating_sub(open.begun_us)),
            sent,
            hosts_needed: self.shape.host_quorum(),
            answered,
            silent,
            refusals,
            unreachable,
        }))
    }

    /// Puts a fresh session in the place of one that the replicas have forgotten.
    pub(super) fn renew(&mut self, session: Session) {
        debug_assert!(self.is_ended());
        self.session = session;
        self.calls.clear();
        self.first = Seq(1);
    }
}

/// Replicas without a connection, and why.
pub(super) type Unreachable = Vec<(twinbft_types::ReplicaId, String)>;

fn failure(reason: FailReason) -> CallError {
    match reason {
        FailReason::Refused(reason @ RefusalReason::SessionExpired)
        | FailReason::SessionClosed(reason) => CallError::SessionEnded(reason),
        FailReason::Refused(reason) => CallError::Refused(reason),
    }
}

fn compact(result: Bytes) -> Bytes {
    if result.is_empty() {
        Bytes::new()
    } else if result.len() <= COPY_BYTES_MAX {
        Bytes::copy_from_slice(&result)
    } else {
        result
    }
}
