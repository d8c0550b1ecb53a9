//! The policy `restart` (protocol.md 9): whoever guards a host's guests restarts the one that its siblings name.
//!
//! Nobody outside a host can check what a twin says of its sibling, so a restart must cost nothing but time: the guest
//! comes back with its disk, or from its clean image, and recovers by section 8. With three twins or more `q` siblings
//! must agree, of which one is correct. With two a liar may name its honest sibling; their host is silent in any case,
//! and each is restarted in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use twinbft_cli::cluster::Cluster;
use twinbft_config::OnCulprit;
use twinbft_types::Shape;

use crate::cmd::status::{Answer, Asked, Asker};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pause after a restart before the same host has another one.
const PAUSE: Duration = Duration::from_secs(30);
/// How long the command may take.
const COMMAND_MAX: Duration = Duration::from_secs(120);

/// Restart twins that their siblings name, by a command
///
/// Looks at all replicas every second and, when the quorum of a twin's siblings name it as the culprit, runs
/// restart_command of the section [evidence] of cluster.toml with TWINBFT_HOST and TWINBFT_TWIN in its environment: on
/// Xen, in dom0, the restart of that guest. `twinbft up` does the same for the processes that it runs. Ends with
/// Ctrl-C.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// cluster.toml, or the directory that it is in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// The administrator whose certificate to use
    #[arg(long, value_name = "ID", default_value_t = 0)]
    admin: u32,
    /// Guard the twins of this host alone, and not those of all
    #[arg(long, value_name = "H")]
    host: Option<u8>,
}

