//! Twins of one host should not share what can fail or be taken over: a disk, a core.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;
use twinbft_config::Transport;

use super::machine::{Kind, Machine};
use super::{Finding, Part};

pub fn look(machine: &Machine, part: &Part<'_>) -> Vec<Finding> {
    let transport = part.cluster.config.postbox.transport;
    match (transport, machine.kind()) {
        (Transport::Local, _) => vec![Finding::warning(
            "sharing",
            "all twins of this machine have their data in one directory, on one disk",
            "fit for a trial: what damages that disk damages all of them",
        )],
        (Transport::Xen, Kind::Dom0) => guests(machine, part),
        // Only dom0 can see what lies below a guest's disk.
        (Transport::Xen, Kind::Guest | Kind::Plain) => Vec::new(),
    }
}

/// What `xl` knows of a twin's guest.
#[derive(Debug, Default)]
struct Seen {
    /// Physical disks below its virtual ones.
    disks: BTreeSet<String>,
    /// Cores that it may run on; empty: any.
    cores: BTreeSet<u64>,
}

fn guests(machine: &Machine, part: &Part<'_>) -> Vec<Finding> {
    let Some(domains) = machine.ask("xl", &["list", "-l"]) else {
        let remedy = "run this as root, with xen-utils installed";
        return vec![Finding::warning(
            "sharing",
            "xl list -l says nothing, so guests are not known",
            remedy,
        )];
    };
    let domains: Vec<Value> = serde_json::from_str(&domains).unwrap_or_default();
    let host = part.cluster.config.host(part.host).expect("checked before");
    let mut findings = Vec::new();
    let mut seen = BTreeMap::new();
    for twin in &host.twins {
        let guest = twin.guest.as_deref().unwrap_or_default();
        match domains.iter().find(|domain| is_it(domain, guest)) {
            Some(domain) => {
                seen.insert(twin.id, look_at(machine, domain));
            }
            None => findings.push(Finding::warning(
                "guest",
                format!("twin {}: there is no guest '{guest}' now", twin.id),
                "xl create it, or correct guest = in cluster.toml; the broker serves it whenever it appears",
            )),
        }
    }
    findings.extend(compare(&seen));
    findings
}

fn is_it(domain: &Value, guest: &str) -> bool {
    let info = &domain["config"]["c_info"];
    info["name"] == guest
        || info["uuid"]
            .as_str()
            .is_some_and(|uuid| uuid.eq_ignore_ascii_case(guest))
}

fn look_at(machine: &Machine, domain: &Value) -> Seen {
    let config = &domain["config"];
    let disks = config["disks"].as_array().into_iter().flatten();
    let disks = disks.filter_map(|disk| disk["pdev_path"].as_str());
    let affinity = config["b_info"]["vcpu_hard_affinity"].as_array();
    let cores = affinity
        .into_iter()
        .flatten()
        .filter_map(Value::as_array)
        .flatten();
    Seen {
        disks: disks
            .flat_map(|path| physical_disks(machine, path))
            .collect(),
        cores: cores.filter_map(Value::as_u64).collect(),
    }
}

fn compare(seen: &BTreeMap<u8, Seen>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (twin, own) in seen {
        if own.cores.is_empty() {
            let remedy =
                "pin its vCPUs: cpus = \"2-3\" in its xl configuration, others for its siblings";
            findings.push(Finding::warning(
                "sharing",
                format!("twin {twin} may run on any core"),
                remedy,
            ));
        }
        for (other, theirs) in seen.range(twin + 1..) {
            let disks: Vec<&str> = own
                .disks
                .intersection(&theirs.disks)
                .map(String::as_str)
                .collect();
            if !disks.is_empty() {
                let text = format!(
                    "twins {twin} and {other} lie on one physical disk: {}",
                    disks.join(", ")
                );
                let remedy = "give each twin a disk of its own: what fails or lies below one must not reach the other";
                findings.push(Finding::warning("sharing", text, remedy));
            }
            let cores: Vec<String> = own
                .cores
                .intersection(&theirs.cores)
                .map(u64::to_string)
                .collect();
            if !cores.is_empty() {
                let text = format!(
                    "twins {twin} and {other} run on the same cores: {}",
                    cores.join(", ")
                );
                findings.push(Finding::warning(
                    "sharing",
                    text,
                    "pin them to different cores (cpus = in their xl configurations)",
                ));
            }
        }
    }
    if findings.is_empty() && !seen.is_empty() {
        let text = format!(
            "{} guests, each with disks and cores of its own",
            seen.len()
        );
        findings.push(Finding::fit("sharing", text));
    }
    findings
}

/// The whole disks below a path: a device, a partition, a logical volume, or a file on one of these.
fn physical_disks(machine: &Machine, path: &str) -> BTreeSet<String> {
    let Ok(metadata) = fs::metadata(machine.path(path)) else {
        return BTreeSet::new();
    };
    let is_device = metadata.mode() & 0o170_000 == 0o060_000;
    let device = if is_device {
        metadata.rdev()
    } else {
        metadata.dev()
    };
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let mut found = BTreeSet::new();
    descend(
        machine,
        &format!("/sys/dev/block/{major}:{minor}"),
        0,
        &mut found,
    );
    found
}

/// Layers of devices above each other; more than anybody builds.
const DEPTH_MAX: u32 = 8;

fn descend(machine: &Machine, device: &str, depth: u32, found: &mut BTreeSet<String>) {
    let Ok(real) = machine.path(device).canonicalize() else {
        return;
    };
    let below: Vec<String> = fs::read_dir(real.join("slaves"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if depth < DEPTH_MAX && !below.is_empty() {
        for name in below {
            descend(
                machine,
                &format!("/sys/class/block/{name}"),
                depth + 1,
                found,
            );
        }
        return;
    }
    // A partition lies in its disk's directory.
    let disk = if real.join("partition").exists() {
        real.parent().map(ToOwned::to_owned)
    } else {
        Some(real)
    };
    let name = disk.and_then(|disk| Some(disk.file_name()?.to_string_lossy().into_owned()));
    found.extend(name);
}
