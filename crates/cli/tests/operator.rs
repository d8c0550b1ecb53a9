//! What an operator does to a cluster of real processes: `recover`, `readmit`, `guard` (protocol.md 8, 9).

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Instant;

use common::daemons::{Live, PATIENCE};
use common::{run, stderr, stdout, twinbft};
use serde_json::{Value, json};

/// As after a power failure: the last start was of another boot.
fn reboot(live: &Live, hosts: u8, twins: u8) {
    for host in 0..hosts {
        for twin in 0..twins {
            let mark = live.layout.twin_data(host, twin).join("boot");
            fs::write(mark, "another boot").unwrap();
        }
    }
}

/// A power failure in the whole room with durability "group", which also costs a disk: nobody can say that it has all its
/// promises, so all are silent, until an operator orders two hosts to be believed. The third comes back by itself.
#[test]
fn a_cluster_that_forgot_at_once_is_recovered_and_has_what_was_acknowledged() {
    let live = Live::new(3, 2, &["--durability", "group"]);
    live.up();
    for n in 0..20 {
        live.put(&format!("key-{n}"), &n.to_string());
    }
    let early = live.command(&["recover", "--host", "0", "--reason", "in haste", "--yes"]);
    assert!(!early.status.success());
    assert!(stderr(&early).contains("takes part"), "{}", stderr(&early));
    live.down();
    reboot(&live, 3, 2);
    fs::remove_dir_all(live.layout.twin_data(1, 0)).unwrap();
    live.up();
    live.until("all are mute", |states| {
        let mute = |state: &Value| state == "has-forgotten" || state == "recovering";
        states.len() == 6 && states.values().all(|seen| mute(&seen["state"]))
    });

    // A host that lacks a disk is no host to go on from.
    let refused = live.command(&["recover", "--host", "1", "--reason", "power loss", "--yes"]);
    let text = stderr(&refused);
    assert!(
        text.contains("1 twins of host 1") && text.contains("by itself"),
        "{text}"
    );
    // First it only says what would be given up.
    let asked = live.command(&["recover", "--host", "2", "--reason", "power loss"]);
    let text = stdout(&asked);
    assert_eq!(asked.status.code(), Some(1), "{text}");
    for part in [
        "twin 0: its machine started again",
        "twin 1: its machine started again",
        "Nothing was changed",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let record = live.fresh.path().join("recover.log");
    assert!(!record.exists());
    for host in ["0", "2"] {
        live.must(&["recover", "--host", host, "--reason", "power loss", "--yes"]);
    }
    // A replica that starts again before its broker does must not use the order up.
    live.down();
    live.up();

    for n in 0..20 {
        assert_eq!(live.get(&format!("key-{n}")), n.to_string());
    }
    live.put("key-20", "20");
    live.until("the third host comes back by itself", |states| {
        let seen = |twin| states.get(&(1, twin));
        let is_back = |seen: &Value| seen["state"] == "running" && seen["incarnation"] == 1;
        (0..2).all(|twin| seen(twin).is_some_and(is_back))
    });
    let late = live.command(&["recover", "--host", "1", "--reason", "again", "--yes"]);
    assert!(stderr(&late).contains("takes part"), "{}", stderr(&late));

    // Audited: who, when, why, and of what; and every twin of these hosts has it among its evidence.
    let lines = fs::read_to_string(&record).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, host) in lines.iter().zip([0, 2]) {
        assert_eq!(
            (&line["host"], &line["reason"]),
            (&json!(host), &json!("power loss"))
        );
        assert!(line["at_s"].as_u64() > Some(0) && line["by"].is_string());
    }
    assert_eq!(
        lines[1]["memories"],
        json!([{"twin": 0, "memory": "unsure"}, {"twin": 1, "memory": "unsure"}])
    );
    let evidence = live.must(&["evidence", "--json"]);
    let evidence: Value = serde_json::from_str(&evidence).unwrap();
    let ordered = evidence["events"].as_array().unwrap().iter();
    let ordered = ordered.filter(|event| event["kind"] == "by-order");
    let by: Vec<&Value> = ordered.map(|event| &event["seen_by"]).collect();
    assert_eq!(by.len(), 4, "{by:?}");
    for twin in ["h0/t0", "h0/t1", "h2/t0", "h2/t1"] {
        assert!(by.contains(&&json!(twin)), "{twin}: {by:?}");
    }
}

/// Whether both siblings of h1/t2 ignore it, or neither does.
fn ignored(states: &std::collections::BTreeMap<(u8, u8), Value>, whom: &Value) -> bool {
    let of = |twin| states.get(&(1, twin)).map(|seen| &seen["quarantined"]);
    (0..2).all(|twin| of(twin) == Some(whom))
}

