//! Carrying out what the core decided, in its order.

use twinbft_core::{Effect, Event};

use super::{Driver, ToClient};
use crate::service::Job;

impl Driver {
    /// Carries one effect out, or puts it where the end of the round finds it.
    ///
    /// # Errors
    /// A failed effect stops the node.
    pub(super) fn carry_out(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Persist(record) => {
                self.persisted = self.storage.append(&record)?;
            }
            Effect::Post { entry, lazy } => {
                self.posts
                    .push(&entry, lazy, self.persisted, self.now.mono_us);
            }
            Effect::Send { to, message } => self.outbound.peers.push((to, message)),
            Effect::Execute(batch) => self.submit(Job::Execute(batch))?,
            Effect::Rollback { slot } => {
                tracing::info!(
                    slot = slot.0,
                    "the new view has dropped slots that were executed tentatively; executing again from the last checkpoint"
                );
                self.submit(Job::Rollback { slot })?;
            }
            Effect::Checkpoint(checkpoint) => {
                self.submit(Job::Checkpoint(Box::new(checkpoint)))?;
            }
            Effect::KeepSnapshots { slots } => self.service.keep_snapshots(&slots),
            Effect::ReadChunk { slot, id } => self.service.read_chunk(slot, id),
            Effect::RestoreBegin { slot, digest } => {
                tracing::info!(
                    slot = slot.0,
                    "fetching the state of a checkpoint from the others"
                );
                self.submit(Job::RestoreBegin { slot, digest })?;
            }
            Effect::RestoreChunk { id, bytes } => self.submit(Job::RestoreChunk { id, bytes })?,
            Effect::RestoreActivate(checkpoint) => {
                tracing::info!(
                    slot = checkpoint.slot.0,
                    "the state is here; going on from it"
                );
                self.submit(Job::RestoreActivate(Box::new(checkpoint)))?;
            }
            Effect::Query { token, operation } => self.submit(Job::Query { token, operation })?,
            Effect::Reply(reply) => self.outbound.clients.push(ToClient::Reply(reply)),
            Effect::Answer {
                answer,
                result,
                mac,
            } => self.outbound.clients.push(ToClient::Answer {
                answer,
                result,
                mac,
            }),
            Effect::Refuse {
                client,
                seq,
                reason,
            } => self.outbound.clients.push(ToClient::Refuse {
                client,
                seq,
                reason,
            }),
            Effect::RefuseQuery {
                client,
                nonce,
                reason,
            } => self.outbound.clients.push(ToClient::RefuseQuery {
                client,
                nonce,
                reason,
            }),
            Effect::Trim { position, state } => self.link.trim(position.0, &state)?,
            Effect::Evidence(event) => self.record_event(&event)?,
        }
        Ok(())
    }

    fn record_event(&mut self, event: &Event) -> anyhow::Result<()> {
        let is_again = !self.progress.is_caught_up();
        self.events
            .record(self.me, event, self.now.wall_us, is_again)
    }
}
