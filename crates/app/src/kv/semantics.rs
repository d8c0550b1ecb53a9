//! What each operation means, on whatever layers hold the state.

use bytes::Bytes;
use prost::Message as _;
use twinbft_types::kv::compare_and_swap::{Expected, Replacement};
use twinbft_types::kv::operation::Kind;
use twinbft_types::kv::outcome::Kind as OutcomeKind;
use twinbft_types::kv::{
    Absent, CompareAndSwap, Deleted, Failure, FailureCode, Get, Item, List, Mismatch, Operation,
    Outcome, Page, Scan, Value, Written as WrittenAnswer,
};

use crate::kv::layers::Layers;
use crate::kv::overlay::Written;
use crate::kv::tree::{Revision, bucket_of};
use crate::options::KvOptions;

/// A list reads values only to skip them. Its page ends when it has read this many times `page_bytes_max`, so that
/// one operation is bounded in what it costs.
const LIST_READ_FACTOR: u64 = 16;

impl From<Revision> for twinbft_types::kv::Revision {
    fn from(revision: Revision) -> Self {
        Self {
            slot: revision.slot,
            index: revision.index,
        }
    }
}

/// A change of the state that an operation asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Put { key: Bytes, value: Bytes },
    Delete { key: Bytes, bucket: u16 },
}

/// What an operation answers, and what a fast read matches it with.
pub(crate) struct Answer {
    pub(crate) outcome: OutcomeKind,
    /// See [`crate::Application::query`]. Meaningless for writes.
    pub(crate) version: u64,
    pub(crate) write: Option<Write>,
}

impl Answer {
    fn read(outcome: OutcomeKind, version: u64) -> Self {
        Self {
            outcome,
            version,
            write: None,
        }
    }

    /// A refusal depends on the operation alone, so every version keeps the promise of a fast read, and 0 is one.
    fn refused(code: FailureCode, message: String) -> Self {
        let failure = Failure {
            code: code.into(),
            message,
        };
        Self::read(OutcomeKind::Failure(failure), 0)
    }

    /// The bytes for the client.
    pub(crate) fn encode(self) -> (Bytes, u64) {
        let outcome = Outcome {
            kind: Some(self.outcome),
        };
        (outcome.encode_to_vec().into(), self.version)
    }
}

/// Works out one operation at the given revision. The state is as the operations before it left it.
///
/// `may_write` is false for a fast read.
pub(crate) fn answer(
    options: &KvOptions,
    state: &Layers<'_>,
    operation: &Bytes,
    revision: Revision,
    may_write: bool,
) -> Result<Answer, redb::Error> {
    // The decoder's own words may change with its version, and twins are compared byte by byte.
    let Ok(Operation { kind: Some(kind) }) = Operation::decode(operation.clone()) else {
        return Ok(malformed("these bytes are not one twinbft.kv.v1.Operation"));
    };
    if let Some(refusal) = refusal(options, &kind, may_write) {
        return Ok(refusal);
    }
    match kind {
        Kind::Get(Get { key }) => get(state, &key),
        Kind::Put(put) => Ok(written(put.key, put.value, revision)),
        Kind::Delete(delete) => Ok(match state.get(&delete.key)? {
            Some(found) => deleted(delete.key, &found),
            None => absent(state, &delete.key),
        }),
        Kind::CompareAndSwap(swap) => compare_and_swap(state, swap, revision),
        Kind::Scan(Scan { start, end, limit }) => {
            let end = (!end.is_empty()).then_some(&*end);
            page(options, state, &start, end, limit, true)
        }
        Kind::List(List {
            prefix,
            continuation,
            limit,
        }) => {
            let start = (&*prefix).max(&*continuation);
            let end = prefix_end(&prefix);
            page(options, state, start, end.as_deref(), limit, false)
        }
    }
}

fn malformed(message: &str) -> Answer {
    Answer::refused(FailureCode::Malformed, message.to_owned())
}

/// Everything that can be refused without looking at the state.
fn refusal(options: &KvOptions, kind: &Kind, may_write: bool) -> Option<Answer> {
    let (key, value, writes) = match kind {
        Kind::Get(get) => (Some(&get.key), None, false),
        Kind::Put(put) => (Some(&put.key), Some(&put.value), true),
        Kind::Delete(delete) => (Some(&delete.key), None, true),
        Kind::CompareAndSwap(swap) => {
            let value = match &swap.replacement {
                Some(Replacement::NewValue(value)) => Some(value),
                Some(Replacement::Delete(_)) => None,
                None => return Some(malformed("compare-and-swap without a replacement")),
            };
            if swap.expected.is_none() {
                return Some(malformed("compare-and-swap without an expectation"));
            }
            (Some(&swap.key), value, true)
        }
        Kind::Scan(_) | Kind::List(_) => (None, None, false),
    };
    if writes && !may_write {
        let message = "an operation that writes cannot be a fast read; send it as a request";
        return Some(Answer::refused(FailureCode::NotARead, message.to_owned()));
    }
    let too_long = |what: &str, bytes: usize, bytes_max: u32| {
        format!("the {what} has {bytes} bytes, more than the {bytes_max} allowed")
    };
    if let Some(key) = key.filter(|key| key.len() > options.key_bytes_max as usize) {
        let message = too_long("key", key.len(), options.key_bytes_max);
        return Some(Answer::refused(FailureCode::KeyTooLong, message));
    }
    if let Some(value) = value.filter(|value| value.len() > options.value_bytes_max as usize) {
        let message = too_long("value", value.len(), options.value_bytes_max);
        return Some(Answer::refused(FailureCode::ValueTooLong, message));
    }
    None
}

