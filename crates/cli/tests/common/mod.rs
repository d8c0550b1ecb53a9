//! What the tests of the command share.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod daemons;
pub mod fakes;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The command, in a directory of its own where nothing is.
pub fn twinbft() -> Command {
    Command::new(env!("CARGO_BIN_EXE_twinbft"))
}

/// Runs the command to its end.
pub fn run(arguments: &[&str]) -> Output {
    twinbft()
        .args(arguments)
        .output()
        .expect("the command can be started")
}

/// What it printed, for people.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it complained about.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A fresh cluster by `twinbft init`.
pub struct Fresh {
    /// Removed at the end of the test.
    pub temporary: TempDir,
}

impl Fresh {
    /// `extra` goes to `init`.
    pub fn new(extra: &[&str]) -> Self {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let fresh = Self { temporary };
        let mut arguments = vec!["init", fresh.text()];
        arguments.extend(extra);
        let output = run(&arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        fresh
    }

    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    pub fn text(&self) -> &str {
        self.path()
            .to_str()
            .expect("temporary directories have plain names")
    }

    pub fn config(&self) -> PathBuf {
        self.path().join("cluster.toml")
    }

    /// Edits the configuration.
    pub fn replace(&self, old: &str, new: &str) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(old), "the file has {old:?}");
        std::fs::write(self.config(), text.replacen(old, new, 1)).unwrap();
    }
}
