//! Checkpoints and what they let go (protocol.md 5).

use std::collections::BTreeMap;
use std::sync::Arc;

use twinbft_types::wire::{CheckpointParts, PeerMessage};
use twinbft_types::{Certificate, Digest, Entry, HostId, ReplicaId, Slot, Statement, TwinId};

use super::Replica;
use super::proofs::Proofs;
use crate::evidence::{Event, EventKind};
use crate::io::{Checkpoint, Effect, Effects};
use crate::record::Record;
use crate::session::SessionImage;

/// Checkpoints beyond the marks that are kept of one host; its lowest gives way.
const OF_A_HOST_MAX: usize = 4;
/// Slots below the marks that one step hands over to [`super::past`]; a slot takes several steps to come about.
const PAST_SLOTS: usize = 2;
/// When more intervals than these are held, a step hands all of them over: many came with one message.
const PAST_INTERVALS_MAX: u64 = 6;

/// What the hosts say about the state at checkpoints.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    /// Checkpoints that the service is making. Invariant: at most two, because it makes one after the other.
    begun: BTreeMap<Slot, Begun>,
    /// This twin's own digests above `L`, with the history and timestamp of their slots.
    own: BTreeMap<Slot, Own>,
    /// What each host certified, this one included.
    certified: BTreeMap<HostId, BTreeMap<Slot, Digest>>,
    /// Certificates, from `L` on, for those who lag.
    pub(super) proofs: Proofs,
    stable: Own,
    /// Whether `Q` hosts are known to have certified that one.
    is_exact: bool,
    /// Since when an own digest waits for `Q` hosts, or when they were last asked.
    waiting_since_us: Option<u64>,
    /// How often they were asked since the last stable checkpoint.
    repeats: u32,
    /// Own digests up to this one are posted.
    said: Slot,
    /// The checkpoint at `L`, until it is posted.
    unsaid_stable: Option<(Slot, Digest)>,
    /// Up to where slots are given up.
    past_to: Slot,
}

/// What is replicated besides the service's state.
#[derive(Clone, Debug)]
struct Begun {
    image: SessionImage,
    sessions: Digest,
    history: Digest,
    timestamp_us: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Own {
    digest: Digest,
    history: Digest,
    timestamp_us: u64,
}

impl Checkpoints {
    /// The service stands at this checkpoint: everything below is of no use to this twin.
    pub fn stand_at(&mut self, slot: Slot, parts: &CheckpointParts) {
        self.stable = Own {
            digest: parts.digest(),
            history: parts.history,
            timestamp_us: parts.timestamp_us,
        };
        self.is_exact = false;
        self.trim(slot);
        if self.own.is_empty() {
            self.waiting_since_us = None;
        }
    }

    /// This checkpoint is stable, and held: it may not be said yet.
    pub fn note_stable(&mut self, slot: Slot, digest: Digest, is_exact: bool) {
        self.is_exact = is_exact;
        self.unsaid_stable = (slot > self.said).then_some((slot, digest));
    }

    fn trim(&mut self, slot: Slot) {
        self.own = self.own.split_off(&slot.next());
        for of_host in self.certified.values_mut() {
            *of_host = of_host.split_off(&slot.next());
        }
        self.proofs.trim(slot);
    }

    /// The first own digest that is not posted yet.
    fn next_unsaid(&self) -> Option<(Slot, Own)> {
        let next = self.own.range(self.said.next()..).next()?;
        Some((*next.0, *next.1))
    }

    /// The highest slot that any host has certified.
    fn highest(&self) -> Slot {
        let of_hosts = self.certified.values();
        let highest = of_hosts.filter_map(|of_host| of_host.keys().next_back());
        highest.max().copied().unwrap_or_default()
    }

    /// `h_L`.
    pub const fn stable_history(&self) -> Digest {
        self.stable.history
    }

    /// The digest of the state at `L`.
    pub const fn stable_digest(&self) -> Digest {
        self.stable.digest
    }

    /// What `Q` hosts are known to have certified of the state at `L`.
    pub fn judged_digest(&self) -> Option<Digest> {
        self.is_exact.then_some(self.stable.digest)
    }

