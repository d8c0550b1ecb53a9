//! `twinbft readmit`: ends the quarantine of a twin.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use twinbft_cli::cluster::Cluster;
use twinbft_types::Shape;

use crate::cmd::status::{Asked, Asker};

/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// End the quarantine of a twin, after its guest was rebuilt
///
/// Tells its siblings to listen to it again and waits until the quorum of them has said so in their host's log. Look at
/// `twinbft evidence` first: a twin that is still wrong is quarantined again. Exit status 0 when it is listened to, 1
/// otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The twin, as in h1/t2
    #[arg(value_name = "TWIN", value_parser = parse_twin)]
    twin: (u8, u8),
    /// cluster.toml, or the directory that it is in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// The administrator whose certificate to use
    #[arg(long, value_name = "ID", default_value_t = 0)]
    admin: u32,
    /// How long to wait until the host has decided, in seconds
    #[arg(long, value_name = "S", default_value_t = 10)]
    timeout_s: u64,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// As people write it: `h1/t2` or `1/2`.
fn parse_twin(text: &str) -> Result<(u8, u8), String> {
    let parsed = text.split_once('/').and_then(|(host, twin)| {
        let host = host.strip_prefix('h').unwrap_or(host).parse().ok()?;
        let twin = twin.strip_prefix('t').unwrap_or(twin).parse().ok()?;
        Some((host, twin))
    });
    parsed.ok_or_else(|| "write a twin as h1/t2".to_owned())
}

/// Tells the siblings and waits.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.config)?;
    let (host, twin) = args.twin;
    let config = &cluster.config;
    if config.twin(host, twin).is_none() {
        bail!(
            "there is no h{host}/t{twin}: {} has hosts 0 to {} with twins 0 to {}",
            cluster.file.display(),
            config.host_count() - 1,
            config.twin_count() - 1
        );
    }
    let shape = Shape::new(config.host_count(), config.twin_count())
        .expect("the bounds of the file are those of the protocol");
    if shape.unanimous() {
        bail!(
            "with two twins a host nobody is quarantined: the host of a bad twin is silent until the twin is mended"
        );
    }
    let asker = Asker::new(&cluster, args.admin)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let deadline = Instant::now() + Duration::from_secs(args.timeout_s);
    let (told, is_listened_to) = runtime.context("starting the runtime")?.block_on(async {
        let told = asker.readmit(host, twin).await;
        let agreed = told.iter().filter(|(_, said)| said.is_ok()).count();
        if agreed < shape.twin_quorum() {
            return (told, false);
        }
        loop {
            let asked = asker.ask_all().await;
            if listening(&asked, args.twin) >= shape.twin_quorum() {
                return (told, true);
            }
            if Instant::now() >= deadline {
                return (told, false);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    report(args, shape.twin_quorum(), &told, is_listened_to);
    Ok(if is_listened_to {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Siblings that do not ignore it.
fn listening(asked: &[Asked], (host, twin): (u8, u8)) -> usize {
    let siblings = asked
        .iter()
        .filter(|one| one.host == host && one.twin.is_some_and(|sibling| sibling != twin));
    let listens = |one: &&Asked| {
        let ignored = one.field("quarantined").and_then(Value::as_array);
        ignored.is_some_and(|ignored| !ignored.contains(&json!(twin)))
    };
    siblings.filter(listens).count()
}

fn report(args: &Args, needed: usize, told: &[(u8, Result<(), String>)], is_listened_to: bool) {
    let (host, twin) = args.twin;
    if args.json {
        let siblings = told.iter().map(|(sibling, said)| {
            json!({ "twin": sibling, "told": said.is_ok(), "reason": said.as_ref().err() })
        });
        println!(
            "{:#}",
            json!({
                "host": host,
                "twin": twin,
                "readmitted": is_listened_to,
                "needed": needed,
                "siblings": siblings.collect::<Vec<_>>(),
            })
        );
        return;
    }
    if is_listened_to {
        println!("h{host}/t{twin} is listened to again.");
        return;
    }
    let agreed = told.iter().filter(|(_, said)| said.is_ok()).count();
    for (sibling, said) in told {
        if let Err(why) = said {
            eprintln!("h{host}/t{sibling}: {why}");
        }
    }
    if agreed < needed {
        eprintln!("twinbft: {agreed} of {needed} siblings that are needed were told");
    } else {
        eprintln!(
            "twinbft: the siblings were told, and h{host} has not decided it within {} s; twinbft status shows whether it runs",
            args.timeout_s
        );
    }
}

#[cfg(test)]
mod tests {
    use super::parse_twin;

    #[test]
    fn a_twin_is_written_with_letters_or_without() {
        assert_eq!(parse_twin("h1/t2"), Ok((1, 2)));
        assert_eq!(parse_twin("1/2"), Ok((1, 2)));
        for wrong in ["", "h1", "h1t2", "h1/t", "h300/t1", "t1/h1"] {
            assert!(parse_twin(wrong).is_err(), "{wrong}");
        }
    }
}
