//! The core's thread: takes in what came, steps the core, carries out what it decided, sleeps.
//!
//! One round takes a bounded number of inputs from each source. All posts of a round share one flush, all records one
//! write, and all messages one wake of the network's thread.

mod effects;
mod inbox;
mod outbound;
mod postbox;
mod posts;
mod task;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use twinbft_core::{Effects, Input, Replica, Tick};
use twinbft_postbox::{ReadError, Wake};
use twinbft_types::{Position, ReplicaId, TwinId, View};

pub use inbox::{
    CLIENT_INPUT_BYTES_MAX, CLIENT_INPUTS_MAX, CONTROLS_MAX, ClientInput, Control, Inbox,
    PEER_INPUT_BYTES_MAX, PEER_INPUTS_MAX, peer_message_bytes,
};
pub use outbound::{Egress, Held, Outbound, ROUNDS_MAX, ToClient};
pub use postbox::{Link, LinkOptions};
pub use posts::{AppendLog, POST_BYTES_MAX, POST_BYTES_SOFT_MAX, PostError, Posts, Released};

use crate::progress::{Progress, State};
use crate::service::{Job, Service};
use crate::status::{CoreReport, DriverReport, Events, Faults, PostboxReport};
use crate::storage::{Lsn, Storage};

/// Log entries of one round. Entries go first: they are what other inputs are about.
const ENTRIES_PER_ROUND: usize = 256;
/// Messages of peers of one round.
const PEERS_PER_ROUND: usize = 128;
/// Messages of clients of one round.
const CLIENTS_PER_ROUND: usize = 128;
/// A thread that has nothing to do wakes up this often all the same, so that the watchdog sees it alive.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// Everything that the core's thread owns.
pub struct Driver {
    me: ReplicaId,
    core: Replica,
    link: Link,
    inbox: Arc<Inbox>,
    egress: Arc<Egress>,
    storage: Storage,
    service: Service,
    progress: Arc<Progress>,
    #[cfg(feature = "byzantine-doubles")]
    doubles: crate::byzantine::Doubles,
    started: Instant,
    now: Tick,
    /// The last record that was appended to the write-ahead log.
    persisted: Lsn,
    posts: Posts,
    outbound: Outbound,
    /// The view that clients were told.
    hinted: View,
    /// Rounds that wait for the disk.
    held: Held,
    /// Answers that are there already, to be stepped before anything else.
    ready: VecDeque<Input>,
    /// Used within a step, kept for its memory.
    effects: Effects,
    faults: Faults,
    events: Events,
    report: DriverReport,
    /// The log is read into this.
    payload: Vec<u8>,
    stopping: bool,
}

/// What a driver is made of.
pub struct Parts {
    /// Who this is.
    pub me: ReplicaId,
    /// At genesis.
    pub core: Replica,
    /// Connected.
    pub link: Link,
    /// The way in.
    pub inbox: Arc<Inbox>,
    /// The way out.
    pub egress: Arc<Egress>,
    /// Opened.
    pub storage: Storage,
    /// Started.
    pub service: Service,
    /// Opened.
    pub events: Events,
    /// What other threads see of this one.
    pub progress: Arc<Progress>,
    /// For the doubles' signatures.
    #[cfg(feature = "byzantine-doubles")]
    pub doubles: crate::byzantine::Doubles,
    /// When the process started: the zero of monotonic time.
    pub started: Instant,
}

impl Driver {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let mut driver = Self {
            me: parts.me,
            core: parts.core,
            link: parts.link,
            inbox: parts.inbox,
            egress: parts.egress,
            storage: parts.storage,
            service: parts.service,
            progress: parts.progress,
            #[cfg(feature = "byzantine-doubles")]
            doubles: parts.doubles,
            started: parts.started,
            now: Tick::default(),
            persisted: 0,
            posts: Posts::default(),
            outbound: Outbound::default(),
            hinted: View(0),
            held: Held::default(),
            ready: VecDeque::new(),
            effects: Effects::default(),
            faults: Faults::default(),
            events: parts.events,
            report: DriverReport::default(),
            payload: Vec::new(),
            stopping: false,
        };
        for fault in driver.core.take_start_faults() {
            driver.faults.record(&fault, 0);
        }
        driver
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When the node cannot go on: the disk, the service or the postbox's log failed.
    pub fn run(mut self) -> anyhow::Result<()> {
        while !self.stopping {
            let busy = self.round()?;
            self.progress.beat();
            if busy || self.stopping {
                continue;
            }
            if !self.progress.is_caught_up() {
                self.progress.set_caught_up();
            }
            self.wait()?;
        }
        self.finish()
    }

    /// What may go out still does, and everything is on the disk before the thread ends.
    fn finish(mut self) -> anyhow::Result<()> {
        self.storage.flush()?;
        self.release_posts()?;
        self.hand_outbound_over();
        self.storage.close()?;
        Ok(())
    }

