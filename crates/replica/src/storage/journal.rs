//! The checkpoints' journal: what a start from a checkpoint needs besides the service's state, the session table
//! above all (protocol.md 5).
//!
//! It is written before the service makes its state durable, so whatever checkpoint the service stands at after a
//! crash is in it. A checkpoint adds the sessions that changed since the one before; when most of the file is old,
//! and at every start, it is written anew.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use twinbft_app::CHECKPOINTS_KEPT;
use twinbft_core::{Checkpoint, SessionImage};
use twinbft_types::{Digest, Slot};

use super::StorageError;
use super::segment::{
    Magic, ReadError, SEGMENT_HEADER_BYTES, encode_header_of, encode_record, read_file,
};

const MAGIC: &Magic = b"TBFTCKP1";
const NAME: &str = "checkpoints";
/// The file may hold so much that is old before it is written anew, besides as much as is in use.
const GARBAGE_BYTES_MAX: u64 = 4 << 20;

/// One record. Borsh's tag byte of each variant is part of the format.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
enum Line {
    /// A session has these bytes from the next checkpoint on.
    Session { key: u32, id: u64, bytes: Bytes },
    /// A session is gone from the next checkpoint on.
    Gone { key: u32, id: u64 },
    /// A key has this floor from the next checkpoint on.
    Floor { key: u32, floor: u64 },
    /// What stands above is the session table after this slot.
    Checkpoint {
        slot: Slot,
        history: Digest,
        timestamp_us: u64,
    },
    /// The service has made its state after this slot durable.
    Done { slot: Slot, digest: Digest },
}

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Journaled {
    lines: Vec<Line>,
}

/// The journal, open for writing.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    owner: Digest,
    synced: bool,
    file: File,
    bytes: u64,
    /// The checkpoints that were written last, and whether the service has them, oldest first: as many as a start of the
    /// service may stand at. Invariant: at most [`CHECKPOINTS_KEPT`].
    last: VecDeque<(Checkpoint, Option<Digest>)>,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |cause| StorageError::Io { doing, path, cause }
}

impl Journaled {
    /// Reads the journal in `dir`; nothing when there is none. A record that is cut off at the end belongs to a
    /// checkpoint that was not made.
    ///
    /// # Errors
    /// When it cannot be read, is damaged or belongs to another twin.
    pub fn read(dir: &Path, owner: Digest) -> Result<Self, ReadError> {
        let path = dir.join(NAME);
        let mut lines = Vec::new();
        match read_file(&path, MAGIC, 0, owner, &mut lines) {
            Ok(_torn) => Ok(Self { lines }),
            Err(ReadError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(error),
        }
    }

    /// The checkpoint of this slot.
    #[must_use]
    pub fn checkpoint(&self, slot: Slot) -> Option<Checkpoint> {
        let is_it = |line: &Line| matches!(line, Line::Checkpoint { slot: s, .. } if *s == slot);
        let at = self.lines.iter().rposition(is_it)?;
        let mut keys: BTreeMap<u32, (u64, BTreeMap<u64, Bytes>)> = BTreeMap::new();
        for line in &self.lines[..at] {
            match line {
                Line::Session { key, id, bytes } => {
                    keys.entry(*key).or_default().1.insert(*id, bytes.clone());
                }
                Line::Gone { key, id } => {
                    keys.entry(*key).or_default().1.remove(id);
                }
                Line::Floor { key, floor } => keys.entry(*key).or_default().0 = *floor,
                Line::Checkpoint { .. } | Line::Done { .. } => {}
            }
        }
        let mut sessions = SessionImage::default();
        for (key, (floor, of_key)) in keys {
            let image = sessions.keys.entry(key).or_default();
            image.floor = floor;
            image.sessions = of_key.into_iter().collect();
        }
        let Line::Checkpoint {
            slot,
            history,
            timestamp_us,
        } = self.lines[at]
        else {
            unreachable!("found above");
        };
        Some(Checkpoint {
            slot,
            history,
            timestamp_us,
            sessions,
        })
    }

    /// The checkpoint of this slot that the service has made durable, or else the last one, with the digest of its state.
    #[must_use]
    pub fn done(&self, wanted: Slot) -> Option<(Slot, Digest)> {
        let done = || {
            self.lines.iter().rev().filter_map(|line| match line {
                Line::Done { slot, digest } => Some((*slot, *digest)),
                Line::Session { .. }
                | Line::Gone { .. }
                | Line::Floor { .. }
                | Line::Checkpoint { .. } => None,
            })
        };
        done()
            .find(|(slot, _)| *slot == wanted)
            .or_else(|| done().next())
    }
}

impl Journal {
    /// Begins the journal in `dir` anew with the checkpoint that the service stands at, if it is not at genesis.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin(
        dir: &Path,
        owner: Digest,
        synced: bool,
        base: Option<(Checkpoint, Digest)>,
    ) -> Result<Self, StorageError> {
        fs::create_dir_all(dir).map_err(failed("creating", dir))?;
        let base = base.map(|(checkpoint, digest)| (checkpoint, Some(digest)));
        let last = base.into_iter().collect();
        let (file, bytes) = write_anew(dir, owner, synced, &last)?;
        Ok(Self {
            dir: dir.to_owned(),
            owner,
            synced,
            file,
            bytes,
            last,
        })
    }

