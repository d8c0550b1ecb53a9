//! The double that says that it is somebody else: in the entries that it posts, the messages that it sends and the
//! replies that it gives. The broker and TLS stamp the true sender; these are the fields inside.

use std::sync::Arc;

use twinbft_core::{Effect, Effects};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Authenticator, Certificate, Entry, HostId, ReplicaId, TwinId};

pub(super) struct Impostor {
    me: ReplicaId,
    hosts: u8,
}

impl Impostor {
    pub(super) const fn new(me: ReplicaId, hosts: u8) -> Self {
        Self { me, hosts }
    }

    /// Beside each word in its own name, the same in another's.
    pub(super) fn rewrite(&self, effects: &mut Effects) {
        for effect in std::mem::take(&mut effects.0) {
            match &effect {
                Effect::Post { entry, lazy } => {
                    if let Some(entry) = self.entry(entry) {
                        effects.push(Effect::Post { entry, lazy: *lazy });
                    }
                }
                Effect::Send { to, message } => {
                    for message in self.messages(message) {
                        effects.push(Effect::Send {
                            to: *to,
                            message: Arc::new(message),
                        });
                    }
                }
                Effect::Reply(reply) => {
                    let mut other = reply.clone();
                    other.host = self.host();
                    effects.push(Effect::Reply(other));
                    let mut other = reply.clone();
                    for (twin, _) in &mut other.macs {
                        *twin = TwinId(twin.0 ^ 1);
                    }
                    effects.push(Effect::Reply(other));
                }
                _ => {}
            }
            effects.push(effect);
        }
    }

    /// Another host.
    const fn host(&self) -> HostId {
        HostId((self.me.host.0 + 1) % self.hosts)
    }

    /// A sibling.
    const fn twin(&self) -> TwinId {
        TwinId(self.me.twin.0 ^ 1)
    }

    fn entry(&self, entry: &Entry) -> Option<Entry> {
        let mut entry = entry.clone();
        match &mut entry {
            Entry::Sign { authenticator, .. }
            | Entry::Endorse {
                signature: Some(authenticator),
                ..
            } => authenticator.twin = self.twin(),
            Entry::Relay { certificate } => self.rename(certificate),
            Entry::RelayOrder { order } => self.rename(&mut order.certificate),
            _ => return None,
        }
        Some(entry)
    }

    fn messages(&self, message: &PeerMessage) -> Vec<PeerMessage> {
        let rename = |change: &dyn Fn(&mut Certificate)| {
            let mut message = message.clone();
            match &mut message {
                PeerMessage::Order(order) => change(&mut order.certificate),
                PeerMessage::Certificate(certificate) => change(certificate),
                PeerMessage::Forward(forward) => change(&mut forward.certificate),
                _ => return None,
            }
            Some(message)
        };
        let of_another_host = rename(&|certificate| self.rename(certificate));
        // Its own signature, twice: once as its sibling's.
        let signed_twice = rename(&|certificate| {
            let own = certificate.authenticators.iter();
            let own = own.filter(|one| one.twin == self.me.twin).cloned();
            certificate.authenticators = own
                .flat_map(|one| {
                    let other = Authenticator {
                        twin: self.twin(),
                        macs: one.macs.clone(),
                    };
                    [one, other]
                })
                .collect();
        });
        of_another_host.into_iter().chain(signed_twice).collect()
    }

    fn rename(&self, certificate: &mut Certificate) {
        certificate.signed.host = self.host();
    }
}

#[cfg(test)]
mod tests {
    use twinbft_types::{Digest, Incarnation, Mac, Signed, Slot, Statement, View};

    use super::*;

    #[test]
    fn each_word_is_said_in_another_name_too() {
        let impostor = Impostor::new(ReplicaId::new(0, 1), 3);
        let statement = Statement::Ack {
            view: View(0),
            slot: Slot(1),
            history: Digest::ZERO,
            beat: None,
        };
        let authenticator = Authenticator {
            twin: TwinId(1),
            macs: vec![Mac::default(); 4],
        };
        let mut effects = Effects::default();
        effects.post(Entry::Sign {
            statement: statement.clone(),
            authenticator: authenticator.clone(),
        });
        effects.push(Effect::Send {
            to: ReplicaId::new(2, 0),
            message: Arc::new(PeerMessage::Certificate(Certificate {
                signed: Signed {
                    host: HostId(0),
                    incarnation: Incarnation(0),
                    statement,
                },
                authenticators: vec![authenticator],
            })),
        });
        impostor.rewrite(&mut effects);
        assert!(matches!(
            &effects.0[0],
            Effect::Post { entry: Entry::Sign { authenticator, .. }, .. } if authenticator.twin == TwinId(0)
        ));
        let certificates: Vec<&Certificate> = (effects.0.iter())
            .filter_map(|effect| match effect {
                Effect::Send { message, .. } => match &**message {
                    PeerMessage::Certificate(certificate) => Some(certificate),
                    _ => None,
                },
                _ => None,
            })
            .collect();
        assert_eq!(certificates.len(), 3);
        assert_eq!(certificates[0].signed.host, HostId(1));
        assert_eq!(certificates[1].authenticators.len(), 2);
        assert_eq!(certificates[2].authenticators.len(), 1);
    }
}
