//! What a run of chaos has found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use twinbft_types::ReplicaId;

use crate::cmd::demo::verdict::Linearizable;
use crate::cmd::demo::view::Evidence;

/// Everything that counts.
#[derive(Clone, Debug)]
pub struct Report {
    /// What all faults were drawn from.
    pub seed: u64,
    /// `N`.
    pub hosts: u8,
    /// `m`.
    pub twins: u8,
    /// The network's short name, and what it is.
    pub network: (&'static str, String),
    /// How busy the machine was at the start and at the end, as it says itself: time-outs mean less when it is overloaded.
    pub load_averages: [String; 2],
    /// How long it took.
    pub elapsed: Duration,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Operations with a certified answer.
    pub operations: u64,
    /// Operations without one, and the first of those.
    pub errors: (u64, Option<String>),
    /// Of everything that clients saw.
    pub linearizable: Linearizable,
    /// Writes that were acknowledged once, and those of them that were gone at the end (`None`: nobody could tell).
    pub writes: (u64, Option<u64>),
    /// The longest time without any answer, and what was done meanwhile.
    pub longest_stall: (Duration, String),
    /// The highest view.
    pub view: u64,
    /// Twins that were Byzantine.
    pub liars: BTreeSet<ReplicaId>,
    /// What the replicas say of each other.
    pub evidence: Evidence,
    /// What makes the same happen again.
    pub repeat: String,
    /// What did not become whole again, or could not be done.
    pub unmet: Vec<String>,
}

impl Report {
    /// Everything that is not as it must be.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.unmet.clone();
        if self.operations == 0 {
            problems.push("no operation was answered".to_owned());
        }
        if let (count @ 1.., first) = &self.errors {
            let first = first.as_deref().unwrap_or("unknown");
            problems.push(format!(
                "{count} operations failed at a client; the first: {first}"
            ));
        }
        match &self.linearizable {
            Linearizable::Yes => {}
            Linearizable::No(why) => problems.push(format!("not linearizable: {why}")),
            Linearizable::Undecided(why) => problems.push(format!("undecided: {why}")),
        }
        match self.writes.1 {
            Some(0) => {}
            Some(lost) => problems.push(format!("{lost} acknowledged writes are lost")),
            None => problems.push("the acknowledged writes could not be read again".to_owned()),
        }
        for accused in self.false_culprits() {
            problems.push(format!(
                "{accused} was never Byzantine and was named as a culprit"
            ));
        }
        for replica in &self.evidence.not_deterministic {
            problems.push(format!("{replica} found the service not deterministic"));
        }
        problems
    }

    fn false_culprits(&self) -> impl Iterator<Item = &ReplicaId> {
        let accused = self.evidence.accused.keys();
        accused.filter(|accused| !self.liars.contains(accused))
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let problems = self.problems();
        let linearizable = match &self.linearizable {
            Linearizable::Yes => Some(true),
            Linearizable::No(_) => Some(false),
            Linearizable::Undecided(_) => None,
        };
        json!({
            "ok": problems.is_empty(),
            "problems": problems,
            "seed": self.seed,
            "hosts": self.hosts,
            "twins": self.twins,
            "network": self.network.0,
            "network_means": self.network.1,
            "load_averages": self.load_averages,
            "seconds": self.elapsed.as_secs_f64(),
            "faults": self.faults,
            "operations": self.operations,
            "errors": self.errors.0,
            "linearizable": linearizable,
            "acknowledged_writes": self.writes.0,
            "lost_writes": self.writes.1,
            "longest_stall_ms": u64::try_from(self.longest_stall.0.as_millis()).unwrap_or(u64::MAX),
            "longest_stall_during": self.longest_stall.1,
            "view": self.view,
            "byzantine": self.liars.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "false_culprits": self.false_culprits().map(ToString::to_string).collect::<Vec<_>>(),
            "named": self.evidence.accused.keys().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let faults: Vec<String> = self
            .faults
            .iter()
            .map(|(kind, n)| format!("{n} {kind}"))
            .collect();
        let linearizable = match &self.linearizable {
            Linearizable::Yes => "yes",
            Linearizable::No(_) => "NO",
            Linearizable::Undecided(_) => "UNDECIDED",
        };
        let lost = self
            .writes
            .1
            .map_or_else(|| "unknown".to_owned(), |lost| lost.to_string());
        let mut text = format!(
            "Chaos, seed {}, {} hosts x {} twins, {:.0} s\n  \
             network          {}\n  \
             load average     {} at the start, {} at the end\n  \
             injected         {}\n  \
             operations       {} answered, {} errors at clients\n  \
             linearizable     {linearizable}, per key, by a check of everything that clients saw\n  \
             lost             {lost} of {} acknowledged writes\n  \
             longest stall    {} ms, during: {}\n  \
             views            {}\n  \
             false culprits   {}\n",
            self.seed,
            self.hosts,
            self.twins,
            self.elapsed.as_secs_f64(),
            self.network.1,
            self.load_averages[0],
            self.load_averages[1],
            faults.join(", "),
            self.operations,
            self.errors.0,
            self.writes.0,
            self.longest_stall.0.as_millis(),
            self.longest_stall.1,
            self.view,
            self.false_culprits().count(),
        );
        let problems = self.problems();
        if problems.is_empty() {
            text += "All is as it must be.";
        } else {
            text += "Not as it must be:";
            for problem in problems {
                text += &format!("\n  - {problem}");
            }
            text += &format!("\nRepeat with: scripts/chaos {}", self.repeat);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            seed: 3,
            hosts: 3,
            twins: 2,
            network: ("proxy", "a proxy".to_owned()),
            load_averages: ["0.50".to_owned(), "1.50".to_owned()],
            elapsed: Duration::from_secs(60),
            faults: BTreeMap::from([("kill-twin", 2)]),
            operations: 100,
            errors: (0, None),
            linearizable: Linearizable::Yes,
            writes: (40, Some(0)),
            longest_stall: (Duration::from_millis(700), "SIGKILL to h0/t0".to_owned()),
            view: 2,
            liars: BTreeSet::from([ReplicaId::new(1, 1)]),
            evidence: Evidence::default(),
            repeat: "--seed 3".to_owned(),
            unmet: Vec::new(),
        }
    }

    #[test]
    fn a_clean_run_has_no_problems_and_each_fault_of_it_is_one() {
        assert_eq!(report().problems(), Vec::<String>::new());
        let by = BTreeSet::from(["h1/t0".to_owned()]);
        let mut rightly = report();
        rightly
            .evidence
            .accused
            .insert(ReplicaId::new(1, 1), by.clone());
        assert_eq!(rightly.problems(), Vec::<String>::new());
        let mut wrongly = report();
        wrongly.evidence.accused.insert(ReplicaId::new(2, 0), by);
        let bad = [
            wrongly,
            Report {
                errors: (1, Some("timed out".to_owned())),
                ..report()
            },
            Report {
                linearizable: Linearizable::No("x".to_owned()),
                ..report()
            },
            Report {
                linearizable: Linearizable::Undecided("x".to_owned()),
                ..report()
            },
            Report {
                writes: (40, Some(1)),
                ..report()
            },
            Report {
                writes: (40, None),
                ..report()
            },
            Report {
                operations: 0,
                ..report()
            },
            Report {
                unmet: vec!["h0 did not come back".to_owned()],
                ..report()
            },
        ];
        for report in bad {
            assert_eq!(report.problems().len(), 1, "{report:?}");
            assert_eq!(report.json()["ok"], false);
            assert!(report.text().contains("--seed 3"));
        }
    }
}
