//! What a client has sent and received.

use twinbft_types::{ReplicaId, View};

use super::link::LinkState;
use crate::session::FaultCounters;

/// Counters since the client was made. All of them only grow.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Requests, one for each twin that it was sent to.
    pub requests_sent: u64,
    /// Those of them that were sent before.
    pub retransmissions_sent: u64,
    /// Fast reads, one for each twin.
    pub queries_sent: u64,
    /// Replies of hosts.
    pub replies_received: u64,
    /// Answers of twins to fast reads.
    pub answers_received: u64,
    /// Refusals.
    pub refusals_received: u64,
    /// Replies to requests that were answered already.
    pub late_replies: u64,
    /// Messages for sessions that are closed.
    pub for_nobody: u64,
    /// Frames sent to all replicas.
    pub frames_sent: u64,
    /// Frames received from all replicas.
    pub frames_received: u64,
    /// Messages that were dropped because their replica was away or its outbox full.
    pub dropped: u64,
    /// The view that is believed in.
    pub view: View,
    /// What replicas did wrong.
    pub faults: FaultCounters,
    /// How the connections stand, by host, then twin.
    pub links: Vec<(ReplicaId, LinkState)>,
}
