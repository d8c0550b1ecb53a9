//! Hosts that lose their postbox's log, with or without their disks (protocol.md 8, the last two rows).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Fault, HostLoss, Scenario};

/// Scenarios of seeds below this have no such losses.
pub const FIRST_SEED: u64 = 1_000_000;

impl Scenario {
    /// Drawn apart from the rest, so that the rest of a seed is the same with and without; from [`FIRST_SEED`] on.
    pub(super) fn draw_host_losses(&mut self) {
        // docs/known-gaps.md, 14: with one or two hosts nobody takes the lead over.
        if self.seed < FIRST_SEED || self.shape.hosts() < 3 {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x616d_6e65_7369);
        let kinds = [
            HostLoss::Log,
            HostLoss::Log,
            HostLoss::Moment,
            HostLoss::OneDisk,
            HostLoss::Disks,
            HostLoss::Disks,
        ];
        for _ in 0..rng.random_range(1..4) {
            let latest = [2_000, 20_000, self.heal_at_us][rng.random_range(0..3)];
            let down_us = [500, 20_000, 150_000][rng.random_range(0..3)];
            self.faults.push(Fault::HostLoss {
                at_us: rng.random_range(0..latest),
                host: rng.random_range(0..self.shape.hosts()),
                down_us: rng.random_range(1..=down_us),
                what: kinds[rng.random_range(0..kinds.len())],
            });
        }
    }
}
