//! `twinbft bench`: puts a load on a cluster and says what came of it.

mod cluster;
mod etcd;
mod failover;
mod fault;
mod load;
mod machine;
mod report;
pub mod server;
mod single;
mod workload;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{ProcessName, running};
use twinbft_types::{ReplicaId, Shape, View};

use cluster::ClusterLane;
use etcd::EtcdLane;
use fault::Fault;
use load::{Lane, Measured, Plan, Watch};
use machine::{Machine, Meter, load_average};
use report::{Messages, Report, RunReport};
use single::SingleLane;
use workload::{Kind, Workload};

/// Ticks of the progress bar.
const BAR_LENGTH: u64 = 1000;
/// With --requests alone, a run still ends.
const DURATION_MAX_S: f64 = 600.0;
const DURATION_DEFAULT_S: f64 = 10.0;

/// Measure a cluster under load
///
/// Closed loop: each of --clients waits for its answer before it asks again. Open loop: --rate operations a second are
/// due at even distances whether or not earlier ones are answered, and the latency counts from when they were due.
/// Exit status 0 when every operation was answered, 1 otherwise.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// cluster.toml, or the directory that it is in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// The client whose keys to use
    #[arg(long, value_name = "ID", default_value_t = 0)]
    client: u32,
    /// Operations at a time, each in a session of its own
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    clients: u32,
    /// Open loop: operations a second
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,
    /// Bytes of a request; with --workload kv of a value
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    request_size: u32,
    /// Bytes of a reply that the service null is asked for
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    reply_size: u32,
    /// What to ask; the default is what the cluster's service understands
    #[arg(long, value_enum)]
    workload: Option<Kind>,
    /// Share of reads among the operations of --workload kv, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    read_ratio: f64,
    /// Ask for fast reads, which are ordered only when the hosts do not agree at once
    #[arg(long)]
    fast_reads: bool,
    /// Keys of --workload kv
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
    /// How long to measure, in seconds [default: 10; with --requests: 600 at most]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    duration: Option<f64>,
    /// How many operations to measure
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// How long to load before measuring, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = not_negative)]
    warmup: f64,
    /// Connections to each replica
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Put the same load on something simpler afterwards, and print the ratio
    #[arg(long, value_enum)]
    baseline: Option<Baseline>,
    /// Put the same load on the cluster again while one twin of each host refuses this share of the batches, and so causes view
    /// changes (needs replicas built with Byzantine doubles)
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "target")]
    fault_rate: Option<f64>,
    /// Put the same load on the cluster again and kill (SIGKILL) the replicas of the primary host in the middle; prints the longest
    /// stall and how much is answered in the second behind it (needs a cluster that `twinbft up` started here)
    #[arg(long, conflicts_with_all = ["target", "requests"])]
    kill_primary: bool,
    /// Another system instead of the cluster: etcd=http://HOST:PORT[,http://HOST:PORT...]
    #[arg(long, value_name = "SYSTEM", value_parser = parse_target)]
    target: Option<EtcdEndpoints>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// What is done to a cluster in the middle of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    None,
    KillPrimary,
}

/// What to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Baseline {
    /// One unreplicated server of the same service over the same stream and TLS, without MACs and log
    Single,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct EtcdEndpoints(Vec<String>);

fn parse_target(text: &str) -> Result<EtcdEndpoints, String> {
    let endpoints = text
        .strip_prefix("etcd=")
        .ok_or("write etcd=http://HOST:PORT, several of them with commas between")?;
    let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
    match endpoints
        .iter()
        .find(|endpoint| !endpoint.starts_with("http://"))
    {
        Some(wrong) => Err(format!("{wrong:?} is no endpoint; write http://HOST:PORT")),
        None => Ok(EtcdEndpoints(endpoints)),
    }
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        Ok(_) | Err(_) => Err(format!("not a number from {least} to {most}")),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, 0.001, 1e7)
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1e5)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1.0)
}

