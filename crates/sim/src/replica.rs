//! One simulated twin: the real core, a service, a channel to its host's postbox.

use bytes::Bytes;
use twinbft_core::{CoreConfig, Effect, Effects, Input, PeerFault, Replica, Tick};
use twinbft_types::ReplicaId;

use crate::byzantine::Double;
use crate::service::Service;

/// A twin.
#[derive(Debug)]
pub struct Twin {
    pub id: ReplicaId,
    pub core: Replica,
    pub service: Service,
    pub double: Option<Double>,
    /// The next position of the log to read.
    pub position: u64,
    /// The next append number.
    pub append_number: u64,
    /// Entries that the postbox refused for room, in order.
    pub refused: std::collections::VecDeque<Bytes>,
    /// What this twin's clock shows beyond true time, in microseconds.
    pub skew_us: i64,
    /// The timer that is set, to ignore earlier ones.
    pub timer_us: Option<u64>,
}

impl Twin {
    pub fn new(config: CoreConfig, double: Option<Double>, skew_us: i64) -> Self {
        Self {
            id: config.me,
            core: Replica::new(config),
            service: Service::default(),
            double,
            position: 0,
            append_number: 0,
            refused: std::collections::VecDeque::new(),
            skew_us,
            timer_us: None,
        }
    }

    /// One step of the core at true time `now_us`.
    pub fn step(&mut self, now_us: u64, input: Input) -> (Vec<Effect>, Result<(), PeerFault>) {
        const BEGINNING_US: i64 = 1_700_000_000_000_000;
        let wall = BEGINNING_US + self.skew_us + i64::try_from(now_us).expect("runs are short");
        let tick = Tick {
            mono_us: now_us,
            wall_us: u64::try_from(wall).expect("after 1970"),
        };
        let mut effects = Effects::default();
        let result = self.core.step(tick, input, &mut effects);
        (effects.0, result)
    }
}
