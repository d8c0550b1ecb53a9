//! The load on an etcd cluster: unary calls of its v3 API, as etcd's own clients make them, which since 3.4 hold a
//! connection to every endpoint and go round them call by call. Who asks the leader saves the hop that a follower needs
//! to pass the call on, so with one endpoint the figures depend on which one it is.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::future::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tonic::transport::{Channel, Endpoint};

use super::load::{Answered, Done, Lane, Path};
use super::workload::{Kind, Operation, Workload, key_name};

/// etcd's messages.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod pb {
    tonic::include_proto!("etcdserverpb");
}

use pb::kv_client::KvClient;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);

type Call = Pin<Box<dyn Future<Output = Done>>>;

/// Connections to an etcd cluster.
pub struct EtcdLane {
    connections: Vec<KvClient<Channel>>,
    /// The connection of the next call.
    next: usize,
    calls: FuturesUnordered<Call>,
    /// Where `null` asks for large replies: a linearizable read of a key that holds as much.
    null_reads: bool,
}

impl EtcdLane {
    /// Connects `connections` times to each endpoint and writes what will be read.
    ///
    /// # Errors
    /// When an endpoint cannot be reached.
    pub async fn connect(
        endpoints: &[String],
        connections: usize,
        workload: &Workload,
    ) -> anyhow::Result<Self> {
        let mut lane = Self {
            connections: Vec::new(),
            next: 0,
            calls: FuturesUnordered::new(),
            null_reads: workload.shape().reply_bytes as usize > workload.shape().request_bytes,
        };
        for endpoint in endpoints {
            for _ in 0..connections.max(1) {
                let channel = Endpoint::from_shared(endpoint.clone())
                    .with_context(|| format!("{endpoint} is no address; write http://host:port"))?
                    .tcp_nodelay(true)
                    .connect()
                    .await
                    .with_context(|| format!("connecting to etcd at {endpoint}; is it running?"))?;
                lane.connections.push(KvClient::new(channel));
            }
        }
        if lane.connections.is_empty() {
            bail!("no etcd endpoint is named");
        }
        lane.prepare(workload).await?;
        Ok(lane)
    }

    async fn prepare(&mut self, workload: &Workload) -> anyhow::Result<()> {
        let shape = workload.shape();
        let keys = match shape.kind {
            Kind::Null => 1,
            Kind::Kv => shape.keys,
        };
        let value = match shape.kind {
            Kind::Null => Bytes::from(vec![b'v'; shape.reply_bytes as usize]),
            Kind::Kv => workload.value().clone(),
        };
        for key in 0..keys {
            let put = pb::PutRequest {
                key: key_name(key),
                value: value.clone(),
            };
            self.connections[0]
                .put(put)
                .await
                .context("writing to etcd before the load")?;
        }
        Ok(())
    }
}

async fn put(mut client: KvClient<Channel>, key: u32, value: Bytes) -> Result<(), String> {
    let put = pb::PutRequest {
        key: key_name(key),
        value,
    };
    let call = tokio::time::timeout(CALL_TIMEOUT, client.put(put));
    match call.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(format!("{}: {}", status.code(), status.message())),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn read(mut client: KvClient<Channel>, key: u32, bytes: usize) -> Result<(), String> {
    let range = pb::RangeRequest { key: key_name(key) };
    let call = tokio::time::timeout(CALL_TIMEOUT, client.range(range));
    match call.await {
        Ok(Ok(reply)) => match reply.into_inner().kvs.first() {
            Some(found) if found.value.len() == bytes => Ok(()),
            Some(found) => Err(format!(
                "a value of {} bytes instead of {bytes}",
                found.value.len()
            )),
            None => Err("the key is gone".to_owned()),
        },
        Ok(Err(status)) => Err(format!("{}: {}", status.code(), status.message())),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

impl Lane for EtcdLane {
    fn submit(&mut self, place: usize, operation: &Operation, workload: &Workload) {
        let client = self.connections[self.next].clone();
        self.next = (self.next + 1) % self.connections.len();
        let shape = workload.shape();
        let value = workload.value().clone();
        let reads = self.null_reads;
        let operation = operation.clone();
        self.calls.push(Box::pin(async move {
            let outcome = match operation {
                Operation::Null if reads => read(client, 0, shape.reply_bytes as usize).await,
                Operation::Null => put(client, 0, value).await,
                Operation::Read(key) => read(client, key, shape.request_bytes).await,
                Operation::Write(key) => put(client, key, value).await,
            };
            Done {
                place,
                outcome: outcome.map(|()| Answered {
                    path: Path::default(),
                    result: None,
                }),
            }
        }));
    }

    fn flush(&mut self) {}

    async fn completions(&mut self, done: &mut Vec<Done>) {
        if self.calls.is_empty() {
            return std::future::pending().await;
        }
        done.extend(self.calls.next().await);
        while let Some(Some(more)) = self.calls.next().now_or_never() {
            done.push(more);
        }
    }
}
