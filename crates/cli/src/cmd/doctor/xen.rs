//! Xen: the hypervisor and its policy, devices, limits, xenstore.

use twinbft_config::{Transport, granted_pages_needed};

use super::machine::{Kind, Machine};
use super::{Finding, Part};

/// Grants in one frame of Xen's table.
const GRANTS_A_FRAME: u64 = 512;
/// Frames of a domain's table by default.
const FRAMES_DEFAULT: u64 = 64;
/// Grants that dom0 has for other things: disks, networks, consoles of its guests.
const GRANTS_OTHERWISE: u64 = 4096;
/// The oldest Xen that security support exists for, by and large.
const VERSION_MIN: (u64, u64) = (4, 17);
const GNTALLOC_LIMIT: &str = "/sys/module/xen_gntalloc/parameters/limit";
const GNTDEV_LIMIT: &str = "/sys/module/xen_gntdev/parameters/limit";

pub fn look(machine: &Machine, part: &Part<'_>) -> Vec<Finding> {
    let transport = part.cluster.config.postbox.transport;
    match (transport, machine.kind()) {
        (Transport::Local, kind) => vec![Finding::warning(
            "transport",
            format!(
                "\"local\" on a machine of kind {}: twins share this kernel, and are isolated in name only",
                kind.name()
            ),
            "fit for a trial; for more, make each twin a Xen guest and write transport = \"xen\" (docs/operations/xen.md)",
        )],
        (Transport::Xen, Kind::Plain) => vec![Finding::unfit(
            "transport",
            "the configuration says \"xen\", and this machine runs under no Xen",
            "run this in dom0 or in a guest of a Xen host, or write transport = \"local\" in [postbox]",
        )],
        (Transport::Xen, Kind::Dom0) => dom0(machine, part),
        (Transport::Xen, Kind::Guest) => guest(machine, part),
    }
}

fn dom0(machine: &Machine, part: &Part<'_>) -> Vec<Finding> {
    let info = machine.ask("xl", &["info"]).unwrap_or_default();
    let mut findings = vec![version(machine), policy(&info)];
    findings.extend(devices(machine, &["gntalloc", "evtchn"]));
    findings.push(gntalloc_limit(machine, part));
    findings.push(frames(&info, part));
    findings.push(xenstore(machine));
    findings.push(quota(machine));
    findings
}

fn guest(machine: &Machine, part: &Part<'_>) -> Vec<Finding> {
    let mut findings = vec![version(machine)];
    findings.extend(devices(machine, &["gntdev", "evtchn", "xenbus"]));
    findings.push(gntdev_limit(machine, part));
    findings.push(xenstore(machine));
    if part.twin.is_none() {
        let remedy = "call it with --twin T, too: then its keys and its name are looked at";
        findings.push(Finding::warning(
            "twin",
            "which twin this guest is was not said",
            remedy,
        ));
    }
    findings
}

fn version(machine: &Machine) -> Finding {
    let number = |name: &str| {
        machine
            .read(&format!("/sys/hypervisor/version/{name}"))?
            .parse()
            .ok()
    };
    let (Some(major), Some(minor)) = (number("major"), number("minor")) else {
        let remedy = "is sysfs mounted on /sys, with Xen's part of it (CONFIG_XEN_SYS_HYPERVISOR)?";
        return Finding::warning("version", "Xen's version is not to be read", remedy);
    };
    let text = format!("Xen {major}.{minor}");
    if (major, minor) < VERSION_MIN {
        let remedy = "use 4.17 or newer: that is what this was tested with";
        return Finding::warning("version", text, remedy);
    }
    Finding::fit("version", text)
}

/// `name=value` on Xen's command line, as `xl info` shows it; the last one counts.
fn xen_option<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let line = info
        .lines()
        .find(|line| line.starts_with("xen_commandline"))?;
    let words = line.split_once(':')?.1.split_whitespace();
    words
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .next_back()
}

fn policy(info: &str) -> Finding {
    if info.is_empty() {
        let remedy = "run this as root, with xen-utils installed";
        return Finding::warning(
            "policy",
            "xl info says nothing, so the XSM policy is not known",
            remedy,
        );
    }
    match xen_option(info, "xsm") {
        Some("silo") => Finding::fit("policy", "xsm=silo: guests talk to dom0 and to nobody else"),
        Some("flask") => Finding::warning(
            "policy",
            "xsm=flask: what guests may do to each other is your policy's to say",
            "make sure that it forbids grants and event channels between guests, or use xsm=silo",
        ),
        other => Finding::warning(
            "policy",
            format!(
                "xsm={}: guests may share memory with each other",
                other.unwrap_or("dummy")
            ),
            "add xsm=silo to Xen's command line (GRUB_CMDLINE_XEN in /etc/default/grub, update-grub, reboot)",
        ),
    }
}

