//! `status` against servers that answer, refuse and hang, with the certificates that `init` makes.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;

use common::{Fresh, run, stderr, stdout};
use serde_json::Value;
use tokio_stream::Empty;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use twinbft_config::Layout;
use twinbft_types::wire::pb;
use twinbft_types::wire::pb::twin_bft_server::{TwinBft, TwinBftServer};

/// A replica that can say how it is and nothing else.
struct Fake(&'static str);

#[tonic::async_trait]
impl TwinBft for Fake {
    type ClientStream = Empty<Result<pb::ReplicaFrame, Status>>;

    async fn client(
        &self,
        _request: Request<Streaming<pb::ClientFrame>>,
    ) -> Result<Response<Self::ClientStream>, Status> {
        Err(Status::unimplemented("this one only reports"))
    }

    async fn peer(
        &self,
        _request: Request<Streaming<pb::PeerFrame>>,
    ) -> Result<Response<pb::PeerDone>, Status> {
        Err(Status::unimplemented("this one only reports"))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        if request
            .peer_certs()
            .is_none_or(|certificates| certificates.is_empty())
        {
            return Err(Status::unauthenticated("no certificate"));
        }
        Ok(Response::new(pb::StatusReply {
            json: self.0.to_owned(),
        }))
    }

    async fn command(
        &self,
        _: Request<pb::CommandRequest>,
    ) -> Result<Response<pb::CommandReply>, Status> {
        Err(Status::unimplemented("this one only reports"))
    }
}

const RUNNING: &str = r#"{"host":0,"twin":0,"state":"running","role":"leader","view":3,"executed":77,"stable":0,
    "cross_checked":150,"diverged":0,"faults":{"bad_mac":4},"rss_bytes":9000000}"#;

/// A listener on a free port that stands in the configuration in place of twin `twin`'s.
fn listener(fresh: &Fresh, twin: u8) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    fresh.replace(&format!("127.0.0.1:710{twin}"), &address.to_string());
    listener
}

/// Serves on `listener` with the certificate of twin `certificate` until the runtime is dropped.
fn serve(
    runtime: &tokio::runtime::Runtime,
    fresh: &Fresh,
    listener: TcpListener,
    certificate: u8,
    answer: &'static str,
) {
    let layout = Layout::new(fresh.path());
    let read = |path: &Path| std::fs::read(path).unwrap();
    let (certificate, key) = layout.twin_tls(0, certificate);
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read(&certificate), read(&key)))
        .client_ca_root(Certificate::from_pem(read(&layout.tls().join("ca.pem"))));
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut server = Server::builder().tls_config(tls).unwrap();
        let server = server.add_service(TwinBftServer::new(Fake(answer)));
        server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn status(fresh: &Fresh, extra: &[&str]) -> Output {
    let mut arguments = vec!["status", "--config", fresh.text()];
    arguments.extend(extra);
    run(&arguments)
}

#[test]
fn a_live_cluster_is_shown_and_gives_success() {
    let fresh = Fresh::new(&["--hosts", "1"]);
    let runtime = runtime();
    for twin in [0, 1] {
        let listener = listener(&fresh, twin);
        serve(&runtime, &fresh, listener, twin, RUNNING);
    }
    let run_dir = fresh.path().join("run/h0");
    std::fs::create_dir_all(&run_dir).unwrap();
    let broker = UnixListener::bind(run_dir.join("broker.sock")).unwrap();
    let broker = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = broker.accept().unwrap();
            stream
                .write_all(br#"{"epoch":5,"tail":900,"twins":[{"connected":true}]}"#)
                .unwrap();
        }
    });

    let output = status(&fresh, &[]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    let text = stdout(&output);
    assert!(
        text.contains("epoch 5, 900 entries, 1 twins connected"),
        "{text}"
    );
    assert_eq!(text.matches("running").count(), 2, "{text}");
    assert!(
        text.contains("77") && text.contains("150") && text.contains("9 MB"),
        "{text}"
    );
    assert!(
        text.contains("1 of 1 hosts are live, 1 are needed"),
        "{text}"
    );

    let output = status(&fresh, &["--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&json["live"], &json["live_hosts"]),
        (&true.into(), &serde_json::json!([0]))
    );
    assert_eq!(json["processes"][0]["status"]["epoch"], 5);
    assert_eq!(json["processes"][1]["status"]["faults"]["bad_mac"], 4);
    broker.join().unwrap();
}

#[test]
fn whoever_does_not_answer_is_a_row_with_the_reason() {
    let fresh = Fresh::new(&["--hosts", "1"]);
    let runtime = runtime();
    let good = listener(&fresh, 0);
    serve(&runtime, &fresh, good, 0, RUNNING);
    // Accepts connections by the kernel's hand and never says a word.
    let silent = listener(&fresh, 1);
    let output = status(&fresh, &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("unreachable: no answer within 2 s"), "{text}");
    assert!(text.contains("not on this machine"), "{text}");
    assert!(
        text.contains("0 of 1 hosts are live") && text.contains("not served"),
        "{text}"
    );
    drop(silent);
    let output = status(&fresh, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["processes"][2]["reachable"], false);
    let reason = json["processes"][2]["reason"].as_str().unwrap();
    assert!(reason.contains("refused"), "{reason}");
}

#[test]
fn a_twin_with_anothers_certificate_is_not_believed() {
    let fresh = Fresh::new(&["--hosts", "1"]);
    let runtime = runtime();
    for (twin, certificate) in [(0, 0), (1, 0)] {
        let listener = listener(&fresh, twin);
        serve(&runtime, &fresh, listener, certificate, RUNNING);
    }
    let output = status(&fresh, &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert_eq!(text.matches("running").count(), 1, "{text}");
    assert!(
        text.contains("unreachable: ") && text.contains("certificate"),
        "{text}"
    );
}

#[test]
fn nonsense_is_an_answer_that_counts_for_nothing() {
    let fresh = Fresh::new(&["--hosts", "1"]);
    let runtime = runtime();
    for (twin, answer) in [(0, "not json"), (1, "[]")] {
        let listener = listener(&fresh, twin);
        serve(&runtime, &fresh, listener, twin, answer);
    }
    let output = status(&fresh, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("not JSON"), "{}", stdout(&output));
}

#[test]
fn an_administrator_must_be_known_and_have_files() {
    let fresh = Fresh::new(&["--hosts", "1"]);
    let output = status(&fresh, &["--admin", "7"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no [[admin]] with id = 7"));
    std::fs::remove_file(fresh.path().join("tls/admin-0.pem")).unwrap();
    let output = status(&fresh, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("admin-0.pem"),
        "{}",
        stderr(&output)
    );
}
