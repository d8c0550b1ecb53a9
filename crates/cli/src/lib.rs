//! What the command `twinbft` is made of and what its parts share: where a cluster's files are, and the
//! supervisor that runs a whole cluster on one machine.
//!
//! Nothing of the protocol is here, and nothing that a replica or a client trusts: whoever runs a cluster with
//! systemd, one unit for each process, needs none of it.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod supervise;
