//! The messages of `proto/twinbft.proto` and their conversion to and from the types of this crate.
//!
//! What comes in is bounded by the transport's message limit; here every field is checked for its form and
//! nothing else. Whether it is authentic is the protocol's business.

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;

use crate::digest::{Digest, canonical, from_canonical};
use crate::ids::{ClientId, HostId, Nonce, ReplicaId, Seq, Slot, TwinId, View};
use crate::keys::{MAC_BYTES, Mac};
use crate::request::{Query, QueryAnswer, Request, SignedRequest};
use crate::statement::{Authenticator, Certificate};

mod transfer;

pub use transfer::{CheckpointOffer, CheckpointParts, ChunkMessage, ChunkName, StatePart};

/// The generated messages and services.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod pb {
    tonic::include_proto!("twinbft.v1");
}

/// A message between replicas of different hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// An ORDER certificate with its batch (4.4).
    Order(OrderMessage),
    /// Any other certificate.
    Certificate(Certificate),
    /// ORDERs of these slots are missing here, both ends included.
    FetchSlots {
        /// The first.
        first: Slot,
        /// The last.
        last: Slot,
    },
    /// SLOT-RESULT of this slot is wanted (9).
    FetchSlotResult {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
    },
    /// The NEW-VIEW of this view, or of a later one, is wanted (6).
    FetchNewView {
        /// The view.
        view: View,
    },
    /// The log that ends so is wanted, from its end downwards (6).
    FetchChain {
        /// The last slot that is missing.
        slot: Slot,
        /// `h_n`.
        history: Digest,
    },
    /// Slots of a log, descending without gaps: the answer to [`Self::FetchChain`].
    Chain(Vec<ChainSlot>),
    /// A FORWARD certificate with its request (6).
    Forward(ForwardMessage),
    /// A stable checkpoint above this slot is wanted (5).
    FetchCheckpoint {
        /// Where the one who asks stands.
        above: Slot,
    },
    /// The sender's stable checkpoint: the answer to [`Self::FetchCheckpoint`].
    Checkpoint(Box<CheckpointOffer>),
    /// A chunk of the state of a checkpoint is wanted (5).
    FetchChunk(ChunkName),
    /// The answer to [`Self::FetchChunk`].
    Chunk(ChunkMessage),
    /// The highest incarnation that others know of the asking host is wanted (8).
    FetchReport {
        /// What the answer must carry.
        nonce: Digest,
    },
}

/// One slot of a log, verified by the history of the slot and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainSlot {
    /// The slot.
    pub slot: Slot,
    /// `h_{n−1}`.
    pub previous: Digest,
    /// The batch's timestamp.
    pub timestamp_us: u64,
    /// The batch.
    pub bodies: Vec<Request>,
}

/// A FORWARD certificate with the request that it vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardMessage {
    /// FORWARD(c, s, digest).
    pub certificate: Certificate,
    /// The request.
    pub request: Request,
}

/// An ORDER certificate with what its history covers.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OrderMessage {
    /// ORDER(v, n, h).
    pub certificate: Certificate,
    /// The batch's timestamp.
    pub timestamp_us: u64,
    /// The batch.
    pub bodies: Vec<Request>,
}

/// The outcome in a REPLY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The result itself.
    Result(Bytes),
    /// Its digest; another host sends the result.
    Digest(Digest),
}

impl Outcome {
    /// SHA-256 of the result.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match self {
            Self::Result(bytes) => Digest::of(bytes),
            Self::Digest(digest) => *digest,
        }
    }
}

/// A certified REPLY (4.8), as received: nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Whose.
    pub host: HostId,
    /// The host's incarnation.
    pub incarnation: crate::ids::Incarnation,
    /// Where it was executed.
    pub slot: Slot,
    /// Only when tentative.
    pub view: Option<View>,
    /// To whom.
    pub client: ClientId,
    /// For which request.
    pub seq: Seq,
    /// What came out.
    pub outcome: Outcome,
    /// Of distinct twins.
    pub macs: Vec<(TwinId, Mac)>,
}

/// A message whose form is wrong: which field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {problem}")]
pub struct FormError {
    /// The field of the proto file.
    pub field: &'static str,
    /// What is wrong.
    pub problem: String,
}

fn wrong(field: &'static str, problem: impl Into<String>) -> FormError {
    FormError {
        field,
        problem: problem.into(),
    }
}

