//! The scheduler: virtual time, a network, postboxes, twins and clients.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use twinbft_client::session::{Message, SessionConfig};
use twinbft_core::{CoreConfig, Effect, EventKind, Input};
use twinbft_postbox::{Limits, MemoryLog, MemoryRead, Outcome};
use twinbft_types::wire::Reply;
use twinbft_types::{
    ClientId, Digest, Epoch, HostId, Incarnation, Mac, Position, ProcessId, QueryAnswer, ReplicaId,
    TwinId, canonical,
};

use crate::byzantine::{Double, garbage};
use crate::cast::Cast;
use crate::client::Client;
use crate::oracles::{
    Truth, Violation, check_event, check_footprint, check_histories, check_progress,
};
use crate::replica::Twin;
use crate::scenario::Scenario;

/// Virtual time after which every request must have ended, counted from the healing.
const PATIENCE_US: u64 = 60_000_000;
/// Steps after which a run is given up as endless.
const STEPS_MAX: u64 = 2_000_000;

/// What one run came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Steps of the scheduler.
    pub steps: u64,
    /// Messages between processes.
    pub messages: u64,
    /// Slots executed.
    pub slots: u64,
    /// The highest view that a host installed.
    pub view: u64,
    /// Operations that their clients saw completed.
    pub completed: u64,
    /// Divergences that correct twins reported.
    pub divergences: u64,
    /// Culprits that were named.
    pub culprits: u64,
    /// Runs in which fewer than `Q` hosts were left that were not behind: not checked for progress.
    pub stalled: u64,
    /// A digest over everything that happened, for comparing two runs of one seed.
    pub trace: Digest,
}

#[derive(Debug)]
enum Happening {
    Deliver {
        to: ReplicaId,
        input: Box<Input>,
    },
    Read {
        by: ReplicaId,
    },
    Timer {
        of: ReplicaId,
        at_us: u64,
    },
    ToClient {
        client: usize,
        from: ReplicaId,
        message: ClientMessage,
    },
    ClientTimer {
        client: usize,
        at_us: u64,
    },
    Begin {
        client: usize,
    },
}

#[derive(Clone, Debug)]
enum ClientMessage {
    Reply(Reply),
    Answer(QueryAnswer, Bytes, Mac),
}

/// One simulated cluster.
#[derive(Debug)]
pub struct World {
    scenario: Scenario,
    rng: ChaCha8Rng,
    now_us: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    next_number: u64,
    twins: BTreeMap<ReplicaId, Twin>,
    logs: BTreeMap<HostId, MemoryLog>,
    /// When each twin's service is free again: it answers in order.
    service_free_us: BTreeMap<ReplicaId, u64>,
    /// Trims that would drop what some twin has not read.
    trims: BTreeMap<HostId, Vec<(ReplicaId, Position, Bytes)>>,
    clients: Vec<Client>,
    byzantine: BTreeSet<ReplicaId>,
    truth: Truth,
    report: Report,
}

