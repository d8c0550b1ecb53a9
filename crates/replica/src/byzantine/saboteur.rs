//! Doubles that need no memory of what the service did: each changes, drops or adds what its twin posts and sends.

use std::collections::VecDeque;
use std::sync::Arc;

use twinbft_core::{Effect, Effects};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Attempt, Authenticator, ClientId, Digest, Entry, HostId, Mac, ReplicaId, RequestRef, Seq, Slot,
    Statement, TwinId, View,
};

use super::Double;

/// Own entries that the replaying double remembers.
const REMEMBERED_MAX: usize = 256;

/// Rewrites effects by rules.
pub(super) struct Saboteur {
    me: ReplicaId,
    hosts: u8,
    posted: VecDeque<Entry>,
    /// Every decision by chance is a hash of this.
    dice: u64,
}

impl Saboteur {
    pub(super) fn new(me: ReplicaId, hosts: u8) -> Self {
        Self {
            me,
            hosts,
            posted: VecDeque::new(),
            dice: 0,
        }
    }

    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice += 1;
        let digest = Digest::of(&self.dice.to_le_bytes());
        let bytes: [u8; 8] = digest.0[..8].try_into().expect("a digest is longer");
        u64::from_le_bytes(bytes) % sides
    }

    pub(super) fn rewrite(&mut self, double: Double, effects: &mut Effects) {
        let honest = std::mem::take(&mut effects.0);
        let mut posts = 0;
        for effect in honest {
            posts += u64::from(matches!(effect, Effect::Post { .. }));
            self.change(double, effect, effects);
        }
        if double == Double::Spam && posts > 0 {
            let entry = self.nonsense();
            effects.post(entry);
        }
    }

    fn change(&mut self, double: Double, effect: Effect, out: &mut Effects) {
        match (double, effect) {
            (Double::Mute, Effect::Post { .. } | Effect::Send { .. } | Effect::Reply(_)) => {}
            (Double::HalfMute, Effect::Send { to, .. }) if to.host == self.shunned() => {}
            (Double::NoVotes, Effect::Post { entry, .. }) if is_vote(&entry) => {}
            (Double::Refuse { per_million }, Effect::Post { entry, lazy }) => {
                let refuses =
                    is_vote_on_order(&entry) && self.roll(1_000_000) < u64::from(per_million);
                if !refuses {
                    out.push(Effect::Post { entry, lazy });
                }
            }
            (Double::SpoilMacs, Effect::Send { to, message }) => {
                let mut message = (*message).clone();
                spoil_message(&mut message);
                out.push(Effect::Send {
                    to,
                    message: Arc::new(message),
                });
            }
            (_, Effect::Post { entry, lazy }) => {
                for entry in self.change_entry(double, entry) {
                    out.push(Effect::Post { entry, lazy });
                }
            }
            (_, effect) => out.push(effect),
        }
    }

    /// The host that a half-mute twin never talks to.
    fn shunned(&self) -> HostId {
        HostId((self.me.host.0 + 1) % self.hosts.max(1))
    }

    fn change_entry(&mut self, double: Double, mut entry: Entry) -> Vec<Entry> {
        match double {
            Double::WrongCheckpoint => {
                if let Entry::Checkpoint { digest, .. } = &mut entry {
                    digest.0[0] ^= 0xff;
                }
                vec![entry]
            }
            Double::NackAll => vec![nack(entry)],
            Double::Equivocate => match rival(&entry) {
                Some(rival) => vec![entry, rival],
                None => vec![entry],
            },
            Double::SpoilMacs => {
                spoil_entry(&mut entry);
                vec![entry]
            }
            Double::Replay => {
                let remembered = self.posted.len() as u64;
                let old = (remembered > 0).then(|| {
                    let place = self.roll(remembered);
                    self.posted[usize::try_from(place).expect("below the length")].clone()
                });
                if self.posted.len() >= REMEMBERED_MAX {
                    self.posted.pop_front();
                }
                self.posted.push_back(entry.clone());
                [entry].into_iter().chain(old).collect()
            }
            Double::Forge => match forged(&entry, self.me.twin) {
                Some(forged) => vec![forged, entry],
                None => vec![entry],
            },
            Double::Off
            | Double::WrongResult
            | Double::Mute
            | Double::HalfMute
            | Double::NoVotes
            | Double::Spam
            | Double::Impersonate
            | Double::Garbage
            | Double::Refuse { .. } => vec![entry],
        }
    }

    /// A well-formed entry of any kind that a twin may spam, about nothing.
    fn nonsense(&mut self) -> Entry {
        let number = self.roll(1 << 40);
        let digest = Digest::of(&number.to_le_bytes());
        let request = RequestRef {
            client: ClientId {
                key: 0,
                session: number,
            },
            seq: Seq(1),
            digest,
        };
        let (view, slot) = (View(number % 4), Slot(number % 512));
        match self.roll(12) {
            0 => Entry::Need { digest },
            1 => Entry::Have { request },
            2 => Entry::Retransmission { request },
            3 => Entry::Suspect { view },
            4 => Entry::Accept {
                view,
                slot,
                history: digest,
            },
            5 => Entry::Checkpoint { slot, digest },
            6 => Entry::Results {
                slot,
                history: digest,
                view: None,
                results: Vec::new(),
            },
            7 => Entry::Leave {
                view,
                certificates: Vec::new(),
            },
            8 => Entry::NvAccept {
                view,
                slot,
                history: digest,
            },
            9 => Entry::Jump {
                slot,
                history: digest,
            },
            10 => Entry::Beat {
                view,
                count: number,
            },
            _ => Entry::Withdraw {
                view,
                slot,
                attempt: Attempt(0),
            },
        }
    }
}

