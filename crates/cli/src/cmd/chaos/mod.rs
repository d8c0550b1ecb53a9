//! `twinbft chaos`: a cluster of real processes under load, to which one fault after the other happens, and a verdict.

mod limits;
mod links;
mod mischief;
mod namespaces;
mod network;
mod plan;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::builder::PossibleValuesParser;
use twinbft_client::history::History;
use twinbft_config::Durability;

use super::demo::Told;
use super::demo::stage::{HOSTS, Setting, Stage, TWINS};
use super::demo::view::{Evidence, Snapshot, TwinView};
use super::demo::workload::Workload;
use super::status::shape;
use mischief::Mischief;
use network::{Choice, Network};
use plan::{Act, Fault, GROUPS, Plan};
use report::Report;

/// How long the cluster may take to become whole again after a fault.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to start.
const START: Duration = Duration::from_secs(30);
/// All processes are asked again after this long.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Bound of the search for each key.
const CHECK_STEPS_MAX: u64 = 50_000_000;

/// Do harm to a cluster under load and check what its clients saw
///
/// Starts a cluster as processes of this machine in a temporary directory, with durability "group", and lets the sessions of
/// three clients read, write and compare-and-swap. Faults are drawn from the seed, one after the other and up to four at a
/// time: processes are killed, stopped and restarted, disks wiped, hosts cut off, parted, muted and slowed, packets lost, twins
/// are Byzantine; never more than the model allows (of three hosts of two twins: one host). After each the cluster must
/// become whole again within 30 s. At the end everything that clients saw is checked for linearizability, and every
/// acknowledged write is read again. Exit status 0 when all is as it must be, 1 otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Everything is drawn from it; by default a new one, which is printed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// For how long
    #[arg(long, value_name = "M", default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// N: hosts; 3 or 4 survive one faulty host, 5 two
    #[arg(long, default_value_t = HOSTS, value_parser = clap::value_parser!(u8).range(3..=5))]
    hosts: u8,
    /// m: twins of each host; 2 detect one Byzantine twin, 3 mask it
    #[arg(long, default_value_t = TWINS, value_parser = clap::value_parser!(u8).range(2..=3))]
    twins: u8,
    /// What connects the hosts
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    network: Choice,
    /// Only faults of these kinds or groups of kinds
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = PossibleValuesParser::new(kind_names()))]
    only: Vec<String>,
    /// The verdict as one JSON document on the standard output; everything else goes to the standard error
    #[arg(long)]
    json: bool,
    /// Use this new directory for everything, logs included, and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Where postbox-broker and twinbft-replica-doubles are; by default beside this program
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if (0.05..=1440.0).contains(&minutes) => Ok(minutes),
        Ok(_) | Err(_) => Err("not a number of minutes from 0.05 to 1440".to_owned()),
    }
}

fn kind_names() -> Vec<&'static str> {
    let groups = GROUPS.iter().map(|(group, _)| *group);
    groups.chain(plan::kinds(&[])).collect()
}

/// Runs it and says the verdict.
///
/// # Errors
/// When the cluster cannot be started or driven at all.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => u64::from(getrandom::u32().context("asking for random bytes")?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let told = runtime
        .block_on(async { Told::new() })
        .context("listening to signals")?;
    let mut laid = None;
    let setting = Setting {
        keep: args.keep.as_deref(),
        bin_dir: args.bin_dir.as_deref(),
        durability: Durability::Group,
        hosts: args.hosts,
        twins: args.twins,
    };
    let mut stage = Stage::set(&setting, |cluster, programs| {
        laid = Some(Network::lay(args.network, cluster, programs)?);
        Ok(())
    })?;
    let mut network = laid.expect("laid before the processes start");
    eprintln!(
        "chaos: seed {seed}, {} hosts x {} twins, {} minutes, in {}",
        args.hosts,
        args.twins,
        args.minutes,
        stage.directory().display()
    );
    eprintln!("chaos: network: {}", network.describe());
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            () = told.wait() => Ok(None),
            report = play(args, seed, &mut stage, &mut network) => report.map(Some),
        }
    });
    let stopped = stage.stop();
    // After the processes that are in it.
    drop(network);
    let (_, kept) = stopped?;
    runtime.shutdown_background();
    if let Some(path) = kept {
        eprintln!("chaos: kept {} (logs in log/)", path.display());
    }
    let Some(report) = outcome? else {
        eprintln!("chaos: interrupted");
        return Ok(ExitCode::from(130));
    };
    if args.json {
        println!("{:#}", report.json());
    } else {
        println!("{}", report.text());
    }
    Ok(if report.problems().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What was seen so far.
struct Run<'r> {
    stage: &'r Stage,
    load: Workload,
    evidence: Evidence,
    view: u64,
    faults: BTreeMap<&'static str, u64>,
    liars: BTreeSet<twinbft_types::ReplicaId>,
    longest_stall: (Duration, String),
    unmet: Vec<String>,
}

