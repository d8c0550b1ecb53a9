//! The door between a replica and the service it replicates, and the services that ship: `null` and `kv`.
//!
//! A replica hands a service the batches of committed slots, in order, and certifies what comes back; so a service
//! is a deterministic function of what it is given. It has no clock but the batch timestamp, no randomness but the
//! batch seed, and it knows nothing of hosts, views or certificates. Whatever a client sends gets an answer: an
//! operation that makes no sense is a *result*, equal on all replicas, and never an error of the node.
//!
//! This crate never opens a socket, never starts a thread and never reads the clock.

#![forbid(unsafe_code)]

mod application;
mod error;
pub mod kv;
mod null;
mod options;
mod snapshot;

pub use application::{
    Application, BatchContext, CHECKPOINTS_KEPT, Checkpoint, CheckpointWork, Operation, QueryAnswer,
};
pub use error::AppError;
pub use null::Null;
pub use options::{Durability, KvOptions, NullOptions, ServiceOptions};
pub use snapshot::{ChunkId, ChunkRefused, Snapshot};

/// The names that [`open`] knows.
pub const SERVICES: &[&str] = &["null", "kv"];

/// Opens the service that the options name, with the state that its directory holds.
///
/// A service that runs in a process of its own will be one more name here: an [`Application`] that speaks to it.
///
/// # Errors
/// When no service has this name, an option is out of its bounds, or the state cannot be opened.
pub fn open(options: &ServiceOptions) -> Result<Box<dyn Application>, AppError> {
    match options.name.as_str() {
        "null" => Ok(Box::new(Null::new(options.null)?)),
        "kv" => {
            let directory = options
                .directory
                .as_deref()
                .ok_or_else(|| AppError::Options {
                    what: "service kv keeps its state in files and was given no directory".into(),
                    remedy: "name a directory for the state of this replica",
                })?;
            Ok(Box::new(kv::Kv::open(
                directory,
                options.durability,
                options.kv,
            )?))
        }
        other => Err(AppError::Options {
            what: format!("there is no service named {other:?}"),
            remedy: "choose one of: null, kv",
        }),
    }
}
