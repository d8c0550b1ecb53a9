//! Scripted replicas behind real sockets and mutual TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use twinbft_client::{ReplicaAddress, Target, TlsMaterial};
use twinbft_types::wire::pb::twin_bft_server::{TwinBft, TwinBftServer};
use twinbft_types::wire::{answer_to_wire, pb, query_from_wire};
use twinbft_types::{HostId, Nonce, ProcessId, ReplicaId, Seq, SignedRequest};

use super::{CLIENT_KEY, Cluster, Said};

/// What the hosts do.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Hosts that say nothing.
    pub silent: BTreeSet<u8>,
    /// Hosts whose twins agree on a wrong result.
    pub lying: BTreeSet<u8>,
    /// Versions in the answers to fast reads, by host.
    pub versions: BTreeMap<u8, u64>,
    /// All refuse everything for this reason.
    pub refuse: Option<pb::RefusalReason>,
    /// First sends are lost.
    pub lose_first_sends: bool,
    /// The stream of each replica ends after its first frame with requests, once.
    pub hang_up_once: bool,
}

type Frames = UnboundedSender<Result<pb::ReplicaFrame, Status>>;

struct State {
    cluster: Cluster,
    script: Script,
    streams: BTreeMap<ReplicaId, Frames>,
    slots: BTreeMap<(u64, u64), u64>,
    hung_up: BTreeSet<ReplicaId>,
    bad_macs: u64,
    requests: u64,
}

/// A running cluster of scripted replicas.
#[derive(Clone)]
pub struct Servers {
    state: Arc<Mutex<State>>,
    pub target: Target,
}

#[derive(Clone)]
struct Replica {
    id: ReplicaId,
    state: Arc<Mutex<State>>,
}

impl Servers {
    pub async fn start(hosts: u8, twins: u8, script: Script) -> Self {
        let cluster = Cluster::new(hosts, twins);
        let shape = cluster.shape;
        let authority = authority();
        let (client_pem, client_key) = leaf(&authority, "client-7.test.twinbft");
        let keys = cluster.client.clone().into();
        let state = Arc::new(Mutex::new(State {
            cluster,
            script,
            streams: BTreeMap::new(),
            slots: BTreeMap::new(),
            hung_up: BTreeSet::new(),
            bad_macs: 0,
            requests: 0,
        }));
        let mut replicas = Vec::new();
        for id in shape.all_replicas() {
            let tls_name = format!("h{}t{}.test.twinbft", id.host.0, id.twin.0);
            let (pem, key) = leaf(&authority, &tls_name);
            let tls = ServerTlsConfig::new()
                .identity(Identity::from_pem(pem, key))
                .client_ca_root(Certificate::from_pem(authority.pem()));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let uri = format!("https://{}", listener.local_addr().unwrap());
            let service = Replica {
                id,
                state: state.clone(),
            };
            tokio::spawn(
                Server::builder()
                    .tls_config(tls)
                    .unwrap()
                    .serve_with_incoming(
                        TwinBftServer::new(service).max_decoding_message_size(4 << 20),
                        TcpListenerStream::new(listener),
                    ),
            );
            replicas.push(ReplicaAddress {
                replica: id,
                uri,
                tls_name,
            });
        }
        Self {
            state,
            target: Target {
                shape,
                client: CLIENT_KEY,
                keys,
                replicas,
                tls: TlsMaterial {
                    ca: authority.pem().into(),
                    certificate: client_pem.into(),
                    key: client_key.into(),
                },
                session_window: 8,
                sessions_max: 1024,
                request_bytes_max: 1024 * 1024,
            },
        }
    }

    pub fn set_script(&self, script: Script) {
        self.state.lock().unwrap().script = script;
    }

