//! The write-ahead log: what this twin must not forget is here, as durable as the policy says, before the entry that
//! reveals it is posted (protocol.md 3, durability rule).
//!
//! The core's thread appends records to a buffer and writes them with one system call a round; a second thread
//! forces them to the disk. Whoever wants to reveal a promise asks [`Storage::revealable`]. A failed write or flush
//! is never survived: [`Storage`] then gives errors only, and the node stops.

mod boot;
#[cfg(test)]
mod fuzz;
mod journal;
mod segment;
mod standing;
mod syncer;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use twinbft_core::Record;
use twinbft_types::{Digest, Slot};

pub use boot::is_same_boot;
pub use journal::{Journal, Journaled};
pub use segment::{ReadError, Segments, TornTail, read_segments, segment_numbers, segment_path};
use segment::{SEGMENT_HEADER_BYTES, encode_header, encode_record};
use standing::{Standing, slot_of};
use syncer::Syncer;

/// A segment that has grown beyond this is followed by a new one.
const SEGMENT_BYTES: u64 = 16 << 20;
/// A write buffer that has grown beyond this is given back.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

/// How durable a promise is before it is revealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// There is no file: promises outlive nothing but this process; its postbox log remembers for it.
    Memory,
    /// Handed to the kernel before it is revealed, on the disk at most this much later.
    Group {
        /// The longest time between two flushes while there is something to flush.
        commit: Duration,
    },
    /// On the disk before it is revealed; whatever waits shares one flush.
    Sync,
}

/// The disk failed. The node stops.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A file operation failed.
    #[error("{doing} {}: {cause}; free space or repair the disk, then start the replica again", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// What is there cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// How many records were appended before and up to a point; the first record is 1.
pub type Lsn = u64;

/// A twin's write-ahead log.
pub struct Storage {
    /// Invariant: `None` exactly when the policy is `Memory`.
    log: Option<Log>,
    appended: Lsn,
}

/// The file side of it.
struct Log {
    dir: PathBuf,
    owner: Digest,
    reveal_when_synced: bool,
    active: Active,
    /// Invariant: ascending by number, all below the active one.
    sealed: VecDeque<Sealed>,
    standing: Standing,
    stable: Slot,
    /// Encoded for the active segment and not written yet.
    buffer: Vec<u8>,
    written: Lsn,
    syncer: Syncer,
    writes: u64,
    /// A record JOINED that is not written yet: then the mark of this boot follows it.
    joining: bool,
}

struct Active {
    file: Arc<File>,
    path: PathBuf,
    number: u64,
    /// Written bytes.
    bytes: u64,
    slot_max: Slot,
}

struct Sealed {
    path: PathBuf,
    slot_max: Slot,
}

/// Numbers for operators.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct StorageStatus {
    /// Records appended.
    pub appended: u64,
    /// Records that may be revealed.
    pub revealable: u64,
    /// Records that are on the disk.
    pub synced: u64,
    /// `write` calls.
    pub writes: u64,
    /// Flushes to the disk.
    pub syncs: u64,
    /// Files.
    pub segments: usize,
}

impl Storage {
    /// Opens the log in `dir`, which is made when it is missing, reads what it holds and cuts off a torn tail, so that
    /// the next start finds whole segments. `owner` names cluster, host
    /// and twin; `wake` is called from another thread when records became revealable or the disk failed.
    ///
    /// # Errors
    /// When the directory or a file cannot be used, or holds what no crash explains.
    pub fn open(
        dir: &Path,
        owner: Digest,
        policy: Policy,
        wake: impl Fn() + Send + 'static,
    ) -> Result<(Self, Segments), StorageError> {
        let commit = match policy {
            Policy::Memory => {
                let memory = Self {
                    log: None,
                    appended: 0,
                };
                return Ok((memory, Segments::default()));
            }
            Policy::Group { commit } => commit,
            Policy::Sync => Duration::ZERO,
        };
        std::fs::create_dir_all(dir).map_err(|cause| StorageError::Io {
            doing: "creating",
            path: dir.to_owned(),
            cause,
        })?;
        let mut found = read_segments(dir, owner)?;
        cut(&mut found)?;
        let mut standing = Standing::default();
        found
            .records
            .iter()
            .for_each(|record| standing.note(record));
        // Which of the old segments holds which slot does not matter: they go together.
        let slot_max = found
            .records
            .iter()
            .filter_map(slot_of)
            .max()
            .unwrap_or_default();
        let sealed = found
            .numbers
            .iter()
            .map(|&number| Sealed {
                path: segment_path(dir, number),
                slot_max,
            })
            .collect();
        let number = found.numbers.last().map_or(0, |last| last + 1);
        let log = Log {
            dir: dir.to_owned(),
            owner,
            reveal_when_synced: policy == Policy::Sync,
            active: create_segment(dir, number)?,
            sealed,
            standing,
            stable: Slot(0),
            buffer: Vec::new(),
            written: 0,
            syncer: Syncer::start(dir, commit, Box::new(wake))?,
            writes: 0,
            joining: false,
        };
        let mut storage = Self {
            log: Some(log),
            appended: 0,
        };
        if let Some(log) = &mut storage.log {
            log.begin_segment();
            log.write(0)?;
        }
        Ok((storage, found))
    }

    /// Adds a record; it is written by the next [`Storage::flush`]. Answers how many there are now.
    ///
    /// # Errors
    /// When the disk failed.
    pub fn append(&mut self, record: &Record) -> Result<Lsn, StorageError> {
        if let Some(log) = &mut self.log {
            if log.active.bytes + log.buffer.len() as u64 > SEGMENT_BYTES {
                log.write(self.appended)?;
                log.rotate()?;
            }
            log.append(record);
        }
        self.appended += 1;
        Ok(self.appended)
    }

