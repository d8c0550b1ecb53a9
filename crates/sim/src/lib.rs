//! A deterministic simulator of whole TwinBFT clusters.
//!
//! It runs the real core of replicas, the real session of clients and the real rules of the postbox under one
//! seeded scheduler with virtual time. It has no clock, no thread and no socket: the same seed gives the same
//! run, step for step. After each step the oracles look at everything (protocol.md 11).
#![forbid(unsafe_code)]

mod agenda;
mod byzantine;
mod cast;
mod client;
pub mod mutation;
mod oracles;
mod replica;
mod rogue;
mod scenario;
mod service;
mod shrink;
mod trace;
mod world;

pub use cast::{CLIENTS_MAX, Cast};
pub use oracles::{Observer, Truth, Violation, check_event};
pub use replica::BEGINNING_US;
pub use scenario::{Edit, Scenario};
pub use shrink::{Smallest, run_caught, shrink};
pub use trace::Tracer;
pub use world::{Detection, Report, World, certificate_in};

/// Runs one scenario to its end, untraced.
///
/// # Errors
/// The first broken invariant.
pub fn run(scenario: Scenario) -> Result<Report, Violation> {
    World::new(scenario, Tracer::Off).run()
}