/// Runs the load and prints the report.
///
/// # Errors
/// When a target cannot be reached or does not fit the load.
pub async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(&args);
    let mut runs = Vec::new();
    let kind;
    if let Some(EtcdEndpoints(endpoints)) = &args.target {
        if args.baseline.is_some() {
            bail!("--baseline compares with a cluster; leave out --target");
        }
        kind = args.workload.unwrap_or(Kind::Null);
        runs.push(run_etcd(&args, plan, endpoints, shape(&args, kind)).await?);
    } else {
        let cluster = Cluster::load(&args.config)?;
        kind = workload_of(&args, &cluster)?;
        let usual = Disturbance::None;
        runs.push(run_cluster(&args, plan, &cluster, shape(&args, kind), usual).await?);
        if args.kill_primary {
            let kills = Disturbance::KillPrimary;
            runs.push(run_cluster(&args, plan, &cluster, shape(&args, kind), kills).await?);
        }
        if let Some(rate) = args.fault_rate {
            let fault = Fault::begin(&cluster, rate).await?;
            let usual = Disturbance::None;
            let outcome = run_cluster(&args, plan, &cluster, shape(&args, kind), usual).await;
            let views = fault.end().await?;
            let mut run = outcome?;
            run.target += &format!(", a twin of each host refusing {rate} of the batches");
            run.setting.insert("view changes", views.to_string());
            runs.push(run);
        }
        match args.baseline {
            Some(Baseline::Single) => {
                runs.push(run_single(&args, plan, &cluster, shape(&args, kind)).await?);
            }
            None => {}
        }
    }
    let report = Report {
        command: std::env::args().collect(),
        load: describe(&args, kind),
        machine: Machine::here(),
        runs,
    };
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn plan(args: &BenchArgs) -> Plan {
    let default = if args.requests.is_some() {
        DURATION_MAX_S
    } else {
        DURATION_DEFAULT_S
    };
    Plan {
        clients: args.clients as usize,
        rate: args.rate,
        duration: Duration::from_secs_f64(args.duration.unwrap_or(default)),
        requests: args.requests,
        warmup: Duration::from_secs_f64(args.warmup),
    }
}

fn shape(args: &BenchArgs, kind: Kind) -> workload::Shape {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the argument is a share from 0 to 1"
    )]
    let read_percent = (args.read_ratio * 100.0).round() as u8;
    workload::Shape {
        kind,
        request_bytes: args.request_size as usize,
        reply_bytes: args.reply_size,
        read_percent,
        keys: args.keys,
    }
}

/// The load must be one that the cluster's service understands: anything else measures refusals.
fn workload_of(args: &BenchArgs, cluster: &Cluster) -> anyhow::Result<Kind> {
    let service = cluster.config.service.name.as_str();
    let native = match service {
        "null" => Some(Kind::Null),
        "kv" => Some(Kind::Kv),
        _ => None,
    };
    let file = cluster.file.display();
    match (args.workload, native) {
        (Some(wanted), Some(native)) if wanted == native => Ok(native),
        (None, Some(native)) => Ok(native),
        (Some(wanted), Some(_)) => bail!(
            "{file} runs the service {service}, which does not understand --workload {wanted:?}; leave it out, or name \
             the other service there"
        ),
        (_, None) => {
            bail!("{file} runs the service {service}, which this command has no operations for")
        }
    }
}

fn describe(args: &BenchArgs, kind: Kind) -> String {
    let pace = args.rate.map_or_else(
        || format!("closed loop, {} clients", args.clients),
        |rate| {
            format!(
                "open loop, {rate} operations/s, {} at a time at most",
                args.clients
            )
        },
    );
    match kind {
        Kind::Null => format!(
            "{pace}; service null, requests of {} B, replies of {} B",
            args.request_size, args.reply_size
        ),
        Kind::Kv => format!(
            "{pace}; service kv, {:.0} % reads{}, {} keys, values of {} B",
            args.read_ratio * 100.0,
            if args.fast_reads { " (fast)" } else { "" },
            args.keys,
            args.request_size
        ),
    }
}

