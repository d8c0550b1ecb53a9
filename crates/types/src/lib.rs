//! The vocabulary of TwinBFT: identifiers, digests, requests, statements of hosts, certificates,
//! authenticators, postbox entries, and the messages on the wire.
//!
//! This crate does no IO, keeps no protocol state and decides nothing: it says what things are, how they are
//! encoded and how a MAC over them is made and checked.
#![forbid(unsafe_code)]

mod digest;
mod entry;
mod ids;
mod keyring;
mod keys;
pub mod mutants;
mod request;
mod shape;
mod statement;
pub mod wire;

/// Messages of the key-value service (`proto/kv.proto`).
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod kv {
    tonic::include_proto!("twinbft.kv.v1");
}

pub use digest::{DecodeError, Digest, canonical, from_canonical, history};
pub use entry::{Entry, HelloState, ResultMac};
pub use ids::{
    Attempt, ClientId, Epoch, HostId, Incarnation, Nonce, Position, ProcessId, ReplicaId, Seq,
    Slot, TwinId, View,
};
pub use keyring::KeyRing;
pub use keys::{Domain, KeyContext, KeyError, MAC_BYTES, Mac, MacKey, PublicKey, SecretKey};
pub use request::{Query, QueryAnswer, Request, RequestRef, SignedRequest, batch_digest};
pub use shape::{HOSTS_MAX, Shape, TWINS_MAX};
pub use statement::{Authenticator, Certificate, Signed, Statement, results_digest};
