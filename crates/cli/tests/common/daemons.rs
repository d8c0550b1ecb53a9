//! The real daemons, in a cluster that is started and stopped as an operator does it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use twinbft_config::Layout;

use super::{Fresh, run, stderr, stdout};

/// Longer than anything takes on a loaded machine; only a failure waits so long.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What is built for these tests: the replica here can be told to lie.
const BUILD: [&str; 7] = [
    "--locked",
    "--bin",
    "postbox-broker",
    "--bin",
    "twinbft-replica-doubles",
    "--features",
    "twinbft-replica/byzantine-doubles",
];

/// Whoever has just built [`BUILD`] says so in this variable.
const IS_BUILT: &str = "TWINBFT_DOUBLES_BUILT";

/// Builds the daemons, which other packages than this one make, beside the command under test.
pub fn build_daemons() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_twinbft")).parent().unwrap();
    let profile = match beside.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    if std::env::var_os(IS_BUILT).is_some() {
        return beside.to_owned();
    }
    // Not the one that cargo names to tests: with rustup, this one takes the toolchain of the tree.
    let mut cargo = Command::new("cargo");
    // What cargo says to this test about its package would make that build differ from one by hand: build scripts look
    // at these variables, and would run again.
    const ABOUT_THIS: [&str; 6] = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_CFG_",
        "OUT_DIR",
    ];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ABOUT_THIS.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(name);
        }
    }
    let built = cargo
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .args(["build", "--profile", profile, "--target-dir"])
        .arg(beside.parent().unwrap())
        .args(BUILD)
        .output()
        .expect("cargo can be started");
    assert!(built.status.success(), "{}", stderr(&built));
    beside.to_owned()
}

/// A cluster on this machine; it is taken down at the end of the test, however it ends.
pub struct Live {
    pub fresh: Fresh,
    pub layout: Layout,
    bin: String,
}

impl Live {
    /// `extra` goes to `init`. Its replicas can be told to lie. Nothing runs yet.
    pub fn new(hosts: u16, twins: u16, extra: &[&str]) -> Self {
        let (n, m) = (hosts.to_string(), twins.to_string());
        let mut arguments = vec!["--hosts", &n, "--twins", &m];
        arguments.extend(extra);
        let fresh = Fresh::new(&arguments);
        let held: Vec<TcpListener> = (0..hosts * twins)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let mut ports = held.iter().map(|held| held.local_addr().unwrap().port());
        for host in 0..hosts {
            for twin in 0..twins {
                let port = ports.next().expect("one for each");
                fresh.replace(
                    &format!("\"127.0.0.1:{}\"", 7100 + 10 * host + twin),
                    &format!("\"127.0.0.1:{port}\""),
                );
            }
        }
        let bin = fresh.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let built = build_daemons();
        for (name, real) in [
            ("postbox-broker", "postbox-broker"),
            ("twinbft-replica", "twinbft-replica-doubles"),
        ] {
            symlink(built.join(real), bin.join(name)).unwrap();
        }
        let layout = Layout::new(fresh.path());
        let bin = bin.to_str().unwrap().to_owned();
        Self { fresh, layout, bin }
    }

    /// Runs a subcommand on this cluster.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut all = arguments.to_vec();
        all.extend(["--config", self.fresh.text()]);
        run(&all)
    }

    /// The same, which must succeed; what it printed.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let text = stdout(&output);
        let (errors, logs) = (stderr(&output), self.logs());
        assert!(
            output.status.success(),
            "{arguments:?}: {text}{errors}{logs}"
        );
        text
    }

    pub fn up(&self) {
        let dir = self.fresh.text();
        let output = run(&["up", dir, "--bin-dir", &self.bin, "--timeout-s", "90"]);
        assert!(
            output.status.success(),
            "{}{}",
            stderr(&output),
            self.logs()
        );
    }

    pub fn down(&self) {
        let output = run(&["down", self.fresh.text()]);
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// Tells a twin to lie, or with `off` to stop it.
    pub fn act(&self, host: u8, twin: u8, double: &str) {
        let name = format!("twin-{twin}.control");
        let path = self.layout.host_run(host).join(name);
        let mut stream = UnixStream::connect(path).expect("built with doubles");
        writeln!(stream, "byzantine {double}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert_eq!(answer, "ok\n");
    }

    pub fn put(&self, key: &str, value: &str) {
        self.must(&["kv", "put", key, value, "--timeout-ms", "90000"]);
    }

    pub fn get(&self, key: &str) -> String {
        let got = self.must(&["kv", "get", key, "--timeout-ms", "90000"]);
        got.trim_end().to_owned()
    }

    /// What each replica that answers says of itself.
    pub fn states(&self) -> BTreeMap<(u8, u8), Value> {
        let output = self.command(&["status", "--json"]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let mut states = BTreeMap::new();
        for process in document["processes"].as_array().into_iter().flatten() {
            let number = |name: &str| process[name].as_u64().and_then(|n| u8::try_from(n).ok());
            if let (Some(host), Some(twin), Some(true)) = (
                number("host"),
                number("twin"),
                process["reachable"].as_bool(),
            ) {
                states.insert((host, twin), process["status"].clone());
            }
        }
        states
    }

    /// Looks until all of it is as wanted, for as long as anything may take.
    pub fn until(&self, what: &str, wanted: impl Fn(&BTreeMap<(u8, u8), Value>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.states();
            if wanted(&seen) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: {seen:#?}{}",
                self.logs()
            );
        }
    }

    pub fn logs(&self) -> String {
        let logs = std::fs::read_dir(self.layout.log()).into_iter().flatten();
        let texts = logs.filter_map(|entry| {
            let path = entry.ok()?.path();
            let text = std::fs::read_to_string(&path).ok()?;
            Some(format!("\n--- {}\n{text}", path.display()))
        });
        texts.collect()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ended = run(&["down", self.fresh.text()]);
    }
}
