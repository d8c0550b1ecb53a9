//! What is done to the cluster, drawn from a seed: several faults at a time, and never more than the model allows.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use twinbft_cli::supervise::ProcessName;
use twinbft_types::{ReplicaId, Shape};

use super::limits;

/// One more fault comes at the same time with a chance of one to so many.
const COMPANY: u32 = 3;
/// Attempts to find a fault that may come beside those that are there.
const ATTEMPTS: u32 = 16;
/// The most at one time.
const AT_ONCE_MAX: usize = 4;

/// What can happen to processes.
pub const PROCESS: [&str; 7] = [
    "kill-twin",
    "wipe-disk",
    "kill-host",
    "kill-broker",
    "pause-twin",
    "pause-broker",
    "pause-host",
];
/// What can happen to the network.
pub const NETWORK: [&str; 7] = ["cut-off", "apart", "mute", "deaf", "slow", "flaky", "drop"];
/// The doubles of `twinbft-replica-doubles`, as its control socket names them, behind [`BYZANTINE_PREFIX`].
pub const BYZANTINE: [&str; 14] = [
    "byzantine-wrong-result",
    "byzantine-wrong-checkpoint",
    "byzantine-mute",
    "byzantine-half-mute",
    "byzantine-no-votes",
    "byzantine-nack-all",
    "byzantine-equivocate",
    "byzantine-spoil-macs",
    "byzantine-replay",
    "byzantine-spam",
    "byzantine-forge",
    "byzantine-impersonate",
    "byzantine-garbage",
    "byzantine-refuse",
];
const BYZANTINE_PREFIX: &str = "byzantine-";
/// Names for all kinds of a group.
pub const GROUPS: [(&str, &[&str]); 3] = [
    ("process", &PROCESS),
    ("network", &NETWORK),
    ("byzantine", &BYZANTINE),
];

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
    /// A host loses its network.
    CutOff(u8),
    /// Two hosts do not reach each other, and reach all others.
    Apart(u8, u8),
    /// What a host sends to the others is lost in silence.
    Mute(u8),
    /// What the others send to a host is lost in silence.
    Deaf(u8),
    /// What a host sends and gets takes so many milliseconds longer.
    Slow(u8, u64),
    /// The network of a host comes and goes.
    Flaky(u8),
    /// So many of a thousand packets that a host sends or gets are lost.
    Drop(u8, u16),
    /// A twin is Byzantine.
    Byzantine(ReplicaId, Double),
}

/// How a twin is Byzantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Double {
    /// One of [`BYZANTINE`].
    kind: &'static str,
    /// In how many of a hundred batches, for those that choose.
    percent: u8,
    /// Whether it is started from a clean image at the end, as an operator would do, or with the disk that it has.
    pub cleaned: bool,
}

impl Double {
    /// The words that the control socket takes.
    #[must_use]
    pub fn words(self) -> String {
        let name = self.kind.strip_prefix(BYZANTINE_PREFIX);
        let name = name.expect("all kinds of doubles begin like this");
        if name == "refuse" {
            format!("{name} {:.2}", f64::from(self.percent) / 100.0)
        } else {
            name.to_owned()
        }
    }
}

/// Faults that come at one time, and how long they last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// What.
    pub faults: Vec<Fault>,
    /// For how long.
    pub lasts: Duration,
    /// The pause after the cluster is whole again.
    pub rest: Duration,
}

/// What a seed makes of a cluster. Nothing but the seed, the cluster's shape and the kinds decides what comes.
pub struct Plan {
    rng: ChaCha8Rng,
    shape: Shape,
    kinds: Vec<&'static str>,
    /// The first of the `q − 1` twins of each host that may be Byzantine in this run; the others follow it.
    traitors: Vec<u8>,
}

/// All kinds of faults that `only` names, by themselves or by their group; all when it is empty.
pub fn kinds(only: &[String]) -> Vec<&'static str> {
    let named = |group: &str, kind: &str| only.iter().any(|name| name == group || name == kind);
    GROUPS
        .iter()
        .flat_map(|(group, kinds)| kinds.iter().map(move |kind| (*group, *kind)))
        .filter(|(group, kind)| only.is_empty() || named(group, kind))
        .map(|(_, kind)| kind)
        .collect()
}

