//! What other threads have for the core's thread. Nothing in it costs a system call unless that thread sleeps.

use crossbeam_queue::ArrayQueue;
use tokio::sync::{Notify, oneshot};
use twinbft_core::Input;
use twinbft_postbox::Waker;
use twinbft_types::{Mac, Query, ReplicaId, Request, SignedRequest, TwinId, wire::PeerMessage};

use crate::queues::Lane;
use crate::status::CoreReport;

/// Most messages of peers that wait for the core; a full queue holds up the peers' streams.
pub const PEER_INPUTS_MAX: usize = 4096;
/// Most bytes of them.
pub const PEER_INPUT_BYTES_MAX: usize = 16 << 20;
/// Most messages of clients that wait for the core; a full queue holds up the clients' streams.
pub const CLIENT_INPUTS_MAX: usize = 4096;
/// Most bytes of them.
pub const CLIENT_INPUT_BYTES_MAX: usize = 16 << 20;
/// Most questions of operators that wait; one more is told to come back.
pub const CONTROLS_MAX: usize = 64;

/// What a client sent.
#[derive(Debug)]
pub enum ClientInput {
    /// A request.
    Request {
        /// The request.
        request: SignedRequest,
        /// Whether the client says that it sent it before.
        retransmission: bool,
        /// Whether it says that it sent it to the leader alone.
        leader_alone: bool,
    },
    /// A fast read.
    Query {
        /// The read.
        query: Query,
        /// The client's MAC for this twin.
        mac: Mac,
    },
}

/// What the rest of the process wants from the core's thread.
#[derive(Debug)]
pub enum Control {
    /// A snapshot for operators.
    Report(oneshot::Sender<CoreReport>),
    /// Listen to a sibling again; answered with a refusal in words when it is none that is ignored.
    Readmit {
        /// The sibling.
        twin: TwinId,
        /// Told when the entry is under way.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Finish what is begun and end.
    Stop,
    /// Behave like this from now on.
    #[cfg(feature = "byzantine-doubles")]
    Double(crate::byzantine::Double),
}

/// The way into the core's thread.
pub struct Inbox {
    /// From other hosts' replicas.
    pub peers: Lane<(ReplicaId, PeerMessage)>,
    /// From clients.
    pub clients: Lane<ClientInput>,
    /// Answers of the service. Invariant: bounded by what the core has asked; see `service`.
    pub answers: ArrayQueue<crate::service::Answer>,
    controls: ArrayQueue<Control>,
    waker: Waker,
    /// Tells a core that shares the network's thread instead.
    told: Option<Notify>,
}

impl Inbox {
    /// `waker` wakes the core's thread.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        Self {
            peers: Lane::new(PEER_INPUTS_MAX, PEER_INPUT_BYTES_MAX),
            clients: Lane::new(CLIENT_INPUTS_MAX, CLIENT_INPUT_BYTES_MAX),
            answers: ArrayQueue::new(crate::service::ANSWERS_MAX),
            controls: ArrayQueue::new(CONTROLS_MAX),
            waker,
            told: None,
        }
    }

    /// For a core that shares the network's thread, as a task of its runtime.
    #[must_use]
    pub fn for_task(waker: Waker) -> Self {
        Self {
            told: Some(Notify::new()),
            ..Self::new(waker)
        }
    }

    /// Whether the core shares the network's thread.
    #[must_use]
    pub const fn is_for_task(&self) -> bool {
        self.told.is_some()
    }

    /// Tells the core that there is something for it.
    pub fn wake(&self) {
        match &self.told {
            Some(told) => told.notify_one(),
            None => self.waker.wake(),
        }
    }

    /// Waits for the next [`Self::wake`]; for ever, when the core has a thread of its own.
    pub(super) async fn told(&self) {
        match &self.told {
            Some(told) => told.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Wakes the core's thread; for whoever waits beside it.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Asks the core's thread for something.
    ///
    /// # Errors
    /// The question, when too many wait.
    pub fn control(&self, control: Control) -> Result<(), Control> {
        self.controls.push(control)?;
        self.wake();
        Ok(())
    }

    /// The next question.
    pub(super) fn poll_control(&self) -> Option<Control> {
        self.controls.pop()
    }

    /// Whether anything waits.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !(self.peers.is_empty()
            && self.clients.is_empty()
            && self.answers.is_empty()
            && self.controls.is_empty())
    }
}

/// About how many bytes a message holds in a queue.
#[must_use]
pub fn peer_message_bytes(message: &PeerMessage) -> usize {
    const FIXED: usize = 512;
    let of = |bodies: &[Request]| -> usize { bodies.iter().map(|b| 64 + b.operation.len()).sum() };
    match message {
        PeerMessage::Order(order) => FIXED + of(&order.bodies),
        PeerMessage::Chain(slots) => {
            FIXED + slots.iter().map(|s| 128 + of(&s.bodies)).sum::<usize>()
        }
        PeerMessage::Forward(forward) => FIXED + forward.request.operation.len(),
        PeerMessage::Certificate(_)
        | PeerMessage::FetchSlots { .. }
        | PeerMessage::FetchSlotResult { .. }
        | PeerMessage::FetchNewView { .. }
        | PeerMessage::FetchReport { .. }
        | PeerMessage::FetchChain { .. }
        | PeerMessage::FetchCheckpoint { .. }
        | PeerMessage::FetchChunk(_) => FIXED,
        PeerMessage::Checkpoint(offer) => FIXED * (1 + offer.certificates.len()),
        PeerMessage::Chunk(chunk) => FIXED + chunk.bytes.as_ref().map_or(0, |bytes| bytes.len()),
    }
}

impl ClientInput {
    /// About how many bytes it holds in a queue.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 256;
        match self {
            Self::Request { request, .. } => FIXED + request.request.operation.len(),
            Self::Query { query, .. } => FIXED + query.operation.len(),
        }
    }

    /// As the core takes it. `log_end` is the true end of the log now: a fast read may take it at any time between
    /// its arrival and its answer.
    #[must_use]
    pub fn into_input(self, log_end: u64) -> Input {
        match self {
            Self::Request {
                request,
                retransmission,
                leader_alone,
            } => Input::Request {
                request,
                retransmission,
                leader_alone,
            },
            Self::Query { query, mac } => Input::Query {
                query,
                mac,
                log_end: twinbft_types::Position(log_end),
            },
        }
    }
}
