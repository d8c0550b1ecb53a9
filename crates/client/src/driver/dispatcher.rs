//! The one task that owns all sessions of a client: it reads commands and frames, and everything that they cause
//! goes out together at the end of the round.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use twinbft_types::wire::{Reply, answer_from_wire, pb, query_to_wire};
use twinbft_types::{ClientId, ReplicaId, Seq, View};

use super::link::{INBOUND_FRAMES_MAX, Inbound, Link, LinkState};
use super::mailbox::Mailbox;
use super::queue::SessionKey;
use super::slot::{Operation, Owner, Slot, Unreachable};
use super::stats::Stats;
use crate::session::{
    FaultCounters, Message, ReplicaFault, Session, SessionConfig, Transmit, ViewHints,
};

/// How exactly time-outs are kept.
const TICK: Duration = Duration::from_millis(10);
/// Bits of a session's number below its microseconds.
const SESSION_RANDOM_BITS: u32 = 12;

/// With more sessions under way than this, requests go to each twin of the primary host.
const UNCROWDED_SESSIONS_MAX: usize = 4;

/// What callers ask of the dispatcher.
#[derive(Debug)]
pub(super) enum Command {
    Open {
        key: SessionKey,
        owner: Owner,
    },
    Submit {
        key: SessionKey,
        operation: Operation,
    },
    Close {
        key: SessionKey,
    },
    Report(oneshot::Sender<Stats>),
}

/// Everything that the dispatcher needs from outside.
pub(super) struct Dispatcher {
    /// The settings of every session; the id is filled in.
    pub(super) template: SessionConfig,
    pub(super) commands: Arc<Mailbox<Command>>,
    pub(super) inbound: mpsc::Receiver<Inbound>,
    /// By host, then twin.
    pub(super) links: Vec<Arc<Link>>,
}

struct State {
    template: SessionConfig,
    links: Vec<Arc<Link>>,
    staged: Vec<pb::ClientFrame>,
    hints: ViewHints,
    slots: HashMap<SessionKey, Slot>,
    by_session: HashMap<u64, SessionKey>,
    dirty: Vec<SessionKey>,
    active: Vec<SessionKey>,
    last_session: u64,
    started: Instant,
    stats: Stats,
    /// Faults of sessions that are gone, and those that belong to none.
    faults: FaultCounters,
}

impl Dispatcher {
    /// Runs until the task is aborted.
    pub(super) async fn run(mut self) {
        let mut state = State::new(self.template, self.links);
        let mut commands = Vec::new();
        let mut frames = Vec::new();
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ticked = poll_fn(|context| {
                next_round(
                    context,
                    &self.commands,
                    &mut commands,
                    &mut self.inbound,
                    &mut frames,
                    (!state.active.is_empty()).then_some(&mut interval),
                )
            })
            .await;
            state.round(&mut commands, &mut frames, ticked);
        }
    }
}

/// Ready when there is anything to do; all sources are asked each time, so none waits for another. The value says
/// whether time-outs are to be looked at.
fn next_round(
    context: &mut Context<'_>,
    mailbox: &Mailbox<Command>,
    commands: &mut Vec<Command>,
    inbound: &mut mpsc::Receiver<Inbound>,
    frames: &mut Vec<Inbound>,
    interval: Option<&mut Interval>,
) -> Poll<bool> {
    let some_commands = mailbox.poll_take(context, commands).is_ready();
    let some_frames = inbound
        .poll_recv_many(context, frames, INBOUND_FRAMES_MAX)
        .is_ready();
    // An idle client has nothing to time out, and sleeps.
    let ticked = interval.is_some_and(|interval| interval.poll_tick(context).is_ready());
    if some_commands || some_frames || ticked {
        Poll::Ready(ticked)
    } else {
        Poll::Pending
    }
}

impl State {
    fn new(template: SessionConfig, links: Vec<Arc<Link>>) -> Self {
        Self {
            staged: links.iter().map(|_| pb::ClientFrame::default()).collect(),
            hints: ViewHints::new(template.shape),
            template,
            links,
            slots: HashMap::new(),
            by_session: HashMap::new(),
            dirty: Vec::new(),
            active: Vec::new(),
            last_session: 0,
            started: Instant::now(),
            stats: Stats::default(),
            faults: FaultCounters::default(),
        }
    }

