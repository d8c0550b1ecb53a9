//! The rules of the log as a pure state machine: who may append what, where it goes, when it is
//! dropped. The broker and the simulator run this same code. protocol.md, section 2.
//!
//! It holds no payloads; whoever owns the bytes asks here first and does what the answer says.

use std::collections::VecDeque;

use crate::layout::bytes_to_end;
use crate::record::record_bytes;

/// The most twins that a host can have.
pub const TWINS_MAX: u8 = 8;

/// The sizes that a log is built with. They hold for its whole epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `m`, 2 to `TWINS_MAX`.
    pub twins: u8,
    /// Size of the circular data area.
    pub log_bytes: u64,
    /// Largest payload of one entry.
    pub entry_bytes_max: u32,
    /// Largest STATE of one trim.
    pub state_bytes_max: u32,
    /// `k`: trim positions are multiples of it.
    pub trim_every: u64,
}

/// Limits that no log can be built with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// `twins` is out of range.
    #[error("twins = {0}: a host has 2 to {TWINS_MAX} twins")]
    Twins(u8),
    /// A maximum is zero or too large.
    #[error("{name} = {value}: it must be 1 to {max}")]
    Range {
        /// The limit's name.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The largest that is allowed.
        max: u64,
    },
    /// The log cannot hold one largest entry of each twin.
    #[error(
        "log_bytes = {log_bytes} is too small: with {twins} twins and these entries it must be at least {needed} and a multiple of 4096"
    )]
    LogTooSmall {
        /// What was asked for.
        log_bytes: u64,
        /// Number of twins.
        twins: u8,
        /// The least that works.
        needed: u64,
    },
}

impl Limits {
    /// The defaults: 64 MiB of log, entries to 2 MiB, STATE to 1 MiB, `k` = 1024.
    #[must_use]
    pub fn new(twins: u8) -> Self {
        Self {
            twins,
            log_bytes: 64 << 20,
            entry_bytes_max: 2 << 20,
            state_bytes_max: 1 << 20,
            trim_every: 1024,
        }
    }

    /// Checks the limits against each other.
    ///
    /// # Errors
    /// The first limit that no log can be built with.
    pub fn validate(&self) -> Result<(), LimitsError> {
        if !(2..=TWINS_MAX).contains(&self.twins) {
            return Err(LimitsError::Twins(self.twins));
        }
        let ranges = [
            (
                "entry_bytes_max",
                u64::from(self.entry_bytes_max),
                256 << 20,
            ),
            (
                "state_bytes_max",
                u64::from(self.state_bytes_max),
                256 << 20,
            ),
            ("trim_every", self.trim_every, 1 << 40),
            ("log_bytes", self.log_bytes, 1 << 36),
        ];
        for (name, value, max) in ranges {
            if value == 0 || value > max {
                return Err(LimitsError::Range { name, value, max });
            }
        }
        let needed = ((u64::from(self.twins) + 1) * self.record_bytes_max()).next_multiple_of(4096);
        if self.log_bytes < needed || !self.log_bytes.is_multiple_of(4096) {
            return Err(LimitsError::LogTooSmall {
                log_bytes: self.log_bytes,
                twins: self.twins,
                needed,
            });
        }
        Ok(())
    }

    /// Bytes of the largest record.
    #[must_use]
    pub fn record_bytes_max(&self) -> u64 {
        u64::from(record_bytes(self.entry_bytes_max))
    }

    /// Live bytes that one twin may hold: an equal share of the log, less one largest record, which
    /// covers the pad at the end of the data area. So an append within quota always finds room.
    #[must_use]
    pub fn quota_bytes(&self) -> u64 {
        (self.log_bytes - self.record_bytes_max()) / u64::from(self.twins)
    }

    /// `q = m/2 + 1`.
    #[must_use]
    pub fn twin_quorum(&self) -> usize {
        usize::from(self.twins) / 2 + 1
    }
}

/// Why an append was answered `false`. Its number stays the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Larger than `entry_bytes_max`; sending it again is of no use.
    TooLarge = 1,
    /// The twin's share of the log is full until a trim.
    OverQuota = 2,
}

impl Refusal {
    /// The reason as published in the control page.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        match code {
            1 => Some(Self::TooLarge),
            2 => Some(Self::OverQuota),
            _ => None,
        }
    }

    /// A name for counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::OverQuota => "over-quota",
        }
    }
}

/// The answer to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log.
    Accepted(Placed),
    /// It is not; the twin may send the same number again.
    Refused(Refusal),
    /// Not the expected number: dropped without a trace (go-back-n).
    OutOfOrder {
        /// The number that is accepted next.
        expected: u64,
    },
}

/// Where an accepted entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Index within the epoch.
    pub position: u64,
    /// Monotonic byte offset of its record.
    pub offset: u64,
    /// Where a pad record must stand first, when the rest of the data area is too short.
    pub pad_at: Option<u64>,
}

