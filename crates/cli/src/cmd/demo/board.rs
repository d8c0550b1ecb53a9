//! What people see: lines that stay, and below them a table that is drawn again in place on a terminal.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write};

use comfy_table::{Cell, CellAlignment, Table, presets};

use twinbft_types::ReplicaId;

use super::director::WRONG_RESULT;
use super::view::{Snapshot, TwinView};

const HEADINGS: [&str; 8] = [
    "host",
    "role",
    "twins",
    "view",
    "executed",
    "cross-checked",
    "diverged",
    "state",
];

/// The screen, or the file that takes its place.
pub struct Board {
    out: Box<dyn Write + Send>,
    /// Whether a table can be drawn over the one before.
    is_live: bool,
    /// Lines of the table that is drawn at the moment.
    drawn: usize,
}

impl Board {
    /// On the standard output, or on the standard error when that is for a document. `live` tables are drawn
    /// again and again if it is a terminal.
    pub fn new(to_stderr: bool, live: bool) -> Self {
        let (out, is_terminal): (Box<dyn Write + Send>, bool) = if to_stderr {
            (Box::new(std::io::stderr()), std::io::stderr().is_terminal())
        } else {
            (Box::new(std::io::stdout()), std::io::stdout().is_terminal())
        };
        Self {
            out,
            is_live: live && is_terminal,
            drawn: 0,
        }
    }

    /// Lines that stay.
    pub fn say(&mut self, text: &str) {
        let text = format!("{}{text}\n", self.erase());
        self.put(&text);
    }

    /// The table of this moment, if tables are live.
    pub fn draw(&mut self, text: &str) {
        if self.is_live {
            // Lines that are too long for the terminal are cut, or the count of them would be wrong.
            let drawing = format!("{}\x1b[?7l{text}\n\x1b[?7h", self.erase());
            self.put(&drawing);
            self.drawn = text.lines().count();
        }
    }

    /// The table of this moment, to stay.
    pub fn show(&mut self, text: &str) {
        self.say(&format!("{text}\n"));
    }

    /// A question without a line end.
    pub fn ask(&mut self, text: &str) {
        let text = format!("{}{text}", self.erase());
        self.put(&text);
    }

    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    fn put(&mut self, text: &str) {
        // Whoever closed it does not want to know, and the demonstration has to clean up all the same.
        let _written = self.out.write_all(text.as_bytes());
        let _flushed = self.out.flush();
    }
}

/// A row for each host. `killed` were killed on purpose.
pub fn table(snapshot: &Snapshot, killed: &BTreeSet<u8>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(HEADINGS);
    let hosts: BTreeSet<u8> = snapshot.twins.keys().map(|id| id.host.0).collect();
    for host in hosts {
        let cells = row(snapshot, host, killed.contains(&host));
        table.add_row(cells.into_iter().enumerate().map(|(column, text)| {
            let alignment = if (3..=6).contains(&column) {
                CellAlignment::Right
            } else {
                CellAlignment::Left
            };
            Cell::new(text).set_alignment(alignment)
        }));
    }
    table.to_string()
}

fn row(snapshot: &Snapshot, host: u8, is_killed: bool) -> [String; HEADINGS.len()] {
    let answering: Vec<_> = snapshot.of_host(host).collect();
    let expected = snapshot.twins.keys().filter(|id| id.host.0 == host).count();
    let number = |pick: fn(&super::view::TwinView) -> u64, largest: bool| {
        let numbers = answering.iter().map(|(_, view)| pick(view));
        let picked = if largest {
            numbers.max()
        } else {
            numbers.min()
        };
        picked.map_or_else(|| "-".to_owned(), |number| number.to_string())
    };
    let is_primary = answering
        .iter()
        .any(|(_, view)| view.role == "leader" || view.role == "follower");
    let role = match (answering.is_empty(), is_primary) {
        (true, _) => "-",
        (false, true) => "primary",
        (false, false) => "backup",
    };
    let doing = |id: &ReplicaId, view: &TwinView| match view.double.as_deref()? {
        WRONG_RESULT => Some(format!("{id} LIES")),
        other => Some(format!("{id}: {other}")),
    };
    let liars: Vec<String> = answering
        .iter()
        .filter_map(|(id, view)| doing(id, view))
        .collect();
    let state = if is_killed {
        "down (killed)".to_owned()
    } else if !liars.is_empty() {
        liars.join(", ")
    } else if answering.len() < expected || !snapshot.brokers.contains(&host) {
        "not complete".to_owned()
    } else if let Some((id, view)) = answering.iter().find(|(_, view)| view.state != "running") {
        format!("{id} {}", view.state)
    } else {
        "twins agree".to_owned()
    };
    [
        format!("h{host}"),
        role.to_owned(),
        format!("{}/{expected}", answering.len()),
        number(|view| view.view, true),
        number(|view| view.executed, false),
        number(|view| view.cross_checked, false),
        number(|view| view.diverged, true),
        state,
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use twinbft_types::ReplicaId;

    use super::super::view::TwinView;
    use super::*;

    fn view(role: &str, double: Option<&str>) -> Option<TwinView> {
        Some(TwinView {
            role: role.to_owned(),
            state: "running".to_owned(),
            executed: 12,
            cross_checked: 34,
            diverged: u64::from(double.is_some()),
            double: double.map(str::to_owned),
            ..TwinView::default()
        })
    }

    #[test]
    fn the_table_tells_who_leads_who_lies_and_who_is_down() {
        let snapshot = Snapshot {
            twins: BTreeMap::from([
                (ReplicaId::new(0, 0), view("leader", None)),
                (ReplicaId::new(0, 1), view("follower", None)),
                (ReplicaId::new(1, 0), view("backup", None)),
                (ReplicaId::new(1, 1), view("backup", Some("wrong-result"))),
                (ReplicaId::new(2, 0), None),
                (ReplicaId::new(2, 1), None),
            ]),
            brokers: BTreeSet::from([0, 1]),
        };
        let text = table(&snapshot, &BTreeSet::from([2]));
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "host role twins view executed cross-checked diverged state",
                "h0 primary 2/2 0 12 34 0 twins agree",
                "h1 backup 2/2 0 12 34 1 h1/t1 LIES",
                "h2 - 0/2 - - - - down (killed)",
            ]
        );
    }

    /// A screen that can be looked at.
    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_live_table_is_drawn_over_and_lines_stay_above() {
        for (is_live, expected) in [
            (
                true,
                "\x1b[?7la\nb\n\x1b[?7h\x1b[2A\x1b[Jline\n\x1b[?7lc\n\x1b[?7h",
            ),
            (false, "line\n"),
        ] {
            let screen = Screen::default();
            let mut board = Board {
                out: Box::new(screen.clone()),
                is_live,
                drawn: 0,
            };
            board.draw("a\nb");
            board.say("line");
            board.draw("c");
            let text = String::from_utf8(screen.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text, expected);
        }
    }
}
