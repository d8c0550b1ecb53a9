//! `twinbft init`: everything that a new cluster needs, in one directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::ValueEnum;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use twinbft_config::{ClusterConfig, Durability, HOSTS_MAX, Layout, TWINS_MAX, TWINS_MIN};

use super::secret_file;

/// The most clients that `init` makes keys for; more can be added to the file.
const CLIENTS_MAX: u32 = 1000;

const CA_KEY_NOTE: &str = "\
# The key of this cluster's certificate authority. No running process needs it: keep it off-line. Whoever has it can
# make certificates that every process of the cluster accepts.
";

/// Make a new cluster: cluster.toml, keys and certificates
///
/// The cluster runs on this machine until you edit the addresses in cluster.toml. Secret halves are in files of
/// mode 0600 under keys/ and tls/; give every machine only its own.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory of the cluster; it is made when it is missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// N: physical machines; 3 tolerate one faulty host
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(HOSTS_MAX)))]
    hosts: u8,
    /// m: twins of each host; 2 detect one faulty twin, 3 mask it
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(i64::from(TWINS_MIN)..=i64::from(TWINS_MAX)))]
    twins: u8,
    /// Client keys
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=i64::from(CLIENTS_MAX)))]
    clients: u32,
    /// What the cluster replicates
    #[arg(long, value_enum, default_value_t = ServiceName::Kv)]
    service: ServiceName,
    /// Twin t of host h listens on 127.0.0.1, port P + 10h + t
    #[arg(long, value_name = "P", default_value_t = 7100, value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// What a replica's promises outlive: its process, or also the machine
    #[arg(long, value_enum, default_value_t = DurabilityName::Group)]
    durability: DurabilityName,
    /// Replace the configuration, keys and certificates of an earlier init
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ServiceName {
    /// A key-value store
    Kv,
    /// Nothing; measures everything else
    Null,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DurabilityName {
    /// Outlives the process
    Memory,
    /// Outlives the machine; many promises to one flush
    Group,
    /// Outlives the machine; each promise flushed at once
    Sync,
}

/// What to make; for `init` and for whoever makes a cluster of its own.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// `N`.
    pub hosts: u8,
    /// `m`.
    pub twins: u8,
    /// Client keys.
    pub clients: u32,
    /// One of `twinbft_config::SERVICES`.
    pub service: &'a str,
    /// Of twin 0 of host 0.
    pub base_port: u16,
    /// For every replica.
    pub durability: Durability,
}

