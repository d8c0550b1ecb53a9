//! Byzantine doubles: an honest core whose effects are rewritten before they leave the twin.

use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use twinbft_core::Effect;
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, Entry, Slot};

/// How a twin deviates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Double {
    /// Posts and sends nothing.
    Mute,
    /// Its RESULTs carry wrong digests.
    WrongResult,
    /// Its CHECKPOINTs carry wrong digests.
    WrongCheckpoint,
    /// Its signatures are right for some receivers only.
    SpoiltMacs,
    /// Votes for nothing.
    NoVotes,
    /// NACKs whatever it is asked to endorse.
    NackAll,
    /// Drops half of what it would send or post.
    Forgetful,
    /// Posts everything twice.
    Repeating,
    /// Posts random bytes and well-formed nonsense in between.
    Noisy,
}

const ALL: [Double; 9] = [
    Double::Mute,
    Double::WrongResult,
    Double::WrongCheckpoint,
    Double::SpoiltMacs,
    Double::NoVotes,
    Double::NackAll,
    Double::Forgetful,
    Double::Repeating,
    Double::Noisy,
];

impl Double {
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        ALL[rng.random_range(0..ALL.len())]
    }

    /// What this twin does in place of `effect`.
    pub fn rewrite(self, effect: Effect, rng: &mut ChaCha8Rng) -> Vec<Effect> {
        match self {
            Self::Mute => match effect {
                Effect::Post { .. } | Effect::Send { .. } | Effect::Reply(_) => Vec::new(),
                other => vec![other],
            },
            Self::Forgetful => match effect {
                Effect::Post { .. } | Effect::Send { .. } if rng.random_bool(0.5) => Vec::new(),
                other => vec![other],
            },
            Self::Repeating => match effect {
                Effect::Post { .. } => vec![effect.clone(), effect],
                other => vec![other],
            },
            Self::Noisy => noisy(effect, rng),
            Self::WrongResult
            | Self::WrongCheckpoint
            | Self::SpoiltMacs
            | Self::NoVotes
            | Self::NackAll => match effect {
                Effect::Post { entry, lazy } => self
                    .rewrite_entry(entry, rng)
                    .map(|entry| Effect::Post { entry, lazy })
                    .into_iter()
                    .collect(),
                Effect::Send { to, message } if self == Self::SpoiltMacs => {
                    let message = Arc::new(spoil_message((*message).clone(), rng));
                    vec![Effect::Send { to, message }]
                }
                other => vec![other],
            },
        }
    }

    fn rewrite_entry(self, entry: Entry, rng: &mut ChaCha8Rng) -> Option<Entry> {
        match (self, entry) {
            (
                Self::WrongResult,
                Entry::Results {
                    slot,
                    history,
                    view,
                    mut results,
                },
            ) => {
                for result in &mut results {
                    result.digest.0[0] ^= 1;
                }
                Some(Entry::Results {
                    slot,
                    history,
                    view,
                    results,
                })
            }
            (Self::WrongCheckpoint, Entry::Checkpoint { slot, mut digest }) => {
                digest.0[5] ^= 1;
                Some(Entry::Checkpoint { slot, digest })
            }
            (Self::SpoiltMacs, mut entry) => {
                spoil_entry(&mut entry, rng);
                Some(entry)
            }
            (Self::NoVotes, Entry::Endorse { .. }) => None,
            (
                Self::NackAll,
                Entry::Endorse {
                    view,
                    slot,
                    attempt,
                    history,
                    ..
                },
            ) => Some(Entry::Nack {
                view,
                slot,
                attempt,
                history,
                requests: Vec::new(),
            }),
            (_, entry) => Some(entry),
        }
    }
}

fn spoil(macs: &mut [twinbft_types::Mac], rng: &mut ChaCha8Rng) {
    for mac in macs {
        if rng.random_bool(0.5) {
            mac.0[0] ^= 1;
        }
    }
}

fn spoil_entry(entry: &mut Entry, rng: &mut ChaCha8Rng) {
    match entry {
        Entry::Sign { authenticator, .. } => spoil(&mut authenticator.macs, rng),
        Entry::Endorse {
            signature: Some(authenticator),
            ..
        } => spoil(&mut authenticator.macs, rng),
        Entry::Results { results, .. } => {
            for result in results {
                spoil(std::slice::from_mut(&mut result.mac), rng);
            }
        }
        _ => {}
    }
}

fn spoil_message(mut message: PeerMessage, rng: &mut ChaCha8Rng) -> PeerMessage {
    let certificate = match &mut message {
        PeerMessage::Order(order) => &mut order.certificate,
        PeerMessage::Certificate(certificate) => certificate,
        PeerMessage::Forward(forward) => &mut forward.certificate,
        PeerMessage::FetchSlots { .. }
        | PeerMessage::FetchSlotResult { .. }
        | PeerMessage::FetchNewView { .. }
        | PeerMessage::FetchChain { .. }
        | PeerMessage::Chain(_) => return message,
    };
    for authenticator in &mut certificate.authenticators {
        spoil(&mut authenticator.macs, rng);
    }
    message
}

fn noisy(effect: Effect, rng: &mut ChaCha8Rng) -> Vec<Effect> {
    let mut digest = Digest::ZERO;
    rng.fill(&mut digest.0[..]);
    let noise = match rng.random_range(0..4) {
        0 => Entry::Need { digest },
        1 => Entry::Accept {
            view: twinbft_types::View(0),
            slot: Slot(rng.random_range(0..64)),
            history: digest,
        },
        2 => Entry::Checkpoint {
            slot: Slot(rng.random_range(0..64)),
            digest,
        },
        _ => Entry::Results {
            slot: Slot(rng.random_range(0..64)),
            history: digest,
            view: None,
            results: Vec::new(),
        },
    };
    vec![
        Effect::Post {
            entry: noise,
            lazy: false,
        },
        effect,
    ]
}

/// Bytes that are no entry.
pub fn garbage(rng: &mut ChaCha8Rng) -> Bytes {
    let mut bytes = vec![0; rng.random_range(0..64)];
    rng.fill(&mut bytes[..]);
    bytes.into()
}