impl Plan {
    /// Of a seed, for a cluster of this shape, with these kinds of faults.
    ///
    /// # Panics
    /// Without any kind.
    #[must_use]
    pub fn new(seed: u64, shape: Shape, kinds: Vec<&'static str>) -> Self {
        assert!(!kinds.is_empty(), "there is nothing to draw from");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // The model counts a twin that was Byzantine once as Byzantine for good.
        let traitors = (0..shape.hosts()).map(|_| rng.random_range(0..shape.twins()));
        Self {
            traitors: traitors.collect(),
            rng,
            shape,
            kinds,
        }
    }

    /// The next act.
    pub fn draw(&mut self) -> Act {
        let mut faults = Vec::new();
        while faults.is_empty() {
            self.add(&mut faults);
        }
        while faults.len() < AT_ONCE_MAX && self.rng.random_range(0..COMPANY) == 0 {
            for _ in 0..ATTEMPTS {
                let before = faults.len();
                self.add(&mut faults);
                if faults.len() > before {
                    break;
                }
            }
        }
        Act {
            faults,
            lasts: Duration::from_millis(self.rng.random_range(200..4_000)),
            rest: Duration::from_millis(self.rng.random_range(200..2_000)),
        }
    }

    /// Draws a fault, and takes it when it may come beside the others.
    fn add(&mut self, faults: &mut Vec<Fault>) {
        let fault = self.fault();
        if faults.iter().all(|other| !other.meets(fault)) {
            faults.push(fault);
            if !limits::hold(faults, self.shape) {
                faults.pop();
            }
        }
    }

    fn fault(&mut self) -> Fault {
        // Groups have the same share, and kinds within a group.
        let groups: Vec<Vec<&'static str>> = GROUPS
            .iter()
            .map(|(_, kinds)| {
                kinds
                    .iter()
                    .copied()
                    .filter(|kind| self.kinds.contains(kind))
            })
            .map(Iterator::collect)
            .filter(|kinds: &Vec<_>| !kinds.is_empty())
            .collect();
        let rng = &mut self.rng;
        let group = &groups[rng.random_range(0..groups.len())];
        let kind = group[rng.random_range(0..group.len())];
        let hosts = self.shape.hosts();
        let host = rng.random_range(0..hosts);
        let twin = ReplicaId::new(host, rng.random_range(0..self.shape.twins()));
        match kind {
            "kill-twin" => Fault::KillTwin(twin),
            "wipe-disk" => Fault::Wipe(twin),
            "kill-host" => Fault::KillHost(host),
            "kill-broker" => Fault::KillBroker(host),
            "pause-twin" => Fault::PauseTwin(twin),
            "pause-broker" => Fault::PauseBroker(host),
            "pause-host" => Fault::PauseHost(host),
            "cut-off" => Fault::CutOff(host),
            "apart" => Fault::Apart(host, (host + rng.random_range(1..hosts)) % hosts),
            "mute" => Fault::Mute(host),
            "deaf" => Fault::Deaf(host),
            "slow" => Fault::Slow(host, rng.random_range(5..200)),
            "flaky" => Fault::Flaky(host),
            "drop" => Fault::Drop(host, rng.random_range(5..300)),
            double => {
                let may_be = u8::try_from(self.shape.twin_quorum() - 1).expect("fewer than twins");
                let first = self.traitors[usize::from(host)];
                let twin = (first + rng.random_range(0..may_be)) % self.shape.twins();
                let double = Double {
                    kind: double,
                    percent: rng.random_range(1..=100),
                    cleaned: rng.random_range(0..2) == 0,
                };
                Fault::Byzantine(ReplicaId::new(host, twin), double)
            }
        }
    }
}

