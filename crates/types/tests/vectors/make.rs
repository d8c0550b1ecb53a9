//! Makes the test vectors of docs/wire.md from inputs that stand here.
//!
//! `cargo run -p twinbft-types --example vectors` writes them; the test beside this file compares them with what the
//! code says today. Every byte string is lower-case hexadecimal.

use std::collections::BTreeMap;

use bytes::Bytes;
use hkdf::Hkdf;
use prost::Message as _;
use serde_json::{Value, json};
use sha2::Sha256;
use twinbft_types::wire::{
    ChainSlot, CheckpointOffer, CheckpointParts, ChunkMessage, ChunkName, ForwardMessage,
    OrderMessage, Outcome, PeerMessage, Reply, StatePart, pb,
};
use twinbft_types::wire::{answer_to_wire, query_to_wire};
use twinbft_types::{
    Certificate, ClientId, Digest, Domain, Epoch, HostId, Incarnation, KeyContext, KeyRing, Nonce,
    Position, ProcessId, PublicKey, Query, QueryAnswer, ReplicaId, Request, RequestRef, SecretKey,
    Seq, Shape, Signed, SignedRequest, Slot, Statement, View, batch_digest, canonical, history, kv,
    results_digest,
};

/// `N = 3`, `m = 2`.
pub fn shape() -> Shape {
    Shape::new(3, 2).expect("a valid shape")
}

/// The context of all keys.
pub fn context() -> KeyContext {
    KeyContext {
        cluster_id: "example".to_owned(),
        key_epoch: 1,
    }
}

/// The client of all vectors.
pub const CLIENT: ClientId = ClientId {
    key: 0,
    session: 1_767_225_600_000_000,
};

/// All processes of the example cluster.
pub fn processes() -> Vec<ProcessId> {
    let twins = shape().all_replicas().map(ProcessId::Twin);
    twins
        .chain([ProcessId::Client(0), ProcessId::Admin(0)])
        .collect()
}

/// `h0/t0`, `client-0`, `admin-0`.
pub fn name(process: ProcessId) -> String {
    match process {
        ProcessId::Twin(replica) => format!("h{}/t{}", replica.host.0, replica.twin.0),
        ProcessId::Client(key) => format!("client-{key}"),
        ProcessId::Admin(key) => format!("admin-{key}"),
    }
}

/// The secret of a process: 32 times one byte, so that it can be typed.
pub fn secret(process: ProcessId) -> [u8; 32] {
    let byte = match process {
        ProcessId::Twin(replica) => 0x10 + 0x10 * replica.host.0 + replica.twin.0,
        ProcessId::Client(_) => 0xc0,
        ProcessId::Admin(_) => 0xa0,
    };
    [byte; 32]
}

/// The ring of a process.
pub fn ring(process: ProcessId) -> KeyRing {
    let public: BTreeMap<ProcessId, PublicKey> = processes()
        .into_iter()
        .map(|other| (other, SecretKey::from_bytes(secret(other)).public()))
        .collect();
    KeyRing::new(
        context(),
        process,
        SecretKey::from_bytes(secret(process)),
        public,
    )
}

fn twin(host: u8, twin: u8) -> ProcessId {
    ProcessId::Twin(ReplicaId::new(host, twin))
}

fn request(seq: u64, operation: &[u8]) -> Request {
    Request {
        client: CLIENT,
        seq: Seq(seq),
        operation: Bytes::copy_from_slice(operation),
    }
}

/// The batch of all vectors: a put and a get.
pub fn batch() -> Vec<Request> {
    vec![
        request(1, &put_operation().encode_to_vec()),
        request(2, &get_operation().encode_to_vec()),
    ]
}

fn put_operation() -> kv::Operation {
    kv::Operation {
        kind: Some(kv::operation::Kind::Put(kv::Put {
            key: Bytes::from_static(b"colour"),
            value: Bytes::from_static(b"green"),
        })),
    }
}

