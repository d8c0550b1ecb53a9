//! The network thread: streams of clients and peers over mutual TLS, around the queues of the core's thread.

mod command;
mod convert;
mod dialer;
mod hub;
mod identity;
mod outbox;
mod router;
mod routes;
mod server;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use twinbft_config::ClusterConfig;
use twinbft_types::wire::pb::twin_bft_server::TwinBftServer;
use twinbft_types::{HostId, ReplicaId, TwinId};

pub use convert::{ClientFault, FramePart, encode_peer_message, read_from_wire, request_from_wire};
pub use dialer::{
    PEER_FRAME_BYTES_TARGET, PEER_OUTBOX_BYTES_MAX, PEER_OUTBOX_MAX, PeerReport, PeerState,
};
pub use identity::{Directory, IdentityError, name_of};

use crate::driver::{Egress, Inbox};
use crate::metrics::NetMetrics;
use crate::progress::Progress;
use dialer::Peer;
use hub::Hub;
use server::Door;

/// What one stream may have under way.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// What one connection may have under way.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is asked for a sign of life this often.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// And is dead without one after this.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Beside operations, a frame has certificates and fields: far below this.
const FRAME_OVERHEAD_BYTES: usize = 1 << 20;

/// The TLS material of this process.
pub struct TlsFiles {
    /// The authority, PEM.
    pub ca: Vec<u8>,
    /// This process's certificate, PEM.
    pub certificate: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
}

/// What the tasks of the network thread share.
pub(crate) struct Shared {
    me: ReplicaId,
    cluster: String,
    service: String,
    durability: &'static str,
    started: Instant,
    directory: Directory,
    inbox: Arc<Inbox>,
    egress: Arc<Egress>,
    progress: Arc<Progress>,
    metrics: Arc<NetMetrics>,
    hub: Hub,
    /// All other replicas: siblings, too, from which slots are fetched that nobody else has.
    peers: BTreeMap<ReplicaId, Arc<Peer>>,
}

/// The network of one replica.
pub struct Network {
    shared: Arc<Shared>,
    server: Server,
    dialers: Vec<(Arc<Peer>, Endpoint)>,
    message_bytes_max: usize,
}

/// What the network is connected to.
pub struct Ends {
    /// The way into the core.
    pub inbox: Arc<Inbox>,
    /// The way out of it.
    pub egress: Arc<Egress>,
    /// What it tells of itself.
    pub progress: Arc<Progress>,
}

/// The largest message that a peer or client may send: the largest batch or request, and what is around it.
fn message_bytes_max(config: &ClusterConfig) -> usize {
    let operations = config
        .protocol
        .batch_bytes_max
        .max(config.protocol.request_bytes_max);
    let requests = config.protocol.batch_requests_max * 64;
    operations + requests + PEER_FRAME_BYTES_TARGET + FRAME_OVERHEAD_BYTES
}

impl Network {
    /// Prepares everything; nothing is opened yet.
    ///
    /// # Errors
    /// When the TLS material cannot be used.
    pub fn new(
        config: &ClusterConfig,
        me: ReplicaId,
        tls: &TlsFiles,
        ends: Ends,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let identity = Identity::from_pem(&tls.certificate, &tls.key);
        let ca = Certificate::from_pem(&tls.ca);
        let server_tls = ServerTlsConfig::new()
            .identity(identity.clone())
            .client_ca_root(ca.clone());
        let server = Server::builder()
            .tls_config(server_tls)
            .context(
                "the certificate, its key or the authority of this replica cannot be used for TLS",
            )?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT));
        let mut dialers = Vec::new();
        for host in &config.hosts {
            for twin in &host.twins {
                let id = ReplicaId {
                    host: HostId(host.id),
                    twin: TwinId(twin.id),
                };
                if id == me {
                    continue;
                }
                let client_tls = ClientTlsConfig::new()
                    .ca_certificate(ca.clone())
                    .identity(identity.clone())
                    .domain_name(config.twin_tls_name(host.id, twin.id));
                let endpoint = Endpoint::from_shared(format!("https://{}", twin.listen))
                    .with_context(|| format!("the address of {id}"))?
                    .tls_config(client_tls)
                    .with_context(|| format!("TLS towards {id}"))?
                    .tcp_nodelay(true)
                    .connect_timeout(CONNECT_TIMEOUT)
                    .initial_stream_window_size(STREAM_WINDOW_BYTES)
                    .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                    .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
                    .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                    .keep_alive_while_idle(true);
                let peer = Arc::new(Peer::new(id, twin.listen.to_string()));
                dialers.push((id, peer, endpoint));
            }
        }
        let shared = Arc::new(Shared {
            me,
            cluster: config.cluster.id.clone(),
            service: config.service.name.clone(),
            durability: config.storage.durability.name(),
            started,
            directory: Directory::new(config),
            inbox: ends.inbox,
            egress: ends.egress,
            progress: ends.progress,
            metrics: Arc::default(),
            hub: Hub::new(),
            peers: dialers
                .iter()
                .map(|(id, peer, _)| (*id, peer.clone()))
                .collect(),
        });
        Ok(Self {
            shared,
            server,
            dialers: dialers
                .into_iter()
                .map(|(_, peer, endpoint)| (peer, endpoint))
                .collect(),
            message_bytes_max: message_bytes_max(config),
        })
    }

    /// Serves `listener` and keeps streams to all peers open until `stop` is done; then accepts nothing more.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        tokio::spawn(router::run(self.shared.clone()));
        for (peer, endpoint) in self.dialers {
            tokio::spawn(peer.keep_open(endpoint, self.shared.metrics.clone()));
        }
        let door = TwinBftServer::new(Door::new(self.shared))
            .max_decoding_message_size(self.message_bytes_max)
            .max_encoding_message_size(usize::MAX);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let mut server = self.server;
        server
            .add_service(door)
            .serve_with_incoming_shutdown(incoming, stop)
            .await
            .context("serving clients and peers")
    }
}
