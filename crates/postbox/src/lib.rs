//! The append-only log that joins the twins of a host (protocol.md, section 2).
//!
//! One log a host: a single writer (the broker) stamps who appended what, in one total order, and
//! every twin reads the same entries from memory that it cannot write. This crate has the rules of
//! the log ([`ledger`], [`memory_log`]), the shared memory formats ([`layout`], [`record`],
//! [`vchan`], [`frame`]), the twin's ends ([`Reader`], [`Appender`]) and the transports.
//!
//! It never interprets an entry or a STATE, never keeps a secret, and is no network protocol. It is
//! the only crate of the workspace with `unsafe` code, all of it in `raw`,
//! `transport::local::fds` and `transport::xen::ioctl`.
//!
//! Built with `--cfg loom` its memory is loom's and there are no transports (`scripts/loom`).
#![cfg_attr(loom, allow(dead_code, reason = "who uses it is left out"))]

pub mod appender;
mod atomic;
#[cfg(not(loom))]
pub mod channel;
pub mod frame;
pub mod layout;
pub mod ledger;
mod link;
pub mod log_view;
pub mod log_writer;
pub mod memory_log;
#[cfg_attr(loom, path = "raw_loom.rs")]
pub mod raw;
pub mod reader;
pub mod record;
mod regions;
#[cfg(not(loom))]
pub mod transport;
pub mod vchan;
pub mod waker;

pub use appender::{AppendError, AppendEvent, Appender};
#[cfg(not(loom))]
pub use channel::{Channel, ChannelError, Door, Reconnected};
pub use ledger::{
    AgreedState, Ledger, Limits, LimitsError, Outcome, Refusal, TrimOutcome, TrimRefusal,
};
pub use log_view::{Entry, LogInfo, ReadError};
pub use memory_log::{MemoryEntry, MemoryLog, MemoryRead};
pub use reader::{Reader, Wake};
#[cfg(not(loom))]
pub use transport::local::client::{ConnectError, ConnectOptions, connect};
#[cfg(not(loom))]
pub use transport::local::{cluster_tag, socket_path, status_socket_path};
pub use waker::Waker;