fn devices(machine: &Machine, names: &[&str]) -> Vec<Finding> {
    let look = |name: &&str| {
        let shown = format!("/dev/xen/{name}");
        let path = machine.path(&shown);
        if !path.exists() {
            let remedy = match *name {
                "xenbus" => {
                    "mount xenfs on /proc/xen; the device is built into the kernel".to_owned()
                }
                name => format!(
                    "modprobe xen-{name}, and name it in /etc/modules-load.d (the packages do)"
                ),
            };
            return Finding::unfit("device", format!("{shown} is missing"), remedy);
        }
        match std::fs::File::options().read(true).write(true).open(&path) {
            Ok(_) => Finding::fit("device", format!("{shown} can be opened")),
            Err(error) => Finding::unfit(
                "device",
                format!("{shown} cannot be opened: {error}"),
                "run this as root or as twinbft, with the udev rules of the packages",
            ),
        }
    };
    names.iter().map(look).collect()
}

fn limit(machine: &Machine, path: &str, needed: u64, module: &str, what: &str) -> Finding {
    let Some(limit) = machine.read(path).and_then(|text| text.parse::<u64>().ok()) else {
        let remedy = format!("modprobe {module}");
        return Finding::unfit("limit", format!("{path} cannot be read"), remedy);
    };
    let text = format!("{what}: {needed} pages are needed, {path} allows {limit}");
    if limit < needed {
        let remedy = format!(
            "echo {needed} > {path}, and options {module} limit={needed} in /etc/modprobe.d; or make postbox.log_bytes smaller"
        );
        return Finding::unfit("limit", text, remedy);
    }
    Finding::fit("limit", text)
}

fn gntalloc_limit(machine: &Machine, part: &Part<'_>) -> Finding {
    let needed = granted_pages_needed(&part.cluster.config);
    let what = "grants to the host's twins";
    limit(machine, GNTALLOC_LIMIT, needed, "xen-gntalloc", what)
}

fn gntdev_limit(machine: &Machine, part: &Part<'_>) -> Finding {
    let config = &part.cluster.config;
    let needed = granted_pages_needed(config) / u64::from(config.twin_count());
    limit(
        machine,
        GNTDEV_LIMIT,
        needed,
        "xen-gntdev",
        "mappings of the broker's pages",
    )
}

/// Xen's own table, which the kernel's limit knows nothing of: past it even small grants fail until the next boot.
fn frames(info: &str, part: &Part<'_>) -> Finding {
    let shown = xen_option(info, "gnttab_max_frames").and_then(|frames| frames.parse().ok());
    let frames: u64 = shown.unwrap_or(FRAMES_DEFAULT);
    let needed = granted_pages_needed(&part.cluster.config) + GRANTS_OTHERWISE;
    let text = format!(
        "dom0's grant table: {needed} grants are needed, {frames} frames hold {}",
        frames * GRANTS_A_FRAME
    );
    if frames * GRANTS_A_FRAME < needed {
        let frames = needed.div_ceil(GRANTS_A_FRAME).next_power_of_two();
        let remedy = format!(
            "add gnttab_max_frames={frames} to Xen's command line, or make postbox.log_bytes smaller"
        );
        return Finding::unfit("limit", text, remedy);
    }
    Finding::fit("limit", text)
}

fn xenstore(machine: &Machine) -> Finding {
    let of_dom0 = machine.path("/run/xenstored/socket").exists();
    if of_dom0 || machine.path("/dev/xen/xenbus").exists() {
        return match machine.ask("xenstore-read", &["domid"]) {
            Some(domid) => Finding::fit(
                "xenstore",
                format!("it answers: this is domain {}", domid.trim()),
            ),
            None => Finding::warning(
                "xenstore",
                "it was not asked (there is no xenstore-read, or it may not)",
                "apt install xenstore-utils, and run this as root",
            ),
        };
    }
    let remedy = "start xenstored (systemctl start xen), or mount xenfs in a guest";
    Finding::unfit("xenstore", "there is no way to xenstored", remedy)
}

/// What a guest's replica needs: one transaction, no watch, and to read nodes of 2 KiB.
fn quota(machine: &Machine) -> Finding {
    let Some(text) = machine.ask("xenstore-control", &["quota"]) else {
        let remedy = "apt install xenstore-utils, and run this as root";
        return Finding::warning("xenstore", "its quotas are not known", remedy);
    };
    let value = |name: &str| -> Option<u64> {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(name))?;
        line.rsplit(|c: char| !c.is_ascii_digit())
            .find(|word| !word.is_empty())?
            .parse()
            .ok()
    };
    let wanted = [("transactions", 1), ("outstanding", 2)];
    for (name, least) in wanted {
        if value(name).is_some_and(|value| value < least) {
            let shown = value(name).unwrap_or(0);
            let remedy = format!("xenstore-control quota {name} 10");
            return Finding::unfit(
                "xenstore",
                format!("its quota of {name} is {shown} for a guest; {least} needed"),
                remedy,
            );
        }
    }
    Finding::fit(
        "xenstore",
        "its quotas let a guest read what the broker publishes",
    )
}