fn mac(field: &'static str, bytes: &[u8]) -> Result<Mac, FormError> {
    let fixed: [u8; MAC_BYTES] = bytes.try_into().map_err(|_| {
        wrong(
            field,
            format!("a MAC has {MAC_BYTES} bytes, this has {}", bytes.len()),
        )
    })?;
    Ok(Mac(fixed))
}

fn macs(field: &'static str, bytes: &[u8]) -> Result<Vec<Mac>, FormError> {
    let whole = bytes.chunks_exact(MAC_BYTES);
    if !whole.remainder().is_empty() {
        return Err(wrong(
            field,
            format!("{} bytes are no whole MACs", bytes.len()),
        ));
    }
    whole.map(|chunk| mac(field, chunk)).collect()
}

fn join(macs: &[Mac]) -> Bytes {
    macs.iter().flat_map(|m| m.0).collect()
}

fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, FormError> {
    let fixed: [u8; 32] = bytes.try_into().map_err(|_| {
        wrong(
            field,
            format!("a digest has 32 bytes, this has {}", bytes.len()),
        )
    })?;
    Ok(Digest(fixed))
}

fn small(field: &'static str, number: u32) -> Result<u8, FormError> {
    u8::try_from(number).map_err(|_| wrong(field, format!("{number} is above 255")))
}

impl From<&SignedRequest> for pb::Request {
    fn from(signed: &SignedRequest) -> Self {
        Self {
            client_key: signed.request.client.key,
            session: signed.request.client.session,
            seq: signed.request.seq.0,
            operation: signed.request.operation.clone(),
            host: u32::from(signed.host.0),
            macs: join(&signed.macs),
            retransmission: false,
            leader_alone: false,
        }
    }
}

impl TryFrom<pb::Request> for SignedRequest {
    type Error = FormError;

    fn try_from(message: pb::Request) -> Result<Self, FormError> {
        Ok(Self {
            request: Request {
                client: ClientId {
                    key: message.client_key,
                    session: message.session,
                },
                seq: Seq(message.seq),
                operation: message.operation,
            },
            host: HostId(small("request.host", message.host)?),
            macs: macs("request.macs", &message.macs)?,
        })
    }
}

