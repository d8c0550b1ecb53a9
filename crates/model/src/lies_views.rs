//! What a Byzantine twin can say about views (protocol.md 6): that they are left and where they begin, each with the logs
//! that matter. It knows the logs of all hosts, which no twin does: so it is no weaker than one that guesses well.

use std::sync::Arc;

use twinbft_core::hostlog::HostLog;
use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Digest, Entry, Epoch, HostId, Incarnation, Position, ReplicaId, Slot, Statement, View,
};

use crate::lies::{Lie, NOWHERE};
use crate::model::Model;
use crate::state::State;

/// A log, by its end.
type LogEnd = (Slot, Digest);

impl Model {
    /// All that it could say of views now, in a fixed order.
    pub(crate) fn lies_about_views(&self, state: &State, index: usize) -> Vec<Lie> {
        let log = state.nodes[index].core.host_log();
        let me = self.id(index);
        let next = log.current_view().next();
        let entering = log.entering().unwrap_or(next);
        let ends = self.log_ends(state, log);
        let mut entries = vec![
            Entry::Suspect { view: View(0) },
            Entry::Suspect { view: next },
            leave(entering),
            leave(next),
            // The next view in which this host's other twin leads, or one that nobody has heard of.
            leave(View(entering.0 + u64::from(self.case.hosts))),
            Entry::Beat {
                view: log.current_view(),
                count: log.last_beat() + 1,
            },
            Entry::Jump {
                slot: log.accepted().0.next(),
                history: NOWHERE,
            },
        ];
        if self.shape.primary(entering) == me.host {
            self.beginnings(state, log, me, entering, &ends, &mut entries);
        } else {
            entries.extend(ends.iter().map(|&(slot, history)| Entry::NvAccept {
                view: entering,
                slot,
                history,
            }));
        }
        for &(slot, history) in &ends {
            entries.push(Entry::Accept {
                view: log.current_view(),
                slot,
                history,
            });
        }
        if log.live_view().is_some_and(|view| view > View(0)) {
            self.proposals(log, me, &mut entries);
        }
        let statements = self.false_views(me, log, entering, &ends);
        entries.extend(statements.iter().map(|statement| Entry::Sign {
            authenticator: self.rings[index].sign(self.shape, &self.signed_by(me, statement)),
            statement: statement.clone(),
        }));
        entries.dedup();
        let posts = entries.into_iter().map(Lie::Post);
        let sent = statements.into_iter().map(|statement| {
            let certificate = self.self_certified(self.signed_by(me, &statement), index);
            Lie::SendToAll(Arc::new(PeerMessage::Certificate(certificate)))
        });
        posts.chain(sent).collect()
    }

    /// Nothing, what this host has accepted, what each other host said that it had, and a slot more that nobody has.
    fn log_ends(&self, state: &State, log: &HostLog) -> Vec<LogEnd> {
        let mut ends = vec![(Slot(0), Digest::ZERO), log.accepted()];
        for postbox in &state.hosts {
            let change = postbox.observer.log().view_change();
            if let Some(Statement::ViewChange {
                accepted, history, ..
            }) = change
            {
                ends.push((accepted, history));
            }
        }
        let longest = ends.iter().map(|end| end.0).max().unwrap_or_default();
        ends.push((longest.next(), NOWHERE));
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// As a twin of the next primary host: each log with each set of VIEW-CHANGEs, and votes.
    fn beginnings(
        &self,
        state: &State,
        log: &HostLog,
        me: ReplicaId,
        view: View,
        ends: &[LogEnd],
        entries: &mut Vec<Entry>,
    ) {
        if self.shape.leader(view) == me {
            for hosts in self.sets(state, view) {
                entries.extend(ends.iter().map(|&(slot, history)| Entry::NvPropose {
                    view,
                    hosts: hosts.clone(),
                    slot,
                    history,
                }));
            }
            return;
        }
        let open = log.nv_proposals().map(|open| open.position);
        // And one that is not there yet.
        let open = open.chain([Position(log.end().0 + 1)]);
        entries.extend(open.map(|proposal| Entry::NvEndorse { view, proposal }));
    }

    /// Every set of VIEW-CHANGEs of two hosts, those of hosts that have not said theirs made up.
    fn sets(&self, state: &State, view: View) -> Vec<Vec<(HostId, Digest)>> {
        let changes: Vec<(HostId, Digest)> = self
            .shape
            .all_hosts()
            .zip(&state.hosts)
            .map(|(host, postbox)| {
                let change = postbox.observer.log().view_change();
                let of_view = change.filter(
                    |change| matches!(change, Statement::ViewChange { view: of, .. } if *of == view),
                );
                let signed =
                    of_view.map(|change| self.signed_by(ReplicaId::new(host.0, 0), &change));
                (host, signed.map_or(NOWHERE, |signed| signed.digest()))
            })
            .collect();
        let pairs = (0..changes.len())
            .flat_map(|first| (first + 1..changes.len()).map(move |second| (first, second)));
        let sets = pairs.map(|(first, second)| vec![changes[first], changes[second]]);
        sets.collect()
    }

    /// Statements about views that its host has not decided, and the log that it would like to begin with.
    fn false_views(
        &self,
        me: ReplicaId,
        log: &HostLog,
        entering: View,
        ends: &[LogEnd],
    ) -> Vec<Statement> {
        let mut statements = vec![Statement::Wish {
            view: entering,
            epoch: Epoch(1),
            position: log.end(),
        }];
        for &(slot, history) in ends {
            statements.push(Statement::ViewChange {
                view: entering,
                last_normal: log.current_view(),
                accepted: slot,
                history,
                incarnations: vec![Incarnation(0); usize::from(self.case.hosts)],
            });
            if self.shape.primary(entering) == me.host {
                statements.push(Statement::NewView {
                    view: entering,
                    slot,
                    history,
                    hosts: vec![(HostId(0), NOWHERE), (HostId(1), NOWHERE)],
                });
            } else {
                statements.push(Statement::Ack {
                    view: entering,
                    slot,
                    history,
                    beat: None,
                });
            }
        }
        statements
    }
}

const fn leave(view: View) -> Entry {
    Entry::Leave {
        view,
        certificates: Vec::new(),
    }
}
