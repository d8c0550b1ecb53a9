//! The files: `evidence.log` and, before it, `evidence.old.log`.
//!
//! A line is 16 hexadecimal digits, the beginning of the SHA-256 of what follows; a space; the event as JSON.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use twinbft_types::Digest;

use crate::Record;

/// A file that has grown beyond this takes the place of the one before it.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest line.
const LINE_BYTES_MAX: usize = 4096;
/// So many events of one kind about one twin are all written; after that one a second.
const ALL_OF_A_KEY: u64 = 100;
/// The pause between later ones.
const ONE_IN_US: u64 = 1_000_000;
/// Kinds, twins and details that are told apart; beyond that details are not.
const KEYS_MAX: usize = 512;

/// The disk does not do what it should. The node stops.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}: {source}; free space or repair the disk, then start the replica again", path.display())]
pub struct StoreError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A line that is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In this file.
    pub path: PathBuf,
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: &'static str,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} line {}: {}; it is passed over",
            self.path.display(),
            self.line,
            self.problem
        )
    }
}

/// What the files hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Events, oldest first, each once.
    pub records: Vec<Record>,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// Kind, twin and detail.
type Key = (String, u8, Option<u8>, Option<String>);

fn key_of(record: &Record) -> Key {
    let Record {
        kind,
        host,
        twin,
        detail,
        ..
    } = record;
    (kind.clone(), *host, *twin, detail.clone())
}

/// What is remembered of one [`Key`].
#[derive(Debug)]
struct OfKey {
    first: Record,
    count: u64,
    written_us: u64,
}

/// Where a replica writes its events.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    file: File,
    bytes: u64,
    keys: BTreeMap<Key, OfKey>,
}

fn current(dir: &Path) -> PathBuf {
    dir.join("evidence.log")
}

fn old(dir: &Path) -> PathBuf {
    dir.join("evidence.old.log")
}

/// Reads what a replica has written in its data directory, whether it runs or not.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn read(dir: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for path in [old(dir), current(dir)] {
        match File::open(&path) {
            Ok(file) => read_file(&path, file, &mut found)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // A new file begins with the first of each kind, which the old one has too.
    found.records.sort();
    found.records.dedup();
    Ok(found)
}

fn read_file(path: &Path, file: File, found: &mut Found) -> io::Result<()> {
    let mut bytes = Vec::new();
    // No replica writes more.
    file.take(2 * FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let ends = bytes.last().is_none_or(|last| *last == b'\n');
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let last = lines.len();
    for (at, line) in lines.into_iter().enumerate() {
        if line.is_empty() {
            continue;
        }
        match decode(line) {
            Ok(record) => found.records.push(record),
            Err(problem) => {
                let is_torn = !ends && at + 1 == last;
                found.damage.push(Damage {
                    path: path.to_owned(),
                    line: at + 1,
                    problem: if is_torn {
                        "the last write was cut off"
                    } else {
                        problem
                    },
                });
            }
        }
    }
    Ok(())
}

fn check(json: &[u8]) -> String {
    let digest = Digest::of_canonical(b"tbft/evi", json).to_string();
    digest[..16].to_owned()
}

pub(crate) fn encode(record: &Record) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("an event is plain data");
    let mut line = check(&json).into_bytes();
    line.push(b' ');
    line.extend_from_slice(&json);
    line.push(b'\n');
    assert!(line.len() <= LINE_BYTES_MAX, "an event is short");
    line
}

fn decode(line: &[u8]) -> Result<Record, &'static str> {
    if line.len() > LINE_BYTES_MAX {
        return Err("it is longer than any event");
    }
    let (given, json) = line
        .split_at_checked(16)
        .and_then(|(check, rest)| Some((check, rest.strip_prefix(b" ")?)))
        .ok_or("it has no checksum")?;
    if given != check(json).as_bytes() {
        return Err("it does not match its checksum");
    }
    serde_json::from_slice(json).map_err(|_| "it is no event of this version")
}

impl Store {
    /// Opens the files in `dir`, which is made when it is missing, and reads what they hold.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn open(dir: &Path) -> Result<(Self, Found), StoreError> {
        let path = current(dir);
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError {
                doing,
                path,
                source,
            }
        };
        std::fs::create_dir_all(dir).map_err(failed("creating", dir))?;
        let found = read(dir).map_err(failed("reading the evidence in", dir))?;
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(failed("opening", &path))?;
        let bytes = file.metadata().map_err(failed("reading", &path))?.len();
        // Also where nothing but the newline is missing, and the event before it is whole.
        let mut last = [b'\n'];
        if let Some(at) = bytes.checked_sub(1) {
            file.read_exact_at(&mut last, at)
                .map_err(failed("reading", &path))?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n").map_err(failed("writing", &path))?;
        }
        let mut keys = BTreeMap::new();
        for record in &found.records {
            let of_key = keys.entry(key_of(record)).or_insert_with(|| OfKey {
                first: record.clone(),
                count: 0,
                written_us: 0,
            });
            of_key.count = of_key.count.max(record.count);
            of_key.written_us = of_key.written_us.max(record.time_us);
        }
        let store = Self {
            dir: dir.to_owned(),
            file,
            bytes,
            keys,
        };
        Ok((store, found))
    }

    /// Counts an event and, unless there were many like it just now, writes it. Answers with the event, counted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&mut self, mut record: Record) -> Result<Record, StoreError> {
        if !self.keys.contains_key(&key_of(&record)) && self.keys.len() >= KEYS_MAX {
            record.detail = None;
        }
        let of_key = self.keys.entry(key_of(&record)).or_insert_with(|| OfKey {
            first: record.clone(),
            count: 0,
            written_us: 0,
        });
        of_key.count = of_key.count.saturating_add(1);
        record.count = of_key.count;
        let is_due =
            of_key.count <= ALL_OF_A_KEY || record.time_us.abs_diff(of_key.written_us) >= ONE_IN_US;
        if is_due {
            of_key.written_us = record.time_us;
            self.write(&record)?;
        }
        Ok(record)
    }

    /// How many events there were of each kind, as far as the files remember.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, u64> {
        let mut totals = BTreeMap::new();
        for ((kind, ..), of_key) in &self.keys {
            let total: &mut u64 = totals.entry(kind.clone()).or_default();
            *total = total.saturating_add(of_key.count);
        }
        totals
    }

    fn write(&mut self, record: &Record) -> Result<(), StoreError> {
        if self.bytes >= FILE_BYTES_MAX {
            self.rotate()?;
        }
        self.append(&encode(record))
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(lines).map_err(|source| StoreError {
            doing: "writing",
            path: current(&self.dir),
            source,
        })?;
        self.bytes += lines.len() as u64;
        Ok(())
    }

    /// The new file begins with the first of each kind: those say most, and are never lost.
    fn rotate(&mut self) -> Result<(), StoreError> {
        let (from, to) = (current(&self.dir), old(&self.dir));
        let failed = |source| StoreError {
            doing: "renaming",
            path: from.clone(),
            source,
        };
        std::fs::rename(&from, to).map_err(failed)?;
        self.file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&from)
            .map_err(failed)?;
        self.bytes = 0;
        let firsts: Vec<u8> = (self.keys.values())
            .flat_map(|of_key| encode(&of_key.first))
            .collect();
        self.append(&firsts)
    }
}
