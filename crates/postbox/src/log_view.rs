//! Reading a log region: copy out, then parse, then look whether the writer has lapped us. No length
//! that stands in the region is used before it was checked against what surrounds it.

use std::sync::Arc;

use crate::atomic::{Ordering, fence};
use crate::layout::{MAGIC, RegionLayout, VERSION, header, state_field, twin_field};
use crate::ledger::{AgreedState, Limits, LimitsError, Refusal};
use crate::raw::{PAGE_BYTES, ReadMemory};
use crate::record::{
    EntryHeader, HEADER_BYTES, Header, PAD_HEADER_BYTES, RecordError, decode, record_bytes,
};

/// An entry as read; its payload is in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index within the epoch.
    pub position: u64,
    /// The twin that appended it, stamped by the broker.
    pub sender: u8,
    /// The sender's own running number.
    pub append_number: u64,
}

/// Why the next entry cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The log was trimmed beyond the reader: resynchronise from the agreed STATE and nothing else.
    #[error("the log was trimmed beyond position {position}; resynchronise from the agreed STATE")]
    Lapped {
        /// Where the reader stood.
        position: u64,
    },
    /// Bytes that no broker writes. Nothing in this log can be trusted any more.
    #[error("the log is corrupt at position {position}: {what}")]
    Corrupt {
        /// Where the reader stood.
        position: u64,
        /// What is wrong.
        what: Corruption,
    },
    /// The position was not written yet.
    #[error("position {position} is beyond the end of the log")]
    BeyondEnd {
        /// What was asked for.
        position: u64,
    },
}

/// What is wrong with a corrupt log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// Not a record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The tail is before the reader or more than the data area ahead.
    #[error("tail offset {tail} does not fit offset {at}")]
    Tail {
        /// The published tail.
        tail: u64,
        /// The reader's offset.
        at: u64,
    },
    /// The record does not fit where it stands.
    #[error("a payload of {0} bytes does not fit")]
    Length(u32),
    /// Another position than the expected one.
    #[error("the record says position {0}")]
    Position(u64),
    /// A twin that does not exist.
    #[error("the record says sender {0}")]
    Sender(u8),
    /// The checksum is wrong.
    #[error("the checksum is wrong")]
    Checksum,
    /// The agreed STATE's descriptor or checksum is wrong.
    #[error("the agreed STATE is damaged")]
    State,
    /// A sender's append numbers are not consecutive.
    #[error("append number {0} is out of sequence")]
    AppendNumber(u64),
}

/// Why a region is no log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Smaller than a control page, or than its own limits say.
    #[error("the region has {0} bytes, its header asks for {1}")]
    Size(usize, usize),
    /// Not a log at all.
    #[error("the region does not start with the magic number of a log")]
    Magic,
    /// Another layout.
    #[error("the region has layout version {0}, this build knows {VERSION}")]
    Version(u64),
    /// A number in the header is out of range.
    #[error("the region's header says {name} = {value}")]
    Header {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// The limits contradict each other.
    #[error("the region's limits: {0}")]
    Limits(#[from] LimitsError),
}

/// What the control page says about the log for its whole life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogInfo {
    /// Sizes.
    pub limits: Limits,
    /// Epoch.
    pub epoch: u64,
    /// See `ControlHeader`.
    pub cluster_tag: u64,
    /// The host that the log belongs to.
    pub host: u32,
    /// See `ControlHeader`.
    pub generation: u64,
}

/// A twin's words in the control page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastRefusal {
    pub refusals: u64,
    pub number: u64,
    pub at_head: u64,
    pub reason: Option<Refusal>,
}

/// A reader of a log region, at one place in it.
pub struct LogView {
    memory: Arc<ReadMemory>,
    layout: RegionLayout,
    info: LogInfo,
    /// Monotonic byte offset of the next record.
    at: u64,
    /// Position of the next entry.
    position: u64,
    /// The tail as last seen, so that a busy reader does not touch its cache line for each entry.
    tail_seen: u64,
}

impl LogView {
    /// Looks at a region and stands at its first retained entry.
    ///
    /// # Errors
    /// It is no log, or of another version, or smaller than it says.
    pub fn open(memory: Arc<ReadMemory>) -> Result<Self, RegionError> {
        if memory.bytes() < PAGE_BYTES {
            return Err(RegionError::Size(memory.bytes(), PAGE_BYTES));
        }
        let info = read_info(&memory)?;
        let layout = RegionLayout::new(&info.limits);
        if memory.bytes() < layout.region_bytes() {
            return Err(RegionError::Size(memory.bytes(), layout.region_bytes()));
        }
        let mut view = Self {
            memory,
            layout,
            info,
            at: 0,
            position: 0,
            tail_seen: 0,
        };
        view.rewind();
        Ok(view)
    }

    /// What the control page said when the region was opened.
    #[must_use]
    pub fn info(&self) -> &LogInfo {
        &self.info
    }

