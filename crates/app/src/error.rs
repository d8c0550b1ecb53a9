//! What stops a node. Whatever a client or a peer can cause is not here.

use std::error::Error;
use std::path::PathBuf;

/// The service cannot go on, so the node stops: it must not answer from a state that it does not have.
///
/// Each variant says what was being done, to what, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The store failed: disk full, no permission, an input or output error.
    #[error("{doing} {}: {cause}; free space or repair the disk, then start the replica again", path.display())]
    Storage {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the store or the kernel said.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The store holds what this program cannot have written.
    #[error("{} is damaged: {what}; move it away and start the replica again: it fetches a snapshot from others", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another process has the store open.
    #[error("{} is in use by another process; stop that replica first, or name another directory", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The configuration makes no sense.
    #[error("{what}; {remedy}")]
    Options {
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The snapshot that was asked for is not one of this service.
    #[error(
        "service {service} cannot restore the state {digest}: {why}; check that all hosts run the same service"
    )]
    Snapshot {
        /// The service.
        service: &'static str,
        /// The digest of the state that was asked for.
        digest: twinbft_types::Digest,
        /// Why not.
        why: String,
    },
}