    /// One round. Answers whether there may be more to do at once.
    ///
    /// # Errors
    /// When the node cannot go on.
    pub fn round(&mut self) -> anyhow::Result<bool> {
        self.report.rounds += 1;
        self.tick();
        let mut busy = self.take_entries()?;
        while let Some(answer) = self.inbox.answers.pop() {
            self.service.handle_answer(answer, &mut self.ready)?;
            self.step_ready()?;
        }
        // What is posted must find room; until it does, nothing new is taken from outside.
        if !self.posts.is_crowded() {
            busy |= self.take_peers()?;
            busy |= self.take_clients()?;
        }
        if self
            .core
            .deadline()
            .is_some_and(|at| at <= self.now.mono_us)
        {
            self.step(Input::Timer)?;
        }
        self.storage.flush()?;
        self.release_posts()?;
        self.hand_outbound_over();
        // Behind the flush: a state that operators hear of is one that a crash does not take back.
        while let Some(control) = self.inbox.poll_control() {
            self.handle_control(control)?;
            busy = true;
        }
        Ok(busy)
    }

    fn tick(&mut self) {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.now = Tick {
            mono_us: micros(self.started.elapsed()),
            wall_us: micros(wall),
        };
    }

    /// Answers of the service wait until the entries are read: a sibling that executed first posts its RESULT right
    /// behind the ACCEPT that lets this twin execute, and with both at hand the reply can go at once.
    fn take_entries(&mut self) -> anyhow::Result<bool> {
        let more = self.read_entries()?;
        self.step_ready()?;
        Ok(more)
    }

    fn read_entries(&mut self) -> anyhow::Result<bool> {
        for _ in 0..ENTRIES_PER_ROUND {
            let entry = match self.link.reader().poll_next(&mut self.payload) {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(false),
                Err(ReadError::Lapped { .. }) => {
                    self.resynchronise()?;
                    continue;
                }
                Err(error @ (ReadError::Corrupt { .. } | ReadError::BeyondEnd { .. })) => {
                    return Err(error).context("reading the postbox's log");
                }
            };
            self.report.entries += 1;
            let bytes = Bytes::from(std::mem::take(&mut self.payload));
            self.step_one(Input::Entry {
                position: Position(entry.position),
                sender: TwinId(entry.sender),
                bytes,
            })?;
        }
        Ok(true)
    }

    /// 2: who lags past the end of the log goes on from the agreed STATE.
    fn resynchronise(&mut self) -> anyhow::Result<()> {
        let state = self
            .link
            .reader()
            .resync()
            .context("catching up with the postbox's log")?;
        let state = state.context("the postbox's log was trimmed and has no agreed STATE")?;
        tracing::warn!(
            position = state.position,
            "the postbox's log was trimmed beyond this twin; going on from the agreed STATE"
        );
        self.step(Input::Lapped {
            position: Position(state.position),
            state: state.bytes.into(),
        })
    }

    fn take_peers(&mut self) -> anyhow::Result<bool> {
        for _ in 0..PEERS_PER_ROUND {
            let Some((from, message)) = self.inbox.peers.pop() else {
                self.inbox.peers.tell_room();
                return Ok(false);
            };
            self.step(Input::Peer { from, message })?;
        }
        self.inbox.peers.tell_room();
        Ok(true)
    }

    fn take_clients(&mut self) -> anyhow::Result<bool> {
        for _ in 0..CLIENTS_PER_ROUND {
            let Some(input) = self.inbox.clients.pop() else {
                self.inbox.clients.tell_room();
                return Ok(false);
            };
            let log_end = self.link.reader().end();
            self.step(input.into_input(log_end))?;
        }
        self.inbox.clients.tell_room();
        Ok(true)
    }

    /// Steps the core, and with the answers that come of it at once.
    fn step(&mut self, input: Input) -> anyhow::Result<()> {
        self.step_one(input)?;
        self.step_ready()
    }

    fn step_ready(&mut self) -> anyhow::Result<()> {
        while let Some(input) = self.ready.pop_front() {
            self.step_one(input)?;
        }
        Ok(())
    }

    fn step_one(&mut self, input: Input) -> anyhow::Result<()> {
        self.report.steps += 1;
        #[cfg(feature = "byzantine-doubles")]
        self.doubles.observe(&input);
        let mut effects = std::mem::take(&mut self.effects);
        if let Err(fault) = self.core.step(self.now, input, &mut effects) {
            self.faults.record(&fault, self.now.mono_us);
        }
        #[cfg(feature = "byzantine-doubles")]
        {
            self.doubles.rewrite(&mut effects);
            if let Some(bytes) = self.doubles.posts_besides(&effects) {
                self.posts.push_garbage(bytes, self.now.mono_us);
            }
        }
        let result = effects
            .drain()
            .try_for_each(|effect| self.carry_out(effect));
        self.effects = effects;
        result
    }

    fn submit(&mut self, job: Job) -> anyhow::Result<()> {
        Ok(self.service.submit(job, &mut self.ready)?)
    }

