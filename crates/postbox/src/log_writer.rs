//! The single writer of a log region: the ledger's rules put into memory. Appends become visible
//! together at `publish`.

use std::sync::Arc;

use crate::atomic::{Ordering, fence};
use crate::layout::{MAGIC, RegionLayout, VERSION, header, state_field, twin_field};
use crate::ledger::{Ledger, Limits, LimitsError, Outcome, Placed, Refusal, Retained, TrimOutcome};
use crate::log_view::{Corruption, LogInfo, LogView, ReadError, RegionError, state_checksum};
use crate::raw::{ReadMemory, WriteMemory};
use crate::record::{EntryHeader, HEADER_BYTES, encode_pad};
use crate::regions::Regions;

/// Why an earlier region cannot be continued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// It is no log of this layout.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Its content does not hold together.
    #[error(transparent)]
    Content(#[from] ReadError),
    /// No ledger leads to this content.
    #[error("the retained entries break the log's own limits")]
    Limits,
}

/// A twin's refusals so far.
#[derive(Clone, Default)]
struct Refusals {
    count: u64,
    /// Number, head position at that time, and reason, when they were not published yet.
    last: Option<(u64, u64, Refusal)>,
}

/// The writer of a log region.
pub struct LogWriter {
    memory: Regions,
    layout: RegionLayout,
    info: LogInfo,
    ledger: Ledger,
    /// Per twin.
    refusals: Vec<Refusals>,
    /// STATEs agreed so far.
    states: u64,
    published_tail: u64,
    /// Twins whose blocks have to be written at the next publish.
    dirty_twins: u32,
}

impl LogWriter {
    /// Writes an empty log into fresh zeroed memory.
    ///
    /// # Errors
    /// Limits that no log can be built with.
    ///
    /// # Panics
    /// When the memory is smaller than the limits ask for.
    pub fn format(memory: WriteMemory, info: LogInfo) -> Result<Self, LimitsError> {
        let ledger = Ledger::new(info.limits.clone())?;
        Ok(Self::with_ledger(memory, info, ledger, 0))
    }

    /// Copies the retained log of `old` into fresh zeroed memory: same epoch, positions and byte
    /// offsets, next generation. Everything is verified on the way.
    ///
    /// # Errors
    /// `old` does not verify; its epoch cannot be continued.
    pub fn adopt(memory: WriteMemory, old: Arc<ReadMemory>) -> Result<Self, AdoptError> {
        let mut view = LogView::open(old)?;
        let states = view.memory().load_u64_acquire(header!(states));
        let head_offset = view.offset();
        let retained = collect(&mut view)?;
        let agreed = retained.agreed.clone();
        let mut info = view.info().clone();
        info.generation = info.generation.checked_add(1).ok_or(AdoptError::Limits)?;
        let ledger = Ledger::restore(info.limits.clone(), retained).ok_or(AdoptError::Limits)?;
        // A pad may follow the last entry that was published; the ledger would pad again.
        if ledger.tail_offset() != view.offset() {
            return Err(AdoptError::Limits);
        }
        let writer = Self::with_ledger(memory, info, ledger, states);
        writer
            .memory
            .copy_records(view.memory(), &writer.layout, head_offset, view.offset());
        if let Some(agreed) = agreed {
            writer.write_state(agreed.position, head_offset, &agreed.bytes);
        }
        writer.memory.store_u64(header!(states), states);
        writer.publish_head();
        Ok(writer)
    }

    fn with_ledger(memory: WriteMemory, info: LogInfo, ledger: Ledger, states: u64) -> Self {
        let layout = RegionLayout::new(&info.limits);
        assert!(
            memory.bytes() >= layout.region_bytes(),
            "the memory is as large as the limits ask for"
        );
        let twins = info.limits.twins;
        let mut writer = Self {
            memory: Regions::new(memory),
            layout,
            info,
            ledger,
            refusals: vec![Refusals::default(); usize::from(twins)],
            states,
            published_tail: 0,
            dirty_twins: (1 << twins) - 1,
        };
        writer.write_info();
        writer.publish();
        writer
    }

    fn write_info(&self) {
        let limits = &self.info.limits;
        let words = [
            (header!(version), u64::from(VERSION)),
            (header!(twins), u64::from(limits.twins)),
            (header!(epoch), self.info.epoch),
            (header!(log_bytes), limits.log_bytes),
            (header!(entry_bytes_max), u64::from(limits.entry_bytes_max)),
            (header!(state_bytes_max), u64::from(limits.state_bytes_max)),
            (header!(trim_every), limits.trim_every),
            (header!(cluster_tag), self.info.cluster_tag),
            (header!(host), u64::from(self.info.host)),
            (header!(generation), self.info.generation),
        ];
        for (offset, value) in words {
            self.memory.store_u64(offset, value);
        }
        self.memory.store_u64_release(header!(magic), MAGIC);
    }

