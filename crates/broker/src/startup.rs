//! Everything before the first twin: take over or start the log, keep the epoch, open the sockets.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Uid, chown};
use twinbft_postbox::LogInfo;
use twinbft_postbox::cluster_tag;
use twinbft_postbox::transport::local::fds;
use twinbft_postbox::transport::local::region::{LocalLog, ReadMemoryFile};
use twinbft_postbox::{socket_path, status_socket_path};

use crate::engine::{Broker, Sockets, readmit};
use crate::epoch::EpochFile;
use crate::guests::{KEPT_PREFIX, kept_guests};
use crate::journal::Journal;
use crate::options::BrokerOptions;
use crate::supervisor::Supervisor;

/// Names of logs in the supervisor's keeping start with this; epoch and generation follow.
const STORE_PREFIX: &str = "twinbft-log-";

/// Starts a broker: afterwards twins can connect. `Broker::run` serves them.
///
/// # Errors
/// What is wrong and what to do about it.
pub fn start(options: BrokerOptions) -> anyhow::Result<Broker> {
    if let Err(error) = options.validate() {
        bail!("the options are wrong: {error}");
    }
    let mut journal = Journal::new(options.log_format, options.host);
    let supervisor = Supervisor::from_environment()
        .context("cannot reach the supervisor that NOTIFY_SOCKET names")?;
    let lock = lock(&options.dir)?;
    let epoch_file = EpochFile::new(&options.state_dir)?;
    let kept_epoch = epoch_file.load()?;
    let last_epoch = kept_epoch.unwrap_or(0);
    // 8: a log that begins must not be taken for one that a twin knows.
    let floor = kept_epoch.map_or_else(EpochFile::above_all, |_| last_epoch);
    let inherited =
        fds::inherited().context("cannot take the descriptors that LISTEN_FDS names")?;
    let (of_guests, inherited) = inherited
        .into_iter()
        .partition(|(name, _)| options.is_on_xen() && name.starts_with(KEPT_PREFIX));
    let (log, earlier) = open_log(&options, (last_epoch, floor), inherited, &mut journal)?;
    let epoch = log.writer.info().epoch;
    if epoch != last_epoch {
        epoch_file.store(epoch)?;
    }
    let name = format!("{STORE_PREFIX}{epoch}-{}", log.writer.info().generation);
    if supervisor.is_there() && !supervisor.keep(&name, log.fd(), &earlier) {
        let text =
            "the supervisor did not confirm that it keeps the log; a restart may start a new epoch";
        journal.event(
            "store",
            format!("{text} (FileDescriptorStoreMax=2 or more, NotifyAccess=main)"),
        );
    }
    let sockets = open_sockets(&options)?;
    let isolation = if options.is_on_xen() {
        "twins are guests of this Xen host."
    } else {
        "twins share this kernel: their isolation is simulated."
    };
    let limits = log.writer.info().limits.clone();
    journal.event(
        "start",
        format!(
            "{isolation} epoch {epoch}, {} twins, log of {} bytes in {}",
            limits.twins,
            limits.log_bytes,
            options.dir.display()
        ),
    );
    if !options.is_on_xen() {
        return Broker::new(options, log, sockets, supervisor, journal, lock);
    }
    let (kept, useless) = kept_guests(of_guests, &mut journal);
    for name in useless {
        supervisor.forget(&name);
    }
    let readmitted = readmit(kept, &limits, &mut journal, &supervisor);
    let mut broker = Broker::new(options, log, sockets, supervisor, journal, lock)?;
    broker.serve_guests(readmitted)?;
    Ok(broker)
}

/// Two brokers on one directory would steal each other's twins.
fn lock(dir: &Path) -> anyhow::Result<Flock<File>> {
    fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the socket directory {}", dir.display()))?;
    let path = dir.join("broker.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "{} is locked ({error}): another broker runs in this directory",
            path.display()
        )
    })
}

