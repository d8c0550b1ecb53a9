//! The scheduler: virtual time, a network, postboxes, twins and clients.

mod crash;
mod effects;
#[cfg(test)]
mod evidence_tests;
mod happen;
mod loss;
mod network;
mod people;
mod postbox;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod script_tests;
#[cfg(test)]
mod section6_tests;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use twinbft_client::history::History;
use twinbft_client::session::SessionConfig;
use twinbft_core::audit::Auditor;
use twinbft_core::{CoreConfig, Effect, Effects, Input};
use twinbft_postbox::{Limits, MemoryLog};
use twinbft_types::wire::{PeerMessage, Reply, pb};
use twinbft_types::{
    ClientId, Digest, Entry, Epoch, HostId, KeyRing, Mac, ProcessId, QueryAnswer, ReplicaId, Seq,
    Slot, View,
};

use crate::agenda::Agenda;
use crate::byzantine::Puppet;
use crate::cast::Cast;
use crate::client::Client;
use crate::oracles::{
    Observer, Truth, Violation, check_histories, check_linearizable, check_progress,
};
use crate::replica::Twin;
use crate::rogue::Rogue;
use crate::scenario::{CrashPoint, Fault, HostLoss, Loss, Scenario};
use crate::trace::Tracer;
pub use crash::Disk;
pub use effects::certificate_in;

/// Virtual time after which every request must have ended, counted from the healing.
const PATIENCE_US: u64 = 60_000_000;
/// Virtual time after the healing in which everybody catches up that can.
const SETTLING_US: u64 = 3_000_000;
/// Steps after which a run is given up as endless.
const STEPS_MAX: u64 = 4_000_000;

/// What one run came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Steps of the scheduler.
    pub steps: u64,
    /// Messages between processes.
    pub messages: u64,
    /// Messages and entries of correct twins.
    pub honest: u64,
    /// Slots executed.
    pub slots: u64,
    /// The highest view that a host installed.
    pub view: u64,
    /// How often twins have undone what they had executed tentatively.
    pub undone: u64,
    /// Crashes of correct twins.
    pub crashes: u64,
    /// Operations that their clients saw completed.
    pub completed: u64,
    /// Divergences that correct twins reported.
    pub divergences: u64,
    /// Culprits that were named.
    pub culprits: u64,
    /// Wrong outputs of single twins, and what became of them.
    pub detection: Detection,
    /// Runs in which fewer than `Q` hosts had `q` correct twins: not checked for progress.
    pub stalled: u64,
    /// A digest over everything that happened, for comparing two runs of one seed; zero unless traced.
    pub trace: Digest,
}

/// Wrong outputs of single twins, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detection {
    /// RESULTs with a wrong digest that were posted, one for each slot and twin.
    pub wrong_results: u64,
    /// CHECKPOINTs with a wrong digest.
    pub wrong_checkpoints: u64,
    /// Fast-read answers with a wrong value or version.
    pub wrong_answers: u64,
    /// Certificates and replies that no host decided.
    pub wrong_messages: u64,
    /// Wrong RESULTs of a cluster with other hosts to ask: only those can be named.
    pub nameable: u64,
    /// Of those, how many named their twin as the culprit.
    pub named: u64,
    /// Wrong RESULTs and CHECKPOINTs that were reported as a divergence at least.
    pub diverged: u64,
}

/// Which output of a slot was wrong, and whose it was.
type WrongOutput = (ReplicaId, Slot, bool);

#[derive(Debug)]
enum Happening {
    /// A client's request or query.
    Input {
        to: ReplicaId,
        input: Box<Input>,
    },
    Peer {
        to: ReplicaId,
        from: ReplicaId,
        message: Arc<PeerMessage>,
    },
    Read {
        by: ReplicaId,
    },
    Timer {
        of: ReplicaId,
        at_us: u64,
    },
    /// The service answers.
    Answer {
        to: ReplicaId,
        input: Box<Input>,
        life: u32,
    },
    /// What a twin has written ahead is durable up to this record.
    Synced {
        of: ReplicaId,
        records: usize,
        life: u32,
    },
    Crash {
        of: ReplicaId,
        down_us: u64,
        loss: Loss,
    },
    Restart {
        of: ReplicaId,
    },
    /// A post that later ones have overtaken: never, while appends are FIFO (2).
    Overtaken {
        of: ReplicaId,
        entry: Box<Entry>,
        life: u32,
    },
    /// A lazy post has waited long enough.
    Flush {
        of: ReplicaId,
    },
    BrokerRestart {
        host: HostId,
    },
    HostLoss {
        host: HostId,
        down_us: u64,
        what: HostLoss,
    },
    HostReturn {
        host: HostId,
    },
    ToClient {
        client: usize,
        from: ReplicaId,
        hint: View,
        message: Box<ClientMessage>,
    },
    ClientTimer {
        client: usize,
        at_us: u64,
    },
    Begin {
        client: usize,
    },
    Rogue {
        rogue: usize,
    },
}

