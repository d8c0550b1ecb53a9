//! Fuzz targets of everything that comes in over the wire: `scripts/fuzz` drives them by coverage, a plain run of the
//! tests takes the stored corpus (`__fuzz__/`) and some random inputs.
//!
//! What decodes has this one encoding; nothing panics.

mod round_trip;

use bolero::check;
use prost::Message as _;
use round_trip::one_encoding;
use twinbft_types::wire::{CheckpointOffer, ChunkMessage, ChunkName, pb};
use twinbft_types::{
    Certificate, Entry, HelloState, Query, QueryAnswer, Request, Signed, SignedRequest, Statement,
};

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

#[test]
fn peer_messages() {
    check!()
        .with_iterations(1000)
        .for_each(round_trip::peer_messages);
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
    check!()
        .with_iterations(1000)
        .for_each(round_trip::client_messages);
}
