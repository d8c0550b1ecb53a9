//! What can be set about services. The bounds are checked when a service opens.

use std::path::PathBuf;

/// How much of a checkpoint outlives what (protocol.md 3, durability rule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Checkpoints reach the kernel and are never forced to the disk: they outlive the process, not the machine.
    Memory,
    /// A checkpoint is on the disk before its digest is known to anybody. The policies "sync" and "group" of the
    /// write-ahead log are the same thing here, because a checkpoint is one transaction anyway.
    #[default]
    Sync,
}

/// Options of a service.
#[derive(Clone, Debug, Default)]
pub struct ServiceOptions {
    /// One of [`crate::SERVICES`].
    pub name: String,
    /// Where the service may keep its state. Belongs to it alone.
    pub directory: Option<PathBuf>,
    /// How durable a checkpoint is.
    pub durability: Durability,
    /// For `null`.
    pub null: NullOptions,
    /// For `kv`.
    pub kv: KvOptions,
}

/// Options of the service `null`.
#[derive(Clone, Copy, Debug)]
pub struct NullOptions {
    /// The length of a reply when the operation is too short to name one.
    pub reply_bytes_default: u32,
    /// The greatest length of a reply; a larger wish is cut to it.
    pub reply_bytes_max: u32,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self {
            reply_bytes_default: 0,
            reply_bytes_max: 1 << 20,
        }
    }
}

/// Options of the service `kv`. All but the cache belong to the state machine: they must be equal on all replicas.
#[derive(Clone, Copy, Debug)]
pub struct KvOptions {
    /// Memory for pages of the store.
    pub cache_bytes: usize,
    /// The longest key.
    pub key_bytes_max: u32,
    /// The longest value.
    pub value_bytes_max: u32,
    /// The most items in one page of a scan or a list.
    pub page_items_max: u32,
    /// A page ends before the item that would bring its keys and values above this, unless it is the first.
    pub page_bytes_max: u32,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 4 << 20,
            key_bytes_max: 4 << 10,
            value_bytes_max: 1 << 20,
            page_items_max: 1000,
            page_bytes_max: 1 << 20,
        }
    }
}
