//! The key-value service, typed (`proto/kv.proto`).

use bytes::Bytes;
use prost::Message as _;
use twinbft_types::kv::compare_and_swap::{Expected, Replacement};
use twinbft_types::kv::{
    CompareAndSwap, Delete, Failure, Get, List, Nothing, Operation, Outcome, Page, Put, Revision,
    Scan, Value, operation, outcome,
};

use crate::driver::{Answer, CallError, SessionHandle};

/// Why an operation on the key-value service has no outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KvError {
    /// There was no certified answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The service refused the operation; it changed nothing.
    #[error("the service refused the operation: {} ({})", .0.message, .0.code().as_str_name())]
    Refused(Failure),
    /// The certified answer is none of this service, or none to this operation.
    #[error(
        "the answer is not one of the key-value service: {0}; which service does cluster.toml name?"
    )]
    NotKv(String),
}

/// What a compare-and-swap expects to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No such key.
    Absent,
    /// Exactly this value.
    Value(Bytes),
    /// The value that was written then.
    Revision(Revision),
}

/// What became of a compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The expectation held, and the new value was written then.
    Written(Revision),
    /// The expectation held, and the key is gone; the value was written then.
    Deleted(Revision),
    /// Nothing changed: the value there was written then, or there is none.
    Mismatch(Option<Revision>),
}

/// The key-value service through one session.
#[derive(Debug)]
pub struct KvClient {
    session: SessionHandle,
}

impl KvClient {
    /// On a session of its own or one that is shared.
    #[must_use]
    pub const fn new(session: SessionHandle) -> Self {
        Self { session }
    }

    async fn call(&self, kind: operation::Kind) -> Result<outcome::Kind, KvError> {
        decode(&self.session.call(encode(kind)).await?)
    }

    /// The value of a key, read in order with all writes. `None` when there is no such key.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn get(&self, key: Bytes) -> Result<Option<Value>, KvError> {
        let get = encode(operation::Kind::Get(Get { key }));
        value(decode(&self.session.call(get).await?)?)
    }

    /// The same as a fast read, and whether it was one: without agreement of the replicas it is ordered after all.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn get_fast(&self, key: Bytes) -> Result<(Option<Value>, bool), KvError> {
        let get = encode(operation::Kind::Get(Get { key }));
        let answer = self.session.query(get).await?;
        Ok((value(decode(&answer)?)?, answer.fast))
    }

    /// Writes a value.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<Revision, KvError> {
        match self.call(operation::Kind::Put(Put { key, value })).await? {
            outcome::Kind::Written(written) => Ok(written.revision.unwrap_or_default()),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes a key; `None` when there was none.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn delete(&self, key: Bytes) -> Result<Option<Revision>, KvError> {
        match self.call(operation::Kind::Delete(Delete { key })).await? {
            outcome::Kind::Deleted(deleted) => Ok(Some(deleted.revision.unwrap_or_default())),
            outcome::Kind::Absent(_) => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes `new`, or removes the key when it is `None`, if the key is as expected.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn compare_and_swap(
        &self,
        key: Bytes,
        expect: Expect,
        new: Option<Bytes>,
    ) -> Result<Swapped, KvError> {
        match self.call(compare_and_swap(key, expect, new)).await? {
            outcome::Kind::Written(written) => {
                Ok(Swapped::Written(written.revision.unwrap_or_default()))
            }
            outcome::Kind::Deleted(deleted) => {
                Ok(Swapped::Deleted(deleted.revision.unwrap_or_default()))
            }
            outcome::Kind::Mismatch(mismatch) => Ok(Swapped::Mismatch(mismatch.revision)),
            other => Err(unexpected(&other)),
        }
    }

    /// Keys with values, ascending, `start <= key < end`; an empty `end` is no end. [`Page::continuation`] is the
    /// start of the next page. `limit` 0 is as many as the service gives at once.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn scan(&self, start: Bytes, end: Bytes, limit: u32) -> Result<Page, KvError> {
        page(
            self.call(operation::Kind::Scan(Scan { start, end, limit }))
                .await?,
        )
    }

    /// Keys that begin with `prefix`, ascending, without their values; `continuation` is that of the page before.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn list(
        &self,
        prefix: Bytes,
        continuation: Bytes,
        limit: u32,
    ) -> Result<Page, KvError> {
        page(
            self.call(operation::Kind::List(List {
                prefix,
                continuation,
                limit,
            }))
            .await?,
        )
    }
}

/// The bytes of an operation, for a request or a fast read.
#[must_use]
pub fn encode(kind: operation::Kind) -> Bytes {
    Operation { kind: Some(kind) }.encode_to_vec().into()
}

/// The outcome that stands in an answer.
///
/// # Errors
/// When the service refused, or these are not the bytes of an outcome.
pub fn decode_result(result: &Bytes) -> Result<outcome::Kind, KvError> {
    let outcome =
        Outcome::decode(result.clone()).map_err(|error| KvError::NotKv(error.to_string()))?;
    match outcome.kind {
        Some(outcome::Kind::Failure(failure)) => Err(KvError::Refused(failure)),
        Some(kind) => Ok(kind),
        None => Err(KvError::NotKv("it is empty".to_owned())),
    }
}

fn decode(answer: &Answer) -> Result<outcome::Kind, KvError> {
    decode_result(&answer.result)
}

fn value(outcome: outcome::Kind) -> Result<Option<Value>, KvError> {
    match outcome {
        outcome::Kind::Value(value) => Ok(Some(value)),
        outcome::Kind::Absent(_) => Ok(None),
        other => Err(unexpected(&other)),
    }
}

fn page(outcome: outcome::Kind) -> Result<Page, KvError> {
    match outcome {
        outcome::Kind::Page(page) => Ok(page),
        other => Err(unexpected(&other)),
    }
}

fn compare_and_swap(key: Bytes, expect: Expect, new: Option<Bytes>) -> operation::Kind {
    operation::Kind::CompareAndSwap(CompareAndSwap {
        key,
        expected: Some(match expect {
            Expect::Absent => Expected::Absent(Nothing {}),
            Expect::Value(value) => Expected::Value(value),
            Expect::Revision(revision) => Expected::Revision(revision),
        }),
        replacement: Some(match new {
            Some(value) => Replacement::NewValue(value),
            None => Replacement::Delete(Nothing {}),
        }),
    })
}

fn unexpected(outcome: &outcome::Kind) -> KvError {
    let name = match outcome {
        outcome::Kind::Value(_) => "a value",
        outcome::Kind::Absent(_) => "\"absent\"",
        outcome::Kind::Written(_) => "\"written\"",
        outcome::Kind::Deleted(_) => "\"deleted\"",
        outcome::Kind::Mismatch(_) => "\"mismatch\"",
        outcome::Kind::Page(_) => "a page",
        outcome::Kind::Failure(_) => "a failure",
    };
    KvError::NotKv(format!("{name} does not answer this operation"))
}
