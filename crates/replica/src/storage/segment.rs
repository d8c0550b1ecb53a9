//! One file of the write-ahead log: its format, and how it is read back.
//!
//! A segment is a header of 64 bytes and records. A record is its length, a checksum of the length, a checksum
//! of the payload (12 bytes, little endian) and the payload: the Borsh bytes of a [`Record`]. Both checksums cover
//! the number of the segment and the offset of the record, so that bytes of another place never pass.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_core::Record;
use twinbft_types::{Digest, from_canonical};

/// First bytes of a file: what it is, and the version of its format.
pub(crate) type Magic = [u8; 8];
/// First bytes of every segment.
const MAGIC: &Magic = b"TBFTWAL1";
/// Length of a segment's header.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
/// Length of what stands before a record's payload.
pub(crate) const RECORD_HEADER_BYTES: usize = 12;
/// Files reach the disk in pages of at least this size.
const PAGE_BYTES: usize = 4096;
/// Fewer zeros than this at the end of a page may be part of a record.
const HOLE_BYTES_MIN: usize = 64;
/// Above every record that this program writes.
const RECORD_BYTES_MAX: u32 = 256 << 20;

/// A write-ahead log that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refused.
    #[error("reading {}: {cause}; check the disk and the permissions", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Bytes that this program has not written, and that no crash explains.
    #[error(
        "{} is damaged at offset {offset}: {what}; the promises behind it are lost: move the data directory away and let this twin recover from the others",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the damaged record begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The log of another twin or cluster.
    #[error("{} belongs to another twin or cluster; check --host, --twin and the data directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

/// Where the last segment ends in the middle of a record, or of its header: a write that a crash or a full disk cut
/// off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub path: PathBuf,
    /// Where the torn record begins; everything before it is whole.
    pub offset: u64,
}

/// What stands in a directory of segments.
#[derive(Debug, Default)]
pub struct Segments {
    /// All records, oldest first.
    pub records: Vec<Record>,
    /// The numbers of the segments, ascending.
    pub numbers: Vec<u64>,
    /// Set when the last write was cut off.
    pub torn: Option<TornTail>,
}

/// The file of segment `number`.
#[must_use]
pub fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("wal-{number:016x}.seg"))
}

fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?.strip_suffix(".seg")?;
    u64::from_str_radix(digits, 16).ok()
}