fn get_operation() -> kv::Operation {
    kv::Operation {
        kind: Some(kv::operation::Kind::Get(kv::Get {
            key: Bytes::from_static(b"colour"),
        })),
    }
}

fn outcome() -> kv::Outcome {
    kv::Outcome {
        kind: Some(kv::outcome::Kind::Written(kv::Written {
            revision: Some(kv::Revision { slot: 1, index: 0 }),
        })),
    }
}

const TIMESTAMP_US: u64 = 1_767_225_600_123_456;

fn references() -> Vec<RequestRef> {
    batch().iter().map(Request::reference).collect()
}

fn history_1() -> Digest {
    history(
        Digest::ZERO,
        Slot(1),
        batch_digest(&references()),
        TIMESTAMP_US,
    )
}

fn result() -> Bytes {
    outcome().encode_to_vec().into()
}

fn order() -> Signed {
    signed(Statement::Order {
        view: View(0),
        slot: Slot(1),
        history: history_1(),
    })
}

fn reply_statement() -> Statement {
    Statement::Reply {
        view: None,
        slot: Slot(1),
        client: CLIENT,
        seq: Seq(1),
        result: Digest::of(&result()),
    }
}

fn signed(statement: Statement) -> Signed {
    Signed {
        host: HostId(0),
        incarnation: Incarnation(0),
        statement,
    }
}

/// All files, by name.
pub fn files() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("keys.json", keys()),
        ("digests.json", digests()),
        ("statements.json", statements()),
        ("macs.json", macs()),
        ("messages.json", messages()),
    ])
}

fn keys() -> Value {
    let all: Vec<Value> = processes()
        .into_iter()
        .map(|process| {
            json!({
                "process": name(process),
                "process_id": hex::encode(canonical(&process)),
                "secret": hex::encode(secret(process)),
                "public": SecretKey::from_bytes(secret(process)).public().to_string(),
            })
        })
        .collect();
    let pairs = [
        (ProcessId::Client(0), twin(0, 0)),
        (twin(0, 0), ProcessId::Client(0)),
        (ProcessId::Client(0), twin(2, 1)),
        (twin(0, 0), twin(1, 0)),
        (twin(1, 0), twin(0, 0)),
    ];
    let derived: Vec<Value> = pairs
        .into_iter()
        .map(|(sender, receiver)| {
            let (shared, info, key) = derive(sender, receiver);
            json!({
                "sender": name(sender),
                "receiver": name(receiver),
                "shared_secret": hex::encode(shared),
                "info": hex::encode(info),
                "mac_key": hex::encode(key),
            })
        })
        .collect();
    json!({
        "cluster_id": context().cluster_id,
        "key_epoch": context().key_epoch,
        "hosts": shape().hosts(),
        "twins": shape().twins(),
        "salt": hex::encode("twinbft/v1/mac-key"),
        "processes": all,
        "mac_keys": derived,
    })
}

/// Shared secret, HKDF info and MAC key, made here step by step and not by the crate's own function.
fn derive(sender: ProcessId, receiver: ProcessId) -> ([u8; 32], Vec<u8>, [u8; 32]) {
    let own = x25519_dalek::StaticSecret::from(secret(sender));
    let other = x25519_dalek::StaticSecret::from(secret(receiver));
    let shared = own.diffie_hellman(&x25519_dalek::PublicKey::from(&other));
    let info = canonical(&(context(), sender, receiver));
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(b"twinbft/v1/mac-key"), shared.as_bytes())
        .expand(&info, &mut key)
        .expect("32 bytes are a valid output");
    (shared.to_bytes(), info, key)
}