async fn run_cluster(
    args: &BenchArgs,
    plan: Plan,
    cluster: &Cluster,
    shape: workload::Shape,
    disturbance: Disturbance,
) -> anyhow::Result<RunReport> {
    let (clients, connections) = (plan.clients, usize::from(args.connections));
    let mut lane =
        ClusterLane::connect(cluster, args.client, clients, connections, args.fast_reads).await?;
    let view = lane
        .stats()
        .await
        .first()
        .map_or(View(0), |stats| stats.view);
    let config = &cluster.config;
    let target = format!(
        "twinbft, {} hosts x {} twins",
        config.host_count(),
        config.twin_count()
    );
    let mut report = match disturbance {
        Disturbance::None => measure(&mut lane, plan, shape, roles(cluster, view)).await?,
        Disturbance::KillPrimary => {
            failover::measure(cluster, view, &mut lane, plan, shape).await?
        }
    };
    report.target = target + &report.target;
    report.messages = Some(Messages::of(&lane.stats().await));
    report.setting.extend([
        ("durability", config.storage.durability.name().to_owned()),
        ("execution", config.protocol.execution.name().to_owned()),
        (
            "suspect after",
            format!("{} ms", config.protocol.suspect_after_ms),
        ),
        ("connections", connections.to_string()),
        (
            "crypto",
            "HMAC-SHA256 cut to 128 bits, keys from X25519; mutual TLS (rustls, ring)".to_owned(),
        ),
    ]);
    if report.usage.len() <= 1 {
        let note = "not on this machine, or not started by `twinbft up`";
        report.setting.insert("cluster processes", note.to_owned());
    }
    Ok(report)
}

async fn run_etcd(
    args: &BenchArgs,
    plan: Plan,
    endpoints: &[String],
    shape: workload::Shape,
) -> anyhow::Result<RunReport> {
    let workload = Workload::new(shape);
    let mut lane = EtcdLane::connect(endpoints, usize::from(args.connections), &workload).await?;
    let mut report = measure(&mut lane, plan, shape, this_process()).await?;
    report.target = format!("etcd, {} endpoints", endpoints.len());
    report.setting = [
        ("endpoints", endpoints.join(",")),
        (
            "connections",
            format!("{} to each endpoint", args.connections),
        ),
        ("crypto", "none".to_owned()),
    ]
    .into();
    Ok(report)
}

async fn run_single(
    args: &BenchArgs,
    plan: Plan,
    cluster: &Cluster,
    shape: workload::Shape,
) -> anyhow::Result<RunReport> {
    let state = tempfile::tempdir().context("making a directory for the unreplicated server")?;
    let program = std::env::current_exe().context("looking up this program's own path")?;
    let mut child = tokio::process::Command::new(program)
        .arg("bench-server")
        .arg("--config")
        .arg(&cluster.file)
        .arg("--state")
        .arg(state.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting the unreplicated server")?;
    let output = child.stdout.take().context("the server's output")?;
    let mut address = String::new();
    BufReader::new(output)
        .read_line(&mut address)
        .await
        .context("reading where the unreplicated server listens")?;
    let address = address.trim();
    if address.is_empty() {
        bail!("the unreplicated server ended at once; what it wrote above says why");
    }
    let (clients, connections) = (plan.clients, usize::from(args.connections));
    let mut lane = SingleLane::connect(cluster, args.client, address, clients, connections).await?;
    let mut processes = this_process();
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    processes.extend(pid.map(|pid| ("server".to_owned(), pid)));
    let mut report = measure(&mut lane, plan, shape, processes).await?;
    report.target = "one unreplicated server".to_owned();
    report.setting = [
        ("durability", "none: no log".to_owned()),
        ("connections", connections.to_string()),
        ("crypto", "no MACs; mutual TLS (rustls, ring)".to_owned()),
    ]
    .into();
    // It keeps nothing that an orderly end would save.
    child
        .kill()
        .await
        .context("ending the unreplicated server")?;
    Ok(report)
}

/// Puts the load on a lane, with a progress bar where somebody looks.
async fn measure(
    lane: &mut impl Lane,
    plan: Plan,
    shape: workload::Shape,
    processes: Vec<(String, i32)>,
) -> anyhow::Result<RunReport> {
    let before = load_average();
    let mut onlooker = Onlooker::new(processes);
    let measured: Measured =
        load::run(plan, &mut Workload::new(shape), lane, &mut onlooker).await?;
    Ok(onlooker.report(measured, before))
}

/// The progress bar, and the processes under the load.
struct Onlooker {
    bar: ProgressBar,
    processes: Vec<(String, i32)>,
    meter: Meter,
}

impl Onlooker {
    fn new(processes: Vec<(String, i32)>) -> Self {
        Self {
            bar: progress_bar(),
            meter: Meter::start(&processes),
            processes,
        }
    }

    fn report(self, measured: Measured, load_before: String) -> RunReport {
        self.bar.finish_and_clear();
        RunReport {
            target: String::new(),
            setting: [].into(),
            measured,
            usage: self.meter.read(),
            messages: None,
            load_average: (load_before, load_average()),
        }
    }
}

impl Watch for Onlooker {
    fn begin(&mut self) {
        self.bar.set_message("measuring");
        self.meter = Meter::start(&self.processes);
    }

    fn progress(&mut self, share: f64) {
        if share >= 0.5 {
            self.meter.note_middle();
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share from 0 to 1"
        )]
        self.bar.set_position((share * 1000.0) as u64);
    }
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:>10} [{wide_bar}] {elapsed}")
        .expect("the template is a constant");
    ProgressBar::new(BAR_LENGTH)
        .with_style(style)
        .with_message("warming up")
}