#[derive(Clone, Debug)]
enum ClientMessage {
    Reply(Reply),
    Answer(QueryAnswer, Bytes, Mac),
    Refusal(Seq, pb::RefusalReason),
}

/// One simulated cluster.
#[derive(Debug)]
pub struct World {
    scenario: Scenario,
    rng: ChaCha8Rng,
    now_us: u64,
    agenda: Agenda<Happening>,
    /// By host, then twin.
    twins: Vec<Twin>,
    /// By host.
    logs: Vec<MemoryLog<Bytes>>,
    /// By host: whether it is down.
    hosts: Vec<loss::Standing>,
    /// By host: the epoch of its log.
    epochs: Vec<Epoch>,
    observers: Vec<Observer>,
    /// By host: an audit of its log, which names nobody but Byzantine twins.
    auditors: Vec<Auditor>,
    /// By host, then twin: for oracles.
    rings: Vec<KeyRing>,
    clients: Vec<Client>,
    rogues: Vec<Rogue>,
    history: History,
    byzantine: BTreeSet<ReplicaId>,
    truth: Truth,
    wrong: BTreeSet<WrongOutput>,
    named: BTreeSet<WrongOutput>,
    diverged: BTreeSet<WrongOutput>,
    report: Report,
    tracer: Tracer,
    /// Empty between steps; kept for its memory.
    effects: Effects,
    /// Which messages between hosts are lost besides, and how many of each kind were sent.
    #[cfg(test)]
    script: script_tests::Script,
    /// What correct twins reported.
    #[cfg(test)]
    events: Vec<(ReplicaId, twinbft_core::Event)>,
    /// Whom audits named.
    #[cfg(test)]
    audited: BTreeSet<ReplicaId>,
}

