//! TwinBFT: the protocol of one twin, around the automaton of its host.
//!
//! Data flows one way: a request comes in ([`request`]), the leader orders it ([`leader`]), followers vote
//! ([`voting`]), the decided slot is signed and sent ([`order`]), backups accept it ([`backup`]), hosts commit
//! ([`commit`]), the service executes ([`execute`]), the cross-checked result goes out ([`reply`]). When the primary
//! does not do its part ([`suspicion`]), the view changes ([`views`]).

mod amnesia;
mod backup;
mod book;
mod bridge;
mod catchup;
mod chain;
mod checkpoint;
mod commit;
mod contained;
mod divergence;
mod entry;
mod execute;
mod forward;
mod heartbeat;
mod hello;
mod leader;
mod mute;
mod order;
mod own;
mod past;
mod peers;
mod pool;
mod print;
mod proofs;
mod quarantine;
mod reads;
mod recovery;
mod reply;
mod request;
mod serve;
mod slots;
mod status;
mod suspicion;
#[cfg(test)]
mod testing;
mod transfer;
mod views;
mod voting;
mod vouch;

use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Certificate, Digest, Epoch, HostId, ReplicaId, Signed, Slot, Statement, TwinId, View,
};

use crate::config::{CoreConfig, Tuning};
use crate::fault::PeerFault;
use crate::hostlog::{Decision, HostLog};
use crate::io::{Effect, Effects, Input, Tick};
use crate::mutants::{Rule, out as is_out};
use crate::record::Record;
use crate::session::{SessionBounds, SessionTable};

use amnesia::Amnesia;
use backup::Backup;
use book::SignatureBook;
use catchup::CatchUp;
use chain::Chain;
use checkpoint::Checkpoints;
use commit::Commit;
use divergence::Divergences;
use execute::Execution;
use forward::Forwards;
use heartbeat::Heartbeats;
use leader::Leader;
use mute::Mutes;
use past::Past;
use peers::Peers;
use pool::Pool;
use quarantine::Quarantine;
use reads::Reads;
pub use recovery::Recovered;
use recovery::Recovery;
use reply::Replies;
use serve::Serving;
use slots::SlotLog;
pub use status::{Role, Status};
use suspicion::Suspicion;
use transfer::Transfer;
pub use transfer::TransferProgress;
use views::Views;
use voting::Voting;
use vouch::Vouching;

/// The epoch of a log that nobody can have forgotten anything of.
const FIRST_EPOCH: Epoch = Epoch(1);

/// One twin of one host, without IO: see [`crate::io`] for its doors.
///
/// A copy goes its own way from there on: a model checker tries all that could come next.
#[derive(Clone, Debug)]
pub struct Replica {
    config: CoreConfig,
    now: Tick,
    /// What the host has decided; everything below is this twin's own.
    log: HostLog,
    slots: SlotLog,
    past: Past,
    /// `L`: the last stable checkpoint.
    stable: Slot,
    sessions: SessionTable,
    pool: Pool,
    book: SignatureBook,
    leader: Leader,
    voting: Voting,
    backup: Backup,
    commit: Commit,
    execution: Execution,
    replies: Replies,
    checkpoints: Checkpoints,
    divergences: Divergences,
    mutes: Mutes,
    quarantine: Quarantine,
    reads: Reads,
    views: Views,
    suspicion: Suspicion,
    forwards: Forwards,
    heartbeats: Heartbeats,
    chain: Chain,
    catchup: CatchUp,
    transfer: Transfer,
    serving: Serving,
    vouching: Vouching,
    recovery: Recovery,
    amnesia: Amnesia,
    peers: Peers,
    /// This twin's posts that it has not read back yet.
    own: own::Own,
    /// Used by [`entry`], empty between steps; kept for its memory.
    decisions: Vec<Decision>,
}