    /// Requests that reached the twins, and those whose MAC was wrong.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.lock().unwrap();
        (state.requests, state.bad_macs)
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(authority: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    (certificate.pem(), key.serialize_pem())
}

impl State {
    fn handle(&mut self, at: ReplicaId, frame: pb::ClientFrame) {
        for request in frame.requests {
            let retransmission = request.retransmission;
            let signed = SignedRequest::try_from(request).unwrap();
            self.requests += 1;
            if !self.cluster.request_is_authentic(at, &signed) {
                self.bad_macs += 1;
                continue;
            }
            self.answer_request(at, &signed, retransmission);
        }
        for query in frame.queries {
            let (query, mac) = query_from_wire(query).unwrap();
            if !self.cluster.query_is_authentic(at, &query, &mac) {
                self.bad_macs += 1;
                continue;
            }
            let host = at.host.0;
            if self.script.silent.contains(&host) {
                continue;
            }
            let version = self.script.versions.get(&host).copied().unwrap_or(1);
            let nonce = Nonce(query.nonce.0);
            let (answer, result, mac) =
                self.cluster
                    .answer(at, query.client, nonce, version, &query.operation);
            let frame = pb::ReplicaFrame {
                answers: vec![answer_to_wire(&answer, result, mac)],
                ..Default::default()
            };
            self.send(at, frame);
        }
    }

    /// The leader alone causes the replies of all hosts; a retransmission makes each replica send its own.
    fn answer_request(&mut self, at: ReplicaId, signed: &SignedRequest, retransmission: bool) {
        let request = &signed.request;
        if let Some(reason) = self.script.refuse {
            let refusal = pb::Refusal {
                session: request.client.session,
                seq: request.seq.0,
                reason: reason.into(),
                message: String::new(),
            };
            let frame = pb::ReplicaFrame {
                refusals: vec![refusal],
                ..Default::default()
            };
            return self.send(at, frame);
        }
        if self.script.lose_first_sends && !retransmission {
            return;
        }
        let next = self.slots.len() as u64 + 1;
        let slot = *self
            .slots
            .entry((request.client.session, request.seq.0))
            .or_insert(next);
        let senders: Vec<ReplicaId> = if retransmission {
            vec![at]
        } else if at == ReplicaId::new(0, 0) {
            (0..self.cluster.shape.hosts())
                .map(|host| ReplicaId::new(host, 0))
                .collect()
        } else {
            vec![]
        };
        for sender in senders {
            let host = sender.host.0;
            if self.script.silent.contains(&host) {
                continue;
            }
            let result: &[u8] = if self.script.lying.contains(&host) {
                b"lie"
            } else {
                &request.operation
            };
            let mut said = Said::committed(slot, result);
            said.whole = retransmission || u64::from(host) == request.seq.0 % 3;
            let reply = self
                .cluster
                .certified(host, request.client, Seq(request.seq.0), &said);
            let frame = pb::ReplicaFrame {
                replies: vec![reply.into()],
                ..Default::default()
            };
            self.send(sender, frame);
        }
    }

    fn send(&self, from: ReplicaId, frame: pb::ReplicaFrame) {
        if let Some(stream) = self.streams.get(&from) {
            // The client may have gone.
            let _ = stream.send(Ok(frame));
        }
    }
}

#[tonic::async_trait]
impl TwinBft for Replica {
    type ClientStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::ReplicaFrame, Status>> + Send>>;

    async fn client(
        &self,
        request: Request<Streaming<pb::ClientFrame>>,
    ) -> Result<Response<Self::ClientStream>, Status> {
        let mut frames = request.into_inner();
        let (to, from) = unbounded_channel();
        let Replica { id, state } = self.clone();
        state.lock().unwrap().streams.insert(id, to);
        tokio::spawn(async move {
            while let Some(Ok(frame)) = frames.next().await {
                let mut state = state.lock().unwrap();
                if state.script.hang_up_once && state.hung_up.insert(id) {
                    state.streams.remove(&id);
                    return;
                }
                state.handle(id, frame);
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(from))))
    }

    async fn peer(
        &self,
        _: Request<Streaming<pb::PeerFrame>>,
    ) -> Result<Response<pb::PeerDone>, Status> {
        Err(Status::unimplemented("a scripted replica has no peers"))
    }

    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        Err(Status::unimplemented("a scripted replica has no status"))
    }

    async fn command(
        &self,
        _: Request<pb::CommandRequest>,
    ) -> Result<Response<pb::CommandReply>, Status> {
        Err(Status::unimplemented("a scripted replica obeys nobody"))
    }
}

/// The process whose key the client has.
pub const CLIENT: ProcessId = ProcessId::Client(CLIENT_KEY);
/// The host that the client asks first.
pub const FIRST_HOST: HostId = HostId(0);
