//! What a session must know before its first request.

use twinbft_types::{ClientId, Shape};

use super::keys::SharedKeys;

/// Who the session is, what cluster it talks to, and its bounds.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// `N` and `m`.
    pub shape: Shape,
    /// The session's id, never used before.
    pub client: ClientId,
    /// The client's keys; make them once with `KeyRing::into` and clone them for each session.
    pub keys: SharedKeys,
    /// `W`: requests that may be outstanding, as `session_window` of `cluster.toml` says; more are refused by the
    /// replicas.
    pub window: u64,
    /// Fast reads that may be open.
    pub queries_max: usize,
    /// Largest operation, as `request_bytes_max` of `cluster.toml` says.
    pub operation_bytes_max: usize,
    /// Microseconds until a request is sent again, to everybody. Doubles with each time.
    pub retransmit_after_us: u64,
    /// Bound of the doubling, in microseconds.
    pub retransmit_us_max: u64,
    /// Whether the session's first request, and the next one after [`super::Session::announce`], goes to the twins of
    /// all hosts, not marked as a retransmission. Those of the other hosts do nothing with it, but where a replica
    /// knows a client's stream only by what came in on it, they could not send their replies otherwise. Off: 4.1 to
    /// the letter.
    pub announce: bool,
    /// While few requests are under way, one with an operation below this size goes to the leader alone, which passes it
    /// on to its siblings through their postbox: cheaper for all than a copy for each over the network. 0: 4.1 to the
    /// letter.
    pub leader_alone_bytes_max: usize,
    /// Microseconds after which a fast read falls back to an ordered one.
    pub query_timeout_us: u64,
}

impl SessionConfig {
    /// The defaults of everything that is not said here.
    #[must_use]
    pub fn new(shape: Shape, client: ClientId, keys: impl Into<SharedKeys>) -> Self {
        Self {
            shape,
            client,
            keys: keys.into(),
            window: 64,
            queries_max: 64,
            operation_bytes_max: 1024 * 1024 + 16 * 1024,
            retransmit_after_us: 500_000,
            retransmit_us_max: 8_000_000,
            announce: false,
            leader_alone_bytes_max: 0,
            query_timeout_us: 250_000,
        }
    }
}
