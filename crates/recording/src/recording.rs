//! Reads a whole recording: its segments in order, each held against the one before.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use crate::format::{End, RecordHead, SegmentHeader, serial_of};
use crate::segment::{Damage, SegmentReader};

/// The segment files of a directory, oldest first, with their serial numbers. Other files are passed over.
///
/// # Errors
/// When the directory cannot be read.
pub fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        if let Some(serial) = file.file_name().to_str().and_then(serial_of) {
            found.push((serial, file.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// How a segment goes on from what was read before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// Nothing was read before it.
    First,
    /// Without a gap: it repeats the entries from its first position on, and only those after them are given again.
    Continues,
    /// Entries of this epoch are in no file, or not known to be the same: reading begins anew with its STATE.
    Gap {
        /// How many.
        missing: u64,
    },
    /// The host's log was lost, and with it what was not recorded of the epoch before.
    NewEpoch,
}

/// What comes next in a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A segment begins.
    Segment {
        /// What it says.
        header: SegmentHeader,
        /// How it goes on.
        joins: Joins,
    },
    /// An entry, in the caller's buffer.
    Entry(RecordHead),
}

/// A reader of a recording. After `Err` it is of no further use.
#[derive(Debug)]
pub struct Recording {
    waiting: VecDeque<(u64, PathBuf)>,
    current: Option<SegmentReader>,
    /// Where the segment before ended.
    end: Option<(u64, End)>,
    /// Entries below this were given already.
    given: u64,
}

impl Recording {
    /// Of the segments in a directory. Files that are added later are not looked at.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            waiting: segments(dir)?.into(),
            current: None,
            end: None,
            given: 0,
        })
    }

    /// Whether there is no segment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.current.is_none()
    }

    /// Where it ends, as far as it was read.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        let current = self.current.as_ref().map(SegmentReader::end);
        current.or_else(|| self.end.map(|(_, end)| end))
    }

    /// What comes next, an entry's bytes in `payload`; `None` at the end.
    ///
    /// # Errors
    /// Damage; what stands after it proves nothing.
    pub fn next(&mut self, payload: &mut Vec<u8>) -> Result<Option<Item>, Damage> {
        loop {
            let Some(current) = &mut self.current else {
                let Some((serial, path)) = self.waiting.pop_front() else {
                    return Ok(None);
                };
                return self.begin(serial, &path).map(Some);
            };
            match current.next(payload)? {
                Some(head) if head.position < self.given => {}
                Some(head) => {
                    self.given = head.position + 1;
                    return Ok(Some(Item::Entry(head)));
                }
                None => {
                    self.end = Some((current.header().serial, current.end()));
                    self.current = None;
                }
            }
        }
    }

    fn begin(&mut self, serial: u64, path: &Path) -> Result<Item, Damage> {
        let reader = SegmentReader::open(path)?;
        let header = reader.header();
        let wrong = |problem: String| Damage {
            path: path.to_owned(),
            offset: 0,
            problem,
            is_torn: false,
        };
        if header.serial != serial {
            return Err(wrong(format!(
                "it says that it is segment {}",
                header.serial
            )));
        }
        let joins = match (self.end, header.previous) {
            (None, _) => Joins::First,
            (Some((before, _)), _) if serial != before + 1 => {
                let missing = before + 1;
                return Err(wrong(format!(
                    "segment {missing}, which stood before it, is missing"
                )));
            }
            (Some((_, end)), previous) if previous != Some(end) => {
                return Err(wrong(
                    "the segment before it ends otherwise than it says".to_owned(),
                ));
            }
            (Some((_, end)), _) if header.epoch != end.epoch => Joins::NewEpoch,
            (Some((_, end)), _) => match header.first_position.checked_sub(end.position) {
                None | Some(0) => Joins::Continues,
                Some(missing) => Joins::Gap { missing },
            },
        };
        if joins != Joins::Continues {
            self.given = header.first_position;
        }
        let header = header.clone();
        self.current = Some(reader);
        Ok(Item::Segment { header, joins })
    }
}
