//! The record format of the log: an 8-byte aligned header of 32 bytes, then the payload. Little
//! endian. A record never wraps; what is left at the end of the data area is a pad record.

use crate::layout::RECORD_ALIGN;

/// Length of a record's header.
pub const HEADER_BYTES: usize = 32;
/// Length of what a pad record needs at least; the rest of it is not looked at.
pub const PAD_HEADER_BYTES: usize = 8;

const KIND_ENTRY: u8 = 1;
const KIND_PAD: u8 = 2;
const PAD_SENDER: u8 = 0xff;

/// Bytes that an entry with this payload takes in the log, header and alignment included.
#[must_use]
pub fn record_bytes(payload_bytes: u32) -> u32 {
    let total = u64::from(payload_bytes) + HEADER_BYTES as u64;
    u32::try_from(total.next_multiple_of(RECORD_ALIGN as u64))
        .expect("limits keep records below 2^31")
}

/// The header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Length of the payload.
    pub payload_bytes: u32,
    /// The twin whose channel the entry came in on.
    pub sender: u8,
    /// Index of the entry within its epoch.
    pub position: u64,
    /// The sender's own running number.
    pub append_number: u64,
    /// crc32c, see `checksum`.
    pub crc: u32,
}

/// What can stand at an offset of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An entry.
    Entry(EntryHeader),
    /// Nothing up to the end of the data area.
    Pad,
}

/// Bytes that no broker writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Neither entry nor pad.
    #[error("record kind {0} is unknown")]
    Kind(u8),
    /// A reserved byte is set, or a pad names a sender.
    #[error("reserved bytes of a record are not zero")]
    Reserved,
    /// Fewer bytes than a header.
    #[error("{0} bytes are too short for a record")]
    Short(usize),
}

impl EntryHeader {
    /// The header with its checksum filled in.
    #[must_use]
    pub fn new(epoch: u64, sender: u8, position: u64, append_number: u64, payload: &[u8]) -> Self {
        let payload_bytes = u32::try_from(payload.len()).expect("limits keep payloads below 2^31");
        let mut header = Self {
            payload_bytes,
            sender,
            position,
            append_number,
            crc: 0,
        };
        header.crc = header.checksum(epoch, payload);
        header
    }

    /// crc32c over epoch, header (with a zero checksum) and payload. The epoch is in it so that
    /// bytes of an earlier epoch never pass.
    #[must_use]
    pub fn checksum(&self, epoch: u64, payload: &[u8]) -> u32 {
        let bare = Self { crc: 0, ..*self };
        let crc = crc32c::crc32c(&epoch.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &bare.encode());
        crc32c::crc32c_append(crc, payload)
    }

    /// The bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[4] = self.sender;
        bytes[5] = KIND_ENTRY;
        bytes[8..12].copy_from_slice(&self.crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.append_number.to_le_bytes());
        bytes
    }
}

/// The bytes of a pad's header.
#[must_use]
pub fn encode_pad() -> [u8; PAD_HEADER_BYTES] {
    [0, 0, 0, 0, PAD_SENDER, KIND_PAD, 0, 0]
}

/// Reads a header that was copied out of the log. `bytes` is at least `PAD_HEADER_BYTES` long and
/// as long as a header where an entry may stand.
///
/// # Errors
/// Bytes that no broker writes. Whether the lengths and the position make sense is the caller's to
/// check, who knows what surrounds them.
pub fn decode(bytes: &[u8]) -> Result<Header, RecordError> {
    if bytes.len() < PAD_HEADER_BYTES {
        return Err(RecordError::Short(bytes.len()));
    }
    match bytes[5] {
        KIND_PAD => {
            let clean = bytes[..PAD_HEADER_BYTES] == encode_pad();
            if clean {
                Ok(Header::Pad)
            } else {
                Err(RecordError::Reserved)
            }
        }
        KIND_ENTRY => {
            let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
                return Err(RecordError::Short(bytes.len()));
            };
            decode_entry(bytes).map(Header::Entry)
        }
        kind => Err(RecordError::Kind(kind)),
    }
}

fn decode_entry(bytes: &[u8; HEADER_BYTES]) -> Result<EntryHeader, RecordError> {
    if bytes[6..8] != [0; 2] || bytes[12..16] != [0; 4] {
        return Err(RecordError::Reserved);
    }
    let u32_at =
        |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"));
    let u64_at =
        |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"));
    Ok(EntryHeader {
        payload_bytes: u32_at(0),
        sender: bytes[4],
        crc: u32_at(8),
        position: u64_at(16),
        append_number: u64_at(24),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_what_decodes_encodes_back(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
            if let Ok(Header::Entry(header)) = decode(&bytes) {
                prop_assert_eq!(&header.encode()[..], &bytes[..HEADER_BYTES]);
            }
        }

        #[test]
        fn entries_round_trip(sender in 0u8..8, position: u64, number: u64, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let header = EntryHeader::new(7, sender, position, number, &payload);
            prop_assert_eq!(decode(&header.encode()), Ok(Header::Entry(header)));
            prop_assert_eq!(header.crc, header.checksum(7, &payload));
            prop_assert_ne!(header.crc, header.checksum(8, &payload));
        }

        #[test]
        fn one_flipped_bit_is_noticed(bit in 0usize..(HEADER_BYTES + 16) * 8) {
            let payload = *b"sixteen byte pay";
            let header = EntryHeader::new(1, 0, 5, 9, &payload);
            let mut bytes = header.encode().to_vec();
            bytes.extend_from_slice(&payload);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let noticed = match decode(&bytes) {
                Ok(Header::Entry(read)) => read.checksum(1, &bytes[HEADER_BYTES..]) != read.crc,
                Ok(Header::Pad) => false,
                Err(_) => true,
            };
            prop_assert!(noticed);
        }
    }

    #[test]
    fn a_pad_is_told_from_an_entry() {
        assert_eq!(decode(&encode_pad()), Ok(Header::Pad));
    }
}
