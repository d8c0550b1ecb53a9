//! One thing happens: a twin takes a step, and its effects are carried out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rand::RngExt;
use twinbft_core::mutants::Rule;
use twinbft_core::{Effect, Event, EventKind, Execute, Input, LAZY_POST_US, Output, Refusal};
use twinbft_types::wire::{PeerMessage, pb};
use twinbft_types::{Certificate, Entry, Position, ReplicaId, Slot};

use super::crash::Kept;
use super::{ClientMessage, Happening, World};
use crate::byzantine::{Act, Double, Hints};
use crate::oracles::{Violation, check_event, check_footprint};
use crate::replica::BEGINNING_US;
use crate::scenario::Fault;
use crate::service::Restoring;

/// The most that a clock is ahead: its skew and its jumps.
const SKEW_US_MAX: u64 = 200_000 + 4 * 600_000;
/// How many slots behind a double answers that answers from earlier states.
const EARLIER_MAX: usize = 2;

impl World {
    pub(super) fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        if let Some(until_us) = self.paused_until(&happening) {
            self.agenda.schedule(until_us, happening);
            return Ok(());
        }
        let now_us = self.now_us;
        self.tracer.line(|| format!("{now_us} {happening:?}"));
        match happening {
            Happening::Input { to, mut input } => {
                // 7: the true end of the log as of the query's arrival.
                if let Input::Query { log_end, .. } = &mut *input {
                    *log_end = Position(self.logs[usize::from(to.host.0)].end());
                }
                self.note_request(to, &input);
                self.step(to, *input)
            }
            Happening::Peer { to, from, message } => self.deliver(to, from, message),
            Happening::Read { by } => self.read_log(by),
            Happening::Timer { of, at_us } => {
                let twin = self.twin(of);
                if twin.timer_us != Some(at_us) {
                    return Ok(());
                }
                twin.timer_us = None;
                self.step(of, Input::Timer)
            }
            Happening::Answer { to, input, life } => {
                let twin = self.twin(to);
                if twin.life != life {
                    return Ok(());
                }
                match *input {
                    Input::Checkpointed { .. } => twin.disk.settle_checkpoint(),
                    Input::Restored { .. } => {
                        // It takes the place of the service's files.
                        twin.disk.checkpoints.clear();
                        twin.disk.settle_checkpoint();
                    }
                    _ => {}
                }
                self.step(to, *input)
            }
            Happening::Synced { of, records, life } => self.synced(of, records, life),
            Happening::Crash { of, down_us, loss } => {
                self.crash(of, down_us, loss);
                Ok(())
            }
            // Its host is down as a whole, or was, and has started it.
            Happening::Restart { of } if self.is_host_down(of.host) || !self.twin(of).is_down => {
                Ok(())
            }
            Happening::Restart { of } => self.restart(of),
            Happening::Flush { of } => self.post_waiting(of),
            Happening::Overtaken { of, entry, life } => {
                let twin = self.twin(of);
                if twin.is_down || twin.life != life {
                    return Ok(());
                }
                self.post(of, *entry)
            }
            Happening::BrokerRestart { host } => {
                self.logs[usize::from(host.0)].restart_kept();
                Ok(())
            }
            Happening::HostLoss {
                host,
                down_us,
                what,
            } => {
                self.lose_host(host, down_us, what);
                Ok(())
            }
            Happening::HostReturn { host } => self.return_host(host),
            Happening::ToClient {
                client,
                from,
                hint,
                message,
            } => {
                self.arrive_at_client(client, from, hint, *message);
                Ok(())
            }
            Happening::ClientTimer { client, at_us } => {
                self.client_timer(client, at_us);
                Ok(())
            }
            Happening::Begin { client } => {
                self.serve_client(client);
                Ok(())
            }
            Happening::Rogue { rogue } => {
                self.serve_rogue(rogue);
                Ok(())
            }
        }
    }

    fn note_request(&mut self, to: ReplicaId, input: &Input) {
        let index = self.index(to);
        if let (Some(puppet), Input::Request { request, .. }) =
            (&mut self.twins[index].puppet, input)
        {
            puppet.note_request(request, &mut self.rng);
        }
    }

    /// When a paused twin goes on that this would happen to.
    fn paused_until(&self, happening: &Happening) -> Option<u64> {
        if self.scenario.faults.is_empty() {
            return None;
        }
        let to = match happening {
            Happening::Input { to, .. }
            | Happening::Peer { to, .. }
            | Happening::Answer { to, .. } => *to,
            Happening::Read { by } => *by,
            Happening::Timer { of, .. }
            | Happening::Synced { of, .. }
            | Happening::Overtaken { of, .. }
            | Happening::Flush { of } => *of,
            Happening::Crash { .. }
            | Happening::Restart { .. }
            | Happening::BrokerRestart { .. }
            | Happening::HostLoss { .. }
            | Happening::HostReturn { .. }
            | Happening::ToClient { .. }
            | Happening::ClientTimer { .. }
            | Happening::Begin { .. }
            | Happening::Rogue { .. } => return None,
        };
        let pauses = self.scenario.faults.iter().filter_map(|fault| match fault {
            Fault::Pause { span, twin } if *twin == to && span.contains(self.now_us) => {
                Some(span.to_us)
            }
            _ => None,
        });
        pauses.max()
    }

    fn deliver(
        &mut self,
        to: ReplicaId,
        from: ReplicaId,
        message: Arc<PeerMessage>,
    ) -> Result<(), Violation> {
        let index = self.index(to);
        if let Some(puppet) = self.twins[index].puppet.as_mut().filter(|p| p.listens()) {
            puppet.note_message(&message, &mut self.rng);
        }
        let message = Arc::unwrap_or_clone(message);
        self.step(to, Input::Peer { from, message })
    }

    pub(super) fn step(&mut self, id: ReplicaId, input: Input) -> Result<(), Violation> {
        let (now_us, index) = (self.now_us, self.index(id));
        if self.twins[index].is_down {
            return Ok(());
        }
        let jumped_us = self.clock_jump_us(id);
        let was_timer = matches!(input, Input::Timer);
        let mut effects = std::mem::take(&mut self.effects);
        let twin = &mut self.twins[index];
        twin.skew_us += jumped_us;
        let correct = twin.is_correct();
        let stepped = if correct {
            Ok(twin.step(now_us, input, &mut effects))
        } else {
            catch_unwind(AssertUnwindSafe(|| twin.step(now_us, input, &mut effects)))
        };
        twin.skew_us -= jumped_us;
        let Ok(fault) = stepped else {
            // What a double says in its core's place can break that core's own invariants: then it stops for good.
            twin.go_down();
            effects.0.clear();
            self.effects = effects;
            return Ok(());
        };
        if let Err(fault) = fault {
            self.tracer
                .line(|| format!("{now_us} {id} refuses: {fault}"));
        }
        for effect in effects.0.drain(..) {
            let Some(puppet) = &mut self.twins[index].puppet else {
                if !self.twins[index].is_down {
                    self.carry_out(id, effect)?;
                }
                continue;
            };
            let wrong_checkpoint = puppet.double == Double::WrongCheckpoint;
            self.note_wrong(id, &effect, wrong_checkpoint);
            let puppet = self.twins[index].puppet.as_mut().expect("it was here");
            for effect in puppet.rewrite(effect, &mut self.rng) {
                self.carry_out(id, effect)?;
            }
        }
        self.effects = effects;
        if self.twins[index].is_down {
            return Ok(());
        }
        self.settle(index)?;
        if correct {
            check_footprint(
                &self.twins[index].core,
                &self.scenario.tuning,
                self.scenario.shape.unanimous(),
            )?;
            let twin = &mut self.twins[index];
            twin.busy.check(&twin.core, was_timer, now_us)?;
        } else {
            self.act(id)?;
        }
        self.set_timer(index);
        Ok(())
    }

    /// A correct twin executes a slot.
    fn note_execution(&mut self, id: ReplicaId, execute: &Execute) -> Result<(), Violation> {
        if self.byzantine.contains(&id) {
            return Ok(());
        }
        let bound_us = self.scenario.tuning.clock_bound_us;
        let latest_us = BEGINNING_US + self.now_us + SKEW_US_MAX + bound_us;
        let what = (execute.clone(), latest_us);
        self.twin(id).unsettled.insert(execute.slot, what);
        Ok(())
    }

    /// What a correct twin has executed and knows to be committed is for good. Where it has foreseen that its host will have
    /// accepted it (its own ACCEPT is the last one that lacks), it is once that is read back: a crash may come in between,
    /// and then nobody has learnt of either.
    fn settle(&mut self, index: usize) -> Result<(), Violation> {
        let twin = &mut self.twins[index];
        if twin.unsettled.is_empty() {
            return Ok(());
        }
        let settled = twin.core.committed().min(twin.core.host_log().accepted().0);
        self.settle_up_to(index, settled)
    }

    /// At the end of a run, those that lag behind their host's siblings, too.
    pub(super) fn settle_all(&mut self) -> Result<(), Violation> {
        for index in 0..self.twins.len() {
            if !self.twins[index].is_down {
                self.settle_up_to(index, self.twins[index].core.committed())?;
            }
        }
        Ok(())
    }

    fn settle_up_to(&mut self, index: usize, settled: Slot) -> Result<(), Violation> {
        let twin = &mut self.twins[index];
        while let Some(first) = twin.unsettled.first_entry()
            && *first.key() <= settled
        {
            let (execute, latest_us) = first.remove();
            self.truth.execute(&execute, latest_us)?;
        }
        Ok(())
    }

    fn clock_jump_us(&self, id: ReplicaId) -> i64 {
        let jumps = self.scenario.faults.iter().filter_map(|fault| match fault {
            Fault::ClockJump { span, twin, by_us } if *twin == id && span.contains(self.now_us) => {
                Some(*by_us)
            }
            _ => None,
        });
        jumps.sum()
    }

    pub(super) fn set_timer(&mut self, index: usize) {
        let now_us = self.now_us;
        let twin = &mut self.twins[index];
        let Some(deadline) = twin.core.deadline() else {
            return;
        };
        let at_us = deadline.max(now_us + 1);
        if twin
            .timer_us
            .is_none_or(|timer| timer > at_us || timer <= now_us)
        {
            twin.timer_us = Some(at_us);
            let of = twin.id;
            self.agenda.schedule(at_us, Happening::Timer { of, at_us });
        }
    }

    /// A double does something of its own.
    fn act(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let index = self.index(id);
        let log_end = self.logs[usize::from(id.host.0)].end();
        let clients = u32::try_from(self.scenario.clients.len()).expect("clients are few");
        let twin = &mut self.twins[index];
        let (accepted, history) = twin.core.host_log().accepted();
        let hints = Hints {
            view: twin.core.view_hint(),
            accepted,
            history,
            log_end: Position(log_end),
            clients,
        };
        let Some(puppet) = &mut twin.puppet else {
            return Ok(());
        };
        for act in puppet.act(&hints, &mut self.rng) {
            match act {
                Act::Post(entry) => self.post(id, entry)?,
                Act::PostBytes(bytes) => self.post_bytes(id, bytes)?,
                Act::Send(to, message) => {
                    self.report.detection.wrong_messages += 1;
                    self.send(id, to, message)?;
                }
                Act::Reply(reply) => {
                    self.report.detection.wrong_messages += 1;
                    self.carry_out(id, Effect::Reply(reply))?;
                }
            }
        }
        Ok(())
    }

    /// Keeps account of a double's wrong outputs.
    fn note_wrong(&mut self, id: ReplicaId, effect: &Effect, wrong_checkpoint: bool) {
        let index = self.index(id);
        let double = self.twins[index].puppet.as_ref().map(|p| p.double);
        match effect {
            Effect::Post {
                entry: Entry::Results { slot, results, .. },
                ..
            } if matches!(double, Some(Double::WrongResult | Double::WrongService))
                && !results.is_empty() =>
            {
                self.wrong.insert((id, *slot, true));
            }
            Effect::Post {
                entry: Entry::Checkpoint { slot, .. },
                ..
            } if wrong_checkpoint => {
                self.wrong.insert((id, *slot, false));
            }
            Effect::Answer { .. } if double == Some(Double::WrongAnswer) => {
                self.report.detection.wrong_answers += 1;
            }
            _ => {}
        }
    }

    pub(super) fn carry_out(&mut self, id: ReplicaId, effect: Effect) -> Result<(), Violation> {
        self.trace_effect(id, &effect);
        match effect {
            Effect::Persist(record) => {
                self.write_ahead(id, record);
            }
            // What reveals a promise waits for the write-ahead log (3, durability rule).
            Effect::Post { .. }
            | Effect::Send { .. }
            | Effect::Reply(_)
            | Effect::Answer { .. }
            | Effect::Refuse { .. }
            | Effect::RefuseQuery { .. }
            | Effect::Trim { .. } => {
                let twin = self.twin(id);
                let records = twin.disk.records.len();
                if records > twin.disk.synced {
                    twin.held.push_back((records, effect));
                    return Ok(());
                }
                return self.let_out(id, effect);
            }
            Effect::Execute(execute) => {
                self.note_execution(id, &execute)?;
                let index = self.index(id);
                self.twins[index].undone.execute(id, execute.slot)?;
                let twin = &mut self.twins[index];
                let mut results: Vec<_> = execute
                    .requests
                    .iter()
                    .map(|r| twin.service.execute(execute.slot.0, &r.operation))
                    .collect();
                twin.service.note_slot(execute.slot.0);
                let stale = twin.puppet.as_ref();
                if stale.is_some_and(|p| p.double == Double::StaleAnswer) {
                    twin.earlier.push_back(twin.service.clone());
                    if twin.earlier.len() > EARLIER_MAX {
                        twin.earlier.pop_front();
                    }
                }
                let wrong = twin.puppet.as_ref();
                if wrong.is_some_and(|p| p.double == Double::WrongService) {
                    for result in &mut results {
                        *result = result.iter().map(|byte| byte ^ 0x5a).collect();
                    }
                }
                let slot = execute.slot;
                self.answer(id, Input::Executed { slot, results });
            }
            Effect::Rollback { slot } => {
                let mode = self.scenario.tuning.execution;
                let twin = self.twin(id);
                twin.undone.roll_back(id, slot, mode)?;
                assert_eq!(twin.base.0, slot, "the core knows the last checkpoint");
                twin.service = twin.base.1.clone();
                twin.unsettled.split_off(&slot.next());
            }
            Effect::Checkpoint(checkpoint) => {
                let slot = checkpoint.slot;
                let twin = self.twin(id);
                let service = twin.service.clone();
                let digest = service.digest();
                twin.base = (slot, service.clone());
                twin.snapshots.insert(slot, service.clone());
                twin.disk.unsure = Some(Kept {
                    checkpoint,
                    digest,
                    service,
                });
                self.answer(id, Input::Checkpointed { slot, digest });
            }
            Effect::KeepSnapshots { slots } => {
                let last = slots.iter().max().copied().unwrap_or_default();
                let snapshots = &mut self.twin(id).snapshots;
                snapshots.retain(|slot, _| slots.contains(slot) || *slot > last);
            }
            Effect::ReadChunk { slot, id: chunk } => {
                let service = self.twin(id).snapshots.get(&slot);
                let bytes = service.and_then(|service| service.read_chunk(chunk));
                let id_of_chunk = chunk;
                self.answer(
                    id,
                    Input::ChunkRead {
                        slot,
                        id: id_of_chunk,
                        bytes,
                    },
                );
            }
            Effect::RestoreBegin { slot, digest } => {
                self.twin(id).restoring = Some(Restoring::begin(slot, digest));
                self.answer(
                    id,
                    Input::Restoring {
                        slot,
                        chunk: None,
                        wanted: vec![Restoring::CHUNK],
                    },
                );
            }
            Effect::RestoreChunk { id: chunk, bytes } => {
                let restoring = self.twin(id).restoring.as_mut().expect("it was begun");
                let accepted = restoring.accept(chunk, &bytes);
                let (slot, wanted) = (restoring.slot, restoring.wanted());
                self.answer(
                    id,
                    Input::Restoring {
                        slot,
                        chunk: Some((chunk, accepted)),
                        wanted,
                    },
                );
            }
            Effect::RestoreActivate(checkpoint) => {
                let slot = checkpoint.slot;
                let twin = self.twin(id);
                let restoring = twin.restoring.take().expect("it was begun");
                twin.undone.restore(id, slot)?;
                twin.service = restoring.finish();
                let service = twin.service.clone();
                twin.base = (slot, service.clone());
                twin.unsettled.clear();
                twin.snapshots.insert(slot, service.clone());
                let digest = service.digest();
                twin.disk.unsure = Some(Kept {
                    checkpoint,
                    digest,
                    service,
                });
                self.answer(id, Input::Restored { slot });
            }
            Effect::Query { token, operation } => {
                let twin = self.twin(id);
                let service = twin.earlier.front().unwrap_or(&twin.service);
                let (result, version) = service.query(&operation);
                self.answer(
                    id,
                    Input::Queried {
                        token,
                        result,
                        version,
                    },
                );
            }
            Effect::Evidence(event) => {
                if !self.byzantine.contains(&id) {
                    #[cfg(test)]
                    self.events.push((id, event.clone()));
                    self.note_event(&event)?;
                }
            }
        }
        Ok(())
    }

    /// An effect leaves the twin.
    fn let_out(&mut self, id: ReplicaId, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::Post { entry, lazy } => {
                if lazy && self.rng.random_bool(0.5) {
                    let bytes = twinbft_types::canonical(&entry).into();
                    self.enqueue(id, bytes, Some(entry));
                    let after = self.rng.random_range(1..LAZY_POST_US);
                    self.schedule(after, Happening::Flush { of: id });
                    return Ok(());
                }
                let overtaken = twinbft_core::mutants::out(Rule::Fifo) && self.rng.random_bool(0.2);
                if overtaken {
                    let life = self.twin(id).life;
                    let after = self.rng.random_range(1..3_000);
                    let entry = Box::new(entry);
                    self.schedule(
                        after,
                        Happening::Overtaken {
                            of: id,
                            entry,
                            life,
                        },
                    );
                    return Ok(());
                }
                self.post(id, entry)
            }
            Effect::Send { to, message } => self.send(id, to, message),
            Effect::Reply(reply) => {
                let client = reply.client;
                self.send_to_client(id, client, ClientMessage::Reply(reply));
                Ok(())
            }
            Effect::Answer {
                answer,
                result,
                mac,
            } => {
                let client = answer.client;
                self.send_to_client(id, client, ClientMessage::Answer(answer, result, mac));
                Ok(())
            }
            Effect::Refuse {
                client,
                seq,
                reason,
            } => {
                // The transport tells whoever sent the bad MAC, not whose name stands on it.
                let honest = self.honest_clients().any(|c| c.id == client);
                if reason == Refusal::BadMac && honest {
                    return Ok(());
                }
                let message = ClientMessage::Refusal(seq, reason_on_the_wire(reason));
                self.send_to_client(id, client, message);
                Ok(())
            }
            Effect::Trim { position, state } => self.trim(id, position, &state),
            // A refused query falls back by its time-out.
            Effect::RefuseQuery { .. }
            | Effect::Persist(_)
            | Effect::Execute(_)
            | Effect::Rollback { .. }
            | Effect::Checkpoint(_)
            | Effect::KeepSnapshots { .. }
            | Effect::ReadChunk { .. }
            | Effect::RestoreBegin { .. }
            | Effect::RestoreChunk { .. }
            | Effect::RestoreActivate(_)
            | Effect::Query { .. }
            | Effect::Evidence(_) => Ok(()),
        }
    }

    fn synced(&mut self, of: ReplicaId, records: usize, life: u32) -> Result<(), Violation> {
        let twin = self.twin(of);
        if twin.life != life {
            return Ok(());
        }
        twin.disk.synced = twin.disk.synced.max(records);
        loop {
            let twin = self.twin(of);
            let synced = twin.disk.synced;
            let Some((_, effect)) = twin.held.pop_front_if(|(needs, _)| *needs <= synced) else {
                return Ok(());
            };
            self.let_out(of, effect)?;
        }
    }

    fn note_event(&mut self, event: &Event) -> Result<(), Violation> {
        check_event(event, &self.byzantine)?;
        match &event.kind {
            EventKind::Divergence { output, .. } => {
                self.report.divergences += 1;
                let is_result = *output == Output::Results;
                let slot = event.slot.unwrap_or(Slot(0));
                let wrong = self.wrong.iter();
                let seen: Vec<_> = wrong
                    .filter(|(r, s, result)| {
                        r.host == event.host && *s == slot && *result == is_result
                    })
                    .copied()
                    .collect();
                self.diverged.extend(seen);
            }
            EventKind::Culprit { .. } => {
                self.report.culprits += 1;
                if let (Some(twin), Some(slot)) = (event.twin, event.slot) {
                    let host = event.host;
                    self.named.insert((ReplicaId { host, twin }, slot, true));
                }
            }
            EventKind::NotDeterministic { .. }
            | EventKind::Mute
            | EventKind::Quarantined
            | EventKind::Readmitted
            | EventKind::ByOrder
            | EventKind::Invalid { .. }
            | EventKind::BadClient { .. } => {}
        }
        Ok(())
    }

    /// The service answers in order, after a while.
    fn answer(&mut self, id: ReplicaId, input: Input) {
        let delay = self.rng.random_range(1..50);
        let now_us = self.now_us;
        let twin = self.twin(id);
        twin.service_free_us = (twin.service_free_us + 1).max(now_us + delay);
        let (at_us, life) = (twin.service_free_us, twin.life);
        let answer = Happening::Answer {
            to: id,
            input: Box::new(input),
            life,
        };
        self.agenda.schedule(at_us, answer);
    }

    /// A twin sends a message to another host; if it carries a certificate, it must be a decision.
    fn send(
        &mut self,
        id: ReplicaId,
        to: ReplicaId,
        message: Arc<PeerMessage>,
    ) -> Result<(), Violation> {
        if let Some(certificate) = certificate_in(&message) {
            let shape = self.scenario.shape;
            let host = certificate.signed.host;
            let twins = usize::from(shape.twins());
            let all = &self.rings;
            let rings = (shape.receivers(host))
                .map(|r| &all[usize::from(r.host.0) * twins + usize::from(r.twin.0)]);
            if let Some(observer) = self.observers.get(usize::from(host.0)) {
                observer.check(shape, certificate, rings, &mut self.truth)?;
            }
        }
        self.transmit(id, to, message);
        Ok(())
    }
}