/// A process that is not there, and the part of a host's network that a fault changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Process(ProcessName),
    /// All processes of a host.
    Host(u8),
    Network(u8),
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
            Self::Apart(..) => "apart",
            Self::Mute(_) => "mute",
            Self::Deaf(_) => "deaf",
            Self::Slow(..) => "slow",
            Self::Flaky(_) => "flaky",
            Self::Drop(..) => "drop",
            Self::Byzantine(_, double) => double.kind,
        }
    }

    fn parts(self) -> BTreeSet<Part> {
        match self {
            Self::KillTwin(twin)
            | Self::Wipe(twin)
            | Self::PauseTwin(twin)
            | Self::Byzantine(twin, _) => BTreeSet::from([Part::Process(ProcessName::Replica(
                twin.host.0,
                twin.twin.0,
            ))]),
            Self::KillBroker(host) | Self::PauseBroker(host) => {
                BTreeSet::from([Part::Process(ProcessName::Broker(host))])
            }
            Self::KillHost(host) | Self::PauseHost(host) => BTreeSet::from([Part::Host(host)]),
            Self::Apart(one, other) => BTreeSet::from([Part::Network(one), Part::Network(other)]),
            Self::CutOff(host)
            | Self::Mute(host)
            | Self::Deaf(host)
            | Self::Slow(host, _)
            | Self::Flaky(host)
            | Self::Drop(host, _) => BTreeSet::from([Part::Network(host)]),
        }
    }

    /// Whether both are done to the same thing, so that one would undo the other.
    fn meets(self, other: Self) -> bool {
        let mine = self.parts();
        let theirs = other.parts();
        let within = |part: &Part, parts: &BTreeSet<Part>| match part {
            Part::Process(name) => parts.contains(&Part::Host(name.host())),
            Part::Host(_) | Part::Network(_) => false,
        };
        mine.iter()
            .any(|part| theirs.contains(part) || within(part, &theirs))
            || theirs.iter().any(|part| within(part, &mine))
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        f.write_str(&faults.join("; and "))
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
            Self::CutOff(host) => write!(f, "h{host} is cut off"),
            Self::Apart(one, other) => write!(f, "h{one} and h{other} do not reach each other"),
            Self::Mute(host) => write!(f, "nothing that h{host} sends arrives"),
            Self::Deaf(host) => write!(f, "nothing that is sent to h{host} arrives"),
            Self::Slow(host, ms) => write!(f, "the network of h{host} takes {ms} ms longer"),
            Self::Flaky(host) => write!(f, "the network of h{host} fails every 100 ms"),
            Self::Drop(host, share) => {
                let percent = f64::from(*share) / 10.0;
                write!(f, "the network of h{host} loses {percent} %")
            }
            Self::Byzantine(twin, double) => {
                write!(f, "{twin} is Byzantine ({})", double.words())?;
                let disk = if double.cleaned { "an empty" } else { "its" };
                write!(f, ", then started with {disk} disk")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(hosts: u8, twins: u8) -> Shape {
        Shape::new(hosts, twins).unwrap()
    }

    fn drawn(seed: u64, shape: Shape, acts: usize) -> Vec<Act> {
        let mut plan = Plan::new(seed, shape, kinds(&[]));
        (0..acts).map(|_| plan.draw()).collect()
    }

    #[test]
    fn the_same_seed_draws_the_same_acts_and_all_kinds_come() {
        let draw = |seed| drawn(seed, shape(3, 2), 600);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let acts = draw(7);
        let came: BTreeSet<&str> = acts
            .iter()
            .flat_map(|act| act.faults.iter().map(|fault| fault.kind()))
            .collect();
        let all: BTreeSet<&str> = kinds(&[]).into_iter().collect();
        assert_eq!(all.len(), 28);
        assert_eq!(came, all);
        let together = acts.iter().filter(|act| act.faults.len() > 1).count();
        assert!(together > 60, "{together} of 600 have company");
    }

    #[test]
    fn ten_thousand_schedules_stay_within_the_model() {
        for seed in 0..10_000 {
            let shape = shape(
                3 + u8::try_from(seed % 3).unwrap(),
                2 + u8::try_from(seed / 3 % 2).unwrap(),
            );
            let mut byzantine = BTreeSet::new();
            for act in drawn(seed, shape, 30) {
                // Counted once more, by itself: what `limits::hold` does is under test.
                let mut silent = BTreeSet::new();
                for host in 0..shape.hosts() {
                    let mut out = BTreeSet::new();
                    let mut all = false;
                    for fault in &act.faults {
                        match *fault {
                            Fault::KillTwin(twin) | Fault::Wipe(twin) | Fault::PauseTwin(twin) => {
                                if twin.host.0 == host {
                                    out.insert(twin.twin.0);
                                }
                            }
                            Fault::Byzantine(twin, _) => {
                                byzantine.insert(twin);
                                if twin.host.0 == host {
                                    out.insert(twin.twin.0);
                                }
                            }
                            Fault::KillHost(on)
                            | Fault::KillBroker(on)
                            | Fault::PauseBroker(on)
                            | Fault::PauseHost(on)
                            | Fault::CutOff(on)
                            | Fault::Mute(on)
                            | Fault::Deaf(on)
                            | Fault::Slow(on, _)
                            | Fault::Flaky(on)
                            | Fault::Drop(on, _) => all |= on == host,
                            Fault::Apart(..) => {}
                        }
                    }
                    let correct = usize::from(shape.twins()) - out.len();
                    if all || correct < shape.twin_quorum() {
                        silent.insert(host);
                    }
                }
                // No host is in two pairs, so each pair of two that are well costs one more.
                let pairs = act.faults.iter().filter(|fault| match fault {
                    Fault::Apart(one, other) => !silent.contains(one) && !silent.contains(other),
                    _ => false,
                });
                let faulty = silent.len() + pairs.count();
                assert!(faulty <= shape.host_faults(), "seed {seed}: {act}");
            }
            for host in 0..shape.hosts() {
                let bad = byzantine.iter().filter(|twin| twin.host.0 == host).count();
                assert!(
                    bad < shape.twin_quorum(),
                    "seed {seed}: {bad} twins of h{host}"
                );
            }
        }
    }

    #[test]
    fn with_three_twins_all_hosts_can_have_a_byzantine_one_at_once() {
        let traitors = |act: &Act| {
            let byzantine = |fault: &&Fault| matches!(fault, Fault::Byzantine(..));
            act.faults.iter().filter(byzantine).count()
        };
        let most = |twins| {
            (0..20)
                .flat_map(|seed| drawn(seed, shape(3, twins), 300))
                .map(|act| traitors(&act))
                .max()
        };
        assert_eq!(most(3), Some(3));
        // A host of two is silent with one.
        assert_eq!(most(2), Some(1));
    }

    #[test]
    fn what_is_asked_for_comes_and_nothing_else() {
        let names =
            |names: &[&str]| kinds(&names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>());
        assert_eq!(
            names(&["drop", "byzantine-mute"]),
            ["drop", "byzantine-mute"]
        );
        assert_eq!(names(&["network"]), NETWORK);
        let mut plan = Plan::new(1, shape(3, 2), names(&["apart"]));
        for _ in 0..100 {
            let act = plan.draw();
            assert!(
                matches!(act.faults[..], [Fault::Apart(one, other)] if one != other),
                "{act}"
            );
        }
    }

    #[test]
    fn every_double_that_a_replica_can_be_is_drawn() {
        // The replica's crate is no dependency of this one.
        let source = include_str!("../../../../replica/src/byzantine/mod.rs");
        let names = source.lines().filter_map(|line| {
            let arm = line.trim().strip_prefix("Self::")?;
            arm.split_once(" => \"")?.1.strip_suffix("\",")
        });
        let names: BTreeSet<&str> = names.filter(|name| *name != "off").collect();
        let ours = BYZANTINE
            .iter()
            .map(|kind| kind.strip_prefix(BYZANTINE_PREFIX).unwrap());
        assert_eq!(ours.collect::<BTreeSet<&str>>(), names);
    }

    #[test]
    fn one_fault_does_not_undo_another() {
        let twin = ReplicaId::new(1, 0);
        assert!(Fault::KillHost(1).meets(Fault::PauseTwin(twin)));
        assert!(Fault::PauseTwin(twin).meets(Fault::KillHost(1)));
        assert!(Fault::KillBroker(1).meets(Fault::PauseBroker(1)));
        assert!(Fault::Apart(0, 1).meets(Fault::Slow(1, 5)));
        assert!(!Fault::KillHost(1).meets(Fault::PauseTwin(ReplicaId::new(0, 0))));
        assert!(!Fault::CutOff(1).meets(Fault::KillHost(1)));
    }
}
