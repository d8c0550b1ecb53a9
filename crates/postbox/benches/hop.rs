//! What a hop through the postbox costs, against what the kernel's bare wake-ups cost in the same
//! run. A real broker process; `--json` for machines.
//!
//! The baseline is a round trip of two processes over two eventfds: two hops. The measurement is an
//! append by twin 0 in this process, the broker's copy, and twin 1's read in this process: two hops
//! between the same number of processes, pinned to the same cores. Rounds of both alternate.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use twinbft_postbox::{
    AppendError, Channel, ConnectOptions, Wake, cluster_tag, connect, socket_path,
};

const ENTRY_BYTES: usize = 128;
const ROUNDS: u32 = 20;
const HOPS_PER_ROUND: u32 = 500;
const SPIN_HOPS: u32 = 200_000;
const STREAM_ENTRIES: u64 = 3_000_000;
const TRIM_EVERY: u64 = 8192;
const SPIN_US: u32 = 2000;
const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--echo") {
        return echo();
    }
    let json = args.iter().any(|arg| arg == "--json");
    let broker = build_broker();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results = Vec::new();
    for (placement, ours, theirs) in [("two cores", 0, 1), ("one core", 0, 0)] {
        if ours != theirs && cores < 2 {
            continue;
        }
        pin(Pid::this(), ours);
        results.push((placement, blocked(&broker, theirs)));
    }
    let spinning = (cores > 1).then(|| spinning(&broker));
    let (entries_per_s, stream_s) = streaming(&broker);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.trim();
    if json {
        print_json(&results, spinning.as_ref(), entries_per_s, cores, load);
    } else {
        print_text(
            &results,
            spinning.as_ref(),
            entries_per_s,
            stream_s,
            cores,
            load,
        );
    }
}

/// One placement's numbers.
struct Blocked {
    bare: Histogram<u64>,
    postbox: Histogram<u64>,
    /// Per hop pair: write(2) calls and voluntary switches, of this process and of the broker.
    cost: [Option<f64>; 4],
    /// Wake-ups of the reading twin that the broker counted, per entry.
    hops: u64,
}

impl Blocked {
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds of a hop are small")]
    fn ratio_p50(&self) -> f64 {
        self.postbox.value_at_quantile(0.5) as f64 / self.bare.value_at_quantile(0.5) as f64
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("valid bounds")
}

fn record(histogram: &mut Histogram<u64>, since: Instant) {
    let ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
    histogram.saturating_record(ns);
}

fn pin(pid: Pid, core: usize) {
    let mut set = CpuSet::new();
    set.set(core).expect("a small number");
    sched_setaffinity(pid, &set).expect("the core is there");
}

fn unpin() {
    let mut set = CpuSet::new();
    for core in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        set.set(core).expect("a small number");
    }
    sched_setaffinity(Pid::this(), &set).expect("the cores are there");
}

/// The other process of the baseline: eventfd on standard input, eventfd on standard output.
fn echo() {
    let (input, output) = (io::stdin(), io::stdout());
    let mut count = [0; 8];
    while nix::unistd::read(input.as_fd(), &mut count).is_ok() {
        nix::unistd::write(output.as_fd(), &1u64.to_ne_bytes()).expect("an eventfd");
    }
}

struct Baseline {
    child: Child,
    out: EventFd,
    back: EventFd,
}

impl Baseline {
    fn start(core: usize) -> Self {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("descriptors are left");
        let (out, back) = (event(), event());
        let side = |event: &EventFd| {
            Stdio::from(
                event
                    .as_fd()
                    .try_clone_to_owned()
                    .expect("descriptors are left"),
            )
        };
        let child = Command::new(std::env::current_exe().expect("we run"))
            .arg("--echo")
            .stdin(side(&out))
            .stdout(side(&back))
            .spawn()
            .expect("we can start ourselves");
        pin(pid_of(&child), core);
        Self { child, out, back }
    }

    fn round(&self, into: &mut Histogram<u64>) {
        for _ in 0..HOPS_PER_ROUND {
            let start = Instant::now();
            self.out.write(1).expect("an eventfd");
            self.back.read().expect("an eventfd");
            record(into, start);
        }
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid"))
}

fn build_broker() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "-q", "--release", "-p", "postbox-broker"])
        .status();
    assert!(
        built.expect("cargo is there").success(),
        "the broker must build"
    );
    let exe = std::env::current_exe().expect("we run");
    let path = exe
        .ancestors()
        .nth(2)
        .expect("target/release/deps/hop")
        .join("postbox-broker");
    assert!(path.exists(), "{} was just built", path.display());
    path
}

struct Host {
    child: Child,
    dir: tempfile::TempDir,
}

