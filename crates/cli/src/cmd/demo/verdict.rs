//! What the demonstration has found, and whether all of it is as it must be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use twinbft_client::history;
use twinbft_types::ReplicaId;

use super::view::Evidence;

/// What one lie came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lie {
    /// Who lied.
    pub twin: ReplicaId,
    /// Slots whose results its host found to differ, and withheld.
    pub withheld: u64,
    /// Results that its host certified all the same.
    pub certified: u64,
    /// Replies that its honest siblings sent all the same.
    pub replies: u64,
    /// Whether its host certified results again afterwards; `None` when it was killed before it could.
    pub certifies_again: Option<bool>,
}

/// Whether some order of the operations explains everything that clients saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linearizable {
    /// It does.
    Yes,
    /// None does, and where.
    No(String),
    /// The search was cut off.
    Undecided(String),
}

impl From<history::Verdict> for Linearizable {
    fn from(verdict: history::Verdict) -> Self {
        match verdict {
            history::Verdict::Linearizable => Self::Yes,
            history::Verdict::Violated(violation) => Self::No(violation.to_string()),
            history::Verdict::Undecided { key } => Self::Undecided(format!(
                "the search was cut off for the key {}",
                String::from_utf8_lossy(&key)
            )),
        }
    }
}

/// Everything that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// From nothing to a cluster of which every process is ready.
    pub ready: Duration,
    /// Operations with a certified answer.
    pub operations: u64,
    /// Fast reads among them that needed no ordering.
    pub fast_reads: u64,
    /// Operations without one.
    pub errors: u64,
    /// The first of those.
    pub first_error: Option<String>,
    /// Of everything that was recorded.
    pub linearizable: Linearizable,
    /// Writes of keys of their own that were acknowledged.
    pub acknowledged_writes: u64,
    /// Those of them that were not there at the end; `None` when nobody could tell.
    pub lost_writes: Option<u64>,
    /// Replies that clients dropped, by what was wrong with them.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Wrong results that a whole host had certified.
    pub certified_lies: u64,
    /// The longest time without any answer while all sessions were asking.
    pub longest_stall: Duration,
    /// The slowest operation that was answered.
    pub slowest: Duration,
    /// Who was to lie.
    pub liars: BTreeSet<ReplicaId>,
    /// Who misbehaved in another way, and may be named for it.
    pub saboteurs: BTreeSet<ReplicaId>,
    /// What came of it.
    pub lies: Vec<Lie>,
    /// What the replicas say about each other.
    pub evidence: Evidence,
    /// Hosts that were killed.
    pub killed: BTreeSet<u8>,
    /// What was done, on request, that leaves clients without answers; safety is promised all the same.
    pub beyond: Option<String>,
    /// What did not happen in time.
    pub unmet: Vec<String>,
}

