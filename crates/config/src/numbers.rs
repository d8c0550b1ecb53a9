//! Every number of the file in one table: its name, its bounds and the sentence that explains it. The parser, the
//! writer and the agreed text all follow it.

use crate::model::{KvOptions, NullOptions, Postbox, Protocol, Storage};

/// A number of the table that `T` stands for.
pub(crate) struct Number<T: 'static> {
    pub(crate) name: &'static str,
    pub(crate) min: u64,
    pub(crate) max: u64,
    /// For the operator; stands above the number in the file.
    pub(crate) explain: &'static str,
    /// Whether all replicas must share it.
    pub(crate) agreed: bool,
    pub(crate) read: fn(&T) -> u64,
    pub(crate) write: fn(&mut T, u64),
}

/// The integers of the model. `max` of the table keeps every value within its type.
trait Field: Copy {
    fn to_number(self) -> u64;
    fn from_number(number: u64) -> Self;
}

macro_rules! field {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn to_number(self) -> u64 {
                self.try_into().expect("no field is wider than 64 bits")
            }
            fn from_number(number: u64) -> Self {
                number.try_into().expect("the table's bounds fit the field")
            }
        }
    )*};
}

field!(u32, u64, usize);

macro_rules! numbers {
    ($agreed:literal $type:ty: $($name:ident, $min:expr, $max:expr, $explain:literal;)*) => {
        &[$(Number::<$type> {
            name: stringify!($name),
            min: $min,
            max: $max,
            explain: $explain,
            agreed: $agreed,
            read: |table| Field::to_number(table.$name),
            write: |table, number| table.$name = Field::from_number(number),
        }),*]
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(crate) const PROTOCOL: &[Number<Protocol>] = numbers! { true Protocol:
    checkpoint_slots, 8, 65_536, "Slots between checkpoints. More slots: fewer snapshots, more log to replay.";
    batch_requests_max, 1, 4096, "Most requests of one batch.";
    batch_bytes_max, KIB, 16 * MIB, "Most bytes of the operations of one batch; a single larger request goes alone.";
    pipeline_depth, 1, 256, "Most batches that are proposed and not committed yet.";
    session_window, 1, 4096, "Most outstanding requests of one client session.";
    sessions_max, 1, 65_536, "Sessions of one client key that replicas remember.";
    session_result_bytes_max, KIB, 256 * MIB, "Bytes of results kept for one session, to answer retransmissions.";
    request_bytes_max, KIB, 16 * MIB, "Largest operation of a request.";
    pending_requests_max, 1, MIB, "Requests that wait at the leader; one more is refused as \"busy\".";
    trim_entries, 16, MIB, "The postbox log is trimmed after this many entries, or a MiB of them.";
    clock_bound_ms, 1, 3_600_000, "How far the leader's clock may lie from a follower's, in milliseconds.";
    need_after_ms, 1, 60_000, "How long a follower waits for a client's own copy of a request before it asks the leader.";
    fetch_after_ms, 1, 60_000, "How long a gap in the log may stand before the missing batches are fetched.";
    suspect_after_ms, 10, 600_000, "After how long without news a primary is suspected. Well above the slowest network round trip.";
    suspect_doublings_max, 0, 12, "How often that time doubles at most while one view after the other fails. 0: it never grows.";
    serve_all_bytes_max, 0, 16 * MIB, "Batches up to this size go from the leader to all twins of a backup at once.";
};

pub(crate) const STORAGE: &[Number<Storage>] = numbers! { false Storage:
    group_commit_ms, 1, 1000, "With \"group\": how long promises gather before one flush, in milliseconds.";
    transfer_bytes_per_s, 64 * KIB, 64 * GIB, "Bytes of state that a replica sends each second, at most, to those that fetch it; and takes when it fetches.";
    retain_bytes, 0, 64 * GIB, "Bytes of past batches that a replica keeps in memory for those who catch up.";
};

pub(crate) const POSTBOX: &[Number<Postbox>] = numbers! { false Postbox:
    log_bytes, 64 * KIB, 64 * GIB, "Size of a host's log, in memory; a multiple of 4096.";
    entry_bytes_max, KIB, 256 * MIB, "Largest entry.";
    state_bytes_max, 4 * KIB, 256 * MIB, "Largest summary that is kept when the log is trimmed.";
    spin_us, 0, 1_000_000, "How long a reader looks at the log before it sleeps, in microseconds. Costs a core; 0 on shared cores.";
    record_bytes_max, MIB, 1024 * GIB, "Most bytes of one host's record; the oldest go first.";
};

pub(crate) const KV: &[Number<KvOptions>] = numbers! { true KvOptions:
    key_bytes_max, 1, 64 * KIB, "The longest key.";
    value_bytes_max, 1, 16 * MIB, "The longest value.";
    page_items_max, 1, 100_000, "The most items in one page of a scan or a list.";
    page_bytes_max, KIB, 16 * MIB, "The most bytes of keys and values in one page.";
};

/// The one option of `kv` that is no part of the state machine.
pub(crate) const KV_LOCAL: &[Number<KvOptions>] = numbers! { false KvOptions:
    cache_bytes, 64 * KIB, 64 * GIB, "Memory for pages of the store, of each replica.";
};

pub(crate) const NULL: &[Number<NullOptions>] = numbers! { true NullOptions:
    reply_bytes_default, 0, 16 * MIB, "The length of a reply when the request does not name one.";
    reply_bytes_max, 0, 16 * MIB, "The greatest length of a reply.";
};
