//! `--interactive`: the audience says what happens.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::Stdio;

use anyhow::Context as _;
use tokio::process::Command as Process;
use tokio::sync::mpsc;
use twinbft_types::ReplicaId;

use super::director::{Director, WRONG_RESULT};
use super::stage::{HOSTS, TWINS};

const HELP: &str = "Commands:
  byzantine h1/1 wrong-result   twin 1 of host 1 lies in its replies
  byzantine h1/1 OTHER          wrong-checkpoint, mute, half-mute, no-votes, nack-all, equivocate, spoil-macs,
                                replay, spam, forge, impersonate, garbage, or refuse SHARE: it misbehaves so
  heal                          whoever lies or misbehaves is honest again, and killed hosts come back
  kill h2                       SIGKILL to the broker and both twins of host 2
  status                        the table
  bench [SECONDS]               measure throughput and latency beside the sessions (default 2 s)
  help                          this
  quit                          stop the sessions, check everything, say the verdict
One host may be faulty at a time (f = 1). `anyway` behind byzantine or kill does it all the same.";
/// The longest measurement.
const BENCH_S_MAX: u32 = 60;

/// What can be said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Byzantine {
        twin: ReplicaId,
        anyway: bool,
    },
    Misbehave {
        twin: ReplicaId,
        how: String,
        anyway: bool,
    },
    Heal,
    Kill {
        host: u8,
        anyway: bool,
    },
    Status,
    Bench {
        seconds: u32,
    },
    Help,
    Quit,
    Nothing,
}

/// Understands a line.
fn parse(line: &str) -> Result<Command, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (words, anyway) = match words.split_last() {
        Some((&"anyway", rest)) => (rest, true),
        Some(_) | None => (&words[..], false),
    };
    match words {
        [] => Ok(Command::Nothing),
        ["byzantine", twin, WRONG_RESULT] => Ok(Command::Byzantine {
            twin: parse_twin(twin)?,
            anyway,
        }),
        ["byzantine", twin, how @ ..] if is_double(how) => Ok(Command::Misbehave {
            twin: parse_twin(twin)?,
            how: how.join(" "),
            anyway,
        }),
        ["byzantine", ..] => Err(format!(
            "say: byzantine h1/1 {WRONG_RESULT}, or one of {}, or refuse 0.01",
            DOUBLES.join(", ")
        )),
        ["kill", host] => Ok(Command::Kill {
            host: parse_host(host)?,
            anyway,
        }),
        ["kill", ..] => Err("say: kill h2".to_owned()),
        ["heal"] => Ok(Command::Heal),
        ["status"] => Ok(Command::Status),
        ["bench"] => Ok(Command::Bench { seconds: 2 }),
        ["bench", seconds] => match seconds.parse() {
            Ok(seconds @ 1..=BENCH_S_MAX) => Ok(Command::Bench { seconds }),
            Ok(_) | Err(_) => Err(format!("say: bench SECONDS, from 1 to {BENCH_S_MAX}")),
        },
        ["help" | "?"] => Ok(Command::Help),
        ["quit" | "exit"] => Ok(Command::Quit),
        [other, ..] => Err(format!("{other:?} is no command; help lists them")),
    }
}

/// What a twin can be told besides, one word each.
const DOUBLES: [&str; 12] = [
    "wrong-checkpoint",
    "mute",
    "half-mute",
    "no-votes",
    "nack-all",
    "equivocate",
    "spoil-macs",
    "replay",
    "spam",
    "forge",
    "impersonate",
    "garbage",
];

fn is_double(words: &[&str]) -> bool {
    match words {
        [name] => DOUBLES.contains(name),
        ["refuse", share] => share
            .parse()
            .is_ok_and(|share: f64| (0.0..=1.0).contains(&share)),
        _ => false,
    }
}

fn parse_host(text: &str) -> Result<u8, String> {
    let number = text.strip_prefix('h').unwrap_or(text).parse().ok();
    number
        .filter(|host| *host < HOSTS)
        .ok_or_else(|| format!("{text:?} is no host: there are h0 to h{}", HOSTS - 1))
}

fn parse_twin(text: &str) -> Result<ReplicaId, String> {
    let parsed = text.split_once('/').and_then(|(host, twin)| {
        let twin: u8 = twin.strip_prefix('t').unwrap_or(twin).parse().ok()?;
        Some(ReplicaId::new(parse_host(host).ok()?, twin)).filter(|_| twin < TWINS)
    });
    parsed.ok_or_else(|| {
        format!(
            "{text:?} is no twin: there are h0/0 to h{}/{}",
            HOSTS - 1,
            TWINS - 1
        )
    })
}

/// Obeys until told to quit, or until the input ends.
///
/// # Errors
/// When a process does not do what it is told to.
pub async fn converse(director: &mut Director<'_>) -> anyhow::Result<()> {
    director.go_on(std::time::Duration::ZERO).await;
    director.show().await;
    director.say(&format!("Sessions are at work. {HELP}"));
    let echo = !std::io::stdin().is_terminal();
    let mut lines = read_lines()?;
    loop {
        director.ask("> ");
        let Some(line) = lines.recv().await else {
            director.say("");
            return Ok(());
        };
        if echo {
            director.say(&line);
        }
        match parse(&line) {
            Ok(Command::Quit) => return Ok(()),
            Ok(command) => obey(director, command).await?,
            Err(why) => director.say(&why),
        }
    }
}

/// A thread of its own reads: the end of the demonstration does not wait for a line that nobody types.
fn read_lines() -> anyhow::Result<mpsc::Receiver<String>> {
    let (sender, receiver) = mpsc::channel(1);
    let read = move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("prompt".to_owned())
        .spawn(read)
        .context("starting a thread")?;
    Ok(receiver)
}

