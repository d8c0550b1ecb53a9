//! Scenarios out of seeds.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use twinbft_core::{Execution, Tuning};
use twinbft_types::{HostId, ReplicaId, Shape};

use super::{CLIENTS, ClientKind, ClientPlan, CrashPoint, Fault, HostMask, Loss, Scenario, Span};
use crate::byzantine::Double;

/// `(N, m)`; small clusters more often, because they run more slots in the same time.
const SHAPES: [(u8, u8); 20] = [
    (3, 2),
    (3, 2),
    (3, 2),
    (3, 2),
    (3, 3),
    (3, 3),
    (1, 2),
    (1, 3),
    (2, 2),
    (5, 2),
    (3, 4),
    (4, 2),
    (7, 2),
    (1, 4),
    (1, 5),
    (2, 3),
    (3, 5),
    (4, 3),
    (5, 3),
    (6, 2),
];

/// Those in which tentative execution makes the most difference.
const LARGE_SHAPES: [(u8, u8); 6] = [(5, 2), (4, 2), (5, 2), (5, 3), (7, 2), (4, 3)];
/// At most three hosts of two twins.
const SMALL_SHAPES: [(u8, u8); 4] = [(3, 2), (3, 2), (2, 2), (1, 2)];

const BAD_CLIENTS: [ClientKind; 7] = [
    ClientKind::HalfAuthentic,
    ClientKind::SpoiltMacs,
    ClientKind::TwoFaced,
    ClientKind::OutOfWindow,
    ClientKind::Backwards,
    ClientKind::ManySessions,
    ClientKind::Malformed,
];

impl Scenario {
    /// The scenario of this seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self::draw(seed, &SHAPES)
    }

    /// The scenario of this seed among those of small clusters: at most three hosts of two twins.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        Self::draw(seed, &SMALL_SHAPES)
    }

    fn draw(seed: u64, shapes: &[(u8, u8)]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let is_small = shapes.len() == SMALL_SHAPES.len();
        let mut drawn = shapes[rng.random_range(0..shapes.len())];
        let mut tuning = draw_tuning(&mut rng);
        // By dice of its own, so that a seed has the same faults in either mode.
        let mut dice = ChaCha8Rng::seed_from_u64(seed ^ 0x7465_6e74);
        if dice.random_bool(0.4) {
            tuning.execution = Execution::Tentative;
            // With more than three hosts the backups, too, execute what is not committed.
            if dice.random_bool(0.6) && !is_small {
                drawn = LARGE_SHAPES[dice.random_range(0..LARGE_SHAPES.len())];
            }
        }
        let shape = Shape::new(drawn.0, drawn.1).expect("listed shapes are valid");
        let clients = draw_clients(&mut rng);
        let chance = |rng: &mut ChaCha8Rng| {
            let faulty = rng.random_bool(0.35);
            if faulty { rng.random_range(0..48) } else { 0 }
        };
        let mut scenario = Self {
            seed,
            shape,
            clients,
            loss: chance(&mut rng),
            duplication: chance(&mut rng),
            delay_us_max: [50, 500, 20_000][rng.random_range(0..3)],
            faults: Vec::new(),
            doubles: BTreeMap::new(),
            // No draw: the other figures of a seed stay what they are.
            quarantines: seed.is_multiple_of(2),
            reads_max: [1, 4, 64][rng.random_range(0..3)],
            sync_us_max: [0, 0, 100, 4_000][rng.random_range(0..4)],
            heal_at_us: 400_000,
            tuning,
        };
        if rng.random_bool(0.5) {
            scenario.draw_faults(&mut rng);
        }
        if rng.random_bool(0.5) {
            scenario.draw_doubles(&mut rng);
        }
        scenario.draw_silence(&mut rng);
        scenario.keep_disks();
        scenario.draw_host_losses();
        if !is_small {
            scenario.draw_theme(&mut rng);
        }
        scenario
    }

    fn draw_faults(&mut self, rng: &mut ChaCha8Rng) {
        for _ in 0..rng.random_range(1..5) {
            let fault = self.draw_fault(rng);
            self.faults.push(fault);
        }
    }

    fn draw_fault(&self, rng: &mut ChaCha8Rng) -> Fault {
        let span = self.draw_span(rng);
        let twin = self.draw_twin(rng);
        match rng.random_range(0..14) {
            0..=3 => Fault::Cut {
                span,
                from: self.draw_mask(rng),
                to: self.draw_mask(rng),
                both: rng.random_bool(0.5),
            },
            4 => Fault::Burst {
                span,
                to: self.draw_mask(rng),
            },
            5 | 6 => Fault::Pause { span, twin },
            7 => Fault::Slow {
                span,
                twin,
                by_us: [200, 5_000, 60_000][rng.random_range(0..3)],
            },
            8 => Fault::ClockJump {
                span,
                twin,
                by_us: rng.random_range(-600_000..600_000),
            },
            9..=12 => self.draw_crash(span, twin, rng),
            _ => Fault::BrokerRestart {
                at_us: span.from_us,
                host: twin.host.0,
            },
        }
    }

    fn draw_crash(&self, span: Span, twin: ReplicaId, rng: &mut ChaCha8Rng) -> Fault {
        let point = if rng.random_bool(0.6) {
            CrashPoint::Record(rng.random_range(2..40))
        } else {
            CrashPoint::Time(span.from_us)
        };
        let losses = [Loss::Nothing, Loss::Unsynced, Loss::Torn, Loss::Disk];
        Fault::Crash {
            twin,
            point,
            down_us: span.to_us - span.from_us + 1,
            loss: losses[rng.random_range(0..losses.len())],
        }
    }

    /// Of the `f` hosts that may be silent, those that no doubles mute may fall silent for good.
    fn draw_silence(&mut self, rng: &mut ChaCha8Rng) {
        let masked = usize::from(self.shape.twins()) - self.shape.twin_quorum();
        let of = |host: HostId| self.doubles.keys().filter(|r| r.host == host).count();
        let muted = (self.shape.all_hosts()).filter(|h| of(*h) > masked).count();
        if muted < self.shape.host_faults() && rng.random_bool(0.1) {
            let span = self.draw_span(rng);
            let host = rng.random_range(0..self.shape.hosts());
            // A twin without its disk counts as faulty until it has caught up: not on top of this.
            self.faults.retain(|f| {
                !matches!(
                    f,
                    Fault::Crash {
                        loss: Loss::Disk,
                        ..
                    }
                )
            });
            self.faults.push(Fault::Silence {
                from_us: span.from_us,
                host,
            });
        }
    }

    /// Until it has caught up, a twin without its disk counts as faulty (8): one a host, and no more than there may be
    /// with the doubles.
    fn keep_disks(&mut self) {
        let most = self.shape.twin_quorum() - 1;
        let mut lost: BTreeMap<HostId, usize> = BTreeMap::new();
        for double in self.doubles.keys() {
            *lost.entry(double.host).or_default() += 1;
        }
        for fault in &mut self.faults {
            if let Fault::Crash { twin, loss, .. } = fault
                && *loss == Loss::Disk
            {
                let count = lost.entry(twin.host).or_default();
                if *count < most {
                    *count += 1;
                } else {
                    *loss = Loss::Nothing;
                }
            }
        }
    }

    /// Short and long ones, most of them while there is traffic.
    fn draw_span(&self, rng: &mut ChaCha8Rng) -> Span {
        let latest = [2_000, 20_000, self.heal_at_us][rng.random_range(0..3)];
        let from_us = rng.random_range(0..latest);
        let most = [1_000, 30_000, self.heal_at_us][rng.random_range(0..3)];
        let to_us = (from_us + rng.random_range(0..most)).min(self.heal_at_us);
        Span { from_us, to_us }
    }

    fn draw_twin(&self, rng: &mut ChaCha8Rng) -> ReplicaId {
        let host = rng.random_range(0..self.shape.hosts());
        ReplicaId::new(host, rng.random_range(0..self.shape.twins()))
    }

    fn draw_mask(&self, rng: &mut ChaCha8Rng) -> HostMask {
        let hosts = (1u32 << self.shape.hosts()) - 1;
        match rng.random_range(0..4) {
            0 | 1 => 1 << rng.random_range(0..self.shape.hosts()),
            2 => rng.random_range(0..=hosts) | CLIENTS,
            _ => rng.random_range(0..=hosts),
        }
    }

    /// At most `f` hosts may fall silent for good, the primary host among them.
    fn draw_doubles(&mut self, rng: &mut ChaCha8Rng) {
        let mut silent = self.shape.host_faults();
        for host in self.shape.all_hosts() {
            let masked = usize::from(self.shape.twins()) - self.shape.twin_quorum();
            let muting = silent > 0;
            let most = if muting {
                self.shape.twin_quorum() - 1
            } else {
                masked
            };
            let count = rng.random_range(0..=most);
            if count > masked {
                silent -= 1;
            }
            let mut twins: Vec<_> = self.shape.all_twins().collect();
            for _ in 0..count {
                let twin = twins.swap_remove(rng.random_range(0..twins.len()));
                let replica = ReplicaId { host, twin };
                self.doubles.insert(replica, Double::draw(rng));
            }
        }
    }
}

