//! What the core's thread has for the network thread: everything of one round in one piece, with one wake.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use tokio::sync::Notify;
use twinbft_core::Refusal;
use twinbft_types::wire::{PeerMessage, Reply};
use twinbft_types::{ClientId, Mac, Nonce, QueryAnswer, ReplicaId, Seq, View};

use crate::metrics::Counter;
use crate::queues::QueueStatus;
use crate::storage::Lsn;

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
    /// Messages in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len() + self.clients.len()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rounds that wait for the promises that they reveal to be durable (protocol.md 3, durability rule): an ACK must not
/// leave before the ACCEPT that it rests on. With the policies "memory" and "group" none ever waits here.
#[derive(Debug, Default)]
pub struct Held {
    rounds: VecDeque<(Lsn, Outbound)>,
    dropped: u64,
}

impl Held {
    /// Adds a round that reveals what was persisted up to `after`. When too many wait the oldest is dropped and
    /// counted: the protocol and the clients repeat what matters.
    pub fn push(&mut self, after: Lsn, round: Outbound) {
        if self.rounds.len() == ROUNDS_MAX {
            let oldest = self.rounds.pop_front().map(|(_, round)| round.len());
            self.dropped += oldest.unwrap_or(0) as u64;
        }
        self.rounds.push_back((after, round));
    }

    /// The next round that may go; `revealable` is how far records are durable enough.
    pub fn pop(&mut self, revealable: Lsn) -> Option<Outbound> {
        let (after, _) = self.rounds.front()?;
        if *after > revealable {
            return None;
        }
        self.rounds.pop_front().map(|(_, round)| round)
    }

    /// Numbers for operators.
    #[must_use]
    pub fn status(&self) -> QueueStatus {
        QueueStatus {
            len: self.rounds.len(),
            bound: ROUNDS_MAX,
            dropped: self.dropped,
            waited: 0,
        }
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
        let messages = round.len();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn round(view: u64) -> Outbound {
        Outbound {
            view: View(view),
            ..Outbound::default()
        }
    }

    fn popped(held: &mut Held, revealable: Lsn) -> Vec<u64> {
        std::iter::from_fn(|| held.pop(revealable).map(|round| round.view.0)).collect()
    }

    #[test]
    fn a_round_waits_for_what_it_reveals_and_so_does_everything_behind_it() {
        let mut held = Held::default();
        held.push(0, round(1));
        held.push(3, round(2));
        held.push(3, round(3));
        assert_eq!(popped(&mut held, 2), [1]);
        assert_eq!(popped(&mut held, 3), [2, 3]);
    }

    #[test]
    fn too_many_rounds_push_the_oldest_out() {
        let mut held = Held::default();
        (0..=ROUNDS_MAX as u64).for_each(|n| held.push(1, round(n)));
        assert_eq!(held.status().len, ROUNDS_MAX);
        assert_eq!(popped(&mut held, 1)[0], 1);
    }
}
