//! What leaves a double in place of what its honest core would do.

use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use twinbft_core::Effect;
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, Domain, Entry, Mac, ProcessId, Slot, View};

use super::{Double, Puppet, remember};

impl Puppet {
    /// What this twin does in place of `effect`.
    pub fn rewrite(&mut self, effect: Effect, rng: &mut ChaCha8Rng) -> Vec<Effect> {
        let leaves = matches!(
            effect,
            Effect::Post { .. } | Effect::Send { .. } | Effect::Reply(_) | Effect::Answer { .. }
        );
        if !leaves {
            return vec![effect];
        }
        match self.double {
            Double::Mute => Vec::new(),
            Double::Forgetful if rng.random_bool(0.5) => Vec::new(),
            Double::Repeating => match effect {
                Effect::Post { .. } => vec![effect.clone(), effect],
                other => vec![other],
            },
            Double::Reordering => self.reorder(effect, rng),
            Double::Noisy => noisy(effect, rng),
            Double::WrongResult
            | Double::WrongCheckpoint
            | Double::SpoiltMacs
            | Double::NoVotes
            | Double::NackAll => self.rewrite_one(effect, rng).into_iter().collect(),
            Double::WrongAnswer => vec![self.wrong_answer(effect, rng)],
            Double::Equivocating => vec![self.equivocal(effect, rng)],
            Double::Replaying | Double::Forging | Double::Lying => {
                self.remember(&effect, rng);
                vec![effect]
            }
            Double::Belated => match &effect {
                Effect::Post { entry, .. }
                    if self.votes.keeps_back(entry, rng.random_bool(0.5)) =>
                {
                    Vec::new()
                }
                _ => vec![effect],
            },
            Double::Backdating => vec![backdated(effect, rng)],
            Double::Greedy => self.greedy(effect, rng),
            Double::Forgetful
            | Double::WrongService
            | Double::Spamming
            | Double::StaleAnswer
            | Double::Assembling => vec![effect],
        }
    }

    fn remember(&mut self, effect: &Effect, rng: &mut ChaCha8Rng) {
        match effect {
            Effect::Post { entry, .. } => remember(&mut self.entries, entry.clone(), rng),
            Effect::Send { message, .. } => remember(&mut self.messages, message.clone(), rng),
            Effect::Reply(reply) => remember(&mut self.replies, reply.clone(), rng),
            _ => {}
        }
    }

    fn reorder(&mut self, effect: Effect, rng: &mut ChaCha8Rng) -> Vec<Effect> {
        if self.held.len() < 8 && rng.random_bool(0.4) {
            self.held.push(effect);
            return Vec::new();
        }
        let mut all = vec![effect];
        while !self.held.is_empty() && rng.random_bool(0.5) {
            let place = rng.random_range(0..self.held.len());
            all.push(self.held.swap_remove(place));
        }
        all
    }

    fn rewrite_one(&mut self, effect: Effect, rng: &mut ChaCha8Rng) -> Option<Effect> {
        match effect {
            Effect::Post { entry, lazy } => {
                let entry = self.rewrite_entry(entry, rng)?;
                Some(Effect::Post { entry, lazy })
            }
            Effect::Send { to, message } if self.double == Double::SpoiltMacs => {
                let message = Arc::new(spoil_message((*message).clone(), rng));
                Some(Effect::Send { to, message })
            }
            other => Some(other),
        }
    }

    fn rewrite_entry(&self, mut entry: Entry, rng: &mut ChaCha8Rng) -> Option<Entry> {
        match (self.double, &mut entry) {
            (Double::WrongResult, Entry::Results { results, .. }) => {
                for result in results {
                    result.digest.0[0] ^= 1;
                }
            }
            (Double::WrongCheckpoint, Entry::Checkpoint { digest, .. }) => digest.0[5] ^= 1,
            (Double::SpoiltMacs, entry) => spoil_entry(entry, rng),
            (Double::NoVotes, Entry::Endorse { .. }) => return None,
            (
                Double::NackAll,
                Entry::Endorse {
                    view,
                    slot,
                    attempt,
                    history,
                    ..
                },
            ) => {
                return Some(Entry::Nack {
                    view: *view,
                    slot: *slot,
                    attempt: *attempt,
                    history: *history,
                    requests: Vec::new(),
                });
            }
            _ => {}
        }
        Some(entry)
    }

