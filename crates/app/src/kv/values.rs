//! Where values lie in the file: a small one in its key's row, a large one in pieces of its own.
//!
//! A leaf of redb's tree is rewritten whole for each key that changes in it, and takes a power of two of pages. With large values
//! in the rows of their keys a write of a hundred bytes copied its neighbours' values too, and a value of 64 KiB took 128 KiB.
//! So rows are kept small, and pieces are as long as fills a leaf of 16 or of 4 KiB.

use redb::{ReadableTable, Table};
use sha2::{Digest as _, Sha256};

use crate::kv::overlay::Written;
use crate::kv::tree::Revision;

pub(crate) type BytesTable<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// A longer value has pieces.
const INLINE_BYTES_MAX: usize = 1024;
/// A leaf of four pages, without what the row takes besides: 36 bytes of key, and redb's offsets.
const PIECE_BYTES: usize = (16 << 10) - 128;
/// A leaf of one page.
const SMALL_PIECE_BYTES: usize = (4 << 10) - 128;
const PIECE_KEY_BYTES: usize = 36;

const INLINE: u8 = 0;
const IN_PIECES: u8 = 1;

/// What the row of a key says.
pub(crate) struct Row<'a> {
    pub(crate) revision: Revision,
    value: Place<'a>,
}

enum Place<'a> {
    Inline(&'a [u8]),
    /// With its length.
    InPieces(usize),
}

impl<'a> Row<'a> {
    /// `None` for a row that nobody has written so.
    pub(crate) fn parse(stored: &'a [u8]) -> Option<Self> {
        let (revision, rest) = stored.split_first_chunk::<{ Revision::BYTES }>()?;
        let (kind, rest) = rest.split_first()?;
        let value = match *kind {
            INLINE => Place::Inline(rest),
            IN_PIECES => {
                let bytes = u32::from_le_bytes(rest.try_into().ok()?);
                Place::InPieces(usize::try_from(bytes).ok()?)
            }
            _ => return None,
        };
        Some(Self {
            revision: Revision::from_bytes(*revision),
            value,
        })
    }

    /// The value, which is looked for in `pieces` when it is not in the row.
    pub(crate) fn value(
        &self,
        key: &[u8],
        pieces: &impl ReadableTable<&'static [u8], &'static [u8]>,
    ) -> Result<Vec<u8>, redb::Error> {
        let bytes = match self.value {
            Place::Inline(value) => return Ok(value.to_vec()),
            Place::InPieces(bytes) => bytes,
        };
        let mut value = Vec::with_capacity(bytes);
        let (first, last) = (piece_key(key, 0), piece_key(key, u32::MAX));
        for row in pieces.range(first.as_slice()..=last.as_slice())? {
            value.extend_from_slice(row?.1.value());
        }
        if value.len() != bytes {
            return Err(redb::Error::Corrupted(format!(
                "a value has {} bytes and its row says {bytes}",
                value.len()
            )));
        }
        Ok(value)
    }

    fn pieces(&self) -> u32 {
        match self.value {
            Place::Inline(_) => 0,
            Place::InPieces(bytes) => count(cut(bytes)),
        }
    }
}

/// Puts a value under a key, in place of an earlier one.
pub(crate) fn put(
    rows: &mut BytesTable<'_>,
    pieces: &mut BytesTable<'_>,
    key: &[u8],
    written: &Written,
) -> Result<(), redb::Error> {
    let value = &*written.value;
    let is_inline = value.len() <= INLINE_BYTES_MAX;
    let mut row = Vec::with_capacity(Revision::BYTES + 1 + value.len().min(INLINE_BYTES_MAX));
    row.extend_from_slice(&written.revision.to_bytes());
    let mut new = 0;
    if is_inline {
        row.push(INLINE);
        row.extend_from_slice(value);
    } else {
        row.push(IN_PIECES);
        let bytes = u32::try_from(value.len()).expect("values are bounded");
        row.extend_from_slice(&bytes.to_le_bytes());
        let mut rest = value;
        let mut piece_key = piece_key(key, 0);
        for bytes in cut(value.len()) {
            let (piece, behind) = rest.split_at(bytes);
            number(&mut piece_key, new);
            pieces.insert(piece_key.as_slice(), piece)?;
            (rest, new) = (behind, new + 1);
        }
    }
    let before = rows.insert(key, &*row)?;
    let before = before.map_or(Ok(0), |before| pieces_of(before.value()))?;
    remove_pieces(pieces, key, new..before)
}

/// Takes a key and its value out.
pub(crate) fn remove(
    rows: &mut BytesTable<'_>,
    pieces: &mut BytesTable<'_>,
    key: &[u8],
) -> Result<(), redb::Error> {
    let before = rows.remove(key)?;
    let before = before.map_or(Ok(0), |before| pieces_of(before.value()))?;
    remove_pieces(pieces, key, 0..before)
}

fn remove_pieces(
    pieces: &mut BytesTable<'_>,
    key: &[u8],
    numbers: std::ops::Range<u32>,
) -> Result<(), redb::Error> {
    if numbers.is_empty() {
        return Ok(());
    }
    let mut piece_key = piece_key(key, 0);
    for index in numbers {
        number(&mut piece_key, index);
        pieces.remove(piece_key.as_slice())?;
    }
    Ok(())
}

fn pieces_of(row: &[u8]) -> Result<u32, redb::Error> {
    Ok(Row::parse(row).ok_or_else(bad_row)?.pieces())
}