fn digests() -> Value {
    let references = references();
    let query = query();
    let answer = answer();
    let requests: Vec<Value> = batch()
        .iter()
        .map(|request| {
            json!({
                "client_key": request.client.key,
                "session": request.client.session,
                "seq": request.seq.0,
                "operation": hex::encode(&request.operation),
                "canonical": hex::encode(canonical(request)),
                "digest": request.digest(),
                "reference": hex::encode(canonical(&request.reference())),
            })
        })
        .collect();
    let results = [Digest::of(b"one"), Digest::of(b"two")];
    json!({
        "requests": requests,
        "batch": {
            "canonical": hex::encode(canonical(&references)),
            "digest": batch_digest(&references),
            "empty_digest": batch_digest(&[]),
        },
        "history": {
            "previous": Digest::ZERO,
            "slot": 1,
            "batch": batch_digest(&references),
            "timestamp_us": TIMESTAMP_US,
            "canonical": hex::encode(canonical(&(
                Digest::ZERO, Slot(1), batch_digest(&references), TIMESTAMP_US,
            ))),
            "digest": history_1(),
        },
        "query": {
            "client_key": query.client.key,
            "session": query.client.session,
            "nonce": query.nonce.0,
            "operation": hex::encode(&query.operation),
            "canonical": hex::encode(canonical(&query)),
            "digest": query.digest(),
        },
        "query_answer": {
            "host": answer.replica.host.0,
            "twin": answer.replica.twin.0,
            "client_key": answer.client.key,
            "session": answer.client.session,
            "nonce": answer.nonce.0,
            "view": Value::Null,
            "version": answer.version,
            "result": answer.result,
            "canonical": hex::encode(canonical(&answer)),
            "digest": answer.digest(),
        },
        "results": {
            "result_digests": results,
            "canonical": hex::encode(canonical(&results[..])),
            "digest": results_digest(&results),
        },
    })
}

fn query() -> Query {
    Query {
        client: CLIENT,
        nonce: Nonce(7),
        operation: get_operation().encode_to_vec().into(),
    }
}

fn read_result() -> Bytes {
    let found = kv::Outcome {
        kind: Some(kv::outcome::Kind::Value(kv::Value {
            value: Bytes::from_static(b"green"),
            revision: Some(kv::Revision { slot: 1, index: 0 }),
        })),
    };
    found.encode_to_vec().into()
}

fn answer() -> QueryAnswer {
    QueryAnswer {
        replica: ReplicaId::new(2, 1),
        client: CLIENT,
        nonce: Nonce(7),
        view: None,
        version: 1,
        result: Digest::of(&read_result()),
    }
}

/// One of each kind, so that every tag number stands here.
pub fn one_of_each() -> Vec<(&'static str, Statement)> {
    let digest = Digest([0xdd; 32]);
    let (view, slot, history) = (View(5), Slot(1000), Digest([0xee; 32]));
    let (client, seq) = (CLIENT, Seq(42));
    vec![
        (
            "ORDER",
            Statement::Order {
                view,
                slot,
                history,
            },
        ),
        (
            "ACK",
            Statement::Ack {
                view,
                slot,
                history,
                beat: Some(3),
            },
        ),
        (
            "REPLY",
            Statement::Reply {
                view: None,
                slot,
                client,
                seq,
                result: digest,
            },
        ),
        (
            "REPLY, tentative",
            Statement::Reply {
                view: Some(view),
                slot,
                client,
                seq,
                result: digest,
            },
        ),
        (
            "FORWARD",
            Statement::Forward {
                client,
                seq,
                digest,
            },
        ),
        ("CHECKPOINT", Statement::Checkpoint { slot, digest }),
        (
            "HEARTBEAT",
            Statement::Heartbeat {
                view,
                count: 9,
                slot,
                history,
            },
        ),
        (
            "WISH",
            Statement::Wish {
                view,
                epoch: Epoch(2),
                position: Position(77),
            },
        ),
        (
            "VIEW-CHANGE",
            Statement::ViewChange {
                view,
                last_normal: View(4),
                accepted: slot,
                history,
                incarnations: vec![Incarnation(0), Incarnation(1), Incarnation(0)],
            },
        ),
        (
            "NEW-VIEW",
            Statement::NewView {
                view,
                slot,
                history,
                hosts: vec![(HostId(0), digest), (HostId(2), digest)],
            },
        ),
        ("COMMITTED", Statement::Committed { slot, history }),
        (
            "SLOT-RESULT",
            Statement::SlotResult {
                slot,
                history,
                results: digest,
            },
        ),
        (
            "RECOVERY",
            Statement::Recovery {
                incarnation: Incarnation(1),
                nonce: digest,
            },
        ),
        (
            "RECOVERY-ANSWER",
            Statement::RecoveryAnswer {
                to: HostId(1),
                incarnation: Incarnation(1),
                nonce: digest,
                view,
                accepted: slot,
                history,
                incarnations: vec![Incarnation(0), Incarnation(1), Incarnation(0)],
            },
        ),
        (
            "REPORT",
            Statement::Report {
                of: HostId(1),
                incarnation: Incarnation(1),
                nonce: digest,
            },
        ),
    ]
}

