//! From `cluster.toml` and the files beside it to what the parts of a replica want.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use twinbft_app::{KvOptions, NullOptions, ServiceOptions};
use twinbft_config::{ClusterConfig, Durability, Execution, Layout, OnCulprit};
use twinbft_core::{CoreConfig, Tuning};
use twinbft_types::{
    Digest, Epoch, HostId, KeyContext, KeyRing, ProcessId, PublicKey, ReplicaId, SecretKey, Shape,
    TwinId,
};

use crate::net::TlsFiles;
use crate::storage::Policy;

/// Reads a secret file that nobody but its owner may read.
///
/// # Errors
/// When it cannot be read, or others may read it.
pub fn read_secret(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).with_context(|| {
        format!("reading {shown}; `twinbft init` and `twinbft keygen` make key files")
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("{shown} may be read or changed by others (mode {mode:03o}); run: chmod 600 {shown}");
    }
    std::fs::read(path).with_context(|| format!("reading {shown}"))
}

/// The TLS material of a replica.
///
/// # Errors
/// When a file is missing or open to others.
pub fn tls_files(
    layout: &Layout,
    config: &ClusterConfig,
    me: ReplicaId,
) -> anyhow::Result<TlsFiles> {
    let (certificate, key) = layout.twin_tls(me.host.0, me.twin.0);
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    Ok(TlsFiles {
        ca: read(&layout.tls_ca(&config.tls))?,
        certificate: read(&certificate)?,
        key: read_secret(&key)?,
    })
}

/// The MAC keys that this replica shares with every process.
///
/// # Errors
/// When a key is missing or wrong.
pub fn key_ring(layout: &Layout, config: &ClusterConfig, me: ReplicaId) -> anyhow::Result<KeyRing> {
    let path = layout.twin_key(me.host.0, me.twin.0);
    let text = String::from_utf8(read_secret(&path)?)
        .with_context(|| format!("{} is no text", path.display()))?;
    let secret =
        SecretKey::from_hex(&text).with_context(|| format!("reading {}", path.display()))?;
    let public = public_keys(config)?;
    if public.get(&ProcessId::Twin(me)) != Some(&secret.public()) {
        bail!(
            "{} is not the key of {me} in cluster.toml, which has {}; put the right key file there, or its public half ({}) into cluster.toml on every host",
            path.display(),
            public
                .get(&ProcessId::Twin(me))
                .map_or_else(|| "none".to_owned(), ToString::to_string),
            secret.public()
        );
    }
    let context = KeyContext {
        cluster_id: config.cluster.id.clone(),
        key_epoch: config.cluster.key_epoch,
    };
    Ok(KeyRing::new(context, ProcessId::Twin(me), secret, public))
}

