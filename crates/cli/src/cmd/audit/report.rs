//! What an audit has found, for people and for programs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use twinbft_core::Output;
use twinbft_core::audit::{Finding, What};
use twinbft_recording::{Damage, End, Joins, SegmentHeader};
use twinbft_types::Position;

/// Findings that are written out for people; all are counted, and JSON has all.
const LINES_MAX: usize = 100;

/// One finding.
#[derive(Debug)]
pub enum Wrong {
    /// An entry.
    Entry(Finding),
    /// What `q` twins together agreed on.
    State {
        /// Where.
        position: Position,
        /// In words.
        problem: &'static str,
    },
}

/// What an audit has found.
#[derive(Debug)]
pub struct Report {
    /// The record.
    pub dir: PathBuf,
    cluster: String,
    host: u32,
    segments: Option<(u64, u64)>,
    /// The epoch of the last segment.
    pub epoch: u64,
    first_position: u64,
    /// Entries that were replayed.
    pub entries: u64,
    gaps: Vec<Value>,
    /// With the epoch, in the order of the log.
    pub found: Vec<(u64, Wrong)>,
    /// Where the record stops being one.
    pub damage: Option<Damage>,
    /// Where it ends.
    pub end: Option<End>,
}

impl Report {
    /// Nothing yet.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            cluster: String::new(),
            host: 0,
            segments: None,
            epoch: 0,
            first_position: 0,
            entries: 0,
            gaps: Vec::new(),
            found: Vec::new(),
            damage: None,
            end: None,
        }
    }

    /// A segment begins.
    pub fn begin(&mut self, header: &SegmentHeader, joins: Joins) {
        if self.segments.is_none() {
            self.cluster.clone_from(&header.cluster_id);
            self.host = header.host;
            self.first_position = header.first_position;
        }
        let first = self.segments.map_or(header.serial, |(first, _)| first);
        self.segments = Some((first, header.serial));
        self.epoch = header.epoch;
        let missing = match joins {
            Joins::First | Joins::Continues => return,
            Joins::Gap { missing } => Some(missing),
            Joins::NewEpoch => None,
        };
        self.gaps.push(json!({
            "epoch": header.epoch,
            "before": header.first_position,
            "missing": missing,
            "new_epoch": missing.is_none(),
        }));
    }

    /// The first entry that no correct twin would have posted.
    fn first(&self) -> Option<&(u64, Wrong)> {
        self.found.iter().find(|(_, wrong)| match wrong {
            Wrong::Entry(finding) => finding.names_twin(),
            Wrong::State { .. } => true,
        })
    }

    /// Whose record it is.
    pub fn host_number(&self) -> Option<u8> {
        u8::try_from(self.host).ok()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let damage = self.damage.as_ref().map(|damage| {
            json!({
                "file": damage.path,
                "offset": damage.offset,
                "problem": damage.problem,
            })
        });
        let found = |(epoch, wrong): &(u64, Wrong)| wrong_json(*epoch, wrong);
        json!({
            "dir": self.dir,
            "cluster": self.cluster,
            "host": self.host,
            "segments": self.segments.map(|(first, last)| [first, last]),
            "first_position": self.first_position,
            "entries": self.entries,
            "end": self.end.map(|end| json!({
                "epoch": end.epoch,
                "position": end.position,
                "chain": end.chain.to_string(),
            })),
            "gaps": self.gaps,
            "damage": damage,
            "findings": self.found.iter().map(found).collect::<Vec<_>>(),
            "first": self.first().map(found),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let dir = self.dir.display();
        let (first, last) = self.segments.unwrap_or_default();
        let mut line = |name: &str, what: String| {
            writeln!(text, "{name:<10} {what}").expect("writing to a string does not fail");
        };
        line(
            "record",
            format!(
                "{dir}: h{} of cluster \"{}\", segments {first} to {last}, {} entries from position {} on",
                self.host, self.cluster, self.entries, self.first_position
            ),
        );
        for gap in &self.gaps {
            let before = &gap["before"];
            line(
                "gap",
                match gap["missing"].as_u64() {
                    Some(missing) => {
                        format!("{missing} entries before position {before} are not in it")
                    }
                    None => format!("epoch {} begins: the log before it was lost", gap["epoch"]),
                },
            );
        }
        match (&self.damage, self.end) {
            (Some(damage), _) => line("damage", format!("{damage}. Nothing after it is believed.")),
            (None, Some(end)) => line(
                "chain",
                format!(
                    "verified up to position {} of epoch {}; last link {}",
                    end.position, end.epoch, end.chain
                ),
            ),
            (None, None) => {}
        }
        for (epoch, wrong) in self.found.iter().take(LINES_MAX) {
            line("finding", self.words(*epoch, wrong));
        }
        if let Some(more) = self.found.len().checked_sub(LINES_MAX + 1) {
            line("finding", format!("and {} more; --json has all", more + 1));
        }
        let verdict = match self.first() {
            Some((epoch, wrong)) => format!(
                "the first that no correct twin would have posted: {}",
                self.words(*epoch, wrong)
            ),
            None if self.found.is_empty() => {
                "there is no entry that a correct twin would not have posted".to_owned()
            }
            None => "twins disagree, and this log alone does not show which one is wrong; \
                     `twinbft evidence` has what the other hosts say"
                .to_owned(),
        };
        line("verdict", verdict);
        text
    }

    fn words(&self, epoch: u64, wrong: &Wrong) -> String {
        let host = self.host;
        match wrong {
            Wrong::State { position, problem } => format!(
                "epoch {epoch}, position {}: the quorum of h{host}'s twins agreed on {problem}",
                position.0
            ),
            Wrong::Entry(finding) => {
                let slot = finding
                    .slot
                    .map_or_else(String::new, |slot| format!(" of slot {}", slot.0));
                let (twin, entry) = (finding.twin.0, finding.entry);
                let place = format!("epoch {epoch}, position {}", finding.position.0);
                match &finding.what {
                    What::Invalid { problem } => {
                        format!("{place}: h{host}/t{twin} posted {entry}{slot}: {problem}")
                    }
                    What::Contradiction { problem, earlier } => {
                        let against = earlier.map_or_else(String::new, |earlier| {
                            format!(" (position {} has the other)", earlier.0)
                        });
                        format!("{place}: h{host}/t{twin} posted {entry}{slot}: {problem}{against}")
                    }
                    What::Divergence { output, said } => {
                        let said: Vec<String> = said
                            .iter()
                            .map(|(twin, digest)| format!("t{} says {digest}", twin.0))
                            .collect();
                        let said = said.join(", ");
                        format!(
                            "{place}: h{host}'s twins disagree about the {}{slot}: {said}",
                            name(*output)
                        )
                    }
                }
            }
        }
    }
}

const fn name(output: Output) -> &'static str {
    match output {
        Output::Results => "results",
        Output::Checkpoint => "checkpoint",
    }
}

fn wrong_json(epoch: u64, wrong: &Wrong) -> Value {
    match wrong {
        Wrong::State { position, problem } => json!({
            "epoch": epoch,
            "position": position.0,
            "kind": "state",
            "problem": problem,
        }),
        Wrong::Entry(finding) => {
            let mut value = json!({
                "epoch": epoch,
                "position": finding.position.0,
                "twin": finding.twin.0,
                "entry": finding.entry,
                "slot": finding.slot.map(|slot| slot.0),
            });
            match &finding.what {
                What::Invalid { problem } => {
                    value["kind"] = json!("invalid");
                    value["problem"] = json!(problem);
                }
                What::Contradiction { problem, earlier } => {
                    value["kind"] = json!("contradiction");
                    value["problem"] = json!(problem);
                    value["earlier"] = json!(earlier.map(|earlier| earlier.0));
                }
                What::Divergence { output, said } => {
                    value["kind"] = json!("divergence");
                    value["output"] = json!(name(*output));
                    let said = said.iter().map(
                        |(twin, digest)| json!({ "twin": twin.0, "digest": digest.to_string() }),
                    );
                    value["said"] = said.collect();
                }
            }
            value
        }
    }
}