fn statements() -> Value {
    let all: Vec<Value> = one_of_each()
        .into_iter()
        .map(|(name, statement)| {
            let signed = Signed {
                host: HostId(1),
                incarnation: Incarnation(6),
                statement,
            };
            let bytes = canonical(&signed);
            json!({
                "statement": name,
                "tag": bytes[9],
                "value": format!("{signed:?}"),
                "canonical": hex::encode(&bytes),
                "digest": signed.digest(),
            })
        })
        .collect();
    json!({
        "history": "ee repeated 32 times",
        "other digests": "dd repeated 32 times",
        "signed": all,
    })
}

fn macs() -> Value {
    let mut client = ring(ProcessId::Client(0));
    let first = &batch()[0];
    let request_macs: Vec<Value> = shape()
        .all_replicas()
        .map(|to| {
            let mac = client.mac(ProcessId::Twin(to), Domain::Request, first.digest());
            json!({ "to": name(ProcessId::Twin(to)), "mac": mac.map(|m| hex::encode(m.0)) })
        })
        .collect();
    let query_macs: Vec<Value> = shape()
        .all_replicas()
        .map(|to| {
            let mac = client.mac(ProcessId::Twin(to), Domain::Query, query().digest());
            json!({ "to": name(ProcessId::Twin(to)), "mac": mac.map(|m| hex::encode(m.0)) })
        })
        .collect();
    let reply = signed(reply_statement());
    let reply_macs: Vec<Value> = reply_macs(&reply)
        .into_iter()
        .map(|(twin, mac)| json!({ "twin": twin.0, "mac": hex::encode(mac.0) }))
        .collect();
    let answer_mac =
        ring(twin(2, 1)).mac(ProcessId::Client(0), Domain::QueryAnswer, answer().digest());
    let receivers: Vec<String> = shape()
        .receivers(HostId(0))
        .map(|to| name(ProcessId::Twin(to)))
        .collect();
    let authenticators: Vec<Value> = certificate()
        .authenticators
        .iter()
        .map(|a| {
            let macs: Vec<String> = a.macs.iter().map(|m| hex::encode(m.0)).collect();
            json!({ "twin": a.twin.0, "macs": macs })
        })
        .collect();
    json!({
        "request": {
            "from": "client-0",
            "tag": text(Domain::Request),
            "digest": first.digest(),
            "macs": request_macs,
        },
        "query": {
            "from": "client-0",
            "tag": text(Domain::Query),
            "digest": query().digest(),
            "macs": query_macs,
        },
        "query_answer": {
            "from": "h2/t1",
            "to": "client-0",
            "tag": text(Domain::QueryAnswer),
            "digest": answer().digest(),
            "mac": answer_mac.map(|m| hex::encode(m.0)),
        },
        "reply": {
            "host": 0,
            "to": "client-0",
            "tag": text(Domain::Statement),
            "canonical": hex::encode(canonical(&reply)),
            "digest": reply.digest(),
            "macs": reply_macs,
        },
        "order": {
            "host": 0,
            "tag": text(Domain::Statement),
            "canonical": hex::encode(canonical(&order())),
            "digest": order().digest(),
            "receivers": receivers,
            "authenticators": authenticators,
        },
    })
}

