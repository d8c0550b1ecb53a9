//! Machines that are made up: what is said of each.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use twinbft_cli::cluster::Cluster;
use twinbft_config::{ClusterConfig, Layout, Transport};

use super::machine::{Kind, Machine};
use super::{Finding, Part, Verdict, storage, text, twins, xen};

fn put(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("inside the root")).expect("there is room");
    fs::write(path, content).expect("there is room");
}

/// A dom0 without a fault, as far as files show it.
fn dom0() -> TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for (path, content) in [
        ("proc/xen/capabilities", "control_d\n"),
        ("sys/hypervisor/type", "xen\n"),
        ("sys/hypervisor/version/major", "4\n"),
        ("sys/hypervisor/version/minor", "17\n"),
        ("sys/module/xen_gntalloc/parameters/limit", "65536\n"),
        ("dev/xen/gntalloc", ""),
        ("dev/xen/evtchn", ""),
        ("run/xenstored/socket", ""),
    ] {
        put(root.path(), path, content);
    }
    root
}

fn cluster(directory: &Path, transport: Transport) -> Cluster {
    let mut config = ClusterConfig::example(1, 2, 1, 7100);
    config.postbox.transport = transport;
    for twin in &mut config.hosts[0].twins {
        twin.guest = Some(format!("twin-{}", twin.id));
    }
    Cluster {
        config,
        file: directory.join("cluster.toml"),
        layout: Layout::new(directory),
    }
}

fn good(program: &str, arguments: &[&str]) -> Option<String> {
    let text = match (program, arguments) {
        ("xl", ["info"]) => {
            "host : a\nxen_commandline        : placeholder xsm=silo gnttab_max_frames=256 loglvl=all\n"
        }
        ("xl", ["list", "-l"]) => {
            r#"[{"domid":3,"config":{"c_info":{"name":"twin-0"},"b_info":{"vcpu_hard_affinity":[[2],[3]]}}},
                {"domid":4,"config":{"c_info":{"name":"twin-1"},"b_info":{"vcpu_hard_affinity":[[4]]}}}]"#
        }
        ("xenstore-read", _) => "0\n",
        ("xenstore-control", _) => {
            "Quota name      Value\ntransactions       10\noutstanding        20\n"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn bad(program: &str, arguments: &[&str]) -> Option<String> {
    let text = match (program, arguments) {
        ("xl", ["info"]) => "xen_commandline : placeholder\n",
        ("xl", ["list", "-l"]) => {
            r#"[{"config":{"c_info":{"name":"twin-0"},"b_info":{"vcpu_hard_affinity":[[2]]},"disks":[{"pdev_path":"/a.img"}]}},
                {"config":{"c_info":{"name":"twin-1"},"b_info":{"vcpu_hard_affinity":[[2]]},"disks":[{"pdev_path":"/b.img"}]}}]"#
        }
        ("xenstore-control", _) => "transactions 0\n",
        _ => return None,
    };
    Some(text.to_owned())
}

fn nothing(_: &str, _: &[&str]) -> Option<String> {
    None
}

/// The findings that are not well, as `check: text`; each has a remedy.
fn complaints(findings: &[Finding]) -> Vec<String> {
    let unwell = findings.iter().filter(|f| f.verdict != Verdict::Fit);
    unwell
        .map(|f| {
            assert!(!f.remedy.is_empty(), "{f:?}");
            format!("{} {}: {}", f.verdict.name(), f.check, f.text)
        })
        .collect()
}

fn of_host(cluster: &Cluster) -> Part<'_> {
    Part {
        cluster,
        host: 0,
        twin: None,
    }
}

#[test]
fn a_good_dom0_is_fit() {
    let root = dom0();
    let cluster = cluster(root.path(), Transport::Xen);
    let machine = Machine::made_up(root.path(), good);
    assert_eq!(machine.kind(), Kind::Dom0);
    let mut findings = xen::look(&machine, &of_host(&cluster));
    findings.extend(twins::look(&machine, &of_host(&cluster)));
    assert_eq!(complaints(&findings), Vec::<String>::new());
    assert!(
        text(&findings).contains("17540 pages are needed"),
        "{}",
        text(&findings)
    );
}