impl From<&Certificate> for pb::Certificate {
    fn from(certificate: &Certificate) -> Self {
        Self {
            signed: canonical(&certificate.signed).into(),
            authenticators: certificate
                .authenticators
                .iter()
                .map(|a| pb::Authenticator {
                    twin: u32::from(a.twin.0),
                    macs: join(&a.macs),
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::Certificate> for Certificate {
    type Error = FormError;

    fn try_from(message: pb::Certificate) -> Result<Self, FormError> {
        let signed = from_canonical(&message.signed)
            .map_err(|e| wrong("certificate.signed", e.to_string()))?;
        let authenticators = message
            .authenticators
            .into_iter()
            .map(|a| {
                Ok(Authenticator {
                    twin: TwinId(small("authenticator.twin", a.twin)?),
                    macs: macs("authenticator.macs", &a.macs)?,
                })
            })
            .collect::<Result<_, FormError>>()?;
        Ok(Self {
            signed,
            authenticators,
        })
    }
}

impl From<&PeerMessage> for pb::PeerMessage {
    fn from(message: &PeerMessage) -> Self {
        use pb::peer_message::Message;
        let fetch = |what| Message::Fetch(pb::Fetch { what: Some(what) });
        let message = match message {
            PeerMessage::Order(order) => Message::Order(pb::Order {
                certificate: Some((&order.certificate).into()),
                timestamp_us: order.timestamp_us,
                bodies: order.bodies.iter().map(body).collect(),
            }),
            PeerMessage::Certificate(certificate) => Message::Certificate(certificate.into()),
            PeerMessage::FetchSlots { first, last } => {
                fetch(pb::fetch::What::Slots(pb::SlotRange {
                    first: first.0,
                    last: last.0,
                }))
            }
            PeerMessage::FetchSlotResult { slot, history } => {
                fetch(pb::fetch::What::SlotResult(pb::SlotResultQuery {
                    slot: slot.0,
                    history: history.0.to_vec().into(),
                }))
            }
            PeerMessage::FetchNewView { view } => fetch(pb::fetch::What::NewView(view.0)),
            PeerMessage::FetchChain { slot, history } => {
                fetch(pb::fetch::What::Chain(pb::ChainQuery {
                    slot: slot.0,
                    history: history.0.to_vec().into(),
                }))
            }
            PeerMessage::Chain(slots) => Message::Chain(pb::Chain {
                slots: slots
                    .iter()
                    .map(|s| pb::ChainSlot {
                        slot: s.slot.0,
                        previous: s.previous.0.to_vec().into(),
                        timestamp_us: s.timestamp_us,
                        bodies: s.bodies.iter().map(body).collect(),
                    })
                    .collect(),
            }),
            PeerMessage::Forward(forward) => Message::Forward(pb::Forward {
                certificate: Some((&forward.certificate).into()),
                request: Some(body(&forward.request)),
            }),
            PeerMessage::FetchCheckpoint { above } => {
                fetch(pb::fetch::What::CheckpointAbove(above.0))
            }
            PeerMessage::Checkpoint(offer) => Message::Checkpoint((&**offer).into()),
            PeerMessage::FetchChunk(name) => fetch(pb::fetch::What::Chunk((*name).into())),
            PeerMessage::Chunk(chunk) => Message::Chunk(chunk.into()),
            PeerMessage::FetchReport { nonce } => {
                fetch(pb::fetch::What::Report(nonce.0.to_vec().into()))
            }
        };
        Self {
            message: Some(message),
        }
    }
}

fn body(request: &Request) -> pb::Body {
    pb::Body {
        client_key: request.client.key,
        session: request.client.session,
        seq: request.seq.0,
        operation: request.operation.clone(),
    }
}

impl TryFrom<pb::PeerMessage> for PeerMessage {
    type Error = FormError;

    fn try_from(message: pb::PeerMessage) -> Result<Self, FormError> {
        use pb::peer_message::Message;
        let missing = |field| wrong(field, "is missing");
        match message.message.ok_or_else(|| missing("peer_message"))? {
            Message::Order(order) => Ok(Self::Order(OrderMessage {
                certificate: order
                    .certificate
                    .ok_or_else(|| missing("order.certificate"))?
                    .try_into()?,
                timestamp_us: order.timestamp_us,
                bodies: order.bodies.into_iter().map(unbody).collect(),
            })),
            Message::Certificate(certificate) => Ok(Self::Certificate(certificate.try_into()?)),
            Message::Fetch(fetch) => match fetch.what.ok_or_else(|| missing("fetch.what"))? {
                pb::fetch::What::Slots(range) => Ok(Self::FetchSlots {
                    first: Slot(range.first),
                    last: Slot(range.last),
                }),
                pb::fetch::What::SlotResult(query) => Ok(Self::FetchSlotResult {
                    slot: Slot(query.slot),
                    history: digest("slot_result.history", &query.history)?,
                }),
                pb::fetch::What::NewView(view) => Ok(Self::FetchNewView { view: View(view) }),
                pb::fetch::What::Chain(query) => Ok(Self::FetchChain {
                    slot: Slot(query.slot),
                    history: digest("chain.history", &query.history)?,
                }),
                pb::fetch::What::CheckpointAbove(slot) => {
                    Ok(Self::FetchCheckpoint { above: Slot(slot) })
                }
                pb::fetch::What::Chunk(query) => Ok(Self::FetchChunk(query.try_into()?)),
                pb::fetch::What::Report(nonce) => Ok(Self::FetchReport {
                    nonce: digest("fetch.report", &nonce)?,
                }),
            },
            Message::Chain(chain) => {
                let slots = chain.slots.into_iter().map(|s| {
                    Ok(ChainSlot {
                        slot: Slot(s.slot),
                        previous: digest("chain_slot.previous", &s.previous)?,
                        timestamp_us: s.timestamp_us,
                        bodies: s.bodies.into_iter().map(unbody).collect(),
                    })
                });
                Ok(Self::Chain(slots.collect::<Result<_, FormError>>()?))
            }
            Message::Forward(forward) => Ok(Self::Forward(ForwardMessage {
                certificate: forward
                    .certificate
                    .ok_or_else(|| missing("forward.certificate"))?
                    .try_into()?,
                request: unbody(forward.request.ok_or_else(|| missing("forward.request"))?),
            })),
            Message::Checkpoint(offer) => Ok(Self::Checkpoint(Box::new(offer.try_into()?))),
            Message::Chunk(chunk) => Ok(Self::Chunk(chunk.try_into()?)),
        }
    }
}

fn unbody(body: pb::Body) -> Request {
    Request {
        client: ClientId {
            key: body.client_key,
            session: body.session,
        },
        seq: Seq(body.seq),
        operation: body.operation,
    }
}

impl From<Reply> for pb::Reply {
    fn from(reply: Reply) -> Self {
        Self {
            host: u32::from(reply.host.0),
            incarnation: reply.incarnation.0,
            slot: reply.slot.0,
            view: reply.view.map(|v| v.0),
            client_key: reply.client.key,
            session: reply.client.session,
            seq: reply.seq.0,
            outcome: Some(match reply.outcome {
                Outcome::Result(bytes) => pb::reply::Outcome::Result(bytes),
                Outcome::Digest(digest) => {
                    pb::reply::Outcome::ResultDigest(digest.0.to_vec().into())
                }
            }),
            macs: reply
                .macs
                .iter()
                .map(|(twin, mac)| pb::TwinMac {
                    twin: u32::from(twin.0),
                    mac: mac.0.to_vec().into(),
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::Reply> for Reply {
    type Error = FormError;

    fn try_from(message: pb::Reply) -> Result<Self, FormError> {
        let outcome = match message
            .outcome
            .ok_or_else(|| wrong("reply.outcome", "is missing"))?
        {
            pb::reply::Outcome::Result(bytes) => Outcome::Result(bytes),
            pb::reply::Outcome::ResultDigest(bytes) => {
                Outcome::Digest(digest("reply.result_digest", &bytes)?)
            }
        };
        Ok(Self {
            host: HostId(small("reply.host", message.host)?),
            incarnation: crate::ids::Incarnation(message.incarnation),
            slot: Slot(message.slot),
            view: message.view.map(View),
            client: ClientId {
                key: message.client_key,
                session: message.session,
            },
            seq: Seq(message.seq),
            outcome,
            macs: message
                .macs
                .into_iter()
                .map(|m| {
                    Ok((
                        TwinId(small("twin_mac.twin", m.twin)?),
                        mac("twin_mac.mac", &m.mac)?,
                    ))
                })
                .collect::<Result<_, FormError>>()?,
        })
    }
}

/// A fast read as it travels: the query and the MAC for the twin that it is sent to.
///
/// # Errors
/// When the MAC has not its size.
pub fn query_from_wire(message: pb::Query) -> Result<(Query, Mac), FormError> {
    let mac = mac("query.mac", &message.mac)?;
    let query = Query {
        client: ClientId {
            key: message.client_key,
            session: message.session,
        },
        nonce: Nonce(message.nonce),
        operation: message.operation,
    };
    Ok((query, mac))
}

/// The other direction of [`query_from_wire`].
#[must_use]
pub fn query_to_wire(query: &Query, mac: Mac) -> pb::Query {
    pb::Query {
        client_key: query.client.key,
        session: query.client.session,
        nonce: query.nonce.0,
        operation: query.operation.clone(),
        mac: mac.0.to_vec().into(),
    }
}

/// An answer to a fast read as it travels: what the MAC covers, the result, the MAC.
#[must_use]
pub fn answer_to_wire(answer: &QueryAnswer, result: Bytes, mac: Mac) -> pb::QueryAnswer {
    pb::QueryAnswer {
        host: u32::from(answer.replica.host.0),
        twin: u32::from(answer.replica.twin.0),
        session: answer.client.session,
        nonce: answer.nonce.0,
        view: answer.view.map(|v| v.0),
        version: answer.version,
        result,
        mac: mac.0.to_vec().into(),
    }
}

/// The other direction of [`answer_to_wire`]. `client_key` is the receiver's own; the answer does not repeat it.
///
/// # Errors
/// When a number or the MAC has not its size.
pub fn answer_from_wire(
    message: pb::QueryAnswer,
    client_key: u32,
) -> Result<(QueryAnswer, Bytes, Mac), FormError> {
    let answer = QueryAnswer {
        replica: ReplicaId {
            host: HostId(small("answer.host", message.host)?),
            twin: TwinId(small("answer.twin", message.twin)?),
        },
        client: ClientId {
            key: client_key,
            session: message.session,
        },
        nonce: Nonce(message.nonce),
        view: message.view.map(View),
        version: message.version,
        result: Digest::of(&message.result),
    };
    let mac = mac("answer.mac", &message.mac)?;
    Ok((answer, message.result, mac))
}