/// The answer to a trim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimOutcome {
    /// Kept as this twin's proposal; not enough twins agree yet.
    Held,
    /// Agreed: the entries `from..to` are dropped.
    Agreed {
        /// First dropped position.
        from: u64,
        /// First retained position.
        to: u64,
    },
    /// Below the head, or below this twin's newer proposal.
    Stale,
    /// No correct twin asks for this.
    Refused(TrimRefusal),
}

/// A trim that no correct twin asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrimRefusal {
    /// Not a multiple of `k`.
    NotAMultiple,
    /// Beyond the end of the log.
    BeyondEnd,
    /// Larger than `state_bytes_max`.
    StateTooLarge,
}

impl TrimRefusal {
    /// A name for counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAMultiple => "trim-not-a-multiple",
            Self::BeyondEnd => "trim-beyond-end",
            Self::StateTooLarge => "trim-state-too-large",
        }
    }
}

/// What `q` twins agreed on: everything below `position` that any rule can still use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgreedState {
    /// The log starts here now.
    pub position: u64,
    /// STATE, opaque to the postbox.
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct TwinRecord {
    next_number: u64,
    live_bytes: u64,
    /// Invariant: above the head. Only the latest one is kept, so a twin holds at most one STATE.
    proposal: Option<AgreedState>,
}

/// One live entry in four bytes: records are multiples of 8, so the sender fits into the low bits.
#[derive(Clone, Copy, Debug)]
struct LiveEntry(u32);

impl LiveEntry {
    fn new(sender: u8, bytes: u32) -> Self {
        assert!(sender < TWINS_MAX && bytes & 7 == 0);
        Self(bytes | u32::from(sender))
    }
    fn sender(self) -> usize {
        (self.0 & 7) as usize
    }
    fn bytes(self) -> u64 {
        u64::from(self.0 & !7)
    }
}

/// What a log that is taken over from an earlier broker process looks like.
#[derive(Clone, Debug)]
pub struct Retained {
    /// Position of the first retained entry.
    pub head_position: u64,
    /// Byte offset of it.
    pub head_offset: u64,
    /// Per twin, the next append number.
    pub next_numbers: Vec<u64>,
    /// Sender and payload length of every retained entry, in order.
    pub entries: Vec<(u8, u32)>,
    /// The agreed STATE.
    pub agreed: Option<AgreedState>,
}

/// The single writer's view of the log.
#[derive(Clone, Debug)]
pub struct Ledger {
    limits: Limits,
    head_position: u64,
    head_offset: u64,
    tail_offset: u64,
    /// Invariant: the entries `head_position..head_position + live.len()`.
    live: VecDeque<LiveEntry>,
    twins: Vec<TwinRecord>,
    agreed: Option<AgreedState>,
}

