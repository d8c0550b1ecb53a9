//! Scenarios in which several things must come together for a rule to matter: chance alone would take millions of seeds.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use twinbft_types::{ReplicaId, Shape};

use super::{Fault, Scenario, Span};
use crate::byzantine::Double;

/// One scenario in so many has a theme.
const ONE_IN: u32 = 12;

impl Scenario {
    pub(super) fn draw_theme(&mut self, rng: &mut ChaCha8Rng) {
        match rng.random_range(0..3 * ONE_IN) {
            0 => self.lagging_readers(rng),
            1 => self.restless_views(rng),
            2 => self.last_words(rng),
            _ => {}
        }
    }

    fn reshape(&mut self, hosts: u8, twins: u8) {
        self.shape = Shape::new(hosts, twins).expect("a valid shape");
        self.faults.clear();
        self.doubles.clear();
    }

    /// 7: on each host one twin answers fast reads from what it was some writes ago, and another one is slow to read the
    /// log: together they are `q`, and only the log's end keeps the slow one from agreeing.
    fn lagging_readers(&mut self, rng: &mut ChaCha8Rng) {
        self.reshape([1, 3][rng.random_range(0..2)], 3);
        for client in &mut self.clients {
            client.fast_reads = 128;
            client.depth = 1;
            client.operations = client.operations.max(8);
        }
        self.reads_max = 64;
        self.sync_us_max = 0;
        self.delay_us_max = 50;
        for host in self.shape.all_hosts() {
            let liar = ReplicaId::new(host.0, rng.random_range(0..3));
            let slow = ReplicaId::new(host.0, (liar.twin.0 + 1) % 3);
            self.doubles.insert(liar, Double::StaleAnswer);
            self.faults.push(Fault::Slow {
                span: Span {
                    from_us: 0,
                    to_us: self.heal_at_us,
                },
                twin: slow,
                by_us: [3_000, 20_000][rng.random_range(0..2)],
            });
        }
    }

    /// 6: views change again and again while a twin of each host posts late what it has once posted about views.
    fn restless_views(&mut self, rng: &mut ChaCha8Rng) {
        self.reshape(3, [3, 3, 5][rng.random_range(0..3)]);
        self.tuning.suspect_after_us = [3_000, 10_000][rng.random_range(0..2)];
        self.sync_us_max = [0, 1_000, 4_000][rng.random_range(0..3)];
        for host in self.shape.all_hosts() {
            let twin = rng.random_range(0..self.shape.twins());
            self.doubles
                .insert(ReplicaId::new(host.0, twin), Double::Belated);
            let slow = (twin + 1) % self.shape.twins();
            self.faults.push(Fault::Slow {
                span: Span {
                    from_us: 0,
                    to_us: self.heal_at_us,
                },
                twin: ReplicaId::new(host.0, slow),
                by_us: 5_000,
            });
        }
    }

    /// 6: what the primary host orders while nobody hears it is in its VIEW-CHANGE; then it falls silent for good.
    fn last_words(&mut self, rng: &mut ChaCha8Rng) {
        self.reshape(3, [2, 2, 3][rng.random_range(0..3)]);
        self.tuning.suspect_after_us = 30_000;
        self.delay_us_max = 500;
        self.loss = 0;
        let from_us = rng.random_range(500..4_000);
        let heard_us = from_us + 30_000 + rng.random_range(0..12_000);
        self.faults.push(Fault::Cut {
            span: Span {
                from_us,
                to_us: heard_us,
            },
            from: 1,
            to: 0b110,
            both: false,
        });
        self.faults.push(Fault::Silence {
            from_us: heard_us + rng.random_range(0..8_000),
            host: 0,
        });
    }
}
