//! Atomic operations: the machine's, or loom's, which tries every order that the machine could (docs/testing.md).

#[cfg(loom)]
pub use loom::sync::atomic::{Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{Ordering, fence};