    /// Position of the next entry.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn offset(&self) -> u64 {
        self.at
    }

    pub(crate) fn memory(&self) -> &Arc<ReadMemory> {
        &self.memory
    }

    /// The true end of the log: the position behind the last published entry.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.memory.load_u64_acquire(header!(tail_position))
    }

    /// Position of the first retained entry.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.memory.load_u64_acquire(header!(head_position))
    }

    /// Whether something was published that this reader has not read.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.tail_seen != self.at || self.memory.load_u64(header!(tail_offset)) != self.at
    }

    pub(crate) fn next_number(&self, twin: u8) -> u64 {
        self.memory.load_u64_acquire(twin_field!(twin, next_number))
    }

    pub(crate) fn refusals(&self, twin: u8) -> u64 {
        self.memory.load_u64_acquire(twin_field!(twin, refusals))
    }

    /// `None` while the broker is writing it; its wake-up comes afterwards. Half an old and half a new
    /// refusal would make the appender send again what is already on its way.
    pub(crate) fn last_refusal(&self, twin: u8) -> Option<LastRefusal> {
        let refusals = self.refusals(twin);
        let last = LastRefusal {
            refusals,
            number: self.memory.load_u64(twin_field!(twin, refused_number)),
            at_head: self.memory.load_u64(twin_field!(twin, refused_at_head)),
            reason: Refusal::from_code(self.memory.load_u64(twin_field!(twin, refused_reason))),
        };
        fence(Ordering::Acquire);
        (self.memory.load_u64(twin_field!(twin, refusals_begun)) == refusals).then_some(last)
    }

    /// Reads the next entry into `payload` (its old content is dropped). `None` at the end.
    ///
    /// # Errors
    /// `Lapped` or `Corrupt`; the reader stays where it is.
    pub fn poll_next(&mut self, payload: &mut Vec<u8>) -> Result<Option<Entry>, ReadError> {
        let Some(header) = self.next_header()? else {
            return Ok(None);
        };
        payload.resize(header.payload_bytes as usize, 0);
        self.memory
            .copy_out(self.layout.data_at(self.at) + HEADER_BYTES, payload);
        self.check_lapped()?;
        if header.checksum(self.info.epoch, payload) != header.crc {
            return Err(self.broken(Corruption::Checksum));
        }
        self.step_over(&header);
        Ok(Some(Entry {
            position: header.position,
            sender: header.sender,
            append_number: header.append_number,
        }))
    }

    /// Goes to `position`, which may be the end of the log.
    ///
    /// # Errors
    /// `Lapped` when it was trimmed, `BeyondEnd` when it was not written yet. The reader then stays
    /// where it was.
    pub fn seek(&mut self, position: u64) -> Result<(), ReadError> {
        let before = (self.at, self.position, self.tail_seen);
        let result = self.walk_to(position);
        if result.is_err() {
            (self.at, self.position, self.tail_seen) = before;
        }
        result
    }

    fn walk_to(&mut self, position: u64) -> Result<(), ReadError> {
        if position < self.position || self.is_lapped() {
            self.rewind();
        }
        if position < self.position {
            return Err(ReadError::Lapped { position });
        }
        while self.position < position {
            match self.next_header()? {
                Some(header) => {
                    self.check_lapped()?;
                    self.step_over(&header);
                }
                None => return Err(ReadError::BeyondEnd { position }),
            }
        }
        Ok(())
    }

    /// The STATE that the log was last trimmed with; `None` when it never was.
    ///
    /// # Errors
    /// `Corrupt` when its bytes do not match its checksum.
    pub fn agreed_state(&self) -> Result<Option<AgreedState>, ReadError> {
        loop {
            let n = self.memory.load_u64_acquire(header!(states));
            if n == 0 {
                return Ok(None);
            }
            let state = self.copy_state(n);
            fence(Ordering::Acquire);
            // The writer works on the other slot while STATE n is the newest one.
            if self.memory.load_u64(header!(states)) == n {
                let corrupt = ReadError::Corrupt {
                    position: self.position,
                    what: Corruption::State,
                };
                return state.map(Some).ok_or(corrupt);
            }
        }
    }

    fn copy_state(&self, n: u64) -> Option<AgreedState> {
        let bytes = self.memory.load_u64(state_field!(n, bytes));
        if bytes > u64::from(self.info.limits.state_bytes_max) {
            return None;
        }
        let position = self.memory.load_u64(state_field!(n, position));
        let offset = self.memory.load_u64(state_field!(n, offset));
        let mut state = vec![0; usize::try_from(bytes).ok()?];
        self.memory.copy_out(self.layout.state_start(n), &mut state);
        let crc = state_checksum(self.info.epoch, position, offset, &state);
        (u64::from(crc) == self.memory.load_u64(state_field!(n, crc))).then_some(AgreedState {
            position,
            bytes: state,
        })
    }

    /// Stands at the first retained entry. The descriptor of the agreed STATE is the authority: the
    /// two head words are published one after the other, it is published at once.
    fn rewind(&mut self) {
        loop {
            let n = self.memory.load_u64_acquire(header!(states));
            (self.position, self.at) = if n == 0 {
                (0, 0)
            } else {
                (
                    self.memory.load_u64(state_field!(n, position)),
                    self.memory.load_u64(state_field!(n, offset)),
                )
            };
            fence(Ordering::Acquire);
            if self.memory.load_u64(header!(states)) == n {
                self.tail_seen = self.at;
                return;
            }
        }
    }

    fn step_over(&mut self, header: &EntryHeader) {
        self.at += u64::from(record_bytes(header.payload_bytes));
        self.position += 1;
    }

    /// The header of the next entry, checked against everything around it, pads skipped.
    fn next_header(&mut self) -> Result<Option<EntryHeader>, ReadError> {
        loop {
            if self.at == self.tail_seen {
                self.tail_seen = self.memory.load_u64_acquire(header!(tail_offset));
                if self.at == self.tail_seen {
                    return Ok(None);
                }
            }
            let unread = self.tail_seen.wrapping_sub(self.at);
            // The offsets and positions of a log have an end that no broker comes to.
            let is_over = self.at.checked_add(unread).is_none() || self.position == u64::MAX;
            if unread > self.info.limits.log_bytes || is_over {
                return Err(self.broken(Corruption::Tail {
                    tail: self.tail_seen,
                    at: self.at,
                }));
            }
            let left = self.layout.bytes_to_end(self.at);
            let mut bytes = [0; HEADER_BYTES];
            let room = usize::try_from(unread.min(left))
                .expect("not more than the data area")
                .min(HEADER_BYTES);
            self.memory
                .copy_out(self.layout.data_at(self.at), &mut bytes[..room]);
            let header = match decode(&bytes[..room]) {
                Ok(Header::Entry(header)) => header,
                Ok(Header::Pad) if left < unread && left >= PAD_HEADER_BYTES as u64 => {
                    self.check_lapped()?;
                    self.at += left;
                    continue;
                }
                Ok(Header::Pad) => return Err(self.broken(Corruption::Length(0))),
                Err(error) => return Err(self.broken(error.into())),
            };
            if header.payload_bytes > self.info.limits.entry_bytes_max
                || u64::from(record_bytes(header.payload_bytes)) > unread.min(left)
            {
                return Err(self.broken(Corruption::Length(header.payload_bytes)));
            }
            if header.position != self.position {
                return Err(self.broken(Corruption::Position(header.position)));
            }
            if header.sender >= self.info.limits.twins {
                return Err(self.broken(Corruption::Sender(header.sender)));
            }
            return Ok(Some(header));
        }
    }

    fn is_lapped(&self) -> bool {
        // Everything copied so far was read before the head: the writer moves the head, then writes.
        fence(Ordering::Acquire);
        self.memory.load_u64(header!(head_offset)) > self.at
    }

    fn check_lapped(&self) -> Result<(), ReadError> {
        if self.is_lapped() {
            Err(ReadError::Lapped {
                position: self.position,
            })
        } else {
            Ok(())
        }
    }

    fn broken(&self, what: Corruption) -> ReadError {
        if self.is_lapped() {
            ReadError::Lapped {
                position: self.position,
            }
        } else {
            ReadError::Corrupt {
                position: self.position,
                what,
            }
        }
    }
}

