//! Asks one process for its JSON document. Whatever comes back, or does not, ends within a bound.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use twinbft_cli::cluster::Cluster;
use twinbft_types::wire::pb;
use twinbft_types::wire::pb::twin_bft_client::TwinBftClient;

/// How long one process may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest document that is read.
const DOCUMENT_BYTES_MAX: usize = 8 << 20;

/// What came of asking a process.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Its document.
    Document(Value),
    /// None, and why.
    Unreachable(String),
    /// A broker whose socket is on another machine.
    Elsewhere,
}

/// A process and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The host.
    pub host: u8,
    /// The twin; none for the broker.
    pub twin: Option<u8>,
    /// Its answer.
    pub answer: Answer,
}

impl Asked {
    /// A field of its document.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Value> {
        match &self.answer {
            Answer::Document(document) => document.get(name),
            Answer::Unreachable(_) | Answer::Elsewhere => None,
        }
    }

    /// What a replica says that it does.
    #[must_use]
    pub fn state(&self) -> Option<&str> {
        self.field("state")?.as_str()
    }
}

/// Whom to ask, and with what credentials.
pub struct Asker {
    replicas: Vec<(u8, u8, Endpoint)>,
    brokers: Vec<(u8, PathBuf)>,
}

impl Asker {
    /// Reads the certificate of administrator `admin`.
    ///
    /// # Errors
    /// When there is no such administrator or its files cannot be read.
    pub fn new(cluster: &Cluster, admin: u32) -> anyhow::Result<Self> {
        let config = &cluster.config;
        if !config.admins.iter().any(|known| known.id == admin) {
            bail!(
                "{} has no [[admin]] with id = {admin}",
                cluster.file.display()
            );
        }
        let read = |path: PathBuf| {
            std::fs::read(&path).with_context(|| {
                format!(
                    "reading {}; an administrator's machine needs it",
                    path.display()
                )
            })
        };
        let (certificate, key) = cluster.layout.admin_tls(admin);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(
                cluster.layout.tls_ca(&config.tls),
            )?))
            .identity(Identity::from_pem(read(certificate)?, read(key)?));
        let mut replicas = Vec::new();
        for host in &config.hosts {
            for twin in &host.twins {
                let tls = tls
                    .clone()
                    .domain_name(config.twin_tls_name(host.id, twin.id));
                let endpoint = Endpoint::from_shared(format!("https://{}", twin.listen))
                    .context("making an address")?
                    .connect_timeout(TIMEOUT)
                    .timeout(TIMEOUT)
                    .tls_config(tls)
                    .context("the administrator's certificate cannot be used")?;
                replicas.push((host.id, twin.id, endpoint));
            }
        }
        let brokers = config.hosts.iter();
        let brokers = brokers.map(|host| (host.id, cluster.layout.broker_socket(host.id)));
        Ok(Self {
            replicas,
            brokers: brokers.collect(),
        })
    }

    /// Tells the siblings of a twin to listen to it again; what each said, or why it did not.
    pub async fn readmit(&self, host: u8, twin: u8) -> Vec<(u8, Result<(), String>)> {
        let mut tasks = JoinSet::new();
        let siblings = self.replicas.iter();
        for (_, sibling, endpoint) in siblings.filter(|(h, t, _)| *h == host && *t != twin) {
            let (sibling, endpoint) = (*sibling, endpoint.clone());
            tasks.spawn(async move {
                let told = tokio::time::timeout(TIMEOUT, tell_readmit(&endpoint, twin)).await;
                let told =
                    told.unwrap_or_else(|_| bail!("no answer within {} s", TIMEOUT.as_secs()));
                (sibling, told.map_err(|error| format!("{error:#}")))
            });
        }
        let mut told = tasks.join_all().await;
        told.sort_by_key(|(sibling, _)| *sibling);
        told
    }

    /// Asks all processes at once. Ordered by host, the broker first.
    pub async fn ask_all(&self) -> Vec<Asked> {
        let mut tasks = JoinSet::new();
        for (host, twin, endpoint) in &self.replicas {
            let (host, twin, endpoint) = (*host, *twin, endpoint.clone());
            tasks.spawn(async move {
                let answer = bounded(ask_replica(&endpoint)).await;
                Asked {
                    host,
                    twin: Some(twin),
                    answer,
                }
            });
        }
        for (host, socket) in &self.brokers {
            let (host, socket) = (*host, socket.clone());
            tasks.spawn(async move {
                let answer = if socket.exists() {
                    bounded(ask_broker(&socket)).await
                } else {
                    Answer::Elsewhere
                };
                Asked {
                    host,
                    twin: None,
                    answer,
                }
            });
        }
        let mut asked = tasks.join_all().await;
        asked.sort_by_key(|asked| (asked.host, asked.twin));
        asked
    }
}

async fn bounded(ask: impl Future<Output = anyhow::Result<Value>>) -> Answer {
    match tokio::time::timeout(TIMEOUT, ask).await {
        Ok(Ok(document)) => Answer::Document(document),
        Ok(Err(error)) => Answer::Unreachable(format!("{error:#}")),
        Err(_) => Answer::Unreachable(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

async fn ask_replica(endpoint: &Endpoint) -> anyhow::Result<Value> {
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => bail!("{}", root_cause(&error)),
    };
    let mut client = TwinBftClient::new(channel).max_decoding_message_size(DOCUMENT_BYTES_MAX);
    match client.status(pb::StatusRequest {}).await {
        Ok(reply) => serde_json::from_str(&reply.get_ref().json).context("its answer is not JSON"),
        Err(status) => bail!("{}: {}", status.code(), status.message()),
    }
}

async fn tell_readmit(endpoint: &Endpoint, twin: u8) -> anyhow::Result<()> {
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => bail!("{}", root_cause(&error)),
    };
    let command = pb::command_request::Command::Readmit(pb::Readmit { twin: twin.into() });
    let request = pb::CommandRequest {
        command: Some(command),
    };
    match TwinBftClient::new(channel).command(request).await {
        Ok(_) => Ok(()),
        Err(status) => bail!("{}", status.message()),
    }
}

/// The innermost reason: what is around it says "transport error" and no more.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

async fn ask_broker(socket: &Path) -> anyhow::Result<Value> {
    let stream = UnixStream::connect(socket).await?;
    let limit = u64::try_from(DOCUMENT_BYTES_MAX).expect("a constant");
    let mut document = Vec::new();
    stream.take(limit).read_to_end(&mut document).await?;
    serde_json::from_slice(&document).context("its answer is not JSON")
}
