//! What clients did and saw, and whether it is linearizable.
//!
//! A [`History`] has no clock: the order in which beginnings and ends are recorded is the real-time order, provided
//! that a beginning is recorded before the operation is sent and an end after its answer is here. Keys are independent,
//! so each is checked on its own (P-compositionality). The checker is that of Wing and Gong with Lowe's memory of what
//! has been tried; it is written here because the crates that were found (`todc-utils`, `lincheck`, `stateright`) take
//! complete histories only or bring a model checker along, and an operation with unknown outcome is what this is about.

mod check;
mod kv;
#[cfg(test)]
mod tests;

pub use check::{Verdict, Violation};
pub use kv::{action_of, observed_of};

use bytes::Bytes;

/// What a client asks of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The value.
    Read,
    /// A new value.
    Write(Bytes),
    /// No value.
    Delete,
    /// A new value, or none, if the value is as expected; `None` stands for an absent key.
    CompareAndSwap {
        /// What must be there.
        expect: Option<Bytes>,
        /// What is there afterwards.
        new: Option<Bytes>,
    },
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Of a read: the value, or that there is none.
    Value(Option<Bytes>),
    /// Of a write.
    Written,
    /// Of a delete: whether there was a value.
    Deleted(bool),
    /// Of a compare-and-swap: whether the expectation held.
    Swapped(bool),
}

/// Names an operation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(usize);

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The client was told this.
    Observed(Observed),
    /// Nobody knows whether it takes effect, and when.
    Unknown,
    /// It is certain that it had and will have no effect.
    WithoutEffect,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Whose: for messages only.
    pub process: u64,
    /// On which key.
    pub key: Bytes,
    /// What was asked.
    pub action: Action,
    /// The number of the event of its beginning.
    pub began: u64,
    /// The number of the event of its end; `u64::MAX` while it has none.
    pub ended: u64,
    /// How it ended.
    pub end: End,
}

/// Operations of many clients, in the order of their beginnings.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Recorded>,
    events: u64,
}

impl History {
    /// The empty history, over keys that are all absent.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// An operation begins: call this before it is sent. Until it ends, its outcome is unknown.
    pub fn begin(&mut self, process: u64, key: Bytes, action: Action) -> OperationId {
        let began = self.event();
        self.operations.push(Recorded {
            process,
            key,
            action,
            began,
            ended: u64::MAX,
            end: End::Unknown,
        });
        OperationId(self.operations.len() - 1)
    }

    /// An operation ends: call this once its answer is here.
    ///
    /// # Panics
    /// When it has ended before.
    pub fn end(&mut self, id: OperationId, end: End) {
        let event = self.event();
        let operation = &mut self.operations[id.0];
        assert!(
            operation.ended == u64::MAX && operation.end == End::Unknown,
            "an operation ends once"
        );
        // An unknown outcome has no end: it may take effect at any later time.
        if end != End::Unknown {
            operation.ended = event;
        }
        operation.end = end;
    }

    /// All operations, in the order of their beginnings.
    #[must_use]
    pub fn operations(&self) -> &[Recorded] {
        &self.operations
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Whether some order of the operations explains everything that was observed: one that keeps each operation
    /// between its beginning and its end. `steps_max` bounds the search for each key; ten million steps take some
    /// seconds.
    #[must_use]
    pub fn check(&self, steps_max: u64) -> Verdict {
        check::check(&self.operations, steps_max)
    }
}
