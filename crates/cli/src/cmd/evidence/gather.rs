//! Everything that was seen, from wherever it can be had. What a replica sends is its word and no more: an event that
//! is not about its own host is no event.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};
use twinbft_cli::cluster::Cluster;
use twinbft_core::audit::What;
use twinbft_evidence::Record;

use crate::cmd::audit::{Report, Wrong, audit};
use crate::cmd::status::{Answer, Asked};

/// The longest word of a replica that is shown.
const TEXT_CHARS_MAX: usize = 200;

/// Something that a broker says of a twin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BrokerEvent {
    /// Whose postbox.
    pub host: u8,
    /// The twin, when it says which.
    pub twin: Option<u8>,
    /// Microseconds since the Unix epoch.
    pub time_us: u64,
    /// `twin-fault` or `rejected`.
    pub kind: String,
    /// In words.
    pub text: String,
}

/// What makes people look at a twin, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Charge {
    /// It stopped posting: it may be dead, and need not lie.
    Mute,
    /// It broke the rules of the channel to its broker.
    Channel,
    /// It posted what no correct twin posts.
    Invalid,
    /// `Q` hosts agree and it does not.
    Culprit,
}

impl Charge {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mute => "mute",
            Self::Channel => "broke its channel",
            Self::Invalid => "INVALID",
            Self::Culprit => "CULPRIT",
        }
    }

    /// Whether it says that the twin is faulty, and not only that it is silent.
    pub const fn names(self) -> bool {
        !matches!(self, Self::Mute)
    }
}

/// Who says so, and how often: replicas, `broker of h0`, or `record of h0`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accusers(BTreeMap<String, u64>);

impl Accusers {
    /// Their names.
    pub fn who(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// How often the one says so that says it most.
    pub fn times(&self) -> u64 {
        self.0.values().copied().max().unwrap_or(0)
    }
}

/// Everything that was seen.
pub struct Seen {
    cluster: String,
    hosts: u8,
    twins: u8,
    events: BTreeSet<Record>,
    broker_events: BTreeSet<BrokerEvent>,
    records: Vec<Report>,
    /// What could not be read or makes no sense.
    problems: Vec<String>,
}

impl Seen {
    /// Nothing yet.
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            cluster: cluster.config.cluster.id.clone(),
            hosts: cluster.config.host_count(),
            twins: cluster.config.twin_count(),
            events: BTreeSet::new(),
            broker_events: BTreeSet::new(),
            records: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// `N` and `m`.
    pub const fn shape(&self) -> (u8, u8) {
        (self.hosts, self.twins)
    }

    /// Every event of a replica, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Record> {
        self.events.iter()
    }

    /// Every event of a broker, by host.
    pub fn broker_events(&self) -> impl Iterator<Item = &BrokerEvent> {
        self.broker_events.iter()
    }

    /// The audited records.
    pub fn records(&self) -> &[Report] {
        &self.records
    }

