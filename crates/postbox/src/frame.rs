//! What a twin sends over its ring: frames of {length, kind, number, payload}, padded to 8 bytes.
//! The broker's side assembles them into a private buffer and only then looks at them.

use crate::ledger::Limits;
use crate::vchan::{RingConsumer, RingFault};

/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 16;
const ALIGN: usize = 8;
const KIND_APPEND: u8 = 1;
const KIND_TRIM: u8 = 2;
/// A buffer larger than this is given back after the frame that needed it.
const KEEP_BYTES: usize = 64 << 10;

/// Why a twin's channel is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The ring's indexes are impossible.
    #[error(transparent)]
    Ring(#[from] RingFault),
    /// A frame of no known kind.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// Reserved bytes of a frame are set.
    #[error("reserved bytes of a frame are not zero")]
    Reserved,
}

/// A whole frame, copied out of the ring.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An append of the twin's running `number`.
    Append {
        /// The twin's running number.
        number: u64,
        /// The entry.
        payload: &'a [u8],
    },
    /// An append above `entry_bytes_max`; its bytes were skipped.
    AppendTooLarge {
        /// The twin's running number.
        number: u64,
        /// Length of the entry.
        payload_bytes: u32,
    },
    /// A trim proposal.
    Trim {
        /// `p`.
        position: u64,
        /// STATE.
        state: &'a [u8],
    },
    /// A trim above `state_bytes_max`; its bytes were skipped.
    TrimTooLarge,
}

fn encode(kind: u8, number: u64, payload: &[u8]) -> Vec<u8> {
    let payload_bytes = u32::try_from(payload.len()).expect("checked against the limits before");
    let mut bytes =
        Vec::with_capacity((FRAME_HEADER_BYTES + payload.len()).next_multiple_of(ALIGN));
    bytes.extend_from_slice(&payload_bytes.to_le_bytes());
    bytes.extend_from_slice(&[kind, 0, 0, 0]);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
    bytes
}

/// The bytes of an append.
#[must_use]
pub fn encode_append(number: u64, payload: &[u8]) -> Vec<u8> {
    encode(KIND_APPEND, number, payload)
}

/// The bytes of a trim proposal.
#[must_use]
pub fn encode_trim(position: u64, state: &[u8]) -> Vec<u8> {
    encode(KIND_TRIM, position, state)
}

#[derive(Clone, Copy)]
struct FrameHeader {
    payload_bytes: u32,
    kind: Kind,
    number: u64,
}

#[derive(Clone, Copy)]
enum Kind {
    Append,
    Trim,
}