impl Ledger {
    /// An empty log.
    ///
    /// # Errors
    /// Limits that no log can be built with.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        limits.validate()?;
        let twins = vec![TwinRecord::default(); usize::from(limits.twins)];
        Ok(Self {
            limits,
            head_position: 0,
            head_offset: 0,
            tail_offset: 0,
            live: VecDeque::new(),
            twins,
            agreed: None,
        })
    }

    /// The ledger of a log that outlived its broker. `None` when no ledger leads there.
    #[must_use]
    pub fn restore(limits: Limits, retained: Retained) -> Option<Self> {
        let mut ledger = Self::new(limits).ok()?;
        if retained.next_numbers.len() != ledger.twins.len() {
            return None;
        }
        ledger.head_position = retained.head_position;
        ledger.head_offset = retained.head_offset;
        ledger.tail_offset = retained.head_offset;
        for (sender, payload_bytes) in retained.entries {
            let twin = ledger.twins.get_mut(usize::from(sender))?;
            if payload_bytes > ledger.limits.entry_bytes_max {
                return None;
            }
            let bytes = record_bytes(payload_bytes);
            twin.live_bytes += u64::from(bytes);
            if twin.live_bytes > ledger.limits.quota_bytes() {
                return None;
            }
            ledger.live.push_back(LiveEntry::new(sender, bytes));
            ledger.tail_offset =
                place(ledger.limits.log_bytes, ledger.tail_offset, bytes) + u64::from(bytes);
        }
        for (twin, next_number) in ledger.twins.iter_mut().zip(retained.next_numbers) {
            twin.next_number = next_number;
        }
        ledger.agreed = retained.agreed;
        Some(ledger)
    }

    /// The limits that the log was built with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Position of the first retained entry.
    #[must_use]
    pub fn head_position(&self) -> u64 {
        self.head_position
    }

    /// Byte offset of the first retained entry (or of the pad before it).
    #[must_use]
    pub fn head_offset(&self) -> u64 {
        self.head_offset
    }

    /// Position behind the last entry.
    #[must_use]
    pub fn tail_position(&self) -> u64 {
        self.head_position + self.live.len() as u64
    }

    /// Byte offset behind the last entry.
    #[must_use]
    pub fn tail_offset(&self) -> u64 {
        self.tail_offset
    }

    /// The append number that is accepted next from `twin`.
    #[must_use]
    pub fn next_number(&self, twin: u8) -> u64 {
        self.twins[usize::from(twin)].next_number
    }

    /// Bytes of records that `twin` holds in the log.
    #[must_use]
    pub fn live_bytes(&self, twin: u8) -> u64 {
        self.twins[usize::from(twin)].live_bytes
    }

    /// What the log was last trimmed with.
    #[must_use]
    pub fn agreed(&self) -> Option<&AgreedState> {
        self.agreed.as_ref()
    }

    /// Decides an append of `payload_bytes` by `sender` under its running `number`. When it is
    /// accepted the caller must store the entry at the place that the answer names.
    pub fn append(&mut self, sender: u8, number: u64, payload_bytes: u64) -> Outcome {
        assert!(
            sender < self.limits.twins,
            "a channel of twin {sender} cannot exist"
        );
        let quota_bytes = self.limits.quota_bytes();
        let twin = &mut self.twins[usize::from(sender)];
        if number != twin.next_number {
            return Outcome::OutOfOrder {
                expected: twin.next_number,
            };
        }
        let payload_bytes = match u32::try_from(payload_bytes) {
            Ok(bytes) if bytes <= self.limits.entry_bytes_max => bytes,
            Ok(_) | Err(_) => return Outcome::Refused(Refusal::TooLarge),
        };
        let bytes = record_bytes(payload_bytes);
        if twin.live_bytes + u64::from(bytes) > quota_bytes {
            return Outcome::Refused(Refusal::OverQuota);
        }
        twin.next_number += 1;
        twin.live_bytes += u64::from(bytes);
        let position = self.tail_position();
        let offset = place(self.limits.log_bytes, self.tail_offset, bytes);
        let pad_at = (offset != self.tail_offset).then_some(self.tail_offset);
        self.tail_offset = offset + u64::from(bytes);
        self.live.push_back(LiveEntry::new(sender, bytes));
        assert!(
            self.tail_offset - self.head_offset <= self.limits.log_bytes,
            "the quotas leave room for every append"
        );
        Outcome::Accepted(Placed {
            position,
            offset,
            pad_at,
        })
    }

    /// Takes `twin`'s proposal to drop everything below `position`, with the STATE that replaces it.
    /// A proposal for the position that it already holds replaces it, so that a twin rebuilt from a
    /// clean image can correct what its former self proposed.
    pub fn trim(&mut self, twin: u8, position: u64, state: &[u8]) -> TrimOutcome {
        assert!(
            twin < self.limits.twins,
            "a channel of twin {twin} cannot exist"
        );
        if let Some(refusal) = self.trim_refusal(position, state.len()) {
            return TrimOutcome::Refused(refusal);
        }
        let held = &mut self.twins[usize::from(twin)].proposal;
        if position <= self.head_position
            || held.as_ref().is_some_and(|held| held.position > position)
        {
            return TrimOutcome::Stale;
        }
        *held = Some(AgreedState {
            position,
            bytes: state.to_vec(),
        });
        let agreeing = self.twins.iter().filter_map(|twin| twin.proposal.as_ref());
        let agreeing = agreeing
            .filter(|held| held.position == position && held.bytes == state)
            .count();
        if agreeing < self.limits.twin_quorum() {
            return TrimOutcome::Held;
        }
        let from = self.head_position;
        let agreed = self.twins[usize::from(twin)].proposal.take();
        self.agreed = agreed;
        while self.head_position < position {
            self.drop_first();
        }
        for twin in &mut self.twins {
            twin.proposal.take_if(|held| held.position <= position);
        }
        TrimOutcome::Agreed { from, to: position }
    }

    /// Forgets the proposals that wait for agreement, as a restart of the broker process does.
    pub fn forget_proposals(&mut self) {
        for twin in &mut self.twins {
            twin.proposal = None;
        }
    }

    fn trim_refusal(&self, position: u64, state_bytes: usize) -> Option<TrimRefusal> {
        if !position.is_multiple_of(self.limits.trim_every) {
            Some(TrimRefusal::NotAMultiple)
        } else if position > self.tail_position() {
            Some(TrimRefusal::BeyondEnd)
        } else if state_bytes > self.limits.state_bytes_max as usize {
            Some(TrimRefusal::StateTooLarge)
        } else {
            None
        }
    }

    fn drop_first(&mut self) {
        let entry = self
            .live
            .pop_front()
            .expect("positions below the tail are live");
        let bytes = u32::try_from(entry.bytes()).expect("it came from a u32");
        self.head_offset = place(self.limits.log_bytes, self.head_offset, bytes) + entry.bytes();
        self.head_position += 1;
        let live_bytes = &mut self.twins[entry.sender()].live_bytes;
        *live_bytes = live_bytes
            .checked_sub(entry.bytes())
            .expect("what was added is taken off once");
    }
}

/// Where a record of this size goes when the log ends at `offset`: there, or at the start of the
/// data area when it would wrap.
fn place(log_bytes: u64, offset: u64, record_bytes: u32) -> u64 {
    let left = bytes_to_end(log_bytes, offset);
    if u64::from(record_bytes) <= left {
        offset
    } else {
        offset + left
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