    /// What could not be read or makes no sense.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Somebody says nothing, and why.
    pub fn note_silence(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// What the processes answered.
    pub fn take_answers(&mut self, asked: &[Asked]) {
        for one in asked {
            let who = match one.twin {
                Some(twin) => format!("h{}/t{twin}", one.host),
                None => format!("broker of h{}", one.host),
            };
            match (&one.answer, one.twin) {
                (Answer::Document(document), Some(twin)) => {
                    self.take_replica((one.host, twin), &who, document);
                }
                (Answer::Document(document), None) => self.take_broker(one.host, document),
                (Answer::Unreachable(reason), _) => {
                    self.problems
                        .push(format!("{who} does not answer: {}", plain(reason)));
                }
                (Answer::Elsewhere, _) => {}
            }
        }
    }

    fn take_replica(&mut self, (host, twin): (u8, u8), who: &str, document: &Value) {
        let events = document.get("events").and_then(Value::as_array);
        let mut senseless = 0_u64;
        for event in events.into_iter().flatten() {
            let record = serde_json::from_value::<Record>(event.clone()).ok();
            match record.filter(|record| self.makes_sense(record, host)) {
                Some(record) => self.take_record((host, twin), record),
                None => senseless += 1,
            }
        }
        if senseless > 0 {
            self.problems
                .push(format!("{who} sent {senseless} events that make no sense"));
        }
    }

    fn makes_sense(&self, record: &Record, host: u8) -> bool {
        record.host == host && record.twin.is_none_or(|twin| twin < self.twins)
    }

    /// It is this replica's word, whoever it says that it is.
    fn take_record(&mut self, (host, twin): (u8, u8), mut record: Record) {
        record.seen_by = format!("h{host}/t{twin}");
        record.kind = plain(&record.kind);
        for text in [&mut record.detail, &mut record.ours, &mut record.theirs] {
            *text = text.as_deref().map(plain);
        }
        self.events.insert(record);
    }

    fn take_broker(&mut self, host: u8, document: &Value) {
        let events = document.get("events").and_then(Value::as_array);
        for event in events.into_iter().flatten() {
            let text = |name: &str| event.get(name).and_then(Value::as_str);
            let (Some(kind), Some(words)) = (text("kind"), text("text")) else {
                continue;
            };
            if !matches!(kind, "twin-fault" | "rejected") {
                continue;
            }
            let number = words
                .strip_prefix("twin ")
                .and_then(|rest| rest.split(':').next());
            let unix_ms = event.get("unix_ms").and_then(Value::as_u64);
            self.broker_events.insert(BrokerEvent {
                host,
                twin: number
                    .and_then(|number| number.parse().ok())
                    .filter(|twin| *twin < self.twins),
                time_us: unix_ms.unwrap_or(0).saturating_mul(1000),
                kind: plain(kind),
                text: plain(words),
            });
        }
    }

    /// What replicas have written in their data directories on this machine.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn read_files(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        for host in 0..self.hosts {
            for twin in 0..self.twins {
                let data = cluster.layout.twin_data(host, twin);
                let found = twinbft_evidence::read(&data)
                    .with_context(|| format!("reading the evidence in {}", data.display()))?;
                for record in found.records {
                    if self.makes_sense(&record, host) {
                        self.take_record((host, twin), record);
                    }
                }
                let damage = found.damage.iter().map(ToString::to_string);
                self.problems.extend(damage);
            }
        }
        Ok(())
    }

    /// Audits what brokers of this machine have recorded.
    ///
    /// # Errors
    /// When a record is there and cannot be read, or is of another cluster.
    pub fn audit_records(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        for host in 0..self.hosts {
            let dir = cluster.layout.host_record(&cluster.config.postbox, host);
            let Some(dir) = dir.filter(|dir| dir.is_dir()) else {
                continue;
            };
            if let Some(report) = audit(&dir, &cluster.config)? {
                if let Some(damage) = &report.damage {
                    // A running broker is writing to the last one.
                    self.problems.push(format!("record of h{host}: {damage}"));
                }
                self.records.push(report);
            }
        }
        Ok(())
    }

    /// What is held against each twin, by how bad it is.
    pub fn charges(&self) -> BTreeMap<(u8, u8), BTreeMap<Charge, Accusers>> {
        let mut charges: BTreeMap<(u8, u8), BTreeMap<Charge, Accusers>> = BTreeMap::new();
        let mut add = |twin: (u8, u8), charge: Charge, who: String, times: u64| {
            let accusers = charges.entry(twin).or_default().entry(charge).or_default();
            *accusers.0.entry(who).or_default() += times;
        };
        for ((record, twin), times) in self.counted() {
            let charge = match record.kind.as_str() {
                "culprit" => Charge::Culprit,
                "invalid" => Charge::Invalid,
                "mute" => Charge::Mute,
                _ => continue,
            };
            add((record.host, twin), charge, record.seen_by.clone(), times);
        }
        for event in &self.broker_events {
            if let (Some(twin), "twin-fault") = (event.twin, event.kind.as_str()) {
                let who = format!("broker of h{}", event.host);
                add((event.host, twin), Charge::Channel, who, 1);
            }
        }
        for report in &self.records {
            for (_, wrong) in &report.found {
                if let (Some(host), Wrong::Entry(finding)) = (report.host_number(), wrong)
                    && finding.names_twin()
                {
                    let who = format!("record of h{host}");
                    add((host, finding.twin.0), Charge::Invalid, who, 1);
                }
            }
        }
        charges
    }

    /// For each kind, twin and detail that one replica saw of a twin: its last event, and how many there were.
    fn counted(&self) -> Vec<((&Record, u8), u64)> {
        let mut last: BTreeMap<_, &Record> = BTreeMap::new();
        for record in &self.events {
            let key = (&record.seen_by, &record.kind, record.twin, &record.detail);
            let kept = last.entry(key).or_insert(record);
            if record.count > kept.count {
                *kept = record;
            }
        }
        let about = |record: &&Record| record.twin.is_some();
        let last = last.into_values().filter(about);
        last.map(|record| ((record, record.twin.expect("filtered")), record.count))
            .collect()
    }

    /// The twins that are said to be faulty.
    pub fn named(&self) -> BTreeSet<(u8, u8)> {
        let charges = self.charges().into_iter();
        charges
            .filter(|(_, charges)| charges.keys().any(|charge| charge.names()))
            .map(|(twin, _)| twin)
            .collect()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let named: Vec<Value> = self
            .charges()
            .into_iter()
            .flat_map(|((host, twin), charges)| {
                charges.into_iter().map(move |(charge, accusers)| {
                    json!({
                        "host": host,
                        "twin": twin,
                        "charge": charge.name().to_lowercase(),
                        "faulty": charge.names(),
                        "by": accusers.who().collect::<Vec<_>>(),
                        "times": accusers.times(),
                    })
                })
            })
            .collect();
        json!({
            "cluster": self.cluster,
            "twins": named,
            "events": self.events,
            "broker_events": self.broker_events,
            "records": self.records.iter().map(Report::json).collect::<Vec<_>>(),
            "problems": self.problems,
        })
    }
}

/// What finding a report has found, and where, for the table.
pub fn finding_words(what: &What) -> (&'static str, String) {
    match what {
        What::Invalid { problem } => ("invalid", (*problem).to_owned()),
        What::Contradiction { problem, .. } => ("contradiction", (*problem).to_owned()),
        What::Divergence { .. } => ("divergence", String::new()),
    }
}

/// Without what could move a terminal's cursor, and not too long.
fn plain(text: &str) -> String {
    let printable = text.chars().filter(|letter| !letter.is_control());
    printable.take(TEXT_CHARS_MAX).collect()
}
