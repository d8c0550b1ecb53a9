//! The disk under the cluster's directory, and the secrets on it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use twinbft_config::{Durability, Transport};

use super::machine::{Kind, Machine};
use super::{Finding, Part};

const FLUSHES: usize = 20;
/// As long as a promise waits for with durability "sync".
const FLUSH_SLOW: Duration = Duration::from_millis(10);
const BLOCK_BYTES: usize = 4096;

/// How long a small write takes to be on the disk.
pub fn disk(part: &Part<'_>) -> Finding {
    let directory = part.cluster.layout.directory();
    let shown = directory.display();
    let took = match flushes(directory) {
        Ok(took) => took,
        Err(error) => {
            let remedy = "make room, or run this as the user that owns the directory";
            return Finding::unfit(
                "disk",
                format!("{shown} cannot be written: {error}"),
                remedy,
            );
        }
    };
    let (p50, max) = (took[took.len() / 2], took[took.len() - 1]);
    let text = format!(
        "{shown}: a flushed write takes {} us, {} us at most",
        p50.as_micros(),
        max.as_micros()
    );
    let matters = match part.cluster.config.storage.durability {
        Durability::Sync | Durability::Group => true,
        Durability::Memory => false,
    };
    if matters && p50 > FLUSH_SLOW {
        let remedy = "use a disk with a protected write cache (or an SSD); promises wait for it with durability \"sync\"";
        return Finding::warning("disk", text, remedy);
    }
    Finding::fit("disk", text)
}

/// Sorted.
fn flushes(directory: &Path) -> io::Result<Vec<Duration>> {
    let file = tempfile::Builder::new()
        .prefix(".doctor-")
        .tempfile_in(directory)?;
    file.as_file().write_all(&[0x5a; BLOCK_BYTES])?;
    file.as_file().sync_all()?;
    let mut took = Vec::new();
    for n in 0..FLUSHES {
        let start = Instant::now();
        file.as_file()
            .write_all_at(&[0xa5; BLOCK_BYTES], (n * BLOCK_BYTES) as u64)?;
        file.as_file().sync_data()?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

/// Secrets: readable by their owner alone, and no more of them than this machine needs.
pub fn keys(machine: &Machine, part: &Part<'_>) -> Vec<Finding> {
    let layout = &part.cluster.layout;
    let found: Vec<PathBuf> = [layout.keys(), layout.tls()]
        .iter()
        .flat_map(|directory| secrets(directory))
        .collect();
    let mut findings = Vec::new();
    for path in &found {
        let Ok(metadata) = fs::metadata(path) else {
            continue;
        };
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            let text = format!(
                "{} may be read or changed by others (mode {mode:03o})",
                path.display()
            );
            findings.push(Finding::unfit(
                "keys",
                text,
                format!("chmod 600 {}", path.display()),
            ));
        }
    }
    if let Some(twin) = part.twin {
        let own = [
            layout.twin_key(part.host, twin),
            layout.twin_tls(part.host, twin).1,
        ];
        for path in own.iter().filter(|path| !path.exists()) {
            let remedy = "copy it from where `twinbft init` made it";
            findings.push(Finding::unfit(
                "keys",
                format!("{} is missing", path.display()),
                remedy,
            ));
        }
    }
    let is_on_xen = part.cluster.config.postbox.transport == Transport::Xen;
    if is_on_xen && machine.kind() != Kind::Plain {
        findings.extend(foreign(machine, part, &found));
    }
    if findings.is_empty() {
        let text = format!("{} secret files, each for its owner alone", found.len());
        findings.push(Finding::fit("keys", text));
    }
    findings
}

/// Where twins are machines of their own, a secret of a twin is on no other machine.
fn foreign(machine: &Machine, part: &Part<'_>, found: &[PathBuf]) -> Option<Finding> {
    let layout = &part.cluster.layout;
    let own: Vec<PathBuf> = match (machine.kind(), part.twin) {
        (Kind::Guest, Some(twin)) => {
            vec![
                layout.twin_key(part.host, twin),
                layout.twin_tls(part.host, twin).1,
            ]
        }
        (Kind::Guest, None) => return None,
        (Kind::Dom0 | Kind::Plain, _) => Vec::new(),
    };
    let name = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let is_twins =
        |path: &&PathBuf| name(path).is_some_and(|name| name.starts_with('h') || name == "ca.key");
    let more: Vec<String> = found
        .iter()
        .filter(is_twins)
        .filter(|path| !own.contains(path))
        .map(|path| path.display().to_string())
        .collect();
    (!more.is_empty()).then(|| {
        let text = format!(
            "secrets that this machine does not need: {}",
            more.join(", ")
        );
        Finding::warning(
            "keys",
            text,
            "remove them: whoever takes this machine over has them, too",
        )
    })
}

fn secrets(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "key"))
        .collect();
    found.sort();
    found
}
