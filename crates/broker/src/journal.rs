//! The broker's log lines on standard error, and the recent ones for the status socket. A twin can
//! cause lines but not flood the disk with them.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::json::Object;

/// Events that are kept for the status document.
const RECENT_MAX: usize = 128;
/// Lines of one kind in one second; more are counted, not written.
const LINES_PER_SECOND_MAX: u32 = 20;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One plain line.
    Text,
    /// One JSON object a line.
    Json,
}

struct Event {
    unix_ms: u64,
    kind: &'static str,
    text: String,
}

#[derive(Default)]
struct Rate {
    second: u64,
    lines: u32,
    suppressed: u64,
}

/// Where events go.
pub struct Journal {
    format: LogFormat,
    host: u32,
    recent: VecDeque<Event>,
    /// Keys are the literals in this crate, so it stays small.
    rates: BTreeMap<&'static str, Rate>,
}

impl Journal {
    /// Writes for `host`.
    #[must_use]
    pub fn new(format: LogFormat, host: u32) -> Self {
        Self {
            format,
            host,
            recent: VecDeque::new(),
            rates: BTreeMap::new(),
        }
    }

    /// Something happened that an operator may want to know.
    pub fn event(&mut self, kind: &'static str, text: String) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let rate = self.rates.entry(kind).or_default();
        if rate.second != now.as_secs() {
            (rate.second, rate.lines) = (now.as_secs(), 0);
        }
        rate.lines += 1;
        if rate.lines > LINES_PER_SECOND_MAX {
            rate.suppressed += 1;
            return;
        }
        let text = match std::mem::take(&mut rate.suppressed) {
            0 => text,
            count => format!("{text} (and {count} more of this kind before)"),
        };
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let event = Event {
            unix_ms,
            kind,
            text,
        };
        self.write(&event);
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }

    fn write(&self, event: &Event) {
        let line = match self.format {
            LogFormat::Text => format!(
                "postbox-broker host {}: {}: {}",
                self.host, event.kind, event.text
            ),
            LogFormat::Json => Object::new()
                .raw("unix_ms", event.unix_ms)
                .string("program", "postbox-broker")
                .raw("host", self.host)
                .string("kind", event.kind)
                .string("text", &event.text)
                .end(),
        };
        // A broker whose standard error is gone goes on; its status socket still tells.
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    /// The recent events, oldest first, as JSON objects.
    pub fn recent(&self) -> impl Iterator<Item = String> {
        self.recent.iter().map(|event| {
            Object::new()
                .raw("unix_ms", event.unix_ms)
                .string("kind", event.kind)
                .string("text", &event.text)
                .end()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_is_bounded_in_lines_and_memory() {
        let mut journal = Journal::new(LogFormat::Json, 0);
        for n in 0..10_000 {
            journal.event("flood", format!("line {n}"));
        }
        assert!(journal.recent().count() <= RECENT_MAX);
        journal.event("other", "still heard".to_owned());
        assert!(journal.recent().any(|line| line.contains("still heard")));
    }
}