    /// Keeps a copy of the whole log, for this twin, in fresh memory that it alone can read: from now on every change goes
    /// there too, and `fill_mirror` copies what the log holds already. Replaces an earlier one.
    ///
    /// # Panics
    /// When the memory is smaller than the limits ask for.
    pub fn attach_mirror(&mut self, twin: u8, memory: WriteMemory) {
        // What was appended and not published yet is copied with the rest, and published with it.
        let span = (self.ledger.head_offset(), self.ledger.tail_offset());
        self.memory.attach(twin, memory, &self.layout, span);
    }

    /// Whether there is anything for `fill_mirror` to do.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        self.memory.is_filling()
    }

    /// Copies at most `bytes_max` bytes into a mirror that is not whole yet. Answers the twin whose mirror has become whole by
    /// it: that twin may be told of it now.
    pub fn fill_mirror(&mut self, bytes_max: usize) -> Option<u8> {
        self.memory.fill(bytes_max)
    }

    /// Drops a twin's mirror. Answers whether it had one.
    pub fn detach_mirror(&mut self, twin: u8) -> bool {
        self.memory.detach(twin)
    }

    /// The rules' own view of the log.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What the control page says for the region's whole life.
    #[must_use]
    pub fn info(&self) -> &LogInfo {
        &self.info
    }

    /// Decides an append; when it is accepted its bytes are in the region, but not yet published.
    pub fn append(&mut self, sender: u8, number: u64, payload: &[u8]) -> Outcome {
        let outcome = self.ledger.append(sender, number, payload.len() as u64);
        match outcome {
            Outcome::Accepted(placed) => {
                self.write_record(sender, number, placed, payload);
                self.dirty_twins |= 1 << sender;
            }
            Outcome::Refused(refusal) => self.note_refusal(sender, number, refusal),
            Outcome::OutOfOrder { .. } => {}
        }
        outcome
    }

    /// The same for an append whose bytes were not even taken in.
    pub fn append_too_large(&mut self, sender: u8, number: u64) -> Outcome {
        let outcome = self.ledger.append(sender, number, u64::MAX);
        match outcome {
            Outcome::Refused(refusal) => self.note_refusal(sender, number, refusal),
            Outcome::OutOfOrder { .. } => {}
            Outcome::Accepted(_) => unreachable!("no limit allows an entry of 2^64 bytes"),
        }
        outcome
    }

    fn write_record(&self, sender: u8, number: u64, placed: Placed, payload: &[u8]) {
        if let Some(pad_at) = placed.pad_at {
            self.memory
                .copy_in(self.layout.data_at(pad_at), &encode_pad());
        }
        let header = EntryHeader::new(self.info.epoch, sender, placed.position, number, payload);
        let at = self.layout.data_at(placed.offset);
        self.memory.copy_in(at, &header.encode());
        self.memory.copy_in(at + HEADER_BYTES, payload);
    }

    /// Published with the next confirmations and after them: a twin that saw the refusal of a number
    /// before the confirmation of the one below it would take it for old news.
    fn note_refusal(&mut self, twin: u8, number: u64, refusal: Refusal) {
        let refusals = &mut self.refusals[usize::from(twin)];
        refusals.count += 1;
        refusals.last = Some((number, self.ledger.head_position(), refusal));
        self.dirty_twins |= 1 << twin;
    }

    /// Takes a trim proposal; when it is agreed the STATE and the new head are published.
    pub fn trim(&mut self, twin: u8, position: u64, state: &[u8]) -> TrimOutcome {
        let outcome = self.ledger.trim(twin, position, state);
        match outcome {
            TrimOutcome::Agreed { .. } => {
                // Readers may stand anywhere below the new head: what they have not read is trimmed
                // only after it was there to be read.
                self.publish();
                self.states += 1;
                self.write_state(position, self.ledger.head_offset(), state);
                self.memory.store_u64_release(header!(states), self.states);
                self.publish_head();
                self.dirty_twins = (1 << self.info.limits.twins) - 1;
                self.publish();
            }
            TrimOutcome::Held | TrimOutcome::Stale | TrimOutcome::Refused(_) => {}
        }
        outcome
    }

    fn write_state(&self, position: u64, offset: u64, state: &[u8]) {
        let n = self.states;
        let crc = state_checksum(self.info.epoch, position, offset, state);
        self.memory.store_u64(state_field!(n, position), position);
        self.memory.store_u64(state_field!(n, offset), offset);
        self.memory
            .store_u64(state_field!(n, bytes), state.len() as u64);
        self.memory.store_u64(state_field!(n, crc), u64::from(crc));
        self.memory.copy_in(self.layout.state_start(n), state);
    }

    fn publish_head(&self) {
        self.memory
            .store_u64(header!(head_position), self.ledger.head_position());
        self.memory
            .store_u64_release(header!(head_offset), self.ledger.head_offset());
        // A reader that sees later bytes in the trimmed part also sees this head.
        fence(Ordering::Release);
    }

    /// Makes everything appended so far visible. Answers whether there was anything.
    ///
    /// The tail first and the confirmations after it, so that a broker killed in between never
    /// confirmed what is not in the log.
    pub fn publish(&mut self) -> bool {
        if self.dirty_twins == 0 {
            return false;
        }
        if self.published_tail != self.ledger.tail_offset() {
            self.published_tail = self.ledger.tail_offset();
            self.memory
                .store_u64_release(header!(tail_offset), self.published_tail);
            self.memory
                .store_u64_release(header!(tail_position), self.ledger.tail_position());
        }
        for twin in (0..self.info.limits.twins).filter(|twin| self.dirty_twins & (1 << twin) != 0) {
            self.memory.store_u64_release(
                twin_field!(twin, next_number),
                self.ledger.next_number(twin),
            );
            self.memory
                .store_u64(twin_field!(twin, live_bytes), self.ledger.live_bytes(twin));
            let refusals = &mut self.refusals[usize::from(twin)];
            if let Some((number, at_head, refusal)) = refusals.last.take() {
                self.memory
                    .store_u64(twin_field!(twin, refusals_begun), refusals.count);
                fence(Ordering::Release);
                self.memory
                    .store_u64(twin_field!(twin, refused_number), number);
                self.memory
                    .store_u64(twin_field!(twin, refused_at_head), at_head);
                self.memory
                    .store_u64(twin_field!(twin, refused_reason), refusal as u64);
                self.memory
                    .store_u64_release(twin_field!(twin, refusals), refusals.count);
            }
        }
        self.dirty_twins = 0;
        true
    }
}

