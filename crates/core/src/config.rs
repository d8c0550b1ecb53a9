//! What a replica's core must know before its first step.

use twinbft_types::{Digest, Epoch, HostId, KeyRing, ReplicaId, Shape, TwinId};

use crate::hostlog::Bounds;

/// When a slot is executed (protocol.md 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// Only committed slots; nothing executed is ever undone.
    Committed,
    /// As soon as the host has accepted a slot; a view change may drop a suffix.
    Tentative,
}

/// Everything that all replicas of a cluster agree on, and who this one is.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// `N` and `m`.
    pub shape: Shape,
    /// This replica.
    pub me: ReplicaId,
    /// The keys it shares with all others.
    pub keys: KeyRing,
    /// The epoch of the host's postbox log (protocol.md 2).
    pub epoch: Epoch,
    /// The digest of `cluster.toml`'s agreed part; goes into every checkpoint.
    pub config_digest: Digest,
    /// Whether this twin votes to ignore a sibling that `Q` hosts show to be wrong (protocol.md 9, policy `quarantine`).
    pub quarantines: bool,
    /// The tunable numbers.
    pub tuning: Tuning,
}

impl CoreConfig {
    /// This replica's host.
    #[must_use]
    pub const fn host(&self) -> HostId {
        self.me.host
    }

    /// This replica's number on its host.
    #[must_use]
    pub const fn twin(&self) -> TwinId {
        self.me.twin
    }
}

/// Numbers of `cluster.toml` that every replica of a cluster must share.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Committed or tentative.
    pub execution: Execution,
    /// `c`: slots between checkpoints; the high mark is `L + 2c`.
    pub checkpoint_slots: u64,
    /// Most requests of one batch.
    pub batch_requests_max: usize,
    /// Most bytes of the operations of one batch. A single larger request goes alone.
    pub batch_bytes_max: usize,
    /// Most slots that the leader has proposed and that are not committed yet.
    pub pipeline_depth: u64,
    /// `W`: requests of one session that may be outstanding.
    pub session_window: u64,
    /// Sessions of one client key that the session table remembers.
    pub sessions_max: usize,
    /// Bytes of results that the session table keeps for one session.
    pub session_result_bytes_max: usize,
    /// Largest operation of a request.
    pub request_bytes_max: usize,
    /// Requests that wait at the leader for a slot; one more is refused with "busy".
    pub pending_requests_max: usize,
    /// `k`: the postbox is trimmed at positions that are multiples of this.
    pub trim_multiple: u64,
    /// A trim is proposed after so many entries, or earlier, after `trim_bytes`.
    pub trim_entries: u64,
    /// A trim is proposed after so many bytes of entries, so that no quota fills up before one is due.
    pub trim_bytes: u64,
    /// How far a batch's timestamp may lie from a follower's clock.
    pub clock_bound_us: u64,
    /// How long a follower waits for a client's own copy of a body before it posts NEED.
    pub need_after_us: u64,
    /// How long a gap may stand before the missing slots are fetched.
    pub fetch_after_us: u64,
    /// Without an ORDER or HEARTBEAT for this long, a twin suspects the primary.
    pub suspect_after_us: u64,
    /// How often [`Self::suspect_after_us`] doubles at most, for views that fail one after the other (protocol.md 6);
    /// at most 12.
    pub suspect_doublings_max: u32,
    /// Batches up to this size go from the leader to all twins of a backup; above it, twin `t` serves the
    /// remote twins `t` (protocol.md 4.4).
    pub serve_all_bytes_max: usize,
    /// Bytes of state that this replica sends each second, at most, to those that fetch it, and takes from all others together
    /// when it fetches (protocol.md 5).
    pub transfer_bytes_per_s: u64,
    /// Bytes of batches below the marks that are kept for those who catch up (protocol.md 5).
    pub retain_bytes: usize,
}

impl Tuning {
    /// The numbers among them that bound a host's automaton.
    #[must_use]
    pub const fn host_bounds(&self) -> Bounds {
        Bounds {
            checkpoint_slots: self.checkpoint_slots,
            batch_requests_max: self.batch_requests_max as u64,
            pipeline_depth: self.pipeline_depth,
            trim_multiple: self.trim_multiple,
            trim_entries: self.trim_entries,
            trim_bytes: self.trim_bytes,
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            execution: Execution::Committed,
            checkpoint_slots: 128,
            batch_requests_max: 256,
            batch_bytes_max: 256 * 1024,
            pipeline_depth: 8,
            session_window: 64,
            sessions_max: 1024,
            session_result_bytes_max: 1024 * 1024 + 16 * 1024,
            request_bytes_max: 1024 * 1024 + 16 * 1024,
            pending_requests_max: 16 * 1024,
            trim_multiple: 4,
            trim_entries: 1024,
            trim_bytes: 1024 * 1024,
            clock_bound_us: 1_000_000,
            need_after_us: 5_000,
            fetch_after_us: 20_000,
            suspect_after_us: 500_000,
            suspect_doublings_max: 6,
            serve_all_bytes_max: 16 * 1024,
            transfer_bytes_per_s: 32 << 20,
            retain_bytes: 64 << 20,
        }
    }
}
