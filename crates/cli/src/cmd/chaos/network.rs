//! The network between hosts, on which faults can be done: namespaces of the kernel, or relays of this process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{ProcessName, Programs};

use super::links::Links;
use super::namespaces::Namespaces;

/// Which network is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Namespaces where they can be made, the proxy otherwise
    Auto,
    /// A network namespace for each host, with veth and a bridge; needs root, `ip` and `tc`
    Namespaces,
    /// A relay of this process between any two replicas
    Proxy,
}

/// Which way packets go, seen from a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From it.
    Out,
    /// To it.
    In,
    /// Both.
    Both,
}

/// What happens to what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// It arrives.
    Fair,
    /// It arrives so much later.
    Slow(Duration),
    /// So many of a thousand are lost.
    Lossy(u16),
    /// Nothing arrives and nobody is told.
    Silent,
    /// There is no connection.
    Cut,
}

/// The network of a cluster.
pub enum Network {
    /// See [`Namespaces`].
    Namespaces(Namespaces),
    /// See [`Links`].
    Proxy(Links),
}

impl Network {
    /// Makes the network, and tells the cluster and its processes about it.
    ///
    /// # Errors
    /// When what is asked for cannot be made.
    pub fn lay(
        choice: Choice,
        cluster: &mut Cluster,
        programs: &mut Programs,
    ) -> anyhow::Result<Self> {
        if choice != Choice::Proxy {
            let made = Namespaces::lay(cluster, programs);
            match made {
                Ok(namespaces) => return Ok(Self::Namespaces(namespaces)),
                Err(error) if choice == Choice::Namespaces => {
                    return Err(error.context("making network namespaces"));
                }
                Err(error) => {
                    eprintln!("chaos: network namespaces cannot be used: {error:#}");
                }
            }
        }
        let (links, files) = Links::lay(cluster)?;
        let files = files
            .into_iter()
            .map(|(id, file)| (ProcessName::from(id), file));
        programs.replica_configurations = files.collect::<BTreeMap<ProcessName, PathBuf>>();
        Ok(Self::Proxy(links))
    }

    /// What it is, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Namespaces(namespaces) => namespaces.describe(),
            Self::Proxy(_) => "a proxy between replicas (clients are not affected; a packet that is lost is a connection \
                               that stalls for 200 ms, every fourth time one that is reset)"
                .to_owned(),
        }
    }

    /// The short name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Namespaces(_) => "namespaces",
            Self::Proxy(_) => "proxy",
        }
    }

    /// Sets to work what needs the runtime.
    ///
    /// # Errors
    /// When it does not take a listener.
    pub fn start(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Namespaces(_) => Ok(()),
            Self::Proxy(links) => links.start(),
        }
    }

    /// Changes the weather of what a host sends, gets, or both.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&self, host: u8, way: Way, weather: Weather) -> anyhow::Result<()> {
        match self {
            Self::Namespaces(namespaces) => namespaces
                .set(host, way, weather)
                .with_context(|| format!("changing the network of h{host}")),
            Self::Proxy(links) => {
                links.set(weather, |from, to| {
                    (from.host.0 == host && way != Way::In)
                        || (to.host.0 == host && way != Way::Out)
                });
                Ok(())
            }
        }
    }

    /// Lets nothing pass between two hosts.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn part(&self, one: u8, other: u8) -> anyhow::Result<()> {
        match self {
            Self::Namespaces(namespaces) => namespaces
                .part(one, other)
                .with_context(|| format!("parting h{one} and h{other}")),
            Self::Proxy(links) => {
                links.set(Weather::Silent, |from, to| {
                    let ends = [from.host.0, to.host.0];
                    ends == [one, other] || ends == [other, one]
                });
                Ok(())
            }
        }
    }

    /// Everything arrives again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&self) -> anyhow::Result<()> {
        match self {
            Self::Namespaces(namespaces) => namespaces.heal().context("mending the network"),
            Self::Proxy(links) => {
                links.set(Weather::Fair, |_, _| true);
                Ok(())
            }
        }
    }
}
