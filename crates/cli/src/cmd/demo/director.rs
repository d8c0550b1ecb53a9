//! What is done to the cluster while the sessions work, and what is seen of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use twinbft_client::session::ReplicaFault;
use twinbft_types::ReplicaId;

use super::board::{self, Board};
use super::stage::{HOSTS, Stage, TWINS};
use super::verdict::{Findings, Lie, Linearizable};
use super::view::{Evidence, Output, Snapshot};
use super::workload::{SESSIONS, Workload};

/// How the liar lies.
pub const WRONG_RESULT: &str = "wrong-result";
const HONEST: &str = "off";
/// All processes are asked again after this long.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Bound of the search for each key.
const CHECK_STEPS_MAX: u64 = 20_000_000;
/// Operations that must be answered before something counts as going on.
const GOES_ON: u64 = 20 * SESSIONS;

/// A lie that goes on.
struct OpenLie {
    twin: ReplicaId,
    /// Divergences of its host before.
    diverged: u64,
    /// What its host had let out when both twins had seen the first lie; `None` when they never did.
    output: Option<Output>,
    /// Operations that were answered before.
    operations: u64,
}

/// Everything that a condition can look at.
pub struct Scene<'d> {
    pub snapshot: &'d Snapshot,
    pub evidence: &'d Evidence,
    /// Answered so far.
    pub operations: u64,
}

/// Runs the demonstration.
pub struct Director<'d> {
    stage: &'d mut Stage,
    board: &'d mut Board,
    load: Workload,
    /// How long something may take to happen.
    patience: Duration,
    ready: Duration,
    snapshot: Snapshot,
    evidence: Evidence,
    open_lie: Option<OpenLie>,
    lies: Vec<Lie>,
    liars: BTreeSet<ReplicaId>,
    /// Who misbehaves at the moment in another way, and who ever did.
    saboteur: Option<ReplicaId>,
    saboteurs: BTreeSet<ReplicaId>,
    killed: BTreeSet<u8>,
    /// Those, and the ones that were brought back.
    ever_killed: BTreeSet<u8>,
    beyond: Option<String>,
    unmet: Vec<String>,
}

impl<'d> Director<'d> {
    /// Waits for the cluster and sets the sessions to work. `started` is when its making began.
    ///
    /// # Errors
    /// When the cluster does not start.
    pub async fn begin(
        stage: &'d mut Stage,
        board: &'d mut Board,
        started: Instant,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        board.say(&format!(
            "TwinBFT: {HOSTS} hosts x {TWINS} twins, each host with a broker, all as processes of this machine, in {}\n\
             Isolation between twins is simulated here: they share this kernel. On Xen each would be a virtual machine.",
            stage.directory().display()
        ));
        stage.ready(patience).await?;
        let ready = started.elapsed();
        board.say(&format!("Ready after {} ms.\n", ready.as_millis()));
        let load = Workload::start(&stage.cluster).await?;
        let mut evidence = Evidence::default();
        let snapshot = stage.look(&mut evidence).await;
        Ok(Self {
            stage,
            board,
            load,
            patience,
            ready,
            snapshot,
            evidence,
            open_lie: None,
            lies: Vec::new(),
            liars: BTreeSet::new(),
            saboteur: None,
            saboteurs: BTreeSet::new(),
            killed: BTreeSet::new(),
            ever_killed: BTreeSet::new(),
            beyond: None,
            unmet: Vec::new(),
        })
    }

    /// Lines that stay on the screen.
    pub fn say(&mut self, text: &str) {
        self.board.say(text);
    }

    /// The prompt.
    pub fn ask(&mut self, text: &str) {
        self.board.ask(text);
    }

    /// Who lies at the moment.
    pub fn liar(&self) -> Option<ReplicaId> {
        let liar = self.open_lie.as_ref().map(|lie| lie.twin);
        liar.or(self.saboteur)
    }

