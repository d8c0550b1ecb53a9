//! A cluster of real processes under a closed loop of clients: where does the time of a request go?
//!
//!     cargo bench -p twinbft-replica --bench cluster -- [--clients 1,256] [--seconds 4] [--request-bytes 4]
//!         [--durability memory] [--spin-us 0] [--hosts 3] [--twins 2] [--fast]
//!
//! Prints latencies, throughput, and per request: CPU time of each process, context switches, messages, log entries,
//! rounds. Brokers are processes when `target/release/postbox-broker` is there, else threads of this process.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::Value;
use support::{Brokers, Cluster, status};
use twinbft_client::{Client, ClientOptions};
use twinbft_config::Durability;

/// Without an answer for so long, the cluster stands still: a bug.
const STALL: Duration = Duration::from_millis(1_500);

struct Options {
    clients: Vec<usize>,
    seconds: u64,
    request_bytes: usize,
    reply_bytes: u32,
    durability: Durability,
    spin_us: u64,
    hosts: u8,
    twins: u8,
    fast: bool,
}

fn options() -> Options {
    let mut options = Options {
        clients: vec![1, 64, 256],
        seconds: 4,
        request_bytes: 0,
        reply_bytes: 0,
        durability: Durability::Memory,
        spin_us: 0,
        hosts: 3,
        twins: 2,
        fast: false,
    };
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    while let Some(name) = arguments.next() {
        if name == "--fast" {
            options.fast = true;
            continue;
        }
        let value = arguments
            .next()
            .expect("every option but --fast has a value");
        let number = || value.parse::<u64>().expect("a number");
        let small = || u8::try_from(number()).expect("a small number");
        match name.as_str() {
            "--clients" => {
                options.clients = value
                    .split(',')
                    .map(|n| n.parse().expect("a number"))
                    .collect();
            }
            "--seconds" => options.seconds = number(),
            "--request-bytes" => options.request_bytes = usize::try_from(number()).expect("fits"),
            "--reply-bytes" => options.reply_bytes = u32::try_from(number()).expect("fits"),
            "--spin-us" => options.spin_us = number(),
            "--hosts" => options.hosts = small(),
            "--twins" => options.twins = small(),
            "--durability" => {
                options.durability = match value.as_str() {
                    "memory" => Durability::Memory,
                    "group" => Durability::Group,
                    "sync" => Durability::Sync,
                    other => panic!("no durability {other}"),
                }
            }
            other => panic!("no option {other}"),
        }
    }
    options
}

fn broker_binary() -> Brokers {
    let replica = std::env::var_os("REPLICA_BINARY");
    let replica = replica.unwrap_or_else(|| env!("CARGO_BIN_EXE_twinbft-replica").into());
    let path = PathBuf::from(replica).with_file_name("postbox-broker");
    if path.exists() {
        Brokers::Processes(path)
    } else {
        Brokers::Threads
    }
}

/// CPU microseconds, voluntary and involuntary switches of a process.
fn usage(pid: u32) -> [u64; 3] {
    let mut sum = [0; 3];
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return sum;
    };
    for task in tasks.flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let ran_ns = read("schedstat")
            .split(' ')
            .next()
            .and_then(|n| n.parse::<u64>().ok());
        sum[0] += ran_ns.unwrap_or(0) / 1000;
        for line in read("status").lines() {
            let number = || {
                line.split_whitespace()
                    .last()
                    .and_then(|n| n.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            if line.starts_with("voluntary_ctxt_switches") {
                sum[1] += number();
            }
            if line.starts_with("nonvoluntary_ctxt_switches") {
                sum[2] += number();
            }
        }
    }
    sum
}

fn numbers(value: &Value, path: &str, into: &mut BTreeMap<String, u64>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                numbers(value, &format!("{path}.{name}"), into);
            }
        }
        Value::Number(number) => {
            into.insert(path.to_owned(), number.as_u64().unwrap_or(0));
        }
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => {}
    }
}

async fn snapshot(cluster: &Cluster) -> Vec<(String, BTreeMap<String, u64>)> {
    let mut all = Vec::new();
    for id in cluster.ids() {
        let status = status(cluster, id).await;
        let mut flat = BTreeMap::new();
        for part in ["driver", "postbox", "network", "service", "storage"] {
            numbers(&status[part], part, &mut flat);
        }
        let [cpu_us, voluntary, involuntary] = usage(cluster.pid(id));
        flat.insert("process.cpu_us".to_owned(), cpu_us);
        flat.insert("process.switches".to_owned(), voluntary);
        flat.insert("process.preempted".to_owned(), involuntary);
        flat.insert(
            "executed".to_owned(),
            status["executed"].as_u64().unwrap_or(0),
        );
        all.push((id.to_string(), flat));
    }
    for (host, pid) in cluster.broker_pids().into_iter().enumerate() {
        let [cpu_us, voluntary, involuntary] = usage(pid);
        let flat = BTreeMap::from([
            ("process.cpu_us".to_owned(), cpu_us),
            ("process.switches".to_owned(), voluntary),
            ("process.preempted".to_owned(), involuntary),
        ]);
        all.push((format!("broker {host}"), flat));
    }
    let [cpu_us, voluntary, involuntary] = usage(std::process::id());
    let own = BTreeMap::from([
        ("process.cpu_us".to_owned(), cpu_us),
        ("process.switches".to_owned(), voluntary),
        ("process.preempted".to_owned(), involuntary),
    ]);
    all.push(("client".to_owned(), own));
    all
}

