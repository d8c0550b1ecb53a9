//! One thing happens: a twin takes a step, and its effects are carried out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use twinbft_core::{Effect, Event, EventKind, Input, Output};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Position, ReplicaId, Slot};

use super::{Happening, World};
use crate::byzantine::{Act, Double, Hints};
use crate::oracles::{Violation, check_event, check_footprint};
use crate::scenario::Fault;

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
                self.twins[index].life,
            )?;
            let twin = &mut self.twins[index];
            twin.busy.check(&twin.core, was_timer, now_us)?;
        } else {
            self.act(id)?;
        }
        self.set_timer(index);
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

    pub(super) fn note_event(&mut self, event: &Event) -> Result<(), Violation> {
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
}
