//! The test vectors of docs/wire.md are what the code does, read as a client in another language would read them.

mod make;

use std::path::Path;

use prost::Message as _;
use serde_json::Value;
use twinbft_types::wire::{Outcome, PeerMessage, Reply, pb, query_from_wire};
use twinbft_types::{
    Certificate, Digest, Domain, Mac, MacKey, ProcessId, PublicKey, ReplicaId, Request, SecretKey,
    Signed, SignedRequest, batch_digest, canonical, from_canonical, history,
};

fn file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn fixed<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn digest(value: &Value) -> Digest {
    Digest(fixed(value))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn process(name: &Value) -> ProcessId {
    make::processes()
        .into_iter()
        .find(|process| make::name(*process) == name.as_str().unwrap())
        .unwrap()
}

/// A change of any encoding, derivation or MAC shows here. When it is meant, write the files anew with the example
/// `vectors`, and say in docs/wire.md what has changed.
#[test]
fn the_files_say_what_the_code_does() {
    for (name, expected) in make::files() {
        assert_eq!(file(name), expected, "{name}");
    }
}

#[test]
fn keys_are_derived_as_written() {
    let keys = file("keys.json");
    let by_name = |name: &Value| {
        let found = list(&keys["processes"])
            .iter()
            .find(|p| p["process"] == *name);
        found.unwrap().clone()
    };
    for pair in list(&keys["mac_keys"]) {
        let (sender, receiver) = (by_name(&pair["sender"]), by_name(&pair["receiver"]));
        let own = SecretKey::from_bytes(fixed(&sender["secret"]));
        let other = PublicKey::from_hex(receiver["public"].as_str().unwrap()).unwrap();
        let derived = MacKey::derive(
            &make::context(),
            &own,
            &other,
            process(&pair["sender"]),
            process(&pair["receiver"]),
        );
        // A MacKey does not show its bytes: it has the same key when it makes the same MACs.
        let raw = MacKey::from_bytes(&fixed(&pair["mac_key"]));
        let probe = Digest::of(b"probe");
        for domain in [
            Domain::Request,
            Domain::Statement,
            Domain::Query,
            Domain::QueryAnswer,
        ] {
            assert_eq!(derived.mac(domain, probe), raw.mac(domain, probe));
        }
    }
}

#[test]
fn macs_verify_with_the_raw_keys() {
    let (keys, macs) = (file("keys.json"), file("macs.json"));
    let key = |sender: &str, receiver: &Value| {
        let pair = list(&keys["mac_keys"])
            .iter()
            .find(|p| p["sender"] == sender && p["receiver"] == *receiver)?;
        Some(MacKey::from_bytes(&fixed(&pair["mac_key"])))
    };
    let mut checked = 0;
    for (kind, domain) in [("request", Domain::Request), ("query", Domain::Query)] {
        for entry in list(&macs[kind]["macs"]) {
            if let Some(key) = key("client-0", &entry["to"]) {
                let mac = Mac(fixed(&entry["mac"]));
                assert!(key.verify(domain, digest(&macs[kind]["digest"]), &mac));
                let (mut wrong, other) = (mac, Digest::of(b"something else"));
                wrong.0[15] ^= 1;
                assert!(!key.verify(domain, digest(&macs[kind]["digest"]), &wrong));
                assert!(!key.verify(domain, other, &mac));
                checked += 1;
            }
        }
    }
    let reply = key("h0/t0", &Value::from("client-0")).unwrap();
    let mac = Mac(fixed(&macs["reply"]["macs"][0]["mac"]));
    assert!(reply.verify(Domain::Statement, digest(&macs["reply"]["digest"]), &mac));
    let order = key("h0/t0", &Value::from("h1/t0")).unwrap();
    let mac = Mac(fixed(&macs["order"]["authenticators"][0]["macs"][0]));
    assert!(order.verify(Domain::Statement, digest(&macs["order"]["digest"]), &mac));
    assert_eq!(checked, 4);
}

#[test]
fn digests_follow_from_the_fields() {
    let file = file("digests.json");
    let mut references = Vec::new();
    for written in list(&file["requests"]) {
        let request: Request = from_canonical(&bytes(&written["canonical"])).unwrap();
        assert_eq!(request.client.key, written["client_key"]);
        assert_eq!(request.client.session, written["session"]);
        assert_eq!(request.seq.0, written["seq"]);
        assert_eq!(request.operation, bytes(&written["operation"]));
        assert_eq!(request.digest(), digest(&written["digest"]));
        references.push(request.reference());
    }
    let batch = batch_digest(&references);
    assert_eq!(batch, digest(&file["batch"]["digest"]));
    let link = &file["history"];
    let extended = history(
        digest(&link["previous"]),
        twinbft_types::Slot(link["slot"].as_u64().unwrap()),
        batch,
        link["timestamp_us"].as_u64().unwrap(),
    );
    assert_eq!(extended, digest(&link["digest"]));
    // The rule without the crate's own function: SHA-256 over the tag and the canonical bytes.
    for (tag, part) in [
        ("tbft/bat", "batch"),
        ("tbft/his", "history"),
        ("tbft/qry", "query"),
        ("tbft/ans", "query_answer"),
        ("tbft/res", "results"),
    ] {
        let hashed = [tag.as_bytes(), &bytes(&file[part]["canonical"])].concat();
        assert_eq!(Digest::of(&hashed), digest(&file[part]["digest"]), "{part}");
    }
}

#[test]
fn every_kind_of_statement_has_its_tag() {
    let file = file("statements.json");
    let mut tags = Vec::new();
    for written in list(&file["signed"]) {
        let whole = bytes(&written["canonical"]);
        let signed: Signed = from_canonical(&whole).unwrap();
        assert_eq!(canonical(&signed), whole);
        assert_eq!(signed.digest(), digest(&written["digest"]));
        tags.push(written["tag"].as_u64().unwrap());
    }
    tags.dedup();
    assert_eq!(tags, (0..14).collect::<Vec<u64>>());
}

#[test]
fn certificates_verify_at_every_receiver() {
    let macs = file("macs.json");
    let message = bytes(&file("messages.json")["PeerMessage, order"]);
    let message = pb::PeerMessage::decode(&message[..]).unwrap();
    let PeerMessage::Order(order) = PeerMessage::try_from(message).unwrap() else {
        panic!("an ORDER was written");
    };
    let certificate: &Certificate = &order.certificate;
    let receivers = list(&macs["order"]["receivers"]);
    assert_eq!(receivers.len(), 4);
    for (index, receiver) in receivers.iter().enumerate() {
        let ProcessId::Twin(replica) = process(receiver) else {
            panic!("receivers are twins");
        };
        let host = certificate.signed.host;
        assert_eq!(make::shape().receiver_index(host, replica), Some(index));
        let ring = make::ring(ProcessId::Twin(replica));
        assert_eq!(ring.count_valid(make::shape(), certificate), 2);
    }
    // Not for the twins of the host itself.
    let own = make::ring(ProcessId::Twin(ReplicaId::new(0, 1)));
    assert_eq!(own.count_valid(make::shape(), certificate), 0);
}

#[test]
fn messages_decode_to_what_they_say() {
    let (messages, macs) = (file("messages.json"), file("macs.json"));
    let request = pb::Request::decode(&bytes(&messages["Request"])[..]).unwrap();
    let signed = SignedRequest::try_from(request).unwrap();
    assert_eq!(signed.request, make::batch()[0]);
    let written = list(&macs["request"]["macs"]);
    assert_eq!(
        signed.macs,
        [
            Mac(fixed(&written[0]["mac"])),
            Mac(fixed(&written[1]["mac"]))
        ]
    );

    let read = |name: &str| {
        let reply = pb::Reply::decode(&bytes(&messages[name])[..]).unwrap();
        Reply::try_from(reply).unwrap()
    };
    let (whole, short) = (read("Reply, whole result"), read("Reply, digest"));
    assert!(matches!(short.outcome, Outcome::Digest(_)));
    assert_eq!(whole.outcome.digest(), short.outcome.digest());
    assert_eq!(whole.macs, short.macs);
    let mut client = make::ring(ProcessId::Client(0));
    for (twin, mac) in &whole.macs {
        let from = ReplicaId {
            host: whole.host,
            twin: *twin,
        };
        let statement = digest(&macs["reply"]["digest"]);
        assert!(client.verify(ProcessId::Twin(from), Domain::Statement, statement, mac));
    }

    let query = pb::Query::decode(&bytes(&messages["Query, to h2/t1"])[..]).unwrap();
    let (query, mac) = query_from_wire(query).unwrap();
    let mut twin = make::ring(ProcessId::Twin(ReplicaId::new(2, 1)));
    assert!(twin.verify(ProcessId::Client(0), Domain::Query, query.digest(), &mac));
}