async fn play(
    args: &Args,
    seed: u64,
    stage: &mut Stage,
    network: &mut Network,
) -> anyhow::Result<Report> {
    network.start()?;
    stage.ready(START).await?;
    let begun = Instant::now();
    let load_average_before = load_average();
    let end = begun + Duration::from_secs_f64(args.minutes * 60.0);
    let mut plan = Plan::new(seed, shape(&stage.cluster), plan::kinds(&args.only));
    let (stage, network): (&Stage, &Network) = (stage, network);
    let mut run = Run {
        stage,
        load: Workload::start(&stage.cluster).await?,
        evidence: Evidence::default(),
        view: 0,
        faults: BTreeMap::new(),
        liars: BTreeSet::new(),
        longest_stall: (Duration::ZERO, "nothing".to_owned()),
        unmet: Vec::new(),
    };
    let mischief = Mischief { stage, network };
    while Instant::now() < end && run.unmet.is_empty() {
        let act = plan.draw();
        eprintln!(
            "chaos: {:6.1} s  {act}, for {} ms",
            begun.elapsed().as_secs_f64(),
            act.lasts.as_millis()
        );
        run.note(&act);
        mischief
            .carry_out(&act)
            .await
            .with_context(|| act.to_string())?;
        run.until_whole(&act).await;
        tokio::time::sleep(act.rest).await;
        run.note_stall(&act);
    }
    let report = run.finish(args, seed, network, begun).await?;
    Ok(Report {
        load_averages: [load_average_before, load_average()],
        ..report
    })
}

impl Run<'_> {
    fn note(&mut self, act: &Act) {
        for fault in &act.faults {
            *self.faults.entry(fault.kind()).or_default() += 1;
            if let Fault::Byzantine(twin, _) = fault {
                self.liars.insert(*twin);
            }
        }
    }

    fn note_stall(&mut self, act: &Act) {
        let longest = self.load.record().longest_stall;
        if longest > self.longest_stall.0 {
            self.longest_stall = (longest, act.to_string());
        }
    }

    async fn look(&mut self) -> Snapshot {
        let snapshot = self.stage.look(&mut self.evidence).await;
        let views = snapshot.twins.values().flatten().map(|twin| twin.view);
        self.view = self.view.max(views.max().unwrap_or(0));
        snapshot
    }

    /// Waits until every process takes part again.
    async fn until_whole(&mut self, act: &Act) {
        let begun = Instant::now();
        loop {
            let snapshot = self.look().await;
            let missing = missing(&snapshot, self.stage.cluster.config.host_count());
            if missing.is_empty() {
                return;
            }
            if begun.elapsed() >= PATIENCE {
                self.unmet.push(format!(
                    "{} s after this ended: {act}, the cluster is not whole: {}",
                    PATIENCE.as_secs(),
                    missing.join(", ")
                ));
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn finish(
        mut self,
        args: &Args,
        seed: u64,
        network: &Network,
        begun: Instant,
    ) -> anyhow::Result<Report> {
        eprintln!("chaos: reading every acknowledged write again, and checking what clients saw");
        let elapsed = begun.elapsed();
        self.look().await;
        let (record, _, lost) = self.load.finish().await;
        let history: History = record.history;
        let check = tokio::task::spawn_blocking(move || history.check(CHECK_STEPS_MAX));
        let linearizable = check.await.context("checking the history")?.into();
        Ok(Report {
            seed,
            hosts: args.hosts,
            twins: args.twins,
            network: (network.name(), network.describe()),
            repeat: repeat(args, seed, network),
            load_averages: Default::default(),
            elapsed,
            faults: self.faults,
            operations: record.operations,
            errors: (record.errors, record.first_error),
            linearizable,
            writes: (record.kept.len() as u64, lost),
            longest_stall: (record.longest_stall, self.longest_stall.1),
            view: self.view,
            liars: self.liars,
            evidence: self.evidence,
            unmet: self.unmet,
        })
    }
}

/// Of the last minute.
fn load_average() -> String {
    let loads = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = loads.split(' ').next().filter(|load| !load.is_empty());
    first.unwrap_or("unknown").to_owned()
}

/// The arguments that draw the same faults again.
fn repeat(args: &Args, seed: u64, network: &Network) -> String {
    let mut repeat = format!(
        "--seed {seed} --minutes {} --hosts {} --twins {} --network {}",
        args.minutes,
        args.hosts,
        args.twins,
        network.name()
    );
    if !args.only.is_empty() {
        repeat += &format!(" --only {}", args.only.join(","));
    }
    repeat
}

/// Who does not take part, and why.
fn missing(snapshot: &Snapshot, hosts: u8) -> Vec<String> {
    let mut missing: Vec<String> = (0..hosts)
        .filter(|host| !snapshot.brokers.contains(host))
        .map(|host| format!("the broker of h{host} does not answer"))
        .collect();
    for (id, view) in &snapshot.twins {
        match view {
            None => missing.push(format!("{id} does not answer")),
            Some(TwinView {
                double: Some(double),
                ..
            }) => missing.push(format!("{id} is still Byzantine ({double})")),
            Some(view) if view.state == "running" || view.state == "suspecting" => {}
            Some(view) => missing.push(format!("{id} is {}", view.state)),
        }
    }
    missing
}
