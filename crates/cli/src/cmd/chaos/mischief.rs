//! Faults are done to the processes and links of a cluster, and undone.

use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use twinbft_cli::supervise::ProcessName;
use twinbft_types::ReplicaId;

use super::links::{Links, Weather};
use super::plan::Fault;
use crate::cmd::demo::director::WRONG_RESULT;
use crate::cmd::demo::stage::{Stage, TWINS};

/// Connections of a flaky host break this often.
const FLAKY_EVERY: Duration = Duration::from_millis(100);

/// Does faults and undoes them.
pub struct Mischief<'m> {
    pub stage: &'m Stage,
    pub links: &'m Links,
}

const fn name(twin: ReplicaId) -> ProcessName {
    ProcessName::Replica(twin.host.0, twin.twin.0)
}

/// The broker first: twins wait for it.
fn of_host(host: u8) -> impl Iterator<Item = ProcessName> {
    let twins = (0..TWINS).map(move |twin| ProcessName::Replica(host, twin));
    std::iter::once(ProcessName::Broker(host)).chain(twins)
}

fn touches(host: u8) -> impl Fn(ReplicaId, ReplicaId) -> bool {
    move |from, to| from.host.0 == host || to.host.0 == host
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

    /// Does it for so long, and undoes it.
    ///
    /// # Errors
    /// When a process or the file system does not do as it is told.
    pub async fn carry_out(&self, fault: Fault, lasts: Duration) -> anyhow::Result<()> {
        self.begin(fault)?;
        if let Fault::Flaky(host) = fault {
            let breaks = lasts.as_millis() / FLAKY_EVERY.as_millis();
            for _ in 0..breaks {
                self.links.set(Weather::Cut, touches(host));
                // Long enough for every connection to see it.
                tokio::time::sleep(FLAKY_EVERY / 4).await;
                self.links.set(Weather::Fair, touches(host));
                tokio::time::sleep(FLAKY_EVERY * 3 / 4).await;
            }
        } else {
            tokio::time::sleep(lasts).await;
        }
        self.end(fault)
    }

    fn begin(&self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::KillTwin(twin) | Fault::Wipe(twin) => self.signal([name(twin)], Signal::SIGKILL),
            Fault::KillHost(host) => self.signal(of_host(host), Signal::SIGKILL),
            Fault::KillBroker(host) => self.signal([ProcessName::Broker(host)], Signal::SIGKILL),
            Fault::PauseTwin(twin) => self.signal([name(twin)], Signal::SIGSTOP),
            Fault::PauseBroker(host) => self.signal([ProcessName::Broker(host)], Signal::SIGSTOP),
            Fault::PauseHost(host) => self.signal(of_host(host), Signal::SIGSTOP),
            Fault::CutOff(host) => {
                self.links.set(Weather::Cut, touches(host));
                Ok(())
            }
            Fault::Mute(host) => {
                self.links
                    .set(Weather::Silent, |from, _| from.host.0 == host);
                Ok(())
            }
            Fault::Deaf(host) => {
                self.links.set(Weather::Silent, |_, to| to.host.0 == host);
                Ok(())
            }
            Fault::Slow(host, ms) => {
                let delay = Duration::from_millis(ms);
                self.links.set(Weather::Slow(delay), touches(host));
                Ok(())
            }
            Fault::Flaky(_) => Ok(()),
            Fault::Lie(twin) => self.stage.tell(twin, WRONG_RESULT),
        }
    }

    fn end(&self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::KillTwin(twin) => self.restart([name(twin)]),
            Fault::Wipe(twin) => {
                let layout = &self.stage.cluster.layout;
                let data = layout.twin_data(twin.host.0, twin.twin.0);
                std::fs::remove_dir_all(&data)
                    .with_context(|| format!("wiping {}", data.display()))?;
                self.restart([name(twin)])
            }
            Fault::KillHost(host) => self.restart(of_host(host)),
            Fault::KillBroker(host) => self.restart([ProcessName::Broker(host)]),
            Fault::PauseTwin(twin) => self.signal([name(twin)], Signal::SIGCONT),
            Fault::PauseBroker(host) => self.signal([ProcessName::Broker(host)], Signal::SIGCONT),
            Fault::PauseHost(host) => self.signal(of_host(host), Signal::SIGCONT),
            Fault::CutOff(_)
            | Fault::Mute(_)
            | Fault::Deaf(_)
            | Fault::Slow(..)
            | Fault::Flaky(_) => {
                self.links.set(Weather::Fair, |_, _| true);
                Ok(())
            }
            Fault::Lie(twin) => self.stage.tell(twin, "off"),
        }
    }
}