    /// Writes what was appended, with one system call.
    ///
    /// # Errors
    /// When the disk failed, now or in the background.
    pub fn flush(&mut self) -> Result<(), StorageError> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        if let Some(error) = log.syncer.take_error() {
            return Err(error);
        }
        if log.buffer.is_empty() {
            return Ok(());
        }
        log.write(self.appended)?;
        log.trim();
        Ok(())
    }

    /// Writes what was appended and waits until it is on the disk.
    ///
    /// # Errors
    /// When the disk failed.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        self.flush()?;
        let appended = self.appended;
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        log.syncer.wait_for(appended).map_or(Ok(()), Err)
    }

    /// Records up to this one are as durable as the policy wants them before they are revealed.
    #[must_use]
    pub fn revealable(&self) -> Lsn {
        match &self.log {
            None => self.appended,
            Some(log) if log.reveal_when_synced => log.syncer.synced(),
            Some(log) => log.written,
        }
    }

    /// Writes and syncs everything; for a graceful stop.
    ///
    /// # Errors
    /// When the disk failed.
    pub fn close(mut self) -> Result<(), StorageError> {
        self.flush()?;
        let Some(log) = self.log else {
            return Ok(());
        };
        log.syncer.stop().map_or(Ok(()), Err)
    }

    /// Numbers for operators.
    #[must_use]
    pub fn status(&self) -> StorageStatus {
        let log = self.log.as_ref();
        StorageStatus {
            appended: self.appended,
            revealable: self.revealable(),
            synced: log.map_or(0, |log| log.syncer.synced()),
            writes: log.map_or(0, |log| log.writes),
            syncs: log.map_or(0, |log| log.syncer.syncs()),
            segments: log.map_or(0, |log| log.sealed.len() + 1),
        }
    }
}

/// Takes a torn tail off its file, or the whole file when not even its header is whole.
fn cut(found: &mut Segments) -> Result<(), StorageError> {
    let Some(torn) = &found.torn else {
        return Ok(());
    };
    let failed = |cause| StorageError::Io {
        doing: "cutting a torn record off",
        path: torn.path.clone(),
        cause,
    };
    if torn.offset < SEGMENT_HEADER_BYTES as u64 {
        std::fs::remove_file(&torn.path).map_err(failed)?;
        found.numbers.pop();
        return Ok(());
    }
    let file = OpenOptions::new()
        .write(true)
        .open(&torn.path)
        .map_err(failed)?;
    file.set_len(torn.offset).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn create_segment(dir: &Path, number: u64) -> Result<Active, StorageError> {
    let path = segment_path(dir, number);
    let file = OpenOptions::new()
        .create_new(true)
        .append(true)
        .open(&path)
        .map_err(|cause| StorageError::Io {
            doing: "creating",
            path: path.clone(),
            cause,
        })?;
    Ok(Active {
        file: Arc::new(file),
        path,
        number,
        bytes: 0,
        slot_max: Slot(0),
    })
}

impl Log {
    fn append(&mut self, record: &Record) {
        if let Some(slot) = slot_of(record) {
            self.active.slot_max = self.active.slot_max.max(slot);
        }
        if let Record::Stable { slot, .. } = record {
            self.stable = self.stable.max(*slot);
        }
        self.standing.note(record);
        self.joining |= matches!(record, Record::Joined { .. });
        let offset = self.active.bytes + self.buffer.len() as u64;
        encode_record(self.active.number, offset, record, &mut self.buffer);
    }

    /// The header and the promises without a slot: with them, older segments are needed for their slots alone.
    fn begin_segment(&mut self) {
        assert!(
            self.active.bytes == 0 && self.buffer.is_empty(),
            "a segment begins empty"
        );
        self.buffer
            .extend_from_slice(&encode_header(self.active.number, self.owner));
        assert_eq!(
            self.buffer.len(),
            SEGMENT_HEADER_BYTES,
            "the format says so"
        );
        for record in self.standing.records() {
            let offset = self.buffer.len() as u64;
            encode_record(self.active.number, offset, record, &mut self.buffer);
        }
    }

    fn rotate(&mut self) -> Result<(), StorageError> {
        let next = create_segment(&self.dir, self.active.number + 1)?;
        let old = std::mem::replace(&mut self.active, next);
        self.sealed.push_back(Sealed {
            path: old.path,
            slot_max: old.slot_max,
        });
        self.begin_segment();
        Ok(())
    }

    /// Writes the buffer, which ends with record `upto`, and asks for it to be synced.
    fn write(&mut self, upto: Lsn) -> Result<(), StorageError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        (&*self.active.file)
            .write_all(&self.buffer)
            .map_err(|cause| StorageError::Io {
                doing: "writing",
                path: self.active.path.clone(),
                cause,
            })?;
        self.writes += 1;
        if std::mem::take(&mut self.joining)
            && let Some(data) = self.dir.parent()
        {
            boot::remember_boot(data).map_err(|cause| StorageError::Io {
                doing: "leaving the mark of this boot in",
                path: data.to_owned(),
                cause,
            })?;
        }
        self.active.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        if self.buffer.capacity() > BUFFER_KEEP_BYTES {
            self.buffer = Vec::new();
        }
        assert!(upto >= self.written, "records are written in order");
        self.written = upto;
        self.syncer
            .request(upto, &self.active.file, &self.active.path);
        Ok(())
    }

    /// Gives up the oldest segments of which every slot is stable. They are removed once what was written so far,
    /// the record of the stable checkpoint among it, is on the disk.
    fn trim(&mut self) {
        while let Some(oldest) = self.sealed.front().filter(|s| s.slot_max <= self.stable) {
            self.syncer.remove_later(oldest.path.clone());
            self.sealed.pop_front();
        }
    }
}
