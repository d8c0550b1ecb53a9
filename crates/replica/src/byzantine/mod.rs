//! Doubles: an honest core whose words are changed on their way out. Built only with the feature
//! `byzantine-doubles`, for demonstrations and tests of what the siblings and the other hosts make of it.
//!
//! A double sees what goes into the core ([`Doubles::observe`]) and changes what comes out
//! ([`Doubles::rewrite`]); the core does not know. Each is one file of this module and one arm here.

mod control;
mod wrong_result;

use twinbft_core::{Effects, Input};
use twinbft_types::{Incarnation, KeyRing, ReplicaId};

pub use control::serve;
use wrong_result::WrongResult;

/// How a replica misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Double {
    /// It does not.
    Off,
    /// Its RESULTs and replies carry altered results, with valid MACs over them: only the cross-check catches it.
    WrongResult,
}

impl Double {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Off, Self::WrongResult];

    /// The name that the control socket takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::WrongResult => "wrong-result",
        }
    }

    /// The double of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|double| double.name() == name)
    }
}

/// What stands between the core and its driver.
pub struct Doubles {
    acting: Double,
    wrong_result: WrongResult,
}

impl Doubles {
    /// Honest until told otherwise. `keys` are the replica's own.
    #[must_use]
    pub fn new(me: ReplicaId, incarnation: Incarnation, keys: KeyRing) -> Self {
        Self {
            acting: Double::Off,
            wrong_result: WrongResult::new(me, incarnation, keys),
        }
    }

    /// Behaves like this from now on.
    pub fn act(&mut self, double: Double) {
        tracing::warn!(
            double = double.name(),
            "this replica changes its behaviour on purpose"
        );
        self.acting = double;
    }

    /// The double that is acted; `None` when honest.
    #[must_use]
    pub fn acting(&self) -> Option<&'static str> {
        match self.acting {
            Double::Off => None,
            Double::WrongResult => Some(self.acting.name()),
        }
    }

    /// Before the core takes an input.
    pub fn observe(&mut self, _input: &Input) {
        // What today's doubles need stands in the effects.
    }

    /// After the core has decided.
    pub fn rewrite(&mut self, effects: &mut Effects) {
        self.wrong_result.observe(effects);
        match self.acting {
            Double::Off => {}
            Double::WrongResult => self.wrong_result.rewrite(effects),
        }
    }
}
