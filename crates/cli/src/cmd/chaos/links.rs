//! The network between replicas with weather: whatever one replica sends another goes through a relay of this process,
//! one for each ordered pair, so that each direction can be cut, stopped or slowed by itself.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use twinbft_cli::cluster::Cluster;
use twinbft_types::ReplicaId;

use super::network::Weather;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// TCP loses no bytes: what stands for a lost packet is the time until it would be sent again ...
const STALL: Duration = Duration::from_millis(200);
/// ... and once in so many times a connection that is reset.
const RESET_EACH: u32 = 4;

struct Link {
    from: ReplicaId,
    to: ReplicaId,
    listener: Option<TcpListener>,
    target: SocketAddr,
    weather: watch::Sender<Weather>,
}

/// All links between replicas of different hosts.
pub struct Links {
    links: Vec<Link>,
    relays: JoinSet<()>,
}

impl Links {
    /// Makes the links, and for each replica a configuration beside the cluster's in which the others have the addresses
    /// of its links.
    ///
    /// # Errors
    /// When there are no ports or a file cannot be written.
    pub fn lay(cluster: &Cluster) -> anyhow::Result<(Self, BTreeMap<ReplicaId, PathBuf>)> {
        let all: Vec<(ReplicaId, SocketAddr)> = cluster
            .config
            .hosts
            .iter()
            .flat_map(|host| {
                let twins = host.twins.iter();
                twins.map(|twin| (ReplicaId::new(host.id, twin.id), twin.listen))
            })
            .collect();
        let mut links = Vec::new();
        let mut files = BTreeMap::new();
        for (from, _) in &all {
            let mut config = cluster.config.clone();
            for (to, target) in all.iter().filter(|(to, _)| to.host != from.host) {
                let listener = TcpListener::bind("127.0.0.1:0").context("making a link")?;
                listener.set_nonblocking(true).context("making a link")?;
                let address = listener.local_addr().context("making a link")?;
                let twins = config.hosts.iter_mut().flat_map(|host| {
                    let id = host.id;
                    host.twins.iter_mut().map(move |twin| (id, twin))
                });
                for (host, twin) in twins {
                    if ReplicaId::new(host, twin.id) == *to {
                        twin.listen = address;
                    }
                }
                links.push(Link {
                    from: *from,
                    to: *to,
                    listener: Some(listener),
                    target: *target,
                    weather: watch::Sender::new(Weather::Fair),
                });
            }
            files.insert(
                *from,
                write(cluster.layout.directory(), *from, &config.to_toml())?,
            );
        }
        let relays = JoinSet::new();
        Ok((Self { links, relays }, files))
    }

    /// Sets the relays to work.
    ///
    /// # Errors
    /// When the runtime does not take a listener.
    pub fn start(&mut self) -> anyhow::Result<()> {
        for link in &mut self.links {
            let Some(listener) = link.listener.take() else {
                continue;
            };
            let listener =
                tokio::net::TcpListener::from_std(listener).context("starting a link")?;
            self.relays
                .spawn(relay(listener, link.target, link.weather.subscribe()));
        }
        Ok(())
    }

    /// Changes the weather of the links that are chosen by their ends.
    pub fn set(&self, weather: Weather, chosen: impl Fn(ReplicaId, ReplicaId) -> bool) {
        for link in self.links.iter().filter(|link| chosen(link.from, link.to)) {
            link.weather.send_replace(weather);
        }
    }
}

fn write(directory: &Path, of: ReplicaId, text: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(format!("links-h{}t{}.toml", of.host.0, of.twin.0));
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

async fn relay(
    listener: tokio::net::TcpListener,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A connection that failed while it was made is the caller's to make again.
                if let Ok((near, _)) = accepted
                    && *weather.borrow() != Weather::Cut
                {
                    connections.spawn(carry(near, target, weather.clone()));
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// How a direction of a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// By one of its ends, or by the weather.
    Closed,
    /// By chance.
    Reset,
}

/// One connection, until either end or the weather breaks it.
async fn carry(mut near: TcpStream, target: SocketAddr, weather: watch::Receiver<Weather>) {
    let Ok(mut far) = TcpStream::connect(target).await else {
        return;
    };
    // Small frames must not wait for each other.
    let (_near, _far) = (near.set_nodelay(true), far.set_nodelay(true));
    let ended = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        tokio::select! {
            ended = pump(near_read, far_write, weather.clone()) => ended,
            ended = pump(far_read, near_write, weather.clone()) => ended,
            () = is_cut(weather) => Ended::Closed,
        }
    };
    if ended == Ended::Reset {
        // Closed without a farewell; if that cannot be had, it is closed with one.
        let (_near, _far) = (near.set_zero_linger(), far.set_zero_linger());
    }
}

async fn is_cut(mut weather: watch::Receiver<Weather>) {
    // The sender going away is the end, too.
    let _gone = weather.wait_for(|now| *now == Weather::Cut).await;
}

async fn pump(
    mut from: tokio::net::tcp::ReadHalf<'_>,
    mut to: tokio::net::tcp::WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
) -> Ended {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(count @ 1..) = from.read(&mut chunk).await else {
            return Ended::Closed;
        };
        let now = *weather.borrow_and_update();
        match now {
            Weather::Fair | Weather::Cut => {}
            Weather::Slow(delay) => tokio::time::sleep(delay).await,
            Weather::Lossy(per_mille) => match lot(per_mille, rand::random()) {
                Lot::Arrives => {}
                Lot::Stalls => tokio::time::sleep(STALL).await,
                Lot::Resets => return Ended::Reset,
            },
            Weather::Silent => {
                let heard = weather.wait_for(|now| *now != Weather::Silent).await;
                if heard.is_err() {
                    return Ended::Closed;
                }
            }
        }
        if to.write_all(&chunk[..count]).await.is_err() {
            return Ended::Closed;
        }
    }
}

/// What becomes of what was read at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lot {
    Arrives,
    Stalls,
    Resets,
}

/// Draws it. When what is read comes in is chance as well, so this is not of the seed.
fn lot(per_mille: u16, random: u32) -> Lot {
    if random % 1000 >= u32::from(per_mille) {
        Lot::Arrives
    } else if (random / 1000).is_multiple_of(RESET_EACH) {
        Lot::Resets
    } else {
        Lot::Stalls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_what_is_sent_stalls_or_resets() {
        let lots = |per_mille| {
            let all: Vec<Lot> = (0..100_000).map(|n| lot(per_mille, n)).collect();
            let count = |of| all.iter().filter(|lot| **lot == of).count();
            (count(Lot::Arrives), count(Lot::Stalls), count(Lot::Resets))
        };
        assert_eq!(lots(0), (100_000, 0, 0));
        assert_eq!(lots(200), (80_000, 15_000, 5_000));
        assert_eq!(lots(1000), (0, 75_000, 25_000));
    }
}
