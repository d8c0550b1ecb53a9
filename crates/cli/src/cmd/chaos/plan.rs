//! What is done to the cluster, drawn from a seed: one faulty host at a time, which is what three hosts survive.

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use twinbft_types::ReplicaId;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to one twin.
    KillTwin(ReplicaId),
    /// SIGKILL to one twin, whose disk is then wiped.
    Wipe(ReplicaId),
    /// SIGKILL to the broker and all twins of a host.
    KillHost(u8),
    /// SIGKILL to a broker; its supervisor keeps the log.
    KillBroker(u8),
    /// SIGSTOP to one twin.
    PauseTwin(ReplicaId),
    /// SIGSTOP to a broker.
    PauseBroker(u8),
    /// SIGSTOP to the broker and all twins of a host.
    PauseHost(u8),
    /// Connections of a host to the others break, in both directions.
    CutOff(u8),
    /// What a host sends to the others is lost in silence.
    Mute(u8),
    /// What the others send to a host is lost in silence.
    Deaf(u8),
    /// What a host sends and gets takes so many milliseconds longer.
    Slow(u8, u64),
    /// Connections of a host to the others break again and again.
    Flaky(u8),
    /// A twin lies in its results.
    Lie(ReplicaId),
}

/// A fault and how long it lasts.
#[derive(Clone, Copy, Debug)]
pub struct Act {
    /// What.
    pub fault: Fault,
    /// For how long.
    pub lasts: Duration,
    /// The pause after the cluster is whole again.
    pub rest: Duration,
}

impl Act {
    /// The next one.
    pub fn draw(rng: &mut ChaCha8Rng, hosts: u8, twins: u8) -> Self {
        let host = rng.random_range(0..hosts);
        let twin = ReplicaId::new(host, rng.random_range(0..twins));
        let fault = match rng.random_range(0..13) {
            0 => Fault::KillTwin(twin),
            1 => Fault::Wipe(twin),
            2 => Fault::KillHost(host),
            3 => Fault::KillBroker(host),
            4 => Fault::PauseTwin(twin),
            5 => Fault::PauseBroker(host),
            6 => Fault::PauseHost(host),
            7 => Fault::CutOff(host),
            8 => Fault::Mute(host),
            9 => Fault::Deaf(host),
            10 => Fault::Slow(host, rng.random_range(5..200)),
            11 => Fault::Flaky(host),
            _ => Fault::Lie(twin),
        };
        Self {
            fault,
            lasts: Duration::from_millis(rng.random_range(200..4_000)),
            rest: Duration::from_millis(rng.random_range(200..2_000)),
        }
    }
}

impl Fault {
    /// The short name, for counting.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::KillTwin(_) => "kill-twin",
            Self::Wipe(_) => "wipe-disk",
            Self::KillHost(_) => "kill-host",
            Self::KillBroker(_) => "kill-broker",
            Self::PauseTwin(_) => "pause-twin",
            Self::PauseBroker(_) => "pause-broker",
            Self::PauseHost(_) => "pause-host",
            Self::CutOff(_) => "cut-off",
            Self::Mute(_) => "mute",
            Self::Deaf(_) => "deaf",
            Self::Slow(..) => "slow",
            Self::Flaky(_) => "flaky",
            Self::Lie(_) => "lie",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillTwin(twin) => write!(f, "SIGKILL to {twin}"),
            Self::Wipe(twin) => write!(f, "SIGKILL to {twin}, and its disk is wiped"),
            Self::KillHost(host) => write!(f, "SIGKILL to all of h{host}"),
            Self::KillBroker(host) => write!(f, "SIGKILL to the broker of h{host}"),
            Self::PauseTwin(twin) => write!(f, "SIGSTOP to {twin}"),
            Self::PauseBroker(host) => write!(f, "SIGSTOP to the broker of h{host}"),
            Self::PauseHost(host) => write!(f, "SIGSTOP to all of h{host}"),
            Self::CutOff(host) => write!(f, "h{host} is cut off from the other hosts"),
            Self::Mute(host) => write!(f, "nothing that h{host} sends arrives at the other hosts"),
            Self::Deaf(host) => write!(f, "nothing that other hosts send arrives at h{host}"),
            Self::Slow(host, ms) => write!(f, "the network of h{host} takes {ms} ms longer"),
            Self::Flaky(host) => write!(f, "connections of h{host} break every 100 ms"),
            Self::Lie(twin) => write!(f, "{twin} lies in its results"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_acts_and_all_kinds_come() {
        let draw = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let acts: Vec<Fault> = (0..200).map(|_| Act::draw(&mut rng, 3, 2).fault).collect();
            acts
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let kinds: BTreeSet<&str> = draw(7).into_iter().map(Fault::kind).collect();
        assert_eq!(kinds.len(), 13);
    }
}