impl Host {
    fn start(broker: &PathBuf, core: Option<usize>, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let notify = dir.path().join("notify.sock");
        let ready = UnixDatagram::bind(&notify).expect("a fresh directory");
        let child = Command::new(broker)
            .arg("--dir")
            .arg(dir.path())
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .args([
                "--cluster-id",
                "bench",
                "--trim-every",
                &TRIM_EVERY.to_string(),
            ])
            .args(flags)
            .env("NOTIFY_SOCKET", &notify)
            .stderr(Stdio::null())
            .spawn()
            .expect("it was just built");
        let mut message = [0; 512];
        loop {
            let count = ready.recv(&mut message).expect("the broker speaks");
            if message[..count].starts_with(b"READY=1") {
                break;
            }
        }
        if let Some(core) = core {
            pin(pid_of(&child), core);
        }
        Self { child, dir }
    }

    fn connect(&self, twin: u8, spin_us: u32) -> Channel {
        let options = ConnectOptions {
            spin_us,
            ..ConnectOptions::new(cluster_tag("bench"), 0, twin)
        };
        connect(&socket_path(self.dir.path(), twin), &options).expect("the broker takes its twins")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One entry from twin 0's append to twin 1's read.
fn hop(zero: &mut Channel, one: &mut Channel, payload: &mut Vec<u8>) {
    zero.appender
        .append(&[7; ENTRY_BYTES])
        .expect("the queue is empty");
    zero.appender.flush();
    while one
        .reader
        .poll_next(payload)
        .expect("a sound log")
        .is_none()
    {
        assert_eq!(one.reader.wait(PATIENCE, || false), Wake::Ready);
    }
}

/// After a measured hop: confirmations, and a trim when one is due.
fn housekeeping(twins: &mut [&mut Channel]) {
    for twin in twins {
        while twin.appender.poll().expect("an open channel").is_some() {}
        let due = twin.reader.head() + TRIM_EVERY;
        if twin.reader.position() == due {
            twin.appender.trim(due, b"state").expect("an open channel");
            twin.appender.flush();
        }
    }
}

/// write(2) calls and voluntary switches of a process so far.
fn usage(pid: Pid) -> [Option<u64>; 2] {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    [
        field("io", "syscw:"),
        field("status", "voluntary_ctxt_switches:"),
    ]
}

fn blocked(broker: &PathBuf, core: usize) -> Blocked {
    let host = Host::start(broker, Some(core), &[]);
    let baseline = Baseline::start(core);
    let (mut zero, mut one) = (host.connect(0, 0), host.connect(1, 0));
    let (mut bare, mut postbox) = (histogram(), histogram());
    let mut payload = Vec::new();
    let mut spent = [Some(0u64); 4];
    for round in 0..=ROUNDS {
        if round == 1 {
            // The first round only warms up.
            (bare, postbox) = (histogram(), histogram());
            spent = [Some(0); 4];
        }
        baseline.round(&mut bare);
        let now = |_: &()| [usage(Pid::this()), usage(pid_of(&host.child))].concat();
        let before = now(&());
        for _ in 0..HOPS_PER_ROUND {
            let start = Instant::now();
            hop(&mut zero, &mut one, &mut payload);
            record(&mut postbox, start);
            housekeeping(&mut [&mut zero, &mut one]);
        }
        let after = now(&());
        for (sum, (before, after)) in spent.iter_mut().zip(before.iter().zip(&after)) {
            *sum = (*sum)
                .zip(*before)
                .zip(*after)
                .map(|((sum, before), after)| sum + after - before);
        }
        while zero
            .reader
            .poll_next(&mut payload)
            .expect("a sound log")
            .is_some()
        {
            housekeeping(&mut [&mut zero, &mut one]);
        }
    }
    let hops = postbox.len();
    #[allow(clippy::cast_precision_loss, reason = "counts of a short run")]
    let cost = spent.map(|sum| sum.map(|sum| sum as f64 / hops as f64));
    Blocked {
        bare,
        postbox,
        cost,
        hops,
    }
}

fn spinning(broker: &PathBuf) -> Histogram<u64> {
    pin(Pid::this(), 0);
    let host = Host::start(broker, Some(1), &["--spin-us", &SPIN_US.to_string()]);
    let (mut zero, mut one) = (host.connect(0, 0), host.connect(1, SPIN_US));
    let mut latency = histogram();
    let mut payload = Vec::new();
    for hop_number in 0..SPIN_HOPS {
        let start = Instant::now();
        hop(&mut zero, &mut one, &mut payload);
        // The first tenth only warms up.
        if hop_number >= SPIN_HOPS / 10 {
            record(&mut latency, start);
        }
        let _ = zero.reader.poll_next(&mut payload).expect("a sound log");
        housekeeping(&mut [&mut zero, &mut one]);
    }
    latency
}

/// Entries per second, and seconds: twin 0 appends as fast as it may, both read and trim.
fn streaming(broker: &PathBuf) -> (f64, f64) {
    unpin();
    let host = Host::start(broker, None, &[]);
    let (mut zero, mut one) = (host.connect(0, 0), host.connect(1, 0));
    let start = Instant::now();
    let reader = std::thread::spawn(move || {
        let mut payload = Vec::new();
        while one.reader.position() < STREAM_ENTRIES {
            assert_eq!(one.reader.wait(PATIENCE, || false), Wake::Ready);
            drain(&mut one, &mut payload);
        }
        start.elapsed()
    });
    let mut payload = Vec::new();
    let mut sent = 0;
    while zero.reader.position() < STREAM_ENTRIES {
        while sent < STREAM_ENTRIES {
            match zero.appender.append(&[7; ENTRY_BYTES]) {
                Ok(_) => sent += 1,
                Err(AppendError::QueueFull) => break,
                Err(error) => panic!("{error}"),
            }
            if sent % 256 == 0 {
                zero.appender.flush();
                drain(&mut zero, &mut payload);
            }
        }
        zero.appender.flush();
        assert_eq!(zero.reader.wait(PATIENCE, || false), Wake::Ready);
        drain(&mut zero, &mut payload);
    }
    let elapsed = reader.join().expect("it ends").as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "three million fit")]
    let entries = STREAM_ENTRIES as f64;
    (entries / elapsed, elapsed)
}

