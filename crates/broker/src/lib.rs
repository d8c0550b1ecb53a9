//! The daemon in dom0 that owns a host's postbox: takes what the twins append, stamps it, puts it
//! into one order in one log, and wakes the twins (protocol.md, section 2).
//!
//! It is the trusted base, so it stays small: one thread (and one that records the log to disk where
//! that is asked for, and on Xen one that talks to xenstored), an epoll loop, no async runtime, no
//! network socket, no TLS, no interpretation of what the entries mean, and never a wait for a twin.

#![forbid(unsafe_code)]

mod engine;
mod epoch;
mod greeting;
mod guests;
mod journal;
mod json;
mod options;
mod port;
mod record;
mod startup;
mod status;
mod supervisor;
mod twin;

pub use engine::Broker;
pub use guests::Wanted;
pub use journal::{Journal, LogFormat};
pub use options::{BrokerOptions, Command, USAGE, parse};
pub use startup::start;
