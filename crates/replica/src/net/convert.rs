//! From and to the messages on the wire. Everything that comes in is checked for its form here and counted by name;
//! whether it is authentic is the core's business.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use twinbft_core::Refusal;
use twinbft_types::SignedRequest;
use twinbft_types::wire::{FormError, PeerMessage, answer_to_wire, pb, query_from_wire};

use crate::driver::{ClientInput, ToClient};

/// `PeerFrame.messages`.
const PEER_FRAME_MESSAGES: u32 = 1;

/// A message as it stands in a `PeerFrame`, its field key and length included: a frame is such messages one after the
/// other, so that one encoding serves all receivers.
#[must_use]
pub fn encode_peer_message(message: &PeerMessage) -> Bytes {
    let message = pb::PeerMessage::from(message);
    let length = message.encoded_len();
    let header = key_len(PEER_FRAME_MESSAGES) + encoded_len_varint(length as u64);
    let mut bytes = BytesMut::with_capacity(header + length);
    encode_key(PEER_FRAME_MESSAGES, WireType::LengthDelimited, &mut bytes);
    encode_varint(length as u64, &mut bytes);
    message.encode_raw(&mut bytes);
    assert_eq!(bytes.len(), header + length, "prost computes lengths right");
    let bytes = bytes.freeze();
    #[cfg(feature = "byzantine-doubles")]
    let bytes = crate::byzantine::garbage::behind(bytes);
    bytes
}

/// A part of a `ReplicaFrame`.
#[derive(Clone, Debug, PartialEq)]
pub enum FramePart {
    /// A reply.
    Reply(pb::Reply),
    /// The answer to a fast read.
    Answer(pb::QueryAnswer),
    /// Why something goes nowhere.
    Refusal(pb::Refusal),
    /// Nothing but the hint that every frame carries.
    View,
}

impl FramePart {
    /// As it travels.
    #[must_use]
    pub fn new(message: ToClient) -> Self {
        match message {
            ToClient::Reply(reply) => Self::Reply(reply.into()),
            ToClient::Answer {
                answer,
                result,
                mac,
            } => Self::Answer(answer_to_wire(&answer, result, mac)),
            ToClient::Refuse {
                client,
                seq,
                reason,
            } => Self::Refusal(refusal(client.session, seq.0, reason)),
            ToClient::RefuseQuery {
                client,
                nonce,
                reason,
            } => Self::Refusal(refusal(client.session, nonce.0, reason)),
        }
    }

    /// About its length on the wire.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 160;
        match self {
            Self::Reply(reply) => match &reply.outcome {
                Some(pb::reply::Outcome::Result(result)) => FIXED + result.len(),
                Some(pb::reply::Outcome::ResultDigest(_)) | None => FIXED,
            },
            Self::Answer(answer) => FIXED + answer.result.len(),
            Self::Refusal(_) | Self::View => FIXED,
        }
    }
}

/// A refusal in words and as a number.
#[must_use]
pub fn refusal(session: u64, number: u64, reason: Refusal) -> pb::Refusal {
    let code = match reason {
        Refusal::UnknownClient => pb::RefusalReason::UnknownClient,
        Refusal::BadMac => pb::RefusalReason::BadMac,
        Refusal::TooLarge => pb::RefusalReason::TooLarge,
        Refusal::OutsideWindow => pb::RefusalReason::OutsideWindow,
        Refusal::Busy => pb::RefusalReason::Busy,
        Refusal::SessionExpired => pb::RefusalReason::SessionExpired,
        Refusal::ResultDiscarded => pb::RefusalReason::ResultDiscarded,
        Refusal::Recovering => pb::RefusalReason::Recovering,
    };
    pb::Refusal {
        session,
        seq: number,
        reason: code.into(),
        message: reason.to_string(),
    }
}