/// Reads a whole retained log with all its checks.
fn collect(view: &mut LogView) -> Result<Retained, AdoptError> {
    let (head_position, head_offset) = (view.position(), view.offset());
    let agreed = view.agreed_state()?;
    if agreed.as_ref().map_or(0, |state| state.position) != head_position {
        return Err(ReadError::Corrupt {
            position: head_position,
            what: Corruption::State,
        }
        .into());
    }
    let twins = view.info().limits.twins;
    let mut next_seen: Vec<Option<u64>> = vec![None; usize::from(twins)];
    let mut entries = Vec::new();
    let mut payload = Vec::new();
    while let Some(entry) = view.poll_next(&mut payload)? {
        let next = &mut next_seen[usize::from(entry.sender)];
        if next.is_some_and(|next| next != entry.append_number) {
            let what = Corruption::AppendNumber(entry.append_number);
            return Err(ReadError::Corrupt {
                position: entry.position,
                what,
            }
            .into());
        }
        *next = Some(entry.append_number.wrapping_add(1));
        let payload_bytes = u32::try_from(payload.len()).expect("checked against entry_bytes_max");
        entries.push((entry.sender, payload_bytes));
    }
    // The tail's position and the confirmations are published after its offset, so a broker killed in
    // between leaves them behind; ahead they cannot be, unless entries are missing.
    let position = view.position();
    if view.end() > position {
        let what = Corruption::Tail {
            tail: view.end(),
            at: position,
        };
        return Err(ReadError::Corrupt { position, what }.into());
    }
    let mut next_numbers = Vec::new();
    for twin in 0..twins {
        let confirmed = view.next_number(twin);
        match next_seen[usize::from(twin)] {
            Some(seen) if confirmed > seen => {
                let what = Corruption::AppendNumber(confirmed);
                return Err(ReadError::Corrupt { position, what }.into());
            }
            Some(seen) => next_numbers.push(seen),
            None => next_numbers.push(confirmed),
        }
    }
    Ok(Retained {
        head_position,
        head_offset,
        next_numbers,
        entries,
        agreed,
    })
}

/// The limits of a region that is to be continued, before it is verified; for sizing the fresh one.
///
/// # Errors
/// It is no log of this layout.
pub fn peek_info(old: Arc<ReadMemory>) -> Result<LogInfo, RegionError> {
    LogView::open(old).map(|view| view.info().clone())
}

/// Size of the region that these limits ask for.
#[must_use]
pub fn region_bytes(limits: &Limits) -> usize {
    RegionLayout::new(limits).region_bytes()
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