impl Findings {
    /// Everything that is not as it must be; empty when the demonstration has shown what it claims.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.unmet.clone();
        self.add_client_problems(&mut problems);
        self.add_blame_problems(&mut problems);
        for lie in &self.lies {
            let host = lie.twin.host;
            if lie.certified > 0 || lie.replies > 0 {
                problems.push(format!(
                    "{host} let out {} results and {} replies while {} lied",
                    lie.certified, lie.replies, lie.twin
                ));
            }
            if lie.certifies_again == Some(false) && self.beyond.is_none() {
                problems.push(format!(
                    "{host} did not certify results again after {} had lied",
                    lie.twin
                ));
            }
        }
        problems
    }

    fn add_client_problems(&self, problems: &mut Vec<String>) {
        if self.certified_lies > 0 {
            problems.push(format!(
                "clients got {} replies of whole hosts that contradict the others",
                self.certified_lies
            ));
        }
        if self.operations == 0 {
            problems.push("no operation was answered".to_owned());
        }
        // Safety is promised always, answers only to clients of a cluster that is not asked too much.
        if self.errors > 0 && self.beyond.is_none() {
            let first = self.first_error.as_deref().unwrap_or("unknown");
            problems.push(format!(
                "{} operations failed at a client; the first: {first}",
                self.errors
            ));
        }
        match &self.linearizable {
            Linearizable::Yes => {}
            Linearizable::No(why) => problems.push(why.clone()),
            Linearizable::Undecided(why) => {
                problems.push(format!("linearizable or not is undecided: {why}"))
            }
        }
        match self.lost_writes {
            Some(0) => {}
            Some(lost) => problems.push(format!("{lost} acknowledged writes are lost")),
            None if self.beyond.is_some() => {}
            None => problems.push("the acknowledged writes could not be read again".to_owned()),
        }
    }

    /// Whoever lied must be named, by somebody else, and nobody else may be.
    fn add_blame_problems(&self, problems: &mut Vec<String>) {
        for liar in &self.liars {
            let by = self.evidence.accused.get(liar);
            if !by.is_some_and(|by| by.iter().any(|by| *by != liar.to_string())) {
                problems.push(format!(
                    "{liar} was to lie, and nobody named it as the culprit"
                ));
            }
        }
        for (accused, by) in &self.evidence.accused {
            if !self.liars.contains(accused) && !self.saboteurs.contains(accused) {
                let by: Vec<&str> = by.iter().map(String::as_str).collect();
                problems.push(format!(
                    "{accused} did not lie and was named as a culprit by {}",
                    by.join(", ")
                ));
            }
        }
        for host in &self.evidence.diverged {
            let mut suspects = self.liars.iter().chain(&self.saboteurs);
            if !suspects.any(|liar| liar.host.0 == *host) {
                problems.push(format!(
                    "the twins of h{host} disagreed, and neither was to lie"
                ));
            }
        }
        for replica in &self.evidence.not_deterministic {
            problems.push(format!(
                "{replica} found that the service is not deterministic"
            ));
        }
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let problems = self.problems();
        let accused: Vec<String> = self
            .evidence
            .accused
            .keys()
            .map(ToString::to_string)
            .collect();
        let (linearizable, why) = match &self.linearizable {
            Linearizable::Yes => (Some(true), None),
            Linearizable::No(why) => (Some(false), Some(why)),
            Linearizable::Undecided(why) => (None, Some(why)),
        };
        let lies: Vec<Value> = self
            .lies
            .iter()
            .map(|lie| {
                json!({
                    "twin": lie.twin.to_string(),
                    "slots_withheld": lie.withheld,
                    "results_certified": lie.certified,
                    "replies_sent": lie.replies,
                    "certifies_again": lie.certifies_again,
                })
            })
            .collect();
        let liars: Vec<String> = self.liars.iter().map(ToString::to_string).collect();
        let killed: Vec<String> = self.killed.iter().map(|host| format!("h{host}")).collect();
        json!({
            "ok": problems.is_empty(),
            "problems": problems,
            "ready_ms": millis(self.ready),
            "operations": self.operations,
            "fast_reads": self.fast_reads,
            "errors": self.errors,
            "first_error": self.first_error,
            "linearizable": linearizable,
            "not_linearizable_because": why,
            "acknowledged_writes": self.acknowledged_writes,
            "lost_writes": self.lost_writes,
            "rejected_replies": self.rejected,
            "certified_lies": self.certified_lies,
            "longest_stall_ms": millis(self.longest_stall),
            "slowest_operation_ms": millis(self.slowest),
            "liars": liars,
            "culprits": accused,
            "lies": lies,
            "killed": killed,
            "beyond": self.beyond,
            "isolation": "simulated: the twins share this kernel",
        })
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines: Vec<(&str, String)> = Vec::new();
        let errors = if self.errors == 1 {
            "1 error"
        } else {
            &format!("{} errors", self.errors)
        };
        lines.push((
            "operations",
            format!(
                "{} answered, {} of them fast reads; {errors} at clients",
                self.operations, self.fast_reads
            ),
        ));
        lines.push((
            "linearizable",
            match &self.linearizable {
                Linearizable::Yes => "yes, by a check of everything that clients saw".to_owned(),
                Linearizable::No(_) => "NO".to_owned(),
                Linearizable::Undecided(_) => "UNDECIDED".to_owned(),
            },
        ));
        let lost = self.lost_writes.map_or_else(
            || "an unknown number of".to_owned(),
            |lost| lost.to_string(),
        );
        lines.push((
            "lost",
            format!(
                "{lost} of {} acknowledged writes, all read again at the end",
                self.acknowledged_writes
            ),
        ));
        lines.push((
            "longest stall",
            format!(
                "{} ms without an answer; the slowest operation took {} ms",
                millis(self.longest_stall),
                millis(self.slowest)
            ),
        ));
        lines.push(("culprit", self.culprit()));
        for lie in &self.lies {
            lines.push((
                "withheld",
                format!(
                    "the results of {} slots by {}, whose honest twin sent {} replies while {} lied; the host {} afterwards",
                    lie.withheld,
                    lie.twin.host,
                    lie.certified.max(lie.replies),
                    lie.twin,
                    match lie.certifies_again {
                        Some(true) => "certified again",
                        Some(false) => "was SILENT",
                        None => "was killed",
                    },
                ),
            ));
        }
        if !self.rejected.is_empty() {
            let rejected = self.rejected.iter();
            let rejected: Vec<String> = rejected
                .map(|(name, count)| format!("{count} {name}"))
                .collect();
            lines.push((
                "rejected",
                format!(
                    "by clients: {} (a liar's own words lack its sibling's signature)",
                    rejected.join(", ")
                ),
            ));
        }
        if !self.killed.is_empty() {
            let killed: Vec<String> = self.killed.iter().map(|host| format!("h{host}")).collect();
            lines.push(("killed", format!("{}, by SIGKILL", killed.join(", "))));
        }
        lines.push((
            "isolation",
            "simulated: the twins share this kernel".to_owned(),
        ));
        let mut text = String::from("Verdict\n");
        for (name, value) in lines {
            writeln!(text, "  {name:<14} {value}").expect("writing to a string");
        }
        if let Some(beyond) = &self.beyond {
            writeln!(
                text,
                "{beyond}: from then on answers were not promised, everything else was."
            )
            .expect("writing to a string");
        }
        let problems = self.problems();
        if problems.is_empty() {
            text.push_str("All is as it must be.");
        } else {
            text.push_str("NOT as it must be:");
            for problem in problems {
                write!(text, "\n  - {problem}").expect("writing to a string");
            }
        }
        text
    }

    fn culprit(&self) -> String {
        if self.evidence.accused.is_empty() {
            return "nobody was named".to_owned();
        }
        let named: Vec<String> = self
            .evidence
            .accused
            .iter()
            .map(|(accused, by)| {
                let by: Vec<&str> = by.iter().map(String::as_str).collect();
                format!("{accused}, named by {}", by.join(" and "))
            })
            .collect();
        named.join("; ")
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIAR: ReplicaId = ReplicaId::new(1, 1);

    fn good() -> Findings {
        Findings {
            ready: Duration::from_millis(100),
            operations: 1000,
            fast_reads: 100,
            errors: 0,
            first_error: None,
            linearizable: Linearizable::Yes,
            acknowledged_writes: 200,
            lost_writes: Some(0),
            rejected: BTreeMap::new(),
            certified_lies: 0,
            longest_stall: Duration::from_millis(31),
            slowest: Duration::from_millis(47),
            liars: BTreeSet::from([LIAR]),
            saboteurs: BTreeSet::new(),
            lies: vec![Lie {
                twin: LIAR,
                withheld: 40,
                certified: 0,
                replies: 0,
                certifies_again: Some(true),
            }],
            evidence: Evidence {
                accused: BTreeMap::from([(
                    LIAR,
                    BTreeSet::from(["h1/t0".to_owned(), "h1/t1".to_owned()]),
                )]),
                diverged: BTreeSet::from([1]),
                not_deterministic: BTreeSet::new(),
            },
            killed: BTreeSet::from([2]),
            beyond: None,
            unmet: Vec::new(),
        }
    }

    #[test]
    fn a_good_run_has_no_problems_and_says_everything() {
        let good = good();
        assert_eq!(good.problems(), Vec::<String>::new());
        let json = good.json();
        assert_eq!(json["ok"], true);
        assert_eq!(json["culprits"], json!(["h1/t1"]));
        assert_eq!(json["lost_writes"], 0);
        assert_eq!(json["longest_stall_ms"], 31);
        let text = good.text();
        for part in [
            "1000 answered",
            "0 errors",
            "yes",
            "0 of 200",
            "31 ms without an answer; the slowest operation took 47 ms",
            "h1/t1, named by h1/t0",
            "simulated",
            "All is as it must be.",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    /// Each of these alone must spoil the verdict.
    #[test]
    fn whatever_is_not_as_it_must_be_is_found() {
        let lie =
            |change: fn(&mut Lie)| move |findings: &mut Findings| change(&mut findings.lies[0]);
        type Spoil = Box<dyn Fn(&mut Findings)>;
        let cases: Vec<(Spoil, &str)> = vec![
            (Box::new(|f| f.evidence.accused.clear()), "nobody named it"),
            (
                Box::new(|f| {
                    f.evidence
                        .accused
                        .insert(LIAR, BTreeSet::from([LIAR.to_string()]));
                }),
                "nobody named it",
            ),
            (
                Box::new(|f| {
                    let by = BTreeSet::from(["h1/t1".to_owned()]);
                    f.evidence.accused.insert(ReplicaId::new(1, 0), by);
                }),
                "h1/t0 did not lie and was named as a culprit by h1/t1",
            ),
            (
                Box::new(|f| {
                    f.evidence.diverged.insert(0);
                }),
                "the twins of h0 disagreed",
            ),
            (
                Box::new(|f| {
                    f.evidence.not_deterministic.insert(LIAR);
                }),
                "not deterministic",
            ),
            (
                Box::new(|f| {
                    f.errors = 1;
                    f.first_error = Some("timed out".to_owned());
                }),
                "1 operations failed at a client; the first: timed out",
            ),
            (
                Box::new(|f| f.certified_lies = 1),
                "1 replies of whole hosts that contradict",
            ),
            (Box::new(|f| f.operations = 0), "no operation was answered"),
            (
                Box::new(|f| f.linearizable = Linearizable::No("no place".to_owned())),
                "no place",
            ),
            (
                Box::new(|f| f.linearizable = Linearizable::Undecided("k".to_owned())),
                "undecided: k",
            ),
            (
                Box::new(|f| f.lost_writes = Some(3)),
                "3 acknowledged writes are lost",
            ),
            (
                Box::new(|f| f.lost_writes = None),
                "could not be read again",
            ),
            (Box::new(lie(|l| l.certified = 1)), "let out 1 results"),
            (Box::new(lie(|l| l.replies = 2)), "and 2 replies"),
            (
                Box::new(lie(|l| l.certifies_again = Some(false))),
                "did not certify",
            ),
            (
                Box::new(|f| f.unmet.push("it took too long".to_owned())),
                "took too long",
            ),
        ];
        for (spoil, expected) in cases {
            let mut findings = good();
            spoil(&mut findings);
            let problems = findings.problems();
            assert_eq!(problems.len(), 1, "{expected}: {problems:?}");
            assert!(problems[0].contains(expected), "{expected}: {problems:?}");
            assert_eq!(findings.json()["ok"], false);
            assert!(findings.text().contains("NOT as it must be"));
        }
    }

    #[test]
    fn beyond_what_it_tolerates_answers_are_not_promised_and_safety_is() {
        let mut findings = good();
        findings.beyond = Some("h0 was killed".to_owned());
        findings.errors = 9;
        findings.lost_writes = None;
        assert_eq!(findings.problems(), Vec::<String>::new());
        findings.lost_writes = Some(1);
        assert_eq!(findings.problems().len(), 1);
    }

    #[test]
    fn the_real_checker_has_the_last_word() {
        use bytes::Bytes;
        use twinbft_client::history::{Action, End, History, Observed};
        let mut history = History::new();
        let key = Bytes::from_static(b"k");
        let write = history.begin(0, key.clone(), Action::Write(Bytes::from_static(b"a")));
        history.end(write, End::Observed(Observed::Written));
        assert_eq!(Linearizable::from(history.check(100)), Linearizable::Yes);
        let read = history.begin(0, key, Action::Read);
        history.end(read, End::Observed(Observed::Value(None)));
        assert!(matches!(
            Linearizable::from(history.check(100)),
            Linearizable::No(_)
        ));
        assert!(matches!(
            Linearizable::from(history.check(1)),
            Linearizable::Undecided(_)
        ));
    }
}