/// The numbers of the segments in `dir`, ascending; none when there is no such directory.
///
/// # Errors
/// When the directory cannot be listed.
pub fn segment_numbers(dir: &Path) -> Result<Vec<u64>, ReadError> {
    let failed = |cause| ReadError::Io {
        path: dir.to_owned(),
        cause,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(name.to_str().and_then(segment_number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The header of a segment. `owner` names cluster, host and twin.
pub(crate) fn encode_header(number: u64, owner: Digest) -> [u8; SEGMENT_HEADER_BYTES] {
    encode_header_of(MAGIC, number, owner)
}

/// The header of a file of records.
pub(crate) fn encode_header_of(
    magic: &Magic,
    number: u64,
    owner: Digest,
) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    bytes[0..8].copy_from_slice(magic);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..48].copy_from_slice(&owner.0);
    let crc = crc32c::crc32c(&bytes[..48]);
    bytes[48..52].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn place(number: u64, offset: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &offset.to_le_bytes())
}

/// Appends a record that will stand at `offset` of segment `number`.
///
/// # Panics
/// When the record is above 256 MiB: the protocol's limits keep it far below.
pub(crate) fn encode_record<T: BorshSerialize>(
    number: u64,
    offset: u64,
    record: &T,
    buffer: &mut Vec<u8>,
) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    borsh::to_writer(&mut *buffer, record).expect("writing into memory does not fail");
    let (header, payload) = buffer[start..].split_at_mut(RECORD_HEADER_BYTES);
    let length = u32::try_from(payload.len()).expect("records are bounded");
    assert!(length <= RECORD_BYTES_MAX, "records are bounded");
    let place = place(number, offset);
    header[0..4].copy_from_slice(&length.to_le_bytes());
    header[4..8]
        .copy_from_slice(&crc32c::crc32c_append(place, &length.to_le_bytes()).to_le_bytes());
    header[8..12].copy_from_slice(&crc32c::crc32c_append(place, payload).to_le_bytes());
}

/// Reads all segments of `dir`, oldest first.
///
/// A record that is cut off at the end of the last segment, or a hole of zeros there, is a write that a crash
/// interrupted: it is reported as torn and everything before it stands. Any other damage is an error that names file and offset.
///
/// # Errors
/// When a file cannot be read, is damaged, or belongs to somebody else.
pub fn read_segments(dir: &Path, owner: Digest) -> Result<Segments, ReadError> {
    let numbers = segment_numbers(dir)?;
    let mut all = Segments::default();
    for (index, &number) in numbers.iter().enumerate() {
        let last = index + 1 == numbers.len();
        let path = segment_path(dir, number);
        let torn = read_file(&path, MAGIC, number, owner, &mut all.records)?;
        match torn {
            Some(offset) if last => all.torn = Some(TornTail { path, offset }),
            Some(offset) => {
                return Err(ReadError::Corrupt {
                    path,
                    offset,
                    what: "it ends within a record, and a later segment exists".to_owned(),
                });
            }
            None => {}
        }
    }
    all.numbers = numbers;
    Ok(all)
}

/// Whether a power failure explains a damaged record between `start` and `end`: the file had grown, and what should
/// stand there is a hole of zeros, from the record's start or from a page in the middle of it to the end of the file.
fn never_reached_the_disk(bytes: &[u8], start: usize, end: usize) -> bool {
    let zeros = bytes.iter().rev().take_while(|&&byte| byte == 0).count();
    let data_end = bytes.len() - zeros;
    let hole = data_end.next_multiple_of(PAGE_BYTES);
    zeros >= HOLE_BYTES_MIN.min(bytes.len() - start)
        && (data_end <= start || (hole < end && end - hole >= HOLE_BYTES_MIN))
}

/// Reads one file of records; the offset of a torn record, if it ends in one.
pub(crate) fn read_file<T: BorshDeserialize>(
    path: &Path,
    magic: &Magic,
    number: u64,
    owner: Digest,
    records: &mut Vec<T>,
) -> Result<Option<u64>, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|cause| ReadError::Io {
            path: path.to_owned(),
            cause,
        })?;
    let corrupt = |offset: usize, what: &str| ReadError::Corrupt {
        path: path.to_owned(),
        offset: offset as u64,
        what: what.to_owned(),
    };
    let Some(header) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else {
        return Ok(Some(0));
    };
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(Some(0));
    }
    if *header != encode_header_of(magic, number, owner) {
        // A header whose own checksum holds is whole, but somebody else's.
        let crc = crc32c::crc32c(&header[..48]).to_le_bytes();
        if header[..8] == *magic && header[48..52] == crc {
            return Err(ReadError::Foreign {
                path: path.to_owned(),
            });
        }
        return Err(corrupt(0, "the file's header is wrong"));
    }
    let mut offset = SEGMENT_HEADER_BYTES;
    while offset < bytes.len() {
        let rest = &bytes[offset..];
        let Some(header) = rest.first_chunk::<RECORD_HEADER_BYTES>() else {
            return Ok(Some(offset as u64));
        };
        let word = |at: usize| u32::from_le_bytes(*header[at..].first_chunk().expect("12 bytes"));
        let (length, length_crc, payload_crc) = (word(0), word(4), word(8));
        let place = place(number, offset as u64);
        if never_reached_the_disk(&bytes, offset, offset + RECORD_HEADER_BYTES) {
            return Ok(Some(offset as u64));
        }
        if crc32c::crc32c_append(place, &length.to_le_bytes()) != length_crc {
            return Err(corrupt(
                offset,
                "the checksum of a record's length is wrong",
            ));
        }
        if length > RECORD_BYTES_MAX {
            return Err(corrupt(
                offset,
                "a record is longer than any that is written",
            ));
        }
        let Some(payload) = rest[RECORD_HEADER_BYTES..].get(..length as usize) else {
            return Ok(Some(offset as u64));
        };
        if crc32c::crc32c_append(place, payload) != payload_crc {
            if never_reached_the_disk(&bytes, offset, offset + RECORD_HEADER_BYTES + payload.len())
            {
                return Ok(Some(offset as u64));
            }
            return Err(corrupt(offset, "the checksum of a record is wrong"));
        }
        let record = from_canonical(payload).map_err(|error| corrupt(offset, &error.0))?;
        records.push(record);
        offset += RECORD_HEADER_BYTES + payload.len();
    }
    Ok(None)
}