impl Replica {
    /// A replica at genesis: nothing ordered, view 0 installed, an empty postbox log.
    #[must_use]
    pub fn new(config: CoreConfig) -> Self {
        let tuning = &config.tuning;
        let bounds = tuning.host_bounds();
        let sessions = SessionTable::new(Self::session_bounds(tuning));
        let host = config.host();
        Self {
            // 8: a log of a later epoch begins with what the twins remember.
            log: if config.epoch > FIRST_EPOCH {
                HostLog::reopened(config.shape, host, bounds)
            } else {
                HostLog::genesis(config.shape, host, bounds)
            },
            now: Tick::default(),
            slots: SlotLog::default(),
            past: Past::default(),
            stable: Slot(0),
            sessions,
            pool: Pool::new(tuning.pending_requests_max),
            book: SignatureBook::new(host, config.shape.twin_quorum()),
            leader: Leader::default(),
            voting: Voting::default(),
            backup: Backup::default(),
            commit: Commit::default(),
            execution: Execution::default(),
            replies: Replies::default(),
            checkpoints: Checkpoints::default(),
            divergences: Divergences::default(),
            mutes: Mutes::default(),
            quarantine: Quarantine::default(),
            reads: Reads::default(),
            views: Views::default(),
            suspicion: Suspicion::default(),
            forwards: Forwards::default(),
            heartbeats: Heartbeats::default(),
            chain: Chain::default(),
            catchup: CatchUp::default(),
            transfer: Transfer::default(),
            serving: Serving::default(),
            vouching: Vouching::default(),
            recovery: Recovery::default(),
            amnesia: Amnesia::default(),
            peers: Peers::default(),
            own: own::Own::default(),
            decisions: Vec::new(),
            config,
        }
    }

    const fn session_bounds(tuning: &Tuning) -> SessionBounds {
        SessionBounds {
            window: tuning.session_window,
            sessions_max: tuning.sessions_max,
            result_bytes_max: tuning.session_result_bytes_max,
        }
    }

    /// Takes in one input and adds to `out` what must be done about it, in order.
    ///
    /// # Errors
    /// When a peer, a client or a sibling deviated; the input is then dropped, and the node goes on.
    ///
    /// # Panics
    /// When this replica's own invariants or the driver's promises are broken.
    pub fn step(&mut self, now: Tick, input: Input, out: &mut Effects) -> Result<(), PeerFault> {
        assert!(now.mono_us >= self.now.mono_us, "monotonic time went back");
        self.now = now;
        let before = out.0.len();
        let result = match input {
            // What comes while the log is read again is early: whoever sent it sends it again.
            Input::Request { .. } | Input::Peer { .. } if self.recovery.is_replaying() => Ok(()),
            Input::Request {
                request,
                retransmission,
                leader_alone,
            } => self.handle_request(request, (retransmission, leader_alone), out),
            Input::Query {
                query,
                mac,
                log_end,
            } => self.handle_query(query, &mac, log_end, out),
            Input::Peer { from, message } => self.handle_peer(from, message, out),
            Input::Entry {
                position,
                sender,
                bytes,
            } => self.handle_entry(position, sender, &bytes, out),
            Input::Lapped { position, state } => {
                self.handle_lapped(position, &state, out);
                Ok(())
            }
            Input::Executed { slot, results } => {
                self.handle_executed(slot, results, out);
                Ok(())
            }
            Input::Checkpointed { slot, digest } => {
                self.handle_checkpointed(slot, digest, out);
                Ok(())
            }
            Input::ChunkRead { slot, id, bytes } => {
                self.handle_chunk_read(slot, id, bytes, out);
                Ok(())
            }
            Input::Restoring {
                slot,
                chunk,
                wanted,
            } => {
                self.handle_restoring(slot, chunk, wanted, out);
                Ok(())
            }
            Input::Restored { slot } => {
                self.handle_restored(slot, out);
                Ok(())
            }
            Input::Queried {
                token,
                result,
                version,
            } => {
                self.handle_queried(token, result, version, out);
                Ok(())
            }
            Input::Readmit { twin } => {
                self.handle_readmit(twin, out);
                Ok(())
            }
            Input::Timer => {
                self.handle_timer(out);
                Ok(())
            }
        };
        self.advance(out);
        if self.recovery.is_silent() {
            self.silence(before, out);
            self.poll_recovery(out);
            if !self.recovery.is_silent() {
                self.advance(out);
            }
        }
        self.own.note_posts(&out.0[before..]);
        result
    }

    /// Does everything that has become possible.
    fn advance(&mut self, out: &mut Effects) {
        self.poll_completed(out);
        if !self.recovery.is_silent() && self.is_settled() {
            self.poll_views(out);
            self.poll_votes(out);
            self.poll_proposal(out);
        }
        self.poll_catchup(out);
        self.poll_transfer(out);
        self.poll_vouched(out);
        self.poll_serving(out);
        self.poll_waiting(out);
        self.poll_commit();
        self.poll_past();
        self.say_checkpoints(out);
        self.poll_heartbeat(out);
        self.poll_execution(out);
        self.poll_reads(out);
        if !self.recovery.is_silent() {
            self.poll_peers(out);
            self.poll_suspicion(out);
        }
    }

