//! This host may have forgotten promises (protocol.md 8, last row): it stays mute, takes a new incarnation, asks the others,
//! and takes part again once it holds the log of the primary of the highest view that it was told of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, Entry, HostId, Incarnation, ReplicaId, Signed, Slot, Statement, View};

use super::Replica;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects};
use crate::record::Record;

/// Questions are repeated after this long, then after twice as long, and so on …
const ASK_US: u64 = 20_000;
/// … up to this.
const ASK_US_MAX: u64 = 500_000;
/// Answers of one host that are kept: a sibling may hold the log of an earlier one.
const ANSWERS_MAX: usize = 8;
/// Twins whose HELLOs do not open the log for so long would rather forget together, if enough others remember.
const HELLO_PATIENCE_US: u64 = 3_000_000;
/// How far a sibling's word for the own incarnation may lie above what this twin was told: it may have heard other hosts.
const AHEAD_MAX: u64 = 64;
/// A log that cannot be had for so long is given up for a newer one.
const HOLD_PATIENCE_US: u64 = 2_000_000;

/// The end of a log that a host has accepted in a view.
type End = (View, Slot, Digest);

/// What a twin of a host that has forgotten has posted and heard.
#[derive(Clone, Debug, Default)]
pub struct Amnesia {
    /// This twin's part of the nonce.
    nonce: Digest,
    /// Whether AMNESIA was posted in this life.
    said: bool,
    /// Whether what this twin remembered of an earlier epoch is void by now.
    is_void: bool,
    /// When this twin, which waits for HELLOs, asks next whether others remember.
    waiting: Option<u64>,
    /// Who has answered that.
    remembering: BTreeSet<HostId>,
    /// What other hosts know of this host's incarnation.
    reports: BTreeMap<HostId, Incarnation>,
    /// The incarnation for which this twin has posted PEER in this life.
    wanted: Incarnation,
    /// Answers to the question under the present incarnation: the newest last.
    answers: BTreeMap<HostId, Vec<End>>,
    /// The highest incarnation of each host that the answers name.
    learned: BTreeMap<HostId, Incarnation>,
    /// What of it this twin has posted.
    posted: BTreeMap<HostId, Incarnation>,
    /// The log that this twin wants to hold, and since when.
    target: Option<(End, u64)>,
    /// The last NV-ACCEPT of this twin in this life, and until when it waits for its siblings.
    accepted: Option<End>,
    waits_until_us: u64,
    ask_at_us: u64,
    every_us: u64,
}

impl Amnesia {
    pub fn new(nonce: Digest) -> Self {
        Self {
            nonce,
            ..Self::default()
        }
    }
}

impl Replica {
    /// Whether this host has forgotten, or has begun to say so.
    pub(super) fn is_forgetful(&self) -> bool {
        !(self.recovery.remembers() || self.recovery.follows())
            || self.amnesia.said
            || self.log.forgotten().is_some()
            || self.log.amnesias().next().is_some()
    }

    /// 8: the host has forgotten: whatever else this twin remembers of its promises is void.
    pub(super) fn void_promises(&mut self, out: &mut Effects) {
        // Who has joined reads it again: the host has taken part since.
        if self.recovery.has_joined() || self.amnesia.is_void {
            return;
        }
        self.amnesia.is_void = true;
        self.recovery.forget_promises();
        let epoch = self.config.epoch;
        out.push(Effect::Persist(Record::Forgotten { epoch }));
    }

    /// The host has forgotten and taken part again before this twin has read of it: its own memory is of an earlier incarnation.
    pub(super) fn void_an_earlier_incarnation(&mut self, out: &mut Effects) {
        let host = self.config.host();
        let promises = self.recovery.promises().iter();
        let known = promises.filter_map(|promise| match promise {
            Entry::Peer {
                host: of,
                incarnation,
                ..
            } if *of == host => Some(*incarnation),
            _ => None,
        });
        if known.max().unwrap_or_default() < self.log.incarnation(host) {
            self.void_promises(out);
        }
    }