    /// The timestamp of slot `L`.
    pub const fn stable_timestamp_us(&self) -> u64 {
        self.stable.timestamp_us
    }

    /// Those up to the high mark are what this twin needs next; they are few, and stay.
    pub(super) fn note(&mut self, host: HostId, slot: Slot, digest: Digest, high_mark: Slot) {
        let of_host = self.certified.entry(host).or_default();
        of_host.insert(slot, digest);
        let mut beyond = of_host.range(high_mark.next()..).map(|(slot, _)| *slot);
        if let Some(lowest) = beyond.next()
            && beyond.count() >= OF_A_HOST_MAX
        {
            of_host.remove(&lowest);
        }
    }

    /// The checkpoints above `floor` that `quorum` hosts have reached, the highest first. Of its own host (`me`) a twin may know
    /// the last word alone, from STATE (2): it has reached those before, too.
    fn agreed(&self, floor: Slot, quorum: usize, me: HostId) -> impl Iterator<Item = Agreed> {
        let mut count: BTreeMap<(Slot, Digest), usize> = BTreeMap::new();
        for (slot, digest) in self.certified.values().flatten() {
            *count.entry((*slot, *digest)).or_default() += 1;
        }
        let own = self.certified.get(&me);
        let is_before = move |slot: &Slot| {
            own.is_some_and(|own| !own.contains_key(slot) && own.range(slot..).next().is_some())
        };
        let agreed = move |((slot, digest), n): ((Slot, Digest), usize)| {
            let is_exact = n >= quorum;
            let has_reached = is_exact || n + usize::from(is_before(&slot)) >= quorum;
            (slot > floor && has_reached).then_some(Agreed {
                slot,
                digest,
                is_exact,
            })
        };
        count.into_iter().rev().filter_map(agreed)
    }
}

/// A checkpoint that `Q` hosts have reached.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    slot: Slot,
    digest: Digest,
    /// Whether all of them are known to have certified this very digest.
    is_exact: bool,
}

impl Replica {
    /// A slot that ends with a checkpoint is executed: the session table is taken as it is now.
    pub(super) fn begin_checkpoint(&mut self, slot: Slot, out: &mut Effects) {
        let data = self.slots.get(slot).expect("executing slots are held");
        let (history, timestamp_us) = (data.history, data.timestamp_us);
        let image = self.sessions.image();
        let begun = Begun {
            image: image.clone(),
            sessions: self.sessions.digest(),
            history,
            timestamp_us,
        };
        self.checkpoints.begun.insert(slot, begun);
        let kept = self.is_tentative().then(|| image.clone());
        self.execution.set_base(slot, kept.unwrap_or_default());
        out.push(Effect::Checkpoint(Checkpoint {
            slot,
            history,
            timestamp_us,
            sessions: image,
        }));
    }

    /// The service has made its state at `slot` durable: this twin posts the digest of all that is replicated.
    pub(super) fn handle_checkpointed(&mut self, slot: Slot, service: Digest, out: &mut Effects) {
        let begun = self
            .checkpoints
            .begun
            .remove(&slot)
            .expect("the service makes the checkpoints that it was asked for");
        let (history, timestamp_us) = (begun.history, begun.timestamp_us);
        let parts = CheckpointParts {
            service,
            sessions: begun.sessions,
            config: self.config.config_digest,
            history,
            timestamp_us,
        };
        let digest = parts.digest();
        self.keep_checkpoint(slot, parts, begun.image, out);
        let own = Own {
            digest,
            history,
            timestamp_us,
        };
        self.checkpoints.own.insert(slot, own);
        self.checkpoints
            .waiting_since_us
            .get_or_insert(self.now.mono_us);
        self.say_checkpoints(out);
        self.poll_stable(out);
    }

    /// Posts this twin's digests, as far as they count in its host's log; the others wait until that has accepted more. That
    /// of `L` is one of them, also when other hosts have made it stable before this one said anything, or when its state
    /// was taken over: should another host lose what it has said, this one's word may be the `Q`-th.
    pub(super) fn say_checkpoints(&mut self, out: &mut Effects) {
        let last = self.log.last_checkpoint_that_counts();
        if let Some((slot, digest)) = self.checkpoints.unsaid_stable
            && slot <= last
        {
            self.checkpoints.unsaid_stable = None;
            self.say_checkpoint(slot, digest, out);
        }
        while let Some((slot, own)) = self.checkpoints.next_unsaid()
            && slot <= last
        {
            self.say_checkpoint(slot, own.digest, out);
        }
    }

