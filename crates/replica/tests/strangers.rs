//! Whoever does not belong is refused with a reason and counted by name, and the replica goes on.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;
use support::{Brokers, Cluster, status};
use tokio_stream::StreamExt;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use twinbft_client::kv::KvClient;
use twinbft_client::{Client, ClientOptions};
use twinbft_types::ReplicaId;
use twinbft_types::wire::pb;
use twinbft_types::wire::pb::twin_bft_client::TwinBftClient;

const REPLICA: ReplicaId = ReplicaId::new(0, 0);

async fn running() -> Cluster {
    let mut cluster = Cluster::create(3, 2, |_| {});
    cluster.start_brokers(&Brokers::Threads);
    cluster.start_replicas();
    cluster
}

/// A connection to [`REPLICA`] with somebody's certificate.
async fn connect(
    cluster: &Cluster,
    (certificate, key): (PathBuf, PathBuf),
) -> TwinBftClient<Channel> {
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(
            cluster.layout.tls_ca(&cluster.config.tls),
        )))
        .identity(Identity::from_pem(read(certificate), read(key)))
        .domain_name(cluster.config.twin_tls_name(REPLICA.host.0, REPLICA.twin.0));
    let address = cluster
        .config
        .twin(REPLICA.host.0, REPLICA.twin.0)
        .unwrap()
        .listen;
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .unwrap()
        .tls_config(tls)
        .unwrap();
    TwinBftClient::new(endpoint.connect().await.unwrap())
}

async fn refused(cluster: &Cluster, source: &str, name: &str) -> u64 {
    let status = status(cluster, REPLICA).await;
    let refused: &Value = &status["network"]["refused"][source][name];
    refused.as_u64().unwrap_or(0)
}

async fn serves(cluster: &Cluster) {
    let options = ClientOptions::load(&cluster.layout.config(), 0).unwrap();
    let kv = KvClient::new(Client::connect(options).await.unwrap().session());
    kv.put(Bytes::from("k"), Bytes::from("v"))
        .await
        .unwrap_or_else(|e| panic!("{e}\n{}", cluster.logs()));
}

#[tokio::test]
async fn a_certificate_opens_only_its_own_doors() {
    let cluster = running().await;
    let mut client = connect(&cluster, cluster.layout.client_tls(0)).await;
    let error = client
        .peer(tokio_stream::empty::<pb::PeerFrame>())
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::PermissionDenied);
    assert!(
        error.message().contains("only the other replicas"),
        "{error}"
    );
    assert_eq!(refused(&cluster, "client-0", "not_allowed").await, 1);

    // A replica is no client.
    let mut sibling = connect(&cluster, cluster.layout.twin_tls(0, 1)).await;
    let error = sibling
        .client(tokio_stream::empty::<pb::ClientFrame>())
        .await
        .unwrap_err();
    assert!(
        error.message().contains("only clients send requests"),
        "{error}"
    );
    assert_eq!(refused(&cluster, "h0/t1", "not_allowed").await, 1);
    serves(&cluster).await;
}

#[tokio::test]
async fn a_request_under_another_clients_key_is_refused_in_words() {
    let cluster = running().await;
    let mut client = connect(&cluster, cluster.layout.client_tls(0)).await;
    let request = pb::Request {
        client_key: 1,
        session: 5,
        seq: 9,
        ..pb::Request::default()
    };
    let malformed = pb::Request {
        client_key: 0,
        macs: Bytes::from_static(b"short"),
        ..pb::Request::default()
    };
    let frame = pb::ClientFrame {
        requests: vec![malformed, request],
        queries: Vec::new(),
    };
    let frames = tokio_stream::once(frame).chain(tokio_stream::pending());
    let mut answers = client.client(frames).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().expect("a refusal");
    let refusal = &answer.refusals[0];
    assert_eq!((refusal.session, refusal.seq), (5, 9));
    assert_eq!(refusal.reason(), pb::RefusalReason::UnknownClient);
    assert!(refusal.message.contains("client-0"), "{}", refusal.message);
    assert_eq!(refused(&cluster, "client-0", "foreign_client_key").await, 1);
    assert_eq!(refused(&cluster, "client-0", "request.macs").await, 1);
    serves(&cluster).await;
}

#[tokio::test]
async fn a_peers_malformed_message_is_counted_and_its_stream_goes_on() {
    let cluster = running().await;
    let mut peer = connect(&cluster, cluster.layout.twin_tls(1, 0)).await;
    let certificate = pb::Certificate {
        signed: Bytes::from_static(b"no statement"),
        authenticators: Vec::new(),
    };
    let bad = pb::PeerMessage {
        message: Some(pb::peer_message::Message::Certificate(certificate)),
    };
    let empty = pb::PeerMessage { message: None };
    let frame = |message| pb::PeerFrame {
        messages: vec![message],
    };
    // The call ends well when the stream does: neither message has broken it.
    peer.peer(tokio_stream::iter([frame(bad), frame(empty)]))
        .await
        .unwrap();
    assert_eq!(refused(&cluster, "h1/t0", "certificate.signed").await, 1);
    assert_eq!(refused(&cluster, "h1/t0", "peer_message").await, 1);
    serves(&cluster).await;
}

#[tokio::test]
async fn random_bytes_on_the_port_end_that_connection_alone() {
    let cluster = running().await;
    let address = cluster.config.twin(0, 0).unwrap().listen;
    for seed in 0..32u8 {
        let mut stream = TcpStream::connect(address).unwrap();
        let bytes: Vec<u8> = (0..999u16)
            .map(|n| seed.wrapping_mul(31) ^ n.to_le_bytes()[0])
            .collect();
        // The replica may have closed it already.
        let _closed = stream.write_all(&bytes);
    }
    serves(&cluster).await;
}
