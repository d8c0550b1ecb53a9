//! What this machine says of itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::Finding;

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Domain 0 of a Xen host.
    Dom0,
    /// A guest of one.
    Guest,
    /// No Xen.
    Plain,
}

impl Kind {
    /// For people and programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dom0 => "dom0",
            Self::Guest => "guest",
            Self::Plain => "no Xen",
        }
    }
}

/// A machine: the root of its files, and its programs' answers. Tests make theirs up.
pub struct Machine {
    root: PathBuf,
    run: fn(&str, &[&str]) -> Option<String>,
}

impl Machine {
    /// The one that this runs on.
    pub fn this() -> Self {
        Self {
            root: PathBuf::from("/"),
            run: answer,
        }
    }

    #[cfg(test)]
    pub fn made_up(root: &std::path::Path, run: fn(&str, &[&str]) -> Option<String>) -> Self {
        let root = root.to_owned();
        Self { root, run }
    }

    /// `/path` of this machine.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A small file's text without its end of line.
    pub fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// What a program prints; `None` when it is not there or fails.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> Option<String> {
        (self.run)(program, arguments)
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        let capabilities = self.read("/proc/xen/capabilities").unwrap_or_default();
        if capabilities.contains("control_d") {
            Kind::Dom0
        } else if self
            .read("/sys/hypervisor/type")
            .is_some_and(|t| t == "xen")
        {
            Kind::Guest
        } else {
            Kind::Plain
        }
    }
}

fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

/// Whether somebody keeps the clock right: batches carry the leader's time.
pub fn clock(machine: &Machine) -> Finding {
    let arguments = ["show", "--property=NTPSynchronized", "--value"];
    match machine
        .ask("timedatectl", &arguments)
        .as_deref()
        .map(str::trim)
    {
        Some("yes") => Finding::fit("clock", "it is kept right over the network"),
        Some(_) => Finding::warning(
            "clock",
            "nobody keeps it right over the network",
            "run an NTP client (apt install chrony); clocks may differ by protocol.clock_bound_ms at most",
        ),
        None => Finding::warning(
            "clock",
            "it is not known whether somebody keeps it right (there is no timedatectl)",
            "make sure that an NTP client runs; clocks may differ by protocol.clock_bound_ms at most",
        ),
    }
}
