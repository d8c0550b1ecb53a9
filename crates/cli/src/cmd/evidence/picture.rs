//! For people: first a picture of the cluster, then who is named and by whom, then the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Table, presets};
use twinbft_core::audit::What;
use twinbft_evidence::Record;

use super::gather::{Charge, Seen, finding_words};
use super::when::utc;
use crate::cmd::audit::Wrong;

/// Rows of the table; `--json` has everything.
const ROWS_MAX: usize = 60;
/// The width of a twin in the picture.
const CELL: usize = 22;

const HEADINGS: [&str; 9] = [
    "host",
    "twin",
    "kind",
    "slots",
    "times",
    "one digest",
    "other digest",
    "seen by",
    "when (UTC)",
];

/// Everything, as it is printed.
pub fn text(seen: &Seen) -> String {
    let mut text = picture(seen);
    text.push('\n');
    for line in summary(seen) {
        writeln!(text, "{line}").expect("writing to a string does not fail");
    }
    let rows = rows(seen);
    if !rows.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(HEADINGS);
        for row in rows.iter().take(ROWS_MAX) {
            table.add_row(row.cells().map(|(text, right)| {
                let alignment = if right {
                    CellAlignment::Right
                } else {
                    CellAlignment::Left
                };
                Cell::new(text).set_alignment(alignment)
            }));
        }
        writeln!(text, "\n{table}").expect("writing to a string does not fail");
        if let Some(more) = rows.len().checked_sub(ROWS_MAX + 1) {
            writeln!(text, "… and {} more rows; --json has all", more + 1)
                .expect("writing to a string does not fail");
        }
    }
    for problem in seen.problems() {
        writeln!(text, "note: {problem}").expect("writing to a string does not fail");
    }
    text
}