fn this_process() -> Vec<(String, i32)> {
    let pid = i32::try_from(std::process::id()).unwrap_or_default();
    vec![("this client".to_owned(), pid)]
}

/// Role and process id of the cluster's processes on this machine, as `twinbft up` noted them, and of this one.
fn roles(cluster: &Cluster, view: View) -> Vec<(String, i32)> {
    let mut roles = this_process();
    let (hosts, twins) = (cluster.config.host_count(), cluster.config.twin_count());
    let (Some(shape), Ok(Some(running))) = (Shape::new(hosts, twins), running(&cluster.layout))
    else {
        return roles;
    };
    for process in running.processes {
        let (Some(pid), Ok(name)) = (process.pid, process.name.parse::<ProcessName>()) else {
            continue;
        };
        roles.push((role(shape, view, name).to_owned(), pid));
    }
    roles
}

fn role(shape: Shape, view: View, name: ProcessName) -> &'static str {
    match name {
        ProcessName::Broker(_) => "brokers",
        ProcessName::Replica(host, twin) if ReplicaId::new(host, twin) == shape.leader(view) => {
            "primary leader"
        }
        ProcessName::Replica(host, _) if host == shape.primary(view).0 => "primary follower",
        ProcessName::Replica(..) => "backups",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_the_view() {
        let shape = Shape::new(3, 2).unwrap();
        let role = |view, name: &str| role(shape, View(view), name.parse().unwrap());
        assert_eq!(role(0, "h0/t0"), "primary leader");
        assert_eq!(role(0, "h0/t1"), "primary follower");
        assert_eq!(role(0, "h1/t0"), "backups");
        assert_eq!(role(4, "h1/t1"), "primary leader");
        assert_eq!(role(4, "h0/broker"), "brokers");
    }

    #[test]
    fn targets_are_read_or_refused_with_the_remedy() {
        let endpoints =
            |list: &[&str]| EtcdEndpoints(list.iter().map(|e| (*e).to_owned()).collect());
        assert_eq!(
            parse_target("etcd=http://a:1,http://b:2"),
            Ok(endpoints(&["http://a:1", "http://b:2"]))
        );
        assert!(parse_target("etcd=a:1").unwrap_err().contains("http://"));
        assert!(
            parse_target("consul=http://a:1")
                .unwrap_err()
                .contains("etcd=")
        );
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(positive("2.5"), Ok(2.5));
        for wrong in ["0", "-1", "nan", "inf", "x"] {
            assert!(positive(wrong).is_err(), "{wrong}");
        }
        assert_eq!(not_negative("0"), Ok(0.0));
        assert!(share("1.1").is_err());
    }
}
