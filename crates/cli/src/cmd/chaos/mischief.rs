//! Faults are done to the processes and the network of a cluster, and undone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use twinbft_cli::supervise::ProcessName;
use twinbft_types::ReplicaId;

use super::network::{Network, Way, Weather};
use super::plan::{Act, Fault};
use crate::cmd::demo::stage::Stage;

/// The network of a flaky host fails this often.
const FLAKY_EVERY: Duration = Duration::from_millis(100);
/// How long a process that is told something may be busy, and one that was killed may take to end.
const OBEYS_WITHIN: Duration = Duration::from_secs(5);
/// It is tried again after this long.
const AGAIN: Duration = Duration::from_millis(20);

/// Does faults and undoes them.
pub struct Mischief<'m> {
    pub stage: &'m Stage,
    pub network: &'m Network,
}

impl Mischief<'_> {
    fn signal(
        &self,
        names: impl IntoIterator<Item = ProcessName>,
        signal: Signal,
    ) -> anyhow::Result<()> {
        for name in names {
            self.stage.supervisor().kill(name, signal)?;
        }
        Ok(())
    }

    fn restart(&self, names: impl IntoIterator<Item = ProcessName>) -> anyhow::Result<()> {
        for name in names {
            self.stage.supervisor().restart(name)?;
        }
        Ok(())
    }

    /// Does all of it for so long, and undoes it.
    ///
    /// # Errors
    /// When a process, the network or the file system does not do as it is told.
    pub async fn carry_out(&self, act: &Act) -> anyhow::Result<()> {
        for fault in &act.faults {
            self.begin(*fault).await?;
        }
        self.wait(act).await?;
        self.network.heal()?;
        for fault in act.faults.iter().rev() {
            self.end(*fault).await?;
        }
        Ok(())
    }

    async fn wait(&self, act: &Act) -> anyhow::Result<()> {
        let flaky: Vec<u8> = act
            .faults
            .iter()
            .filter_map(|fault| match fault {
                Fault::Flaky(host) => Some(*host),
                _ => None,
            })
            .collect();
        if flaky.is_empty() {
            tokio::time::sleep(act.lasts).await;
            return Ok(());
        }
        let end = Instant::now() + act.lasts;
        while Instant::now() < end {
            for (weather, lasts) in [
                // Long enough for every connection to see it.
                (Weather::Cut, FLAKY_EVERY / 4),
                (Weather::Fair, FLAKY_EVERY * 3 / 4),
            ] {
                for host in &flaky {
                    self.network.set(*host, Way::Both, weather)?;
                }
                tokio::time::sleep(lasts).await;
            }
        }
        Ok(())
    }

    async fn begin(&self, fault: Fault) -> anyhow::Result<()> {
        let (stage, network) = (self.stage, self.network);
        match fault {
            Fault::KillTwin(twin) | Fault::Wipe(twin) => {
                self.signal([twin.into()], Signal::SIGKILL)
            }
            Fault::KillHost(host) => self.signal(stage.of_host(host), Signal::SIGKILL),
            Fault::KillBroker(host) => self.signal([ProcessName::Broker(host)], Signal::SIGKILL),
            Fault::PauseTwin(twin) => self.signal([twin.into()], Signal::SIGSTOP),
            Fault::PauseBroker(host) => self.signal([ProcessName::Broker(host)], Signal::SIGSTOP),
            Fault::PauseHost(host) => self.signal(stage.of_host(host), Signal::SIGSTOP),
            Fault::CutOff(host) => network.set(host, Way::Both, Weather::Cut),
            Fault::Apart(one, other) => network.part(one, other),
            Fault::Mute(host) => network.set(host, Way::Out, Weather::Silent),
            Fault::Deaf(host) => network.set(host, Way::In, Weather::Silent),
            Fault::Slow(host, ms) => {
                network.set(host, Way::Both, Weather::Slow(Duration::from_millis(ms)))
            }
            Fault::Flaky(_) => Ok(()),
            Fault::Drop(host, share) => network.set(host, Way::Both, Weather::Lossy(share)),
            Fault::Byzantine(twin, double) => self.tell(twin, &double.words()).await,
        }
    }

    async fn end(&self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::KillTwin(twin) => self.restart([twin.into()]),
            Fault::Wipe(twin) => self.start_clean(twin).await,
            Fault::KillHost(host) => self.restart(self.stage.of_host(host)),
            Fault::KillBroker(host) => self.restart([ProcessName::Broker(host)]),
            Fault::PauseTwin(twin) => self.signal([twin.into()], Signal::SIGCONT),
            Fault::PauseBroker(host) => self.signal([ProcessName::Broker(host)], Signal::SIGCONT),
            Fault::PauseHost(host) => self.signal(self.stage.of_host(host), Signal::SIGCONT),
            Fault::CutOff(_)
            | Fault::Apart(..)
            | Fault::Mute(_)
            | Fault::Deaf(_)
            | Fault::Slow(..)
            | Fault::Flaky(_)
            | Fault::Drop(..) => Ok(()),
            Fault::Byzantine(twin, double) if double.cleaned => {
                // It may have ended by itself.
                drop(self.signal([twin.into()], Signal::SIGKILL));
                self.start_clean(twin).await
            }
            // Its honest core believes to have said what the double has kept to itself.
            Fault::Byzantine(twin, _) => self.restart([twin.into()]),
        }
    }

    /// Tells a twin how to behave; one that is busy, or waits for its postbox, is told again.
    async fn tell(&self, twin: ReplicaId, double: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Err(error) = self.stage.tell(twin, double) {
            if begun.elapsed() >= OBEYS_WITHIN {
                return Err(error);
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Starts a twin that was killed, without anything that it had on its disk.
    async fn start_clean(&self, twin: ReplicaId) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.stage.supervisor().pid(twin.into()).is_some() {
            if begun.elapsed() >= OBEYS_WITHIN {
                bail!("{twin} does not end on SIGKILL");
            }
            tokio::time::sleep(AGAIN).await;
        }
        let layout = &self.stage.cluster.layout;
        let data = layout.twin_data(twin.host.0, twin.twin.0);
        std::fs::remove_dir_all(&data).with_context(|| format!("wiping {}", data.display()))?;
        self.restart([twin.into()])
    }
}
