//! The core as a task of the network's runtime: one thread for both, so that no message has to wake another thread
//! (docs/adr/0012-one-thread.md).

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Instant;

use anyhow::Context as _;
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;

use super::{Driver, IDLE_MAX};
use crate::progress::State;

/// What the task sleeps on besides its inbox.
struct Bells {
    /// The broker rings it.
    log: AsyncFd<OwnedFd>,
    /// Becomes readable when the broker closes the channel.
    end: AsyncFd<OwnedFd>,
}

/// Set anew only when it would be late: a timer that goes off too early costs less than one that is set each time.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
}

impl Timer {
    fn new() -> Self {
        let at = Instant::now() + IDLE_MAX;
        Self {
            sleep: Box::pin(tokio::time::sleep_until(at.into())),
            at,
        }
    }

    fn set(&mut self, at: Instant) {
        if at < self.at || self.sleep.is_elapsed() {
            self.at = at;
            self.sleep.as_mut().reset(at.into());
        }
    }
}

impl Driver {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When the node cannot go on: the disk, the service or the postbox's log failed.
    pub async fn run_as_task(mut self) -> anyhow::Result<()> {
        let mut bells = self.bells()?;
        let mut timer = Timer::new();
        while !self.stopping {
            let busy = self.round()?;
            self.progress.beat();
            if self.stopping {
                break;
            }
            if busy {
                // The network has its turn.
                tokio::task::yield_now().await;
                continue;
            }
            if !self.progress.is_caught_up() {
                self.progress.set_caught_up();
            }
            let is_open = self.wait_as_task(&bells, &mut timer).await?;
            if !is_open && let Some(farewell) = self.link.reader().poll_closed() {
                // A guest's old end of its event channel must be closed before there can be a new one.
                drop(bells);
                self.reconnect_as_task(&farewell).await?;
                bells = self.bells()?;
            }
        }
        self.finish()
    }

    fn bells(&mut self) -> anyhow::Result<Bells> {
        let [log, end] = self.link.reader().watched();
        let watch = |fd: std::os::fd::BorrowedFd<'_>| -> std::io::Result<AsyncFd<OwnedFd>> {
            #[allow(
                deprecated,
                reason = "it is for types that may change their descriptor, which an OwnedFd does not; what replaces it is unsafe"
            )]
            AsyncFd::new(fd.try_clone_to_owned()?)
        };
        Ok(Bells {
            log: watch(log).context("watching the postbox's bell")?,
            end: watch(end).context("watching the postbox's socket")?,
        })
    }

    /// Sleeps until there is something to do. False when the channel may be closed.
    async fn wait_as_task(&mut self, bells: &Bells, timer: &mut Timer) -> anyhow::Result<bool> {
        if self.link.reader().is_closed() {
            return Ok(false);
        }
        let timeout = self.timeout();
        // While posts crowd the queue, what waits outside must not keep this task from sleeping.
        let crowded = self.posts.is_crowded();
        let for_own = !self.posts.is_empty() || self.core.awaits_own_entries();
        let inbox = self.inbox.clone();
        let reader = self.link.reader();
        reader.wake_for_own(for_own);
        if timeout.is_zero() || !reader.begin_wait(|| !crowded && inbox.has_work()) {
            tokio::task::yield_now().await;
            return Ok(true);
        }
        self.report.waits += 1;
        timer.set(Instant::now() + timeout);
        let mut is_open = true;
        tokio::select! {
            biased;
            rung = bells.log.readable() => rung.context("waiting for the postbox's bell")?.clear_ready(),
            () = inbox.told() => {}
            () = &mut timer.sleep => {}
            closed = bells.end.readable() => {
                closed.context("watching the postbox's socket")?.clear_ready();
                is_open = false;
            }
        }
        self.link.reader().end_wait();
        Ok(is_open)
    }

    /// The broker is gone: tries to come back to the same log, and answers operators meanwhile.
    async fn reconnect_as_task(&mut self, farewell: &str) -> anyhow::Result<()> {
        tracing::warn!(farewell, "the postbox closed the channel; connecting again");
        self.progress.set_state(State::WaitingForPostbox);
        while !self.stopping && !self.try_reconnect()? {
            // Nothing goes on without the postbox: connecting may block the network for a while.
            tokio::time::sleep(self.link.pause()).await;
        }
        Ok(())
    }
}
