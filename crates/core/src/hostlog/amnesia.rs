//! A host that may have forgotten promises takes a new incarnation and goes on from what the others tell it; and what
//! this host says to one that asks (protocol.md 8, last row).

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{Digest, HelloState, HostId, Incarnation, Slot, TwinId, View};

use super::{Decision, HostLog, Installed, Invalid};

/// A new epoch of the log, before the host takes part in it: its twins remember enough together, or have forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Opening {
    /// Each twin's latest HELLO.
    pub(super) hellos: Vec<(TwinId, HelloState)>,
    /// Each twin's AMNESIA. Invariant: who is here is not in `hellos`.
    amnesias: Vec<(TwinId, Digest)>,
    /// Once `q` twins have forgotten: the nonce of the host's questions.
    nonce: Option<Digest>,
    /// Each twin's latest PEER with the host's own incarnation and that nonce.
    own: Vec<(TwinId, Incarnation)>,
    /// What each twin has learned of the incarnations of the other hosts.
    learned: Vec<(TwinId, Vec<Incarnation>)>,
    /// Each twin's latest NV-ACCEPT.
    accepts: Vec<(TwinId, View, Slot, Digest)>,
}

impl Opening {
    /// Whether this twin has said that it remembers nothing.
    pub(super) fn has_forgotten(&self, twin: TwinId) -> bool {
        self.nonce.is_some() || self.amnesias.iter().any(|(of, _)| *of == twin)
    }
}

/// Each twin's latest PEER about one host that has asked, until `q` are equal.
pub(super) type Asked = Vec<(TwinId, Incarnation, Digest)>;

impl HostLog {
    /// The nonce of the host's questions, while it has forgotten and takes no part.
    #[must_use]
    pub fn forgotten(&self) -> Option<Digest> {
        self.opening.as_ref()?.nonce
    }

