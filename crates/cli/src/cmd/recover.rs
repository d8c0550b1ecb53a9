//! `twinbft recover`: an operator lets a host go on from what its disks hold, when nobody is left to tell it more
//! (protocol.md 8: "needs an operator").

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::{Value, json};
use twinbft_cli::cluster::Cluster;
use twinbft_types::Shape;

use super::secret_file;
use super::status::{Answer, Asked, Asker};

/// Let a host go on from what its disks hold, though promises may be missing
///
/// For the case that more hosts than the cluster can spare lost their postbox's log at once and some of their disks, or a
/// moment of them, too: then no `Q` hosts are left that could tell the others where they are, and the cluster stays silent.
/// The host's replicas must run, so that they can say what they remember. It is refused as long as enough hosts
/// take part. Without --yes it only says what would be given up. What was ordered is recorded in recover.log beside
/// cluster.toml and in the replicas' directories.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The host that is to be believed; run this on its machine
    #[arg(long, value_name = "H")]
    host: u8,
    /// Who decided this, and why; it is recorded
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// cluster.toml, or the directory that it is in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// The administrator whose certificate to use
    #[arg(long, value_name = "ID", default_value_t = 0)]
    admin: u32,
}

/// Asks, judges, and writes the order.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.config)?;
    let asker = Asker::new(&cluster, args.admin)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let asked = runtime
        .context("starting the runtime")?
        .block_on(asker.ask_all());
    let shape = super::status::shape(&cluster);
    let live = super::status::live_hosts(&cluster, &asked);
    let memories = match judge(shape, args.host, &live, &asked) {
        Ok(memories) => memories,
        Err(refusal) => {
            eprintln!("Refused: {refusal}");
            return Ok(ExitCode::FAILURE);
        }
    };
    print!("{}", what_is_given_up(args.host, &memories.twins));
    if !args.yes {
        println!("Nothing was changed. With --yes it is ordered.");
        return Ok(ExitCode::FAILURE);
    }
    order(args, &cluster, &memories)?;
    println!(
        "Ordered and recorded in {}.\nNow start host {}'s broker and replicas anew, so that its log begins again: for example `twinbft down` and `twinbft up`.\nDo the same for further hosts until {} are live; those that remain come back by themselves.",
        audit_file(&cluster).display(),
        args.host,
        shape.host_quorum()
    );
    Ok(ExitCode::SUCCESS)
}

/// What is known of a host of which an operator is needed.
#[derive(Debug)]
struct Memories {
    /// What each twin's disk remembers.
    twins: Vec<(u8, String)>,
    /// The epoch of its log, in which it has forgotten.
    epoch: u64,
}

/// What each twin of the host remembers, when an operator is needed; or why none is.
fn judge(shape: Shape, host: u8, live: &[u8], asked: &[Asked]) -> Result<Memories, String> {
    if host >= shape.hosts() {
        return Err(format!("the cluster has hosts 0 to {}", shape.hosts() - 1));
    }
    if live.contains(&host) {
        return Err(format!("host {host} takes part"));
    }
    let quorum = shape.host_quorum();
    if live.len() >= quorum {
        return Err(format!(
            "{} hosts take part, and {quorum} are enough to tell host {host} where they are; start its broker and its replicas, with empty directories where disks are lost, and it comes back by itself without giving anything up",
            live.len()
        ));
    }
    let of_host = |a: &&Asked| a.host == host;
    let broker = asked.iter().filter(of_host).find(|a| a.twin.is_none());
    let epoch = broker.and_then(|broker| broker.field("epoch")?.as_u64());
    let Some(epoch) = epoch else {
        return Err(format!(
            "the broker of host {host} does not answer here; run this on its machine, with its broker and replicas started"
        ));
    };
    let twins = asked.iter().filter(of_host);
    let mut memories = Vec::new();
    for (twin, asked) in twins.filter_map(|a| Some((a.twin?, a))) {
        if let Answer::Unreachable(reason) = &asked.answer {
            return Err(format!(
                "twin {twin} of host {host} does not answer ({reason}); start it, so that it can say what its disk holds"
            ));
        }
        let is_mute = matches!(
            asked.state(),
            Some("waiting-for-hellos" | "has-forgotten" | "recovering")
        );
        if !is_mute {
            return Err(format!(
                "twin {twin} of host {host} is {}: it does not wait for a memory; wait, or look at the other hosts",
                asked.state().unwrap_or("in no known state")
            ));
        }
        let memory = asked.field("memory").and_then(Value::as_str);
        memories.push((twin, memory.unwrap_or("lost").to_owned()));
    }
    // A twin whose disk is lost says nothing before others have given it the state, which nobody can while the cluster stands.
    let remember = memories.iter().filter(|(_, memory)| memory != "lost");
    let (remember, needed) = (remember.count(), shape.twin_quorum());
    if remember < needed {
        return Err(format!(
            "{remember} twins of host {host} have a disk that remembers anything, and {needed} are needed; order it for other hosts, and this one comes back by itself"
        ));
    }
    Ok(Memories {
        twins: memories,
        epoch,
    })
}

