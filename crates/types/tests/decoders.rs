//! Whatever bytes come from outside, decoders answer with a value or an error, never with a panic; and a value has one
//! encoding only.

mod round_trip;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use round_trip::{client_messages, one_encoding, peer_messages};
use twinbft_types::wire::{PeerMessage, Reply, answer_from_wire, answer_to_wire, pb};
use twinbft_types::{
    Authenticator, Certificate, ClientId, Digest, Entry, HostId, Incarnation, Mac, Query,
    QueryAnswer, Request, RequestRef, ResultMac, Seq, Signed, SignedRequest, Slot, Statement,
    TwinId, View, canonical, from_canonical,
};

/// Bytes that get further into a decoder than random ones: most are small numbers, as tags and lengths are.
fn small_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![4 => 0u8..4, 1 => any::<u8>()], 0..300)
}

fn check_all_canonical(bytes: &[u8]) {
    one_encoding::<Entry>(bytes);
    one_encoding::<Signed>(bytes);
    one_encoding::<Request>(bytes);
    one_encoding::<SignedRequest>(bytes);
    one_encoding::<Certificate>(bytes);
    one_encoding::<Query>(bytes);
    one_encoding::<QueryAnswer>(bytes);
}

fn digests() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn macs() -> impl Strategy<Value = Vec<Mac>> {
    vec(any::<[u8; 16]>().prop_map(Mac), 0..6)
}

fn requests() -> impl Strategy<Value = Request> {
    (any::<(u32, u64, u64)>(), vec(any::<u8>(), 0..200)).prop_map(
        |((key, session, seq), operation)| Request {
            client: ClientId { key, session },
            seq: Seq(seq),
            operation: operation.into(),
        },
    )
}

fn statements() -> impl Strategy<Value = Statement> {
    let numbers = any::<(u64, u64, u64)>();
    prop_oneof![
        (numbers, digests()).prop_map(|((view, slot, _), history)| Statement::Order {
            view: View(view),
            slot: Slot(slot),
            history,
        }),
        (numbers, digests(), any::<Option<u64>>()).prop_map(|((view, slot, _), history, beat)| {
            Statement::Ack {
                view: View(view),
                slot: Slot(slot),
                history,
                beat,
            }
        }),
        (numbers, digests(), any::<Option<u64>>()).prop_map(
            |((slot, session, seq), result, view)| Statement::Reply {
                view: view.map(View),
                slot: Slot(slot),
                client: ClientId { key: 1, session },
                seq: Seq(seq),
                result,
            }
        ),
        (numbers, digests(), vec(any::<u64>(), 0..5)).prop_map(
            |((view, last_normal, accepted), history, incarnations)| Statement::ViewChange {
                view: View(view),
                last_normal: View(last_normal),
                accepted: Slot(accepted),
                history,
                incarnations: incarnations.into_iter().map(Incarnation).collect(),
            }
        ),
        (numbers, digests(), vec((any::<u8>(), digests()), 0..5)).prop_map(
            |((view, slot, _), history, hosts)| Statement::NewView {
                view: View(view),
                slot: Slot(slot),
                history,
                hosts: hosts.into_iter().map(|(h, d)| (HostId(h), d)).collect(),
            }
        ),
    ]
}

fn certificates() -> impl Strategy<Value = Certificate> {
    let authenticators = vec((any::<u8>(), macs()), 0..4);
    (any::<(u8, u64)>(), statements(), authenticators).prop_map(
        |((host, incarnation), statement, authenticators)| Certificate {
            signed: Signed {
                host: HostId(host),
                incarnation: Incarnation(incarnation),
                statement,
            },
            authenticators: authenticators
                .into_iter()
                .map(|(twin, macs)| Authenticator {
                    twin: TwinId(twin),
                    macs,
                })
                .collect(),
        },
    )
}

fn entries() -> impl Strategy<Value = Entry> {
    let references = vec(requests().prop_map(|r| r.reference()), 0..4);
    let results = vec(
        (digests(), any::<[u8; 16]>()).prop_map(|(digest, mac)| ResultMac {
            digest,
            mac: Mac(mac),
        }),
        0..4,
    );
    prop_oneof![
        (any::<(u64, u64, u64)>(), digests(), references).prop_map(
            |((view, slot, timestamp_us), previous, requests)| Entry::Propose {
                view: View(view),
                slot: Slot(slot),
                attempt: twinbft_types::Attempt(3),
                previous,
                timestamp_us,
                requests,
            }
        ),
        (requests(), any::<u8>(), macs()).prop_map(|(request, host, macs)| Entry::Body {
            request: SignedRequest {
                request,
                host: HostId(host),
                macs,
            },
        }),
        (statements(), any::<u8>(), macs()).prop_map(|(statement, twin, macs)| Entry::Sign {
            statement,
            authenticator: Authenticator {
                twin: TwinId(twin),
                macs,
            },
        }),
        (any::<u64>(), digests(), results).prop_map(|(slot, history, results)| Entry::Results {
            slot: Slot(slot),
            history,
            view: None,
            results,
        }),
        certificates().prop_map(|certificate| Entry::Relay { certificate }),
    ]
}

/// One field of protobuf: a small number or a short run of bytes, of a kind that the messages have.
fn field() -> impl Strategy<Value = Vec<u8>> {
    (1u8..11, any::<bool>(), vec(any::<u8>(), 0..40)).prop_map(|(number, is_bytes, data)| {
        let wire_type = if is_bytes { 2 } else { 0 };
        let mut field = vec![number << 3 | wire_type];
        if is_bytes {
            field.push(u8::try_from(data.len()).expect("below 40"));
            field.extend(data);
        } else {
            field.push(data.first().map_or(0, |byte| byte & 0x7f));
        }
        field
    })
}

