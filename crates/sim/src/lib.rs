//! A deterministic simulator of whole TwinBFT clusters.
//!
//! It runs the real core of replicas, the real session of clients and the real rules of the postbox under one
//! seeded scheduler with virtual time. It has no clock, no thread and no socket: the same seed gives the same
//! run, step for step. After each step the oracles look at everything (protocol.md 11).
#![forbid(unsafe_code)]

mod byzantine;
mod cast;
mod client;
mod oracles;
mod replica;
mod scenario;
mod service;
mod world;

pub use oracles::Violation;
pub use scenario::Scenario;
pub use world::{Report, World};