    /// The host has a new incarnation: what was answered before was to another question.
    pub(super) fn handle_renewed(&mut self, incarnation: Incarnation, nonce: Digest) {
        self.book
            .decide(&Statement::Recovery { incarnation, nonce });
        self.amnesia.answers.clear();
        self.amnesia.target = None;
        self.amnesia.accepted = None;
        self.amnesia.ask_at_us = self.now.mono_us;
        self.amnesia.every_us = 0;
    }

    /// HELLOs of all twins are wanted, and `q` equal ones: one twin that is gone, or remembers a slot less, would keep its host
    /// out. While `Q` other hosts take part they can tell it where they are; in a whole cluster that starts again none does,
    /// and what is remembered is not thrown away.
    pub(super) fn poll_doubt(&mut self, out: &mut Effects) {
        let now_us = self.now.mono_us;
        let first = now_us + HELLO_PATIENCE_US;
        let ask_at_us = *self.amnesia.waiting.get_or_insert(first);
        if self.amnesia.remembering.len() >= self.config.shape.host_quorum() {
            self.poll_amnesia(out);
            return;
        }
        if ask_at_us > now_us {
            return;
        }
        self.amnesia.waiting = Some(now_us + ASK_US_MAX);
        let nonce = self.amnesia.nonce;
        for to in self.config.shape.receivers(self.config.host()) {
            let message = Arc::new(PeerMessage::FetchReport { nonce });
            out.push(Effect::Send { to, message });
        }
    }

    /// While the log is that of a host that has not opened it, and cannot by HELLO.
    pub(super) fn poll_amnesia(&mut self, out: &mut Effects) {
        let Some(nonce) = self.log.forgotten() else {
            let me = self.config.twin();
            let said = self.amnesia.said || self.log.amnesias().any(|(twin, _)| twin == me);
            if !said {
                self.amnesia.said = true;
                let nonce = self.amnesia.nonce;
                out.post(Entry::Amnesia { nonce });
            }
            return;
        };
        self.void_promises(out);
        self.poll_incarnation(nonce, out);
        self.poll_question(nonce, out);
        self.poll_answers(nonce, out);
    }

    /// 8: 1 + the highest incarnation that `Q` hosts report.
    fn poll_incarnation(&mut self, nonce: Digest, out: &mut Effects) {
        if self.amnesia.reports.len() < self.config.shape.host_quorum() {
            return;
        }
        let me = self.config.twin();
        let reported = self.amnesia.reports.values().max().copied();
        let reported = reported.unwrap_or_default();
        let fixed = self.log.incarnation(self.config.host());
        // One that was fixed and that another host knows already is as good: it is about this host's PEERs now.
        let mut wanted = if fixed >= reported && fixed > Incarnation(0) {
            fixed
        } else {
            Incarnation(reported.0.saturating_add(1))
        };
        for (twin, of_sibling) in self.log.own_incarnations() {
            let near = of_sibling.0 <= reported.0.saturating_add(AHEAD_MAX);
            if twin != me && near {
                wanted = wanted.max(of_sibling);
            }
        }
        let own = self.log.own_incarnations().find(|(twin, _)| *twin == me);
        let posted = own.map_or(Incarnation(0), |(_, i)| i);
        if wanted <= fixed || wanted <= posted.max(self.amnesia.wanted) {
            return;
        }
        self.amnesia.wanted = wanted;
        self.promise(
            Entry::Peer {
                host: self.config.host(),
                incarnation: wanted,
                nonce,
            },
            out,
        );
    }

    fn promise(&mut self, entry: Entry, out: &mut Effects) {
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.post(entry);
    }