fn text(domain: Domain) -> String {
    String::from_utf8_lossy(domain.tag()).into_owned()
}

fn reply_macs(reply: &Signed) -> Vec<(twinbft_types::TwinId, twinbft_types::Mac)> {
    shape()
        .all_twins()
        .map(|t| {
            let mac =
                ring(twin(0, t.0)).mac(ProcessId::Client(0), Domain::Statement, reply.digest());
            (t, mac.expect("the client is known"))
        })
        .collect()
}

fn certificate() -> Certificate {
    Certificate {
        signed: order(),
        authenticators: shape()
            .all_twins()
            .map(|t| ring(twin(0, t.0)).sign(shape(), &order()))
            .collect(),
    }
}

fn signed_request() -> SignedRequest {
    let mut client = ring(ProcessId::Client(0));
    let first = batch().swap_remove(0);
    let macs = shape()
        .all_twins()
        .map(|t| {
            client
                .mac(twin(0, t.0), Domain::Request, first.digest())
                .expect("the twin is known")
        })
        .collect();
    SignedRequest {
        request: first,
        host: HostId(0),
        macs,
    }
}

fn messages() -> Value {
    let request = pb::Request::from(&signed_request());
    let retransmission = pb::Request {
        retransmission: true,
        ..request.clone()
    };
    let reply = |outcome| {
        pb::Reply::from(Reply {
            host: HostId(0),
            incarnation: Incarnation(0),
            slot: Slot(1),
            view: None,
            client: CLIENT,
            seq: Seq(1),
            outcome,
            macs: reply_macs(&signed(reply_statement())),
        })
    };
    let whole = reply(Outcome::Result(result()));
    let digest = reply(Outcome::Digest(Digest::of(&result())));
    let mut client = ring(ProcessId::Client(0));
    let query_mac = client
        .mac(twin(2, 1), Domain::Query, query().digest())
        .expect("the twin is known");
    let query = query_to_wire(&query(), query_mac);
    let answer_mac = ring(twin(2, 1))
        .mac(ProcessId::Client(0), Domain::QueryAnswer, answer().digest())
        .expect("the client is known");
    let answer = answer_to_wire(&answer(), read_result(), answer_mac);
    let refusal = pb::Refusal {
        session: CLIENT.session,
        seq: 1,
        reason: pb::RefusalReason::Busy.into(),
        message: "too many requests wait for a slot; try again later".to_owned(),
    };
    let client_frame = pb::ClientFrame {
        requests: vec![request.clone()],
        queries: vec![query.clone()],
    };
    let replica_frame = pb::ReplicaFrame {
        replies: vec![whole.clone()],
        answers: vec![answer.clone()],
        refusals: vec![refusal.clone()],
        view_hint: 4,
    };
    let order = pb::PeerMessage::from(&PeerMessage::Order(OrderMessage {
        certificate: certificate(),
        timestamp_us: TIMESTAMP_US,
        bodies: batch(),
    }));
    let fetch = pb::PeerMessage::from(&PeerMessage::FetchSlots {
        first: Slot(2),
        last: Slot(5),
    });
    let fetch_result = pb::PeerMessage::from(&PeerMessage::FetchSlotResult {
        slot: Slot(1),
        history: history_1(),
    });
    let fetch_new_view = pb::PeerMessage::from(&PeerMessage::FetchNewView { view: View(7) });
    let fetch_report = pb::PeerMessage::from(&PeerMessage::FetchReport { nonce: history_1() });
    let fetch_chain = pb::PeerMessage::from(&PeerMessage::FetchChain {
        slot: Slot(1),
        history: history_1(),
    });
    let chain = pb::PeerMessage::from(&PeerMessage::Chain(vec![ChainSlot {
        slot: Slot(1),
        previous: Digest::ZERO,
        timestamp_us: TIMESTAMP_US,
        bodies: batch(),
    }]));
    let forward = pb::PeerMessage::from(&PeerMessage::Forward(ForwardMessage {
        certificate: certificate(),
        request: batch().remove(0),
    }));
    let fetch_checkpoint = pb::PeerMessage::from(&PeerMessage::FetchCheckpoint { above: Slot(7) });
    let checkpoint = pb::PeerMessage::from(&PeerMessage::Checkpoint(Box::new(CheckpointOffer {
        slot: Slot(1),
        parts: CheckpointParts {
            service: Digest::of(b"service"),
            sessions: Digest::of(b"sessions"),
            config: Digest::of(b"config"),
            history: history_1(),
            timestamp_us: TIMESTAMP_US,
        },
        certificates: vec![certificate()],
    })));
    let name = ChunkName {
        slot: Slot(1),
        part: StatePart::Sessions,
        id: u64::MAX,
    };
    let fetch_chunk = pb::PeerMessage::from(&PeerMessage::FetchChunk(name));
    let chunk = pb::PeerMessage::from(&PeerMessage::Chunk(ChunkMessage {
        name,
        bytes: Some(Bytes::from_static(&[0, 0, 0, 0])),
    }));
    let no_chunk = pb::PeerMessage::from(&PeerMessage::Chunk(ChunkMessage { name, bytes: None }));
    let peer_frame = pb::PeerFrame {
        messages: vec![order.clone(), fetch.clone()],
    };
    json!({
        "Request": hex::encode(request.encode_to_vec()),
        "Request, retransmission": hex::encode(retransmission.encode_to_vec()),
        "Query, to h2/t1": hex::encode(query.encode_to_vec()),
        "ClientFrame": hex::encode(client_frame.encode_to_vec()),
        "Reply, whole result": hex::encode(whole.encode_to_vec()),
        "Reply, digest": hex::encode(digest.encode_to_vec()),
        "QueryAnswer, of h2/t1": hex::encode(answer.encode_to_vec()),
        "Refusal": hex::encode(refusal.encode_to_vec()),
        "ReplicaFrame": hex::encode(replica_frame.encode_to_vec()),
        "PeerMessage, order": hex::encode(order.encode_to_vec()),
        "PeerMessage, fetch slots": hex::encode(fetch.encode_to_vec()),
        "PeerMessage, fetch slot result": hex::encode(fetch_result.encode_to_vec()),
        "PeerMessage, fetch new view": hex::encode(fetch_new_view.encode_to_vec()),
        "PeerMessage, fetch report": hex::encode(fetch_report.encode_to_vec()),
        "PeerMessage, fetch chain": hex::encode(fetch_chain.encode_to_vec()),
        "PeerMessage, chain": hex::encode(chain.encode_to_vec()),
        "PeerMessage, forward": hex::encode(forward.encode_to_vec()),
        "PeerMessage, fetch checkpoint": hex::encode(fetch_checkpoint.encode_to_vec()),
        "PeerMessage, checkpoint": hex::encode(checkpoint.encode_to_vec()),
        "PeerMessage, fetch chunk": hex::encode(fetch_chunk.encode_to_vec()),
        "PeerMessage, chunk": hex::encode(chunk.encode_to_vec()),
        "PeerMessage, no chunk": hex::encode(no_chunk.encode_to_vec()),
        "PeerFrame": hex::encode(peer_frame.encode_to_vec()),
        "kv.Operation, put": hex::encode(put_operation().encode_to_vec()),
        "kv.Operation, get": hex::encode(get_operation().encode_to_vec()),
        "kv.Outcome, written": hex::encode(outcome().encode_to_vec()),
        "kv.Outcome, value": hex::encode(read_result()),
    })
}
