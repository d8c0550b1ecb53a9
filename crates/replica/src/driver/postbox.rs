//! The channel to the host's broker: connecting, losing it, coming back to the same log.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use twinbft_postbox::{
    AppendError, AppendEvent, Appender, Channel, ConnectOptions, Door, Reader, Reconnected, Waker,
};

use crate::status::PostboxReport;

const BACK_OFF_MIN: Duration = Duration::from_millis(20);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// How long one attempt may take; in a guest it looks again and again for so long.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);
const GUEST_ATTEMPT_MAX: Duration = Duration::from_millis(100);
/// How long to sleep at a time while there is no broker: operators' questions wait so long at most.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the broker is and who comes.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// The way to it.
    pub door: Door,
    /// See [`twinbft_postbox::cluster_tag`].
    pub cluster_tag: u64,
    /// This host.
    pub host: u8,
    /// This twin.
    pub twin: u8,
    /// How long a wait looks at the log before it sleeps.
    pub spin_us: u32,
    /// Wakes the core's thread.
    pub waker: Waker,
}

/// A connection to the broker that was there at least once.
pub struct Link {
    channel: Channel,
    door: Door,
    closed: bool,
    back_off: Duration,
    next_attempt: Option<Instant>,
    refused: u64,
    reconnects: u64,
}

impl Link {
    /// Connects, again and again until `patience` is over; `stop` ends it early with `None`.
    ///
    /// # Errors
    /// When the broker does not answer in time, or is another one than the one looked for.
    pub fn open(
        options: &LinkOptions,
        patience: Duration,
        stop: impl Fn() -> bool,
    ) -> anyhow::Result<Option<Self>> {
        let mut connecting =
            ConnectOptions::new(options.cluster_tag, u32::from(options.host), options.twin);
        connecting.spin_us = options.spin_us;
        connecting.timeout = match options.door {
            Door::Socket(_) => ATTEMPT_MAX,
            Door::Xen => GUEST_ATTEMPT_MAX,
        };
        connecting.waker = Some(options.waker.clone());
        let began = Instant::now();
        let mut back_off = BACK_OFF_MIN;
        while !stop() {
            let error = match options.door.connect(&connecting) {
                Ok(channel) => {
                    return Ok(Some(Self {
                        channel,
                        door: options.door.clone(),
                        closed: false,
                        back_off: BACK_OFF_MIN,
                        next_attempt: None,
                        refused: 0,
                        reconnects: 0,
                    }));
                }
                Err(error) => error,
            };
            if !error.is_passing() {
                return Err(error).context("connecting to the postbox");
            }
            if began.elapsed() >= patience {
                return Err(error).with_context(|| {
                    format!(
                        "no postbox at {} after {} s; start the host's broker",
                        options.door,
                        patience.as_secs()
                    )
                });
            }
            std::thread::sleep(back_off);
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
        Ok(None)
    }

    /// Out of the log.
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.channel.reader
    }

    /// Into the log; `None` while the channel is closed.
    pub fn appender(&mut self) -> Option<&mut Appender> {
        (!self.closed).then_some(&mut self.channel.appender)
    }

    /// Lets the appender take note of what the broker did.
    ///
    /// # Errors
    /// When the broker broke the channel's rules.
    pub fn poll_appender(&mut self) -> anyhow::Result<()> {
        if self.closed {
            return Ok(());
        }
        loop {
            match self.channel.appender.poll() {
                Ok(None) => return Ok(()),
                Ok(Some(AppendEvent::Refused { number, reason })) => {
                    self.refused += 1;
                    tracing::debug!(
                        number,
                        reason = reason.name(),
                        "the postbox has no room; waiting for a trim"
                    );
                }
                Ok(Some(AppendEvent::Trimmed { position })) => {
                    tracing::debug!(position, "the postbox is trimmed");
                }
                Ok(Some(AppendEvent::Resumed { number })) => {
                    tracing::debug!(number, "the postbox has room again");
                }
                Err(AppendError::Closed) => {
                    self.closed = true;
                    return Ok(());
                }
                Err(
                    error @ (AppendError::Broken(_)
                    | AppendError::QueueFull
                    | AppendError::TooLarge { .. }),
                ) => {
                    bail!("the postbox's channel: {error}");
                }
            }
        }
    }

    /// Proposes to drop what is below `position`.
    ///
    /// # Errors
    /// When the STATE is above the log's limit, or the channel is broken. A closed channel is no error: the core
    /// proposes again when the log grows.
    pub fn trim(&mut self, position: u64, state: &[u8]) -> anyhow::Result<()> {
        match self.channel.appender.trim(position, state) {
            Ok(()) | Err(AppendError::Closed) => Ok(()),
            Err(
                error @ (AppendError::TooLarge { .. }
                | AppendError::QueueFull
                | AppendError::Broken(_)),
            ) => Err(error).context("trimming the postbox; see state_bytes_max in cluster.toml"),
        }
    }

    /// How long to wait before the next [`Self::try_reconnect`], a little at a time.
    #[must_use]
    pub fn pause(&self) -> Duration {
        self.next_attempt.map_or(Duration::ZERO, |at| {
            at.saturating_duration_since(Instant::now()).min(PAUSE)
        })
    }

    /// One step towards having a channel again. True once there is one: the reader stands where it stood, and what was
    /// not confirmed is on its way, once.
    ///
    /// # Errors
    /// When what came back is not the log that was lost.
    pub fn try_reconnect(&mut self) -> anyhow::Result<bool> {
        self.closed = true;
        if self.next_attempt.is_some_and(|at| at > Instant::now()) {
            return Ok(false);
        }
        let epoch = self.channel.reader.epoch();
        match self.channel.reconnect() {
            Ok(Reconnected::SameEpoch) => {
                tracing::info!(epoch, "connected to the postbox again");
                self.closed = false;
                self.reconnects += 1;
                self.back_off = BACK_OFF_MIN;
                self.next_attempt = None;
                Ok(true)
            }
            Ok(Reconnected::NewEpoch { abandoned }) => bail!(
                "the postbox's log was lost: its epoch went from {epoch} to {}, and {} own entries have no outcome; start this twin again, and it says what it remembers, or recovers from the others",
                self.channel.reader.epoch(),
                abandoned.len()
            ),
            Err(error) if error.is_passing() => {
                tracing::debug!("{error}");
                self.next_attempt = Some(Instant::now() + self.back_off);
                self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
                Ok(false)
            }
            Err(error) => Err(error).with_context(|| format!("connecting again to {}", self.door)),
        }
    }

    /// Numbers for operators.
    #[must_use]
    pub fn report(&self) -> PostboxReport {
        let reader = &self.channel.reader;
        PostboxReport {
            epoch: reader.epoch(),
            position: reader.position(),
            head: reader.head(),
            end: reader.end(),
            unconfirmed: self.channel.appender.unconfirmed(),
            refused: self.refused,
            reconnects: self.reconnects,
            ..PostboxReport::default()
        }
    }
}
