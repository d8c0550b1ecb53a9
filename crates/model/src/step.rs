//! One twin takes a step, and what comes of it.

use std::collections::VecDeque;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use twinbft_core::{Effect, Effects, Execute, Input, Record, Tick};
use twinbft_sim::{BEGINNING_US, certificate_in, check_event};
use twinbft_types::wire::{Outcome, PeerMessage, Reply};
use twinbft_types::{
    Digest, Domain, Entry, Position, ProcessId, ReplicaId, Request, Signed, Statement, View,
    batch_digest, from_canonical, history,
};

use crate::model::Model;
use crate::state::{Letter, Postbox, State, print};

impl Model {
    pub(crate) fn index(&self, id: ReplicaId) -> usize {
        usize::from(id.host.0) * usize::from(self.case.twins) + usize::from(id.twin.0)
    }

    pub(crate) fn id(&self, index: usize) -> ReplicaId {
        let twins = usize::from(self.case.twins);
        let part = |n: usize| u8::try_from(n).expect("a small cluster");
        ReplicaId::new(part(index / twins), part(index % twins))
    }

    pub(crate) fn is_byzantine(&self, index: usize) -> bool {
        self.case.byzantine == Some(self.id(index))
    }

    /// The service answers at once: the result of a request is its operation.
    pub(crate) fn step(&self, state: &mut State, index: usize, input: Input) {
        if state.nodes[index].is_down {
            return;
        }
        let mut core = Arc::clone(&state.nodes[index].core);
        let replica = Arc::make_mut(&mut core);
        let now_us = state.nodes[index].now_us;
        let now = Tick {
            mono_us: now_us,
            wall_us: BEGINNING_US + now_us,
        };
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Effects::default();
            let stepped = catch_unwind(AssertUnwindSafe(|| {
                // What the core refuses, it refuses; nobody here is surprised by a Byzantine twin.
                let _refused = replica.step(now, input, &mut effects);
            }));
            if let Err(panic) = stepped {
                let node = &mut state.nodes[index];
                node.is_down = true;
                node.posts.clear();
                if !self.is_byzantine(index) {
                    let text = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied());
                    let id = self.id(index);
                    state.fail(&format!("{id} panicked: {}", text.unwrap_or("no text")));
                }
                return;
            }
            for effect in effects.0 {
                self.carry_out(state, index, effect, &mut inputs);
            }
        }
        state.nodes[index].print = None;
        state.nodes[index].core = core;
        state.is_news |= self.is_byzantine(index);
    }

    fn carry_out(
        &self,
        state: &mut State,
        index: usize,
        effect: Effect,
        inputs: &mut VecDeque<Input>,
    ) {
        match effect {
            Effect::Post { entry, .. } => {
                self.check_holds(state, index, &entry);
                let bytes = Bytes::from(twinbft_types::canonical(&entry));
                state.nodes[index].posts.push_back(bytes);
            }
            Effect::Execute(execute) => {
                self.note_executed(state, index, &execute);
                inputs.push_back(Input::Executed {
                    slot: execute.slot,
                    results: execute.requests.into_iter().map(|r| r.operation).collect(),
                });
            }
            Effect::Checkpoint(checkpoint) => inputs.push_back(Input::Checkpointed {
                slot: checkpoint.slot,
                digest: checkpoint.history,
            }),
            Effect::Send { to, message } => self.send(state, index, to, message),
            Effect::Reply(reply) => self.check_reply(state, index, &reply),
            Effect::Evidence(event) => {
                let byzantine = self.case.byzantine.into_iter().collect();
                if !self.is_byzantine(index)
                    && let Err(violation) = check_event(&event, &byzantine)
                {
                    state.fail(&violation.to_string());
                }
            }
            // Nothing is executed before it is committed in these cases.
            Effect::Rollback { .. } => state.fail("what is committed was undone"),
            Effect::Persist(Record::Slot {
                slot,
                previous,
                timestamp_us,
                bodies,
                ..
            }) => {
                let requests: Vec<_> = bodies.iter().map(Request::reference).collect();
                let history = history(previous, slot, batch_digest(&requests), timestamp_us);
                let durable = &mut state.nodes[index].durable;
                durable.insert(history, (slot, previous));
            }
            // Nobody crashes, nothing is trimmed and no state is transferred in so few steps.
            Effect::Persist(_)
            | Effect::Trim { .. }
            | Effect::KeepSnapshots { .. }
            | Effect::ReadChunk { .. }
            | Effect::RestoreBegin { .. }
            | Effect::RestoreChunk { .. }
            | Effect::RestoreActivate(_)
            | Effect::Query { .. }
            | Effect::Answer { .. }
            | Effect::Refuse { .. }
            | Effect::RefuseQuery { .. } => {}
        }
    }

    /// 6: whoever proposes, endorses or accepts the log with which a view begins has its slots durably.
    fn check_holds(&self, state: &mut State, index: usize, entry: &Entry) {
        if self.is_byzantine(index) {
            return;
        }
        let id = self.id(index);
        let log = match *entry {
            Entry::NvPropose { slot, history, .. } | Entry::NvAccept { slot, history, .. } => {
                Some((slot, history))
            }
            Entry::NvEndorse { proposal, .. } => {
                let log = state.hosts[usize::from(id.host.0)].observer.log();
                let mut open = log.nv_proposals();
                let found = open.find(|open| open.position == proposal);
                found.map(|found| (found.slot, found.history))
            }
            _ => None,
        };
        if let Some((slot, history)) = log
            && !state.nodes[index].holds(slot, history)
        {
            state.fail(&format!(
                "{id} votes for a log up to slot {slot} that it does not hold"
            ));
        }
    }

    /// Invariants 1 and 4, and that nothing is executed that no host has ordered.
    fn note_executed(&self, state: &mut State, index: usize, execute: &Execute) {
        if self.is_byzantine(index) {
            return;
        }
        let ordered = |host: &Postbox| host.observer.has_ordered(execute.slot, execute.seed);
        if !state.hosts.iter().any(ordered) {
            let (id, slot) = (self.id(index), execute.slot);
            state.fail(&format!(
                "{id} executes slot {slot}, which no host has ordered"
            ));
        }
        let truth = Arc::make_mut(&mut state.truth);
        let agrees = truth.execute(execute, u64::MAX);
        state.truth_print = print(|to| write!(to, "{:?}", state.truth));
        if let Err(violation) = agrees {
            state.fail(&violation.to_string());
        }
    }

    /// Invariant 2.
    pub(crate) fn send(
        &self,
        state: &mut State,
        index: usize,
        to: ReplicaId,
        message: Arc<PeerMessage>,
    ) {
        if let Some(certificate) = certificate_in(&message) {
            let host = certificate.signed.host;
            if let Some(postbox) = state.hosts.get(usize::from(host.0)) {
                let rings = self
                    .shape
                    .receivers(host)
                    .map(|r| &self.rings[self.index(r)]);
                let observer = Arc::clone(&postbox.observer);
                let truth = Arc::make_mut(&mut state.truth);
                let checked = observer.check(self.shape, certificate, rings, truth);
                if matches!(certificate.signed.statement, Statement::Committed { .. }) {
                    state.truth_print = print(|to| write!(to, "{:?}", state.truth));
                }
                if let Err(violation) = checked {
                    state.fail(&violation.to_string());
                }
            }
        }
        if self.case.hosts == 1 {
            return;
        }
        let print = print(|text| write!(text, "{message:?}"));
        let from = self.id(index);
        let letter = Letter {
            from,
            to,
            message,
            print,
        };
        // What is under way already need not be sent again.
        let same =
            |l: &Letter| l.print == letter.print && l.to == letter.to && l.from == letter.from;
        if !state.letters.iter().any(same) {
            state.letters.push_back(letter);
        }
    }

    /// Invariant 3, as far as one result goes: what `q` twins certify was executed.
    fn check_reply(&self, state: &mut State, index: usize, reply: &Reply) {
        if !self.is_byzantine(index) && reply.macs.len() < self.shape.twin_quorum() {
            state.fail(&format!(
                "{} sends a reply that is not certified",
                self.id(index)
            ));
        }
        let Outcome::Result(result) = &reply.outcome else {
            return;
        };
        let signed = Signed {
            host: reply.host,
            incarnation: reply.incarnation,
            statement: Statement::Reply {
                view: reply.view,
                slot: reply.slot,
                client: reply.client,
                seq: reply.seq,
                result: Digest::of(result),
            },
        };
        let (digest, number) = (signed.digest(), reply.client.key as usize);
        let mut ring = self.clients[number].clone();
        let mut valid: Vec<_> = reply.macs.clone();
        valid.sort_unstable_by_key(|(twin, _)| *twin);
        valid.dedup_by_key(|(twin, _)| *twin);
        valid.retain(|(twin, mac)| {
            let host = reply.host;
            let twin = ProcessId::Twin(ReplicaId { host, twin: *twin });
            ring.verify(twin, Domain::Statement, digest, mac)
        });
        if valid.len() < self.shape.twin_quorum() {
            return;
        }
        let asked = &self.requests[number];
        if !state.truth.holds(reply.slot, reply.client, reply.seq) || *result != asked.operation {
            state.fail(&format!("a false reply is certified: {reply:?}"));
        }
        state.reached.replies |= 1 << number;
    }

    /// The broker takes an entry in; everybody who can only go on by reading reads.
    pub(crate) fn append(&self, state: &mut State, sender: ReplicaId, bytes: Bytes) {
        let host = usize::from(sender.host.0);
        let postbox = &mut state.hosts[host];
        let entry: Option<Entry> = from_canonical(&bytes).ok();
        let observer = Arc::make_mut(&mut postbox.observer);
        let read = observer.read(sender.twin, entry.as_ref());
        postbox.print = None;
        let liar = self.case.byzantine.map(|id| id.host);
        state.is_news |= liar == Some(sender.host);
        postbox.unread.push_back((sender.twin, bytes));
        if let Err(violation) = read {
            state.fail(&violation.to_string());
        }
    }

    /// A twin reads the next entry.
    pub(crate) fn read(&self, state: &mut State, index: usize) {
        let host = usize::from(self.id(index).host.0);
        let node = &mut state.nodes[index];
        let postbox = &state.hosts[host];
        let offset = usize::try_from(node.read - postbox.begin).expect("a short log");
        let (sender, bytes) = postbox.unread[offset].clone();
        let position = Position(node.read);
        node.read += 1;
        self.step(
            state,
            index,
            Input::Entry {
                position,
                sender,
                bytes,
            },
        );
        let view = state.nodes[index].core.host_log().live_view();
        state.reached.view_changed |= view.is_some_and(|view| view > View(0));
    }

    /// Whether this twin has something to read.
    pub(crate) fn can_read(&self, state: &State, index: usize) -> bool {
        let postbox = &state.hosts[usize::from(self.id(index).host.0)];
        let node = &state.nodes[index];
        !node.is_down && node.read < postbox.begin + postbox.unread.len() as u64
    }

    /// The time of a twin runs out, with whatever timer that has.
    pub(crate) fn time_out(&self, state: &mut State, index: usize) {
        state.nodes[index].now_us += self.tuning.suspect_after_us + 1;
        for _ in 0..TIMERS_MAX {
            if !state.nodes[index].is_timer_due() {
                return;
            }
            self.step(state, index, Input::Timer);
        }
    }
}

/// Timers that may be due at one time; a deadline that stays in the past is the simulator's to find.
const TIMERS_MAX: u32 = 8;

impl State {
    /// The first violation stays.
    pub(crate) fn fail(&mut self, what: &str) {
        self.violation.get_or_insert_with(|| what.into());
    }

    /// Makes the digests of what has changed.
    pub(crate) fn print_changed(&mut self) {
        for node in &mut self.nodes {
            let core = &node.core;
            node.print
                .get_or_insert_with(|| print(|to| core.write_state(to)));
        }
        for postbox in &mut self.hosts {
            let observer = &postbox.observer;
            postbox
                .print
                .get_or_insert_with(|| print(|to| write!(to, "{observer:?}")));
        }
    }

    /// What everybody has read is of no more use.
    pub(crate) fn forget_read(&mut self, twins: usize) {
        for (host, postbox) in self.hosts.iter_mut().enumerate() {
            let nodes = &self.nodes[host * twins..(host + 1) * twins];
            let all = nodes.iter().filter(|n| !n.is_down).map(|n| n.read).min();
            while all.is_some_and(|all| postbox.begin < all) {
                postbox.unread.pop_front();
                postbox.begin += 1;
            }
        }
    }
}
