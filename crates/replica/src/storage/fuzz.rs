//! Fuzz targets of what a start reads from the disk; `scripts/fuzz` drives them by coverage. Their files have good checksums,
//! which no fuzzer finds by itself, around whatever it likes.

use std::fs;
use std::path::Path;

use bolero::{TypeGenerator, check};
use twinbft_types::{canonical, from_canonical};

use super::segment::encode_header_of;
use super::*;

const OWNER: Digest = Digest([7; 32]);

/// A file of records.
#[derive(Clone, Debug, TypeGenerator)]
struct Records {
    payloads: Vec<Vec<u8>>,
    /// Then this happens to it: cut off, and zeros behind it.
    cut: u16,
    zeros: u8,
    /// And these bytes turn.
    bent: Option<(u16, u8)>,
}

impl Records {
    fn file(&self, magic: &segment::Magic) -> Vec<u8> {
        let mut bytes = encode_header_of(magic, 0, OWNER).to_vec();
        for payload in &self.payloads {
            let offset = bytes.len() as u64;
            encode_record(0, offset, &Plain(payload), &mut bytes);
        }
        bytes.truncate(bytes.len().saturating_sub(usize::from(self.cut)));
        bytes.resize(bytes.len() + usize::from(self.zeros) * 64, 0);
        if let Some((at, bits)) = self.bent {
            let at = usize::from(at) % bytes.len().max(1);
            bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= bits);
        }
        bytes
    }
}

/// Bytes as they are, without a length.
struct Plain<'a>(&'a [u8]);

impl borsh::BorshSerialize for Plain<'_> {
    fn serialize<W: borsh::io::Write>(&self, writer: &mut W) -> borsh::io::Result<()> {
        writer.write_all(self.0)
    }
}

thread_local! {
    static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
}

fn written<T>(path: impl Fn(&Path) -> PathBuf, bytes: &[u8], read: impl Fn(&Path) -> T) -> T {
    DIR.with(|dir| {
        fs::write(path(dir.path()), bytes).expect("there is room");
        let result = read(dir.path());
        fs::remove_file(path(dir.path())).expect("just written");
        result
    })
}

/// What is read is what stands there, up to where it is torn; everything else is refused. And what was written whole is
/// read whole.
#[test]
fn write_ahead_log() {
    check!()
        .with_iterations(500)
        .with_type::<Records>()
        .for_each(|records| {
            let bytes = records.file(b"TBFTWAL1");
            let path = |dir: &Path| segment_path(dir, 0);
            let read = written(path, &bytes, |dir| read_segments(dir, OWNER));
            let good = |payload: &Vec<u8>| from_canonical::<Record>(payload).is_ok();
            let untouched = records.cut == 0 && records.zeros == 0 && records.bent.is_none();
            match read {
                Ok(found) => {
                    let end = match &found.torn {
                        Some(torn) => usize::try_from(torn.offset).expect("a short file"),
                        None => bytes.len(),
                    };
                    let mut again = Vec::new();
                    if end > 0 {
                        again.extend_from_slice(&encode_header(0, OWNER));
                    }
                    for record in &found.records {
                        let offset = again.len() as u64;
                        encode_record(0, offset, record, &mut again);
                    }
                    assert_eq!(again, bytes[..end]);
                    if untouched && !records.payloads.is_empty() {
                        let payloads: Vec<_> = found.records.iter().map(canonical).collect();
                        // An empty payload at the end, and zeros, may be what a crash leaves.
                        assert!(found.torn.is_some() || payloads == records.payloads);
                    }
                }
                Err(ReadError::Corrupt { .. } | ReadError::Foreign { .. }) => {
                    assert!(!untouched || !records.payloads.iter().all(good));
                }
                Err(error @ ReadError::Io { .. }) => panic!("{error}"),
            }
        });
}

/// The checkpoints' journal: what is found is whole, whatever stands in it.
#[test]
fn checkpoints() {
    check!()
        .with_iterations(500)
        .with_type::<Records>()
        .for_each(|records| {
            let bytes = records.file(b"TBFTCKP1");
            let path = |dir: &Path| dir.join("checkpoints");
            let read = written(path, &bytes, |dir| Journaled::read(dir, OWNER));
            let Ok(found) = read else {
                return;
            };
            let done = found.done(Slot(0)).map(|(slot, _)| slot);
            for slot in done.into_iter().chain((0..4).map(Slot)) {
                if let Some(checkpoint) = found.checkpoint(slot) {
                    assert_eq!(checkpoint.slot, slot);
                    // A start writes it anew.
                    DIR.with(|dir| {
                        let base = Some((checkpoint.clone(), Digest::ZERO));
                        let begun = Journal::begin(dir.path(), OWNER, false, base);
                        begun.expect("there is room");
                        let again = Journaled::read(dir.path(), OWNER).expect("our own");
                        assert_eq!(again.checkpoint(slot), Some(checkpoint));
                    });
                }
            }
        });
}
