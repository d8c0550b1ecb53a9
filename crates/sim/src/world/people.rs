//! Clients: honest sessions, sessions that spoil their MACs, and rogues.

use rand::RngExt;
use twinbft_client::session::Message;
use twinbft_core::Input;
use twinbft_types::{Mac, Position, ReplicaId, View};

use super::{ClientMessage, Happening, World};
use crate::scenario::ClientKind;

impl World {
    pub(super) fn arrive_at_client(
        &mut self,
        index: usize,
        from: ReplicaId,
        hint: View,
        message: ClientMessage,
    ) {
        let now_us = self.now_us;
        let client = &mut self.clients[index];
        if client.hints.handle_hint(from, hint) {
            client.session.set_view(client.hints.view());
        }
        match message {
            ClientMessage::Reply(reply) => client.session.handle_reply(from, &reply),
            ClientMessage::Answer(answer, result, mac) => {
                client.session.handle_answer(from, &answer, &result, &mac);
            }
            ClientMessage::Refusal(seq, reason) => {
                client.session.handle_refusal(now_us, from, seq, reason);
            }
        }
        client.drain_events(now_us, &mut self.history);
        self.serve_client(index);
    }

    pub(super) fn client_timer(&mut self, index: usize, at_us: u64) {
        let now_us = self.now_us;
        let client = &mut self.clients[index];
        if client.timer_us == Some(at_us) {
            client.timer_us = None;
            client.session.handle_timeout(now_us);
            client.drain_events(now_us, &mut self.history);
            self.serve_client(index);
        }
    }

    /// Lets a client begin operations, and sends what its session has to say.
    pub(super) fn serve_client(&mut self, index: usize) {
        let now_us = self.now_us;
        let kind = self.clients[index].plan.kind;
        self.clients[index].begin(now_us, &mut self.rng, &mut self.history);
        while let Some(transmit) = self.clients[index].session.poll_transmit() {
            let to = transmit.to;
            let input = match transmit.message {
                Message::Request {
                    mut signed,
                    retransmission,
                    leader_alone,
                } => {
                    self.spoil(kind, &mut signed.macs);
                    Input::Request {
                        request: signed,
                        retransmission,
                        leader_alone,
                    }
                }
                Message::Query { query, mac } => Input::Query {
                    query,
                    mac,
                    // Set when it arrives.
                    log_end: Position(0),
                },
            };
            self.transmit_input(to, &input);
        }
        let client = &mut self.clients[index];
        if let Some(timeout) = client.session.poll_timeout() {
            let at_us = timeout.max(now_us + 1);
            if client.timer_us != Some(at_us) {
                client.timer_us = Some(at_us);
                let happening = Happening::ClientTimer {
                    client: index,
                    at_us,
                };
                self.agenda.schedule(at_us, happening);
            }
        }
    }

    fn spoil(&mut self, kind: ClientKind, macs: &mut [Mac]) {
        match kind {
            ClientKind::HalfAuthentic => macs.iter_mut().skip(1).for_each(|m| m.0[0] ^= 1),
            ClientKind::SpoiltMacs => {
                for mac in macs {
                    mac.0[0] ^= u8::from(self.rng.random_bool(0.5));
                }
            }
            ClientKind::Honest
            | ClientKind::TwoFaced
            | ClientKind::OutOfWindow
            | ClientKind::Backwards
            | ClientKind::ManySessions
            | ClientKind::Malformed => {}
        }
    }

    pub(super) fn serve_rogue(&mut self, index: usize) {
        let shots = self.rogues[index].shoot(&mut self.rng);
        for (to, request, retransmission) in shots {
            let input = Input::Request {
                request,
                retransmission,
                leader_alone: false,
            };
            self.transmit_input(to, &input);
        }
        if self.rogues[index].goes_on() {
            let after = self.rng.random_range(1..2_000);
            self.schedule(after, Happening::Rogue { rogue: index });
        }
    }
}