    fn handle_timer(&mut self, out: &mut Effects) {
        if self.recovery.is_replaying() {
            return;
        }
        self.voting_timer(out);
        self.backup_timer(out);
        self.order_timer(out);
        self.commit_timer(out);
        self.checkpoint_timer(out);
        self.divergence_timer(out);
        self.beat_timer(out);
        self.chain_timer(out);
        self.views_timer(out);
        self.forward_timer(out);
    }

    /// When the next [`Input::Timer`] is due, in [`Tick::mono_us`]; it may be in the past.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        if self.recovery.is_replaying() {
            return self.recovery_deadline();
        }
        let deadlines = self.deadlines();
        deadlines.into_iter().filter_map(|(_, at)| at).min()
    }

    /// What [`Self::deadline`] is the first of, by name: shows who keeps a core busy.
    #[must_use]
    pub fn deadlines(&self) -> [(&'static str, Option<u64>); 17] {
        [
            ("catch-up", self.catchup_deadline()),
            ("transfer", self.transfer_deadline()),
            ("serving", self.serving_deadline()),
            // What waits for own entries is looked at when they are read.
            (
                "voting",
                self.voting_deadline().filter(|_| self.is_settled()),
            ),
            ("backup", self.backup_deadline()),
            ("order", self.order_deadline()),
            (
                "leader",
                self.leader_deadline().filter(|_| self.is_settled()),
            ),
            ("commit", self.commit_deadline()),
            ("checkpoint", self.checkpoint_deadline()),
            ("divergence", self.divergence_deadline()),
            ("beat", self.beat_deadline()),
            ("chain", self.chain_deadline()),
            ("views", self.views_deadline()),
            ("forward", self.forward_deadline()),
            ("suspicion", self.suspicion_deadline()),
            ("amnesia", self.amnesia_deadline()),
            (
                "peers",
                self.peers_deadline().filter(|_| !self.recovery.is_silent()),
            ),
        ]
    }

    fn handle_peer(
        &mut self,
        from: ReplicaId,
        message: PeerMessage,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        // Twins of one host talk through the postbox. Slots that a hash chain verifies, and the state of a checkpoint
        // that `Q` hosts have certified, may come from anywhere (4.5, 8).
        let verifies_itself = matches!(
            message,
            PeerMessage::FetchChain { .. }
                | PeerMessage::Chain(_)
                | PeerMessage::FetchCheckpoint { .. }
                | PeerMessage::Checkpoint(_)
                | PeerMessage::FetchChunk(_)
                | PeerMessage::Chunk(_)
        );
        let is_sibling = from.host == self.config.host();
        // 8: while the host waits for HELLOs, one that is behind catches up on another host's ORDER.
        let is_of_claim = matches!(
            message,
            PeerMessage::Order(_) | PeerMessage::FetchSlots { .. }
        );
        if (is_sibling && !verifies_itself && !is_of_claim) || !self.config.shape.contains(from) {
            return Err(PeerFault::NotAPeer { from });
        }
        match message {
            PeerMessage::Order(_) | PeerMessage::FetchSlots { .. }
                if is_sibling && !self.log.is_opening() =>
            {
                Ok(())
            }
            PeerMessage::Order(order) if is_sibling => self.note_claimed(from, &order.certificate),
            PeerMessage::FetchSlots { first, .. } if is_sibling => {
                self.handle_claim_asked(from, first, out);
                Ok(())
            }
            PeerMessage::Order(order) => self.handle_order(from, order, out),
            PeerMessage::FetchSlots { first, last } => self.handle_fetch(from, first, last, out),
            PeerMessage::FetchSlotResult { slot, history } => {
                self.handle_fetch_slot_result(from, slot, history, out);
                Ok(())
            }
            PeerMessage::FetchReport { nonce } => {
                self.handle_fetch_report(from, nonce, out);
                Ok(())
            }
            PeerMessage::FetchNewView { view } => {
                self.handle_fetch_new_view(from, view, out);
                Ok(())
            }
            PeerMessage::FetchChain { slot, history } => {
                self.handle_fetch_chain(from, slot, history, out);
                Ok(())
            }
            PeerMessage::Chain(chain) => self.handle_chain(from, chain),
            PeerMessage::FetchCheckpoint { above } => {
                self.handle_fetch_checkpoint(from, above, out);
                Ok(())
            }
            PeerMessage::Checkpoint(offer) => self.handle_offer(from, &offer, out),
            PeerMessage::FetchChunk(name) => self.handle_fetch_chunk(from, name, out),
            PeerMessage::Chunk(chunk) => self.handle_chunk(from, chunk, out),
            PeerMessage::Forward(forward) => self.handle_forward(from, forward, out),
            PeerMessage::Certificate(certificate) => {
                let signed = self.verify(from, &certificate)?;
                self.handle_statement(from, &signed, &certificate, out)
            }
        }
    }

    /// Accepts a certificate of another host when `q` of its twins' MACs verify here (protocol.md 3).
    fn verify(&self, from: ReplicaId, certificate: &Certificate) -> Result<Signed, PeerFault> {
        let signed = &certificate.signed;
        if signed.host == self.config.host() || signed.host.0 >= self.config.shape.hosts() {
            return Err(PeerFault::WrongHost {
                from,
                host: signed.host,
            });
        }
        // 8: what a host decided before it forgot stays decided; only what it said of what it would do no more is void.
        let is_void = matches!(
            signed.statement,
            Statement::ViewChange { .. } | Statement::Wish { .. } | Statement::Recovery { .. }
        ) && signed.incarnation < self.log.incarnation(signed.host);
        if is_void && !is_out(Rule::Incarnations) {
            return Err(PeerFault::WrongIncarnation { from });
        }
        let needed = self.config.shape.twin_quorum();
        let valid = self.config.keys.count_valid(self.config.shape, certificate);
        if valid < needed && !is_out(Rule::CertificateQuorum) {
            return Err(PeerFault::TooFewSignatures {
                from,
                valid,
                needed,
            });
        }
        Ok(signed.clone())
    }

    fn handle_statement(
        &mut self,
        from: ReplicaId,
        signed: &Signed,
        certificate: &Certificate,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let host = signed.host;
        match signed.statement {
            Statement::Ack { .. } => {
                self.handle_ack_certificate(from, certificate, out);
                Ok(())
            }
            Statement::Checkpoint { slot, digest } => {
                self.handle_checkpoint(certificate, slot, digest, out);
                Ok(())
            }
            Statement::SlotResult {
                slot,
                history,
                results,
            } => {
                self.handle_slot_result(host, slot, history, results, out);
                Ok(())
            }
            Statement::Heartbeat {
                view,
                count,
                slot,
                history,
            } => {
                self.check_primary(from, host, view)?;
                self.note_log_of(&signed.statement);
                let is_new = self.handle_heartbeat(from, (view, count), (slot, history), out);
                // 3: passed on to the siblings, whose counterpart may be mute. It rides with the signature on the ACK.
                if is_new && from.host != self.config.host() {
                    let certificate = certificate.clone();
                    out.post_lazy(twinbft_types::Entry::Relay { certificate });
                }
                Ok(())
            }
            Statement::NewView { view, .. } => {
                self.check_primary(from, host, view)?;
                self.note_view_statement(signed, certificate);
                if self.log.live_view() == Some(view) && from.host != self.config.host() {
                    // It is sent until the ACK comes: that one was lost.
                    self.repeat_ack(from, out);
                }
                Ok(())
            }
            Statement::ViewChange {
                ref incarnations, ..
            } => {
                if incarnations.len() != usize::from(self.config.shape.hosts()) {
                    return Err(unexpected(from, "VIEW-CHANGE of a cluster of another size"));
                }
                self.note_view_statement(signed, certificate);
                Ok(())
            }
            Statement::Wish { .. } => {
                self.note_view_statement(signed, certificate);
                Ok(())
            }
            Statement::Order { .. } => Err(unexpected(from, "ORDER without its batch")),
            Statement::Forward { .. } => Err(unexpected(from, "FORWARD without its request")),
            Statement::Reply { .. } => Err(unexpected(from, "REPLY")),
            Statement::Committed { slot, history } => {
                self.handle_committed(from, (slot, history), certificate, out);
                Ok(())
            }
            Statement::Recovery { incarnation, nonce } => {
                if signed.incarnation != incarnation {
                    return Err(unexpected(from, "RECOVERY of another incarnation"));
                }
                self.handle_recovery(host, (incarnation, nonce), certificate);
                Ok(())
            }
            Statement::RecoveryAnswer { .. } => self.handle_recovery_answer(from, signed),
            Statement::Report {
                of,
                incarnation,
                nonce,
            } => {
                self.handle_report(host, of, incarnation, nonce);
                Ok(())
            }
        }
    }

    /// Whether `host`, whose certificate `from` sent, is primary of `view`.
    fn check_primary(&self, from: ReplicaId, host: HostId, view: View) -> Result<(), PeerFault> {
        if self.config.shape.primary(view) == host {
            Ok(())
        } else {
            Err(PeerFault::NotPrimary { from })
        }
    }

    /// The host has decided this statement: sign it, once (release rule, protocol.md 3). The own signature counts
    /// at once; with it the certificate may be complete.
    fn sign_decided(&mut self, statement: &Statement, lazy: bool, out: &mut Effects) {
        if !self.book.decide(statement) {
            return;
        }
        let authenticator = self
            .config
            .keys
            .sign(self.config.shape, &self.signed(statement.clone()));
        let certificate = self.book.sign(statement, authenticator.clone());
        let entry = twinbft_types::Entry::Sign {
            statement: statement.clone(),
            authenticator,
        };
        // 3, durability rule: a SIGN of NEW-VIEW, with the slots that it rests on.
        if matches!(statement, Statement::NewView { .. }) {
            out.push(Effect::Persist(Record::Promise(entry.clone())));
        }
        out.push(Effect::Post { entry, lazy });
        if let Some(certificate) = certificate {
            self.send_certificate(statement, certificate, out);
        }
    }

    fn signed(&self, statement: Statement) -> Signed {
        Signed {
            host: self.config.host(),
            incarnation: self.log.incarnation(self.config.host()),
            statement,
        }
    }

    /// The high mark (protocol.md 1).
    fn high_mark(&self) -> Slot {
        Slot(self.stable.0 + 2 * self.config.tuning.checkpoint_slots)
    }

    /// Sends to the twins of the same number (protocol.md 4.4: twin `t` serves the remote twins `t`).
    fn send_to_counterparts(
        &self,
        hosts: impl Iterator<Item = HostId>,
        message: &Arc<PeerMessage>,
        out: &mut Effects,
    ) {
        self.send_to_twin(self.config.twin(), hosts, message, out);
    }

    /// Asks one twin of each other host, another one each time: a counterpart may be mute. `times` is how often this
    /// question was asked: with a count that several questions share, each could meet the same twin every time.
    fn ask_around(&self, times: u32, message: &Arc<PeerMessage>, out: &mut Effects) {
        let hosts = self.config.shape.all_hosts();
        self.ask_hosts(times, hosts, message, out);
    }

    /// The same of these hosts alone.
    fn ask_hosts(
        &self,
        times: u32,
        hosts: impl IntoIterator<Item = HostId>,
        message: &Arc<PeerMessage>,
        out: &mut Effects,
    ) {
        let twins = u32::from(self.config.shape.twins());
        let twin = (u32::from(self.config.twin().0) + times % twins) % twins;
        let twin = TwinId(u8::try_from(twin).expect("less than the twins of a host"));
        self.send_to_twin(twin, hosts.into_iter(), message, out);
    }

    fn send_to_twin(
        &self,
        twin: TwinId,
        hosts: impl Iterator<Item = HostId>,
        message: &Arc<PeerMessage>,
        out: &mut Effects,
    ) {
        for host in hosts.filter(|h| *h != self.config.host()) {
            out.push(Effect::Send {
                to: ReplicaId { host, twin },
                message: message.clone(),
            });
        }
    }

    /// `h_n` of a slot that this twin holds.
    fn history_of(&self, slot: Slot) -> Option<Digest> {
        if slot == self.stable {
            return Some(self.checkpoints.stable_history());
        }
        self.slots.history(slot)
    }

    /// Counts of what is kept, for the bounded-memory oracle (protocol.md 11, invariant 9).
    #[must_use]
    pub fn footprint(&self) -> [(&'static str, usize); 11] {
        [
            ("slots", self.slots.len()),
            ("pool", self.pool.len()),
            ("sessions", self.sessions.len()),
            ("waiting_orders", self.backup.waiting_len()),
            ("replies", self.replies.len()),
            ("reads", self.reads.len()),
            ("queue", self.leader.len()),
            ("forwards", self.forwards.len()),
            ("chain", self.chain.len()),
            ("serving", self.serving.len()),
            ("past_bytes", self.past.bytes()),
        ]
    }
}

fn unexpected(from: ReplicaId, statement: &'static str) -> PeerFault {
    PeerFault::UnexpectedStatement { from, statement }
}