fn decode_header(bytes: [u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, FrameFault> {
    let kind = match bytes[4] {
        KIND_APPEND => Kind::Append,
        KIND_TRIM => Kind::Trim,
        kind => return Err(FrameFault::Kind(kind)),
    };
    if bytes[5..8] != [0; 3] {
        return Err(FrameFault::Reserved);
    }
    Ok(FrameHeader {
        payload_bytes: u32::from_le_bytes(*bytes.first_chunk().expect("16 bytes")),
        kind,
        number: u64::from_le_bytes(*bytes[8..].first_chunk().expect("16 bytes")),
    })
}

/// Puts one twin's frames together, whatever pieces they come in. Its memory is bounded by the
/// largest frame, and only grows with bytes that have come.
pub struct FrameAssembler {
    entry_bytes_max: u32,
    state_bytes_max: u32,
    header: Option<FrameHeader>,
    /// The header's bytes as far as they have come. Nothing is ever left in the ring, or a twin that
    /// sends half a header would keep it looking ready for ever.
    header_bytes: [u8; FRAME_HEADER_BYTES],
    header_taken: usize,
    buffer: Vec<u8>,
    /// Bytes of the current frame's body that have been taken off the ring.
    taken: u64,
}

impl FrameAssembler {
    /// For the channel of one twin.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            entry_bytes_max: limits.entry_bytes_max,
            state_bytes_max: limits.state_bytes_max,
            header: None,
            header_bytes: [0; FRAME_HEADER_BYTES],
            header_taken: 0,
            buffer: Vec::new(),
            taken: 0,
        }
    }

    /// The next whole frame, or `None` until more bytes come. Takes at most one frame off the ring;
    /// the caller gives the room back with `RingConsumer::release`.
    ///
    /// # Errors
    /// The twin broke the rules; its channel must be closed.
    pub fn poll_frame(&mut self, ring: &mut RingConsumer) -> Result<Option<Frame<'_>>, FrameFault> {
        let mut available = ring.available()? as usize;
        let header = match self.header {
            Some(header) => header,
            None => {
                let want = (FRAME_HEADER_BYTES - self.header_taken).min(available);
                ring.read(&mut self.header_bytes[self.header_taken..][..want]);
                self.header_taken += want;
                available -= want;
                if self.header_taken < FRAME_HEADER_BYTES {
                    return Ok(None);
                }
                self.start_frame(decode_header(self.header_bytes)?)
            }
        };
        let payload_bytes_max = match header.kind {
            Kind::Append => self.entry_bytes_max,
            Kind::Trim => self.state_bytes_max,
        };
        let fits = header.payload_bytes <= payload_bytes_max;
        let body_bytes = u64::from(header.payload_bytes).next_multiple_of(ALIGN as u64);
        let want = usize::try_from(body_bytes - self.taken)
            .expect("below 2^33")
            .min(available);
        self.take_body(ring, want, fits);
        if self.taken < body_bytes {
            return Ok(None);
        }
        self.header = None;
        let payload = self
            .buffer
            .get(..header.payload_bytes as usize)
            .unwrap_or_default();
        Ok(Some(match (header.kind, fits) {
            (Kind::Append, true) => Frame::Append {
                number: header.number,
                payload,
            },
            (Kind::Append, false) => Frame::AppendTooLarge {
                number: header.number,
                payload_bytes: header.payload_bytes,
            },
            (Kind::Trim, true) => Frame::Trim {
                position: header.number,
                state: payload,
            },
            (Kind::Trim, false) => Frame::TrimTooLarge,
        }))
    }

    fn start_frame(&mut self, header: FrameHeader) -> FrameHeader {
        if self.buffer.capacity() > KEEP_BYTES {
            self.buffer = Vec::new();
        }
        self.buffer.clear();
        self.header_taken = 0;
        self.taken = 0;
        self.header = Some(header);
        header
    }

    fn take_body(&mut self, ring: &mut RingConsumer, want: usize, keep: bool) {
        let start = if keep { self.buffer.len() } else { 0 };
        self.buffer.resize(start + want, 0);
        ring.read(&mut self.buffer[start..]);
        self.taken += want as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::raw::WriteMemory;
    use crate::vchan::{RingProducer, channel_bytes, initialise};
    use proptest::prelude::*;

    fn channel() -> (RingProducer, RingConsumer, FrameAssembler) {
        let memory = Arc::new(WriteMemory::heap(channel_bytes(12)));
        initialise(&memory, 12);
        let limits = Limits {
            entry_bytes_max: 10_000,
            state_bytes_max: 5_000,
            ..Limits::new(2)
        };
        (
            RingProducer::new(memory.clone(), 12),
            RingConsumer::new(memory, 12),
            FrameAssembler::new(&limits),
        )
    }

    /// Miri takes a minute for what is a millisecond otherwise; what is left is still larger than the ring.
    const SCALE: usize = if cfg!(miri) { 2 } else { 1 };

    proptest! {
        /// Frames larger than the ring are streamed through it and come out whole and in order.
        #[test]
        fn frames_round_trip(lengths in proptest::collection::vec(0usize..12_000 / SCALE, 1..12 / (SCALE * SCALE))) {
            let (mut producer, mut consumer, mut assembler) = channel();
            for (number, length) in (0u64..).zip(lengths) {
                let payload: Vec<u8> = (0..=240).cycle().take(length).collect();
                let bytes = encode_append(number, &payload);
                let mut sent = 0;
                loop {
                    sent += producer.write(&bytes[sent..]).expect("honest consumer");
                    let frame = assembler.poll_frame(&mut consumer).expect("honest producer");
                    if let Some(frame) = frame {
                        let expected = if length <= 10_000 {
                            Frame::Append { number, payload: &payload }
                        } else {
                            Frame::AppendTooLarge { number, payload_bytes: u32::try_from(length).expect("small") }
                        };
                        prop_assert_eq!(frame, expected);
                        break;
                    }
                    let _ = consumer.release();
                }
                let _ = consumer.release();
                prop_assert_eq!(sent, bytes.len());
            }
        }

        /// Random bytes never panic and never make the assembler hold more than the ring gave it.
        #[test]
        fn random_bytes_are_frames_or_faults(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..600 / (SCALE * SCALE)), 1..30 / SCALE)) {
            let (mut producer, mut consumer, mut assembler) = channel();
            let mut fed = 0;
            'feeding: for chunk in chunks {
                fed += producer.write(&chunk).expect("honest consumer");
                loop {
                    match assembler.poll_frame(&mut consumer) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'feeding,
                    }
                }
                let _ = consumer.release();
                prop_assert!(assembler.buffer.len() <= fed);
            }
        }
    }

    #[test]
    fn a_too_large_trim_is_skipped_and_the_next_frame_is_read() {
        let (mut producer, mut consumer, mut assembler) = channel();
        let mut bytes = encode_trim(8, &[1; 5_001]);
        bytes.extend(encode_trim(16, b"state"));
        let mut sent = 0;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            sent += producer.write(&bytes[sent..]).expect("honest consumer");
            match assembler
                .poll_frame(&mut consumer)
                .expect("honest producer")
            {
                Some(Frame::TrimTooLarge) => seen.push(None),
                Some(Frame::Trim { position, state }) => {
                    seen.push(Some((position, state.to_vec())))
                }
                Some(other) => panic!("unexpected {other:?}"),
                None => {}
            }
            let _ = consumer.release();
        }
        assert_eq!(seen, [None, Some((16, b"state".to_vec()))]);
    }

    #[test]
    fn unknown_kinds_and_reserved_bytes_are_faults() {
        for (at, value, fault) in [(4, 9, FrameFault::Kind(9)), (6, 1, FrameFault::Reserved)] {
            let (mut producer, mut consumer, mut assembler) = channel();
            let mut bytes = encode_append(0, b"");
            bytes[at] = value;
            producer.write(&bytes).expect("honest consumer");
            assert_eq!(assembler.poll_frame(&mut consumer), Err(fault));
        }
    }
}
