//! What the hosts have certified about one request (protocol.md 4.9).

use bytes::Bytes;
use twinbft_types::mutants::{Rule, out as is_out};
use twinbft_types::wire::{Outcome, Reply};
use twinbft_types::{
    ClientId, Digest, Domain, HostId, Incarnation, ReplicaId, Shape, Signed, Slot, Statement,
    TwinId, View,
};

use super::fault::{FaultCounters, ReplicaFault};
use super::keys::SharedKeys;

/// What one twin has put its MAC under for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    incarnation: Incarnation,
    pub(super) slot: Slot,
    pub(super) view: Option<View>,
    pub(super) result: Digest,
}

impl Word {
    pub(super) fn of(reply: &Reply) -> Self {
        Self {
            incarnation: reply.incarnation,
            slot: reply.slot,
            view: reply.view,
            result: reply.outcome.digest(),
        }
    }

    /// What the twin's MAC is over.
    fn signed(&self, host: HostId, client: ClientId, reply: &Reply) -> Digest {
        Signed {
            host,
            incarnation: self.incarnation,
            statement: Statement::Reply {
                view: self.view,
                slot: self.slot,
                client,
                seq: reply.seq,
                result: self.result,
            },
        }
        .digest()
    }

    fn same_outcome(&self, other: &Self) -> bool {
        self.slot == other.slot && self.result == other.result
    }

    /// A committed outcome is above tentative ones, and those are ordered by their views: a view change may drop
    /// what was executed tentatively (4.7), and then the request is executed again elsewhere.
    fn rank(&self) -> (View, Incarnation) {
        (self.view.unwrap_or(View(u64::MAX)), self.incarnation)
    }
}

/// An outcome that `Q` hosts have certified.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) word: Word,
    pub(super) result: Bytes,
    /// The hosts of the quorum, one bit each.
    pub(super) hosts: u32,
}

/// The words of all twins for one request, and the results that certified words stand for.
///
/// Bounded: one word for each twin, one result for each host.
#[derive(Clone, Debug)]
pub(super) struct ReplyTally {
    shape: Shape,
    /// By host, then twin. Only what was verified.
    words: Vec<Option<Word>>,
    results: Vec<(Digest, Bytes)>,
}