const fn is_vote(entry: &Entry) -> bool {
    matches!(
        entry,
        Entry::Endorse { .. }
            | Entry::Accept { .. }
            | Entry::NvEndorse { .. }
            | Entry::NvAccept { .. }
            | Entry::NvPropose { .. }
    )
}

/// The leader's vote is its PROPOSE.
const fn is_vote_on_order(entry: &Entry) -> bool {
    matches!(entry, Entry::Endorse { .. } | Entry::Propose { .. })
}

fn nack(entry: Entry) -> Entry {
    match entry {
        Entry::Endorse {
            view,
            slot,
            attempt,
            history,
            ..
        } => Entry::Nack {
            view,
            slot,
            attempt,
            history,
            requests: Vec::new(),
        },
        other => other,
    }
}

/// Another proposal for the same slot.
fn rival(entry: &Entry) -> Option<Entry> {
    let Entry::Propose {
        view,
        slot,
        attempt,
        previous,
        timestamp_us,
        requests,
    } = entry
    else {
        return None;
    };
    Some(Entry::Propose {
        view: *view,
        slot: *slot,
        attempt: *attempt,
        previous: *previous,
        timestamp_us: timestamp_us + 1,
        requests: requests.clone(),
    })
}

/// A signature on something that was never decided, in a sibling's name.
fn forged(entry: &Entry, me: TwinId) -> Option<Entry> {
    let Entry::Sign {
        statement,
        authenticator,
    } = entry
    else {
        return None;
    };
    let Statement::Ack {
        view,
        slot,
        history,
        ..
    } = statement
    else {
        return None;
    };
    Some(Entry::Sign {
        statement: Statement::Ack {
            view: *view,
            slot: slot.next(),
            history: *history,
            beat: None,
        },
        authenticator: Authenticator {
            twin: TwinId(me.0 ^ 1),
            macs: authenticator.macs.clone(),
        },
    })
}

/// Every second receiver cannot verify it.
fn spoil(macs: &mut [Mac]) {
    for mac in macs.iter_mut().step_by(2) {
        mac.0[0] ^= 0xff;
    }
}

