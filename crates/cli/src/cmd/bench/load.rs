//! The load: closed or open loop, and what is measured of it. The same code drives every target.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::workload::{Operation, Workload};

/// Without any success for this long, the run ends.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
/// The longest latency that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
/// How long operations of the open loop that are overdue at the end are still begun.
const DRAIN_MAX: Duration = Duration::from_secs(30);
const SIGNIFICANT_DIGITS: u8 = 3;
/// Answers are counted by stretches of this length, to see what a failure does to them.
pub const STRETCH: Duration = Duration::from_millis(100);
/// So many stretches of a run are kept: an hour.
const STRETCHES_MAX: usize = 36_000;

/// How an operation ended.
#[derive(Clone, Debug)]
pub struct Done {
    /// Which place of the load it was for.
    pub place: usize,
    /// Its answer, or why there is none.
    pub outcome: Result<Answered, String>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Its way.
    pub path: Path,
    /// What was said, for the workload to check; `None` when the lane has checked it.
    pub result: Option<Bytes>,
}

/// The way of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Network steps, where the target counts them.
    pub steps: Option<u8>,
    /// A fast read.
    pub fast: bool,
}

/// Something that a load can be put on. `place` is below the number of clients; a place has one operation at a time.
pub trait Lane {
    /// Sends an operation with the next [`Lane::completions`].
    fn submit(&mut self, place: usize, operation: &Operation, workload: &Workload);

    /// Waits until some operations have ended and adds them. Dropping the future loses nothing.
    fn completions(&mut self, done: &mut Vec<Done>) -> impl Future<Output = ()>;

    /// Hands what was submitted to the network without waiting for anything.
    fn flush(&mut self);
}

/// Looks on.
pub trait Watch {
    /// The measurement begins.
    fn begin(&mut self);
    /// This share of it is done, from 0 to 1. Called some ten times a second.
    fn progress(&mut self, share: f64);
}

/// What load.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Operations at a time at most.
    pub clients: usize,
    /// Operations a second for the open loop.
    pub rate: Option<f64>,
    /// How long to measure, at most.
    pub duration: Duration,
    /// How many operations to measure.
    pub requests: Option<u64>,
    /// How long to load without measuring.
    pub warmup: Duration,
}

/// What came out.
#[derive(Debug)]
pub struct Measured {
    /// Operations that were answered.
    pub answered: u64,
    /// Those that were not, by reason.
    pub errors: BTreeMap<String, u64>,
    /// From the first measured operation to the last answer that counts, in seconds.
    pub seconds: f64,
    /// Nanoseconds, of answered operations.
    pub latency_ns: Histogram<u64>,
    /// Answers by network steps; those of unknown steps under `None`.
    pub steps: BTreeMap<Option<u8>, u64>,
    /// Answers that were fast reads.
    pub fast: u64,
    /// The longest time within the measurement in which nothing was answered.
    pub stall: Stall,
    /// Answers of each [`STRETCH`] of the measurement, of the first hour.
    pub answers: Vec<u64>,
    /// Why it ended early, if it did.
    pub cut_short: Option<String>,
}

/// A time without any answer, from the beginning of the measurement on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// When it ended.
    pub until: Duration,
    /// How long it was.
    pub length: Duration,
}

impl Measured {
    /// Answers a second in the second from there on; less where the measurement ended before.
    #[must_use]
    pub fn second_from(&self, from: Duration) -> f64 {
        let first = usize::try_from(from.as_millis() / STRETCH.as_millis()).unwrap_or(usize::MAX);
        let answers = self.answers.iter().skip(first).take(10);
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let sum = answers.sum::<u64>() as f64;
        sum
    }

    fn note_answer(&mut self, since: Duration, before: Duration) {
        let length = since.saturating_sub(before);
        if length > self.stall.length {
            self.stall = Stall {
                until: since,
                length,
            };
        }
        let stretch = usize::try_from(since.as_millis() / STRETCH.as_millis());
        if let Ok(stretch) = stretch
            && stretch < STRETCHES_MAX
        {
            if self.answers.len() <= stretch {
                self.answers.resize(stretch + 1, 0);
            }
            self.answers[stretch] += 1;
        }
    }

    fn new() -> Self {
        Self {
            answered: 0,
            errors: BTreeMap::new(),
            seconds: 0.0,
            latency_ns: Histogram::new_with_bounds(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS)
                .expect("the bounds are in order"),
            steps: BTreeMap::new(),
            fast: 0,
            stall: Stall::default(),
            answers: Vec::new(),
            cut_short: None,
        }
    }