/// A row for each host, a box for each twin.
fn picture(seen: &Seen) -> String {
    let (hosts, twins) = seen.shape();
    let charges = seen.charges();
    let mut text = format!("{:6}", "");
    for twin in 0..twins {
        write!(text, "{:<CELL$}", format!("twin {twin}")).expect("a string");
    }
    text.push('\n');
    for host in 0..hosts {
        let mut line = format!("h{host:<5}");
        for twin in 0..twins {
            let worst = charges
                .get(&(host, twin))
                .and_then(BTreeMap::last_key_value);
            let word = match worst {
                None => "·".to_owned(),
                Some((charge, accusers)) => {
                    let mark = if charge.names() { "✖ " } else { "" };
                    format!("{mark}{} ({}x)", charge.name(), accusers.times())
                }
            };
            write!(line, "{word:<CELL$}").expect("a string");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn summary(seen: &Seen) -> Vec<String> {
    let charges = seen.charges();
    let mut lines = Vec::new();
    let name = |(host, twin): (u8, u8)| format!("h{host}/t{twin}");
    for (twin, of_twin) in &charges {
        for (charge, accusers) in of_twin.iter().rev() {
            let who: Vec<&str> = accusers.who().collect();
            let by = who.join(" and ");
            lines.push(match charge {
                Charge::Culprit => format!(
                    "{} is the culprit, says {by}: the other hosts agree on what it does not say. Rebuild its guest from a clean image.",
                    name(*twin)
                ),
                Charge::Invalid => format!(
                    "{} posted what no correct twin posts, says {by}. Rebuild its guest from a clean image.",
                    name(*twin)
                ),
                Charge::Channel => {
                    format!("{} broke the rules of its channel, says the {by}", name(*twin))
                }
                Charge::Mute => format!(
                    "{} stopped posting, says {by}: look whether it runs",
                    name(*twin)
                ),
            });
        }
    }
    let accuses: BTreeSet<(String, (u8, u8))> = charges
        .iter()
        .filter_map(|(twin, of_twin)| Some((*twin, of_twin.get(&Charge::Culprit)?)))
        .flat_map(|(twin, by)| by.who().map(move |who| (who.to_owned(), twin)))
        .collect();
    for (who, twin) in &accuses {
        let back = (name(*twin), *who < name(*twin));
        let mutual = accuses
            .iter()
            .any(|(w, t)| *w == back.0 && name(*t) == *who);
        if mutual && back.1 {
            lines.push(format!(
                "{who} and {} accuse each other, and one of them lies: the record of their postbox shows which (docs/operations/evidence.md)",
                name(*twin)
            ));
        }
    }
    let kinds = |kind: &str| -> BTreeSet<u8> {
        let of_kind = seen.events().filter(|record| record.kind == kind);
        of_kind.map(|record| record.host).collect()
    };
    for host in kinds("not-deterministic") {
        lines.push(format!(
            "h{host}: no twin matches what the other hosts agree on: service not deterministic?"
        ));
    }
    let named = seen.named();
    for host in kinds("divergence") {
        if !named.iter().any(|(of, _)| *of == host) {
            lines.push(format!(
                "h{host}: its twins disagree, and nobody has said yet who is right"
            ));
        }
    }
    if lines.is_empty() {
        lines.push("Nobody is named.".to_owned());
    }
    lines
}

/// Events of one kind about one twin.
struct Row {
    host: u8,
    twin: Option<u8>,
    kind: String,
    slots: Option<(u64, u64)>,
    times: u64,
    digests: [Option<String>; 2],
    seen_by: String,
    when: String,
}

impl Row {
    fn cells(&self) -> [(String, bool); HEADINGS.len()] {
        let slots = match self.slots {
            None => String::new(),
            Some((first, last)) if first == last => first.to_string(),
            Some((first, last)) => format!("{first}–{last}"),
        };
        let digest = |at: usize| {
            let digest = self.digests[at].as_deref().unwrap_or("");
            digest.chars().take(8).collect::<String>()
        };
        [
            (format!("h{}", self.host), false),
            (
                self.twin
                    .map_or_else(|| "?".to_owned(), |twin| format!("t{twin}")),
                false,
            ),
            (self.kind.clone(), false),
            (slots, true),
            (self.times.to_string(), true),
            (digest(0), false),
            (digest(1), false),
            (self.seen_by.clone(), false),
            (self.when.clone(), false),
        ]
    }
}

fn rows(seen: &Seen) -> Vec<Row> {
    let mut rows = event_rows(seen);
    rows.extend(seen.broker_events().map(|event| Row {
        host: event.host,
        twin: event.twin,
        kind: format!("{}: {}", event.kind, event.text),
        slots: None,
        times: 1,
        digests: [None, None],
        seen_by: format!("broker of h{}", event.host),
        when: utc(event.time_us),
    }));
    rows.extend(record_rows(seen));
    rows.sort_by_key(|row| (row.host, row.twin));
    rows
}

fn event_rows(seen: &Seen) -> Vec<Row> {
    let mut groups: BTreeMap<_, Vec<&Record>> = BTreeMap::new();
    for record in seen.events() {
        let key = (
            record.host,
            record.twin,
            &record.kind,
            &record.detail,
            &record.seen_by,
        );
        groups.entry(key).or_default().push(record);
    }
    let row = |group: Vec<&Record>| {
        let first = *group.first().expect("a group has a member");
        let last = *group.last().expect("a group has a member");
        let slots = group.iter().filter_map(|record| record.slot);
        let range = slots.clone().min().zip(slots.max());
        let detail = match (first.kind.as_str(), &first.detail) {
            ("invalid" | "bad-client" | "divergence", Some(detail)) => format!(": {detail}"),
            _ => String::new(),
        };
        let when = if first.time_us == last.time_us {
            utc(first.time_us)
        } else {
            format!("{} to {}", utc(first.time_us), &utc(last.time_us)[11..])
        };
        Row {
            host: first.host,
            twin: first.twin,
            kind: format!("{}{detail}", first.kind),
            slots: range,
            times: group.iter().map(|record| record.count).max().unwrap_or(0),
            digests: [first.ours.clone(), first.theirs.clone()],
            seen_by: first.seen_by.clone(),
            when,
        }
    };
    groups.into_values().map(row).collect()
}

/// What audits found, by twin and finding.
fn record_rows(seen: &Seen) -> Vec<Row> {
    let mut rows = Vec::new();
    for report in seen.records() {
        let mut groups: BTreeMap<(Option<u8>, String), Row> = BTreeMap::new();
        for (epoch, wrong) in &report.found {
            let Some(host) = report.host_number() else {
                continue;
            };
            let (twin, kind, slot, digests, position) = match wrong {
                Wrong::Entry(finding) => {
                    let (kind, problem) = finding_words(&finding.what);
                    let digests = match &finding.what {
                        What::Divergence { said, .. } => {
                            let mut said = said.iter().map(|(_, digest)| digest.to_string());
                            [said.next(), said.next()]
                        }
                        What::Invalid { .. } | What::Contradiction { .. } => [None, None],
                    };
                    let twin = finding.names_twin().then_some(finding.twin.0);
                    let colon = if problem.is_empty() { "" } else { ": " };
                    let kind = format!("{kind} {}{colon}{problem}", finding.entry);
                    (
                        twin,
                        kind,
                        finding.slot.map(|slot| slot.0),
                        digests,
                        finding.position.0,
                    )
                }
                Wrong::State { position, problem } => (
                    None,
                    format!("state: {problem}"),
                    None,
                    [None, None],
                    position.0,
                ),
            };
            let when = format!("epoch {epoch}, position {position}");
            let row = groups.entry((twin, kind.clone())).or_insert_with(|| Row {
                host,
                twin,
                kind,
                slots: slot.map(|slot| (slot, slot)),
                times: 0,
                digests,
                seen_by: format!("record of h{host}"),
                when: format!("from {when}"),
            });
            row.times += 1;
            row.slots = match (row.slots, slot) {
                (Some((first, last)), Some(slot)) => Some((first.min(slot), last.max(slot))),
                (slots, None) => slots,
                (None, Some(slot)) => Some((slot, slot)),
            };
        }
        rows.extend(groups.into_values());
    }
    rows
}
