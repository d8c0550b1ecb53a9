//! The client side of TwinBFT: what a program needs that uses a replicated service, and nothing of a replica.
//!
//! [`session`] is the protocol of one client session (protocol.md 4.1, 4.8, 4.9 and 7) without clock, socket or
//! thread: the same code runs behind the network driver and in the simulator. [`Client`] is that driver, over tonic
//! and mutual TLS, and [`kv::KvClient`] the key-value service on top of it. [`history`] records what clients did and
//! checks that it is linearizable.
//!
//! A result is handed out only when `Q` hosts have certified it, each with the MACs of `q` of its twins. This crate
//! never trusts a single replica or a single host, never reports an operation as done that it has not seen
//! certified, and never repeats an operation under a new number on its own.
#![forbid(unsafe_code)]

mod driver;
pub mod history;
pub mod kv;
pub mod session;

pub use driver::*;
