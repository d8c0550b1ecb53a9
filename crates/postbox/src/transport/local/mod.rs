//! The transport for twins on the same kernel: sealed memfds over a Unix socket, eventfds to wake.
//!
//! It does not protect twins from the kernel that they share.

pub mod client;
pub mod fds;
pub mod region;
pub mod server;
pub mod wire;

use std::path::{Path, PathBuf};

/// Where the broker listens for `twin`: the socket names the twin.
#[must_use]
pub fn socket_path(dir: &Path, twin: u8) -> PathBuf {
    dir.join(format!("twin-{twin}.sock"))
}

/// Where the broker shows its state.
#[must_use]
pub fn status_socket_path(dir: &Path) -> PathBuf {
    dir.join("broker.sock")
}

/// Turns a cluster id into the number that both sides compare (FNV-1a). It guards against mistakes,
/// such as a twin that was given another cluster's directory, not against malice.
#[must_use]
pub fn cluster_tag(cluster_id: &str) -> u64 {
    cluster_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}