fn public_keys(config: &ClusterConfig) -> anyhow::Result<BTreeMap<ProcessId, PublicKey>> {
    let twins = config.hosts.iter().flat_map(|host| {
        host.twins.iter().map(|twin| {
            let id = ReplicaId {
                host: HostId(host.id),
                twin: TwinId(twin.id),
            };
            (ProcessId::Twin(id), &twin.public_key)
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
        .map(|(id, text)| {
            let key = PublicKey::from_hex(text).with_context(|| {
                format!(
                    "the public key of {} in cluster.toml",
                    crate::net::name_of(id)
                )
            })?;
            Ok((id, key))
        })
        .collect()
}

/// What the core must know.
///
/// # Panics
/// When the configuration was not made by its parser.
#[must_use]
pub fn core_config(config: &ClusterConfig, me: ReplicaId, keys: KeyRing) -> CoreConfig {
    let protocol = &config.protocol;
    let us = |ms: u64| ms.saturating_mul(1000);
    CoreConfig {
        shape: Shape::new(config.host_count(), config.twin_count())
            .expect("the parser checks N and m"),
        me,
        keys,
        epoch: Epoch(0),
        config_digest: Digest::of(&config.agreed_bytes()),
        quarantines: config.evidence.on_culprit == OnCulprit::Quarantine,
        tuning: Tuning {
            execution: match protocol.execution {
                Execution::Committed => twinbft_core::Execution::Committed,
                Execution::Tentative => twinbft_core::Execution::Tentative,
            },
            checkpoint_slots: protocol.checkpoint_slots,
            batch_requests_max: protocol.batch_requests_max,
            batch_bytes_max: protocol.batch_bytes_max,
            pipeline_depth: protocol.pipeline_depth,
            session_window: protocol.session_window,
            sessions_max: protocol.sessions_max,
            session_result_bytes_max: protocol.session_result_bytes_max,
            request_bytes_max: protocol.request_bytes_max,
            pending_requests_max: protocol.pending_requests_max,
            trim_multiple: twinbft_config::TRIM_MULTIPLE,
            trim_entries: protocol.trim_entries,
            trim_bytes: twinbft_config::TRIM_BYTES,
            clock_bound_us: us(protocol.clock_bound_ms),
            need_after_us: us(protocol.need_after_ms),
            fetch_after_us: us(protocol.fetch_after_ms),
            suspect_after_us: us(protocol.suspect_after_ms),
            suspect_doublings_max: protocol.suspect_doublings_max,
            serve_all_bytes_max: protocol.serve_all_bytes_max,
            transfer_bytes_per_s: config.storage.transfer_bytes_per_s,
            retain_bytes: config.storage.retain_bytes,
        },
    }
}

/// How the service is opened.
#[must_use]
pub fn service_options(config: &ClusterConfig, data: &Path) -> ServiceOptions {
    let service = &config.service;
    ServiceOptions {
        name: service.name.clone(),
        directory: Some(data.join("service")),
        durability: match config.storage.durability {
            Durability::Memory => twinbft_app::Durability::Memory,
            Durability::Group | Durability::Sync => twinbft_app::Durability::Sync,
        },
        null: NullOptions {
            reply_bytes_default: service.null.reply_bytes_default,
            reply_bytes_max: service.null.reply_bytes_max,
        },
        kv: KvOptions {
            cache_bytes: service.kv.cache_bytes,
            key_bytes_max: service.kv.key_bytes_max,
            value_bytes_max: service.kv.value_bytes_max,
            page_items_max: service.kv.page_items_max,
            page_bytes_max: service.kv.page_bytes_max,
        },
    }
}

/// How the write-ahead log is opened.
#[must_use]
pub const fn storage_policy(config: &ClusterConfig) -> Policy {
    match config.storage.durability {
        Durability::Memory => Policy::Memory,
        Durability::Group => Policy::Group {
            commit: Duration::from_millis(config.storage.group_commit_ms),
        },
        Durability::Sync => Policy::Sync,
    }
}

/// Names cluster, host and twin in the write-ahead log.
#[must_use]
pub fn owner(config: &ClusterConfig, me: ReplicaId) -> Digest {
    Digest::of_canonical(b"tbft/wal", &(&config.cluster.id, me))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("h0t0.key");
        std::fs::write(&path, "00").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        let remedy = format!("chmod 600 {}", path.display());
        assert!(
            error.contains("mode 640") && error.contains(&remedy),
            "{error}"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_secret(&path).unwrap(), b"00");
    }

    #[test]
    fn a_key_that_is_not_the_one_in_the_configuration_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let mut config = ClusterConfig::example(1, 2, 0, 7000);
        let secrets: Vec<SecretKey> = (1..=3).map(|n| SecretKey::from_bytes([n; 32])).collect();
        for (twin, secret) in config.hosts[0].twins.iter_mut().zip(&secrets) {
            twin.public_key = secret.public().to_string();
        }
        config.admins.clear();
        let me = ReplicaId::new(0, 1);
        let write = |secret: &SecretKey| {
            let path = layout.twin_key(0, 1);
            std::fs::create_dir_all(layout.keys()).unwrap();
            std::fs::write(&path, secret.to_hex()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write(&secrets[2]);
        let error = key_ring(&layout, &config, me).unwrap_err().to_string();
        assert!(error.contains("is not the key of h0/t1"), "{error}");
        write(&secrets[1]);
        assert!(
            key_ring(&layout, &config, me)
                .unwrap()
                .knows(ProcessId::Twin(ReplicaId::new(0, 0)))
        );
    }

    /// The configuration's rule allows for all that the core may have to carry on.
    #[test]
    fn a_trim_of_the_core_fits_what_the_configuration_asks_for() {
        for (twins, checkpoint_slots, batch_requests_max, pipeline_depth) in [
            (2, 128, 256, 8),
            (3, 2, 1, 1),
            (8, 1024, 4096, 1),
            (8, 128, 16, 128),
        ] {
            let mut config = ClusterConfig::example(3, twins, 1, 7000);
            config.protocol.checkpoint_slots = checkpoint_slots;
            config.protocol.batch_requests_max = batch_requests_max;
            config.protocol.pipeline_depth = pipeline_depth;
            let shape = Shape::new(3, twins).unwrap();
            let tuning = core_config(&config, ReplicaId::new(0, 0), no_keys()).tuning;
            let most = tuning.host_bounds().state_bytes_max(shape);
            let needed = twinbft_config::state_bytes_needed(&config);
            assert!(most <= needed, "{most} bytes, the rule asks for {needed}");
        }
    }

    fn no_keys() -> KeyRing {
        let context = KeyContext {
            cluster_id: String::new(),
            key_epoch: 0,
        };
        let me = ProcessId::Twin(ReplicaId::new(0, 0));
        KeyRing::new(context, me, SecretKey::from_bytes([1; 32]), BTreeMap::new())
    }

    #[test]
    fn the_core_gets_the_numbers_of_the_file() {
        let mut config = ClusterConfig::example(3, 2, 1, 7000);
        config.protocol.need_after_ms = 17;
        config.protocol.pipeline_depth = 3;
        let context = KeyContext {
            cluster_id: String::new(),
            key_epoch: 0,
        };
        let me = ReplicaId::new(2, 1);
        let keys = KeyRing::new(
            context,
            ProcessId::Twin(me),
            SecretKey::from_bytes([1; 32]),
            BTreeMap::new(),
        );
        let core = core_config(&config, me, keys);
        assert_eq!(
            (core.tuning.need_after_us, core.tuning.pipeline_depth),
            (17_000, 3)
        );
        assert_eq!(
            (core.shape.hosts(), core.shape.twins(), core.me),
            (3, 2, me)
        );
    }
}
