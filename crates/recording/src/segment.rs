//! Reads one segment file, and believes nothing of it that its chain does not show.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::format::{
    CHAIN_BYTES, Chain, End, FIXED_BYTES, HEAD_BYTES, RecordHead, SegmentHeader, decode_fixed,
};

/// Where a recording stops being one. What stands after it proves nothing.
#[derive(Debug, thiserror::Error)]
#[error("{}, offset {offset}: {problem}", path.display())]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where the header or record begins that is damaged.
    pub offset: u64,
    /// What is wrong.
    pub problem: String,
    /// Whether the file merely ends inside of it, as after a crash in the midst of a write.
    pub is_torn: bool,
}

/// A reader of one segment. After `Err` it is of no further use.
#[derive(Debug)]
pub struct SegmentReader {
    path: PathBuf,
    file: BufReader<File>,
    bytes: u64,
    /// Where the next record begins.
    offset: u64,
    header: SegmentHeader,
    position: u64,
    chain: Chain,
}

impl SegmentReader {
    /// Opens a segment and verifies its header.
    ///
    /// # Errors
    /// Damage, or a file that cannot be read.
    pub fn open(path: &Path) -> Result<Self, Damage> {
        let failed = |error: io::Error| Damage {
            path: path.to_owned(),
            offset: 0,
            problem: format!("reading it: {error}"),
            is_torn: false,
        };
        let damaged = |problem: &str, is_torn: bool| Damage {
            path: path.to_owned(),
            offset: 0,
            problem: problem.to_owned(),
            is_torn,
        };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut file = BufReader::with_capacity(256 << 10, file);
        let mut fixed = [0; FIXED_BYTES];
        if bytes < FIXED_BYTES as u64 {
            return Err(damaged("the file ends inside its header", true));
        }
        file.read_exact(&mut fixed).map_err(failed)?;
        let Some(read) = decode_fixed(&fixed) else {
            return Err(damaged("this is no header of a recorded log", false));
        };
        let rest = read.name_bytes as u64 + read.state_bytes as u64 + CHAIN_BYTES as u64;
        let header_bytes = FIXED_BYTES as u64 + rest;
        // Checked before the length is believed.
        if header_bytes > bytes {
            return Err(damaged("the file ends inside its header", true));
        }
        let mut rest = vec![0; usize::try_from(rest).expect("not more than the file")];
        file.read_exact(&mut rest).map_err(failed)?;
        let (named, link) = rest.split_at(read.name_bytes + read.state_bytes);
        let whole = [&fixed[..], named].concat();
        let chain = Chain::of_header(&whole);
        if link != chain.0 {
            return Err(damaged("the header does not match its hash", false));
        }
        let (name, state) = named.split_at(read.name_bytes);
        let mut header = read.header;
        header.cluster_id = String::from_utf8(name.to_vec())
            .map_err(|_| damaged("the cluster's name is no text", false))?;
        header.state = read.has_state.then(|| state.to_vec());
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            offset: header_bytes,
            position: header.first_position,
            header,
            chain,
        })
    }

    /// What its header says.
    #[must_use]
    pub const fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next record begins.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the segment ends as far as it was read.
    #[must_use]
    pub const fn end(&self) -> End {
        End {
            epoch: self.header.epoch,
            position: self.position,
            chain: self.chain,
        }
    }

    /// Reads the next record into `payload` (its old content is dropped) and verifies it; `None` at the file's end.
    ///
    /// # Errors
    /// Damage, or a file that cannot be read.
    pub fn next(&mut self, payload: &mut Vec<u8>) -> Result<Option<RecordHead>, Damage> {
        let left = self.bytes - self.offset;
        if left == 0 {
            return Ok(None);
        }
        if left < (HEAD_BYTES + CHAIN_BYTES) as u64 {
            return Err(self.damage("the file ends inside a record", true));
        }
        let mut bytes = [0; HEAD_BYTES];
        self.read(&mut bytes)?;
        let (head, payload_bytes) = RecordHead::decode(&bytes);
        let record_bytes = (HEAD_BYTES + CHAIN_BYTES) as u64 + u64::from(payload_bytes);
        if record_bytes > left {
            return Err(self.damage("the file ends inside a record", true));
        }
        payload.resize(payload_bytes as usize, 0);
        self.read(payload)?;
        let mut link = [0; CHAIN_BYTES];
        self.read(&mut link)?;
        let chain = self.chain.next(&bytes, payload);
        if link != chain.0 {
            return Err(self.damage("the record does not match its hash", false));
        }
        if head.position != self.position || head.epoch != self.header.epoch {
            return Err(self.damage("the record is of another position or epoch", false));
        }
        self.chain = chain;
        self.position += 1;
        self.offset += record_bytes;
        Ok(Some(head))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), Damage> {
        let read = self.file.read_exact(into);
        read.map_err(|error| self.damage(&format!("reading it: {error}"), false))
    }

    pub(crate) fn damage(&self, problem: &str, is_torn: bool) -> Damage {
        Damage {
            path: self.path.clone(),
            offset: self.offset,
            problem: problem.to_owned(),
            is_torn,
        }
    }
}