    /// Makes a twin misbehave in another way than by lies in its results. It may be named for that or not; clients must notice
    /// nothing.
    ///
    /// # Errors
    /// When the twin does not obey.
    pub async fn misbehave(&mut self, twin: ReplicaId, how: &str) -> anyhow::Result<()> {
        self.stage.tell(twin, how)?;
        self.saboteur = Some(twin);
        self.saboteurs.insert(twin);
        self.go_on(Duration::ZERO).await;
        self.say(&format!(
            "   {twin} does {how}, and clients go on getting answers"
        ));
        self.show().await;
        Ok(())
    }

    /// Who was killed and is down.
    pub const fn killed(&self) -> &BTreeSet<u8> {
        &self.killed
    }

    /// Where the configuration is.
    pub fn config(&self) -> &std::path::Path {
        &self.stage.cluster.file
    }

    /// From now on clients may be without answers, because `what` was done on request.
    pub fn go_beyond(&mut self, what: String) {
        self.beyond.get_or_insert(what);
    }

    async fn look(&mut self) {
        self.snapshot = self.stage.look(&mut self.evidence).await;
        let text = self.table();
        self.board.draw(&text);
    }

    fn table(&self) -> String {
        let table = board::table(&self.snapshot, &self.killed);
        let record = self.load.record();
        format!(
            "{table}\n {SESSIONS} sessions: {} operations answered, {} errors, longest stall {} ms",
            record.operations,
            record.errors,
            record.longest_stall.as_millis()
        )
    }

    /// The table of this moment, to stay on the screen.
    pub async fn show(&mut self) {
        self.look().await;
        let text = self.table();
        self.board.show(&text);
    }

