//! Which cluster, and as which client.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use twinbft_config::{ClusterConfig, ConfigError, Layout};
use twinbft_types::{
    HostId, KeyContext, KeyError, KeyRing, ProcessId, PublicKey, ReplicaId, SecretKey, Shape,
    TwinId,
};

use crate::session::SharedKeys;

/// Where a replica is reached.
#[derive(Clone, Debug)]
pub struct ReplicaAddress {
    /// Which replica.
    pub replica: ReplicaId,
    /// `https://address:port`.
    pub uri: String,
    /// The name in its certificate.
    pub tls_name: String,
}

/// What a client shows and asks to see when it connects. All PEM.
#[derive(Clone)]
pub struct TlsMaterial {
    /// The authority that signs every certificate of the cluster.
    pub ca: Vec<u8>,
    /// The client's certificate.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsMaterial(…)")
    }
}

/// A cluster as one client sees it.
#[derive(Clone, Debug)]
pub struct Target {
    /// `N` and `m`.
    pub shape: Shape,
    /// The number of the client's key.
    pub client: u32,
    /// The MAC keys.
    pub keys: SharedKeys,
    /// All replicas, by host, then twin.
    pub replicas: Vec<ReplicaAddress>,
    /// TLS.
    pub tls: TlsMaterial,
    /// `session_window` of `cluster.toml`.
    pub session_window: u64,
    /// `sessions_max` of `cluster.toml`: more sessions of one key push each other out.
    pub sessions_max: usize,
    /// `request_bytes_max` of `cluster.toml`.
    pub request_bytes_max: usize,
}

/// Why a cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The configuration does not stand.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No such client.
    #[error("{} has no client {client}; it has {known}. Choose one of them, or add a [[client]] on every host", .file.display())]
    NoSuchClient {
        /// The configuration.
        file: PathBuf,
        /// What was asked for.
        client: u32,
        /// How many there are.
        known: String,
    },
    /// A file is missing or may not be read.
    #[error("cannot read the {what} {}: {cause}; `twinbft init` makes it, and whoever runs the client needs to own it", .file.display())]
    File {
        /// What it is.
        what: &'static str,
        /// Which.
        file: PathBuf,
        /// What went wrong.
        cause: std::io::Error,
    },
    /// A key does not stand.
    #[error("{what}: {cause}")]
    Key {
        /// Whose.
        what: String,
        /// What is wrong.
        cause: KeyError,
    },
    /// The secret key is another one's.
    #[error("{} does not belong to the public key of client {client} in {}; one of the two files is from another cluster", .key.display(), .file.display())]
    WrongKey {
        /// The key file.
        key: PathBuf,
        /// The client.
        client: u32,
        /// The configuration.
        file: PathBuf,
    },
    /// The numbers are out of range.
    #[error("a cluster of {hosts} hosts with {twins} twins each is out of range")]
    Shape {
        /// `N`.
        hosts: u8,
        /// `m`.
        twins: u8,
    },
}

/// `cluster.toml` itself, when the path names its directory.
#[must_use]
pub fn config_file(path: &Path) -> PathBuf {
    if path.is_dir() {
        Layout::new(path).config()
    } else {
        path.to_owned()
    }
}

impl Target {
    /// Reads `cluster.toml` (`path` is the file or its directory) and the client's keys beside it.
    ///
    /// # Errors
    /// Says which file is wrong and what to do.
    pub fn load(path: &Path, client: u32) -> Result<Self, TargetError> {
        let file = config_file(path);
        let config = ClusterConfig::load(&file)?;
        Self::of(&config, &file, client)
    }

    /// Of a configuration that was read from `file`; the keys lie beside it.
    ///
    /// # Errors
    /// Says which file is wrong and what to do.
    pub fn of(config: &ClusterConfig, file: &Path, client: u32) -> Result<Self, TargetError> {
        let layout = Layout::of_file(file);
        let (hosts, twins) = (config.host_count(), config.twin_count());
        let shape = Shape::new(hosts, twins).ok_or(TargetError::Shape { hosts, twins })?;
        let public = public_keys(config)?;
        let Some(expected) = public.get(&ProcessId::Client(client)) else {
            return Err(TargetError::NoSuchClient {
                file: file.to_owned(),
                client,
                known: match config.clients.len() {
                    0 => "none".to_owned(),
                    count => format!("client 0 to {}", count - 1),
                },
            });
        };
        let key_file = layout.client_key(client);
        let hex = read(&key_file, "key of the client")?;
        let secret = SecretKey::from_hex(&String::from_utf8_lossy(&hex)).map_err(|cause| {
            TargetError::Key {
                what: key_file.display().to_string(),
                cause,
            }
        })?;
        if secret.public() != *expected {
            return Err(TargetError::WrongKey {
                key: key_file,
                client,
                file: file.to_owned(),
            });
        }
        let context = KeyContext {
            cluster_id: config.cluster.id.clone(),
            key_epoch: config.cluster.key_epoch,
        };
        let (certificate, key) = layout.client_tls(client);
        Ok(Self {
            shape,
            client,
            keys: KeyRing::new(context, ProcessId::Client(client), secret, public).into(),
            replicas: addresses(config),
            tls: TlsMaterial {
                ca: read(&layout.tls_ca(&config.tls), "certificate of the authority")?,
                certificate: read(&certificate, "certificate of the client")?,
                key: read(&key, "TLS key of the client")?,
            },
            session_window: config.protocol.session_window,
            sessions_max: config.protocol.sessions_max,
            request_bytes_max: config.protocol.request_bytes_max,
        })
    }
}

fn read(file: &Path, what: &'static str) -> Result<Vec<u8>, TargetError> {
    std::fs::read(file).map_err(|cause| TargetError::File {
        what,
        file: file.to_owned(),
        cause,
    })
}

fn addresses(config: &ClusterConfig) -> Vec<ReplicaAddress> {
    config
        .hosts
        .iter()
        .flat_map(|host| host.twins.iter().map(move |twin| (host, twin)))
        .map(|(host, twin)| ReplicaAddress {
            replica: ReplicaId::new(host.id, twin.id),
            uri: format!("https://{}", twin.listen),
            tls_name: config.twin_tls_name(host.id, twin.id),
        })
        .collect()
}

/// The public keys of all processes.
fn public_keys(config: &ClusterConfig) -> Result<BTreeMap<ProcessId, PublicKey>, TargetError> {
    let twins = config.hosts.iter().flat_map(|host| {
        host.twins.iter().map(|twin| {
            let replica = ReplicaId {
                host: HostId(host.id),
                twin: TwinId(twin.id),
            };
            (ProcessId::Twin(replica), &twin.public_key)
        })
    });
    let clients = config
        .clients
        .iter()
        .map(|client| (ProcessId::Client(client.id), &client.public_key));
    let admins = config
        .admins
        .iter()
        .map(|admin| (ProcessId::Admin(admin.id), &admin.public_key));
    twins
        .chain(clients)
        .chain(admins)
        .map(|(process, hex)| {
            let key = PublicKey::from_hex(hex).map_err(|cause| TargetError::Key {
                what: format!("the public key of {process:?} in cluster.toml"),
                cause,
            })?;
            Ok((process, key))
        })
        .collect()
}