    /// Answers a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        if self.seconds > 0.0 {
            #[allow(clippy::cast_precision_loss, reason = "for people")]
            let answered = self.answered as f64;
            answered / self.seconds
        } else {
            0.0
        }
    }

    /// Operations that got no answer.
    #[must_use]
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// An operation on its way.
#[derive(Debug)]
struct Sent {
    operation: Operation,
    /// When it should have begun: in the open loop, whoever has to wait for a free place waits all the same.
    from: Instant,
    counts: bool,
}

/// One run of a load.
struct Run<'a> {
    plan: Plan,
    workload: &'a mut Workload,
    places: Vec<Option<Sent>>,
    free: Vec<usize>,
    measured: Measured,
    measure_from: Instant,
    /// No operation begins after this.
    until: Instant,
    /// How many measured ones have begun.
    begun: u64,
    last_success: Instant,
    last_counted: Instant,
    timer: Timer,
}

/// Puts the load on a lane.
///
/// # Errors
/// When there are no clients, or no timer.
pub async fn run(
    plan: Plan,
    workload: &mut Workload,
    lane: &mut impl Lane,
    watch: &mut dyn Watch,
) -> anyhow::Result<Measured> {
    if plan.clients == 0 {
        bail!("a load needs at least one client");
    }
    let now = Instant::now();
    let measure_from = now + plan.warmup;
    let run = Run {
        plan,
        workload,
        places: (0..plan.clients).map(|_| None).collect(),
        free: (0..plan.clients).rev().collect(),
        measured: Measured::new(),
        measure_from,
        until: measure_from + plan.duration,
        begun: 0,
        last_success: now,
        last_counted: measure_from,
        timer: Timer::new()?,
    };
    run.drive(lane, watch).await
}

impl Run<'_> {
    async fn drive(
        mut self,
        lane: &mut impl Lane,
        watch: &mut dyn Watch,
    ) -> anyhow::Result<Measured> {
        let mut done = Vec::new();
        let mut arrivals = self
            .plan
            .rate
            .map(|rate| Arrivals::new(rate, Instant::now()));
        let mut next_look = Instant::now();
        let mut measuring = false;
        loop {
            let now = Instant::now();
            if !measuring && now >= self.measure_from {
                measuring = true;
                watch.begin();
            }
            if now >= next_look {
                next_look = now + Duration::from_millis(100);
                watch.progress(self.share_done(now));
                if now.duration_since(self.last_success) >= GIVE_UP_AFTER {
                    self.measured.cut_short = Some(format!(
                        "no operation succeeded in the last {} s",
                        GIVE_UP_AFTER.as_secs()
                    ));
                    break;
                }
            }
            let overdue = arrivals.as_ref().map_or(0, |a| a.overdue.len());
            if overdue > 0 && now >= self.until + DRAIN_MAX {
                let reason = "not begun: the target is slower than the rate".to_owned();
                *self.measured.errors.entry(reason).or_default() += overdue as u64;
                arrivals = None;
            }
            let more = self.wants_more(now);
            if more || (overdue > 0 && arrivals.is_some()) {
                self.begin(now.min(self.until), arrivals.as_mut(), lane);
            }
            let overdue = arrivals.as_ref().is_some_and(|a| !a.overdue.is_empty());
            let begins_more = more || (overdue && self.plan_allows());
            if !begins_more && self.in_flight() == 0 {
                break;
            }
            lane.flush();
            let wake = match &arrivals {
                Some(arrivals) if more && !self.free.is_empty() => arrivals.next.min(next_look),
                Some(_) | None => next_look,
            };
            self.timer.set(wake)?;
            tokio::select! {
                biased;
                () = lane.completions(&mut done) => {}
                fired = self.timer.fired() => fired?,
            }
            let now = Instant::now();
            for done in done.drain(..) {
                self.end(now, done);
            }
        }
        self.measured.seconds = self
            .last_counted
            .duration_since(self.measure_from)
            .as_secs_f64();
        Ok(self.measured)
    }

    fn in_flight(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn wants_more(&self, now: Instant) -> bool {
        now < self.until
            && self
                .plan
                .requests
                .is_none_or(|requests| self.begun < requests)
    }

    fn share_done(&self, now: Instant) -> f64 {
        let time = now
            .saturating_duration_since(self.measure_from)
            .as_secs_f64()
            / self.plan.duration.as_secs_f64().max(f64::EPSILON);
        #[allow(clippy::cast_precision_loss, reason = "for a progress bar")]
        let requests = self.plan.requests.map_or(0.0, |requests| {
            self.measured.answered as f64 / requests.max(1) as f64
        });
        time.max(requests).clamp(0.0, 1.0)
    }

    /// Begins what is due, as far as there are places.
    fn begin(&mut self, now: Instant, arrivals: Option<&mut Arrivals>, lane: &mut impl Lane) {
        let Some(arrivals) = arrivals else {
            while self.plan_allows() {
                let Some(place) = self.free.pop() else { break };
                self.send(place, now, lane);
            }
            return;
        };
        arrivals.advance(now);
        while self.plan_allows() && !self.free.is_empty() {
            let Some(from) = arrivals.overdue.pop_front() else {
                break;
            };
            let place = self.free.pop().expect("it has just been seen");
            self.send(place, from, lane);
        }
    }

    fn plan_allows(&self) -> bool {
        self.plan
            .requests
            .is_none_or(|requests| self.begun < requests)
    }

    fn send(&mut self, place: usize, from: Instant, lane: &mut impl Lane) {
        let operation = self.workload.next();
        lane.submit(place, &operation, self.workload);
        let counts = from >= self.measure_from;
        self.begun += u64::from(counts);
        self.places[place] = Some(Sent {
            operation,
            from,
            counts,
        });
    }

    fn end(&mut self, now: Instant, done: Done) {
        let sent = self.places[done.place]
            .take()
            .expect("a place ends what it began, once");
        self.free.push(done.place);
        let outcome = done.outcome.and_then(|answered| {
            if let Some(result) = &answered.result {
                self.workload.check(&sent.operation, result)?;
            }
            Ok(answered.path)
        });
        if outcome.is_ok() {
            if now >= self.measure_from && now <= self.until {
                let since = now.duration_since(self.measure_from);
                let before = self
                    .last_success
                    .saturating_duration_since(self.measure_from);
                self.measured.note_answer(since, before);
            }
            self.last_success = now;
        }
        // In the closed loop, what ends behind the window would make the window longer than it was. In the open loop
        // it was due within the window, and leaving out the slowest would make it look better than it is.
        let in_window =
            now <= self.until || self.plan.rate.is_some() || self.plan.requests.is_some();
        if !sent.counts || !in_window {
            return;
        }
        self.last_counted = now;
        match outcome {
            Ok(path) => {
                let latency = now.saturating_duration_since(sent.from).as_nanos();
                let latency = u64::try_from(latency).unwrap_or(u64::MAX);
                self.measured.latency_ns.saturating_record(latency.max(1));
                self.measured.answered += 1;
                if path.fast {
                    self.measured.fast += 1;
                } else {
                    *self.measured.steps.entry(path.steps).or_default() += 1;
                }
            }
            Err(error) => *self.measured.errors.entry(error).or_default() += 1,
        }
    }
}