/// Bytes that protobuf decoders accept more often than random ones.
fn protobuf_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..300),
        vec(field(), 0..10).prop_map(|fields| fields.concat()),
    ]
}

fn check_protobuf(bytes: &[u8]) {
    peer_messages(bytes);
    client_messages(bytes);
}

proptest! {
    #[test]
    fn random_bytes_never_panic_a_canonical_decoder(bytes in vec(any::<u8>(), 0..400)) {
        check_all_canonical(&bytes);
    }

    #[test]
    fn small_random_bytes_never_panic_a_canonical_decoder(bytes in small_bytes()) {
        check_all_canonical(&bytes);
    }

    #[test]
    fn entries_come_back_and_damaged_ones_are_refused_or_another_value(
        entry in entries(), at in any::<prop::sample::Index>(), value: u8,
    ) {
        let mut bytes = canonical(&entry);
        prop_assert_eq!(from_canonical::<Entry>(&bytes), Ok(entry));
        one_encoding::<Entry>(&bytes);
        prop_assert!(from_canonical::<Entry>(&bytes[..bytes.len() - 1]).is_err(), "a cut entry passed");
        let at = at.index(bytes.len());
        bytes[at] = value;
        one_encoding::<Entry>(&bytes);
    }

    #[test]
    fn certificates_come_back_over_both_encodings(certificate in certificates()) {
        let bytes = canonical(&certificate);
        prop_assert_eq!(from_canonical::<Certificate>(&bytes), Ok(certificate.clone()));
        let wire = pb::Certificate::from(&certificate).encode_to_vec();
        let message = pb::Certificate::decode(&wire[..]).unwrap();
        prop_assert_eq!(Certificate::try_from(message), Ok(certificate.clone()));
        check_protobuf(&pb::PeerMessage::from(&PeerMessage::Certificate(certificate)).encode_to_vec());
    }

    /// Two encodings of one statement would be two digests of it.
    #[test]
    fn a_certificate_with_a_byte_behind_its_statement_is_refused(certificate in certificates()) {
        let mut message = pb::Certificate::from(&certificate);
        message.signed = [&message.signed[..], &[0]].concat().into();
        prop_assert!(Certificate::try_from(message).is_err());
    }

    #[test]
    fn random_bytes_never_panic_a_wire_decoder(bytes in protobuf_bytes()) {
        check_protobuf(&bytes);
    }

    /// Every field of a request reaches the other side, and a MAC of another length is refused by its field's name.
    #[test]
    fn requests_come_back(request in requests(), host: u8, macs in macs(), extra in 1usize..16) {
        let signed = SignedRequest { request, host: HostId(host), macs };
        let message = pb::Request::decode(&pb::Request::from(&signed).encode_to_vec()[..]).unwrap();
        prop_assert_eq!(SignedRequest::try_from(message.clone()), Ok(signed));
        let odd = pb::Request {
            macs: [&message.macs[..], &vec![7; extra]].concat().into(),
            ..message.clone()
        };
        prop_assert_eq!(SignedRequest::try_from(odd).unwrap_err().field, "request.macs");
        let far = pb::Request { host: 256, ..message };
        prop_assert_eq!(SignedRequest::try_from(far).unwrap_err().field, "request.host");
    }

    /// Replies with MACs, answers and reads: what the types hold, the wire carries.
    #[test]
    fn replies_and_answers_come_back(
        slot: u64, session: u64, view: Option<u64>, result in vec(any::<u8>(), 0..100), mac: [u8; 16], short: bool,
    ) {
        let result = Bytes::from(result);
        let outcome = if short {
            pb::reply::Outcome::ResultDigest(Digest::of(&result).0.to_vec().into())
        } else {
            pb::reply::Outcome::Result(result.clone())
        };
        let reply = pb::Reply {
            host: 2, incarnation: 1, slot, view, client_key: 9, session, seq: 4,
            outcome: Some(outcome),
            macs: vec![pb::TwinMac { twin: 1, mac: mac.to_vec().into() }],
        };
        let taken = Reply::try_from(pb::Reply::decode(&reply.encode_to_vec()[..]).unwrap()).unwrap();
        prop_assert_eq!(taken.outcome.digest(), Digest::of(&result));
        let nothing = pb::Reply { outcome: None, ..reply.clone() };
        prop_assert_eq!(pb::Reply::from(taken), reply);
        prop_assert_eq!(Reply::try_from(nothing).unwrap_err().field, "reply.outcome");

        let answer = pb::QueryAnswer {
            host: 2, twin: 1, session, nonce: slot, view, version: 3, result, mac: mac.to_vec().into(),
        };
        let taken = answer_from_wire(answer.clone(), 9).unwrap();
        prop_assert_eq!(taken.0.result, Digest::of(&taken.1));
        prop_assert_eq!(answer_to_wire(&taken.0, taken.1, taken.2), answer);
    }
}

/// A length field that promises four gigabytes must not be believed before the bytes are there.
#[test]
fn a_length_without_bytes_is_refused_without_the_memory() {
    let reference = canonical(&vec![RequestRef {
        client: ClientId { key: 1, session: 2 },
        seq: Seq(3),
        digest: Digest::ZERO,
    }]);
    let mut huge = reference;
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(from_canonical::<Vec<RequestRef>>(&huge).is_err());
    let operation = [&[0u8; 20][..], &u32::MAX.to_le_bytes()].concat();
    assert!(from_canonical::<Request>(&operation).is_err());
}
