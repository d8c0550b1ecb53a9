//! Model checking of the smallest clusters: the real core of every twin under all schedules of a bounded case
//! (Stateright), where the simulator draws one schedule a seed.
//!
//! A [`Case`] says which cluster, who is Byzantine and how much of everything there is; [`check`] visits every state
//! that it can reach and counts them. What is bounded, and what that leaves out, is in docs/testing.md.
#![forbid(unsafe_code)]

mod cases;
mod check;
mod lies;
mod lies_views;
mod model;
mod mutation;
mod state;
mod step;

pub use cases::{About, Begins, CASES, Case, Schedules};
pub use check::{Outcome, check};
pub use model::{Action, Model};
pub use state::State;
