//! `init`, `keygen`, `check` and `completion`, as an operator runs them.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Fresh, run, stderr, stdout};
use twinbft_config::{ClusterConfig, Layout};
use twinbft_types::{PublicKey, SecretKey};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_fresh_cluster_passes_the_check() {
    for (hosts, twins, service) in [("1", "2", "kv"), ("3", "3", "null"), ("31", "8", "kv")] {
        let fresh = Fresh::new(&["--hosts", hosts, "--twins", twins, "--service", service]);
        let output = run(&["check", fresh.text()]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(
            stdout(&output).contains(&format!("N = {hosts}")),
            "{}",
            stdout(&output)
        );
        assert!(stdout(&output).contains(&format!("service {service}")));
        let json = run(&["check", "--json", fresh.config().to_str().unwrap()]);
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json["valid"], true);
        assert_eq!(json["twins"].to_string(), twins);
    }
}

#[test]
fn options_of_init_reach_the_file() {
    let fresh = Fresh::new(&[
        "--hosts",
        "3",
        "--twins",
        "2",
        "--clients",
        "4",
        "--base-port",
        "20000",
        "--durability",
        "sync",
    ]);
    let config = ClusterConfig::load(&fresh.config()).unwrap();
    assert_eq!(config.clients.len(), 4);
    assert_eq!(config.storage.durability, twinbft_config::Durability::Sync);
    assert_eq!(
        config.twin(2, 1).unwrap().listen.to_string(),
        "127.0.0.1:20021"
    );
}

#[test]
fn secrets_are_private_and_fit_the_file() {
    let fresh = Fresh::new(&["--clients", "2"]);
    let layout = Layout::new(fresh.path());
    let config = ClusterConfig::load(&fresh.config()).unwrap();
    let mut pairs = Vec::new();
    for host in &config.hosts {
        for twin in &host.twins {
            pairs.push((layout.twin_key(host.id, twin.id), &twin.public_key));
            assert_eq!(mode(&layout.twin_data(host.id, twin.id)), 0o700);
        }
    }
    pairs.extend(
        config
            .clients
            .iter()
            .map(|c| (layout.client_key(c.id), &c.public_key)),
    );
    pairs.extend(
        config
            .admins
            .iter()
            .map(|a| (layout.admin_key(a.id), &a.public_key)),
    );
    assert_eq!(pairs.len(), 6 + 2 + 1);
    for (file, public) in pairs {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
        let secret = SecretKey::from_hex(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(secret.public().to_string(), *public, "{}", file.display());
        assert_eq!(PublicKey::from_hex(public).unwrap(), secret.public());
    }
    assert_eq!(mode(&layout.keys()), 0o700);
    let mut keys = 0;
    for entry in fs::read_dir(layout.tls()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "key") {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            keys += 1;
        }
    }
    assert_eq!(keys, 9 + 1, "one for each process and the authority's");
    assert!(
        fs::read_to_string(layout.tls_ca_key())
            .unwrap()
            .starts_with("# The key of this cluster's")
    );
}

#[test]
fn every_replica_gets_the_mark_of_genesis() {
    let fresh = Fresh::new(&[]);
    let config = ClusterConfig::load(&fresh.config()).unwrap();
    for name in ["h0t0", "h0t1", "h1t0", "h1t1", "h2t0", "h2t1"] {
        let mark =
            fs::read_to_string(fresh.path().join("data").join(name).join("genesis")).unwrap();
        assert_eq!(mark.trim(), config.cluster.id);
    }
}

#[test]
fn two_clusters_share_no_secret_and_no_id() {
    let (one, other) = (Fresh::new(&[]), Fresh::new(&[]));
    let mut seen = BTreeSet::new();
    for fresh in [&one, &other] {
        let config = ClusterConfig::load(&fresh.config()).unwrap();
        assert!(seen.insert(config.cluster.id));
        for host in config.hosts {
            for twin in host.twins {
                assert!(seen.insert(twin.public_key));
            }
        }
    }
}

