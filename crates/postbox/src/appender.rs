//! A twin's way into the log: numbers its appends, keeps them until the broker has confirmed them,
//! sends again from a refused one on. Never blocks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::frame::{encode_append, encode_trim};
use crate::ledger::Refusal;
use crate::link::Link;
use crate::log_view::{LastRefusal, LogView};
use crate::vchan::{ORDER_MIN, RingProducer};

/// Why an append was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too many bytes wait for their confirmation; poll, wait, and try again.
    #[error("the queue of unconfirmed appends is full")]
    QueueFull,
    /// No log of these limits takes it.
    #[error("{bytes} bytes are above the maximum of {bytes_max}")]
    TooLarge {
        /// Length of what was to be appended.
        bytes: usize,
        /// `entry_bytes_max`, or `state_bytes_max` for a trim.
        bytes_max: u32,
    },
    /// The channel is closed; reconnect.
    #[error("the channel to the broker is closed")]
    Closed,
    /// The broker's side of the channel says what no broker says; the channel is closed.
    #[error("the broker broke the channel's rules: {0}")]
    Broken(&'static str),
}

/// What `Appender::poll` has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendEvent {
    /// The log answered `false`. The append stays queued, and what is behind it too, until the log
    /// is trimmed.
    Refused {
        /// The append's number.
        number: u64,
        /// Why.
        reason: Refusal,
    },
    /// The log was trimmed at least to the position that this twin proposed last.
    Trimmed {
        /// What was proposed.
        position: u64,
    },
    /// The log was trimmed since; the refused append and what is behind it are sent again.
    Resumed {
        /// The append's number.
        number: u64,
    },
}

struct Blocked {
    number: u64,
    at_head: u64,
}

/// What is being written to the ring right now; a frame is never left half-written.
enum Partial {
    Append { index: usize, written: usize },
    Trim { bytes: Vec<u8>, written: usize },
}

struct LatestTrim {
    position: u64,
    state: Vec<u8>,
    sent: bool,
}

/// A twin's queue of appends.
pub struct Appender {
    link: Arc<Link>,
    ring: RingProducer,
    /// Never read from; it shows the control page.
    view: LogView,
    /// Frames that are not confirmed, in the order of their numbers.
    unconfirmed: VecDeque<Vec<u8>>,
    /// Invariant: the number of `unconfirmed.front()`, and of the next append when there is none.
    first_unconfirmed: u64,
    unconfirmed_bytes: usize,
    unconfirmed_bytes_max: usize,
    /// Invariant: the frames before it were written to the ring, `unsent <= unconfirmed.len()`.
    unsent: usize,
    partial: Option<Partial>,
    trim: Option<LatestTrim>,
    blocked: Option<Blocked>,
    refusals_seen: u64,
}

impl Appender {
    pub(crate) fn new(
        link: Arc<Link>,
        ring: RingProducer,
        view: LogView,
        bytes_max: usize,
    ) -> Self {
        let first_unconfirmed = view.next_number(link.twin);
        let refusals_seen = view.refusals(link.twin);
        link.set_refusals_seen(refusals_seen);
        // Room for one largest entry at least, or it could never be appended.
        let bytes_max = bytes_max.max(view.info().limits.entry_bytes_max as usize + 64);
        Self {
            link,
            ring,
            view,
            unconfirmed: VecDeque::new(),
            first_unconfirmed,
            unconfirmed_bytes: 0,
            unconfirmed_bytes_max: bytes_max,
            unsent: 0,
            partial: None,
            trim: None,
            blocked: None,
            refusals_seen,
        }
    }

    /// Queues an entry and writes it to the ring as far as there is room; `flush` tells the broker.
    /// Answers the append's number, under which it is found in the log.
    ///
    /// # Errors
    /// It was not queued.
    pub fn append(&mut self, payload: &[u8]) -> Result<u64, AppendError> {
        self.check(payload, self.view.info().limits.entry_bytes_max)?;
        if self.unconfirmed_bytes + payload.len() > self.unconfirmed_bytes_max {
            self.confirm()?;
            if self.unconfirmed_bytes + payload.len() > self.unconfirmed_bytes_max {
                return Err(AppendError::QueueFull);
            }
        }
        let number = self.next_number();
        let frame = encode_append(number, payload);
        self.unconfirmed_bytes += frame.len();
        self.unconfirmed.push_back(frame);
        self.link.await_confirmation(Some(self.first_unconfirmed));
        self.pump()?;
        Ok(number)
    }

