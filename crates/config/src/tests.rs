//! What a file means, and that no text at all makes the parser panic.

use std::path::Path;

use proptest::prelude::*;

use crate::{ClusterConfig, ConfigError, Durability, Execution, Layout};

const SHORT: &str = r#"
[cluster]
id = "a"
[[host]]
id = 0
[[host.twin]]
id = 0
listen = "127.0.0.1:7100"
public_key = "0000000000000000000000000000000000000000000000000000000000000a01"
[[host.twin]]
id = 1
listen = "[::1]:7101"
public_key = "0000000000000000000000000000000000000000000000000000000000000A02"
"#;

#[test]
fn identity_is_all_that_a_file_must_say() {
    let config = ClusterConfig::parse(SHORT).unwrap();
    let mut expected = ClusterConfig::example(1, 2, 0, 7100);
    expected.cluster.id = "a".to_owned();
    expected.admins.clear();
    for (twin, key) in [(0, "a01"), (1, "a02")] {
        expected.hosts[0].twins[twin].public_key = format!("{key:0>64}");
    }
    expected.hosts[0].twins[1].listen = "[::1]:7101".parse().unwrap();
    assert_eq!(config, expected);
}

#[test]
fn the_written_file_means_what_was_written() {
    for (hosts, twins) in [(1, 2), (3, 2), (3, 3), (31, 8)] {
        let mut config = ClusterConfig::example(hosts, twins, 3, 7100);
        config.hosts[0].cpu = vec![0, 1];
        config.hosts[0].name = "rack \"7\" \\ ü".to_owned();
        config.hosts[0].twins[1].uid = Some(1001);
        config.protocol.execution = Execution::Tentative;
        config.storage.durability = Durability::Sync;
        assert_eq!(ClusterConfig::parse(&config.to_toml()), Ok(config.clone()));
        config.service.name = "null".to_owned();
        config.service.null.reply_bytes_default = 4096;
        assert_eq!(ClusterConfig::parse(&config.to_toml()), Ok(config));
    }
}

#[test]
fn every_number_of_the_file_is_read_from_its_own_key() {
    let written = ClusterConfig::example(3, 2, 1, 7100).to_toml();
    let mut seen = 0;
    for (index, line) in written.lines().enumerate() {
        let Some((key, value)) = line.split_once(" = ") else {
            continue;
        };
        let Ok(number) = value.replace('_', "").parse::<u64>() else {
            continue;
        };
        if line.starts_with('#') || key == "id" {
            continue;
        }
        // Changes one number only, upwards, so that what depends on it may complain but nothing else differs.
        let mut lines: Vec<String> = written.lines().map(str::to_owned).collect();
        let step = if key == "log_bytes" { 4096 } else { 1 };
        lines[index] = format!("{key} = {}", number + step);
        match ClusterConfig::parse(&lines.join("\n")) {
            Ok(changed) => {
                assert_eq!(
                    changed
                        .to_toml()
                        .lines()
                        .filter(|l| !written.contains(l))
                        .count(),
                    1
                );
            }
            Err(mistakes) => assert!(
                mistakes
                    .iter()
                    .any(|m| m.path.ends_with(key) || m.problem.contains("value")),
                "{key}: {mistakes:?}"
            ),
        }
        seen += 1;
    }
    assert_eq!(
        seen,
        1 + 16 + 3 + 5 + 5,
        "key_epoch, protocol, storage, kv, postbox"
    );
}

#[test]
fn order_comments_names_and_places_do_not_change_what_is_agreed() {
    let config = ClusterConfig::example(3, 2, 1, 7100);
    let agreed = config.agreed_bytes();
    let mut same = config.clone();
    same.hosts[1].name = "elsewhere".to_owned();
    same.hosts[1].twins[0].listen = "192.0.2.1:9".parse().unwrap();
    same.hosts[1].cpu = vec![3];
    same.storage.durability = Durability::Memory;
    same.postbox.spin_us = 50;
    same.postbox.record_dir = Some("record".into());
    same.evidence.on_culprit = crate::OnCulprit::Quarantine;
    same.evidence.restart_command = Some("true".to_owned());
    same.service.kv.cache_bytes *= 2;
    same.clients.clear();
    assert_eq!(same.agreed_bytes(), agreed);

    let mut others = vec![config; 6];
    others[0].cluster.id.push('x');
    others[1].cluster.key_epoch = 1;
    others[2].protocol.execution = Execution::Tentative;
    others[3].protocol.suspect_after_ms += 1;
    others[4].service.kv.value_bytes_max -= 1;
    others[5].hosts[2].twins[1]
        .public_key
        .replace_range(0..1, "f");
    for other in others {
        assert_ne!(other.agreed_bytes(), agreed);
    }
}