impl World {
    /// The cluster of a scenario, before anything has happened.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(scenario.seed ^ 0x7477_696e);
        let cast = Cast::of(scenario.shape);
        let limits = Limits {
            log_bytes: 1 << 20,
            entry_bytes_max: 16 << 10,
            state_bytes_max: 256 << 10,
            trim_every: scenario.tuning.trim_multiple,
            ..Limits::new(scenario.shape.twins())
        };
        let logs = scenario
            .shape
            .all_hosts()
            .map(|host| {
                (
                    host,
                    MemoryLog::new(limits.clone()).expect("limits are valid"),
                )
            })
            .collect();
        let twins = scenario
            .shape
            .all_replicas()
            .map(|me| {
                let config = CoreConfig {
                    shape: scenario.shape,
                    me,
                    keys: cast.ring(ProcessId::Twin(me)),
                    incarnation: Incarnation(0),
                    epoch: Epoch(0),
                    config_digest: Digest::ZERO,
                    tuning: scenario.tuning.clone(),
                };
                let skew_us = rng.random_range(-200_000..200_000);
                (
                    me,
                    Twin::new(config, scenario.doubles.get(&me).copied(), skew_us),
                )
            })
            .collect();
        let clients = (0..scenario.clients)
            .map(|key| {
                let id = ClientId { key, session: 1 };
                let ring = cast.ring(ProcessId::Client(key));
                let mut config = SessionConfig::new(scenario.shape, id, ring);
                config.window = scenario.tuning.session_window;
                Client::new(
                    config,
                    scenario.operations,
                    scenario.depth,
                    scenario.fast_reads,
                )
            })
            .collect();
        let byzantine = scenario.doubles.keys().copied().collect();
        let mut world = Self {
            rng,
            now_us: 0,
            agenda: BTreeMap::new(),
            next_number: 0,
            twins,
            logs,
            service_free_us: BTreeMap::new(),
            trims: BTreeMap::new(),
            clients,
            byzantine,
            truth: Truth::default(),
            report: Report::default(),
            scenario,
        };
        for client in 0..world.clients.len() {
            let at = world.rng.random_range(0..1000);
            world.schedule(at, Happening::Begin { client });
        }
        world
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn run(mut self) -> Result<Report, Violation> {
        let end_us = self.scenario.heal_at_us + PATIENCE_US;
        while let Some(((at_us, _), happening)) = self.agenda.pop_first() {
            if at_us > end_us || self.report.steps > STEPS_MAX || self.is_done() {
                break;
            }
            self.now_us = at_us;
            self.report.steps += 1;
            self.happen(happening)?;
        }
        if self.live_hosts() >= self.scenario.shape.host_quorum() {
            check_progress(self.correct_clients()).map_err(|mut violation| {
                violation.what += &self.summary();
                violation
            })?;
        } else {
            self.report.stalled += 1;
        }
        let histories: Vec<_> = self.clients.iter().flat_map(|c| &c.history).collect();
        check_histories(&self.truth, &histories)?;
        self.report.completed = histories.iter().filter(|r| r.returned.is_some()).count() as u64;
        self.report.slots = self.truth.last().0;
        let views = self.twins.values().map(|t| t.core.host_log().live_view());
        self.report.view = views.flatten().max().map_or(0, |view| view.0);
        Ok(self.report)
    }

    /// Hosts with `q` correct twins that are not behind. Until there is state transfer, a host that lost too
    /// many messages stays behind, and counts as silent.
    fn live_hosts(&self) -> usize {
        let shape = self.scenario.shape;
        let stable = self.twins.values().map(|t| t.core.status().stable);
        let stable = stable.max().unwrap_or_default();
        let live = |host: HostId| {
            let twins = self.twins.values().filter(|t| t.id.host == host);
            let live = twins.filter(|t| t.double.is_none() && t.core.status().executed >= stable);
            live.count() >= shape.twin_quorum()
        };
        shape.all_hosts().filter(|host| live(*host)).count()
    }

    /// Where every twin stands, for the report of a failure.
    fn summary(&self) -> String {
        let mut text = String::new();
        for twin in self.twins.values() {
            let s = twin.core.status();
            text += &format!(
                "\n{} {} {} {} accepted {} committed {} executed {} stable {} pending {} log {}/{} refused {} {:?}",
                s.replica,
                s.role.name(),
                s.state,
                s.view,
                s.accepted,
                s.committed,
                s.executed,
                s.stable,
                s.pending,
                twin.position,
                self.logs[&twin.id.host].end(),
                twin.refused.len(),
                twin.double,
            );
        }
        text
    }

    fn is_done(&self) -> bool {
        self.correct_clients().all(Client::is_done)
    }

    fn correct_clients(&self) -> impl Iterator<Item = &Client> {
        let half_authentic = self.scenario.half_authentic_clients;
        let first_bad = self.scenario.clients.saturating_sub(half_authentic);
        self.clients.iter().filter(move |c| c.id.key < first_bad)
    }

