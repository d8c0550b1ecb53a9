//! The load on one unreplicated server: the same stream, the same TLS, no replication and no MACs.

use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use futures_util::Stream;
use tokio::sync::mpsc;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};
use twinbft_cli::cluster::Cluster;
use twinbft_client::{FRAME_BYTES_MAX, FRAME_BYTES_TARGET};
use twinbft_types::wire::pb;
use twinbft_types::wire::pb::twin_bft_client::TwinBftClient;

use super::load::{Answered, Done, Lane, Path};
use super::workload::{Operation, Workload};

/// Client to server, server to client.
const STEPS: u8 = 2;
/// Requests that one frame takes at most.
const FRAME_REQUESTS_MAX: usize = 4096;

/// Streams to the server.
pub struct SingleLane {
    streams: Vec<(
        mpsc::UnboundedSender<pb::Request>,
        Streaming<pb::ReplicaFrame>,
    )>,
    /// The number of the last request of each place; a place has one at a time.
    seqs: Vec<u64>,
}

/// Everything that has gathered since the last frame, up to a size.
struct Gather {
    requests: mpsc::UnboundedReceiver<pb::Request>,
    taken: Vec<pb::Request>,
}

impl Stream for Gather {
    type Item = pb::ClientFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { requests, taken } = &mut *self;
        // A few large requests fill a frame as well as many small ones.
        let largest = taken.first().map_or(0, |request| request.operation.len());
        let count = FRAME_REQUESTS_MAX
            .min(FRAME_BYTES_TARGET / largest.max(1))
            .max(1);
        if taken.is_empty() {
            match requests.poll_recv_many(context, taken, count) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) => return Poll::Ready(None),
                Poll::Ready(_) => {}
            }
        }
        let mut bytes = 0;
        let fits = taken
            .iter()
            .take_while(|request| {
                bytes += request.operation.len();
                bytes <= FRAME_BYTES_TARGET
            })
            .count()
            .max(1);
        let rest = taken.split_off(fits);
        let requests = std::mem::replace(taken, rest);
        Poll::Ready(Some(pb::ClientFrame {
            requests,
            queries: Vec::new(),
        }))
    }
}

impl SingleLane {
    /// Connects `connections` times to the server at `address`, which has the certificate of replica h0/t0.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn connect(
        cluster: &Cluster,
        client: u32,
        address: &str,
        places: usize,
        connections: usize,
    ) -> anyhow::Result<Self> {
        let target = twinbft_client::Target::of(&cluster.config, &cluster.file, client)?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&target.tls.ca))
            .identity(Identity::from_pem(&target.tls.certificate, &target.tls.key))
            .domain_name(cluster.config.twin_tls_name(0, 0));
        let mut streams = Vec::new();
        for _ in 0..connections.clamp(1, places) {
            let channel = Endpoint::from_shared(format!("https://{address}"))
                .and_then(|endpoint| endpoint.tls_config(tls.clone()))
                .context("the client's certificate cannot be used")?
                .tcp_nodelay(true)
                .initial_stream_window_size(2 * 1024 * 1024)
                .initial_connection_window_size(8 * 1024 * 1024)
                .connect()
                .await
                .context("connecting to the unreplicated server")?;
            let (sender, requests) = mpsc::unbounded_channel();
            let gather = Gather {
                requests,
                taken: Vec::new(),
            };
            let frames = TwinBftClient::new(channel)
                .max_decoding_message_size(FRAME_BYTES_MAX)
                .client(gather)
                .await
                .context("opening a stream to the unreplicated server")?
                .into_inner();
            streams.push((sender, frames));
        }
        Ok(Self {
            streams,
            seqs: vec![0; places],
        })
    }

    fn take(&self, frame: Result<Option<pb::ReplicaFrame>, Status>, done: &mut Vec<Done>) {
        // Where a stream breaks, the run ends for want of success.
        if let Ok(Some(frame)) = frame {
            done.extend(frame.replies.into_iter().filter_map(|reply| {
                let place = usize::try_from(reply.session).ok()?;
                if self.seqs.get(place) != Some(&reply.seq) {
                    return None;
                }
                let Some(pb::reply::Outcome::Result(result)) = reply.outcome else {
                    return None;
                };
                Some(Done {
                    place,
                    outcome: Ok(Answered {
                        path: Path {
                            steps: Some(STEPS),
                            fast: false,
                        },
                        result: Some(result),
                    }),
                })
            }));
        }
    }
}

impl Lane for SingleLane {
    fn submit(&mut self, place: usize, operation: &Operation, workload: &Workload) {
        self.seqs[place] += 1;
        let request = pb::Request {
            session: place as u64,
            seq: self.seqs[place],
            operation: workload.encode(operation),
            ..pb::Request::default()
        };
        let (sender, _) = &self.streams[place % self.streams.len()];
        // A stream that broke gives no answers, and the run ends for want of success.
        let _ = sender.send(request);
    }

    fn flush(&mut self) {}

    async fn completions(&mut self, done: &mut Vec<Done>) {
        let frame = std::future::poll_fn(|context| {
            for (_, frames) in &mut self.streams {
                match Pin::new(frames).poll_next(context) {
                    Poll::Ready(Some(frame)) => return Poll::Ready(frame.map(Some)),
                    Poll::Ready(None) | Poll::Pending => {}
                }
            }
            Poll::Pending
        })
        .await;
        self.take(frame, done);
    }
}
