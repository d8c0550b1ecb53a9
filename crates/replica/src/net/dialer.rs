//! This replica's messages to one peer: a stream that is opened again whenever it breaks.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use serde::Serialize;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Request, Status};
use twinbft_types::ReplicaId;
use twinbft_types::wire::pb;

use super::convert::put_messages;
use super::outbox::Outbox;
use crate::metrics::{Kind, NetMetrics};
use crate::queues::QueueStatus;

const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(2);
/// A stream that lived so long was a good one: the next back-off begins anew.
const GOOD_STREAM: Duration = Duration::from_secs(2);
/// Messages that wait for one peer; the oldest are dropped: the protocol repeats what matters.
pub const PEER_OUTBOX_MAX: usize = 4096;
/// Bytes of them.
pub const PEER_OUTBOX_BYTES_MAX: usize = 8 << 20;
/// A frame to a peer takes about so many bytes of messages.
pub const PEER_FRAME_BYTES_TARGET: usize = 512 << 10;

/// Where the connection to a peer stands. Every state has a name.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum PeerState {
    /// TCP and TLS are under way.
    Connecting,
    /// The stream is open.
    Connected,
    /// The next attempt waits.
    BackingOff {
        /// Why the last one failed.
        last_error: String,
        /// For how long.
        wait_ms: u64,
    },
}

/// What operators see of a peer.
#[derive(Clone, Debug, Serialize)]
pub struct PeerReport {
    /// Who.
    pub peer: String,
    /// Where.
    pub address: String,
    /// How it stands.
    #[serde(flatten)]
    pub state: PeerState,
    /// Times that a stream was opened.
    pub connects: u64,
    /// What waits for it.
    pub queue: QueueStatus,
}

/// One peer and what waits for it.
pub(super) struct Peer {
    id: ReplicaId,
    address: String,
    outbox: Arc<Outbox<Bytes>>,
    state: Mutex<(PeerState, u64)>,
}

impl Peer {
    pub(super) fn new(id: ReplicaId, address: String) -> Self {
        Self {
            id,
            address,
            outbox: Arc::new(Outbox::new(PEER_OUTBOX_MAX, PEER_OUTBOX_BYTES_MAX)),
            state: Mutex::new((PeerState::Connecting, 0)),
        }
    }

    /// Adds an encoded message.
    pub(super) fn send(&self, message: Bytes) {
        self.outbox.push(message.len(), message);
    }

    fn set(&self, state: PeerState) {
        let mut held = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        held.1 += u64::from(matches!(state, PeerState::Connected));
        held.0 = state;
    }

    pub(super) fn report(&self) -> PeerReport {
        let (state, connects) = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        PeerReport {
            peer: self.id.to_string(),
            address: self.address.clone(),
            state,
            connects,
            queue: self.outbox.status(),
        }
    }

    /// Keeps a stream open, for ever.
    pub(super) async fn keep_open(self: Arc<Self>, endpoint: Endpoint, metrics: Arc<NetMetrics>) {
        let mut back_off = BACK_OFF_MIN;
        let mut said = String::new();
        loop {
            self.set(PeerState::Connecting);
            let began = Instant::now();
            let last_error = self.run_once(&endpoint, &metrics).await;
            if began.elapsed() >= GOOD_STREAM {
                back_off = BACK_OFF_MIN;
            }
            // Once for each new reason: an unreachable peer must not fill the log.
            if said == last_error {
                tracing::debug!(peer = %self.id, address = self.address, "not connected: {last_error}");
            } else {
                tracing::info!(peer = %self.id, address = self.address, "not connected, trying again: {last_error}");
                said.clone_from(&last_error);
            }
            let wait = back_off.mul_f64(rand::random_range(0.5..1.0));
            back_off = (back_off * 2).min(BACK_OFF_MAX);
            self.set(PeerState::BackingOff {
                last_error,
                wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            });
            tokio::time::sleep(wait).await;
        }
    }

    /// Connects and streams until something breaks; says what.
    async fn run_once(&self, endpoint: &Endpoint, metrics: &Arc<NetMetrics>) -> String {
        let channel = match endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => return with_causes(&error),
        };
        let mut grpc = tonic::client::Grpc::new(channel);
        if let Err(error) = grpc.ready().await {
            return with_causes(&error);
        }
        self.set(PeerState::Connected);
        tracing::debug!(peer = %self.id, "connected");
        let frames = Frames {
            outbox: self.outbox.clone(),
            metrics: metrics.clone(),
        };
        let path = PathAndQuery::from_static("/twinbft.v1.TwinBft/Peer");
        match grpc
            .client_streaming(Request::new(frames), path, FrameCodec)
            .await
        {
            Ok(_done) => "the peer ended the stream".to_owned(),
            Err(status) => format!("{}: {}", status.code(), status.message()),
        }
    }
}

/// An error with what caused it, each thing once: tonic's own text is "transport error".
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// All that has gathered for a peer, frame by frame.
struct Frames {
    outbox: Arc<Outbox<Bytes>>,
    metrics: Arc<NetMetrics>,
}

impl Stream for Frames {
    type Item = Vec<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Vec<Bytes>>> {
        let mut frame = Vec::new();
        match self
            .outbox
            .poll_take(context, PEER_FRAME_BYTES_TARGET, &mut frame)
        {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(())) => {
                self.metrics.sent.of(Kind::PeerFrame).add_one();
                Poll::Ready(Some(frame))
            }
        }
    }
}

/// Sends messages that are encoded already, so that a message to several peers is encoded once.
#[derive(Clone, Copy, Debug, Default)]
struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Vec<Bytes>;
    type Decode = pb::PeerDone;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for FrameCodec {
    type Item = Vec<Bytes>;
    type Error = Status;

    fn encode(&mut self, frame: Vec<Bytes>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        put_messages(&frame, buffer);
        Ok(())
    }
}

impl Decoder for FrameCodec {
    type Item = pb::PeerDone;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<pb::PeerDone>, Status> {
        use bytes::Buf as _;
        buffer.advance(buffer.remaining());
        Ok(Some(pb::PeerDone {}))
    }
}