    fn round(&mut self, commands: &mut Vec<Command>, frames: &mut Vec<Inbound>, ticked: bool) {
        let now_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        for (from, frame) in frames.drain(..) {
            match frame {
                Some(frame) => self.handle_frame(now_us, from, frame),
                // The replica knows no session of this stream yet.
                None => self
                    .slots
                    .values_mut()
                    .for_each(|slot| slot.session.announce()),
            }
        }
        for command in commands.drain(..) {
            self.handle_command(now_us, command);
        }
        if ticked {
            self.handle_tick(now_us);
        }
        self.pump(now_us);
        for (link, frame) in self.links.iter().zip(&mut self.staged) {
            link.append(frame);
        }
    }

    fn handle_command(&mut self, now_us: u64, command: Command) {
        match command {
            Command::Open { key, owner } => {
                let session = self.new_session(key);
                let slot = Slot::new(key, session, owner, self.template.shape);
                self.slots.insert(key, slot);
            }
            Command::Submit { key, operation } => {
                self.renew_if_forgotten(key);
                let crowded = self.active.len() > UNCROWDED_SESSIONS_MAX;
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.session.set_crowded(crowded);
                    slot.submit(now_us, operation);
                    self.mark(key);
                }
            }
            Command::Close { key } => {
                if let Some(slot) = self.slots.remove(&key) {
                    self.forget(&slot.session);
                }
            }
            Command::Report(to) => {
                // Whoever asked may be gone by now.
                let _ = to.send(self.report());
            }
        }
    }

    /// A fresh session. Numbers grow with time, as [`ClientId`] asks; the random part keeps two processes with the
    /// same key apart that open a session in the same microsecond, because they would get each other's answers.
    fn new_session(&mut self, key: SessionKey) -> Session {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let micros = u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX);
        let random = rand::random_range(0..1u64 << SESSION_RANDOM_BITS);
        let fresh = micros.saturating_mul(1 << SESSION_RANDOM_BITS) | random;
        self.last_session = fresh.max(self.last_session + 1);
        self.by_session.insert(self.last_session, key);
        let mut session = Session::new(SessionConfig {
            client: ClientId {
                key: self.template.client.key,
                session: self.last_session,
            },
            ..self.template.clone()
        });
        session.set_view(self.hints.view());
        session
    }

    fn forget(&mut self, session: &Session) {
        self.by_session.remove(&session.client().session);
        self.faults.merge(session.faults());
        self.stats.late_replies += session.late_replies();
    }

    /// The replicas keep a bounded number of sessions: the next operation after that gets a session of its own.
    fn renew_if_forgotten(&mut self, key: SessionKey) {
        let ended = |slot: &Slot| {
            slot.is_ended() && slot.session.closed() == Some(pb::RefusalReason::SessionExpired)
        };
        if self.slots.get(&key).is_some_and(ended) {
            let fresh = self.new_session(key);
            let mut slot = self.slots.remove(&key).expect("it has just been seen");
            self.forget(&slot.session);
            slot.renew(fresh);
            self.slots.insert(key, slot);
        }
    }

    /// The session has something to send or to tell.
    fn mark(&mut self, key: SessionKey) {
        let Some(slot) = self.slots.get_mut(&key) else {
            return;
        };
        if !std::mem::replace(&mut slot.dirty, true) {
            self.dirty.push(key);
        }
        if !std::mem::replace(&mut slot.active, true) {
            self.active.push(key);
        }
    }

    fn handle_frame(&mut self, now_us: u64, from: ReplicaId, frame: pb::ReplicaFrame) {
        self.stats.frames_received += 1;
        self.stats.replies_received += frame.replies.len() as u64;
        self.stats.answers_received += frame.answers.len() as u64;
        self.stats.refusals_received += frame.refusals.len() as u64;
        for reply in frame.replies {
            let Some(key) = self.by_session.get(&reply.session).copied() else {
                self.stats.for_nobody += 1;
                continue;
            };
            match Reply::try_from(reply) {
                Ok(reply) => self.with(key, |slot| slot.session.handle_reply(from, &reply)),
                Err(error) => self.malformed(from, &error),
            }
        }
        for answer in frame.answers {
            let Some(key) = self.by_session.get(&answer.session).copied() else {
                self.stats.for_nobody += 1;
                continue;
            };
            match answer_from_wire(answer, self.template.client.key) {
                Ok((answer, result, mac)) => self.with(key, |slot| {
                    slot.session.handle_answer(from, &answer, &result, &mac);
                }),
                Err(error) => self.malformed(from, &error),
            }
        }
        for refusal in frame.refusals {
            let reason = pb::RefusalReason::try_from(refusal.reason)
                .unwrap_or(pb::RefusalReason::Unspecified);
            if let Some(key) = self.by_session.get(&refusal.session).copied() {
                self.with(key, |slot| {
                    slot.session
                        .handle_refusal(now_us, from, Seq(refusal.seq), reason);
                });
            } else {
                self.stats.for_nobody += 1;
            }
        }
        if self.hints.handle_hint(from, View(frame.view_hint)) {
            let view = self.hints.view();
            for slot in self.slots.values_mut() {
                slot.session.set_view(view);
            }
        }
    }

    fn with(&mut self, key: SessionKey, then: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots.get_mut(&key) {
            then(slot);
            self.mark(key);
        }
    }

    fn malformed(&mut self, from: ReplicaId, error: &twinbft_types::wire::FormError) {
        tracing::debug!(replica = %from, %error, "malformed message");
        self.faults.add(ReplicaFault::Malformed);
    }

    fn handle_tick(&mut self, now_us: u64) {
        let links = &self.links;
        let unreachable = || unreachable(links);
        let mut active = std::mem::take(&mut self.active);
        active.retain(|key| {
            let Some(slot) = self.slots.get_mut(key) else {
                return false;
            };
            slot.expire(now_us, &unreachable);
            if slot.session.poll_timeout().is_some_and(|due| due <= now_us) {
                slot.session.handle_timeout(now_us);
                if !std::mem::replace(&mut slot.dirty, true) {
                    self.dirty.push(*key);
                }
            }
            slot.active = slot.is_busy();
            slot.active
        });
        self.active = active;
    }

    fn pump(&mut self, now_us: u64) {
        for key in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.slots.get_mut(&key) else {
                continue;
            };
            slot.dirty = false;
            slot.pump_events(now_us);
            while let Some(transmit) = slot.session.poll_transmit() {
                stage(
                    &mut self.staged,
                    &mut self.stats,
                    self.template.shape,
                    transmit,
                );
            }
        }
    }

    fn report(&self) -> Stats {
        let mut stats = self.stats.clone();
        stats.faults = self.faults.clone();
        for slot in self.slots.values() {
            stats.faults.merge(slot.session.faults());
            stats.late_replies += slot.session.late_replies();
        }
        for link in &self.links {
            let (frames, dropped) = link.counts();
            stats.frames_sent += frames;
            stats.dropped += dropped;
        }
        stats.view = self.hints.view();
        stats.links = self
            .links
            .iter()
            .map(|link| (link.replica, link.state()))
            .collect();
        stats
    }
}

/// Replicas without a connection, and why.
pub(super) fn unreachable(links: &[Arc<Link>]) -> Unreachable {
    links
        .iter()
        .filter_map(|link| match link.state() {
            LinkState::Up => None,
            LinkState::Connecting => Some((link.replica, "still connecting".to_owned())),
            LinkState::Down(why) => Some((link.replica, why)),
        })
        .collect()
}

fn stage(
    staged: &mut [pb::ClientFrame],
    stats: &mut Stats,
    shape: twinbft_types::Shape,
    transmit: Transmit,
) {
    let index = usize::from(transmit.to.host.0) * usize::from(shape.twins())
        + usize::from(transmit.to.twin.0);
    let frame = &mut staged[index];
    match transmit.message {
        Message::Request {
            signed,
            retransmission,
            leader_alone,
        } => {
            stats.requests_sent += 1;
            stats.retransmissions_sent += u64::from(retransmission);
            let mut request = pb::Request::from(&signed);
            request.retransmission = retransmission;
            request.leader_alone = leader_alone;
            frame.requests.push(request);
        }
        Message::Query { query, mac } => {
            stats.queries_sent += 1;
            frame.queries.push(query_to_wire(&query, mac));
        }
    }
}
