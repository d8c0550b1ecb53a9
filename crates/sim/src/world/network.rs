//! The network until it heals: loss, delay, reordering, duplication, cuts one way or both, bursts.

use std::sync::Arc;

use rand::RngExt;
use twinbft_core::Input;
use twinbft_types::wire::PeerMessage;
use twinbft_types::{ClientId, ReplicaId, View};

use super::{ClientMessage, Happening, World};
use crate::scenario::{CLIENTS, Fault, HostMask};

const fn host_bit(replica: ReplicaId) -> HostMask {
    1 << replica.host.0
}

impl World {
    fn is_faulty_now(&self) -> bool {
        self.now_us < self.scenario.heal_at_us
    }

    /// How long a message takes.
    fn delay_us(&mut self, to: HostMask) -> u64 {
        if !self.is_faulty_now() {
            return self.rng.random_range(1..=100);
        }
        let most = self.scenario.delay_us_max;
        let delay = self.rng.random_range(1..=most);
        let held_until = self
            .scenario
            .faults
            .iter()
            .filter_map(|fault| match fault {
                Fault::Burst { span, to: hosts }
                    if span.contains(self.now_us) && hosts & to != 0 =>
                {
                    Some(span.to_us)
                }
                _ => None,
            })
            .max();
        match held_until {
            Some(until_us) => until_us - self.now_us + delay.min(50),
            None => delay,
        }
    }

    /// Hosts that are silent for good by now.
    pub(super) fn silent_hosts(&self) -> HostMask {
        let now_us = self.now_us;
        let silent = self.scenario.faults.iter().filter_map(|fault| match fault {
            Fault::Silence { from_us, host } if *from_us <= now_us => Some(1 << host),
            _ => None,
        });
        silent.fold(0, |all, host: HostMask| all | host)
    }

    fn is_lost(&mut self, from: HostMask, to: HostMask) -> bool {
        if self.silent_hosts() & (from | to) != 0 {
            return true;
        }
        if !self.is_faulty_now() {
            return false;
        }
        let now_us = self.now_us;
        let cut = self.scenario.faults.iter().any(|fault| match fault {
            Fault::Cut {
                span,
                from: deaf_to,
                to: deaf,
                both,
            } => {
                let there = deaf_to & from != 0 && deaf & to != 0;
                let back = *both && deaf_to & to != 0 && deaf & from != 0;
                span.contains(now_us) && (there || back)
            }
            Fault::Burst { .. }
            | Fault::Pause { .. }
            | Fault::Slow { .. }
            | Fault::ClockJump { .. }
            | Fault::Crash { .. }
            | Fault::HostLoss { .. }
            | Fault::Silence { .. }
            | Fault::BrokerRestart { .. } => false,
        });
        let loss = self.scenario.loss;
        cut || (loss > 0 && self.rng.random_range(0..=255u8) < loss)
    }

    fn copies(&mut self) -> u32 {
        let chance = self.scenario.duplication;
        let twice = chance > 0 && self.is_faulty_now() && self.rng.random_range(0..=255u8) < chance;
        1 + u32::from(twice)
    }

    /// What a slow twin adds to every input.
    pub(super) fn slowness_us(&mut self, twin: ReplicaId) -> u64 {
        if self.scenario.faults.is_empty() {
            return 0;
        }
        let now_us = self.now_us;
        let most = self.scenario.faults.iter().filter_map(|fault| match fault {
            Fault::Slow {
                span,
                twin: slow,
                by_us,
            } if *slow == twin && span.contains(now_us) => Some(*by_us),
            _ => None,
        });
        match most.max() {
            Some(most) => self.rng.random_range(0..most),
            None => 0,
        }
    }

    pub(super) fn transmit(&mut self, from: ReplicaId, to: ReplicaId, message: Arc<PeerMessage>) {
        self.report.messages += 1;
        self.report.honest += u64::from(!self.byzantine.contains(&from));
        #[cfg(test)]
        if self.script.loses(self.now_us, from, to, &message) {
            return;
        }
        if !self.scenario.shape.contains(to) || self.is_lost(host_bit(from), host_bit(to)) {
            return;
        }
        for _ in 1..self.copies() {
            let delay = self.delay_us(host_bit(to)) + self.slowness_us(to);
            let message = message.clone();
            self.schedule(delay, Happening::Peer { to, from, message });
        }
        let delay = self.delay_us(host_bit(to)) + self.slowness_us(to);
        self.schedule(delay, Happening::Peer { to, from, message });
    }

    /// A client's message.
    pub(super) fn transmit_input(&mut self, to: ReplicaId, input: &Input) {
        self.report.messages += 1;
        if self.is_lost(CLIENTS, host_bit(to)) {
            return;
        }
        for _ in 0..self.copies() {
            let delay = self.delay_us(host_bit(to)) + self.slowness_us(to);
            let input = Box::new(input.clone());
            self.schedule(delay, Happening::Input { to, input });
        }
    }

    pub(super) fn send_to_client(
        &mut self,
        from: ReplicaId,
        client: ClientId,
        message: ClientMessage,
    ) {
        self.report.messages += 1;
        self.report.honest += u64::from(!self.byzantine.contains(&from));
        let Some(index) = self.clients.iter().position(|c| c.id == client) else {
            return;
        };
        if self.is_lost(host_bit(from), CLIENTS) {
            return;
        }
        let hint = match &self.twin(from).puppet {
            None => self.twin(from).core.view_hint(),
            Some(_) => View([0, 1, u64::MAX][self.rng.random_range(0..3)]),
        };
        let message = Box::new(message);
        for _ in 0..self.copies() {
            let delay = self.delay_us(CLIENTS);
            let happening = Happening::ToClient {
                client: index,
                from,
                hint,
                message: message.clone(),
            };
            self.schedule(delay, happening);
        }
    }
}
