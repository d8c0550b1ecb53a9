//! The TwinBFT protocol as sans-IO state machines.
//!
//! [`Replica`] is one twin of one host. It takes in [`Input`]s, one at a time, and answers with [`Effects`]
//! that its driver carries out in order. It has no clock, no socket, no thread and no randomness of its own,
//! so the daemon, the simulator and the model checker run the same code. [`hostlog::HostLog`] inside it is
//! what a host decides, as a function of its postbox log alone.
//!
//! A protocol is a module of this crate (`twinbft`); others get the same doors.
#![forbid(unsafe_code)]

pub mod audit;
mod config;
mod evidence;
mod fault;
pub mod hostlog;
mod io;
mod record;
mod session;
mod twinbft;

pub use twinbft_types::mutants;

pub use config::{CoreConfig, Execution, Tuning};
pub use evidence::{Event, EventKind, Output};
pub use fault::PeerFault;
pub use io::{Checkpoint, Effect, Effects, Execute, Input, LAZY_POST_US, Refusal, Tick};
pub use record::{PROOFS_OF_A_HOST_MAX, Record, last_stable};
pub use session::{KeyImage, SessionImage};
pub use twinbft::{Recovered, Replica, Role, Status, TransferProgress};