    /// Adds a checkpoint that the service is about to make. When this returns it is as durable as it has to be.
    ///
    /// # Errors
    /// When the disk fails; the node stops.
    pub fn write(&mut self, checkpoint: &Checkpoint) -> Result<(), StorageError> {
        let live = checkpoint.sessions.bytes() as u64;
        if self.bytes > (CHECKPOINTS_KEPT as u64 + 1) * live + GARBAGE_BYTES_MAX {
            (self.file, self.bytes) = write_anew(&self.dir, self.owner, self.synced, &self.last)?;
        }
        let none = SessionImage::default();
        let before = self.last.back().map_or(&none, |(c, _)| &c.sessions);
        let mut buffer = Vec::new();
        encode_checkpoint(before, checkpoint, self.bytes, &mut buffer);
        self.append(&buffer)?;
        self.last.push_back((checkpoint.clone(), None));
        if self.last.len() > CHECKPOINTS_KEPT {
            self.last.pop_front();
        }
        Ok(())
    }

    /// The service has made the checkpoint that was written last.
    ///
    /// # Errors
    /// When the disk fails; the node stops.
    pub fn done(&mut self, slot: Slot, digest: Digest) -> Result<(), StorageError> {
        let (checkpoint, done) = self.last.back_mut().expect("written before");
        assert_eq!(checkpoint.slot, slot, "one checkpoint after the other");
        *done = Some(digest);
        let mut buffer = Vec::new();
        encode_record(0, self.bytes, &Line::Done { slot, digest }, &mut buffer);
        let path = self.dir.join(NAME);
        self.file
            .write_all(&buffer)
            .map_err(failed("writing", &path))?;
        self.bytes += buffer.len() as u64;
        Ok(())
    }

    fn append(&mut self, buffer: &[u8]) -> Result<(), StorageError> {
        let path = self.dir.join(NAME);
        self.file
            .write_all(buffer)
            .map_err(failed("writing", &path))?;
        self.bytes += buffer.len() as u64;
        if self.synced {
            self.file.sync_data().map_err(failed("flushing", &path))?;
        }
        Ok(())
    }
}

/// What changed since `before`, and the mark of the checkpoint.
fn encode_checkpoint(before: &SessionImage, now: &Checkpoint, at: u64, buffer: &mut Vec<u8>) {
    let start = buffer.len() as u64;
    let mut add = |line: &Line| {
        let offset = at + buffer.len() as u64 - start;
        encode_record(0, offset, line, buffer);
    };
    for (&key, image) in &now.sessions.keys {
        let old = before.keys.get(&key);
        let floor = image.floor;
        if old.is_none_or(|old| old.floor != floor) {
            add(&Line::Floor { key, floor });
        }
        let old: BTreeMap<u64, &Bytes> = old
            .into_iter()
            .flat_map(|old| old.sessions.iter().map(|(id, bytes)| (*id, bytes)))
            .collect();
        for (id, bytes) in &image.sessions {
            // Sessions that did not change share their bytes, so this compares pointers nearly always.
            let same = |old: &&Bytes| {
                (old.as_ptr(), old.len()) == (bytes.as_ptr(), bytes.len()) || *old == bytes
            };
            if !old.get(id).is_some_and(same) {
                let (id, bytes) = (*id, bytes.clone());
                add(&Line::Session { key, id, bytes });
            }
        }
        let here = |id: &u64| {
            image
                .sessions
                .binary_search_by_key(id, |(id, _)| *id)
                .is_ok()
        };
        for id in old.into_keys().filter(|id| !here(id)) {
            add(&Line::Gone { key, id });
        }
    }
    add(&Line::Checkpoint {
        slot: now.slot,
        history: now.history,
        timestamp_us: now.timestamp_us,
    });
}