#[test]
fn every_fault_of_a_dom0_is_found_with_its_remedy() {
    let root = dom0();
    for (path, content) in [
        ("sys/hypervisor/version/minor", "14\n"),
        ("sys/module/xen_gntalloc/parameters/limit", "1024\n"),
    ] {
        put(root.path(), path, content);
    }
    fs::remove_file(root.path().join("dev/xen/gntalloc")).expect("it was there");
    let mut cluster = cluster(root.path(), Transport::Xen);
    // Two copies of 64 MiB.
    cluster.config.postbox.log_bytes = 64 << 20;
    let machine = Machine::made_up(root.path(), bad);
    let found = complaints(&xen::look(&machine, &of_host(&cluster)));
    for wanted in [
        "warning version: Xen 4.14",
        "warning policy: xsm=dummy",
        "unfit device: /dev/xen/gntalloc is missing",
        "unfit limit: grants to the host's twins: 33924 pages are needed",
        "unfit limit: dom0's grant table: 38020 grants are needed, 64 frames hold 32768",
        "unfit xenstore: its quota of transactions is 0",
    ] {
        assert!(
            found.iter().any(|text| text.starts_with(wanted)),
            "{wanted} is not in {found:#?}"
        );
    }
}

#[test]
fn twins_on_one_core_or_one_disk_are_named() {
    let root = dom0();
    let cluster = cluster(root.path(), Transport::Xen);
    let found = complaints(&twins::look(
        &Machine::made_up(root.path(), bad),
        &of_host(&cluster),
    ));
    assert_eq!(
        found,
        ["warning sharing: twins 0 and 1 run on the same cores: 2"]
    );
    // Two files of one file system, which lies on partition sda1 of sda.
    for name in ["a.img", "b.img"] {
        put(root.path(), name, "");
    }
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(root.path()).expect("it is there").dev();
    let number = format!(
        "{}:{}",
        nix::sys::stat::major(device),
        nix::sys::stat::minor(device)
    );
    put(root.path(), "sys/devices/sda/sda1/partition", "1\n");
    fs::create_dir_all(root.path().join("sys/dev/block")).expect("there is room");
    let link = root.path().join("sys/dev/block").join(number);
    std::os::unix::fs::symlink(root.path().join("sys/devices/sda/sda1"), link)
        .expect("there is room");
    let found = complaints(&twins::look(
        &Machine::made_up(root.path(), bad),
        &of_host(&cluster),
    ));
    assert!(
        found
            .iter()
            .any(|text| text.ends_with("one physical disk: sda")),
        "{found:#?}"
    );
}

#[test]
fn a_guest_needs_other_devices_and_keys_of_its_own_alone() {
    let root = tempfile::tempdir().expect("a directory");
    put(root.path(), "sys/hypervisor/type", "xen\n");
    put(root.path(), "dev/xen/xenbus", "");
    for key in [
        "keys/h0t0.key",
        "tls/h0t0.key",
        "keys/h0t1.key",
        "tls/ca.key",
    ] {
        put(root.path(), key, "secret");
    }
    let cluster = cluster(root.path(), Transport::Xen);
    let machine = Machine::made_up(root.path(), nothing);
    assert_eq!(machine.kind(), Kind::Guest);
    let part = Part {
        twin: Some(0),
        ..of_host(&cluster)
    };
    let found = complaints(&xen::look(&machine, &part));
    for wanted in [
        "unfit device: /dev/xen/gntdev is missing",
        "unfit limit: /sys/module/xen_gntdev",
    ] {
        assert!(
            found.iter().any(|text| text.starts_with(wanted)),
            "{wanted} is not in {found:#?}"
        );
    }
    let found = complaints(&storage::keys(&machine, &part));
    let readable = found
        .iter()
        .filter(|text| text.contains("may be read"))
        .count();
    assert_eq!(readable, 4, "{found:#?}");
    let foreign = found
        .iter()
        .find(|text| text.contains("does not need"))
        .expect("named");
    assert!(
        foreign.contains("h0t1.key") && foreign.contains("ca.key") && !foreign.contains("h0t0"),
        "{foreign}"
    );
}

#[test]
fn a_laptop_is_fit_for_a_trial_and_for_no_guests() {
    let root = tempfile::tempdir().expect("a directory");
    let machine = Machine::made_up(root.path(), nothing);
    let local = cluster(root.path(), Transport::Local);
    let found = complaints(&xen::look(&machine, &of_host(&local)));
    assert!(
        found.len() == 1 && found[0].starts_with("warning transport"),
        "{found:#?}"
    );
    let on_xen = cluster(root.path(), Transport::Xen);
    let found = complaints(&xen::look(&machine, &of_host(&on_xen)));
    assert!(
        found.len() == 1 && found[0].starts_with("unfit transport"),
        "{found:#?}"
    );
    assert_eq!(storage::disk(&of_host(&local)).verdict, Verdict::Fit);
    let nowhere = cluster(Path::new("/nowhere"), Transport::Local);
    assert_eq!(storage::disk(&of_host(&nowhere)).verdict, Verdict::Unfit);
}