    /// 3, durability rule: the digest is in the write-ahead log before it is posted.
    pub(super) fn say_checkpoint(&mut self, slot: Slot, digest: Digest, out: &mut Effects) {
        self.checkpoints.said = self.checkpoints.said.max(slot);
        let entry = Entry::Checkpoint { slot, digest };
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.post(entry);
    }

    /// `q` twins have the same digest: the host certifies CHECKPOINT(n, digest) to all.
    pub(super) fn handle_own_checkpoint(&mut self, slot: Slot, digest: Digest, out: &mut Effects) {
        let high_mark = self.high_mark();
        self.checkpoints
            .note(self.config.host(), slot, digest, high_mark);
        self.sign_decided(&Statement::Checkpoint { slot, digest }, true, out);
        self.poll_stable(out);
    }

    /// Another host's CHECKPOINT certificate.
    pub(super) fn handle_checkpoint(
        &mut self,
        certificate: &Certificate,
        slot: Slot,
        digest: Digest,
        out: &mut Effects,
    ) {
        let host = certificate.signed.host;
        self.keep_proof(slot, certificate, out);
        if slot > self.stable {
            let high_mark = self.high_mark();
            self.checkpoints.note(host, slot, digest, high_mark);
            self.poll_stable(out);
        }
    }

    /// 5: `Q` hosts with equal `(n, digest)` make it stable; `L = n`. This host counts, too, when it has certified a later one, because
    /// it holds a state behind that; but nobody is named by less than `Q` equal ones.
    pub(super) fn poll_stable(&mut self, out: &mut Effects) {
        let own = &self.checkpoints.own;
        // Those that this twin has not reached come by executing, or by state transfer.
        let reached = self
            .agreed(self.stable)
            .filter_map(|agreed| Some((agreed, *own.get(&agreed.slot)?)))
            .find(|(agreed, own)| agreed.is_exact || agreed.digest == own.digest);
        let Some((agreed, own)) = reached else {
            return;
        };
        let Agreed { slot, digest, .. } = agreed;
        if own.digest != digest {
            out.push(Effect::Evidence(Event {
                host: self.config.host(),
                twin: Some(self.config.twin()),
                slot: Some(slot),
                kind: EventKind::Culprit {
                    agreed: digest,
                    said: own.digest,
                },
            }));
            self.checkpoints.own.remove(&slot);
            return;
        }
        self.keep_past_checkpoint();
        self.stable = slot;
        self.judge_checkpoint(slot, agreed.is_exact.then_some(digest), out);
        self.checkpoints.repeats = 0;
        self.checkpoints.note_stable(slot, digest, agreed.is_exact);
        self.checkpoints.stable = own;
        self.checkpoints.trim(slot);
        self.chain.stand_at(slot, own.history);
        self.checkpoints.waiting_since_us =
            (!self.checkpoints.own.is_empty()).then_some(self.now.mono_us);
        // One interval more is kept for those who lag a little.
        let keep = self.config.tuning.checkpoint_slots;
        self.trim_slots(Slot(slot.0.saturating_sub(keep)));
        out.push(Effect::Persist(Record::Stable { slot, digest }));
        // 5: the twins of a host that lags meet here, and take it along.
        if self.log.accepted().0 < slot && !self.log.is_primary() {
            self.jump(slot, out);
        }
    }

    /// Gives the slots up to this one up, but for what is retained for those who lag more ([`Self::poll_past`]).
    pub(super) const fn trim_slots(&mut self, last: Slot) {
        self.checkpoints.past_to = last;
    }

