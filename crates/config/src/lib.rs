//! `cluster.toml`: what stands in it, what may stand in it, and where the other files of a cluster lie.
//!
//! [`ClusterConfig::parse`] reports every mistake of a file at once, each with its line, column, value and
//! remedy. [`ClusterConfig::to_toml`] writes a file with the explanations that an operator needs. [`Layout`]
//! names the keys, certificates, sockets and data beside it.
//!
//! This crate is part of the broker's trusted base, so it depends on a TOML parser and on nothing of the
//! protocol: keys are hexadecimal text here, and whether the secret half fits is for others to check. It never
//! opens a socket and reads no file but the one that it is given.
#![forbid(unsafe_code)]

mod agreed;
mod guest;
mod layout;
mod members;
mod membership;
mod mistake;
mod model;
mod numbers;
mod parse;
mod reader;
mod rules;
mod unique;
mod write;

#[cfg(test)]
mod mistake_tests;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;

pub use layout::Layout;
pub use membership::{Membership, MembershipError};
pub use mistake::{ConfigError, Mistake};
pub use model::{
    Admin, Client, Cluster, ClusterConfig, Durability, Evidence, Execution, Host, KvOptions,
    NullOptions, OnCulprit, Postbox, Protocol, Service, Storage, TRIM_BYTES, TRIM_MULTIPLE, Tls,
    Transport, Twin,
};
pub use parse::{HOSTS_MAX, SERVICES, TWINS_MAX, TWINS_MIN};
pub use rules::{granted_pages_needed, record_bytes_needed, state_bytes_needed};
