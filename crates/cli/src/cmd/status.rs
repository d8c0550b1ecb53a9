//! `twinbft status`: asks every process of a cluster how it is.

mod ask;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use twinbft_cli::cluster::Cluster;
use twinbft_types::Shape;

pub use ask::{Answer, Asked, Asker};

/// How often --watch looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Show how every process of a cluster is
///
/// Asks every replica over the network with an administrator's key, and the brokers of this machine over their
/// sockets. Exit status 0 when enough hosts are live to serve clients, 1 otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// cluster.toml, or the directory that it is in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// The administrator whose certificate to use
    #[arg(long, value_name = "ID", default_value_t = 0)]
    admin: u32,
    /// One JSON document; with --watch one in each line
    #[arg(long)]
    json: bool,
    /// Ask again every second until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Asks and shows.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.config)?;
    let asker = ask::Asker::new(&cluster, args.admin)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let live = runtime.context("starting the runtime")?.block_on(async {
        if !args.watch {
            let asked = asker.ask_all().await;
            show(args, &cluster, &asked);
            return anyhow::Ok(is_live(&cluster, &asked));
        }
        loop {
            let asked = asker.ask_all().await;
            if !args.json {
                // Home, and erase what is below: less flicker than clearing first.
                print!("\x1b[H\x1b[J");
            }
            show(args, &cluster, &asked);
            tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => {}
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted.context("listening to Ctrl-C")?;
                    return Ok(is_live(&cluster, &asked));
                }
            }
        }
    })?;
    Ok(if live {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(args: &Args, cluster: &Cluster, asked: &[Asked]) {
    if args.json {
        let document = document(cluster, asked);
        if args.watch {
            println!("{document}");
        } else {
            println!("{document:#}");
        }
    } else {
        println!("{}", table::table(asked));
        println!("{}", verdict(cluster, asked));
    }
}

pub fn shape(cluster: &Cluster) -> Shape {
    Shape::new(cluster.config.host_count(), cluster.config.twin_count())
        .expect("the bounds of the file are those of the protocol")
}

/// Hosts of which `q` twins say that they run.
pub fn live_hosts(cluster: &Cluster, asked: &[Asked]) -> Vec<u8> {
    let shape = shape(cluster);
    let runs = |host: u8| {
        let twins = asked
            .iter()
            .filter(|asked| asked.host == host && asked.twin.is_some());
        // One that suspects the primary goes on as long as its host has not left the view.
        let takes_part = |state| matches!(state, Some("running" | "suspecting"));
        twins.filter(|twin| takes_part(twin.state())).count()
    };
    let hosts = cluster.config.hosts.iter().map(|host| host.id);
    hosts
        .filter(|host| runs(*host) >= shape.twin_quorum())
        .collect()
}

/// Whether `Q` hosts are live.
fn is_live(cluster: &Cluster, asked: &[Asked]) -> bool {
    live_hosts(cluster, asked).len() >= shape(cluster).host_quorum()
}

fn verdict(cluster: &Cluster, asked: &[Asked]) -> String {
    let (shape, live) = (shape(cluster), live_hosts(cluster, asked).len());
    let needed = shape.host_quorum();
    if live >= needed {
        let more = live - needed;
        let spare = if more == 1 {
            "1 more host may fail".to_owned()
        } else {
            format!("{more} more hosts may fail")
        };
        format!(
            "{live} of {} hosts are live, {needed} are needed: {spare}.",
            shape.hosts()
        )
    } else {
        format!(
            "{live} of {} hosts are live, {needed} are needed: clients are not served.",
            shape.hosts()
        )
    }
}

fn document(cluster: &Cluster, asked: &[Asked]) -> Value {
    let processes: Vec<Value> = asked
        .iter()
        .map(|asked| {
            let mut process = json!({
                "host": asked.host,
                "process": if asked.twin.is_some() { "replica" } else { "broker" },
                "twin": asked.twin,
                "reachable": matches!(asked.answer, Answer::Document(_)),
            });
            match &asked.answer {
                Answer::Document(document) => process["status"] = document.clone(),
                Answer::Unreachable(reason) => process["reason"] = json!(reason),
                Answer::Elsewhere => process["reason"] = json!("not on this machine"),
            }
            process
        })
        .collect();
    json!({
        "cluster": cluster.config.cluster.id,
        "live_hosts": live_hosts(cluster, asked),
        "host_quorum": shape(cluster).host_quorum(),
        "live": is_live(cluster, asked),
        "processes": processes,
    })
}