pub(crate) fn state_checksum(epoch: u64, position: u64, offset: u64, state: &[u8]) -> u32 {
    let crc = [epoch, position, offset].iter().fold(0, |crc, word| {
        crc32c::crc32c_append(crc, &word.to_le_bytes())
    });
    crc32c::crc32c_append(crc, state)
}

fn read_info(memory: &ReadMemory) -> Result<LogInfo, RegionError> {
    if memory.load_u64_acquire(header!(magic)) != MAGIC {
        return Err(RegionError::Magic);
    }
    let version = memory.load_u64(header!(version));
    if version != u64::from(VERSION) {
        return Err(RegionError::Version(version));
    }
    let word = |name, offset| (name, memory.load_u64(offset));
    let narrow = |(name, value): (&'static str, u64)| {
        u32::try_from(value).map_err(|_| RegionError::Header { name, value })
    };
    let (name, twins) = word("twins", header!(twins));
    let limits = Limits {
        twins: u8::try_from(twins).map_err(|_| RegionError::Header { name, value: twins })?,
        log_bytes: memory.load_u64(header!(log_bytes)),
        entry_bytes_max: narrow(word("entry_bytes_max", header!(entry_bytes_max)))?,
        state_bytes_max: narrow(word("state_bytes_max", header!(state_bytes_max)))?,
        trim_every: memory.load_u64(header!(trim_every)),
    };
    limits.validate()?;
    Ok(LogInfo {
        limits,
        epoch: memory.load_u64(header!(epoch)),
        cluster_tag: memory.load_u64(header!(cluster_tag)),
        host: narrow(word("host", header!(host)))?,
        generation: memory.load_u64(header!(generation)),
    })
}