#[test]
fn init_replaces_nothing_unless_told_to() {
    let fresh = Fresh::new(&[]);
    let before = fs::read_to_string(fresh.config()).unwrap();
    let output = run(&["init", fresh.text()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cluster.toml exists") && stderr(&output).contains("--force"));
    assert_eq!(fs::read_to_string(fresh.config()).unwrap(), before);

    let output = run(&["init", fresh.text(), "--force", "--hosts", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_ne!(fs::read_to_string(fresh.config()).unwrap(), before);
    assert!(
        !fresh.path().join("keys/h1t0.key").exists(),
        "keys of the old cluster are gone"
    );

    fs::write(
        fresh.path().join("data/h0t0/wal-0000000000000000.seg"),
        "promises",
    )
    .unwrap();
    let output = run(&["init", fresh.text(), "--force"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("move it away"),
        "{}",
        stderr(&output)
    );
    assert!(
        fresh
            .path()
            .join("data/h0t0/wal-0000000000000000.seg")
            .exists()
    );
}

#[test]
fn what_init_cannot_do_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("c");
    let place = place.to_str().unwrap();
    for wrong in [
        ["--hosts", "0"],
        ["--hosts", "32"],
        ["--twins", "1"],
        ["--service", "etcd"],
        ["--base-port", "0"],
    ] {
        let output = run(&["init", place, wrong[0], wrong[1]]);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(stderr(&output).contains(wrong[0]), "{}", stderr(&output));
    }
    let output = run(&["init", place, "--base-port", "65530"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("65551") && stderr(&output).contains("--base-port"));
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let output = run(&["init", file.join("c").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("file/c"), "{}", stderr(&output));
}

#[test]
fn check_reports_every_mistake_with_its_line() {
    let fresh = Fresh::new(&[]);
    fresh.replace("key_epoch = 0", "key_epoch = -1");
    fresh.replace("batch_requests_max", "batch_reqests_max");
    fresh.replace("127.0.0.1:7121", "127.0.0.1:7100");
    let text = fs::read_to_string(fresh.config()).unwrap();
    let line = |part: &str| text.lines().position(|line| line.contains(part)).unwrap() + 1;
    let last = text.lines().count()
        - text
            .lines()
            .rev()
            .position(|l| l.contains(":7100\""))
            .unwrap();

    let output = run(&["check", fresh.text()]);
    assert_eq!(output.status.code(), Some(64));
    let complaint = stderr(&output);
    assert!(complaint.contains("has 3 mistakes"), "{complaint}");
    for wanted in [
        format!(
            "line {}, column 13: cluster.key_epoch = -1: out of bounds",
            line("key_epoch = -1")
        ),
        format!(
            "line {}, column 1: protocol.batch_reqests_max",
            line("batch_reqests_max")
        ),
        "did you mean \"batch_requests_max\"?".to_owned(),
        format!("line {last}, column 10: host[2].twin[1].listen"),
    ] {
        assert!(complaint.contains(&wanted), "{wanted} in {complaint}");
    }
    let output = run(&["check", "--json", fresh.text()]);
    assert_eq!(output.status.code(), Some(64));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&json["valid"], json["mistakes"].as_array().unwrap().len()),
        (&false.into(), 3)
    );
    assert_eq!(json["mistakes"][0]["line"], line("key_epoch = -1"));
    assert_eq!(json["mistakes"][0]["remedy"], "it must be 0 to 4294967295");
}

#[test]
fn every_command_that_reads_a_bad_file_ends_with_64() {
    let fresh = Fresh::new(&[]);
    fresh.replace("key_epoch = 0", "key_epoch = -1");
    for arguments in [["check", fresh.text()], ["up", fresh.text()]] {
        assert_eq!(run(&arguments).status.code(), Some(64), "{arguments:?}");
    }
    let output = run(&["status", "--config", fresh.text()]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("cluster.key_epoch"));
}

#[test]
fn a_missing_file_is_a_failure_and_a_wrong_line_is_usage() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(&["check", directory.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cluster.toml") && stderr(&output).contains("twinbft init"));
    for wrong in [&["chek"][..], &["check"], &[], &["up", "--nonsense", "x"]] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn keygen_makes_pairs_that_fit_the_file() {
    let printed = stdout(&run(&["keygen"]));
    let values: Vec<&str> = printed
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let secret = SecretKey::from_hex(values[0]).unwrap();
    assert_eq!(values[1], format!("public_key = \"{}\"", secret.public()));
    assert_ne!(printed, stdout(&run(&["keygen"])));

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("new.key");
    let output = run(&["keygen", "--out", file.to_str().unwrap()]);
    assert!(output.status.success());
    assert_eq!(mode(&file), 0o600);
    let secret = SecretKey::from_hex(&fs::read_to_string(&file).unwrap()).unwrap();
    assert!(stdout(&output).contains(&secret.public().to_string()));
    assert!(!stdout(&output).contains(secret.to_hex().as_str()));
    let again = run(&["keygen", "--out", file.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("new.key"));

    // The line that keygen prints makes a valid client.
    let fresh = Fresh::new(&[]);
    let line = stdout(&output).lines().last().unwrap().to_owned();
    let mut text = fs::read_to_string(fresh.config()).unwrap();
    text.push_str(&format!("\n[[client]]\nid = 1\n{line}\n"));
    assert_eq!(
        ClusterConfig::parse(&text).unwrap().clients[1].name,
        "client-1"
    );
}

/// `twinbft-config` knows the weak keys by heart; the curve's own code says that it is right about them.
#[test]
fn keys_that_the_configuration_refuses_are_weak() {
    let fresh = Fresh::new(&["--hosts", "1"]);
    let good = fs::read_to_string(fresh.config()).unwrap();
    let key = ClusterConfig::parse(&good).unwrap().hosts[0].twins[0]
        .public_key
        .clone();
    let ones = "f".repeat(60);
    let weak = [
        "0".repeat(64),
        format!("01{}", "0".repeat(62)),
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800".to_owned(),
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157".to_owned(),
        format!("ec{ones}7f"),
        format!("ed{ones}7f"),
        format!("ee{ones}7f"),
        format!("{}80", "0".repeat(62)),
        format!("ed{ones}ff"),
    ];
    for weak in weak {
        assert!(PublicKey::from_hex(&weak).is_err(), "{weak}");
        let mistakes = ClusterConfig::parse(&good.replace(&key, &weak)).unwrap_err();
        assert!(mistakes[0].problem.contains("low order"), "{}", mistakes[0]);
    }
    let nearly = format!("ec{ones}7e");
    assert!(PublicKey::from_hex(&nearly).is_ok());
    assert!(ClusterConfig::parse(&good.replace(&key, &nearly)).is_ok());
}

#[test]
fn completion_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completion", shell]);
        assert!(output.status.success());
        assert!(stdout(&output).contains("keygen"), "{shell}");
    }
}

/// What it is piped into may end first.
#[test]
fn output_that_nobody_reads_is_no_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_twinbft"))
        .args(["completion", "bash"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(141), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_missing_file_is_named_once_with_its_cause_and_a_remedy() {
    let output = run(&["check", "nowhere/cluster.toml"]);
    let text = stderr(&output);
    assert_eq!(text.matches("No such file").count(), 1, "{text}");
    assert!(
        text.contains("nowhere/cluster.toml") && text.contains("twinbft init"),
        "{text}"
    );
}

#[test]
fn a_change_that_replicas_would_refuse_is_told_beforehand() {
    let old = Fresh::new(&[]);
    let output = run(&["check", old.text(), "--against", old.text()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let new = Fresh::new(&["--hosts", "2"]);
    let output = run(&["check", new.text(), "--against", old.text()]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        stderr(&output).contains("replicas refuse this change"),
        "{}",
        stderr(&output)
    );
    let output = run(&["check", "--json", new.text(), "--against", old.text()]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["refused"].as_str().is_some(), "{document}");
}