    /// Hands what was given up over to [`super::past`], a few slots at a time: all of an interval at once would hold one request
    /// in a hundred up.
    pub(super) fn poll_past(&mut self) {
        let bytes_max = self.config.tuning.retain_bytes;
        let interval = self.config.tuning.checkpoint_slots;
        let in_time = self.slots.len() as u64 <= PAST_INTERVALS_MAX * interval;
        let at_most = if in_time { PAST_SLOTS } else { usize::MAX };
        for _ in 0..at_most {
            let Some((slot, data)) = self.slots.pop_up_to(self.checkpoints.past_to) else {
                return;
            };
            self.past.push(slot, data, bytes_max);
        }
    }

    /// A CHECKPOINT certificate may be lost, or spoilt for this twin: it asks another twin of each host each
    /// time. The answer to a fetch carries the latest one, with all signatures that have come since.
    pub(super) fn checkpoint_timer(&mut self, out: &mut Effects) {
        let due = self
            .checkpoint_deadline()
            .is_some_and(|deadline| deadline <= self.now.mono_us);
        if !due {
            return;
        }
        self.checkpoints.waiting_since_us = Some(self.now.mono_us);
        self.checkpoints.repeats += 1;
        let wanted = self.first_not_held();
        let question = Arc::new(PeerMessage::FetchSlots {
            first: wanted,
            last: wanted,
        });
        self.ask_around(self.checkpoints.repeats, &question, out);
    }

    pub(super) fn checkpoint_deadline(&self) -> Option<u64> {
        let pause = self.pause_us(self.checkpoints.repeats);
        Some(self.checkpoints.waiting_since_us? + pause)
    }

    /// The CHECKPOINT certificates of this host from `L` on, for one who may lack any of them: whoever has executed a
    /// checkpoint that the others have made stable is let go on by the certificates of that one alone (5).
    pub(super) fn repeat_checkpoints(&self, to: ReplicaId, out: &mut Effects) {
        let stable =
            (self.stable > Slot(0)).then_some((self.stable, self.checkpoints.stable.digest));
        let certified = self.checkpoints.certified.get(&self.config.host());
        let above = certified.into_iter().flatten();
        for (slot, digest) in stable.into_iter().chain(above.map(|(s, d)| (*s, *d))) {
            let statement = Statement::Checkpoint { slot, digest };
            if let Some(certificate) = self.own_proof(slot, &statement) {
                let message = Arc::new(PeerMessage::Certificate(certificate));
                out.push(Effect::Send { to, message });
            }
        }
    }

    /// The highest checkpoint that `Q` hosts agree on, when this twin has not reached it.
    pub(super) fn behind(&self) -> Option<Slot> {
        if self.checkpoints.highest() <= self.execution.executed() {
            return None;
        }
        let agreed = self.agreed(self.stable).next()?;
        (agreed.slot > self.execution.executed()).then_some(agreed.slot)
    }

    /// What this host's log has certified last is its word again.
    pub(super) fn recall_checkpoint(&mut self) {
        if let Some((slot, digest)) = self.log.certified_checkpoint()
            && slot > self.stable
        {
            let high_mark = self.high_mark();
            self.checkpoints
                .note(self.config.host(), slot, digest, high_mark);
        }
    }

    /// 3: what the log has certified while this twin was away is a decision, and lacks its signature: with m = q there is no
    /// certificate without it, and the other hosts may wait for this one (5).
    pub(super) fn sign_recalled_checkpoint(&mut self, out: &mut Effects) {
        if let Some((slot, digest)) = self.log.certified_checkpoint() {
            self.sign_decided(&Statement::Checkpoint { slot, digest }, true, out);
        }
    }

    /// Whether `Q` hosts agree on this checkpoint.
    pub(super) fn is_agreed(&self, slot: Slot, digest: Digest) -> bool {
        self.agreement(slot, digest).is_some()
    }

    /// Whether any host has certified it with this digest.
    pub(super) fn is_said(&self, slot: Slot, digest: Digest) -> bool {
        let mut of_hosts = self.checkpoints.certified.values();
        of_hosts.any(|of_host| of_host.get(&slot) == Some(&digest))
    }

    /// Whether `Q` hosts are known to have certified it with this digest.
    pub(super) fn is_certified(&self, slot: Slot, digest: Digest) -> bool {
        let agreement = self.agreement(slot, digest);
        agreement.is_some_and(|agreed| agreed.is_exact)
    }

