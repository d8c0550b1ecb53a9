//! The recorder: follows the log, writes segments, marks gaps.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use twinbft_postbox::ReadError;
use twinbft_postbox::log_view::LogView;
use twinbft_recording::{Chain, End, RecordHead, SegmentHeader};

use super::directory::Directory;
use super::report::Report;
use super::{RETRY_EVERY, RecordOptions, SYNC_EVERY};

/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 1 << 20;
/// A record is in so many segments that the oldest one can go without much of the rest.
const SEGMENTS: u64 = 8;

/// A segment under way.
struct Segment {
    file: File,
    /// Its length as far as it is whole.
    bytes: u64,
    first_position: u64,
    position: u64,
    chain: Chain,
}

/// Why there is nothing more to write for now.
enum Trouble {
    /// The disk.
    Io(&'static str, io::Error),
    /// The log was trimmed beyond what was recorded.
    Lapped,
    /// The log or the directory is not what it should be: no other attempt will help.
    Hopeless(String),
}

/// Follows the log.
pub struct Recorder {
    options: RecordOptions,
    view: LogView,
    report: Arc<Report>,
    directory: Option<Directory>,
    segment: Option<Segment>,
    /// Where the last segment ended.
    end: Option<End>,
    retry_at: Option<Instant>,
    is_hopeless: bool,
    synced_at: Instant,
    is_dirty: bool,
    payload: Vec<u8>,
    buffer: Vec<u8>,
}

impl Recorder {
    pub fn new(options: RecordOptions, view: LogView, report: Arc<Report>) -> Self {
        Self {
            options,
            view,
            report,
            directory: None,
            segment: None,
            end: None,
            retry_at: None,
            is_hopeless: false,
            synced_at: Instant::now(),
            is_dirty: false,
            payload: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Writes what is new.
    pub fn turn(&mut self) {
        if self.is_hopeless || self.retry_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        if let Err(trouble) = self.follow() {
            self.give_up(trouble);
        }
        self.publish();
    }

    /// Writes what is new and makes it durable.
    pub fn finish(&mut self) {
        self.retry_at = None;
        self.turn();
        if let Err(error) = self.sync() {
            self.give_up(Trouble::Io("flushing it", error));
        }
        self.publish();
    }

    fn follow(&mut self) -> Result<(), Trouble> {
        if self.directory.is_none() {
            self.open_directory()?;
        }
        if self.segment.is_none() {
            self.begin_segment()?;
        }
        while self.write_some()? {
            if self.is_segment_full() {
                self.begin_segment()?;
            }
        }
        if self.is_dirty && self.synced_at.elapsed() >= SYNC_EVERY {
            self.sync()
                .map_err(|error| Trouble::Io("flushing it", error))?;
        }
        Ok(())
    }

    fn open_directory(&mut self) -> Result<(), Trouble> {
        let RecordOptions {
            dir,
            cluster_id,
            host,
            ..
        } = &self.options;
        let found = Directory::open(dir, cluster_id, *host).map_err(|error| match error {
            super::directory::DirectoryError::Io { error, .. } => Trouble::Io("opening it", error),
            foreign @ super::directory::DirectoryError::Foreign { .. } => {
                Trouble::Hopeless(foreign.to_string())
            }
        })?;
        if let Some(damage) = found.damage {
            self.report.event(format!(
                "an earlier record is damaged: {damage}; it is left as it is, and recording goes on in a new file"
            ));
        }
        self.directory = Some(found.directory);
        self.end = found.end;
        Ok(())
    }

    /// A full segment ends where the next one can begin: with another trim than it has begun with itself.
    fn is_segment_full(&self) -> bool {
        let Some(segment) = &self.segment else {
            return false;
        };
        segment.bytes >= self.options.bytes_max / SEGMENTS
            && self.view.head() > segment.first_position
    }

    /// Begins a segment with the last trim.
    fn begin_segment(&mut self) -> Result<(), Trouble> {
        self.end_segment()
            .map_err(|error| Trouble::Io("flushing it", error))?;
        let state = loop {
            let state = self.view.agreed_state().map_err(|error| hopeless(&error))?;
            match self
                .view
                .seek(state.as_ref().map_or(0, |state| state.position))
            {
                Ok(()) => break state,
                // Another trim came in between.
                Err(ReadError::Lapped { .. }) => {}
                Err(error @ (ReadError::Corrupt { .. } | ReadError::BeyondEnd { .. })) => {
                    return Err(hopeless(&error));
                }
            }
        };
        let epoch = self.view.info().epoch;
        let first_position = self.view.position();
        if let Some(end) = self.end {
            let is_gap = end.epoch == epoch && end.position < first_position;
            if is_gap {
                self.report.update(|numbers| numbers.gaps += 1);
                self.report.event(format!(
                    "a gap: entries {} to {} are in no file",
                    end.position,
                    first_position - 1
                ));
            }
        }
        let directory = self.directory.as_mut().expect("opened before");
        let header = SegmentHeader {
            serial: directory.next(),
            cluster_id: self.options.cluster_id.clone(),
            host: self.options.host,
            epoch,
            first_position,
            previous: self.end,
            state: state.map(|state| state.bytes),
        };
        let (bytes, chain) = header.encode();
        let mut file = directory
            .create()
            .map_err(|error| Trouble::Io("making a file", error))?;
        let written = file.write_all(&bytes).and_then(|()| directory.sync());
        if let Err(error) = written {
            drop(file);
            directory.undo_create();
            return Err(Trouble::Io("writing a header", error));
        }
        directory.resize(bytes.len() as u64);
        self.is_dirty = true;
        self.segment = Some(Segment {
            file,
            bytes: bytes.len() as u64,
            first_position,
            position: first_position,
            chain,
        });
        self.make_room(0)
    }

    /// Writes one buffer of entries. Answers whether there may be more.
    fn write_some(&mut self) -> Result<bool, Trouble> {
        let Some(segment) = &mut self.segment else {
            return Ok(false);
        };
        self.buffer.clear();
        let (mut chain, mut entries) = (segment.chain, 0);
        let mut trouble = None;
        while self.buffer.len() < WRITE_BYTES {
            match self.view.poll_next(&mut self.payload) {
                Ok(Some(entry)) => {
                    let head = RecordHead {
                        position: entry.position,
                        sender: entry.sender,
                        epoch: self.view.info().epoch,
                    };
                    head.encode(&self.payload, &mut chain, &mut self.buffer);
                    entries += 1;
                }
                Ok(None) => break,
                Err(ReadError::Lapped { .. }) => {
                    trouble = Some(Trouble::Lapped);
                    break;
                }
                Err(error @ (ReadError::Corrupt { .. } | ReadError::BeyondEnd { .. })) => {
                    trouble = Some(hopeless(&error));
                    break;
                }
            }
        }
        if entries > 0 {
            let more = self.buffer.len() as u64;
            self.make_room(more)?;
            let segment = self.segment.as_mut().expect("as above");
            let written = segment.file.write_all(&self.buffer);
            written.map_err(|error| Trouble::Io("writing to it", error))?;
            segment.bytes += more;
            segment.position += entries;
            segment.chain = chain;
            self.is_dirty = true;
            let bytes = segment.bytes;
            let directory = self.directory.as_mut().expect("a segment is in it");
            directory.resize(bytes);
            self.report.update(|numbers| numbers.entries += entries);
        }
        trouble.map_or(Ok(entries > 0), Err)
    }

    /// Oldest segments go until `more` bytes fit.
    fn make_room(&mut self, more: u64) -> Result<(), Trouble> {
        let bytes_max = self.options.bytes_max;
        let directory = self.directory.as_mut().expect("a segment is in it");
        let room = directory.make_room(more, bytes_max);
        let (dropped, fits) = room.map_err(|error| Trouble::Io("dropping an old file", error))?;
        self.report.update(|numbers| numbers.dropped += dropped);
        if fits {
            return Ok(());
        }
        let error = format!("record_bytes_max = {bytes_max} is too small for one whole log");
        Err(Trouble::Io("making room", io::Error::other(error)))
    }

    /// Where the segment ends is where the next one goes on.
    fn end_segment(&mut self) -> io::Result<()> {
        let result = self.sync();
        if let Some(segment) = self.segment.take() {
            self.end = Some(End {
                epoch: self.view.info().epoch,
                position: segment.position,
                chain: segment.chain,
            });
        }
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        self.synced_at = Instant::now();
        if !std::mem::take(&mut self.is_dirty) {
            return Ok(());
        }
        self.segment
            .as_ref()
            .map_or(Ok(()), |segment| segment.file.sync_data())
    }

    /// Ends the segment where it is whole. The next one begins with the trim of that time, and shows the gap.
    fn give_up(&mut self, trouble: Trouble) {
        if let Some(segment) = &self.segment {
            // Half a record at its end would make the whole file look cut off. If even this fails, it is.
            let _torn = segment.file.set_len(segment.bytes);
        }
        self.is_dirty = false;
        let _synced = self.end_segment();
        let problem = match trouble {
            // Begins anew at once, with its gap.
            Trouble::Lapped => return,
            Trouble::Io(doing, error) => {
                self.retry_at = Some(Instant::now() + RETRY_EVERY);
                let dir = self.options.dir.display();
                let every = RETRY_EVERY.as_secs();
                format!("{dir}: {doing}: {error}; not recording, next attempt in {every} s")
            }
            Trouble::Hopeless(problem) => {
                self.is_hopeless = true;
                format!("{problem}; not recording any more")
            }
        };
        self.report.update(|numbers| {
            numbers.errors += 1;
            numbers.problem = Some(problem.clone());
        });
        self.report.event(problem);
    }

    fn publish(&self) {
        let position = self.segment.as_ref().map(|segment| segment.position);
        let end = position.or_else(|| Some(self.end?.position)).unwrap_or(0);
        let (segments, bytes) = self
            .directory
            .as_ref()
            .map_or((0, 0), |directory| (directory.len(), directory.bytes()));
        let is_recording = position.is_some();
        let mut resumed = None;
        self.report.update(|numbers| {
            (numbers.segments, numbers.bytes, numbers.end) = (segments, bytes, end);
            if is_recording {
                resumed = numbers.problem.take();
            }
        });
        if resumed.is_some() {
            self.report.event("recording again".to_owned());
        }
    }
}

fn hopeless(error: &ReadError) -> Trouble {
    Trouble::Hopeless(format!("cannot read the log: {error}"))
}