fn draw_tuning(rng: &mut ChaCha8Rng) -> Tuning {
    let checkpoint_slots = rng.random_range(2..10);
    Tuning {
        checkpoint_slots,
        // Nothing, a little, everything.
        retain_bytes: [0, 8 << 10, 1 << 20][usize::try_from(checkpoint_slots % 3).unwrap_or(0)],
        batch_requests_max: rng.random_range(1..6),
        batch_bytes_max: 4096,
        pipeline_depth: rng.random_range(1..5),
        session_window: rng.random_range(1..6),
        sessions_max: rng.random_range(2..6),
        session_result_bytes_max: 4096,
        request_bytes_max: 1024,
        pending_requests_max: 64,
        trim_entries: rng.random_range(8..64),
        trim_bytes: rng.random_range(500..50_000),
        suspect_after_us: [30_000, 100_000, 500_000][rng.random_range(0..3)],
        serve_all_bytes_max: if rng.random_bool(0.5) { 0 } else { 4096 },
        ..Tuning::default()
    }
}

fn draw_clients(rng: &mut ChaCha8Rng) -> Vec<ClientPlan> {
    let fast_reads = if rng.random_bool(0.5) { 64 } else { 0 };
    let operations = rng.random_range(1..20);
    let depth = rng.random_range(1..4);
    let honest = rng.random_range(1..4u32);
    let bad = if rng.random_bool(0.3) {
        rng.random_range(1..3)
    } else {
        0
    };
    let plan = |key, kind| ClientPlan {
        key,
        kind,
        operations,
        depth,
        fast_reads,
    };
    let mut clients: Vec<ClientPlan> = (0..honest)
        .map(|key| plan(key, ClientKind::Honest))
        .collect();
    for key in honest..honest + bad {
        clients.push(plan(
            key,
            BAD_CLIENTS[rng.random_range(0..BAD_CLIENTS.len())],
        ));
    }
    clients
}