/// Puts parts into one frame.
#[must_use]
pub fn replica_frame(
    parts: impl IntoIterator<Item = FramePart>,
    view_hint: u64,
) -> pb::ReplicaFrame {
    let mut frame = pb::ReplicaFrame {
        view_hint,
        ..pb::ReplicaFrame::default()
    };
    for part in parts {
        match part {
            FramePart::Reply(reply) => frame.replies.push(reply),
            FramePart::Answer(answer) => frame.answers.push(answer),
            FramePart::Refusal(refusal) => frame.refusals.push(refusal),
            FramePart::View => {}
        }
    }
    #[cfg(feature = "byzantine-doubles")]
    crate::byzantine::garbage::beside(&mut frame);
    frame
}

/// Why a client's message does not reach the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFault {
    /// It names another client key than the certificate of its stream.
    ForeignKey {
        /// The session and number that it names.
        session: u64,
        /// Of the request or read.
        number: u64,
    },
    /// Its form is wrong.
    Form(FormError),
}

impl ClientFault {
    /// The name under which it is counted.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ForeignKey { .. } => "foreign_client_key",
            Self::Form(error) => error.field,
        }
    }
}

/// A request of the client with key `key`.
///
/// # Errors
/// When it is not that client's, or its form is wrong.
pub fn request_from_wire(key: u32, request: pb::Request) -> Result<ClientInput, ClientFault> {
    if request.client_key != key {
        return Err(ClientFault::ForeignKey {
            session: request.session,
            number: request.seq,
        });
    }
    let (retransmission, leader_alone) = (request.retransmission, request.leader_alone);
    let request = SignedRequest::try_from(request).map_err(ClientFault::Form)?;
    Ok(ClientInput::Request {
        request,
        retransmission,
        leader_alone,
    })
}

/// A fast read of the client with key `key`.
///
/// # Errors
/// When it is not that client's, or its form is wrong.
pub fn read_from_wire(key: u32, query: pb::Query) -> Result<ClientInput, ClientFault> {
    if query.client_key != key {
        return Err(ClientFault::ForeignKey {
            session: query.session,
            number: query.nonce,
        });
    }
    let (query, mac) = query_from_wire(query).map_err(ClientFault::Form)?;
    Ok(ClientInput::Query { query, mac })
}