/// Replaces the file by one that holds these checkpoints alone.
fn write_anew(
    dir: &Path,
    owner: Digest,
    synced: bool,
    last: &VecDeque<(Checkpoint, Option<Digest>)>,
) -> Result<(File, u64), StorageError> {
    let mut buffer = encode_header_of(MAGIC, 0, owner).to_vec();
    assert_eq!(buffer.len(), SEGMENT_HEADER_BYTES, "the format says so");
    let none = SessionImage::default();
    let mut before = &none;
    for (checkpoint, done) in last {
        let at = buffer.len() as u64;
        encode_checkpoint(before, checkpoint, at, &mut buffer);
        before = &checkpoint.sessions;
        if let Some(digest) = *done {
            let slot = checkpoint.slot;
            let at = buffer.len() as u64;
            encode_record(0, at, &Line::Done { slot, digest }, &mut buffer);
        }
    }
    let (path, fresh) = (dir.join(NAME), dir.join("checkpoints.new"));
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&fresh)
        .map_err(failed("creating", &fresh))?;
    file.write_all(&buffer)
        .and_then(|()| if synced { file.sync_all() } else { Ok(()) })
        .map_err(failed("writing", &fresh))?;
    fs::rename(&fresh, &path).map_err(failed("renaming", &fresh))?;
    if synced {
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed("flushing", dir))?;
    }
    Ok((file, buffer.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Digest = Digest([7; 32]);

    fn checkpoint(slot: u64, sessions: &[(u32, u64, &[u8])]) -> Checkpoint {
        let mut image = SessionImage::default();
        for (key, id, bytes) in sessions {
            let of_key = image.keys.entry(*key).or_default();
            of_key.floor = slot;
            of_key.sessions.push((*id, Bytes::copy_from_slice(bytes)));
        }
        Checkpoint {
            slot: Slot(slot),
            history: Digest::of(&slot.to_le_bytes()),
            timestamp_us: slot,
            sessions: image,
        }
    }

    #[test]
    fn every_checkpoint_since_the_last_one_that_the_service_has_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = checkpoint(4, &[(0, 1, b"a"), (0, 2, b"b"), (1, 1, b"c")]);
        let second = checkpoint(8, &[(0, 2, b"b"), (0, 3, b"d"), (1, 1, b"cc")]);
        let mut journal = Journal::begin(dir.path(), OWNER, true, None).unwrap();
        journal.write(&first).unwrap();
        journal.done(first.slot, Digest([1; 32])).unwrap();
        journal.write(&second).unwrap();
        let read = Journaled::read(dir.path(), OWNER).unwrap();
        assert_eq!(read.checkpoint(first.slot), Some(first.clone()));
        assert_eq!(read.checkpoint(second.slot), Some(second));
        assert_eq!(read.checkpoint(Slot(12)), None);
        assert_eq!(read.done(Slot(0)), Some((first.slot, Digest([1; 32]))));
        // A start from the first one forgets the second.
        let base = (first.clone(), Digest([1; 32]));
        Journal::begin(dir.path(), OWNER, true, Some(base)).unwrap();
        let read = Journaled::read(dir.path(), OWNER).unwrap();
        assert_eq!(read.checkpoint(first.slot), Some(first));
        assert_eq!(read.checkpoint(Slot(8)), None);
    }

    #[test]
    fn what_is_old_goes_and_the_two_checkpoints_before_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), OWNER, false, None).unwrap();
        for slot in 1..=40 {
            let large = vec![u8::try_from(slot).unwrap(); 1 << 20];
            journal.write(&checkpoint(slot, &[(0, 1, &large)])).unwrap();
            journal.done(Slot(slot), Digest::ZERO).unwrap();
            assert!(journal.bytes < 10 << 20);
        }
        let read = Journaled::read(dir.path(), OWNER).unwrap();
        for slot in [38, 39, 40] {
            let found = read.checkpoint(Slot(slot)).unwrap();
            assert_eq!(
                found.sessions.keys[&0].sessions[0].1[0],
                u8::try_from(slot).unwrap()
            );
        }
    }

    #[test]
    fn a_cut_tail_is_no_checkpoint_and_a_bent_byte_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), OWNER, true, None).unwrap();
        journal.write(&checkpoint(4, &[(0, 1, b"a")])).unwrap();
        let whole = journal.bytes;
        journal.write(&checkpoint(8, &[(0, 1, b"b")])).unwrap();
        let path = dir.path().join(NAME);
        let bytes = fs::read(&path).unwrap();
        for cut in usize::try_from(whole).unwrap()..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let read = Journaled::read(dir.path(), OWNER).unwrap();
            assert!(read.checkpoint(Slot(4)).is_some() && read.checkpoint(Slot(8)).is_none());
        }
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 4;
            fs::write(&path, &bent).unwrap();
            let error = Journaled::read(dir.path(), OWNER).unwrap_err();
            assert!(error.to_string().contains("checkpoints"), "{at}: {error}");
        }
    }
}