    /// Proposes to drop everything below `position` (a multiple of `k` that was read), replaced by
    /// `state`. Takes no room. The latest proposal counts, here and at the broker, so twins agree
    /// soonest when each proposes the lowest multiple above the head.
    ///
    /// # Errors
    /// It was not taken.
    pub fn trim(&mut self, position: u64, state: &[u8]) -> Result<(), AppendError> {
        self.check(state, self.view.info().limits.state_bytes_max)?;
        self.trim = Some(LatestTrim {
            position,
            state: state.to_vec(),
            sent: false,
        });
        self.link.await_trim(Some(position));
        self.pump()
    }

    fn check(&self, bytes: &[u8], bytes_max: u32) -> Result<(), AppendError> {
        if self.link.is_closed() {
            return Err(AppendError::Closed);
        }
        if bytes.len() > bytes_max as usize {
            return Err(AppendError::TooLarge {
                bytes: bytes.len(),
                bytes_max,
            });
        }
        Ok(())
    }

    /// Tells the broker of what was written, with at most one system call for all of it.
    pub fn flush(&mut self) {
        if self.link.unflushed.swap(false, Ordering::Relaxed) && self.ring.consumer_wants_notice() {
            self.link.bell.ring();
        }
    }

    /// Takes note of confirmations and refusals and writes on; to be called after every wait. Call
    /// until it answers `None`.
    ///
    /// # Errors
    /// The channel is closed.
    pub fn poll(&mut self) -> Result<Option<AppendEvent>, AppendError> {
        if self.link.is_closed() {
            return Err(AppendError::Closed);
        }
        // Read before the confirmations, which are published before it: so a refusal is of the first
        // unconfirmed append or of one that was accepted since.
        let refusal = self.view.last_refusal(self.link.twin);
        self.confirm()?;
        let event = refusal.and_then(|last| self.check_refusal(last));
        let event = event.or_else(|| self.check_trim());
        let event = event.or_else(|| self.check_room());
        self.pump()?;
        self.flush();
        Ok(event)
    }

    /// The twin that appends.
    #[must_use]
    pub fn twin(&self) -> u8 {
        self.link.twin
    }

    /// Unmaps the ring of a closed channel, for good. The queue stays, for `take_over`.
    pub(crate) fn let_go(&mut self, parked: Arc<Link>) {
        self.ring = RingProducer::new(parked.ring_memory().clone(), ORDER_MIN);
        self.link = parked;
    }

