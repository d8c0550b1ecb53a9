//! What a run of the benchmark says, to people and to programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value as Json, json};
use twinbft_client::Stats;

use super::load::Measured;
use super::machine::{Machine, Usage};

const PERCENTILES: [(&str, f64); 4] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// One target under the load.
#[derive(Debug)]
pub struct RunReport {
    /// Like `twinbft, 3 hosts x 2 twins`.
    pub target: String,
    /// What a stranger has to know of it to repeat the run.
    pub setting: BTreeMap<&'static str, String>,
    /// What was measured.
    pub measured: Measured,
    /// Processor time and memory by role; empty where the processes are not on this machine.
    pub usage: BTreeMap<String, Usage>,
    /// What the client counted, warm-up included.
    pub messages: Option<Messages>,
    /// The load averages before and after.
    pub load_average: (String, String),
}

/// Messages of a client.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    requests_sent: u64,
    retransmissions_sent: u64,
    queries_sent: u64,
    replies_received: u64,
    answers_received: u64,
    refusals_received: u64,
    frames_sent: u64,
    frames_received: u64,
    dropped: u64,
    faults: BTreeMap<&'static str, u64>,
}

impl Messages {
    /// Those of all connections.
    #[must_use]
    pub fn of(stats: &[Stats]) -> Self {
        let mut sum = Self::default();
        for stats in stats {
            sum.requests_sent += stats.requests_sent;
            sum.retransmissions_sent += stats.retransmissions_sent;
            sum.queries_sent += stats.queries_sent;
            sum.replies_received += stats.replies_received;
            sum.answers_received += stats.answers_received;
            sum.refusals_received += stats.refusals_received;
            sum.frames_sent += stats.frames_sent;
            sum.frames_received += stats.frames_received;
            sum.dropped += stats.dropped;
            for (name, count) in stats.faults.seen() {
                *sum.faults.entry(name).or_default() += count;
            }
        }
        sum
    }

    fn json(&self) -> Json {
        json!({
            "requests_sent": self.requests_sent,
            "retransmissions_sent": self.retransmissions_sent,
            "queries_sent": self.queries_sent,
            "replies_received": self.replies_received,
            "answers_received": self.answers_received,
            "refusals_received": self.refusals_received,
            "frames_sent": self.frames_sent,
            "frames_received": self.frames_received,
            "dropped": self.dropped,
            "replica_faults": self.faults,
        })
    }
}

/// Everything that one call of the benchmark did.
#[derive(Debug)]
pub struct Report {
    /// The command line.
    pub command: Vec<String>,
    /// The load in words.
    pub load: String,
    /// The machine.
    pub machine: Machine,
    /// The targets, the first one compared with the others.
    pub runs: Vec<RunReport>,
}

impl Report {
    /// Whether every target answered everything.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.runs.iter().all(|run| {
            let measured = &run.measured;
            measured.answered > 0 && measured.error_count() == 0 && measured.cut_short.is_none()
        })
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Json {
        json!({
            "command": self.command,
            "version": env!("CARGO_PKG_VERSION"),
            "rustc": env!("TWINBFT_RUSTC"),
            "profile": env!("TWINBFT_PROFILE"),
            "machine": self.machine,
            "load": self.load,
            "runs": self.runs.iter().map(run_json).collect::<Vec<_>>(),
            "ratios": self.ratios().map(|(name, throughput, p50)| json!({
                "to": name,
                "throughput": throughput,
                "p50": p50,
            })).collect::<Vec<_>>(),
        })
    }

    /// Throughput and median of the first target, divided by those of each other one.
    fn ratios(&self) -> impl Iterator<Item = (&str, f64, f64)> {
        let (first, others) = self.runs.split_at(self.runs.len().min(1));
        others.iter().flat_map(move |other| {
            first.iter().map(move |first| {
                let p50 = |run: &RunReport| {
                    milliseconds(run.measured.latency_ns.value_at_percentile(50.0))
                };
                (
                    other.target.as_str(),
                    first.measured.throughput() / other.measured.throughput(),
                    p50(first) / p50(other),
                )
            })
        })
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |content: String| {
            text.push_str(&content);
            text.push('\n');
        };
        line(format!("load       {}", self.load));
        for run in &self.runs {
            line(String::new());
            line(run.target.clone());
            run_text(run, &mut line);
        }
        line(String::new());
        for (name, throughput, p50) in self.ratios() {
            line(format!(
                "ratio      {throughput:.2} x the throughput and {p50:.2} x the median of: {name}"
            ));
        }
        let machine = &self.machine;
        line(format!(
            "machine    {}, {} cores, {} MiB, Linux {}",
            machine.cpu,
            machine.cores,
            machine.memory_bytes >> 20,
            machine.kernel
        ));
        line(format!(
            "build      twinbft {} ({}), {}",
            env!("CARGO_PKG_VERSION"),
            env!("TWINBFT_PROFILE"),
            env!("TWINBFT_RUSTC")
        ));
        line(format!("command    {}", self.command.join(" ")));
        text
    }
}

fn mebibytes(bytes: u64) -> f64 {
    milliseconds(bytes) * 1e6 / f64::from(1 << 20)
}