#[test]
fn a_record_directory_is_relative_to_the_file_and_off_by_default() {
    let mut config = ClusterConfig::example(1, 2, 1, 7100);
    let layout = Layout::new("/etc/c");
    assert_eq!(layout.host_record(&config.postbox, 0), None);
    config.postbox.record_dir = Some("record".into());
    let again = ClusterConfig::parse(&config.to_toml()).expect("it is valid");
    assert_eq!(again, config);
    let dir = layout.host_record(&again.postbox, 1);
    assert_eq!(
        dir.as_deref(),
        Some(std::path::Path::new("/etc/c/record/h1"))
    );
    config.postbox.record_dir = Some("/var/record".into());
    let dir = layout.host_record(&config.postbox, 0);
    assert_eq!(dir.as_deref(), Some(std::path::Path::new("/var/record/h0")));
}

#[test]
fn the_agreed_text_is_this() {
    let text = String::from_utf8(ClusterConfig::example(1, 2, 1, 7100).agreed_bytes()).unwrap();
    assert!(text.starts_with("twinbft configuration 1\ncluster.id=example\ncluster.key_epoch=0\n"));
    assert!(text.contains("\nprotocol.batch_requests_max=256\n"));
    assert!(text.contains("\nservice.kv.key_bytes_max=4096\n"));
    assert!(!text.contains("cache_bytes") && !text.contains("127.0.0.1"));
    assert!(
        text.lines()
            .last()
            .unwrap()
            .starts_with("host.0.twin.1.public_key=")
    );
}

#[test]
fn files_lie_beside_the_configuration() {
    let layout = Layout::of_file(Path::new("/c/cluster.toml"));
    assert_eq!(layout.twin_key(1, 0), Path::new("/c/keys/h1t0.key"));
    assert_eq!(layout.twin_socket(2, 1), Path::new("/c/run/h2/twin-1.sock"));
    assert_eq!(layout.client_tls(0).0, Path::new("/c/tls/client-0.pem"));
    assert_eq!(
        Layout::of_file(Path::new("cluster.toml")).config(),
        Path::new("./cluster.toml")
    );
    let config = ClusterConfig::example(1, 2, 1, 7100);
    assert_eq!(layout.tls_ca(&config.tls), Path::new("/c/tls/ca.pem"));
    assert_eq!(config.twin_tls_name(0, 1), "h0t1.example.twinbft");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("cluster.toml");
    let error = ClusterConfig::load(&missing).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(error.to_string().contains("cluster.toml") && error.to_string().contains("init"));
    std::fs::write(&missing, [0xff, 0xfe, b'=']).unwrap();
    assert!(matches!(
        ClusterConfig::load(&missing),
        Err(ConfigError::Read { .. })
    ));
    std::fs::write(&missing, "clutser = 1").unwrap();
    let error = ClusterConfig::load(&missing).unwrap_err().to_string();
    assert!(error.contains("line 1, column 1: clutser"), "{error}");
}

fn parses_without_panic(text: &str) -> Result<(), TestCaseError> {
    match ClusterConfig::parse(text) {
        Ok(config) => prop_assert_eq!(ClusterConfig::parse(&config.to_toml()), Ok(config)),
        Err(mistakes) => {
            prop_assert!(!mistakes.is_empty());
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            for mistake in mistakes {
                prop_assert!((1..=lines).contains(&mistake.line) && mistake.column >= 1);
                prop_assert!(!mistake.problem.is_empty() && !mistake.remedy.is_empty());
                prop_assert!(mistake.value.chars().count() <= 61);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        parses_without_panic(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn a_mutated_file_never_panics(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..40, any::<u8>(), 0_usize..4), 1..6),
    ) {
        let mut bytes = ClusterConfig::example(3, 2, 1, 7100).to_toml().into_bytes();
        for (at, length, byte, how) in cuts {
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => drop(bytes.drain(at..end)),
                2 => bytes.insert(at, b"[]{}=\"'#.,\n-0e_\\u"[usize::from(byte) % 17]),
                _ => bytes.extend_from_within(at..end),
            }
        }
        parses_without_panic(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn a_number_may_be_anything(value in "(-|\\+)?(0x|0o|0b)?[0-9a-f_]{1,24}(\\.[0-9]+)?", line in any::<prop::sample::Index>()) {
        let file = ClusterConfig::example(2, 3, 1, 7100).to_toml();
        let mut lines: Vec<String> = file.lines().map(str::to_owned).collect();
        let keys: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].contains(" = ")).collect();
        let at = keys[line.index(keys.len())];
        let key = lines[at].split(" = ").next().unwrap().to_owned();
        lines[at] = format!("{key} = {value}");
        parses_without_panic(&lines.join("\n"))?;
    }
}

#[test]
fn what_follows_when_a_twin_is_caught_is_written_and_read() {
    let mut config = ClusterConfig::example(1, 3, 1, 7100);
    assert_eq!(config.evidence, crate::Evidence::default());
    for policy in [crate::OnCulprit::Quarantine, crate::OnCulprit::Restart] {
        config.evidence.on_culprit = policy;
        config.evidence.restart_command = Some("echo \"$TWINBFT_HOST\"".to_owned());
        let again = ClusterConfig::parse(&config.to_toml()).expect("it was valid");
        assert_eq!(again, config);
    }
}