impl World {
    /// The cluster of a scenario, before anything has happened.
    #[must_use]
    pub fn new(scenario: Scenario, tracer: Tracer) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(scenario.seed ^ 0x7477_696e);
        let shape = scenario.shape;
        let cast = Cast::of(shape);
        let rings: Vec<KeyRing> = shape
            .all_replicas()
            .map(|me| cast.ring(ProcessId::Twin(me)))
            .collect();
        let twins = shape
            .all_replicas()
            .zip(&rings)
            .map(|(me, ring)| make_twin(&scenario, me, ring, &mut rng))
            .collect();
        let hosts = || shape.all_hosts();
        let mut world = Self {
            logs: hosts().map(|_| make_log(&scenario)).collect(),
            hosts: hosts().map(|_| loss::Standing::default()).collect(),
            epochs: hosts().map(|_| Epoch(1)).collect(),
            auditors: hosts()
                .map(|host| Auditor::genesis(shape, host, scenario.tuning.host_bounds()))
                .collect(),
            observers: hosts()
                .map(|host| Observer::new(shape, host, &scenario.tuning))
                .collect(),
            twins,
            rings,
            clients: Vec::new(),
            rogues: Vec::new(),
            history: History::new(),
            byzantine: scenario.doubles.keys().copied().collect(),
            rng,
            now_us: 0,
            agenda: Agenda::default(),
            truth: Truth::new(scenario.tuning.session_window),
            wrong: BTreeSet::new(),
            named: BTreeSet::new(),
            diverged: BTreeSet::new(),
            report: Report::default(),
            tracer,
            effects: Effects::default(),
            #[cfg(test)]
            script: script_tests::Script::default(),
            #[cfg(test)]
            events: Vec::new(),
            #[cfg(test)]
            audited: BTreeSet::new(),
            scenario,
        };
        world.make_clients(&cast);
        world.schedule_beginnings();
        world
    }

    fn make_clients(&mut self, cast: &Cast) {
        let (shape, window) = (self.scenario.shape, self.scenario.tuning.session_window);
        for plan in &self.scenario.clients {
            let ring = cast.ring(ProcessId::Client(plan.key));
            if plan.kind.has_session() {
                let id = ClientId {
                    key: plan.key,
                    session: 1,
                };
                let mut config = SessionConfig::new(shape, id, ring);
                config.window = window;
                // Some clients send to the leader alone, some to all its twins.
                config.leader_alone_bytes_max = if id.key.is_multiple_of(2) { 512 } else { 0 };
                self.clients.push(Client::new(config, plan.clone()));
            } else {
                self.rogues
                    .push(Rogue::new(plan.clone(), ring, shape, window));
            }
        }
    }

    fn schedule_beginnings(&mut self) {
        // Who is never spoken to notices that, too.
        for index in 0..self.twins.len() {
            self.set_timer(index);
        }
        for client in 0..self.clients.len() {
            let at = self.rng.random_range(0..1000);
            self.schedule(at, Happening::Begin { client });
        }
        for rogue in 0..self.rogues.len() {
            let at = self.rng.random_range(0..1000);
            self.schedule(at, Happening::Rogue { rogue });
        }
        for fault in self.scenario.faults.clone() {
            match fault {
                Fault::BrokerRestart { at_us, host } => {
                    let host = HostId(host);
                    self.schedule(at_us, Happening::BrokerRestart { host });
                }
                Fault::Crash {
                    twin: of,
                    point: CrashPoint::Time(at_us),
                    down_us,
                    loss,
                } => self.schedule(at_us, Happening::Crash { of, down_us, loss }),
                Fault::HostLoss {
                    at_us,
                    host,
                    down_us,
                    what,
                } => {
                    let host = HostId(host);
                    self.schedule(
                        at_us,
                        Happening::HostLoss {
                            host,
                            down_us,
                            what,
                        },
                    );
                }
                Fault::Crash { .. }
                | Fault::Cut { .. }
                | Fault::Burst { .. }
                | Fault::Pause { .. }
                | Fault::Slow { .. }
                | Fault::Silence { .. }
                | Fault::ClockJump { .. } => {}
            }
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn run(mut self) -> Result<Report, Violation> {
        let end_us = self.scenario.heal_at_us + PATIENCE_US;
        while let Some((at_us, happening)) = self.agenda.pop() {
            if at_us > end_us || self.report.steps > STEPS_MAX || self.is_done() {
                break;
            }
            self.now_us = at_us;
            self.report.steps += 1;
            self.happen(happening)?;
            let healed = at_us > self.scenario.heal_at_us + SETTLING_US;
            if healed && self.report.steps.is_multiple_of(1024) && self.is_stalled() {
                break;
            }
        }
        self.settle_all()?;
        if !self.is_stalled() {
            check_progress(self.honest_clients()).map_err(|mut violation| {
                violation.what += &self.summary();
                violation
            })?;
            self.check_returned()?;
        } else {
            self.report.stalled += 1;
        }
        // Where too few hosts live to go on, what was accepted last may be committed and nobody knows of it.
        let known = if self.is_stalled() && self.awaits_commit() {
            self.truth.last().0
        } else {
            u64::MAX
        };
        let histories: Vec<_> = self.clients.iter().flat_map(|c| &c.history).collect();
        let judged: Vec<_> = (histories.iter().copied())
            .filter(|r| r.returned.as_ref().is_none_or(|r| r.slot <= known))
            .collect();
        check_histories(&self.truth, &judged)?;
        check_linearizable(&self.history)?;
        self.report.completed = histories.iter().filter(|r| r.returned.is_some()).count() as u64;
        self.finish_report();
        Ok(self.report)
    }

    fn finish_report(&mut self) {
        self.report.slots = self.truth.last().0;
        let correct = self.twins.iter().filter(|t| t.is_correct());
        let views = correct.filter_map(|t| t.core.host_log().live_view());
        self.report.view = views.max().map_or(0, |view| view.0);
        let undone = self.twins.iter().map(|t| t.core.status().undone);
        self.report.undone = undone.sum();
        self.report.trace = self.tracer.digest();
        let nameable = self.scenario.shape.hosts() > 2;
        let detection = &mut self.report.detection;
        for wrong in &self.wrong {
            let is_result = wrong.2;
            detection.wrong_results += u64::from(is_result);
            detection.wrong_checkpoints += u64::from(!is_result);
            detection.nameable += u64::from(is_result && nameable);
            detection.named += u64::from(is_result && nameable && self.named.contains(wrong));
            detection.diverged += u64::from(self.diverged.contains(wrong));
        }
    }

    fn is_stalled(&self) -> bool {
        self.live_hosts() < self.scenario.shape.host_quorum()
    }

    /// Hosts with `q` correct twins.
    fn live_hosts(&self) -> usize {
        let shape = self.scenario.shape;
        let silent = self.silent_hosts();
        let live = |host: HostId| {
            if silent & (1 << host.0) != 0 {
                return false;
            }
            let twins = self.twins.iter().filter(|t| t.id.host == host);
            let live = twins.filter(|t| t.is_correct());
            live.count() >= shape.twin_quorum() && self.takes_part(host)
        };
        shape.all_hosts().filter(|host| live(*host)).count()
    }

    /// Where every twin stands, for the report of a failure.
    fn summary(&self) -> String {
        let mut text = String::new();
        for twin in &self.twins {
            let s = twin.core.status();
            text += &format!(
                "\n{} {} {} {} accepted {} committed {} executed {} stable {} pending {} log {}/{} posts {} {:?}",
                s.replica,
                s.role.name(),
                s.state,
                s.view,
                s.accepted,
                s.committed,
                s.executed,
                s.stable,
                s.pending,
                twin.position,
                self.logs[usize::from(twin.id.host.0)].end(),
                twin.posts.len(),
                twin.puppet.as_ref().map(|p| p.double),
            );
        }
        text
    }

    fn is_done(&self) -> bool {
        self.honest_clients().all(Client::is_done)
            && self.returning().is_none()
            && !self.awaits_commit()
    }

    /// Whether a client has accepted what no correct twin knows to be committed yet, as it may with tentative execution.
    fn awaits_commit(&self) -> bool {
        let accepted = self.clients.iter().flat_map(|c| &c.history);
        let slots = accepted.filter_map(|r| r.returned.as_ref().map(|returned| returned.slot));
        slots.max().unwrap_or(0) > self.truth.last().0
    }

    fn honest_clients(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter().filter(|c| c.is_honest())
    }

    fn schedule(&mut self, after_us: u64, happening: Happening) {
        self.agenda.schedule(self.now_us + after_us, happening);
    }

    fn index(&self, id: ReplicaId) -> usize {
        usize::from(id.host.0) * usize::from(self.scenario.shape.twins()) + usize::from(id.twin.0)
    }

    fn core_config(&self, me: ReplicaId) -> CoreConfig {
        let epoch = self.epochs[usize::from(me.host.0)];
        core_config(&self.scenario, me, &self.rings[self.index(me)], epoch)
    }

    fn twin(&mut self, id: ReplicaId) -> &mut Twin {
        let index = self.index(id);
        &mut self.twins[index]
    }

    fn trace_effect(&mut self, id: ReplicaId, effect: &Effect) {
        let now_us = self.now_us;
        self.tracer
            .line(|| format!("{now_us} {id} does {effect:?}"));
    }
}

fn make_log(scenario: &Scenario) -> MemoryLog<Bytes> {
    let limits = Limits {
        log_bytes: 1 << 20,
        entry_bytes_max: 16 << 10,
        state_bytes_max: 256 << 10,
        trim_every: scenario.tuning.trim_multiple,
        ..Limits::new(scenario.shape.twins())
    };
    MemoryLog::new(limits).expect("limits are valid")
}

fn core_config(scenario: &Scenario, me: ReplicaId, ring: &KeyRing, epoch: Epoch) -> CoreConfig {
    CoreConfig {
        shape: scenario.shape,
        me,
        keys: ring.clone(),
        epoch,
        config_digest: Digest::ZERO,
        quarantines: scenario.quarantines,
        tuning: scenario.tuning.clone(),
    }
}

fn make_twin(scenario: &Scenario, me: ReplicaId, ring: &KeyRing, rng: &mut ChaCha8Rng) -> Twin {
    let config = core_config(scenario, me, ring, Epoch(1));
    let skew_us = rng.random_range(-200_000..200_000);
    let double = scenario.doubles.get(&me);
    let puppet = double.map(|d| Puppet::new(*d, me, scenario.shape, ring.clone(), rng));
    Twin::new(config, puppet, skew_us)
}

impl Report {
    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.messages += other.messages;
        self.honest += other.honest;
        self.slots += other.slots;
        self.view += other.view;
        self.undone += other.undone;
        self.crashes += other.crashes;
        self.completed += other.completed;
        self.divergences += other.divergences;
        self.culprits += other.culprits;
        self.stalled += other.stalled;
        let (d, o) = (&mut self.detection, other.detection);
        d.wrong_results += o.wrong_results;
        d.wrong_checkpoints += o.wrong_checkpoints;
        d.wrong_answers += o.wrong_answers;
        d.wrong_messages += o.wrong_messages;
        d.nameable += o.nameable;
        d.named += o.named;
        d.diverged += o.diverged;
    }
}