/// Encoded messages become the body of one frame.
pub fn put_messages(messages: &[Bytes], buffer: &mut impl BufMut) {
    for message in messages {
        buffer.put_slice(message);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use twinbft_types::wire::{ChainSlot, ForwardMessage, OrderMessage};
    use twinbft_types::{
        Authenticator, Certificate, ClientId, Digest, HostId, Incarnation, Mac, Request, Seq,
        Signed, Slot, Statement, TwinId, View,
    };

    use super::*;

    fn certificate(slot: u64, macs: usize) -> Certificate {
        Certificate {
            signed: Signed {
                host: HostId(1),
                incarnation: Incarnation(2),
                statement: Statement::Order {
                    view: View(3),
                    slot: Slot(slot),
                    history: Digest([4; 32]),
                },
            },
            authenticators: vec![Authenticator {
                twin: TwinId(1),
                macs: vec![Mac([5; 16]); macs],
            }],
        }
    }

    fn request(operation: Vec<u8>) -> Request {
        Request {
            client: ClientId { key: 1, session: 2 },
            seq: Seq(3),
            operation: operation.into(),
        }
    }

    fn messages() -> impl Strategy<Value = PeerMessage> {
        let operation = proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            (
                any::<u64>(),
                0usize..5,
                proptest::collection::vec(operation, 0..4)
            )
                .prop_map(|(slot, macs, operations)| PeerMessage::Order(
                    OrderMessage {
                        certificate: certificate(slot, macs),
                        timestamp_us: slot,
                        bodies: operations.into_iter().map(request).collect(),
                    }
                )),
            (any::<u64>(), 0usize..5)
                .prop_map(|(slot, macs)| PeerMessage::Certificate(certificate(slot, macs))),
            any::<(u64, u64)>().prop_map(|(first, last)| PeerMessage::FetchSlots {
                first: Slot(first),
                last: Slot(last),
            }),
            any::<(u64, [u8; 32])>().prop_map(|(slot, history)| PeerMessage::FetchSlotResult {
                slot: Slot(slot),
                history: Digest(history),
            }),
            any::<u64>().prop_map(|view| PeerMessage::FetchNewView { view: View(view) }),
            any::<[u8; 32]>().prop_map(|nonce| PeerMessage::FetchReport {
                nonce: Digest(nonce)
            }),
            any::<(u64, [u8; 32])>().prop_map(|(slot, history)| PeerMessage::FetchChain {
                slot: Slot(slot),
                history: Digest(history),
            }),
            (
                any::<(u64, [u8; 32])>(),
                proptest::collection::vec(any::<Vec<u8>>(), 0..3)
            )
                .prop_map(|((slot, previous), operations)| {
                    let bodies = operations.into_iter().map(request).collect();
                    PeerMessage::Chain(vec![ChainSlot {
                        slot: Slot(slot),
                        previous: Digest(previous),
                        timestamp_us: slot,
                        bodies,
                    }])
                }),
            (any::<u64>(), any::<Vec<u8>>()).prop_map(|(slot, operation)| {
                PeerMessage::Forward(ForwardMessage {
                    certificate: certificate(slot, 2),
                    request: request(operation),
                })
            }),
        ]
    }

    /// What the network thread does with a frame, without the stream around it.
    fn take_in(frame: &[u8]) -> Option<usize> {
        let frame = pb::PeerFrame::decode(frame).ok()?;
        let good = frame
            .messages
            .into_iter()
            .filter_map(|m| PeerMessage::try_from(m).ok());
        Some(good.count())
    }

    proptest! {
        /// Messages encoded one by one are the frame that prost would have made, and come out again.
        #[test]
        fn frames_are_made_of_encoded_messages(messages in proptest::collection::vec(messages(), 0..5)) {
            let encoded: Vec<Bytes> = messages.iter().map(encode_peer_message).collect();
            let mut frame = BytesMut::new();
            put_messages(&encoded, &mut frame);
            let expected = pb::PeerFrame { messages: messages.iter().map(Into::into).collect() };
            prop_assert_eq!(&frame[..], &expected.encode_to_vec()[..]);
            let decoded = pb::PeerFrame::decode(frame.freeze()).unwrap();
            let back: Vec<PeerMessage> = decoded.messages.into_iter().map(|m| m.try_into().unwrap()).collect();
            prop_assert_eq!(back, messages);
        }

        /// Random bytes on a peer's stream are dropped, never a panic.
        #[test]
        fn random_bytes_from_a_peer_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = take_in(&bytes);
        }

        /// A good frame with some bytes changed is taken in in part or not at all, never a panic.
        #[test]
        fn damaged_frames_from_a_peer_never_panic(message in messages(), at in any::<prop::sample::Index>(), value: u8) {
            let mut bytes = encode_peer_message(&message).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = value;
            prop_assert!(take_in(&bytes).is_none_or(|good| good <= bytes.len()));
        }

        /// Random bytes on a client's stream never panic, and nothing passes that names another key.
        #[test]
        fn random_bytes_from_a_client_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(frame) = pb::ClientFrame::decode(&bytes[..]) {
                for request in frame.requests {
                    let foreign = request.client_key != 7;
                    let taken = request_from_wire(7, request);
                    let refused = matches!(taken, Err(ClientFault::ForeignKey { .. }));
                    prop_assert!(!foreign || refused);
                }
                for query in frame.queries {
                    let foreign = query.client_key != 7;
                    let taken = read_from_wire(7, query);
                    let refused = matches!(taken, Err(ClientFault::ForeignKey { .. }));
                    prop_assert!(!foreign || refused);
                }
            }
        }
    }

    #[test]
    fn a_wrong_form_is_named_by_its_field() {
        let request = pb::Request {
            client_key: 7,
            macs: Bytes::from_static(b"short"),
            ..pb::Request::default()
        };
        assert_eq!(
            request_from_wire(7, request).unwrap_err().name(),
            "request.macs"
        );
        let query = pb::Query {
            client_key: 7,
            ..pb::Query::default()
        };
        assert_eq!(read_from_wire(7, query).unwrap_err().name(), "query.mac");
        let foreign = pb::Request {
            client_key: 8,
            ..pb::Request::default()
        };
        assert_eq!(
            request_from_wire(7, foreign).unwrap_err().name(),
            "foreign_client_key"
        );
    }
}