    fn agreement(&self, slot: Slot, digest: Digest) -> Option<Agreed> {
        let mut agreed = self.agreed(Slot(slot.0.saturating_sub(1)));
        agreed.find(|found| (found.slot, found.digest) == (slot, digest))
    }

    fn agreed(&self, floor: Slot) -> impl Iterator<Item = Agreed> {
        let quorum = self.config.shape.host_quorum();
        let me = self.config.host();
        self.checkpoints.agreed(floor, quorum, me)
    }
}

/// This twin's word (or the first, when it has given none) and the first that differs from it.
pub fn two_sides(said: &[(TwinId, Digest)], me: TwinId) -> Option<(Digest, Digest)> {
    let ours = said
        .iter()
        .find(|(twin, _)| *twin == me)
        .or_else(|| said.first())?
        .1;
    let theirs = said.iter().find(|(_, digest)| *digest != ours)?.1;
    Some((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checkpoints that two hosts have reached, of what these have certified: host, slot, and what the digest is made of.
    fn agreed(certified: &[(u8, u64, u8)]) -> Vec<(u64, u8, bool)> {
        let mut checkpoints = Checkpoints::default();
        for (host, slot, digest) in certified {
            let digest = Digest([*digest; 32]);
            checkpoints.note(HostId(*host), Slot(*slot), digest, Slot(100));
        }
        let agreed = checkpoints.agreed(Slot(0), 2, HostId(1));
        let parts = agreed.map(|a| (a.slot.0, a.digest.0[0], a.is_exact));
        parts.collect()
    }

    #[test]
    fn its_own_host_has_reached_what_is_before_its_last_word() {
        assert_eq!(agreed(&[(0, 4, 1), (1, 4, 1)]), [(4, 1, true)]);
        assert_eq!(agreed(&[(0, 4, 1), (1, 8, 2)]), [(4, 1, false)]);
        assert_eq!(agreed(&[(0, 4, 1)]), []);
        // What it says of that one itself counts, nobody reaches what nobody has certified, and others say it all themselves.
        assert_eq!(agreed(&[(0, 4, 1), (1, 4, 3), (1, 8, 2)]), []);
        assert_eq!(agreed(&[(0, 4, 1), (2, 8, 2)]), []);
        let all = [(0, 4, 1), (1, 8, 2), (2, 8, 2)];
        assert_eq!(agreed(&all), [(8, 2, true), (4, 1, false)]);
    }
    /// The twins that are named when `L` moves to a checkpoint that this twin and the next one say different things of, and then when
    /// they say it once more; h1 says the same as this twin, and its own host said so of this checkpoint, or only of the next one.
    fn named(own_says: u64) -> [usize; 2] {
        let mut replica = crate::twinbft::testing::replica(crate::Tuning {
            checkpoint_slots: 4,
            ..crate::Tuning::default()
        });
        let (slot, high_mark) = (Slot(4), Slot(8));
        let (right, wrong) = (Digest([1; 32]), Digest([2; 32]));
        let mut out = Effects::default();
        let said = [(TwinId(0), right), (TwinId(1), wrong)];
        replica.handle_checkpoint_divergence(slot, &said, &mut out);
        let own = Own {
            digest: right,
            ..Own::default()
        };
        let checkpoints = &mut replica.checkpoints;
        checkpoints.own.insert(slot, own);
        checkpoints.note(HostId(1), slot, right, high_mark);
        checkpoints.note(HostId(0), Slot(own_says), right, high_mark);
        let count = |out: &Effects| {
            let is_named = |effect: &&Effect| {
                matches!(effect, Effect::Evidence(Event { kind: EventKind::Culprit { .. }, twin, .. })
                    if *twin == Some(TwinId(1)))
            };
            out.0.iter().filter(is_named).count()
        };
        replica.poll_stable(&mut out);
        assert_eq!(replica.stable, slot);
        let first = count(&out);
        replica.handle_checkpoint_divergence(slot, &said, &mut out);
        [first, count(&out)]
    }

    #[test]
    fn nobody_is_named_by_less_than_q_equal_words() {
        assert_eq!(named(4), [1, 2]);
        assert_eq!(named(8), [0, 0]);
    }
}
