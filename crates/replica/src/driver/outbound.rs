//! What the core's thread has for the network thread: everything of one round in one piece, with one wake.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use tokio::sync::Notify;
use twinbft_core::Refusal;
use twinbft_types::wire::{PeerMessage, Reply};
use twinbft_types::{ClientId, Mac, Nonce, QueryAnswer, ReplicaId, Seq, View};

use crate::metrics::Counter;
use crate::queues::QueueStatus;

/// Most rounds that wait for the network thread. A round that finds no room is dropped and counted: the protocol and
/// the clients repeat what matters.
pub const ROUNDS_MAX: usize = 1024;

/// Something for a client.
#[derive(Debug)]
pub enum ToClient {
    /// A certified reply.
    Reply(Reply),
    /// The answer to a fast read.
    Answer {
        /// What the MAC covers.
        answer: QueryAnswer,
        /// The result.
        result: Bytes,
        /// The MAC.
        mac: Mac,
    },
    /// Why a request goes nowhere.
    Refuse {
        /// Whose.
        client: ClientId,
        /// Which request.
        seq: Seq,
        /// Why.
        reason: Refusal,
    },
    /// Why a fast read goes nowhere.
    RefuseQuery {
        /// Whose.
        client: ClientId,
        /// Which read.
        nonce: Nonce,
        /// Why.
        reason: Refusal,
    },
}

impl ToClient {
    /// To whom.
    #[must_use]
    pub const fn client(&self) -> ClientId {
        match self {
            Self::Reply(reply) => reply.client,
            Self::Answer { answer, .. } => answer.client,
            Self::Refuse { client, .. } | Self::RefuseQuery { client, .. } => *client,
        }
    }
}

/// All messages of one round.
#[derive(Debug, Default)]
pub struct Outbound {
    /// For replicas of other hosts.
    pub peers: Vec<(ReplicaId, Arc<PeerMessage>)>,
    /// For clients.
    pub clients: Vec<ToClient>,
    /// The view after the round.
    pub view: View,
}

impl Outbound {
    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.clients.is_empty()
    }
}

/// The way out of the core's thread.
pub struct Egress {
    rounds: ArrayQueue<Outbound>,
    news: Notify,
    dropped: Counter,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            rounds: ArrayQueue::new(ROUNDS_MAX),
            news: Notify::new(),
            dropped: Counter::default(),
        }
    }
}

impl Egress {
    /// Hands a round over. Costs a system call only when the network's router waits.
    pub fn push(&self, round: Outbound) {
        let messages = round.peers.len() + round.clients.len();
        if self.rounds.push(round).is_err() {
            self.dropped.add(messages as u64);
        }
        self.news.notify_one();
    }

    /// The next round, if there is one.
    pub fn pop(&self) -> Option<Outbound> {
        self.rounds.pop()
    }

    /// Waits for the next round.
    pub async fn wait(&self) {
        self.news.notified().await;
    }

    /// Numbers for operators.
    #[must_use]
    pub fn status(&self) -> QueueStatus {
        QueueStatus {
            len: self.rounds.len(),
            bound: ROUNDS_MAX,
            dropped: self.dropped.value(),
            waited: 0,
        }
    }
}