/// When operations of the open loop are due: at even distances, however late the earlier ones are.
#[derive(Debug)]
struct Arrivals {
    interval_ns: f64,
    start: Instant,
    count: u64,
    next: Instant,
    /// Due and without a place.
    overdue: VecDeque<Instant>,
}

impl Arrivals {
    fn new(rate: f64, start: Instant) -> Self {
        Self {
            interval_ns: 1e9 / rate,
            start,
            count: 0,
            next: start,
            overdue: VecDeque::new(),
        }
    }

    fn advance(&mut self, now: Instant) {
        while self.next <= now {
            self.overdue.push_back(self.next);
            self.count += 1;
            #[allow(clippy::cast_precision_loss, reason = "2^53 operations are years")]
            let since = self.interval_ns * self.count as f64;
            self.next = self.start + Duration::from_nanos(nanos(since));
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast saturates, and the number is not negative"
)]
const fn nanos(value: f64) -> u64 {
    value as u64
}

/// A timer of the kernel: tokio's own is exact to a millisecond, which is longer than most operations take.
struct Timer {
    timer: AsyncFd<OwnedFd>,
    handle: TimerFd,
    armed: Option<Instant>,
}

impl Timer {
    fn new() -> anyhow::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let handle = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("making a timer")?;
        let watched = handle
            .as_fd()
            .try_clone_to_owned()
            .context("watching a timer")?;
        #[allow(
            deprecated,
            reason = "it is for types that may change their descriptor, which an OwnedFd does not; what replaces it is unsafe"
        )]
        let timer = AsyncFd::new(watched).context("watching a timer")?;
        Ok(Self {
            timer,
            handle,
            armed: None,
        })
    }

    /// Fires at this time, or at the earlier one that it is set to already.
    fn set(&mut self, at: Instant) -> anyhow::Result<()> {
        if self.armed.is_some_and(|armed| armed <= at) {
            return Ok(());
        }
        self.armed = Some(at);
        // 0 would switch it off.
        let wait = at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(wait));
        self.handle
            .set(expiration, TimerSetTimeFlags::empty())
            .context("setting a timer")
    }

    async fn fired(&mut self) -> anyhow::Result<()> {
        let mut guard = self.timer.readable().await.context("waiting for a timer")?;
        // It is not read: setting it again takes the event back.
        guard.clear_ready();
        self.armed = None;
        Ok(())
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