async fn measure(cluster: &Cluster, client: &Client, options: &Options, clients: usize) {
    let mut queue = client.queue();
    let sessions: Vec<_> = (0..clients).map(|_| queue.open_session()).collect();
    let mut operation = options.reply_bytes.to_le_bytes().to_vec();
    operation.resize(options.request_bytes.max(4), 0);
    let operation = Bytes::from(operation);
    let mut began: BTreeMap<u64, Instant> = BTreeMap::new();
    for (tag, session) in (0..).zip(&sessions) {
        began.insert(tag, Instant::now());
        queue.submit(*session, tag, operation.clone(), options.fast);
    }
    queue.flush();
    let warm_up = Instant::now() + Duration::from_secs(1);
    let mut ended = Vec::new();
    let mut histogram = Histogram::<u64>::new(3).expect("three digits");
    let mut before = None;
    let mut start = Instant::now();
    let mut failed = 0u64;
    loop {
        let completions = queue.completions(&mut ended);
        if tokio::time::timeout(STALL, completions).await.is_err() {
            for id in cluster.ids() {
                eprintln!("{id}: {:#}", status(cluster, id).await);
            }
            eprintln!("client: {:#?}\n{}", client.stats().await, cluster.logs());
            panic!("no answer for {STALL:?}");
        }
        let now = Instant::now();
        if before.is_none() && now >= warm_up {
            before = Some(snapshot(cluster).await);
            start = Instant::now();
            began.values_mut().for_each(|at| *at = start);
            histogram.reset();
        }
        if before.is_some() && start.elapsed() >= Duration::from_secs(options.seconds) {
            break;
        }
        for completion in ended.drain(..) {
            failed += u64::from(completion.result.is_err());
            let at = began.insert(completion.tag, now).expect("it was begun");
            let us = u64::try_from((now - at).as_micros()).unwrap_or(u64::MAX);
            histogram.record(us.max(1)).expect("in range");
            queue.submit(
                completion.session,
                completion.tag,
                operation.clone(),
                options.fast,
            );
        }
        queue.flush();
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = snapshot(cluster).await;
    #[allow(clippy::cast_precision_loss, reason = "numbers for people")]
    let requests = histogram.len() as f64;
    println!(
        "\n{clients} clients: {:.0}/s, p50 {} us, p90 {} us, p99 {} us, max {} us, failed {failed}",
        requests / seconds,
        histogram.value_at_quantile(0.5),
        histogram.value_at_quantile(0.9),
        histogram.value_at_quantile(0.99),
        histogram.max()
    );
    let before = before.expect("the loop ends after it");
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        #[allow(clippy::cast_precision_loss, reason = "numbers for people")]
        let per = |key: &str| {
            let delta = after
                .get(key)
                .unwrap_or(&0)
                .saturating_sub(*before.get(key).unwrap_or(&0));
            delta as f64 / requests
        };
        println!(
            "  {name:9} per request: cpu {:6.1} us, switches {:5.2}+{:4.2}, rounds {:5.2}, waits {:5.2}, steps {:5.2}, entries {:5.2}, posts {:4.2}, flushes {:4.2}, slots {:4.2}, frames out {:4.2}+{:4.2}",
            per("process.cpu_us"),
            per("process.switches"),
            per("process.preempted"),
            per("driver.rounds"),
            per("driver.waits"),
            per("driver.steps"),
            per("driver.entries"),
            per("postbox.appended"),
            per("postbox.flushes"),
            per("executed"),
            per("network.sent.peer_frame"),
            per("network.sent.replica_frame"),
        );
    }
}

fn main() {
    let options = options();
    let mut cluster = Cluster::create(options.hosts, options.twins, |config| {
        config.storage.durability = options.durability;
        config.postbox.spin_us = options.spin_us;
        config.service.name = "null".to_owned();
    });
    cluster.start_brokers(&broker_binary());
    cluster.start_replicas();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let target = ClientOptions::load(&cluster.layout.config(), 0).expect("the files are there");
        let client = Client::connect(target).await.expect("the cluster runs");
        for &clients in &options.clients {
            measure(&cluster, &client, &options, clients).await;
        }
        drop(client);
    });
    if let Ok(path) = std::env::var("STATUS_OUT") {
        let all = runtime.block_on(async {
            let mut all = Vec::new();
            for id in cluster.ids() {
                all.push(status(&cluster, id).await);
            }
            all
        });
        std::fs::write(path, format!("{:#}", Value::Array(all))).expect("a writable path");
    }
}