    /// RECOVERY is signed as soon as it is decided, and the questions are sent until they are answered.
    fn poll_question(&mut self, nonce: Digest, out: &mut Effects) {
        let incarnation = self.log.incarnation(self.config.host());
        let question = Statement::Recovery { incarnation, nonce };
        let is_decided = incarnation > Incarnation(0);
        if is_decided && self.book.lacks(&question, self.config.twin()) {
            let _known = self.book.decide(&question);
            let signed = self.signed(question.clone());
            let authenticator = self.config.keys.sign(self.config.shape, &signed);
            // The certificate is handed out below.
            let _complete = self.book.sign(&question, authenticator.clone());
            out.post(Entry::Sign {
                statement: question.clone(),
                authenticator,
            });
        }
        if self.amnesia.ask_at_us > self.now.mono_us {
            return;
        }
        let every_us = (2 * self.amnesia.every_us).clamp(ASK_US, ASK_US_MAX);
        self.amnesia.every_us = every_us;
        self.amnesia.ask_at_us = self.now.mono_us + every_us;
        let certificate = self.book.certificate(&question).filter(|_| is_decided);
        for to in self.config.shape.receivers(self.config.host()) {
            let message = Arc::new(PeerMessage::FetchReport { nonce });
            out.push(Effect::Send { to, message });
            if let Some(certificate) = &certificate {
                let message = Arc::new(PeerMessage::Certificate(certificate.clone()));
                out.push(Effect::Send { to, message });
            }
        }
    }

    /// 8: after `Q` answers, the primary's of the highest view among them, a twin that holds that primary's log posts NV-ACCEPT.
    fn poll_answers(&mut self, nonce: Digest, out: &mut Effects) {
        let Some(offered) = self.offered() else {
            return;
        };
        let me = self.config.twin();
        // A sibling's choice first: `q` must be equal.
        let of_siblings: Vec<End> = self
            .log
            .recovery_accepts()
            .filter(|(twin, ..)| *twin != me)
            .map(|(_, view, slot, history)| (view, slot, history))
            .filter(|end| offered.contains(end))
            .collect();
        let mut siblings = of_siblings.iter();
        let held = siblings
            .find(|end| self.owns(end.1, end.2) || self.is_joined((end.1, end.2)))
            .copied();
        let further = of_siblings.into_iter().max_by_key(|end| end.1);
        let further = further.filter(|end| self.amnesia.accepted.is_none_or(|own| own.1 < end.1));
        // Who has chosen waits a while for its siblings, or goes as far as they have. A sibling's answer may have been lost here.
        let end = match (held, further, self.amnesia.accepted) {
            (Some(end), ..) => end,
            (None, None, Some(own))
                if offered.contains(&own) && self.amnesia.waits_until_us > self.now.mono_us =>
            {
                own
            }
            (None, further, _) => {
                let newest = *offered.last().expect("one at least");
                self.next_target(further.unwrap_or(newest))
            }
        };
        if !self.hold(end.1, end.2, out) {
            return;
        }
        self.amnesia.target = None;
        let is_news = self.tell_learned(nonce, out);
        if is_news || self.amnesia.accepted != Some(end) {
            self.amnesia.accepted = Some(end);
            self.amnesia.waits_until_us = self.now.mono_us + ASK_US_MAX;
            let (view, slot, history) = end;
            self.promise(
                Entry::NvAccept {
                    view,
                    slot,
                    history,
                },
                out,
            );
        }
    }

    /// The log that this twin is fetching, until it can no more be had: then this one.
    fn next_target(&mut self, newest: End) -> End {
        let now_us = self.now.mono_us;
        let kept = self.amnesia.target.filter(|(end, since_us)| {
            // A fetched checkpoint has gone beyond it, or nobody has it any more.
            end.0 == newest.0 && end.1 >= self.stable && since_us + HOLD_PATIENCE_US > now_us
        });
        if let Some((end, _)) = kept {
            return end;
        }
        if self.amnesia.target.is_some_and(|(end, _)| end != newest) {
            self.chain.forget();
        }
        self.amnesia.target = Some((newest, now_us));
        newest
    }