fn what_is_given_up(host: u8, memories: &[(u8, String)]) -> String {
    let mut text = format!("Host {host} would go on from what its disks hold:\n");
    for (twin, memory) in memories {
        let what = match memory.as_str() {
            "whole" => "its disk has all that it promised",
            "unsure" => {
                "its machine started again and durability is not \"sync\": its last promises may be missing"
            }
            _ => "its disk remembers nothing; it would follow its siblings",
        };
        text += &format!("  twin {twin}: {what}\n");
    }
    text += "What you give up: a write that was acknowledged in the last moment before the loss is gone for good if no host that\n\
             is believed has it on a disk, and a fast read may have shown it. Bring back every disk that can be brought back first.\n";
    text
}

fn audit_file(cluster: &Cluster) -> PathBuf {
    cluster.layout.directory().join("recover.log")
}

fn order(args: &Args, cluster: &Cluster, memories: &Memories) -> anyhow::Result<()> {
    let Memories {
        twins: memories,
        epoch,
    } = memories;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let at_s = now.map_or(0, |since| since.as_secs());
    let by = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .unwrap_or_else(|_| "unknown".to_owned());
    let reason = args.reason.replace(['\n', '\r'], " ");
    for (twin, _) in memories {
        let data = cluster.layout.twin_data(args.host, *twin);
        if !data.is_dir() {
            anyhow::bail!(
                "{} is not on this machine; run this on that of host {}",
                data.display(),
                args.host
            );
        }
    }
    // The record comes first: an order without one must not be.
    let record = json!({
        "at_s": at_s, "by": by, "reason": reason, "cluster": cluster.config.cluster.id, "host": args.host,
        "after_epoch": epoch,
        "memories": memories.iter().map(|(twin, memory)| json!({"twin": twin, "memory": memory})).collect::<Vec<_>>(),
    });
    let path = audit_file(cluster);
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    writeln!(file, "{record}")
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", path.display()))?;
    for (twin, _) in memories {
        let path = cluster.layout.twin_data(args.host, *twin).join("recover");
        let text = format!(
            "cluster {}\ntwin h{}/t{twin}\nafter {epoch}\nat {at_s}\nby {by}\nreason {reason}\n",
            cluster.config.cluster.id, args.host
        );
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        secret_file::write(&path, &text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape::new(3, 2).unwrap()
    }

    fn twin(host: u8, twin: u8, state: &str, memory: &str) -> Asked {
        Asked {
            host,
            twin: Some(twin),
            answer: Answer::Document(json!({"state": state, "memory": memory})),
        }
    }

    fn broker(host: u8) -> Asked {
        Asked {
            host,
            twin: None,
            answer: Answer::Document(json!({"epoch": 7})),
        }
    }

    fn mute(memory: &str) -> Vec<Asked> {
        vec![
            broker(1),
            twin(1, 0, "has-forgotten", memory),
            twin(1, 1, "waiting-for-hellos", "whole"),
        ]
    }

    #[test]
    fn it_is_refused_while_enough_hosts_take_part() {
        let refusal = judge(shape(), 1, &[0, 2], &mute("lost")).unwrap_err();
        assert!(refusal.contains("by itself"), "{refusal}");
        let refusal = judge(shape(), 1, &[1], &mute("lost")).unwrap_err();
        assert!(refusal.contains("takes part"), "{refusal}");
        assert!(judge(shape(), 7, &[], &mute("lost")).is_err());
    }

    #[test]
    fn it_is_refused_for_who_does_not_answer_runs_or_has_nothing() {
        let mut asked = mute("lost");
        asked[1].answer = Answer::Unreachable("refused".to_owned());
        assert!(
            judge(shape(), 1, &[], &asked)
                .unwrap_err()
                .contains("does not answer")
        );
        asked[1] = twin(1, 0, "catching-up", "whole");
        assert!(
            judge(shape(), 1, &[], &asked)
                .unwrap_err()
                .contains("catching-up")
        );
        asked[0].answer = Answer::Elsewhere;
        let refusal = judge(shape(), 1, &[], &asked).unwrap_err();
        assert!(refusal.contains("on its machine"), "{refusal}");
        let nothing = [
            broker(1),
            twin(1, 0, "has-forgotten", "lost"),
            twin(1, 1, "has-forgotten", "lost"),
        ];
        assert!(
            judge(shape(), 1, &[], &nothing)
                .unwrap_err()
                .contains("0 twins of host 1")
        );
        let refusal = judge(shape(), 1, &[], &mute("lost")).unwrap_err();
        assert!(refusal.contains("1 twins of host 1"), "{refusal}");
    }

    #[test]
    fn what_is_given_up_is_said_for_each_twin() {
        let memories = judge(shape(), 1, &[0], &mute("unsure")).unwrap();
        assert_eq!(memories.epoch, 7);
        let text = what_is_given_up(1, &memories.twins);
        assert!(text.contains("twin 0: its machine started again"), "{text}");
        assert!(text.contains("twin 1: its disk has all"), "{text}");
        assert!(text.contains("gone for good"), "{text}");
        let text = what_is_given_up(1, &[(0, "lost".to_owned())]);
        assert!(text.contains("its disk remembers nothing"), "{text}");
    }
}