/// Three twins a host, one of which lies: its siblings quarantine it and their host goes on; it stays so when all processes of
/// the cluster are started again, log included, and ends with `twinbft readmit`.
#[test]
fn a_quarantine_outlives_a_restart_and_ends_with_readmit() {
    let live = Live::new(3, 3, &[]);
    live.fresh
        .replace("on_culprit = \"alert\"", "on_culprit = \"quarantine\"");
    live.up();
    live.put("key", "0");
    let refused = live.command(&["readmit", "h1/t7"]);
    assert!(stderr(&refused).contains("there is no h1/t7"));
    live.act(1, 2, "wrong-result");
    let mut n = 0;
    let deadline = Instant::now() + PATIENCE;
    while !ignored(&live.states(), &json!([2])) {
        n += 1;
        live.put("key", &n.to_string());
        assert!(Instant::now() < deadline, "{:#?}", live.states());
    }
    live.down();
    live.up();
    live.put("key", "after");
    live.until("the quarantine is remembered", |states| {
        let is_back = |twin| {
            states
                .get(&(1, twin))
                .is_some_and(|s| s["state"] == "running")
        };
        ignored(states, &json!([2])) && is_back(0) && is_back(1)
    });
    // The host takes part without it.
    let before = live.states()[&(1, 0)]["cross_checked"].as_u64().unwrap();
    live.put("key", "and on");
    live.until("the host is compared", |states| {
        states
            .get(&(1, 0))
            .and_then(|s| s["cross_checked"].as_u64())
            > Some(before)
    });

    let said = live.must(&["readmit", "h1/t2", "--timeout-s", "60"]);
    assert!(said.contains("is listened to again"), "{said}");
    live.until("it takes part", |states| {
        let seen = states.get(&(1, 2));
        ignored(states, &json!([])) && seen.is_some_and(|seen| seen["state"] == "running")
    });
    assert_eq!(live.get("key"), "and on");
    let evidence: Value =
        serde_json::from_slice(&live.command(&["evidence", "--json"]).stdout).unwrap();
    let events = evidence["events"].as_array().unwrap();
    for kind in ["culprit", "quarantined", "readmitted"] {
        let of_kind = events.iter().filter(|event| event["kind"] == kind);
        let about: Vec<_> = of_kind
            .map(|event| (&event["host"], &event["twin"]))
            .collect();
        assert!(!about.is_empty(), "no {kind}");
        for whom in about {
            assert_eq!(whom, (&json!(1), &json!(2)), "{kind}");
        }
    }
}

/// The policy `restart`: `twinbft guard` runs the configured command for the twin that its sibling names, with its name in the
/// environment, and `twinbft up` restarts the process by itself.
#[test]
fn who_is_named_is_restarted() {
    let live = Live::new(3, 2, &[]);
    let ran = live.fresh.path().join("ran");
    // For the guard alone: another file beside it, with a command.
    let text = fs::read_to_string(live.fresh.config()).unwrap();
    let policy = format!(
        "on_culprit = \"restart\"\nrestart_command = \"echo $TWINBFT_HOST/$TWINBFT_TWIN >> {}\"",
        ran.display()
    );
    let guarded = live.fresh.path().join("guarded.toml");
    fs::write(&guarded, text.replace("on_culprit = \"alert\"", &policy)).unwrap();
    let none = live.command(&["guard"]);
    assert!(
        stderr(&none).contains("restart_command"),
        "{}",
        stderr(&none)
    );
    live.fresh
        .replace("on_culprit = \"alert\"", "on_culprit = \"restart\"");
    live.up();
    let mut guard = twinbft()
        .args([
            "guard",
            "--host",
            "1",
            "--config",
            guarded.to_str().unwrap(),
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    live.put("key", "0");
    // What it sees first is history.
    let mut says = BufReader::new(guard.stderr.take().unwrap());
    let mut line = String::new();
    says.read_line(&mut line).unwrap();
    assert!(line.contains("guarding the twins of h1"), "{line}");
    live.act(1, 1, "wrong-result");
    let deadline = Instant::now() + PATIENCE;
    let mut n = 0;
    let is_restarted = || {
        live.states()
            .get(&(1, 1))
            .is_some_and(|seen| seen["double"].is_null())
    };
    while !(ran.exists() && is_restarted()) {
        n += 1;
        live.put("key", &n.to_string());
        assert!(
            Instant::now() < deadline,
            "{:#?}{}",
            live.states(),
            live.logs()
        );
    }
    guard.kill().unwrap();
    guard.wait().unwrap();
    let ran = fs::read_to_string(&ran).unwrap();
    assert_eq!(ran.lines().next(), Some("1/1"), "{ran}");
    // A fresh process is honest, and its host takes part again.
    live.until("its host agrees again", |states| {
        let seen = |twin| {
            states
                .get(&(1, twin))
                .is_some_and(|s| s["state"] == "running")
        };
        seen(0) && seen(1)
    });
    let before = live.states()[&(1, 0)]["cross_checked"].as_u64().unwrap();
    live.put("key", "end");
    live.until("its results are compared", |states| {
        states
            .get(&(1, 0))
            .and_then(|s| s["cross_checked"].as_u64())
            > Some(before)
    });
    assert_eq!(live.get("key"), "end");
    let usage = run(&["guard", "--host", "x"]);
    assert_eq!(usage.status.code(), Some(2));
}
