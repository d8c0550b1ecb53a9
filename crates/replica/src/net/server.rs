//! The door for clients, peers and operators.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use twinbft_types::wire::{PeerMessage, pb};
use twinbft_types::{ClientId, ProcessId, ReplicaId, TwinId};

use super::Shared;
use super::convert::{
    ClientFault, FramePart, read_from_wire, refusal, replica_frame, request_from_wire,
};
use super::identity::{IdentityError, name_of};
use super::outbox::Outbox;
use super::routes::StreamId;
use crate::driver::{ClientInput, peer_message_bytes};
use crate::metrics::Kind;

/// A frame to a client takes about so many bytes of parts.
const FRAME_BYTES_TARGET: usize = 256 << 10;
/// Streams that one peer may have open: its newest, and older ones that have not noticed yet.
const STREAMS_PER_PEER_MAX: usize = 4;

/// The service `twinbft.v1.TwinBft`.
pub(super) struct Door {
    shared: Arc<Shared>,
    peer_streams: BTreeMap<ReplicaId, Arc<AtomicUsize>>,
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let peer_streams = shared
            .peers
            .keys()
            .map(|peer| (*peer, Arc::default()))
            .collect();
        Self {
            shared,
            peer_streams,
        }
    }

    /// Who opens a stream, when `allowed`; otherwise the refusal, counted and logged.
    fn admit<T>(
        &self,
        request: &Request<T>,
        rule: &'static str,
        allowed: impl Fn(ProcessId) -> bool,
    ) -> Result<ProcessId, Status> {
        let chain = request.peer_certs();
        let identified = self
            .shared
            .directory
            .identify(chain.as_ref().map(|chain| &chain[..]));
        let refused = match identified {
            Ok(who) if allowed(who) => return Ok(who),
            Ok(who) => IdentityError::NotAllowed { who, rule },
            Err(error) => error,
        };
        let source = match &refused {
            IdentityError::NotAllowed { who, .. } => name_of(*who),
            IdentityError::NoCertificate
            | IdentityError::Unreadable(_)
            | IdentityError::Unknown(_)
            | IdentityError::Ambiguous(_) => "stranger".to_owned(),
        };
        self.shared.metrics.refused.add_one(&source, refused.name());
        tracing::warn!(
            from = request.remote_addr().map(tracing::field::display),
            reason = refused.name(),
            "stream refused: {refused}"
        );
        Err(Status::permission_denied(refused.to_string()))
    }
}

#[tonic::async_trait]
impl pb::twin_bft_server::TwinBft for Door {
    type ClientStream = ReplicaStream;

    async fn client(
        &self,
        request: Request<Streaming<pb::ClientFrame>>,
    ) -> Result<Response<ReplicaStream>, Status> {
        let who = self.admit(&request, "only clients send requests", |who| {
            matches!(who, ProcessId::Client(_))
        })?;
        let ProcessId::Client(key) = who else {
            unreachable!("only clients are admitted here");
        };
        let Some((id, outbox)) = self.shared.hub.open(key) else {
            self.shared
                .metrics
                .refused
                .add_one(&name_of(who), "too_many_streams");
            return Err(Status::resource_exhausted(
                "this client key has too many streams open; close some, or use more sessions on one stream",
            ));
        };
        self.shared.metrics.client_streams_opened.add_one();
        let session = ClientSession {
            shared: self.shared.clone(),
            name: name_of(who),
            key,
            id,
            outbox: outbox.clone(),
        };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(ReplicaStream {
            shared: self.shared.clone(),
            id,
            outbox,
            taken: Vec::new(),
        }))
    }

    async fn peer(
        &self,
        request: Request<Streaming<pb::PeerFrame>>,
    ) -> Result<Response<pb::PeerDone>, Status> {
        let peers = &self.shared.peers;
        let who = self.admit(
            &request,
            "only the other replicas of the cluster are peers",
            |who| match who {
                ProcessId::Twin(replica) => peers.contains_key(&replica),
                ProcessId::Client(_) | ProcessId::Admin(_) => false,
            },
        )?;
        let ProcessId::Twin(peer) = who else {
            unreachable!("only replicas are admitted here");
        };
        let open = self.peer_streams[&peer].clone();
        if open.fetch_add(1, Ordering::Relaxed) >= STREAMS_PER_PEER_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            self.shared
                .metrics
                .refused
                .add_one(&name_of(who), "too_many_streams");
            return Err(Status::resource_exhausted(
                "this peer has too many streams open",
            ));
        }
        self.shared.metrics.peer_streams_opened.add_one();
        tracing::debug!(%peer, "a peer's stream is open");
        let ended = self.read_peer(peer, request.into_inner()).await;
        open.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.peer_streams_closed.add_one();
        tracing::debug!(%peer, error = ended.as_ref().err().map(tracing::field::display), "a peer's stream ended");
        ended.map(|()| Response::new(pb::PeerDone {}))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        self.admit(
            &request,
            "only clients and administrators ask for the state",
            |who| match who {
                ProcessId::Client(_) | ProcessId::Admin(_) => true,
                ProcessId::Twin(_) => false,
            },
        )?;
        self.shared
            .metrics
            .received
            .of(Kind::StatusQuestion)
            .add_one();
        let json = super::status::document(&self.shared).await.to_string();
        Ok(Response::new(pb::StatusReply { json }))
    }

    async fn command(
        &self,
        request: Request<pb::CommandRequest>,
    ) -> Result<Response<pb::CommandReply>, Status> {
        let who = self.admit(&request, "only administrators give commands", |who| {
            matches!(who, ProcessId::Admin(_))
        })?;
        self.shared.metrics.received.of(Kind::Command).add_one();
        match request.into_inner().command {
            Some(pb::command_request::Command::Readmit(readmit)) => {
                let twin = u8::try_from(readmit.twin).map(TwinId);
                let twin = twin.map_err(|_| Status::invalid_argument("there is no such twin"))?;
                tracing::warn!(by = name_of(who), %twin, "told to listen to a sibling again");
                super::command::readmit(&self.shared, twin).await?;
            }
            None => {
                return Err(Status::invalid_argument(
                    "no command that this version knows",
                ));
            }
        }
        Ok(Response::new(pb::CommandReply {}))
    }
}

