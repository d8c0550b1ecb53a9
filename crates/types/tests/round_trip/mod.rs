//! What the tests of the wire's decoders and their fuzz targets hold of any bytes: what decodes has that one encoding, and what
//! comes over protobuf goes out as it came, but for fields that protobuf's readers skip.

use prost::Message as _;
use twinbft_types::wire::{
    PeerMessage, Reply, answer_from_wire, answer_to_wire, pb, query_from_wire, query_to_wire,
};
use twinbft_types::{Certificate, SignedRequest, canonical, from_canonical};

pub fn one_encoding<T: borsh::BorshSerialize + borsh::BorshDeserialize>(bytes: &[u8]) {
    if let Ok(value) = from_canonical::<T>(bytes) {
        assert_eq!(canonical(&value), bytes);
        let longer = [bytes, &[0]].concat();
        let passed = from_canonical::<T>(&longer).is_ok();
        assert!(!passed, "a trailing byte passed");
    }
}

/// Between replicas.
pub fn peer_messages(bytes: &[u8]) {
    if let Ok(message) = pb::PeerMessage::decode(bytes)
        && let Ok(taken) = PeerMessage::try_from(message.clone())
    {
        assert_eq!(pb::PeerMessage::from(&taken), message);
    }
    if let Ok(message) = pb::Certificate::decode(bytes)
        && let Ok(taken) = Certificate::try_from(message.clone())
    {
        assert_eq!(pb::Certificate::from(&taken), message);
    }
}

/// Between clients and replicas.
pub fn client_messages(bytes: &[u8]) {
    if let Ok(message) = pb::Request::decode(bytes)
        && let Ok(signed) = SignedRequest::try_from(message.clone())
    {
        let again = pb::Request {
            retransmission: message.retransmission,
            leader_alone: message.leader_alone,
            ..pb::Request::from(&signed)
        };
        assert_eq!(again, message);
    }
    if let Ok(message) = pb::Reply::decode(bytes)
        && let Ok(reply) = Reply::try_from(message.clone())
    {
        assert_eq!(pb::Reply::from(reply), message);
    }
    if let Ok(message) = pb::Query::decode(bytes)
        && let Ok((query, mac)) = query_from_wire(message.clone())
    {
        assert_eq!(query_to_wire(&query, mac), message);
    }
    if let Ok(message) = pb::QueryAnswer::decode(bytes)
        && let Ok((answer, result, mac)) = answer_from_wire(message.clone(), 5)
    {
        assert_eq!(answer_to_wire(&answer, result, mac), message);
    }
}