    /// The number of the next append.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.first_unconfirmed + self.unconfirmed.len() as u64
    }

    /// Appends without an outcome so far.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.unconfirmed.len()
    }

    /// Largest entry that the log takes.
    #[must_use]
    pub fn entry_bytes_max(&self) -> u32 {
        self.view.info().limits.entry_bytes_max
    }

    fn confirm(&mut self) -> Result<(), AppendError> {
        let next = self.view.next_number(self.link.twin);
        let confirmed = next.wrapping_sub(self.first_unconfirmed);
        // What was never sent cannot be in the log.
        if confirmed > self.unsent as u64 {
            return Err(self.broken("it confirms appends that were not sent"));
        }
        for _ in 0..confirmed {
            let frame = self
                .unconfirmed
                .pop_front()
                .expect("not more than were sent");
            self.unconfirmed_bytes -= frame.len();
        }
        let popped = usize::try_from(confirmed).expect("not more than the queue");
        self.first_unconfirmed = next;
        self.unsent -= popped;
        if let Some(Partial::Append { index, .. }) = &mut self.partial {
            *index -= popped;
        }
        self.link
            .await_confirmation((!self.unconfirmed.is_empty()).then_some(next));
        Ok(())
    }

    fn broken(&self, what: &'static str) -> AppendError {
        self.link.set_closed();
        AppendError::Broken(what)
    }

    fn check_refusal(&mut self, last: LastRefusal) -> Option<AppendEvent> {
        if last.refusals == self.refusals_seen {
            return None;
        }
        self.refusals_seen = last.refusals;
        self.link.set_refusals_seen(last.refusals);
        // A refusal of what was accepted since is old news.
        if last.number != self.first_unconfirmed || self.unsent == 0 {
            return None;
        }
        self.blocked = Some(Blocked {
            number: last.number,
            at_head: last.at_head,
        });
        self.link.await_room(Some(last.at_head));
        last.reason.map(|reason| AppendEvent::Refused {
            number: last.number,
            reason,
        })
    }

    fn check_trim(&mut self) -> Option<AppendEvent> {
        let head = self.view.head();
        let trim = self.trim.take_if(|trim| trim.position <= head)?;
        self.link.await_trim(None);
        Some(AppendEvent::Trimmed {
            position: trim.position,
        })
    }

    fn check_room(&mut self) -> Option<AppendEvent> {
        let blocked = self.blocked.as_ref()?;
        // The broker drops what follows a refused append, so all of it is sent again, once the frame
        // that is half in the ring is complete.
        if self.view.head() <= blocked.at_head
            || matches!(self.partial, Some(Partial::Append { .. }))
        {
            return None;
        }
        let number = blocked.number;
        self.blocked = None;
        self.link.await_room(None);
        self.unsent = 0;
        Some(AppendEvent::Resumed { number })
    }

    /// Writes frames as long as the ring takes them.
    fn pump(&mut self) -> Result<(), AppendError> {
        loop {
            if self.partial.is_none() {
                self.partial = self.next_frame();
            }
            let Some(partial) = &mut self.partial else {
                self.link.await_space(false);
                return Ok(());
            };
            let (bytes, written) = match partial {
                Partial::Append { index, written } => (&self.unconfirmed[*index], written),
                Partial::Trim { bytes, written } => (&*bytes, written),
            };
            let Ok(count) = self.ring.write(&bytes[*written..]) else {
                return Err(self.broken("its ring index is impossible"));
            };
            *written += count;
            if count > 0 {
                self.link.unflushed.store(true, Ordering::Relaxed);
            }
            if *written == bytes.len() {
                if let Partial::Append { index, .. } = partial {
                    self.unsent = *index + 1;
                }
                self.partial = None;
            } else if count == 0 && !self.space_came()? {
                return Ok(());
            }
        }
    }

    /// Asks to be told about room in the ring, and looks once more.
    fn space_came(&mut self) -> Result<bool, AppendError> {
        self.link.await_space(true);
        self.ring.request_space_notice();
        match self.ring.space() {
            Ok(space) => Ok(space > 0),
            Err(_) => Err(self.broken("its ring index is impossible")),
        }
    }

    /// What to write next; a trim goes first, because appends may be waiting for it.
    fn next_frame(&mut self) -> Option<Partial> {
        if let Some(trim) = self.trim.as_mut().filter(|trim| !trim.sent) {
            trim.sent = true;
            return Some(Partial::Trim {
                bytes: encode_trim(trim.position, &trim.state),
                written: 0,
            });
        }
        let open = self.blocked.is_none() && self.unsent < self.unconfirmed.len();
        open.then_some(Partial::Append {
            index: self.unsent,
            written: 0,
        })
    }

    /// Carries the queue of a closed channel over to this fresh one of the same epoch: what the log
    /// already holds is dropped, the rest is sent from the broker's expected number on.
    pub(crate) fn take_over(&mut self, old: Self) -> Result<(), AppendError> {
        let confirmed = self.first_unconfirmed.wrapping_sub(old.first_unconfirmed);
        if confirmed > old.unconfirmed.len() as u64 {
            return Err(self.broken("it expects an append number that this twin never gave"));
        }
        let skip = usize::try_from(confirmed).expect("not more than the queue");
        self.unconfirmed = old.unconfirmed;
        self.unconfirmed.drain(..skip);
        self.unconfirmed_bytes = self.unconfirmed.iter().map(Vec::len).sum();
        self.trim = old.trim.map(|trim| LatestTrim {
            sent: false,
            ..trim
        });
        self.link
            .await_trim(self.trim.as_ref().map(|trim| trim.position));
        self.link
            .await_confirmation((!self.unconfirmed.is_empty()).then_some(self.first_unconfirmed));
        self.pump()?;
        self.flush();
        Ok(())
    }

    /// The payloads that are not confirmed, for a log of a new epoch that knows nothing of them.
    pub(crate) fn into_unconfirmed(self) -> Vec<(u64, Vec<u8>)> {
        let payload = |frame: Vec<u8>| {
            let bytes = u32::from_le_bytes(*frame.first_chunk().expect("we encoded it")) as usize;
            frame[crate::frame::FRAME_HEADER_BYTES..][..bytes].to_vec()
        };
        (self.first_unconfirmed..)
            .zip(self.unconfirmed.into_iter().map(payload))
            .collect()
    }
}