    /// A wrong value, or the right one under a wrong version; the MAC is valid.
    fn wrong_answer(&mut self, effect: Effect, rng: &mut ChaCha8Rng) -> Effect {
        let Effect::Answer {
            mut answer, result, ..
        } = effect
        else {
            return effect;
        };
        let mut bytes = result.to_vec();
        if rng.random_bool(0.7) {
            match bytes.first_mut() {
                Some(byte) => *byte ^= 1,
                None => bytes.push(7),
            }
        } else {
            answer.version = answer.version.wrapping_add(1);
        }
        let result: Bytes = bytes.into();
        answer.result = Digest::of(&result);
        let to = ProcessId::Client(answer.client.key);
        let mac: Mac = self
            .keys
            .mac(to, Domain::QueryAnswer, answer.digest())
            .unwrap_or_default();
        Effect::Answer {
            answer,
            result,
            mac,
        }
    }

    /// A request more in a batch, and its body.
    fn greedy(&self, mut effect: Effect, rng: &mut ChaCha8Rng) -> Vec<Effect> {
        let Effect::Post {
            entry: Entry::Propose { requests, .. },
            ..
        } = &mut effect
        else {
            return vec![effect];
        };
        let Some(request) = super::pick(&self.requests, rng) else {
            return vec![effect];
        };
        let reference = request.request.reference();
        if requests.contains(&reference) {
            return vec![effect];
        }
        match requests.len() {
            // No more than a batch may have.
            1 => requests.push(reference),
            _ => requests[0] = reference,
        }
        let body = Effect::Post {
            entry: Entry::Body { request },
            lazy: false,
        };
        vec![effect, body]
    }

    /// Another batch, another time, under the right certificate.
    fn equivocal(&self, effect: Effect, rng: &mut ChaCha8Rng) -> Effect {
        let Effect::Send { to, message } = effect else {
            return effect;
        };
        if !rng.random_bool(0.5) {
            return Effect::Send { to, message };
        }
        let mut message = (*message).clone();
        if let PeerMessage::Order(order) = &mut message {
            match rng.random_range(0..4) {
                0 => order.timestamp_us += 1,
                1 => {
                    order.bodies.pop();
                }
                2 => order.bodies.reverse(),
                _ => {
                    for body in &mut order.bodies {
                        body.operation = Bytes::from_static(&[1, 0, 66, 0, 0, 0, 0, 0, 0, 0]);
                    }
                }
            }
        }
        let message = Arc::new(message);
        Effect::Send { to, message }
    }
}

fn backdated(mut effect: Effect, rng: &mut ChaCha8Rng) -> Effect {
    if let Effect::Post {
        entry: Entry::Propose { timestamp_us, .. },
        ..
    } = &mut effect
        && rng.random_bool(0.3)
    {
        let by_us = [1_000, 2_000_000, 60_000_000][rng.random_range(0..3)];
        *timestamp_us = if rng.random_bool(0.5) {
            timestamp_us.saturating_add(by_us)
        } else {
            timestamp_us.saturating_sub(by_us)
        };
    }
    effect
}

fn spoil(macs: &mut [Mac], rng: &mut ChaCha8Rng) {
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
        | PeerMessage::FetchReport { .. }
        | PeerMessage::FetchChain { .. }
        | PeerMessage::FetchCheckpoint { .. }
        | PeerMessage::Checkpoint(_)
        | PeerMessage::FetchChunk(_)
        | PeerMessage::Chunk(_)
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
    let slot = Slot(rng.random_range(0..64));
    let noise = match rng.random_range(0..4) {
        0 => Entry::Need { digest },
        1 => Entry::Accept {
            view: View(0),
            slot,
            history: digest,
        },
        2 => Entry::Checkpoint { slot, digest },
        _ => Entry::Results {
            slot,
            history: digest,
            view: None,
            results: Vec::new(),
        },
    };
    let noise = Effect::Post {
        entry: noise,
        lazy: false,
    };
    vec![noise, effect]
}
