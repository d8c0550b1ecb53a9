//! The primary host is killed under load: how long is nothing answered, and what comes after.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{ProcessName, running};
use twinbft_types::{Shape, View};

use super::cluster::ClusterLane;
use super::load::{self, Measured, Plan, Watch};
use super::machine::load_average;
use super::report::RunReport;
use super::workload::{self, Workload};
use super::{Onlooker, roles};

/// The part of the measurement after which the processes are killed.
const AFTER: f64 = 0.5;

/// Kills processes in the middle of a measurement.
struct Killer {
    onlooker: Onlooker,
    victims: Vec<Pid>,
    began: Instant,
    /// When they were killed, from the beginning of the measurement on.
    killed: Option<Duration>,
    failed: Option<nix::Error>,
}

impl Watch for Killer {
    fn begin(&mut self) {
        self.began = Instant::now();
        self.onlooker.begin();
    }

    fn progress(&mut self, share: f64) {
        if share >= AFTER && self.killed.is_none() {
            self.killed = Some(self.began.elapsed());
            for victim in &self.victims {
                self.failed = kill(*victim, Signal::SIGKILL).err().or(self.failed);
            }
        }
        self.onlooker.progress(share);
    }
}

/// Puts the load on the cluster and kills the replicas of the primary host in the middle.
///
/// # Errors
/// When they do not run here, or could not be killed.
pub async fn measure(
    cluster: &Cluster,
    view: View,
    lane: &mut ClusterLane,
    plan: Plan,
    shape: workload::Shape,
) -> anyhow::Result<RunReport> {
    let before = load_average();
    let mut killer = Killer {
        victims: victims(cluster, view)?,
        onlooker: Onlooker::new(roles(cluster, view)),
        began: Instant::now(),
        killed: None,
        failed: None,
    };
    let measured = load::run(plan, &mut Workload::new(shape), lane, &mut killer).await?;
    if let Some(error) = killer.failed {
        return Err(error).context("killing a replica of the primary host");
    }
    let Some(killed) = killer.killed else {
        bail!("the measurement ended before its middle");
    };
    let text = describe(&measured, killed);
    let mut report = killer.onlooker.report(measured, before);
    report.target = ", the primary host's replicas killed in the middle".to_owned();
    report.setting.insert("fail-over", text);
    Ok(report)
}

fn describe(measured: &Measured, killed: Duration) -> String {
    let second = Duration::from_secs(1);
    let before = measured.second_from(killed.saturating_sub(second));
    let stall = measured.stall;
    // The stretch in which answers come again is not a whole one.
    let after = measured.second_from(stall.until + load::STRETCH);
    format!(
        "killed after {:.1} s; stall of {:.0} ms until {:.1} s; {before:.0} answers in the second before the kill, \
         {after:.0} in the second behind the stall ({:.0} %)",
        killed.as_secs_f64(),
        stall.length.as_secs_f64() * 1e3,
        stall.until.as_secs_f64(),
        100.0 * after / before.max(1.0),
    )
}

/// The replicas of the primary host of this view.
fn victims(cluster: &Cluster, view: View) -> anyhow::Result<Vec<Pid>> {
    let (hosts, twins) = (cluster.config.host_count(), cluster.config.twin_count());
    let shape = Shape::new(hosts, twins).context("a cluster of no known shape")?;
    let primary = shape.primary(view).0;
    let processes = running(&cluster.layout)?.map_or_else(Vec::new, |running| running.processes);
    let victims: Vec<Pid> = processes
        .iter()
        .filter_map(|process| match process.name.parse() {
            Ok(ProcessName::Replica(host, _)) if host == primary => process.pid.map(Pid::from_raw),
            Ok(_) | Err(_) => None,
        })
        .collect();
    if victims.is_empty() {
        bail!(
            "the replicas of h{primary} do not run under `twinbft up` on this machine; start the cluster so, or leave out --kill-primary"
        );
    }
    Ok(victims)
}