fn drain(twin: &mut Channel, payload: &mut Vec<u8>) {
    housekeeping(&mut [&mut *twin]);
    while twin
        .reader
        .poll_next(payload)
        .expect("a sound log")
        .is_some()
    {
        if twin.reader.position().is_multiple_of(TRIM_EVERY) {
            housekeeping(&mut [&mut *twin]);
        }
    }
}

fn us(ns: u64) -> String {
    format!("{}.{:02}", ns / 1000, ns % 1000 / 10)
}

fn quantiles(histogram: &Histogram<u64>) -> [u64; 4] {
    [0.5, 0.9, 0.99, 0.999].map(|q| histogram.value_at_quantile(q))
}

fn print_text(
    results: &[(&str, Blocked)],
    spinning: Option<&Histogram<u64>>,
    entries_per_s: f64,
    stream_s: f64,
    cores: usize,
    load: &str,
) {
    let mut out = io::stdout().lock();
    let mut line = |text: String| writeln!(out, "{text}").expect("standard output is open");
    let row = |name: &str, histogram: &Histogram<u64>| {
        let [p50, p90, p99, p999] = quantiles(histogram).map(us);
        format!("  {name:<34} p50 {p50:>8}  p90 {p90:>8}  p99 {p99:>8}  p99.9 {p999:>8} us")
    };
    line(format!(
        "postbox, entries of {ENTRY_BYTES} B, {cores} cores, load {load}"
    ));
    for (placement, result) in results {
        line(format!(
            "blocked, one in flight, {placement}: this process on core 0, the other (echo or broker) on {}; {} hops each",
            if *placement == "one core" {
                "core 0"
            } else {
                "core 1"
            },
            result.hops
        ));
        line(row("two bare eventfd hops", &result.bare));
        line(row("append, broker, other twin's read", &result.postbox));
        line(format!(
            "  ratio of p50: {:.2} (goal: at most 1.3)",
            result.ratio_p50()
        ));
        let [writes, switches, broker_writes, broker_switches] = result
            .cost
            .map(|cost| cost.map_or("?".to_owned(), |cost| format!("{cost:.2}")));
        line(format!(
            "  per entry: twins {writes} write(2), {switches} sleeps; broker {broker_writes} write(2), {broker_switches} sleeps"
        ));
    }
    if let Some(spinning) = spinning {
        line("broker and reader spin, two cores (goal: p50 below 3 us)".to_owned());
        line(row("append, broker, other twin's read", spinning));
    }
    line(format!(
        "streaming, both twins read and trim, not pinned: {entries_per_s:.0} entries/s over {stream_s:.1} s"
    ));
}

fn print_json(
    results: &[(&str, Blocked)],
    spinning: Option<&Histogram<u64>>,
    entries_per_s: f64,
    cores: usize,
    load: &str,
) {
    let ns = |histogram: &Histogram<u64>| {
        let [p50, p90, p99, p999] = quantiles(histogram);
        serde_json::json!({"p50_ns": p50, "p90_ns": p90, "p99_ns": p99, "p99_9_ns": p999})
    };
    let blocked: Vec<_> = results
        .iter()
        .map(|(placement, result)| {
            serde_json::json!({
                "placement": placement,
                "bare_two_hops": ns(&result.bare),
                "postbox": ns(&result.postbox),
                "ratio_p50": result.ratio_p50(),
                "per_entry": {
                    "twins_writes": result.cost[0], "twins_sleeps": result.cost[1],
                    "broker_writes": result.cost[2], "broker_sleeps": result.cost[3],
                },
            })
        })
        .collect();
    let document = serde_json::json!({
        "entry_bytes": ENTRY_BYTES, "cores": cores, "load": load, "blocked": blocked,
        "spinning": spinning.map(ns), "streaming_entries_per_s": entries_per_s,
    });
    println!("{document}");
}