/// The certificate of a host that a message carries, if any.
#[must_use]
pub fn certificate_in(message: &PeerMessage) -> Option<&Certificate> {
    match message {
        PeerMessage::Order(order) => Some(&order.certificate),
        PeerMessage::Certificate(certificate) => Some(certificate),
        PeerMessage::Forward(forward) => Some(&forward.certificate),
        PeerMessage::FetchSlots { .. }
        | PeerMessage::FetchSlotResult { .. }
        | PeerMessage::FetchNewView { .. }
        | PeerMessage::FetchReport { .. }
        | PeerMessage::FetchChain { .. }
        | PeerMessage::FetchCheckpoint { .. }
        | PeerMessage::Checkpoint(_)
        | PeerMessage::FetchChunk(_)
        | PeerMessage::Chunk(_)
        | PeerMessage::Chain(_) => None,
    }
}

const fn reason_on_the_wire(reason: Refusal) -> pb::RefusalReason {
    match reason {
        Refusal::UnknownClient => pb::RefusalReason::UnknownClient,
        Refusal::BadMac => pb::RefusalReason::BadMac,
        Refusal::TooLarge => pb::RefusalReason::TooLarge,
        Refusal::OutsideWindow => pb::RefusalReason::OutsideWindow,
        Refusal::Busy => pb::RefusalReason::Busy,
        Refusal::SessionExpired => pb::RefusalReason::SessionExpired,
        Refusal::ResultDiscarded => pb::RefusalReason::ResultDiscarded,
        Refusal::Recovering => pb::RefusalReason::Recovering,
    }
}