    /// Each twin's AMNESIA of this epoch, until the host takes part.
    pub fn amnesias(&self) -> impl Iterator<Item = (TwinId, Digest)> + '_ {
        let opening = self.opening.iter();
        opening.flat_map(|opening| opening.amnesias.iter().copied())
    }

    /// Each twin's latest word for the own incarnation, while the host has forgotten.
    pub fn own_incarnations(&self) -> impl Iterator<Item = (TwinId, Incarnation)> + '_ {
        let opening = self.opening.iter();
        opening.flat_map(|opening| opening.own.iter().copied())
    }

    /// Each twin's latest NV-ACCEPT, while the host has forgotten.
    pub fn recovery_accepts(&self) -> impl Iterator<Item = (TwinId, View, Slot, Digest)> + '_ {
        let opening = self.opening.iter();
        opening.flat_map(|opening| opening.accepts.iter().copied())
    }

    /// The incarnation of a host, as this log shows it.
    ///
    /// # Panics
    /// When the cluster has no such host.
    #[must_use]
    pub fn incarnation(&self, host: HostId) -> Incarnation {
        self.incarnations[usize::from(host.0)]
    }

    /// All of them.
    #[must_use]
    pub fn incarnations(&self) -> &[Incarnation] {
        &self.incarnations
    }

    /// 8: when `q` twins post AMNESIA before all have said HELLO, the host has forgotten. Who has forgotten cannot remember later.
    pub(super) fn apply_amnesia(&mut self, sender: TwinId, nonce: Digest, out: &mut Vec<Decision>) {
        let quorum = self.shape.twin_quorum();
        let Some(opening) = &mut self.opening else {
            return;
        };
        if opening.has_forgotten(sender) {
            return;
        }
        opening.hellos.retain(|(twin, _)| *twin != sender);
        opening.amnesias.push((sender, nonce));
        if opening.amnesias.len() >= quorum {
            // One of them is of a correct twin, and fresh.
            let nonce = Digest::of_canonical(b"tbft/amn", &opening.amnesias);
            opening.nonce = Some(nonce);
            out.push(Decision::Forgotten { nonce });
        }
    }

    pub(super) fn apply_peer(
        &mut self,
        sender: TwinId,
        (host, incarnation, nonce): (HostId, Incarnation, Digest),
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        if host.0 >= self.shape.hosts() {
            return Err(Invalid("a PEER of a host that is not in the cluster"));
        }
        if self.opening.is_some() {
            self.note_peer_of_the_forgotten(sender, (host, incarnation, nonce), out);
            return Ok(());
        }
        // 8: a PEER only counts while a view is installed and unfenced.
        let Some(view) = self.live_view() else {
            return Ok(());
        };
        if host == self.host || incarnation < self.incarnation(host) {
            return Ok(());
        }
        let asked = self.asked.entry(host).or_default();
        asked.retain(|(twin, ..)| *twin != sender);
        asked.push((sender, incarnation, nonce));
        let equal = asked.iter();
        let equal = equal.filter(|(_, i, n)| (*i, *n) == (incarnation, nonce));
        if equal.count() < self.shape.twin_quorum() {
            return Ok(());
        }
        // A repeated question gets a fresh answer.
        self.asked.remove(&host);
        self.incarnations[usize::from(host.0)] = incarnation;
        out.push(Decision::Peered {
            host,
            incarnation,
            nonce,
            view,
        });
        Ok(())
    }

    /// While the host has forgotten: `q` equal PEERs about itself fix its incarnation; one about another host is what its
    /// sender has learned of it.
    fn note_peer_of_the_forgotten(
        &mut self,
        sender: TwinId,
        (host, incarnation, nonce): (HostId, Incarnation, Digest),
        out: &mut Vec<Decision>,
    ) {
        let (quorum, hosts) = (self.shape.twin_quorum(), usize::from(self.shape.hosts()));
        let Some(opening) = self.opening.as_mut().filter(|o| o.nonce == Some(nonce)) else {
            return;
        };
        if host != self.host {
            let learned = opening.learned.iter_mut().find(|(twin, _)| *twin == sender);
            let vector = match learned {
                Some((_, vector)) => vector,
                None => {
                    opening.learned.push((sender, vec![Incarnation(0); hosts]));
                    &mut opening.learned.last_mut().expect("just pushed").1
                }
            };
            let known = &mut vector[usize::from(host.0)];
            *known = incarnation.max(*known);
            return;
        }
        opening.own.retain(|(twin, _)| *twin != sender);
        opening.own.push((sender, incarnation));
        let equal = opening.own.iter().filter(|(_, i)| *i == incarnation);
        let own = &mut self.incarnations[usize::from(host.0)];
        if equal.count() >= quorum && incarnation > *own {
            *own = incarnation;
            // What was accepted rests on answers to the question before.
            opening.accepts.clear();
            out.push(Decision::Renewed { incarnation, nonce });
        }
    }

    /// 8: the `q`-th NV-ACCEPT installs the view, without a fence. What the twins have learned of the other hosts' incarnations
    /// must be equal, too: one of them is correct, and has it from `Q` hosts.
    pub(super) fn apply_recovery_accept(
        &mut self,
        sender: TwinId,
        accept: (View, Slot, Digest),
        out: &mut Vec<Decision>,
    ) {
        let quorum = self.shape.twin_quorum();
        let is_renewed = self.incarnation(self.host) > Incarnation(0);
        let is_primary = self.shape.primary(accept.0) == self.host;
        let hosts = usize::from(self.shape.hosts());
        let Some(opening) = self.opening.as_mut() else {
            return;
        };
        // What this host has decided as the primary of a view, nobody else can tell.
        if opening.nonce.is_none() || !is_renewed || is_primary {
            return;
        }
        let (view, slot, history) = accept;
        opening.accepts.retain(|(twin, ..)| *twin != sender);
        opening.accepts.push((sender, view, slot, history));
        let nothing = vec![Incarnation(0); hosts];
        let learned_by = |twin: TwinId| {
            let mut learned = opening.learned.iter();
            learned
                .find(|(of, _)| *of == twin)
                .map_or(&nothing, |(_, vector)| vector)
        };
        let vector = learned_by(sender);
        let equal = opening.accepts.iter();
        let equal = equal.filter(|(twin, v, s, h)| {
            (*v, *s, *h) == (view, slot, history) && learned_by(*twin) == vector
        });
        if equal.count() < quorum {
            return;
        }
        for (known, learned) in self.incarnations.iter_mut().zip(vector) {
            *known = (*known).max(*learned);
        }
        self.opening = None;
        out.push(Decision::Recovered);
        self.install_without_fence(
            Installed {
                view,
                slot,
                history,
                hosts: None,
            },
            out,
        );
    }
}

#[cfg(test)]
#[path = "amnesia_tests.rs"]
mod tests;
