//! The installed `twinbft` command in dom0, as a client and as an administrator of a cluster.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::{await_within, say};

const COMMAND: &str = "/usr/bin/twinbft";

/// Time-outs of views double, and everything is emulated.
const PATIENCE: Duration = Duration::from_secs(240);

/// A cluster, by the directory of its configuration.
pub struct Client(pub String);

/// One replica, as it speaks of itself.
pub struct Replica {
    pub host: u64,
    twin: u64,
    pub state: String,
    pub view: u64,
    pub executed: u64,
    pub incarnation: u64,
    pub is_leader: bool,
}

impl Client {
    /// `twinbft kv put`, until it succeeds or nothing more is to be expected.
    pub fn put(&self, key: &str, value: &str) -> Result<(), String> {
        let revision = self.kv(&["put", key, value])?;
        say(&format!("put {key}: revision {revision}"));
        Ok(())
    }

    /// The same with `twinbft kv get`; fails when another value stands there.
    pub fn got(&self, key: &str, value: &str) -> Result<(), String> {
        match self.kv(&["get", key])? {
            found if found == value => Ok(()),
            found => Err(format!("it reads {found:?}")),
        }
    }

    fn kv(&self, arguments: &[&str]) -> Result<String, String> {
        let mut last = String::new();
        let done = await_within(PATIENCE, "the cluster answers", || {
            let output = Command::new(COMMAND)
                .arg("kv")
                .args(arguments)
                .args(["--config", &self.0, "--timeout-ms", "20000"])
                .output()
                .ok()?;
            if output.status.success() {
                return Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
            }
            last = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            None
        });
        done.ok_or(last)
    }

    /// The replicas that answer `twinbft status`.
    pub fn replicas(&self) -> Vec<Replica> {
        let output = Command::new(COMMAND)
            .args(["status", "--json", "--config", &self.0])
            .output();
        let document: Value = output
            .ok()
            .and_then(|output| serde_json::from_slice(&output.stdout).ok())
            .unwrap_or_default();
        let processes = document["processes"].as_array().cloned();
        let processes = processes.unwrap_or_default();
        let answering = processes
            .iter()
            .filter(|process| process["process"] == "replica" && process["reachable"] == true);
        answering.map(Replica::of).collect()
    }

    /// Waits until the replicas are as `are_so` says, and answers what they say then, or said last.
    pub fn await_replicas(
        &self,
        what: &str,
        patience: Duration,
        are_so: impl Fn(&[Replica]) -> bool,
    ) -> (bool, Vec<Replica>) {
        let mut last = Vec::new();
        let found = await_within(patience, what, || {
            last = self.replicas();
            are_so(&last).then_some(())
        });
        (found.is_some(), last)
    }
}

/// For people.
pub fn list(replicas: &[Replica]) -> String {
    let each = replicas.iter().map(|replica| {
        let Replica {
            host,
            twin,
            state,
            view,
            executed,
            incarnation,
            ..
        } = replica;
        format!(
            "h{host}t{twin} {state}, view {view}, executed {executed}, incarnation {incarnation}"
        )
    });
    each.collect::<Vec<_>>().join("; ")
}

impl Replica {
    fn of(process: &Value) -> Self {
        let status = &process["status"];
        let number = |name: &str| status[name].as_u64().unwrap_or(0);
        Self {
            host: process["host"].as_u64().unwrap_or(0),
            twin: process["twin"].as_u64().unwrap_or(0),
            state: status["state"].as_str().unwrap_or_default().to_owned(),
            view: number("view"),
            executed: number("executed"),
            incarnation: number("incarnation"),
            is_leader: status["role"] == "leader",
        }
    }
}
