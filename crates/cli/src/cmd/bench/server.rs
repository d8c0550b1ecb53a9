//! `twinbft bench-server`: the unreplicated server that `--baseline single` compares with. One thread, one stream for
//! each client, each frame one batch; no MACs, no log, no other replica.

use std::io::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::Stream;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use twinbft_app::{Application, BatchContext, Operation, ServiceOptions};
use twinbft_cli::cluster::Cluster;
use twinbft_client::FRAME_BYTES_MAX;
use twinbft_types::wire::pb;
use twinbft_types::wire::pb::twin_bft_server::{TwinBft, TwinBftServer};
use twinbft_types::{ClientId, Digest, Seq, Slot};

/// Serve a cluster's service without replication, for `twinbft bench --baseline single`
///
/// Listens on a free port of the loopback interface, says which one on the first line of its output, and ends when its
/// standard input does.
#[derive(Debug, clap::Args)]
pub struct BenchServerArgs {
    /// cluster.toml, or the directory that it is in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// Where the service may keep its state
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

type Answers = mpsc::Sender<Result<pb::ReplicaFrame, Status>>;

/// The service and where its state stands.
struct State {
    application: Box<dyn Application>,
    slot: Slot,
    checkpoint_slots: u64,
}

#[derive(Clone)]
struct Door(Arc<Mutex<State>>);

/// Serves until the standard input ends.
///
/// # Errors
/// When the service, the certificate or the port cannot be had.
pub async fn run(args: BenchServerArgs) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.config)?;
    let state = State {
        application: twinbft_app::open(&service_options(&cluster, args.state))?,
        slot: Slot(0),
        checkpoint_slots: cluster.config.protocol.checkpoint_slots,
    };
    let read =
        |path: PathBuf| std::fs::read(&path).with_context(|| format!("reading {}", path.display()));
    let (certificate, key) = cluster.layout.twin_tls(0, 0);
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read(certificate)?, read(key)?))
        .client_ca_root(Certificate::from_pem(read(
            cluster.layout.tls_ca(&cluster.config.tls),
        )?));
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("listening on the loopback interface")?;
    let address = listener.local_addr().context("looking up the port")?;
    let service = TwinBftServer::new(Door(Arc::new(Mutex::new(state))))
        .max_decoding_message_size(FRAME_BYTES_MAX);
    println!("{address}");
    std::io::stdout()
        .flush()
        .context("saying where it listens")?;
    let serving = Server::builder()
        .tls_config(tls)
        .context("the certificate of h0/t0 cannot be used")?
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .serve_with_incoming(
            service,
            TcpIncoming::from(listener).with_nodelay(Some(true)),
        );
    // Open streams must not hold it up: whoever started it is gone or has what it wanted.
    tokio::select! {
        served = serving => served.context("serving")?,
        () = input_ends() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever started this server is gone, or wants it gone.
async fn input_ends() {
    let mut input = tokio::io::stdin();
    let mut byte = [0];
    while matches!(input.read(&mut byte).await, Ok(1..)) {}
}

fn service_options(cluster: &Cluster, state: PathBuf) -> ServiceOptions {
    let service = &cluster.config.service;
    ServiceOptions {
        name: service.name.clone(),
        directory: Some(state),
        durability: twinbft_app::Durability::Memory,
        null: twinbft_app::NullOptions {
            reply_bytes_default: service.null.reply_bytes_default,
            reply_bytes_max: service.null.reply_bytes_max,
        },
        kv: twinbft_app::KvOptions {
            cache_bytes: service.kv.cache_bytes,
            key_bytes_max: service.kv.key_bytes_max,
            value_bytes_max: service.kv.value_bytes_max,
            page_items_max: service.kv.page_items_max,
            page_bytes_max: service.kv.page_bytes_max,
        },
    }
}

impl State {
    fn execute(&mut self, frame: &pb::ClientFrame) -> Result<pb::ReplicaFrame, Status> {
        let failed = |error: twinbft_app::AppError| Status::internal(error.to_string());
        self.slot = self.slot.next();
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let batch = BatchContext {
            slot: self.slot,
            timestamp_us: u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX),
            seed: Digest::ZERO,
        };
        let operations: Vec<Operation<'_>> = frame
            .requests
            .iter()
            .map(|request| Operation {
                client: ClientId {
                    key: request.client_key,
                    session: request.session,
                },
                seq: Seq(request.seq),
                bytes: &request.operation,
            })
            .collect();
        let mut results: Vec<Bytes> = Vec::with_capacity(operations.len());
        self.application
            .execute(&batch, &operations, &mut results)
            .map_err(failed)?;
        if self.slot.0.is_multiple_of(self.checkpoint_slots) {
            self.application.checkpoint(self.slot).map_err(failed)?;
        }
        let replies = frame
            .requests
            .iter()
            .zip(results)
            .map(|(request, result)| pb::Reply {
                slot: self.slot.0,
                session: request.session,
                seq: request.seq,
                outcome: Some(pb::reply::Outcome::Result(result)),
                ..pb::Reply::default()
            });
        Ok(pb::ReplicaFrame {
            replies: replies.collect(),
            ..pb::ReplicaFrame::default()
        })
    }
}

async fn serve_stream(door: Door, mut frames: Streaming<pb::ClientFrame>, answers: Answers) {
    while let Ok(Some(frame)) = frames.message().await {
        let answer = door
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .execute(&frame);
        let failed = answer.is_err();
        if answers.send(answer).await.is_err() || failed {
            return;
        }
    }
}

#[tonic::async_trait]
impl TwinBft for Door {
    type ClientStream = Pin<Box<dyn Stream<Item = Result<pb::ReplicaFrame, Status>> + Send>>;

    async fn client(
        &self,
        request: Request<Streaming<pb::ClientFrame>>,
    ) -> Result<Response<Self::ClientStream>, Status> {
        let (answers, mut taken) = mpsc::channel(64);
        tokio::spawn(serve_stream(self.clone(), request.into_inner(), answers));
        let stream = futures_util::stream::poll_fn(move |context| taken.poll_recv(context));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn peer(
        &self,
        _: Request<Streaming<pb::PeerFrame>>,
    ) -> Result<Response<pb::PeerDone>, Status> {
        Err(Status::unimplemented("this server is not replicated"))
    }

    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        Err(Status::unimplemented("this server is not replicated"))
    }

    async fn command(
        &self,
        _: Request<pb::CommandRequest>,
    ) -> Result<Response<pb::CommandReply>, Status> {
        Err(Status::unimplemented("this server is not replicated"))
    }
}