fn spoil_entry(entry: &mut Entry) {
    match entry {
        Entry::Sign { authenticator, .. }
        | Entry::Endorse {
            signature: Some(authenticator),
            ..
        } => spoil(&mut authenticator.macs),
        Entry::Results { results, .. } => {
            for result in results.iter_mut().step_by(2) {
                result.mac.0[0] ^= 0xff;
            }
        }
        _ => {}
    }
}

fn spoil_message(message: &mut PeerMessage) {
    let certificate = match message {
        PeerMessage::Order(order) => &mut order.certificate,
        PeerMessage::Certificate(certificate) => certificate,
        PeerMessage::Forward(forward) => &mut forward.certificate,
        _ => return,
    };
    for authenticator in &mut certificate.authenticators {
        spoil(&mut authenticator.macs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(entry: Entry) -> Effects {
        let mut effects = Effects::default();
        effects.post(entry);
        effects
    }

    fn endorse() -> Entry {
        Entry::Endorse {
            view: View(0),
            slot: Slot(1),
            attempt: Attempt(0),
            history: Digest::ZERO,
            signature: None,
        }
    }

    fn acted(double: Double, entry: Entry) -> Vec<Effect> {
        let mut effects = post(entry);
        Saboteur::new(ReplicaId::new(0, 1), 3).rewrite(double, &mut effects);
        effects.0
    }

    #[test]
    fn each_double_does_what_its_name_says() {
        assert!(acted(Double::Mute, endorse()).is_empty());
        assert!(acted(Double::NoVotes, endorse()).is_empty());
        assert!(
            acted(
                Double::Refuse {
                    per_million: 1_000_000
                },
                endorse()
            )
            .is_empty()
        );
        assert_eq!(acted(Double::Refuse { per_million: 0 }, endorse()).len(), 1);
        assert!(matches!(
            acted(Double::NackAll, endorse())[..],
            [Effect::Post {
                entry: Entry::Nack { .. },
                ..
            }]
        ));
        assert_eq!(acted(Double::Spam, endorse()).len(), 2);
        let propose = Entry::Propose {
            view: View(0),
            slot: Slot(1),
            attempt: Attempt(0),
            previous: Digest::ZERO,
            timestamp_us: 7,
            requests: Vec::new(),
        };
        assert_eq!(acted(Double::Equivocate, propose).len(), 2);
        let checkpoint = Entry::Checkpoint {
            slot: Slot(4),
            digest: Digest::ZERO,
        };
        let [
            Effect::Post {
                entry: Entry::Checkpoint { digest, .. },
                ..
            },
        ] = &acted(Double::WrongCheckpoint, checkpoint)[..]
        else {
            panic!("a checkpoint stays one");
        };
        assert_ne!(*digest, Digest::ZERO);
        let ack = Entry::Sign {
            statement: Statement::Ack {
                view: View(0),
                slot: Slot(1),
                history: Digest::ZERO,
                beat: None,
            },
            authenticator: Authenticator {
                twin: TwinId(1),
                macs: vec![Mac::default(); 4],
            },
        };
        assert_eq!(acted(Double::Forge, ack.clone()).len(), 2);
        let [
            Effect::Post {
                entry: Entry::Sign { authenticator, .. },
                ..
            },
        ] = &acted(Double::SpoilMacs, ack)[..]
        else {
            panic!("a signature stays one");
        };
        let spoilt = authenticator
            .macs
            .iter()
            .filter(|mac| **mac != Mac::default());
        assert_eq!(spoilt.count(), 2);
    }

    #[test]
    fn the_replaying_double_says_old_things_again() {
        let mut saboteur = Saboteur::new(ReplicaId::new(0, 1), 3);
        let mut said = 0;
        for _ in 0..REMEMBERED_MAX + 10 {
            let mut effects = post(endorse());
            saboteur.rewrite(Double::Replay, &mut effects);
            said += effects.0.len();
        }
        assert_eq!(said, 2 * (REMEMBERED_MAX + 10) - 1);
        assert_eq!(saboteur.posted.len(), REMEMBERED_MAX);
    }
}