fn get(state: &Layers<'_>, key: &[u8]) -> Result<Answer, redb::Error> {
    let Some(found) = state.get(key)? else {
        return Ok(absent(state, key));
    };
    let version = found.revision.slot;
    let value = Value {
        value: found.value,
        revision: Some(found.revision.into()),
    };
    Ok(Answer::read(OutcomeKind::Value(value), version))
}

/// An absent key has no slot of its own, and remembering one for every key ever deleted would grow for ever. The
/// last deletion in its bucket is never older than its own, and deletions of other keys in that bucket cost a fast
/// read no more than a retry. A key that was written and deleted between two states raises it.
fn absent(state: &Layers<'_>, key: &[u8]) -> Answer {
    let version = state.deleted_slot_in(bucket_of(key));
    Answer::read(OutcomeKind::Absent(Absent {}), version)
}

fn written(key: Bytes, value: Bytes, revision: Revision) -> Answer {
    Answer {
        outcome: OutcomeKind::Written(WrittenAnswer {
            revision: Some(revision.into()),
        }),
        version: revision.slot,
        write: Some(Write::Put { key, value }),
    }
}

fn deleted(key: Bytes, found: &Written) -> Answer {
    let bucket = bucket_of(&key);
    Answer {
        outcome: OutcomeKind::Deleted(Deleted {
            revision: Some(found.revision.into()),
        }),
        version: found.revision.slot,
        write: Some(Write::Delete { key, bucket }),
    }
}

fn compare_and_swap(
    state: &Layers<'_>,
    swap: CompareAndSwap,
    revision: Revision,
) -> Result<Answer, redb::Error> {
    let found = state.get(&swap.key)?;
    let expected = swap.expected.expect("refused before");
    let holds = match (&expected, &found) {
        (Expected::Absent(_), found) => found.is_none(),
        (Expected::Value(value), Some(found)) => found.value == *value,
        (Expected::Revision(revision), Some(found)) => {
            *revision == twinbft_types::kv::Revision::from(found.revision)
        }
        (Expected::Value(_) | Expected::Revision(_), None) => false,
    };
    if !holds {
        let mismatch = Mismatch {
            revision: found.map(|found| found.revision.into()),
        };
        return Ok(Answer::read(OutcomeKind::Mismatch(mismatch), 0));
    }
    Ok(match (swap.replacement.expect("refused before"), found) {
        (Replacement::NewValue(value), _) => written(swap.key, value, revision),
        (Replacement::Delete(_), Some(found)) => deleted(swap.key, &found),
        (Replacement::Delete(_), None) => absent(state, &swap.key),
    })
}

/// One page of a range. Its version is the greatest slot among its items and the last deletion of any key: a key
/// that came and went within the range between two states shows only in the latter.
fn page(
    options: &KvOptions,
    state: &Layers<'_>,
    start: &[u8],
    end: Option<&[u8]>,
    limit: u32,
    with_values: bool,
) -> Result<Answer, redb::Error> {
    let items_max = match limit {
        0 => options.page_items_max,
        limit => limit.min(options.page_items_max),
    } as usize;
    let page_bytes_max = u64::from(options.page_bytes_max);
    let mut merge = state.range(start, end)?;
    let mut page = Page::default();
    let mut version = state.deleted_slot();
    let (mut page_bytes, mut read_bytes) = (0, 0);
    while let Some((key, written)) = merge.next()? {
        let value_bytes = written.value.len() as u64;
        read_bytes += key.len() as u64 + value_bytes;
        page_bytes += key.len() as u64 + if with_values { value_bytes } else { 0 };
        let full = page.items.len() == items_max
            || page_bytes > page_bytes_max
            || read_bytes > LIST_READ_FACTOR * page_bytes_max;
        if full && let Some(last) = page.items.last() {
            page.continuation = after(&last.key);
            break;
        }
        version = version.max(written.revision.slot);
        page.items.push(Item {
            key,
            revision: Some(written.revision.into()),
            value_bytes: u32::try_from(value_bytes).expect("values are bounded"),
            value: if with_values {
                written.value
            } else {
                Bytes::new()
            },
        });
    }
    Ok(Answer::read(OutcomeKind::Page(page), version))
}

/// The smallest key above this one.
fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The first key above all that begin with the prefix; `None` when there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn the_end_of_a_prefix_is_the_next_one_at_its_length() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }
}
