//! Doubles: an honest core whose words are changed on their way out. Built only with the feature
//! `byzantine-doubles`, for demonstrations and tests of what the siblings and the other hosts make of it.
//!
//! A double sees what goes into the core ([`Doubles::observe`]) and changes what comes out
//! ([`Doubles::rewrite`]); the core does not know. Each is one file of this module and one arm here.

mod control;
pub mod garbage;
mod impostor;
mod saboteur;
mod wrong_result;

use twinbft_core::{Effect, Effects, Input};
use twinbft_types::{Incarnation, KeyRing, ReplicaId};

pub use control::serve;
use impostor::Impostor;
use saboteur::Saboteur;
use wrong_result::WrongResult;

/// How a replica misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Double {
    /// It does not.
    Off,
    /// Its RESULTs and replies carry altered results, with valid MACs over them: only the cross-check catches it.
    WrongResult,
    /// Its CHECKPOINTs carry altered digests.
    WrongCheckpoint,
    /// Posts and sends nothing.
    Mute,
    /// Sends nothing to one of the other hosts.
    HalfMute,
    /// Endorses and accepts nothing.
    NoVotes,
    /// NACKs whatever it should endorse.
    NackAll,
    /// As leader, posts a second proposal behind each.
    Equivocate,
    /// Every second MAC of its signatures is wrong.
    SpoilMacs,
    /// Posts old entries of its own again.
    Replay,
    /// Posts well-formed nonsense of every kind beside all that it has to say.
    Spam,
    /// Signs what was not decided, in its sibling's name.
    Forge,
    /// Says that it is another twin or another host, in entries, messages and replies.
    Impersonate,
    /// Sends bytes that mean nothing, to its postbox, to peers and to clients.
    Garbage,
    /// Votes for nothing in this share of batches: the fault of the papers' experiments.
    Refuse {
        /// Batches of a million.
        per_million: u32,
    },
}

impl Double {
    /// All of them; the one that refuses stands for every share.
    pub const ALL: [Self; 15] = [
        Self::Off,
        Self::WrongResult,
        Self::WrongCheckpoint,
        Self::Mute,
        Self::HalfMute,
        Self::NoVotes,
        Self::NackAll,
        Self::Equivocate,
        Self::SpoilMacs,
        Self::Replay,
        Self::Spam,
        Self::Forge,
        Self::Impersonate,
        Self::Garbage,
        Self::Refuse { per_million: 0 },
    ];

    /// The name that the control socket takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::WrongResult => "wrong-result",
            Self::WrongCheckpoint => "wrong-checkpoint",
            Self::Mute => "mute",
            Self::HalfMute => "half-mute",
            Self::NoVotes => "no-votes",
            Self::NackAll => "nack-all",
            Self::Equivocate => "equivocate",
            Self::SpoilMacs => "spoil-macs",
            Self::Replay => "replay",
            Self::Spam => "spam",
            Self::Forge => "forge",
            Self::Impersonate => "impersonate",
            Self::Garbage => "garbage",
            Self::Refuse { .. } => "refuse",
        }
    }

    /// The double of this name; `refuse` needs a share from 0 to 1, the others none.
    #[must_use]
    pub fn from_words(name: &str, share: Option<&str>) -> Option<Self> {
        let known = Self::ALL.into_iter().find(|double| double.name() == name)?;
        match (known, share) {
            (Self::Refuse { .. }, Some(share)) => {
                let share: f64 = share.parse().ok()?;
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a share of a million"
                )]
                let per_million = (share * 1e6).round() as u32;
                (0.0..=1.0)
                    .contains(&share)
                    .then_some(Self::Refuse { per_million })
            }
            (Self::Refuse { .. }, None) => None,
            (known, None) => Some(known),
            (_, Some(_)) => None,
        }
    }
}

/// What stands between the core and its driver.
pub struct Doubles {
    acting: Double,
    wrong_result: WrongResult,
    saboteur: Saboteur,
    impostor: Impostor,
}

impl Doubles {
    /// Honest until told otherwise. `keys` are the replica's own, `hosts` is the cluster's `N`.
    #[must_use]
    pub fn new(me: ReplicaId, incarnation: Incarnation, keys: KeyRing, hosts: u8) -> Self {
        Self {
            acting: Double::Off,
            wrong_result: WrongResult::new(me, incarnation, keys),
            saboteur: Saboteur::new(me, hosts),
            impostor: Impostor::new(me, hosts),
        }
    }

    /// Behaves like this from now on.
    pub fn act(&mut self, double: Double) {
        tracing::warn!(
            double = double.name(),
            "this replica changes its behaviour on purpose"
        );
        self.acting = double;
        garbage::switch(double == Double::Garbage);
    }

    /// The double that is acted; `None` when honest.
    #[must_use]
    pub fn acting(&self) -> Option<&'static str> {
        (self.acting != Double::Off).then(|| self.acting.name())
    }

    /// Before the core takes an input.
    pub fn observe(&mut self, _input: &Input) {
        // What today's doubles need stands in the effects.
    }

    /// Bytes that this double posts beside `effects`, which are no entry.
    #[must_use]
    pub fn posts_besides(&self, effects: &Effects) -> Option<Vec<u8>> {
        let mut posts = effects.0.iter();
        let speaks = posts.any(|effect| matches!(effect, Effect::Post { .. }));
        (self.acting == Double::Garbage && speaks).then(garbage::entry)
    }

    /// After the core has decided.
    pub fn rewrite(&mut self, effects: &mut Effects) {
        self.wrong_result.observe(effects);
        match self.acting {
            Double::Off => {}
            Double::WrongResult => self.wrong_result.rewrite(effects),
            Double::Impersonate => self.impostor.rewrite(effects),
            double => self.saboteur.rewrite(double, effects),
        }
    }
}