impl ReplyTally {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            words: vec![None; usize::from(shape.hosts()) * usize::from(shape.twins())],
            results: Vec::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.words.fill(None);
        self.results.clear();
    }

    /// Takes in a reply whose host exists; gives the accepted outcome when there is one now.
    pub(super) fn handle_reply(
        &mut self,
        keys: &SharedKeys,
        client: ClientId,
        reply: &Reply,
        faults: &mut FaultCounters,
    ) -> Option<Accepted> {
        let word = Word::of(reply);
        self.collect(keys, client, reply, word, faults);
        let certified = self.certified(reply.host)?;
        self.look_for_disagreement(reply.host, &certified, faults);
        self.keep_result(&certified, &word, reply);
        self.accepted(&certified)
    }

    /// Verifies the MACs that are news and keeps the words that they stand for. MACs of several copies of a reply
    /// add up: each names its twin, and each twin vouches for the whole word.
    fn collect(
        &mut self,
        keys: &SharedKeys,
        client: ClientId,
        reply: &Reply,
        word: Word,
        faults: &mut FaultCounters,
    ) {
        let digest = word.signed(reply.host, client, reply);
        let first = usize::from(reply.host.0) * usize::from(self.shape.twins());
        let mut keys = keys.lock();
        for_each_mac(self.shape, reply, faults, |twin, mac, faults| {
            let known = &mut self.words[first + usize::from(twin.0)];
            if *known == Some(word) {
                return;
            }
            let from = ReplicaId {
                host: reply.host,
                twin,
            };
            let authentic = keys.verify(from, Domain::Statement, digest, mac);
            if !authentic && !is_out(Rule::ReplyMac) {
                faults.add(ReplicaFault::BadReplyMac);
                return;
            }
            match known {
                Some(old) if word.rank() < old.rank() => {
                    // Late or replayed. A committed word stays, whatever is said about views before it.
                }
                Some(old) if old.view == word.view && !old.same_outcome(&word) => {
                    faults.add(ReplicaFault::ContradictingReply);
                }
                Some(_) | None => *known = Some(word),
            }
        });
    }

    /// The word that `q` twins of this host have in common. There is at most one, because `2q > m`.
    fn certified(&self, host: HostId) -> Option<Word> {
        let twins = usize::from(self.shape.twins());
        let first = usize::from(host.0) * twins;
        let words = &self.words[first..first + twins];
        words
            .iter()
            .copied()
            .flatten()
            .find(|word| count_equal(words, word) >= self.shape.twin_quorum())
    }

    fn look_for_disagreement(&self, host: HostId, word: &Word, faults: &mut FaultCounters) {
        let disagrees = word.view.is_none()
            && self
                .shape
                .all_hosts()
                .filter(|other| *other != host)
                .filter_map(|other| self.certified(other))
                .any(|other| other.view.is_none() && !other.same_outcome(word));
        if disagrees {
            faults.add(ReplicaFault::HostsDisagree);
        }
    }

    /// Keeps the whole result of a certified word, once for each digest.
    fn keep_result(&mut self, certified: &Word, word: &Word, reply: &Reply) {
        let Outcome::Result(result) = &reply.outcome else {
            return;
        };
        let wanted = certified.result == word.result;
        let known = self
            .results
            .iter()
            .any(|(digest, _)| *digest == word.result);
        if wanted && !known && self.results.len() < usize::from(self.shape.hosts()) {
            self.results.push((word.result, result.clone()));
        }
    }

    /// Whether `Q` hosts agree with the word that has just become certified, or was already (4.9).
    fn accepted(&self, word: &Word) -> Option<Accepted> {
        let agreeing = || {
            self.shape.all_hosts().filter_map(|host| {
                let other = self.certified(host)?;
                other.same_outcome(word).then_some((host, other.view))
            })
        };
        // Tentative words must agree in the view; a committed one matches any.
        let hosts_in = |view: Option<View>| {
            agreeing()
                .filter(|(_, other)| other.is_none() || *other == view)
                .fold(0u32, |hosts, (host, _)| hosts | 1 << host.0)
        };
        let needed = if is_out(Rule::ReplyHosts) {
            1
        } else {
            self.shape.host_quorum()
        };
        let quorum = |hosts: &u32| hosts.count_ones() as usize >= needed;
        let hosts = match word.view {
            Some(_) => Some(hosts_in(word.view)).filter(quorum),
            None => agreeing().map(|(_, view)| hosts_in(view)).find(quorum),
        }?;
        let (_, result) = self
            .results
            .iter()
            .find(|(digest, _)| *digest == word.result)?;
        Some(Accepted {
            word: *word,
            result: result.clone(),
            hosts,
        })
    }

    /// The hosts that have certified anything, one bit each.
    pub(super) fn hosts_heard(&self) -> u32 {
        self.shape
            .all_hosts()
            .filter(|host| self.certified(*host).is_some())
            .fold(0, |hosts, host| hosts | 1 << host.0)
    }
}

fn count_equal(words: &[Option<Word>], word: &Word) -> usize {
    words
        .iter()
        .filter(|other| other.as_ref() == Some(word))
        .count()
}

/// The MACs of a reply, at most one for each twin of the cluster's shape.
fn for_each_mac(
    shape: Shape,
    reply: &Reply,
    faults: &mut FaultCounters,
    mut each: impl FnMut(TwinId, &twinbft_types::Mac, &mut FaultCounters),
) {
    if reply.macs.len() > usize::from(shape.twins()) {
        // Verifying a long list would cost this client what it costs the sender nothing to make.
        faults.add(ReplicaFault::TooManyMacs);
        return;
    }
    let mut seen = 0u8;
    for (twin, mac) in &reply.macs {
        if twin.0 >= shape.twins() {
            faults.add(ReplicaFault::UnknownTwin);
        } else if seen & (1 << twin.0) != 0 {
            faults.add(ReplicaFault::DuplicateTwin);
        } else {
            seen |= 1 << twin.0;
            each(*twin, mac, faults);
        }
    }
}

/// Whether `q` distinct twins of its host vouch for this reply, which contradicts what was accepted.
pub(super) fn is_certified(
    shape: Shape,
    keys: &SharedKeys,
    client: ClientId,
    reply: &Reply,
    faults: &mut FaultCounters,
) -> bool {
    let digest = Word::of(reply).signed(reply.host, client, reply);
    let mut keys = keys.lock();
    let mut valid = 0;
    for_each_mac(shape, reply, faults, |twin, mac, faults| {
        let from = ReplicaId {
            host: reply.host,
            twin,
        };
        if keys.verify(from, Domain::Statement, digest, mac) {
            valid += 1;
        } else {
            faults.add(ReplicaFault::BadReplyMac);
        }
    });
    valid >= shape.twin_quorum()
}
