//! `twinbft doctor`: whether this machine is fit for its part in a cluster, and what to do where it is not.

mod machine;
mod network;
mod storage;
mod twins;
mod xen;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Value, json};
use twinbft_cli::cluster::Cluster;

use machine::Machine;

/// Say whether this machine is fit for its part in the cluster
///
/// In dom0 and in a guest of a Xen host, or on a laptop: Xen and its policy, devices and modules, limits against what the
/// configuration needs, xenstore, the clock, the disk, keys, the other replicas, and twins that share what they should not.
/// Changes nothing; writes a small file in the cluster's directory to measure the disk, and removes it. Exit status 0 when the
/// machine is fit (warnings or not), 1 when it is not.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// cluster.toml, or the directory that it is in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// The host that this machine is, or is a guest of
    #[arg(long, value_name = "H", default_value_t = 0)]
    host: u8,
    /// In a guest: the twin that it is
    #[arg(long, value_name = "T")]
    twin: Option<u8>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Fit,
    /// It works, but not as well as it could, or it could not be looked at.
    Warning,
    /// It does not work.
    Unfit,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Fit => "ok",
            Self::Warning => "warning",
            Self::Unfit => "unfit",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    check: &'static str,
    verdict: Verdict,
    /// What was found, with its value.
    text: String,
    /// What to do; empty when nothing is to be done.
    remedy: String,
}

impl Finding {
    fn fit(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Fit,
            text: text.into(),
            remedy: String::new(),
        }
    }

    fn warning(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (verdict, text, remedy) = (Verdict::Warning, text.into(), remedy.into());
        Self {
            check,
            verdict,
            text,
            remedy,
        }
    }

    fn unfit(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (verdict, text, remedy) = (Verdict::Unfit, text.into(), remedy.into());
        Self {
            check,
            verdict,
            text,
            remedy,
        }
    }

    fn json(&self) -> Value {
        json!({ "check": self.check, "verdict": self.verdict.name(), "text": self.text, "remedy": self.remedy })
    }
}

/// Whose fitness is asked for.
struct Part<'a> {
    cluster: &'a Cluster,
    host: u8,
    twin: Option<u8>,
}

/// Looks at everything and shows it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.config)?;
    let config = &cluster.config;
    let is_there = match args.twin {
        Some(twin) => config.twin(args.host, twin).is_some(),
        None => config.host(args.host).is_some(),
    };
    if !is_there {
        bail!(
            "{} has hosts 0 to {} with twins 0 to {}; check --host and --twin",
            cluster.file.display(),
            config.host_count() - 1,
            config.twin_count() - 1
        );
    }
    let part = Part {
        cluster: &cluster,
        host: args.host,
        twin: args.twin,
    };
    let machine = Machine::this();
    let findings = look(&machine, &part);
    let is_fit = findings.iter().all(|f| f.verdict != Verdict::Unfit);
    if args.json {
        let findings: Vec<Value> = findings.iter().map(Finding::json).collect();
        let document = json!({
            "machine": machine.kind().name(),
            "host": args.host,
            "twin": args.twin,
            "fit": is_fit,
            "findings": findings,
        });
        println!("{document:#}");
    } else {
        print!("{}", text(&findings));
        let kind = machine.kind().name();
        let verdict = if is_fit { "is fit" } else { "is NOT fit" };
        println!(
            "This machine ({kind}) {verdict} for its part of host {}.",
            args.host
        );
    }
    Ok(if is_fit {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn look(machine: &Machine, part: &Part<'_>) -> Vec<Finding> {
    let mut findings = xen::look(machine, part);
    findings.push(machine::clock(machine));
    findings.push(storage::disk(part));
    findings.extend(storage::keys(machine, part));
    findings.extend(network::peers(part));
    findings.extend(twins::look(machine, part));
    findings
}

fn text(findings: &[Finding]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for finding in findings {
        let verdict = finding.verdict.name();
        writeln!(text, "{verdict:8} {:10} {}", finding.check, finding.text)
            .expect("writing to a string cannot fail");
        if !finding.remedy.is_empty() {
            writeln!(text, "{:19} -> {}", "", finding.remedy)
                .expect("writing to a string cannot fail");
        }
    }
    text
}