/// Makes the cluster and says what to do next.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        hosts: args.hosts,
        twins: args.twins,
        clients: args.clients,
        service: match args.service {
            ServiceName::Kv => "kv",
            ServiceName::Null => "null",
        },
        base_port: args.base_port,
        durability: match args.durability {
            DurabilityName::Memory => Durability::Memory,
            DurabilityName::Group => Durability::Group,
            DurabilityName::Sync => Durability::Sync,
        },
    };
    let layout = Layout::new(&args.directory);
    clear(&layout, args.force)?;
    let config = create(&layout, plan)?;
    println!(
        "Made the cluster \"{}\" of {} hosts x {} twins in {}.",
        config.cluster.id,
        args.hosts,
        args.twins,
        args.directory.display()
    );
    println!("  {}  edit addresses here", layout.config().display());
    println!("  {}  secret keys, mode 0600", layout.keys().display());
    println!(
        "  {}  certificates; keep ca.key off-line",
        layout.tls().display()
    );
    println!("Next: twinbft up {}", args.directory.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that nothing of another cluster is in the way.
fn clear(layout: &Layout, force: bool) -> anyhow::Result<()> {
    let data = layout.directory().join("data");
    let mut old = vec![
        layout.config(),
        layout.keys(),
        layout.tls(),
        data.clone(),
        layout.run(),
    ];
    old.retain(|path| path.exists());
    let Some(first) = old.first() else {
        return Ok(());
    };
    if !force {
        bail!(
            "{} exists: choose another directory, or replace the cluster's identity with --force",
            first.display()
        );
    }
    if twinbft_cli::supervise::running(layout)?.is_some() {
        bail!(
            "the cluster is running: stop it with twinbft down {}",
            layout.directory().display()
        );
    }
    // A replica with new keys and old data would break promises that nobody could hold against it.
    if data.exists() && has_logs(&data)? {
        bail!(
            "{} holds the data of the old cluster: move it away first",
            data.display()
        );
    }
    for path in old {
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Whether any replica has written more than `init` did.
fn has_logs(data: &Path) -> anyhow::Result<bool> {
    for replica in fs::read_dir(data).with_context(|| format!("reading {}", data.display()))? {
        for file in fs::read_dir(replica?.path())? {
            if file?.file_name() != GENESIS {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The mark in a replica's data directory that says: this replica has never promised anything (protocol.md 8).
const GENESIS: &str = "genesis";

/// Writes all files of a new cluster.
///
/// # Errors
/// When a port would be above 65535 or a file cannot be written.
pub fn create(layout: &Layout, plan: Plan<'_>) -> anyhow::Result<ClusterConfig> {
    let last_port =
        u32::from(plan.base_port) + 10 * u32::from(plan.hosts - 1) + u32::from(plan.twins - 1);
    if last_port > u32::from(u16::MAX) {
        bail!("the last port would be {last_port}: choose a smaller --base-port");
    }
    let mut config = ClusterConfig::example(plan.hosts, plan.twins, plan.clients, plan.base_port);
    config.cluster.id = fresh_id()?;
    config.service.name = plan.service.to_owned();
    config.storage.durability = plan.durability;
    let directory = layout.directory();
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    secret_file::private_directory(&layout.keys())?;
    fs::create_dir_all(layout.tls())
        .with_context(|| format!("making {}", layout.tls().display()))?;
    write_keys(layout, &mut config)?;
    write_certificates(layout, &config)?;
    for host in &config.hosts {
        // The broker's: it never had an epoch.
        let run = layout.host_run(host.id);
        fs::create_dir_all(&run).with_context(|| format!("making {}", run.display()))?;
        let mark = format!("{}\n", config.cluster.id);
        secret_file::write(&run.join(GENESIS), &mark)?;
        for twin in &host.twins {
            let data = layout.twin_data(host.id, twin.id);
            secret_file::private_directory(&data)?;
            let mark = format!("{}\n", config.cluster.id);
            secret_file::write(&data.join(GENESIS), &mark)?;
        }
    }
    let text = config.to_toml();
    let parsed = ClusterConfig::parse(&text);
    assert!(
        parsed.as_ref() == Ok(&config),
        "what init writes is valid: {parsed:?}"
    );
    secret_file::write_public(&layout.config(), &text)?;
    Ok(config)
}

fn fresh_id() -> anyhow::Result<String> {
    let key = secret_file::fresh_key()?.public().to_string();
    Ok(format!("twin-{}", &key[..8]))
}

fn write_keys(layout: &Layout, config: &mut ClusterConfig) -> anyhow::Result<()> {
    let write = |path: &Path, public: &mut String| -> anyhow::Result<()> {
        let secret = secret_file::fresh_key()?;
        *public = secret.public().to_string();
        secret_file::write(path, &format!("{}\n", secret.to_hex()))
    };
    for host in &mut config.hosts {
        for twin in &mut host.twins {
            write(&layout.twin_key(host.id, twin.id), &mut twin.public_key)?;
        }
    }
    for client in &mut config.clients {
        write(&layout.client_key(client.id), &mut client.public_key)?;
    }
    for admin in &mut config.admins {
        write(&layout.admin_key(admin.id), &mut admin.public_key)?;
    }
    Ok(())
}

fn write_certificates(layout: &Layout, config: &ClusterConfig) -> anyhow::Result<()> {
    let ca_key = KeyPair::generate().context("making the authority's key")?;
    let mut params = CertificateParams::default();
    let name = format!("TwinBFT cluster {}", config.cluster.id);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = params
        .self_signed(&ca_key)
        .context("signing the authority's certificate")?;
    secret_file::write_public(&layout.tls_ca(&config.tls), &ca.pem())?;
    let ca_file = format!("{CA_KEY_NOTE}{}", ca_key.serialize_pem());
    secret_file::write(&layout.tls_ca_key(), &ca_file)?;

    let issuer = Issuer::new(params, ca_key);
    let sign = |name: &str, (certificate, key): (PathBuf, PathBuf)| -> anyhow::Result<()> {
        let own = KeyPair::generate().with_context(|| format!("making the TLS key of {name}"))?;
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&own, &issuer);
        let signed = signed.with_context(|| format!("signing the certificate of {name}"))?;
        secret_file::write_public(&certificate, &signed.pem())?;
        secret_file::write(&key, &own.serialize_pem())
    };
    for host in &config.hosts {
        for twin in &host.twins {
            let name = config.twin_tls_name(host.id, twin.id);
            sign(&name, layout.twin_tls(host.id, twin.id))?;
        }
    }
    for client in &config.clients {
        sign(
            &config.client_tls_name(client.id),
            layout.client_tls(client.id),
        )?;
    }
    for admin in &config.admins {
        sign(&config.admin_tls_name(admin.id), layout.admin_tls(admin.id))?;
    }
    Ok(())
}
