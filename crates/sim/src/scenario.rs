//! What one run is like: everything is drawn from the seed.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use twinbft_core::Tuning;
use twinbft_types::{ReplicaId, Shape};

use crate::byzantine::Double;

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Names the run.
    pub seed: u64,
    /// `N` and `m`.
    pub shape: Shape,
    /// The cluster's numbers.
    pub tuning: Tuning,
    /// Clients, each with one session.
    pub clients: u32,
    /// Operations of each client.
    pub operations: u32,
    /// Most operations that a client has outstanding.
    pub depth: usize,
    /// Share of fast reads, in 256ths.
    pub fast_reads: u8,
    /// Chance that a message is lost, in 256ths, until the network heals.
    pub loss: u8,
    /// Chance that a message is delivered twice, in 256ths.
    pub duplication: u8,
    /// Longest delay of a message, in microseconds.
    pub delay_us_max: u64,
    /// Clients whose MACs for some twins are wrong.
    pub half_authentic_clients: u32,
    /// A host that nothing reaches until the network heals.
    pub cut_off: Option<u8>,
    /// Twins that do not follow the protocol.
    pub doubles: BTreeMap<ReplicaId, Double>,
    /// Whether the report's trace covers every effect; slow.
    pub traced: bool,
    /// When faults of the network end, in microseconds.
    pub heal_at_us: u64,
}

impl Scenario {
    /// The scenario of this seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let shapes = [
            (3, 2),
            (3, 2),
            (3, 3),
            (1, 2),
            (1, 3),
            (2, 2),
            (5, 2),
            (3, 4),
            (4, 2),
            (7, 2),
        ];
        let (hosts, twins) = shapes[rng.random_range(0..shapes.len())];
        let shape = Shape::new(hosts, twins).expect("listed shapes are valid");
        let tuning = Tuning {
            checkpoint_slots: rng.random_range(2..10),
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
        };
        let mut scenario = Self {
            seed,
            shape,
            clients: rng.random_range(1..4),
            operations: rng.random_range(1..24),
            depth: rng.random_range(1..4),
            fast_reads: if rng.random_bool(0.5) { 64 } else { 0 },
            loss: if rng.random_bool(0.4) {
                rng.random_range(0..32)
            } else {
                0
            },
            duplication: if rng.random_bool(0.4) {
                rng.random_range(0..32)
            } else {
                0
            },
            delay_us_max: [50, 500, 20_000][rng.random_range(0..3)],
            half_authentic_clients: u32::from(rng.random_bool(0.15)),
            cut_off: None,
            doubles: BTreeMap::new(),
            traced: false,
            heal_at_us: 400_000,
            tuning,
        };
        scenario.draw_faults(&mut rng);
        scenario
    }

    /// At most `f` hosts may fall silent, the primary host among them.
    fn draw_faults(&mut self, rng: &mut ChaCha8Rng) {
        let mut silent = self.shape.host_faults();
        if silent > 0 && rng.random_bool(0.3) {
            self.cut_off = Some(rng.random_range(0..self.shape.hosts()));
            silent -= 1;
        }
        if !rng.random_bool(0.5) {
            return;
        }
        for host in self.shape.all_hosts() {
            let masked = usize::from(self.shape.twins()) - self.shape.twin_quorum();
            let muting = silent > 0 && self.cut_off != Some(host.0);
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
