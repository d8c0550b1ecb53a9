//! Fuzz targets of the frames that replicas and clients send; `scripts/fuzz` drives them by coverage. The messages in them
//! have their own targets in `twinbft-types`.

use bolero::check;
use prost::Message as _;
use twinbft_replica::net::{ClientFault, encode_peer_message, read_from_wire, request_from_wire};
use twinbft_types::wire::{PeerMessage, pb};

/// A message that is taken in goes out again, in a frame that others take in as the same.
#[test]
fn peer_frames() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        let Ok(frame) = pb::PeerFrame::decode(bytes) else {
            return;
        };
        for message in frame.messages {
            if let Ok(taken) = PeerMessage::try_from(message) {
                let sent = pb::PeerFrame::decode(encode_peer_message(&taken));
                let [again] = <[_; 1]>::try_from(sent.expect("our own").messages).expect("one");
                assert_eq!(PeerMessage::try_from(again), Ok(taken));
            }
        }
    });
}

/// Nothing passes that names another key than the stream's certificate.
#[test]
fn client_frames() {
    const KEY: u32 = 7;
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        let Ok(frame) = pb::ClientFrame::decode(bytes) else {
            return;
        };
        let keys = frame.requests.iter().map(|request| request.client_key);
        let keys: Vec<u32> = keys
            .chain(frame.queries.iter().map(|query| query.client_key))
            .collect();
        let requests = frame.requests.into_iter();
        let taken = requests.map(|request| request_from_wire(KEY, request));
        let reads = frame.queries.into_iter();
        let taken = taken.chain(reads.map(|query| read_from_wire(KEY, query)));
        for (key, taken) in keys.into_iter().zip(taken) {
            let is_foreign = matches!(taken, Err(ClientFault::ForeignKey { .. }));
            assert_eq!(is_foreign, key != KEY);
        }
    });
}