async fn obey(director: &mut Director<'_>, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Byzantine { twin, anyway } => byzantine(director, twin, None, anyway).await?,
        Command::Misbehave { twin, how, anyway } => {
            byzantine(director, twin, Some(how), anyway).await?;
        }
        Command::Kill { host, anyway } => kill(director, host, anyway).await?,
        Command::Heal => heal(director).await?,
        Command::Status => director.show().await,
        Command::Bench { seconds } => bench(director, seconds).await?,
        Command::Help => director.say(HELP),
        Command::Nothing | Command::Quit => {}
    }
    Ok(())
}

/// Whether one more fault at `host` is more than the cluster tolerates, and why.
fn too_much(director: &Director<'_>, host: u8) -> Option<String> {
    let down = director.killed().iter().find(|killed| **killed != host);
    let lies = director.liar().filter(|liar| liar.host.0 != host);
    match (down, lies) {
        (Some(down), _) => Some(format!(
            "h{down} is down, and one faulty host is all that 3 hosts tolerate"
        )),
        (None, Some(liar)) => Some(format!(
            "{liar} lies, and one faulty host is all that 3 hosts tolerate"
        )),
        (None, None) => None,
    }
}

async fn byzantine(
    director: &mut Director<'_>,
    twin: ReplicaId,
    how: Option<String>,
    anyway: bool,
) -> anyhow::Result<()> {
    if director.killed().contains(&twin.host.0) {
        director.say(&format!("{} is down", twin.host));
        return Ok(());
    }
    if let Some(liar) = director.liar() {
        director.say(&format!("{liar} misbehaves already: heal it first"));
        return Ok(());
    }
    if let Some(why) = too_much(director, twin.host.0) {
        if !anyway {
            director.say(&format!(
                "{why}; say: byzantine {}/{} {} anyway",
                twin.host,
                twin.twin.0,
                how.as_deref().unwrap_or(WRONG_RESULT)
            ));
            return Ok(());
        }
        director.go_beyond(why);
    }
    match how {
        None => director.lie(twin, true).await,
        Some(how) => director.misbehave(twin, &how).await,
    }
}

async fn kill(director: &mut Director<'_>, host: u8, anyway: bool) -> anyhow::Result<()> {
    if director.killed().contains(&host) {
        director.say(&format!("h{host} is down already"));
        return Ok(());
    }
    if let Some(why) = too_much(director, host) {
        if !anyway {
            director.say(&format!("{why}; say: kill h{host} anyway"));
            return Ok(());
        }
        director.go_beyond(why);
    }
    director.kill(host).await?;
    director.say(&format!("   h{host} is down, until you say heal."));
    director.show().await;
    Ok(())
}

async fn heal(director: &mut Director<'_>) -> anyhow::Result<()> {
    let down = director.killed().clone();
    if director.liar().is_none() && down.is_empty() {
        director.say("nobody lies, and nobody is down");
    }
    director.heal().await?;
    for host in &down {
        director.revive(*host).await?;
    }
    if !down.is_empty() {
        director.show().await;
    }
    Ok(())
}

/// The same command that everybody has, with a client key of its own.
async fn bench(director: &mut Director<'_>, seconds: u32) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let seconds = seconds.to_string();
    let mut command = Process::new(program);
    command
        .args([
            "bench",
            "--client",
            "1",
            "--clients",
            "16",
            "--warmup",
            "0.3",
            "--duration",
            &seconds,
            "--config",
        ])
        .arg(director.config())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = command.output().await.context("running twinbft bench")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    director.say(text.trim_end());
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        director.say(errors.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_understood() {
        let twin = ReplicaId::new(1, 1);
        for (line, expected) in [
            (
                "byzantine h1/1 wrong-result",
                Command::Byzantine {
                    twin,
                    anyway: false,
                },
            ),
            (
                "byzantine h1/t1 wrong-result anyway",
                Command::Byzantine { twin, anyway: true },
            ),
            (
                " kill  h2 ",
                Command::Kill {
                    host: 2,
                    anyway: false,
                },
            ),
            (
                "kill 0 anyway",
                Command::Kill {
                    host: 0,
                    anyway: true,
                },
            ),
            (
                "byzantine h1/1 refuse 0.05",
                Command::Misbehave {
                    twin,
                    how: "refuse 0.05".to_owned(),
                    anyway: false,
                },
            ),
            (
                "byzantine h1/1 nack-all anyway",
                Command::Misbehave {
                    twin,
                    how: "nack-all".to_owned(),
                    anyway: true,
                },
            ),
            ("heal", Command::Heal),
            ("status", Command::Status),
            ("bench", Command::Bench { seconds: 2 }),
            ("bench 5", Command::Bench { seconds: 5 }),
            ("help", Command::Help),
            ("quit", Command::Quit),
            ("", Command::Nothing),
        ] {
            assert_eq!(parse(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_explained() {
        for (line, part) in [
            ("byzantine h1/1", "say: byzantine h1/1 wrong-result"),
            ("byzantine h1/1 rude", "nack-all"),
            ("byzantine h1/1 refuse 2", "refuse 0.01"),
            ("byzantine h1/2 wrong-result", "h0/0 to h2/1"),
            ("byzantine h1 wrong-result", "h0/0 to h2/1"),
            ("kill h3", "h0 to h2"),
            ("kill", "say: kill h2"),
            ("bench 0", "from 1 to 60"),
            ("bench x", "from 1 to 60"),
            ("\u{fffd}\u{0}", "help lists them"),
        ] {
            let why = parse(line).unwrap_err();
            assert!(why.contains(part), "{line}: {why}");
        }
    }
}
