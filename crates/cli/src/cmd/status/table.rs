//! The table for people.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;

use super::{Answer, Asked};

const HEADINGS: [&str; 11] = [
    "host", "process", "role", "state", "view", "executed", "stable", "checked", "diverged",
    "faults", "memory",
];

/// One row for each process.
pub fn table(asked: &[Asked]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(HEADINGS);
    for asked in asked {
        table.add_row(row(asked).map(|(text, right)| {
            let alignment = if right {
                CellAlignment::Right
            } else {
                CellAlignment::Left
            };
            Cell::new(text).set_alignment(alignment)
        }));
    }
    table
}

/// The cells and whether they are numbers.
fn row(asked: &Asked) -> [(String, bool); HEADINGS.len()] {
    let text = |name: &str| {
        let value = asked.field(name).and_then(Value::as_str);
        (value.unwrap_or("").to_owned(), false)
    };
    let number = |name: &str| {
        let value = asked.field(name).and_then(Value::as_u64);
        (
            value.map_or_else(String::new, |value| value.to_string()),
            true,
        )
    };
    let process = asked
        .twin
        .map_or_else(|| "broker".to_owned(), |twin| format!("twin {twin}"));
    let state = match (&asked.answer, asked.twin) {
        (Answer::Unreachable(reason), _) => format!("unreachable: {reason}"),
        (Answer::Elsewhere, _) => "not on this machine".to_owned(),
        (Answer::Document(document), Some(_)) => {
            transfer(document).unwrap_or_else(|| asked.state().unwrap_or("?").to_owned())
        }
        (Answer::Document(document), None) => broker_state(document),
    };
    [
        (format!("h{}", asked.host), false),
        (process, false),
        text("role"),
        (state, false),
        number("view"),
        number("executed"),
        number("stable"),
        number("cross_checked"),
        number("diverged"),
        (faults(asked), true),
        (memory(asked), true),
    ]
}

/// How far the fetch of a checkpoint is, while there is one.
fn transfer(document: &Value) -> Option<String> {
    let transfer = document.get("transfer")?;
    let number = |name: &str| transfer.get(name).and_then(Value::as_u64);
    let (slot, chunks, known) = (number("slot")?, number("chunks")?, number("known")?);
    Some(format!(
        "fetching checkpoint {slot}: {chunks} of {known} chunks"
    ))
}

/// How full the log is and who is connected.
fn broker_state(document: &Value) -> String {
    let number = |name: &str| document.get(name).and_then(Value::as_u64);
    let twins = document.get("twins").and_then(Value::as_array);
    let connected = twins.into_iter().flatten();
    let connected = connected
        .filter(|twin| twin.get("connected") == Some(&Value::Bool(true)))
        .count();
    let epoch = number("epoch").unwrap_or(0);
    let entries = number("tail").unwrap_or(0);
    let fill = match (number("live_bytes"), number("log_bytes")) {
        (Some(live), Some(all)) if all > 0 => {
            format!(", log {} % full", live.saturating_mul(100) / all)
        }
        _ => String::new(),
    };
    format!("epoch {epoch}, {entries} entries, {connected} twins connected{fill}")
}

/// The number of dropped inputs of all kinds.
fn faults(asked: &Asked) -> String {
    let Some(faults) = asked.field("faults").and_then(Value::as_object) else {
        return String::new();
    };
    let counts = faults.values().filter_map(Value::as_u64);
    counts.fold(0_u64, u64::saturating_add).to_string()
}

fn memory(asked: &Asked) -> String {
    let bytes = asked.field("rss_bytes").and_then(Value::as_u64);
    bytes.map_or_else(String::new, |bytes| format!("{} MB", bytes / 1_000_000))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(twin: Option<u8>, answer: Answer) -> Asked {
        Asked {
            host: 1,
            twin,
            answer,
        }
    }

    #[test]
    fn a_replica_a_broker_and_one_that_does_not_answer() {
        let replica = json!({
            "state": "running", "role": "leader", "view": 4, "executed": 120, "stable": 0,
            "cross_checked": 240, "diverged": 1, "faults": {"bad_mac": 2, "unknown_client": 1},
            "rss_bytes": 12_345_678,
        });
        let broker = json!({
            "epoch": 2, "tail": 77, "live_bytes": 50, "log_bytes": 200,
            "twins": [{"connected": true}, {"connected": false}],
        });
        let text = table(&[
            asked(None, Answer::Document(broker)),
            asked(Some(0), Answer::Document(replica)),
            asked(
                Some(1),
                Answer::Unreachable("connection refused".to_owned()),
            ),
        ])
        .to_string();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], HEADINGS);
        assert!(
            text.contains("epoch 2, 77 entries, 1 twins connected, log 25 % full"),
            "{text}"
        );
        assert_eq!(
            lines[2],
            [
                "h1", "twin", "0", "leader", "running", "4", "120", "0", "240", "1", "3", "12",
                "MB"
            ]
        );
        assert!(text.contains("unreachable: connection refused"));
    }

    #[test]
    fn a_strange_document_is_no_reason_to_fail() {
        for document in [
            json!(null),
            json!([]),
            json!({"faults": 3, "view": -1, "state": {}}),
            json!({"twins": {}}),
        ] {
            for twin in [None, Some(0)] {
                let text = table(&[asked(twin, Answer::Document(document.clone()))]).to_string();
                assert_eq!(text.lines().count(), 2);
            }
        }
    }
}