impl Door {
    async fn read_peer(
        &self,
        peer: ReplicaId,
        mut frames: Streaming<pb::PeerFrame>,
    ) -> Result<(), Status> {
        let Shared { inbox, metrics, .. } = &*self.shared;
        let name = peer.to_string();
        while let Some(frame) = frames.message().await? {
            metrics.received.of(Kind::PeerFrame).add_one();
            for message in frame.messages {
                match PeerMessage::try_from(message) {
                    Ok(message) => {
                        metrics.received.of(Kind::of(&message)).add_one();
                        let bytes = peer_message_bytes(&message);
                        // A full queue holds up this stream, and through flow control the peer.
                        inbox
                            .peers
                            .push(bytes, (peer, message), || inbox.wake())
                            .await;
                    }
                    Err(error) => {
                        metrics.refused.add_one(&name, error.field);
                        tracing::debug!(%peer, "message dropped: {error}");
                    }
                }
            }
            inbox.wake();
        }
        Ok(())
    }
}

/// One client's stream, the way in.
struct ClientSession {
    shared: Arc<Shared>,
    name: String,
    key: u32,
    id: StreamId,
    outbox: Arc<Outbox<FramePart>>,
}

impl ClientSession {
    async fn run(self, mut frames: Streaming<pb::ClientFrame>) {
        loop {
            match frames.message().await {
                Ok(Some(frame)) => self.take_frame(frame).await,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(client = self.name, "stream ended: {error}");
                    break;
                }
            }
        }
        self.shared.hub.close(self.id);
        self.shared.metrics.client_streams_closed.add_one();
    }

    async fn take_frame(&self, frame: pb::ClientFrame) {
        let Shared {
            inbox,
            metrics,
            hub,
            ..
        } = &*self.shared;
        metrics.received.of(Kind::ClientFrame).add_one();
        let key = self.key;
        let client = |session| ClientId { key, session };
        let requests = frame.requests.iter().map(|request| client(request.session));
        hub.note(
            self.id,
            requests.chain(frame.queries.iter().map(|query| client(query.session))),
        );
        let requests = frame
            .requests
            .into_iter()
            .map(|request| request_from_wire(key, request));
        let reads = frame
            .queries
            .into_iter()
            .map(|query| read_from_wire(key, query));
        for taken in requests.chain(reads) {
            match taken {
                Ok(input) => {
                    metrics.received.of(kind(&input)).add_one();
                    // A full queue holds up this stream, and through flow control the client.
                    inbox
                        .clients
                        .push(input.bytes(), input, || inbox.wake())
                        .await;
                }
                Err(fault) => self.refuse(&fault),
            }
        }
        inbox.wake();
    }

    fn refuse(&self, fault: &ClientFault) {
        self.shared
            .metrics
            .refused
            .add_one(&self.name, fault.name());
        match fault {
            ClientFault::ForeignKey { session, number } => {
                let reason = twinbft_core::Refusal::UnknownClient;
                let part = FramePart::Refusal(pb::Refusal {
                    message: format!(
                        "the stream's certificate is {}'s and the request names another client key",
                        self.name
                    ),
                    ..refusal(*session, *number, reason)
                });
                self.outbox.push(part.bytes(), part);
            }
            ClientFault::Form(error) => {
                tracing::debug!(client = self.name, "message dropped: {error}");
            }
        }
    }
}

const fn kind(input: &ClientInput) -> Kind {
    match input {
        ClientInput::Request {
            retransmission: true,
            ..
        } => Kind::Retransmission,
        ClientInput::Request {
            retransmission: false,
            ..
        } => Kind::Request,
        ClientInput::Query { .. } => Kind::Query,
    }
}

/// One client's stream, the way out: takes all that has gathered as one frame.
pub(super) struct ReplicaStream {
    shared: Arc<Shared>,
    id: StreamId,
    outbox: Arc<Outbox<FramePart>>,
    taken: Vec<FramePart>,
}

impl Stream for ReplicaStream {
    type Item = Result<pb::ReplicaFrame, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this
            .outbox
            .poll_take(context, FRAME_BYTES_TARGET, &mut this.taken)
        {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(())) => {
                let sent = &this.shared.metrics.sent;
                sent.of(Kind::ReplicaFrame).add_one();
                let frame = replica_frame(this.taken.drain(..), this.shared.hub.view());
                sent.of(Kind::Reply).add(frame.replies.len() as u64);
                sent.of(Kind::Answer).add(frame.answers.len() as u64);
                sent.of(Kind::Refusal).add(frame.refusals.len() as u64);
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl Drop for ReplicaStream {
    fn drop(&mut self) {
        self.shared.hub.close(self.id);
    }
}
