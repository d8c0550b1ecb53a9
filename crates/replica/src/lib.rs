//! The replica daemon: network, disk and service around the sans-IO core of `twinbft-core`.
//!
//! The core runs on its own thread (`driver`); a second thread has all streams (`net`); others force the write-ahead
//! log to the disk (`storage`) and do the slow work of the service (`service`). They are joined by queues that have a
//! bound and a stated policy for when they are full (`queues`).
//!
//! This crate never decides anything that the protocol decides: it brings inputs to the core and carries its effects
//! out, in order. A failed effect stops the process.
#![forbid(unsafe_code)]

#[cfg(feature = "byzantine-doubles")]
pub mod byzantine;
pub mod driver;
pub mod genesis;
pub mod membership;
pub mod metrics;
pub mod net;
pub mod node;
pub mod order;
pub mod progress;
pub mod queues;
pub mod service;
pub mod setup;
pub mod startup;
pub mod status;
pub mod storage;