/// Looks until it is interrupted.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.config)?;
    let evidence = &cluster.config.evidence;
    let (OnCulprit::Restart, Some(command)) = (evidence.on_culprit, &evidence.restart_command)
    else {
        bail!(
            "{} has not on_culprit = \"restart\" and a restart_command in its section [evidence]",
            cluster.file.display()
        );
    };
    let mut guard = Guard::new(&cluster, args.admin)?;
    guard.only = args.host;
    let whose = args
        .host
        .map_or_else(|| "all hosts".to_owned(), |host| format!("h{host}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("starting the runtime")?.block_on(async {
        guard.begin().await;
        eprintln!(
            "twinbft: guarding the twins of {whose}; what was said of them before is history"
        );
        tokio::select! {
            () = guard.watch(async |twin| run_command(command.clone(), twin).await) => {}
            interrupted = tokio::signal::ctrl_c() => interrupted.context("listening to Ctrl-C")?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs a shell command with the twin in its environment.
///
/// # Errors
/// When it cannot be run, fails, or takes too long.
pub async fn run_command(command: String, (host, twin): (u8, u8)) -> anyhow::Result<()> {
    let mut shell = tokio::process::Command::new("/bin/sh");
    shell
        .args(["-c", &command])
        .env("TWINBFT_HOST", host.to_string())
        .env("TWINBFT_TWIN", twin.to_string())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let status = tokio::time::timeout(COMMAND_MAX, shell.status())
        .await
        .with_context(|| format!("restart_command did not end in {} s", COMMAND_MAX.as_secs()))?
        .context("running restart_command")?;
    if !status.success() {
        bail!("restart_command: {status}");
    }
    Ok(())
}

/// Watches who is named.
pub struct Guard {
    asker: Asker,
    judge: Judge,
    only: Option<u8>,
}

impl Guard {
    /// What was seen before this is history.
    ///
    /// # Errors
    /// When the administrator's certificate cannot be read.
    pub fn new(cluster: &Cluster, admin: u32) -> anyhow::Result<Self> {
        let shape = Shape::new(cluster.config.host_count(), cluster.config.twin_count())
            .expect("the bounds of the file are those of the protocol");
        Ok(Self {
            asker: Asker::new(cluster, admin)?,
            judge: Judge::new(shape),
            only: None,
        })
    }

    /// Looks for the first time.
    async fn begin(&mut self) {
        let asked = self.asker.ask_all().await;
        let named = self.judge.look(&asked, Instant::now());
        assert!(named.is_none(), "all of it is history");
    }

    /// Looks for ever, and has `restart` restart whoever must be.
    pub async fn watch(&mut self, mut restart: impl AsyncFnMut((u8, u8)) -> anyhow::Result<()>) {
        loop {
            let asked = self.asker.ask_all().await;
            let named = self.judge.look(&asked, Instant::now());
            let named = named.filter(|(host, _)| self.only.is_none_or(|only| only == *host));
            if let Some((host, twin)) = named {
                eprintln!("h{host}/t{twin} is named by its siblings and is restarted");
                if let Err(error) = restart((host, twin)).await {
                    eprintln!("twinbft: restarting h{host}/t{twin}: {error:#}");
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Who says how often that whom is wrong: host, accuser, accused.
type Accusation = (u8, u8, u8);

/// Decides who is restarted.
struct Judge {
    shape: Shape,
    /// Twins that were heard: what one says when it is first heard is history.
    heard: BTreeSet<(u8, u8)>,
    /// What was known then, and at each restart.
    known: BTreeMap<Accusation, u64>,
    restarted: BTreeMap<u8, Instant>,
}

impl Judge {
    const fn new(shape: Shape) -> Self {
        Self {
            shape,
            heard: BTreeSet::new(),
            known: BTreeMap::new(),
            restarted: BTreeMap::new(),
        }
    }

    /// The twin to restart now, if there is one.
    fn look(&mut self, asked: &[Asked], now: Instant) -> Option<(u8, u8)> {
        let counts = accusations(asked);
        for one in asked {
            if let (Some(by), Answer::Document(_)) = (one.twin, &one.answer)
                && self.heard.insert((one.host, by))
            {
                let its = |accusation: &Accusation| (accusation.0, accusation.1) == (one.host, by);
                let history = counts.iter().filter(|(accusation, _)| its(accusation));
                self.known
                    .extend(history.map(|(accusation, count)| (*accusation, *count)));
            }
        }
        let known = &mut self.known;
        let needed = self
            .shape
            .twin_quorum()
            .min(usize::from(self.shape.twins()) - 1);
        let mut accusers: BTreeMap<(u8, u8), usize> = BTreeMap::new();
        for (accusation, count) in &counts {
            if *count > known.get(accusation).copied().unwrap_or(0) {
                *accusers.entry((accusation.0, accusation.2)).or_default() += 1;
            }
        }
        let is_rested = |host: &u8| {
            let last = self.restarted.get(host);
            last.is_none_or(|last| now.duration_since(*last) >= PAUSE)
        };
        let named = accusers
            .into_iter()
            .find(|((host, _), count)| *count >= needed && is_rested(host))
            .map(|(twin, _)| twin)?;
        self.restarted.insert(named.0, now);
        // It is judged by what comes from here on.
        let about = |accusation: &Accusation| (accusation.0, accusation.2) == named;
        known.extend(
            counts
                .into_iter()
                .filter(|(accusation, _)| about(accusation)),
        );
        Some(named)
    }
}

fn accusations(asked: &[Asked]) -> BTreeMap<Accusation, u64> {
    let mut counts = BTreeMap::new();
    for one in asked {
        let (Some(by), Some(events)) = (one.twin, one.field("events").and_then(Value::as_array))
        else {
            continue;
        };
        for event in events {
            let number = |name: &str| event.get(name).and_then(Value::as_u64);
            let is_culprit = event.get("kind").and_then(Value::as_str) == Some("culprit");
            let twin = number("twin").and_then(|twin| u8::try_from(twin).ok());
            if let (true, Some(twin)) = (is_culprit, twin)
                && number("host") == Some(one.host.into())
                && twin != by
            {
                let count: &mut u64 = counts.entry((one.host, by, twin)).or_default();
                *count = (*count).max(number("count").unwrap_or(1));
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `by` of host 0 has named `twin` so often.
    fn says(by: u8, twin: u8, count: u64) -> Asked {
        let event = json!({"kind": "culprit", "host": 0, "twin": twin, "count": count});
        Asked {
            host: 0,
            twin: Some(by),
            answer: Answer::Document(json!({ "events": [event] })),
        }
    }

    /// One that has heard all twins of host 0, which said nothing.
    fn judge(twins: u8) -> Judge {
        let mut judge = Judge::new(Shape::new(3, twins).expect("a shape"));
        let silent = |twin| Asked {
            host: 0,
            twin: Some(twin),
            answer: Answer::Document(json!({ "events": [] })),
        };
        let all: Vec<Asked> = (0..twins).map(silent).collect();
        assert_eq!(judge.look(&all, Instant::now()), None);
        judge
    }

    #[test]
    fn what_was_before_is_history_and_one_word_is_enough_of_two() {
        let mut judge = Judge::new(Shape::new(3, 2).expect("a shape"));
        let now = Instant::now();
        assert_eq!(judge.look(&[], now), None);
        assert_eq!(judge.look(&[says(0, 1, 7)], now), None);
        assert_eq!(judge.look(&[says(0, 1, 7)], now), None);
        assert_eq!(judge.look(&[says(0, 1, 8)], now), Some((0, 1)));
        // It has just been restarted.
        assert_eq!(judge.look(&[says(0, 1, 9)], now), None);
        assert_eq!(judge.look(&[says(0, 1, 9)], now + PAUSE), Some((0, 1)));
        assert_eq!(judge.look(&[says(0, 1, 9)], now + 2 * PAUSE), None);
    }

    #[test]
    fn of_three_two_must_agree() {
        let (mut judge, now) = (judge(3), Instant::now());
        // A liar names whom it likes.
        assert_eq!(judge.look(&[says(2, 0, 50)], now), None);
        let both = [says(0, 2, 1), says(1, 2, 1), says(2, 0, 50)];
        assert_eq!(judge.look(&both, now), Some((0, 2)));
    }

    #[test]
    fn two_that_accuse_each_other_take_turns() {
        let (mut judge, now) = (judge(2), Instant::now());
        let both = [says(0, 1, 1), says(1, 0, 1)];
        let first = judge.look(&both, now).expect("one of them");
        assert_eq!(judge.look(&both, now), None);
        let second = judge.look(&both, now + PAUSE).expect("the other one");
        assert_ne!(first, second);
    }

    #[test]
    fn nobody_is_restarted_by_its_own_word_or_that_of_another_host() {
        let (mut judge, now) = (judge(2), Instant::now());
        let event = json!({"kind": "culprit", "host": 1, "twin": 1, "count": 1});
        let elsewhere = Asked {
            host: 0,
            twin: Some(0),
            answer: Answer::Document(json!({ "events": [event, {"kind": "culprit"}, 3] })),
        };
        assert_eq!(judge.look(&[says(1, 1, 1), elsewhere], now), None);
    }
}