/// The log of an earlier process when the supervisor kept one that verifies, a new epoch otherwise.
fn open_log(
    options: &BrokerOptions,
    (last_epoch, floor): (u64, u64),
    inherited: Vec<(String, OwnedFd)>,
    journal: &mut Journal,
) -> anyhow::Result<(LocalLog, Vec<String>)> {
    let mut names = Vec::new();
    let mut candidates = Vec::new();
    let mut epoch_max = last_epoch;
    for (name, fd) in inherited {
        if !name.starts_with(STORE_PREFIX) {
            journal.event(
                "store",
                format!("the supervisor passed a descriptor '{name}' that is not ours; ignored"),
            );
            continue;
        }
        match ReadMemoryFile::open(&fd) {
            Ok(region) => {
                epoch_max = epoch_max.max(region.info.epoch);
                candidates.push((name.clone(), region));
            }
            Err(error) => journal.event(
                "log-lost",
                format!("the kept log '{name}' cannot be used: {error}"),
            ),
        }
        names.push(name);
    }
    // A broker killed between storing its copy and giving the old one back leaves two; no twin ever
    // saw the newer one, or the older one is stale.
    candidates
        .sort_by_key(|(_, region)| std::cmp::Reverse((region.info.epoch, region.info.generation)));
    for (name, region) in &candidates {
        match take_over(options, last_epoch, region) {
            Ok(log) => {
                report_kept(options, name, &log, journal);
                return Ok((log, names));
            }
            Err(error) => journal.event(
                "log-lost",
                format!("the kept log '{name}' cannot be continued: {error:#}"),
            ),
        }
    }
    let epoch = epoch_max
        .max(floor)
        .checked_add(1)
        .context("the epoch is at its end")?;
    let info = LogInfo {
        limits: options.limits.clone(),
        epoch,
        cluster_tag: cluster_tag(&options.cluster_id),
        host: options.host,
        generation: 0,
    };
    if epoch > 1 {
        journal.event(
            "epoch",
            format!("no earlier log could be continued; epoch {epoch} starts with an empty log"),
        );
    }
    Ok((LocalLog::create(info)?, names))
}

fn take_over(
    options: &BrokerOptions,
    last_epoch: u64,
    region: &ReadMemoryFile,
) -> anyhow::Result<LocalLog> {
    let info = &region.info;
    if info.epoch < last_epoch {
        bail!(
            "it is of epoch {}, the last one was {last_epoch}",
            info.epoch
        );
    }
    if info.cluster_tag != cluster_tag(&options.cluster_id) || info.host != options.host {
        bail!("it belongs to another cluster or host");
    }
    if info.limits.twins != options.limits.twins {
        bail!(
            "it was made for {} twins, now there are {}",
            info.limits.twins,
            options.limits.twins
        );
    }
    Ok(LocalLog::adopt(region)?)
}

fn report_kept(options: &BrokerOptions, name: &str, log: &LocalLog, journal: &mut Journal) {
    let (info, ledger) = (log.writer.info(), log.writer.ledger());
    let (head, tail) = (ledger.head_position(), ledger.tail_position());
    journal.event(
        "log-kept",
        format!(
            "'{name}' verified and continued: epoch {}, entries {head}..{tail}",
            info.epoch
        ),
    );
    if info.limits != options.limits {
        journal.event(
            "limits",
            "changed sizes are used from the next epoch on; the kept log has its old ones"
                .to_owned(),
        );
    }
}

fn open_sockets(options: &BrokerOptions) -> anyhow::Result<Sockets> {
    let own = Uid::effective();
    let mut twins = Vec::new();
    let on_sockets = if options.is_on_xen() {
        0
    } else {
        options.limits.twins
    };
    for twin in 0..on_sockets {
        let uid = options.uids.iter().rev().find(|(of, _)| *of == twin);
        let uid = uid.map_or(own, |(_, uid)| Uid::from_raw(*uid));
        let path = socket_path(&options.dir, twin);
        let listener = listen(&path)?;
        // The user is checked again at each connection; this only keeps others from knocking.
        let handed = uid == own || chown(&path, Some(uid), None).is_ok();
        set_mode(&path, if handed { 0o600 } else { 0o666 })?;
        twins.push((listener, uid.as_raw()));
    }
    let status_path = status_socket_path(&options.dir);
    let status = listen(&status_path)?;
    set_mode(&status_path, 0o600)?;
    Ok(Sockets { twins, status })
}

fn set_mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the permissions of {}", path.display()))
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // What an earlier process left; the lock says that it is gone.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error)
            .with_context(|| format!("cannot remove the old socket {}", path.display()));
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!(
            "cannot listen on {} (a path may have 107 bytes)",
            path.display()
        )
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
