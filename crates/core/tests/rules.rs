//! Checks of what comes in that the simulator's seeds do not miss when they are taken out (docs/testing.md, Teeth): each with the
//! rule in, and, where this is built with the feature `mutants`, without it.

mod common;

use common::Host;
use twinbft_core::Tuning;
use twinbft_core::mutants::Rule;
use twinbft_types::wire::{CheckpointOffer, CheckpointParts, ForwardMessage, PeerMessage};
use twinbft_types::{
    Attempt, Authenticator, Digest, Entry, Mac, ProcessId, ReplicaId, Slot, Statement, TwinId, View,
};

/// Holds with the rule in, and only then.
fn needs(rule: Rule, holds: impl Fn() -> bool) {
    assert!(holds(), "{rule:?} is in");
    #[cfg(feature = "mutants")]
    {
        twinbft_core::mutants::take_out(Some(rule));
        let still = holds();
        twinbft_core::mutants::take_out(None);
        assert!(!still, "{rule:?} is out, and nobody missed it");
    }
}

/// 4.3: a bad leader proposes what is outside its client's window, and gives its body: no follower endorses it.
#[test]
fn what_is_outside_its_clients_window_is_not_endorsed() {
    needs(Rule::ClientWindow, || {
        let tuning = Tuning::default();
        let mut host = Host::new(0, 3, 2, &tuning);
        host.byzantine = vec![0];
        let early = host.keys.request(0, tuning.session_window + 1, &[0, 1]);
        let proposal = Entry::Propose {
            view: View(0),
            slot: Slot(1),
            attempt: Attempt(0),
            previous: Digest::ZERO,
            timestamp_us: common::BEGINNING_US + 1,
            requests: vec![early.request.reference()],
        };
        host.post_as(0, &proposal);
        host.post_as(0, &Entry::Body { request: early });
        host.pass(50_000);
        host.posted(1, "ENDORSE") == 0
    });
}

/// 6: a FORWARD stands for the MAC of the client whose request it names, and of no other one.
#[test]
fn a_forward_that_brings_another_request_is_refused() {
    needs(Rule::ForwardRequest, || {
        let mut host = Host::new(0, 3, 2, &Tuning::default());
        let named = host.keys.request(0, 1, &[0, 1]).request;
        let statement = Statement::Forward {
            client: named.client,
            seq: named.seq,
            digest: named.digest(),
        };
        let mut request = named;
        request.operation = b"forged".as_slice().into();
        let message = ForwardMessage {
            certificate: host.keys.certificate(1, &[0, 1], statement),
            request,
        };
        let from = ReplicaId::new(1, 0);
        host.peer(0, from, PeerMessage::Forward(message));
        !host.done(0).faults.is_empty()
    });
}

/// 3: a twin signs under its own name: a signature that it posts in its sibling's name comes into no certificate.
#[test]
fn a_signature_in_a_siblings_name_is_in_no_certificate() {
    needs(Rule::SignSender, || {
        let mut host = Host::new(0, 3, 3, &Tuning::default());
        host.byzantine = vec![1];
        host.holding = vec![2];
        let request = host.keys.request(0, 1, &[0, 1, 2]);
        host.request(0, &request);
        host.request(2, &request);
        host.settle();
        let candidate = host.twins[0].core.host_log().candidate(Slot(1));
        let (attempt, history) = candidate
            .map(|c| (c.attempt, c.history))
            .expect("the leader has proposed");
        let (view, slot) = (View(0), Slot(1));
        let endorse = Entry::Endorse {
            view,
            slot,
            attempt,
            history,
            signature: None,
        };
        host.post_as(1, &endorse);
        let receivers = host.shape.receivers(twinbft_types::HostId(0)).count();
        let forged = Entry::Sign {
            statement: Statement::Order {
                view,
                slot,
                history,
            },
            authenticator: Authenticator {
                twin: TwinId(2),
                macs: vec![Mac([7; 16]); receivers],
            },
        };
        host.post_as(1, &forged);
        host.settle();
        host.release();
        host.pass(1_000);
        let (shape, keys) = (host.shape, &host.keys);
        let orders: Vec<_> = (host.twins[0].done.sends.iter())
            .filter_map(|(_, message)| match &**message {
                PeerMessage::Order(order) => Some(order.certificate.clone()),
                _ => None,
            })
            .collect();
        !orders.is_empty()
            && orders.iter().all(|certificate| {
                certificate.authenticators.iter().all(|authenticator| {
                    let id = ReplicaId::new(0, authenticator.twin.0);
                    let ring = keys.ring(ProcessId::Twin(id));
                    ring.sign(shape, &certificate.signed) == *authenticator
                })
            })
    });
}

/// 5: a state is fetched when `Q` hosts have certified it, and not because somebody offers it.
#[test]
fn a_checkpoint_that_nobody_has_certified_is_not_fetched() {
    needs(Rule::CheckpointAgreed, || {
        let tuning = Tuning::default();
        let mut host = Host::new(1, 3, 2, &tuning);
        let slot = tuning.checkpoint_slots;
        let order = host.keys.order(slot + 1, Digest::ZERO, Vec::new());
        let from = ReplicaId::new(0, 0);
        host.peer(0, from, PeerMessage::Order(order));
        let offer = CheckpointOffer {
            slot: Slot(slot),
            parts: CheckpointParts {
                service: Digest([1; 32]),
                sessions: Digest([2; 32]),
                config: Digest::ZERO,
                history: Digest([3; 32]),
                timestamp_us: 1,
            },
            certificates: Vec::new(),
        };
        host.peer(0, from, PeerMessage::Checkpoint(Box::new(offer)));
        host.pass(2 * tuning.fetch_after_us);
        // By its batches, here; where these are not there, its state follows.
        let mut sends = host.done(0).sends.iter();
        !sends.any(|(_, message)| matches!(**message, PeerMessage::FetchChain { .. }))
    });
}