    fn schedule(&mut self, after_us: u64, happening: Happening) {
        let key = (self.now_us + after_us, self.next_number);
        self.next_number += 1;
        self.agenda.insert(key, happening);
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Deliver { to, input } => self.step(to, *input),
            Happening::Read { by } => self.read_log(by),
            Happening::Timer { of, at_us } => {
                if self.twins[&of].timer_us != Some(at_us) {
                    return Ok(());
                }
                self.twin(of).timer_us = None;
                self.step(of, Input::Timer)
            }
            Happening::ToClient {
                client,
                from,
                message,
            } => {
                let now_us = self.now_us;
                let session = &mut self.clients[client].session;
                match message {
                    ClientMessage::Reply(reply) => session.handle_reply(from, &reply),
                    ClientMessage::Answer(answer, result, mac) => {
                        session.handle_answer(from, &answer, &result, &mac);
                    }
                }
                self.clients[client].drain_events(now_us);
                self.serve_client(client);
                Ok(())
            }
            Happening::ClientTimer { client, at_us } => {
                if self.clients[client].timer_us == Some(at_us) {
                    self.clients[client].timer_us = None;
                    self.clients[client].session.handle_timeout(self.now_us);
                    self.clients[client].drain_events(self.now_us);
                    self.serve_client(client);
                }
                Ok(())
            }
            Happening::Begin { client } => {
                self.serve_client(client);
                Ok(())
            }
        }
    }

    fn twin(&mut self, id: ReplicaId) -> &mut Twin {
        self.twins.get_mut(&id).expect("every replica has a twin")
    }

    fn step(&mut self, id: ReplicaId, input: Input) -> Result<(), Violation> {
        let now_us = self.now_us;
        let (effects, _fault) = self.twin(id).step(now_us, input);
        let double = self.twins[&id].double;
        for effect in effects {
            let effects = match double {
                Some(double) => double.rewrite(effect, &mut self.rng),
                None => vec![effect],
            };
            for effect in effects {
                self.carry_out(id, effect)?;
            }
        }
        if double == Some(Double::Noisy) && self.rng.random_bool(0.05) {
            let bytes = garbage(&mut self.rng);
            self.post(id, bytes);
        }
        let twin = &self.twins[&id];
        if double.is_none() {
            check_footprint(
                &twin.core,
                &self.scenario.tuning,
                self.scenario.shape.unanimous(),
            )?;
        }
        if let Some(deadline) = twin.core.deadline() {
            let at_us = deadline.max(now_us + 1);
            if twin
                .timer_us
                .is_none_or(|timer| timer > at_us || timer <= now_us)
            {
                self.twin(id).timer_us = Some(at_us);
                self.schedule(at_us - now_us, Happening::Timer { of: id, at_us });
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, id: ReplicaId, effect: Effect) -> Result<(), Violation> {
        self.trace(id, &effect);
        match effect {
            Effect::Persist(_) => {}
            Effect::Post { entry, lazy: _ } => self.post(id, canonical(&entry).into()),
            Effect::Send { to, message } => {
                let input = Input::Peer {
                    from: id,
                    message: (*message).clone(),
                };
                self.transmit(Some(id.host), to, &input);
            }
            Effect::Execute(execute) => {
                if !self.byzantine.contains(&id) {
                    self.truth
                        .execute(execute.slot, execute.seed, &execute.requests)?;
                }
                let service = &mut self.twin(id).service;
                let results = execute
                    .requests
                    .iter()
                    .map(|r| service.execute(execute.slot.0, &r.operation))
                    .collect();
                service.note_slot(execute.slot.0);
                let slot = execute.slot;
                self.answer(id, Input::Executed { slot, results });
            }
            Effect::Checkpoint(checkpoint) => {
                let slot = checkpoint.slot;
                let digest = self.twins[&id].service.digest();
                self.answer(id, Input::Checkpointed { slot, digest });
            }
            Effect::Query { token, operation } => {
                let (result, version) = self.twins[&id].service.query(&operation);
                self.answer(
                    id,
                    Input::Queried {
                        token,
                        result,
                        version,
                    },
                );
            }
            Effect::Reply(reply) => {
                let client = reply.client;
                self.send_to_client(id, client, &ClientMessage::Reply(reply));
            }
            Effect::Answer {
                answer,
                result,
                mac,
            } => {
                let client = answer.client;
                self.send_to_client(id, client, &ClientMessage::Answer(answer, result, mac));
            }
            Effect::Refuse { .. } | Effect::RefuseQuery { .. } => {}
            Effect::Trim { position, state } => {
                let waiting = self.trims.entry(id.host).or_default();
                waiting.push((id, position, state));
                waiting.sort_by_key(|t| t.1);
                self.trim_when_read(id.host);
            }
            Effect::Evidence(event) => {
                if !self.byzantine.contains(&id) {
                    check_event(&event, &self.byzantine)?;
                    match event.kind {
                        EventKind::Divergence { .. } => self.report.divergences += 1,
                        EventKind::Culprit { .. } => self.report.culprits += 1,
                        EventKind::NotDeterministic { .. }
                        | EventKind::Mute
                        | EventKind::Invalid { .. }
                        | EventKind::BadClient { .. } => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// The service answers in order, after a while.
    fn answer(&mut self, id: ReplicaId, input: Input) {
        let delay = self.rng.random_range(1..50);
        let free = self.service_free_us.entry(id).or_insert(0);
        *free = (*free + 1).max(self.now_us + delay);
        let after = *free - self.now_us;
        let input = Box::new(input);
        self.schedule(after, Happening::Deliver { to: id, input });
    }

    fn post(&mut self, id: ReplicaId, bytes: Bytes) {
        self.twin(id).refused.push_back(bytes);
        self.post_waiting(id);
    }

    /// Appends what waits, in order, until the postbox refuses for room.
    fn post_waiting(&mut self, id: ReplicaId) {
        let log = self.logs.get_mut(&id.host).expect("every host has a log");
        let twin = self.twins.get_mut(&id).expect("every replica has a twin");
        let mut appended = false;
        while let Some(bytes) = twin.refused.front() {
            match log.append(id.twin.0, twin.append_number, bytes) {
                Outcome::Accepted(_) => {
                    twin.append_number += 1;
                    twin.refused.pop_front();
                    appended = true;
                }
                Outcome::Refused(_) | Outcome::OutOfOrder { .. } => break,
            }
        }
        if appended {
            for twin in self.scenario.shape.all_twins() {
                let by = ReplicaId {
                    host: id.host,
                    twin,
                };
                let delay = self.rng.random_range(1..30);
                self.schedule(delay, Happening::Read { by });
            }
        }
    }

    fn read_log(&mut self, by: ReplicaId) -> Result<(), Violation> {
        loop {
            let position = self.twins[&by].position;
            let log = &self.logs[&by.host];
            let input = match log.read(position) {
                MemoryRead::Entry(entry) => Input::Entry {
                    position: Position(entry.position),
                    sender: TwinId(entry.sender),
                    bytes: entry.bytes.clone().into(),
                },
                MemoryRead::NotYet => return Ok(()),
                // Only with m > q can a twin be lapped; it then stands still until resynchronisation is there.
                MemoryRead::Lapped => return Ok(()),
            };
            self.twin(by).position += 1;
            self.step(by, input)?;
            self.trim_when_read(by.host);
        }
    }

    fn trim(&mut self, id: ReplicaId, position: Position, state: &[u8]) {
        let log = self.logs.get_mut(&id.host).expect("every host has a log");
        log.trim(id.twin.0, position.0, state);
        self.post_waiting(id);
    }

    /// A trim may drop what the slowest twin has not read: here each waits for it, in order.
    fn trim_when_read(&mut self, host: HostId) {
        let of_host = self.twins.values().filter(|t| t.id.host == host);
        let slowest = of_host.map(|t| t.position).min().unwrap_or(0);
        let waiting = self.trims.entry(host).or_default();
        let ready = waiting.iter().take_while(|t| t.1.0 <= slowest).count();
        for (id, position, state) in waiting.drain(..ready).collect::<Vec<_>>() {
            self.trim(id, position, &state);
        }
    }

    fn is_faulty_now(&self) -> bool {
        self.now_us < self.scenario.heal_at_us
    }

    fn delay_us(&mut self) -> u64 {
        let most = if self.is_faulty_now() {
            self.scenario.delay_us_max
        } else {
            100
        };
        self.rng.random_range(1..=most)
    }

    fn is_lost(&mut self, hosts: [Option<HostId>; 2]) -> bool {
        if !self.is_faulty_now() {
            return false;
        }
        let cut = self.scenario.cut_off.map(HostId);
        let cut_off = cut.is_some() && hosts.contains(&cut);
        cut_off || self.rng.random_range(0..=255u8) < self.scenario.loss
    }

    fn copies(&mut self) -> u32 {
        let twice =
            self.is_faulty_now() && self.rng.random_range(0..=255u8) < self.scenario.duplication;
        1 + u32::from(twice)
    }

    fn transmit(&mut self, from: Option<HostId>, to: ReplicaId, input: &Input) {
        self.report.messages += 1;
        if self.is_lost([from, Some(to.host)]) {
            return;
        }
        for _ in 0..self.copies() {
            let delay = self.delay_us();
            let input = Box::new(input.clone());
            self.schedule(delay, Happening::Deliver { to, input });
        }
    }

    fn send_to_client(&mut self, from: ReplicaId, client: ClientId, message: &ClientMessage) {
        self.report.messages += 1;
        let index = usize::try_from(client.key).expect("clients are few");
        if index >= self.clients.len() || self.is_lost([Some(from.host), None]) {
            return;
        }
        for _ in 0..self.copies() {
            let delay = self.delay_us();
            let message = message.clone();
            let happening = Happening::ToClient {
                client: index,
                from,
                message,
            };
            self.schedule(delay, happening);
        }
    }

    /// Lets a client begin operations, and sends what its session has to say.
    fn serve_client(&mut self, index: usize) {
        let now_us = self.now_us;
        self.clients[index].begin(now_us, &mut self.rng);
        let half_authentic = self.clients[index].id.key
            >= self
                .scenario
                .clients
                .saturating_sub(self.scenario.half_authentic_clients);
        while let Some(transmit) = self.clients[index].session.poll_transmit() {
            let to = transmit.to;
            let input = match transmit.message {
                Message::Request {
                    mut signed,
                    retransmission,
                } => {
                    if half_authentic {
                        for mac in signed.macs.iter_mut().skip(1) {
                            mac.0[0] ^= 1;
                        }
                    }
                    Input::Request {
                        request: signed,
                        retransmission,
                    }
                }
                Message::Query { query, mac } => Input::Query {
                    query,
                    mac,
                    log_end: Position(self.logs[&to.host].end()),
                },
            };
            self.transmit(None, to, &input);
        }
        if let Some(timeout) = self.clients[index].session.poll_timeout() {
            let at_us = timeout.max(now_us + 1);
            if self.clients[index].timer_us != Some(at_us) {
                self.clients[index].timer_us = Some(at_us);
                let after = at_us - now_us;
                self.schedule(
                    after,
                    Happening::ClientTimer {
                        client: index,
                        at_us,
                    },
                );
            }
        }
    }

    fn trace(&mut self, id: ReplicaId, effect: &Effect) {
        if !self.scenario.traced {
            return;
        }
        let line = format!("{} {} {id} {effect:?}", self.report.trace, self.now_us);
        self.report.trace = Digest::of(line.as_bytes());
    }
}