fn milliseconds(ns: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let ns = ns as f64;
    ns / 1e6
}

fn share(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let (part, whole) = (part as f64, whole.max(1) as f64);
    part / whole
}

fn run_text(run: &RunReport, line: &mut impl FnMut(String)) {
    let measured = &run.measured;
    line(format!(
        "throughput {:.0} operations/s: {} answered in {:.2} s, {} errors",
        measured.throughput(),
        measured.answered,
        measured.seconds,
        measured.error_count()
    ));
    for (error, count) in &measured.errors {
        line(format!("  error    {count} x {error}"));
    }
    if let Some(why) = &measured.cut_short {
        line(format!("  ended    early: {why}"));
    }
    if measured.answered > 0 {
        line(latency_text(&measured.latency_ns));
    }
    if let Some(steps) = steps_text(measured) {
        line(steps);
    }
    line(format!(
        "stall      nothing was answered for {:.0} ms at most",
        measured.stall.length.as_secs_f64() * 1e3
    ));
    if let Some(messages) = &run.messages {
        line(messages_text(messages));
    }
    for (role, usage) in &run.usage {
        line(format!(
            "  {role:<16} {} processes, {:.2} CPU s ({:.1} us an operation), peak {:.1} MiB each; start, middle, end: {}",
            usage.processes,
            usage.cpu_seconds,
            usage.cpu_seconds * 1e6 * share(1, measured.answered),
            mebibytes(usage.peak_bytes),
            usage
                .resident_bytes
                .map(|bytes| format!("{:.1}", mebibytes(bytes)))
                .join(", "),
        ));
    }
    for (name, value) in &run.setting {
        line(format!("  {name:<16} {value}"));
    }
    let (before, after) = &run.load_average;
    line(format!("  load average     {before} before, {after} after"));
}

fn latency_text(latency_ns: &Histogram<u64>) -> String {
    let mut text = "latency   ".to_owned();
    for (name, percentile) in PERCENTILES {
        let value = milliseconds(latency_ns.value_at_percentile(percentile));
        write!(text, " {name} {value:.3} ms,").expect("writing to a string does not fail");
    }
    write!(text, " max {:.3} ms", milliseconds(latency_ns.max())).expect("as above");
    text
}

/// Only where a target counts steps.
fn steps_text(measured: &Measured) -> Option<String> {
    let known: u64 = measured
        .steps
        .iter()
        .filter_map(|(steps, count)| steps.map(|_| count))
        .sum();
    if known == 0 && measured.fast == 0 {
        return None;
    }
    let mut parts: Vec<String> = measured
        .steps
        .iter()
        .map(|(steps, count)| {
            let percent = 100.0 * share(*count, measured.answered);
            match steps {
                Some(steps) => format!("{steps}: {percent:.2} %"),
                None => format!("not known (sent more than once, or to all): {percent:.2} %"),
            }
        })
        .collect();
    if measured.fast > 0 {
        let percent = 100.0 * share(measured.fast, measured.answered);
        parts.push(format!("fast reads: {percent:.2} %"));
    }
    Some(format!("steps      {}", parts.join(", ")))
}

fn messages_text(messages: &Messages) -> String {
    let mut text = format!(
        "messages   {} requests and {} queries in {} frames sent ({} again, {} dropped); {} replies, {} answers, {} \
         refusals in {} frames received",
        messages.requests_sent,
        messages.queries_sent,
        messages.frames_sent,
        messages.retransmissions_sent,
        messages.dropped,
        messages.replies_received,
        messages.answers_received,
        messages.refusals_received,
        messages.frames_received,
    );
    for (name, count) in &messages.faults {
        write!(text, "; {count} x {name}").expect("writing to a string does not fail");
    }
    text
}

fn run_json(run: &RunReport) -> Json {
    let measured = &run.measured;
    let mut latency_ms: BTreeMap<String, f64> = PERCENTILES
        .iter()
        .map(|(name, percentile)| {
            let value = measured.latency_ns.value_at_percentile(*percentile);
            ((*name).to_owned(), milliseconds(value))
        })
        .collect();
    latency_ms.insert("max".to_owned(), milliseconds(measured.latency_ns.max()));
    let steps: BTreeMap<String, u64> = measured
        .steps
        .iter()
        .map(|(steps, count)| {
            let name = steps.map_or_else(|| "unknown".to_owned(), |steps| steps.to_string());
            (name, *count)
        })
        .collect();
    json!({
        "target": run.target,
        "setting": run.setting,
        "answered": measured.answered,
        "errors": measured.errors,
        "seconds": measured.seconds,
        "throughput": measured.throughput(),
        "latency_ms": latency_ms,
        "steps": steps,
        "fast_reads": measured.fast,
        "longest_stall_ms": measured.stall.length.as_secs_f64() * 1e3,
        "answers_by_100_ms": measured.answers,
        "cut_short": measured.cut_short,
        "usage": run.usage,
        "messages": run.messages.as_ref().map(Messages::json),
        "load_average_before": run.load_average.0,
        "load_average_after": run.load_average.1,
    })
}