    /// The ends of the log of the primary of the highest view that `Q` hosts name, oldest first.
    fn offered(&self) -> Option<Vec<End>> {
        let shape = self.config.shape;
        if self.amnesia.answers.len() < shape.host_quorum() {
            return None;
        }
        let ends = self.amnesia.answers.values().flatten();
        let view = ends.map(|(view, ..)| *view).max()?;
        let of_primary = self.amnesia.answers.get(&shape.primary(view))?;
        let ends = of_primary.iter().filter(|end| end.0 == view).copied();
        let ends: Vec<End> = ends.collect();
        (!ends.is_empty()).then_some(ends)
    }

    /// What the answers say of the other hosts' incarnations, for the host's own later VIEW-CHANGEs. Answers whether it is news.
    fn tell_learned(&mut self, nonce: Digest, out: &mut Effects) -> bool {
        let news: Vec<(HostId, Incarnation)> = self
            .amnesia
            .learned
            .iter()
            .filter(|(host, known)| self.amnesia.posted.get(host).is_none_or(|p| p < known))
            .map(|(host, known)| (*host, *known))
            .collect();
        for (host, incarnation) in &news {
            self.amnesia.posted.insert(*host, *incarnation);
            self.promise(
                Entry::Peer {
                    host: *host,
                    incarnation: *incarnation,
                    nonce,
                },
                out,
            );
        }
        !news.is_empty()
    }

    /// Another host says what it knows of this host's incarnation.
    pub(super) fn handle_report(
        &mut self,
        from: HostId,
        of: HostId,
        incarnation: Incarnation,
        nonce: Digest,
    ) {
        let is_mine = of == self.config.host() && self.log.is_opening();
        if is_mine && nonce == self.amnesia.nonce {
            self.amnesia.remembering.insert(from);
        }
        if is_mine && self.log.forgotten() == Some(nonce) {
            let known = self.amnesia.reports.entry(from).or_default();
            *known = incarnation.max(*known);
        }
    }

    /// Another host answers.
    pub(super) fn handle_recovery_answer(
        &mut self,
        from: ReplicaId,
        signed: &Signed,
    ) -> Result<(), PeerFault> {
        let Statement::RecoveryAnswer {
            to,
            incarnation,
            nonce,
            view,
            accepted,
            history,
            incarnations,
        } = &signed.statement
        else {
            return Ok(());
        };
        if incarnations.len() != usize::from(self.config.shape.hosts()) {
            return Err(super::unexpected(
                from,
                "RECOVERY answer of a cluster of another size",
            ));
        }
        let own = self.log.incarnation(self.config.host());
        let is_asked = *to == self.config.host()
            && self.log.forgotten() == Some(*nonce)
            && *incarnation == own;
        if !is_asked {
            return Ok(());
        }
        for host in self.config.shape.all_hosts() {
            let mut known = incarnations[usize::from(host.0)];
            if host == signed.host {
                known = known.max(signed.incarnation);
            }
            if host != self.config.host() && known > Incarnation(0) {
                let learned = self.amnesia.learned.entry(host).or_default();
                *learned = known.max(*learned);
            }
        }
        let end = (*view, *accepted, *history);
        let answers = self.amnesia.answers.entry(signed.host).or_default();
        if !answers.contains(&end) {
            answers.push(end);
            answers.sort_unstable_by_key(|(view, slot, _)| (*view, *slot));
            if answers.len() > ANSWERS_MAX {
                answers.remove(0);
            }
        }
        Ok(())
    }

    pub(super) fn amnesia_deadline(&self) -> Option<u64> {
        if !self.log.is_opening() {
            return None;
        }
        if self.log.forgotten().is_some() {
            return Some(self.amnesia.ask_at_us);
        }
        let waiting = self.amnesia.waiting?;
        (!self.is_forgetful()).then(|| match self.claim_deadline() {
            Some(at_us) => waiting.min(at_us),
            None => waiting,
        })
    }
}
