//! What a core wants done is done: records, executions, checkpoints, posts and messages.

use std::sync::Arc;

use rand::RngExt;

use twinbft_core::mutants::Rule;
use twinbft_core::{Effect, Execute, Input, LAZY_POST_US, Refusal};
use twinbft_types::wire::{PeerMessage, pb};
use twinbft_types::{Certificate, Entry, ReplicaId};

use super::crash::Kept;
use super::{ClientMessage, Happening, World};
use crate::byzantine::Double;
use crate::oracles::Violation;
use crate::replica::BEGINNING_US;
use crate::service::Restoring;

/// The most that a clock is ahead: its skew and its jumps.
const SKEW_US_MAX: u64 = 200_000 + 4 * 600_000;
/// How many slots behind a double answers that answers from earlier states.
const EARLIER_MAX: usize = 2;

impl World {
    /// A correct twin executes a slot.
    pub(super) fn note_execution(
        &mut self,
        id: ReplicaId,
        execute: &Execute,
    ) -> Result<(), Violation> {
        if self.byzantine.contains(&id) {
            return Ok(());
        }
        let bound_us = self.scenario.tuning.clock_bound_us;
        let latest_us = BEGINNING_US + self.now_us + SKEW_US_MAX + bound_us;
        let what = (execute.clone(), latest_us);
        self.twin(id).unsettled.insert(execute.slot, what);
        Ok(())
    }

    /// Keeps account of a double's wrong outputs.
    pub(super) fn note_wrong(&mut self, id: ReplicaId, effect: &Effect, wrong_checkpoint: bool) {
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
    pub(super) fn let_out(&mut self, id: ReplicaId, effect: Effect) -> Result<(), Violation> {
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

    pub(super) fn synced(
        &mut self,
        of: ReplicaId,
        records: usize,
        life: u32,
    ) -> Result<(), Violation> {
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

    /// The service answers in order, after a while.
    pub(super) fn answer(&mut self, id: ReplicaId, input: Input) {
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
    pub(super) fn send(
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
