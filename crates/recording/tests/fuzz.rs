//! A fuzz target of recorded logs; `scripts/fuzz` drives it by coverage. The hashes in its files are right, which no fuzzer
//! finds by itself, unless it bends them.

use std::fs;

use bolero::{TypeGenerator, check};
use twinbft_recording::{Chain, End, Item, RecordHead, Recording, SegmentHeader, file_name};

#[derive(Clone, Debug, TypeGenerator)]
struct Segment {
    epoch: u8,
    first_position: u64,
    /// What it says of the one before is not true.
    lies: bool,
    records: Vec<Record>,
    /// Bytes of the file turn, or it is cut off.
    bent: Option<(u16, u8)>,
    cut: Option<u16>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct Record {
    skip: u8,
    sender: u8,
    payload: Vec<u8>,
}

/// What is read is what was written, and in its order, up to the first thing that is wrong.
#[test]
fn segments() {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
    }
    check!()
        .with_iterations(50)
        .with_type::<Vec<Segment>>()
        .for_each(|segments| {
            let segments = &segments[..segments.len().min(4)];
            let path = DIR.with(|dir| dir.path().to_owned());
            let mut previous: Option<End> = None;
            // Each with its segment, and whether the segment is as it was written.
            let mut written = Vec::new();
            for (serial, segment) in (0..).zip(segments) {
                let header = SegmentHeader {
                    serial,
                    cluster_id: "fuzz".to_owned(),
                    host: 1,
                    epoch: segment.epoch.into(),
                    first_position: segment.first_position,
                    previous: if segment.lies {
                        Some(End {
                            epoch: 9,
                            position: 9,
                            chain: Chain([9; 32]),
                        })
                    } else {
                        previous
                    },
                    state: (segment.first_position > 0).then(|| b"state".to_vec()),
                };
                let (mut bytes, mut chain) = header.encode();
                let mut position = segment.first_position;
                for record in &segment.records {
                    position = position.wrapping_add(u64::from(record.skip / 250));
                    let head = RecordHead {
                        position,
                        sender: record.sender,
                        epoch: header.epoch,
                    };
                    head.encode(&record.payload, &mut chain, &mut bytes);
                    written.push((serial, head, record.payload.clone()));
                    position = position.wrapping_add(1);
                }
                previous = Some(End {
                    epoch: header.epoch,
                    position,
                    chain,
                });
                if let Some((at, bits)) = segment.bent {
                    let at = usize::from(at) % bytes.len();
                    bytes[at] ^= bits;
                }
                if let Some(cut) = segment.cut {
                    bytes.truncate(bytes.len().saturating_sub(cut.into()));
                }
                fs::write(path.join(file_name(serial)), bytes).expect("there is room");
            }
            let mut recording = Recording::open(&path).expect("a directory");
            let mut payload = Vec::new();
            let mut serial = 0;
            let mut written = written.iter();
            while let Ok(Some(item)) = recording.next(&mut payload) {
                match item {
                    Item::Segment { header, .. } => serial = header.serial,
                    // Entries that a segment repeats are passed over.
                    Item::Entry(head) => assert!(
                        written.any(|one| *one == (serial, head, payload.clone())),
                        "{head:?} of segment {serial} was not written, or not there"
                    ),
                }
            }
            for serial in (0..).take(segments.len()) {
                fs::remove_file(path.join(file_name(serial))).expect("just written");
            }
        });
}
