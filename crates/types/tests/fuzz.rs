//! Fuzz targets of everything that comes in over the wire: `scripts/fuzz` drives them by coverage, a plain run of the
//! tests takes the stored corpus (`__fuzz__/`) and some random inputs.
//!
//! What decodes has this one encoding; nothing panics.

use bolero::check;
use prost::Message as _;
use twinbft_types::wire::{
    CheckpointOffer, ChunkMessage, ChunkName, PeerMessage, Reply, answer_from_wire, answer_to_wire,
    pb, query_from_wire, query_to_wire,
};
use twinbft_types::{
    Certificate, Entry, HelloState, Query, QueryAnswer, Request, Signed, SignedRequest, Statement,
    canonical, from_canonical,
};

fn one_encoding<T: borsh::BorshSerialize + borsh::BorshDeserialize>(bytes: &[u8]) {
    if let Ok(value) = from_canonical::<T>(bytes) {
        assert_eq!(canonical(&value), bytes);
    }
}

#[test]
fn entries() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        one_encoding::<Entry>(bytes);
        one_encoding::<HelloState>(bytes);
    });
}

#[test]
fn statements() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        one_encoding::<Statement>(bytes);
        one_encoding::<Signed>(bytes);
        one_encoding::<Certificate>(bytes);
    });
}

#[test]
fn requests() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        one_encoding::<Request>(bytes);
        one_encoding::<SignedRequest>(bytes);
        one_encoding::<Query>(bytes);
        one_encoding::<QueryAnswer>(bytes);
    });
}

/// What is taken in goes out as it came, but for fields that protobuf's readers skip.
#[test]
fn peer_messages() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
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
    });
}

#[test]
fn transfer() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        if let Ok(message) = pb::CheckpointOffer::decode(bytes)
            && let Ok(taken) = CheckpointOffer::try_from(message.clone())
        {
            assert_eq!(pb::CheckpointOffer::from(&taken), message);
        }
        if let Ok(message) = pb::ChunkQuery::decode(bytes)
            && let Ok(taken) = ChunkName::try_from(message)
        {
            assert_eq!(pb::ChunkQuery::from(taken), message);
        }
        if let Ok(message) = pb::Chunk::decode(bytes)
            && let Ok(taken) = ChunkMessage::try_from(message.clone())
        {
            assert_eq!(pb::Chunk::from(&taken), message);
        }
    });
}

#[test]
fn client_messages() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
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
    });
}
