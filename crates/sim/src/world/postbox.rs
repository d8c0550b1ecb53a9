//! The postbox of each host: appends in order, readings, trims.

use bytes::Bytes;
use rand::RngExt;
use twinbft_core::Input;
use twinbft_postbox::{MemoryRead, Outcome, Refusal};
use twinbft_types::{Entry, Position, ReplicaId, TwinId, canonical, from_canonical};

use super::{Happening, World};
use crate::oracles::{Violation, check_audit};
use crate::replica::Post;

impl World {
    pub(super) fn post(&mut self, id: ReplicaId, entry: Entry) -> Result<(), Violation> {
        let bytes = canonical(&entry).into();
        self.enqueue(id, bytes, Some(entry));
        self.post_waiting(id)
    }

    pub(super) fn post_bytes(&mut self, id: ReplicaId, bytes: Bytes) -> Result<(), Violation> {
        let entry = from_canonical(&bytes).ok();
        self.enqueue(id, bytes, entry);
        self.post_waiting(id)
    }

    pub(super) fn enqueue(&mut self, id: ReplicaId, bytes: Bytes, entry: Option<Entry>) {
        let entry = entry.map(Box::new);
        self.twin(id).posts.push_back(Post { bytes, entry });
    }

    /// Appends what waits, in order, until the postbox refuses for room.
    pub(super) fn post_waiting(&mut self, id: ReplicaId) -> Result<(), Violation> {
        let host = usize::from(id.host.0);
        let index = self.index(id);
        let mut appended = false;
        while let Some(post) = self.twins[index].posts.front() {
            let number = self.twins[index].append_number;
            match self.logs[host].append(id.twin.0, number, post.bytes.clone()) {
                Outcome::Accepted(_) => {
                    appended = true;
                    let twin = &mut self.twins[index];
                    twin.append_number += 1;
                    let post = twin.posts.pop_front().expect("it is in front");
                    self.report.honest += u64::from(twin.is_correct());
                    let (entry, bytes) = (post.entry.as_deref(), post.bytes.len() as u64);
                    self.observers[host].read(id.twin, entry)?;
                    let auditor = &mut self.auditors[host];
                    let found =
                        crate::mutation::pristine(|| auditor.handle_decoded(id.twin, entry, bytes));
                    let named = check_audit(id.host, &found, &self.byzantine)?;
                    #[cfg(test)]
                    self.audited.extend(named);
                    #[cfg(not(test))]
                    drop(named);
                }
                // Of no use to send again; a correct twin posts nothing of the kind.
                Outcome::Refused(Refusal::TooLarge) => {
                    self.twins[index].posts.pop_front();
                }
                Outcome::Refused(Refusal::OverQuota) | Outcome::OutOfOrder { .. } => break,
            }
        }
        if appended {
            for twin in self.scenario.shape.all_twins() {
                let host = id.host;
                self.schedule_reading(ReplicaId { host, twin });
            }
        }
        Ok(())
    }

    pub(super) fn schedule_reading(&mut self, by: ReplicaId) {
        let delay = self.rng.random_range(1..30) + self.slowness_us(by);
        let at_us = self.now_us + delay;
        let twin = self.twin(by);
        if twin.read_at_us.is_none() {
            twin.read_at_us = Some(at_us);
            self.agenda.schedule(at_us, Happening::Read { by });
        }
    }

    pub(super) fn read_log(&mut self, by: ReplicaId) -> Result<(), Violation> {
        let index = self.index(by);
        let host = usize::from(by.host.0);
        self.twins[index].read_at_us = None;
        if self.twins[index].is_down {
            return Ok(());
        }
        for _ in 0..self.scenario.reads_max {
            let position = self.twins[index].position;
            let input = match self.logs[host].read(position) {
                MemoryRead::Entry(entry) => Input::Entry {
                    position: Position(entry.position),
                    sender: TwinId(entry.sender),
                    bytes: entry.bytes.clone(),
                },
                MemoryRead::NotYet => return Ok(()),
                // Only with m > q can a twin be lapped.
                MemoryRead::Lapped => {
                    let agreed = self.logs[host].agreed_state();
                    let agreed = agreed.expect("the log was trimmed").clone();
                    self.twins[index].position = agreed.position;
                    let lapped = Input::Lapped {
                        position: Position(agreed.position),
                        state: agreed.bytes.into(),
                    };
                    self.step(by, lapped)?;
                    continue;
                }
            };
            self.twins[index].position += 1;
            self.note_for_puppet(index, &input);
            self.step(by, input)?;
            if self.twins[index].is_down {
                return Ok(());
            }
        }

        if self.twins[index].position < self.logs[host].end() {
            self.schedule_reading(by);
        }
        Ok(())
    }

    fn note_for_puppet(&mut self, index: usize, input: &Input) {
        let puppet = self.twins[index].puppet.as_mut().filter(|p| p.listens());
        if let (Some(puppet), Input::Entry { bytes, .. }) = (puppet, input)
            && let Ok(entry) = from_canonical(bytes)
        {
            puppet.note_entry(&entry, &mut self.rng);
        }
    }

    pub(super) fn trim(
        &mut self,
        id: ReplicaId,
        position: Position,
        state: &[u8],
    ) -> Result<(), Violation> {
        let host = id.host;
        self.logs[usize::from(host.0)].trim(id.twin.0, position.0, state);
        for twin in self.scenario.shape.all_twins() {
            self.post_waiting(ReplicaId { host, twin })?;
        }
        Ok(())
    }
}