pub(crate) fn bad_row() -> redb::Error {
    redb::Error::Corrupted("a row of the table entries is none of ours".into())
}

/// Pieces lie in the order of the buckets, as a restore writes them.
fn piece_key(key: &[u8], index: u32) -> [u8; PIECE_KEY_BYTES] {
    let mut piece_key = [0; PIECE_KEY_BYTES];
    piece_key[..32].copy_from_slice(&key_hash(key));
    number(&mut piece_key, index);
    piece_key
}

fn number(piece_key: &mut [u8; PIECE_KEY_BYTES], index: u32) {
    piece_key[32..].copy_from_slice(&index.to_be_bytes());
}

/// Of this, a key's bucket is the beginning.
pub(crate) fn key_hash(key: &[u8]) -> [u8; 32] {
    let hash = Sha256::new_with_prefix(b"tbft/kvb").chain_update(key);
    hash.finalize().into()
}

/// The lengths of a value's pieces.
fn cut(bytes: usize) -> impl Iterator<Item = usize> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let piece = match rest {
            0 => return None,
            PIECE_BYTES.. => PIECE_BYTES,
            _ => rest.min(SMALL_PIECE_BYTES),
        };
        rest -= piece;
        Some(piece)
    })
}

fn count(pieces: impl Iterator<Item = usize>) -> u32 {
    u32::try_from(pieces.count()).expect("values are bounded")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use redb::backends::InMemoryBackend;
    use redb::{Builder, ReadableTableMetadata as _, TableDefinition, WriteTransaction};

    use super::*;

    const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
    const PIECES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("pieces");

    fn transaction() -> WriteTransaction {
        let database = Builder::new().create_with_backend(InMemoryBackend::new());
        let transaction = database.expect("memory").begin_write();
        transaction.expect("nobody else writes")
    }

    fn tables(transaction: &WriteTransaction) -> (BytesTable<'_>, BytesTable<'_>) {
        let open = |table| transaction.open_table(table).expect("a new table");
        (open(ROWS), open(PIECES))
    }

    #[test]
    fn a_value_is_cut_into_what_fills_leaves() {
        let cut = |bytes| cut(bytes).collect::<Vec<_>>();
        assert_eq!(cut(1025), [1025]);
        assert_eq!(cut(5000), [SMALL_PIECE_BYTES, 5000 - SMALL_PIECE_BYTES]);
        let four = PIECE_BYTES * 4;
        assert_eq!(
            cut(65_536),
            [
                PIECE_BYTES,
                PIECE_BYTES,
                PIECE_BYTES,
                PIECE_BYTES,
                65_536 - four
            ]
        );
    }

    /// Longer, shorter, in the row and in pieces by turns, and away: what is read is what was put last, and no piece stays.
    #[test]
    fn a_value_takes_the_place_of_the_one_before_and_leaves_no_piece() {
        let transaction = transaction();
        let (mut rows, mut pieces) = tables(&transaction);
        let revision = Revision { slot: 3, index: 1 };
        for (turn, bytes) in [0, 5000, 1024, 1025, 70_000, 16_256, 0].iter().enumerate() {
            for key in [&b"a"[..], b"ab"] {
                let byte = u8::try_from(turn).expect("few turns") + key[0] + key[key.len() - 1];
                let value = Bytes::from(vec![byte; *bytes]);
                let written = Written { revision, value };
                put(&mut rows, &mut pieces, key, &written).expect("memory");
                let stored = rows.get(key).expect("memory").expect("just put");
                let row = Row::parse(stored.value()).expect("ours");
                assert_eq!(row.revision, revision);
                assert_eq!(row.value(key, &pieces).expect("all pieces"), written.value);
            }
            let wanted = if *bytes > 1024 {
                cut(*bytes).count()
            } else {
                0
            };
            let found = pieces.len().expect("memory");
            assert_eq!(found, 2 * wanted as u64, "after {bytes} bytes");
        }
        for key in [&b"a"[..], b"ab"] {
            let value = Bytes::from(vec![1; 9000]);
            put(&mut rows, &mut pieces, key, &Written { revision, value }).expect("memory");
            remove(&mut rows, &mut pieces, key).expect("memory");
        }
        assert_eq!(rows.len().expect("memory"), 0);
        assert_eq!(pieces.len().expect("memory"), 0);
    }

    #[test]
    fn a_missing_piece_and_a_bent_row_are_named() {
        let transaction = transaction();
        let (mut rows, mut pieces) = tables(&transaction);
        let revision = Revision { slot: 3, index: 1 };
        let value = Bytes::from(vec![1; 40_000]);
        put(&mut rows, &mut pieces, b"key", &Written { revision, value }).expect("memory");
        pieces
            .remove(piece_key(b"key", 1).as_slice())
            .expect("memory");
        let stored = rows.get(&b"key"[..]).expect("memory").expect("just put");
        let row = Row::parse(stored.value()).expect("ours");
        let error = row.value(b"key", &pieces).expect_err("a piece is missing");
        let text = error.to_string();
        assert!(
            text.contains("a value has 23744 bytes and its row says 40000"),
            "{text}"
        );
        let bent = [&[0; 12][..], &[2, 0]].concat();
        assert!(Row::parse(&bent).is_none());
        assert!(Row::parse(&[0; 12]).is_none());
    }
}
