//! What a session sends, made only when the driver asks for it.

use std::collections::VecDeque;

use twinbft_types::{Domain, HostId, Mac, Nonce, Query, ReplicaId, Seq, SignedRequest, TwinId};

use super::config::SessionConfig;
use super::keys::SharedKeys;
use super::reads::OpenRead;
use super::request::Pending;

/// One message for one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// To whom.
    pub to: ReplicaId,
    /// What.
    pub message: Message,
}

/// What a client says to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// REQUEST(c, s, op) with the MACs for the twins of the receiver's host (4.1).
    Request {
        /// The request.
        signed: SignedRequest,
        /// Whether it was sent before, and goes to everybody now.
        retransmission: bool,
        /// Whether the receiver is the leader and its siblings get no copy.
        leader_alone: bool,
    },
    /// A fast read with the MAC for the receiver (7).
    Query {
        /// The query.
        query: Query,
        /// The MAC.
        mac: Mac,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Request(Seq),
    Query(Nonce),
}

#[derive(Debug)]
struct Sending {
    what: What,
    /// The next receiver.
    to: ReplicaId,
    /// To all hosts from `to` on, or to the twins of its host alone.
    everybody: bool,
    /// Whether it was sent before.
    again: bool,
    /// To `to` and to nobody else.
    alone: bool,
    /// Those for the twins of `to.host`; empty until the first of them is served.
    macs: Vec<Mac>,
}

/// What is still to be sent. Invariant: at most one entry for each open request and fast read.
#[derive(Debug, Default)]
pub(super) struct Outbox(VecDeque<Sending>);

impl Outbox {
    fn push(&mut self, what: What, host: HostId, everybody: bool, again: bool) {
        self.0.push_back(Sending {
            what,
            to: ReplicaId {
                host,
                twin: TwinId(0),
            },
            everybody,
            again,
            alone: false,
            macs: Vec::new(),
        });
    }

    pub(super) fn push_first_send(&mut self, seq: Seq, primary: HostId) {
        self.push(What::Request(seq), primary, false, false);
    }

    pub(super) fn push_to_leader(&mut self, seq: Seq, leader: ReplicaId) {
        self.0.push_back(Sending {
            what: What::Request(seq),
            to: leader,
            everybody: false,
            again: false,
            alone: true,
            macs: Vec::new(),
        });
    }

    pub(super) fn push_announcement(&mut self, seq: Seq) {
        self.push(What::Request(seq), HostId(0), true, false);
    }

    pub(super) fn push_retransmission(&mut self, seq: Seq) {
        self.push(What::Request(seq), HostId(0), true, true);
    }

    pub(super) fn push_query(&mut self, nonce: Nonce) {
        self.push(What::Query(nonce), HostId(0), true, false);
    }

    pub(super) fn front(&self) -> Option<What> {
        self.0.front().map(|sending| sending.what)
    }

    pub(super) fn drop_front(&mut self) {
        self.0.pop_front();
    }

    /// The next copy of the request that stands in front.
    pub(super) fn request(&mut self, config: &SessionConfig, pending: &mut Pending) -> Transmit {
        let sending = self.0.front_mut().expect("the caller has seen it");
        if sending.macs.is_empty() {
            sending.macs = macs(&config.keys, config, sending.to.host, pending);
        }
        let transmit = Transmit {
            to: sending.to,
            message: Message::Request {
                signed: SignedRequest {
                    request: pending.request.clone(),
                    host: sending.to.host,
                    macs: sending.macs.clone(),
                },
                retransmission: sending.again,
                leader_alone: sending.alone,
            },
        };
        if self.advance(config) {
            pending.queued = false;
        }
        transmit
    }

    /// The next copy of the fast read that stands in front.
    pub(super) fn query(&mut self, config: &SessionConfig, read: &OpenRead) -> Transmit {
        let sending = self.0.front().expect("the caller has seen it");
        let to = sending.to;
        let mac = config.keys.lock().mac(to, Domain::Query, read.digest);
        self.advance(config);
        Transmit {
            to,
            message: Message::Query {
                query: read.query.clone(),
                mac,
            },
        }
    }

    /// Goes on to the next receiver. True when there is none, and the entry is gone.
    fn advance(&mut self, config: &SessionConfig) -> bool {
        let sending = self.0.front_mut().expect("the caller has seen it");
        if !sending.alone && sending.to.twin.0 + 1 < config.shape.twins() {
            sending.to.twin.0 += 1;
            return false;
        }
        if sending.everybody && sending.to.host.0 + 1 < config.shape.hosts() {
            sending.to = ReplicaId::new(sending.to.host.0 + 1, 0);
            sending.macs.clear();
            return false;
        }
        self.drop_front();
        true
    }
}

fn macs(keys: &SharedKeys, config: &SessionConfig, host: HostId, pending: &Pending) -> Vec<Mac> {
    let mut keys = keys.lock();
    config
        .shape
        .all_twins()
        .map(|twin| keys.mac(ReplicaId { host, twin }, Domain::Request, pending.digest))
        .collect()
}