    /// Looks until `happened`, and for at least so long. When it does not happen in time it is noted as `what`.
    pub async fn until(
        &mut self,
        what: &str,
        at_least: Duration,
        mut happened: impl FnMut(&Scene<'_>) -> bool,
    ) -> bool {
        let begun = Instant::now();
        let mut has_happened = false;
        loop {
            self.look().await;
            let scene = Scene {
                snapshot: &self.snapshot,
                evidence: &self.evidence,
                operations: self.load.record().operations,
            };
            has_happened = has_happened || happened(&scene);
            let waited = begun.elapsed();
            if has_happened && waited >= at_least {
                return true;
            }
            if !has_happened && waited >= self.patience {
                if self.beyond.is_none() {
                    let seconds = self.patience.as_secs_f64();
                    self.unmet
                        .push(format!("within {seconds:.1} s {what} did not happen"));
                }
                return false;
            }
            tokio::time::sleep(LOOK_EVERY.min(self.patience - waited.min(self.patience))).await;
        }
    }

    /// Lets the sessions work for at least so long, and get some answers.
    pub async fn go_on(&mut self, at_least: Duration) -> bool {
        let before = self.operations();
        let what = format!("{GOES_ON} more answers to clients");
        self.until(&what, at_least, |scene| {
            scene.operations >= before + GOES_ON
        })
        .await
    }

    /// Operations that were answered so far.
    pub fn operations(&self) -> u64 {
        self.load.record().operations
    }

    /// Makes a twin lie in its replies, if `really`, and waits until its host has noticed and knows who it is.
    ///
    /// # Errors
    /// When the twin does not obey.
    pub async fn lie(&mut self, twin: ReplicaId, really: bool) -> anyhow::Result<()> {
        let host = twin.host.0;
        let mut lie = OpenLie {
            twin,
            diverged: self.snapshot.diverged(host),
            output: None,
            operations: self.operations(),
        };
        self.liars.insert(twin);
        if really {
            self.stage.tell(twin, WRONG_RESULT)?;
        }
        let what = format!("a divergence between the twins of {}", twin.host);
        let before = lie.diverged;
        let noticed = self
            .until(&what, Duration::ZERO, |scene| {
                scene.snapshot.diverged(host) > before
            })
            .await;
        if noticed {
            // The log is one order for both: what comes after the first lie is all withheld. Replies to what came
            // before may still be on their way out.
            let mut last = None;
            let what = format!("silence of {} towards clients", twin.host);
            let settled = |scene: &Scene<'_>| {
                let now = scene.snapshot.output(host, Some(twin));
                let is_settled = last.as_ref() == Some(&now);
                last = Some(now);
                is_settled
            };
            self.until(&what, Duration::ZERO, settled).await;
            lie.output = Some(self.snapshot.output(host, Some(twin)));
            let what = format!("the naming of {twin} by its sibling");
            let named = |scene: &Scene<'_>| {
                let by = scene.evidence.accused.get(&twin);
                by.is_some_and(|by| by.iter().any(|by| *by != twin.to_string()))
            };
            self.until(&what, Duration::ZERO, named).await;
        }
        self.open_lie = Some(lie);
        self.say_caught(twin);
        Ok(())
    }

    fn say_caught(&mut self, twin: ReplicaId) {
        let text = match self.evidence.accused.get(&twin) {
            Some(by) => {
                let by: Vec<&str> = by.iter().map(String::as_str).collect();
                format!(
                    "   caught: the results of {}'s twins differ, {HOSTS} hosts compare, and the culprit is {twin} (seen by {})",
                    twin.host,
                    by.join(" and ")
                )
            }
            None => format!("   nobody has named {twin}"),
        };
        self.say(&text);
    }

    /// Counts what the lie came to until now, without ending it.
    fn close_lie(&mut self, certifies_again: Option<bool>) {
        let Some(open) = self.open_lie.take() else {
            return;
        };
        // Nobody has seen a lie: there is nothing to tell, and that nobody was named is told already.
        let Some(before) = open.output else {
            return;
        };
        let host = open.twin.host.0;
        let now = self.snapshot.output(host, Some(open.twin));
        self.lies.push(Lie {
            twin: open.twin,
            withheld: self.snapshot.diverged(host).saturating_sub(open.diverged),
            certified: now.certified_since(&before),
            replies: now.replies_since(&before),
            certifies_again,
        });
    }

    /// Ends the lie, and waits until its host certifies results again.
    ///
    /// # Errors
    /// When the twin does not obey.
    pub async fn heal(&mut self) -> anyhow::Result<()> {
        if let Some(twin) = self.saboteur.take() {
            self.start_again(twin).await?;
        }
        self.look().await;
        let Some(open) = &self.open_lie else {
            return Ok(());
        };
        let (twin, answered) = (open.twin, self.operations() - open.operations);
        let (host, errors) = (twin.host.0, self.load.record().errors);
        self.close_lie(Some(false));
        if let Some(lie) = self.lies.last() {
            let text = format!(
                "   withheld: the results of {} slots; {}'s honest twin sent {} replies meanwhile, and clients had {answered} \
                 answers from the others, {errors} errors so far",
                lie.withheld, lie.twin.host, lie.replies
            );
            self.say(&text);
        }
        let before = self.snapshot.output(host, None);
        self.stage.tell(twin, HONEST)?;
        let what = format!("{} certifying results again", twin.host);
        let certifies =
            |scene: &Scene<'_>| scene.snapshot.output(host, None).all_certify_since(&before);
        let again = self.until(&what, Duration::ZERO, certifies).await;
        if let Some(lie) = self.lies.last_mut().filter(|lie| lie.twin == twin) {
            lie.certifies_again = Some(again);
        }
        let least = |output: &Output| output.cross_checked.values().min().copied().unwrap_or(0);
        let (then, now) = (least(&before), least(&self.snapshot.output(host, None)));
        let text = if again {
            format!(
                "   {twin} is honest again, and {} certifies again: cross-checked {then} -> {now}",
                twin.host
            )
        } else {
            format!(
                "   {twin} was told to be honest, and {} does not certify yet",
                twin.host
            )
        };
        self.say(&text);
        Ok(())
    }

    /// Kills all processes of a host, and waits until they are gone.
    ///
    /// # Errors
    /// When they cannot be killed.
    pub async fn kill(&mut self, host: u8) -> anyhow::Result<()> {
        if self.liar().is_some_and(|liar| liar.host.0 == host) {
            self.look().await;
            self.close_lie(None);
        }
        // Started again it is honest.
        self.saboteur = self.saboteur.filter(|twin| twin.host.0 != host);
        self.stage.kill_host(host)?;
        self.killed.insert(host);
        self.ever_killed.insert(host);
        let what = format!("the end of h{host}");
        let is_gone = |scene: &Scene<'_>| {
            scene.snapshot.of_host(host).next().is_none() && !scene.snapshot.brokers.contains(&host)
        };
        self.until(&what, Duration::ZERO, is_gone).await;
        Ok(())
    }

    /// Kills a twin that was not itself and starts it with the disk that it has: it believes to have said what it has not
    /// (docs/adr/0025-a-twin-that-was-not-itself.md).
    async fn start_again(&mut self, twin: ReplicaId) -> anyhow::Result<()> {
        // It may have ended by itself, and its supervisor starts it then.
        drop(self.stage.kill_twin(twin));
        let what = format!("the end of {twin}");
        let is_gone = |scene: &Scene<'_>| scene.snapshot.executed(|id| id == twin).is_empty();
        self.until(&what, Duration::ZERO, is_gone).await;
        self.stage.start_twin(twin)?;
        let came = self.caught_up(&twin.to_string(), |id| id == twin, 1).await;
        self.say(&match came {
            Some(_) => format!("   {twin} was started again, and is honest"),
            None => format!("   {twin} was started again and has not caught up yet"),
        });
        Ok(())
    }

    /// Starts a killed host again, and waits until its twins have caught up with what the others had executed by then.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn revive(&mut self, host: u8) -> anyhow::Result<()> {
        self.stage.start_host(host)?;
        self.killed.remove(&host);
        let twins = usize::from(super::stage::TWINS);
        let came = self
            .caught_up(&format!("h{host}"), |id| id.host.0 == host, twins)
            .await;
        self.say(&match came {
            Some(goal) => format!("   h{host} is back: its twins read their promises from the postbox, fetched the rest from the others, and have executed slot {goal} and all before it"),
            None => format!("   h{host} was started again and has not caught up yet"),
        });
        Ok(())
    }

    /// Waits until so many twins are there and have executed what the others have by now; answers up to which slot.
    async fn caught_up(
        &mut self,
        name: &str,
        is_one: impl Fn(ReplicaId) -> bool,
        count: usize,
    ) -> Option<u64> {
        self.look().await;
        let others = self.snapshot.executed(|id| !is_one(id));
        let goal = others.into_iter().max().unwrap_or(0);
        let is_back = |scene: &Scene<'_>| {
            let own = scene.snapshot.executed(&is_one);
            own.len() == count && own.iter().all(|at| *at >= goal)
        };
        let what = format!("{name} catching up");
        let came = self.until(&what, Duration::ZERO, is_back).await;
        came.then_some(goal)
    }

    /// Stops the sessions, reads again what they wrote, checks what they saw.
    ///
    /// # Errors
    /// When a lie cannot be ended, or the check ends with a panic.
    pub async fn finish(mut self) -> anyhow::Result<Findings> {
        self.heal().await?;
        self.look().await;
        self.board.say(
            "   reading every acknowledged write again, and checking everything that clients saw",
        );
        let (record, faults, lost_writes) = self.load.finish().await;
        // The last word of the replicas, after the sessions' last operation.
        self.stage.look(&mut self.evidence).await;
        let history = record.history;
        let check = tokio::task::spawn_blocking(move || history.check(CHECK_STEPS_MAX));
        let linearizable: Linearizable = check.await.context("checking the history")?.into();
        Ok(Findings {
            ready: self.ready,
            operations: record.operations,
            fast_reads: record.fast_reads,
            errors: record.errors,
            first_error: record.first_error,
            linearizable,
            acknowledged_writes: record.kept.len() as u64,
            lost_writes,
            certified_lies: faults.count(ReplicaFault::HostsDisagree)
                + faults.count(ReplicaFault::ContradictsAccepted),
            rejected: faults.seen().collect(),
            longest_stall: record.longest_stall,
            slowest: record.slowest,
            liars: self.liars,
            saboteurs: self.saboteurs,
            lies: self.lies,
            evidence: self.evidence,
            killed: self.ever_killed,
            beyond: self.beyond,
            unmet: self.unmet,
        })
    }
}