    fn release_posts(&mut self) -> anyhow::Result<()> {
        let revealable = self.storage.revealable();
        let Some(appender) = self.link.appender() else {
            return Ok(());
        };
        match self.posts.release(appender, revealable, self.now.mono_us)? {
            Released::All | Released::Full | Released::Closed => {}
        }
        self.link.poll_appender()
    }

    /// Hands over what may leave, with one wake of the network's thread for each round.
    fn hand_outbound_over(&mut self) {
        let view = self.core.view_hint();
        // Of a host's replies one twin may send all: every twin tells its clients of a new view by itself.
        if !self.outbound.is_empty() || view != self.hinted {
            self.hinted = view;
            let mut outbound = std::mem::take(&mut self.outbound);
            outbound.view = view;
            self.held.push(self.persisted, outbound);
        }
        let revealable = self.storage.revealable();
        while let Some(outbound) = self.held.pop(revealable) {
            self.report.sends += 1;
            self.egress.push(outbound);
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) -> anyhow::Result<()> {
        let timeout = self.timeout();
        if timeout.is_zero() {
            return Ok(());
        }
        self.report.waits += 1;
        // While posts crowd the queue, what waits outside must not keep this thread from sleeping.
        let crowded = self.posts.is_crowded();
        let inbox = &self.inbox;
        // An own entry that decides nothing yet is read together with the one that makes it decide.
        let for_own = !self.posts.is_empty() || self.core.awaits_own_entries();
        self.link.reader().wake_for_own(for_own);
        let wake = self
            .link
            .reader()
            .wait(Some(timeout), || !crowded && inbox.has_work());
        match wake {
            Wake::Ready | Wake::TimedOut => Ok(()),
            Wake::Closed(farewell) => self.reconnect(&farewell),
        }
    }

    fn timeout(&self) -> Duration {
        let deadline = [self.core.deadline(), self.posts.lazy_deadline()]
            .into_iter()
            .flatten()
            .min();
        let now = micros(self.started.elapsed());
        deadline.map_or(IDLE_MAX, |at| {
            Duration::from_micros(at.saturating_sub(now)).min(IDLE_MAX)
        })
    }

    /// The broker is gone: tries to come back to the same log, and answers operators meanwhile.
    fn reconnect(&mut self, farewell: &str) -> anyhow::Result<()> {
        tracing::warn!(farewell, "the postbox closed the channel; connecting again");
        self.progress.set_state(State::WaitingForPostbox);
        while !self.stopping && !self.try_reconnect()? {
            std::thread::sleep(self.link.pause());
        }
        Ok(())
    }

    /// One attempt to come back to the log; answers operators all the same.
    fn try_reconnect(&mut self) -> anyhow::Result<bool> {
        if self.link.try_reconnect()? {
            let caught_up = self.progress.is_caught_up();
            self.progress.set_state(if caught_up {
                State::Running
            } else {
                State::Replaying
            });
            return Ok(true);
        }
        self.progress.beat();
        let inbox = self.inbox.clone();
        while let Some(control) = inbox.poll_control() {
            self.handle_control(control)?;
        }
        Ok(false)
    }

    fn handle_control(&mut self, control: Control) -> anyhow::Result<()> {
        match control {
            Control::Report(answer) => {
                // Whoever asked may have gone.
                let _gone = answer.send(self.core_report());
            }
            Control::Readmit { twin, answer } => {
                let said = self.readmit(twin)?;
                let _gone = answer.send(said);
            }
            Control::Stop => self.stopping = true,
            #[cfg(feature = "byzantine-doubles")]
            Control::Double(double) => self.doubles.act(double),
        }
        Ok(())
    }

    /// Posts READMIT, or says why not.
    fn readmit(&mut self, twin: TwinId) -> anyhow::Result<Result<(), String>> {
        let host = self.me.host;
        if twin == self.me.twin {
            return Ok(Err(format!(
                "{} does not readmit itself; its siblings do",
                self.me
            )));
        }
        if !self.core.host_log().is_quarantined(twin) {
            return Ok(Err(format!("{host}/{twin} is not quarantined")));
        }
        self.step(Input::Readmit { twin })?;
        Ok(Ok(()))
    }

    fn core_report(&mut self) -> CoreReport {
        let (appended, flushes) = self.posts.counts();
        CoreReport {
            status: self.core.status(),
            state: self.progress.hiding_state(),
            faults: self.faults.counts(),
            events: self.events.snapshot(),
            event_totals: self.events.totals(),
            postbox: PostboxReport {
                appended,
                flushes,
                waiting: self.posts.len(),
                ..self.link.report()
            },
            storage: self.storage.status(),
            held: self.held.status(),
            service: self.service.status(),
            driver: self.report,
            footprint: self.core.footprint().into(),
            #[cfg(feature = "byzantine-doubles")]
            double: self.doubles.acting(),
            #[cfg(not(feature = "byzantine-doubles"))]
            double: None,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
