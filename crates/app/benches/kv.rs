//! `cargo bench -p twinbft-app`: what `kv` costs, beside the baseline of a digest by a full pass in the same run.
//!
//! The directory is a temporary one (`TMPDIR`). Numbers are medians of the rounds that are named.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use twinbft_app::kv::Kv;
use twinbft_app::{Application, BatchContext, Durability, KvOptions, Operation};
use twinbft_types::kv::operation::Kind;
use twinbft_types::kv::{self, Get, Put};
use twinbft_types::{ClientId, Digest, Seq, Slot};

const VALUE_BYTES: usize = 128;
const BATCH: u64 = 64;
const DIRTY: u64 = 16_384;
const ROUNDS: u64 = 7;

fn key(i: u64) -> Bytes {
    Bytes::from(format!(
        "user/{:016x}",
        i.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    ))
}

fn put(i: u64, salt: u64) -> Bytes {
    let mut value = vec![7; VALUE_BYTES];
    value[..8].copy_from_slice(&salt.to_le_bytes());
    let kind = Kind::Put(Put {
        key: key(i),
        value: value.into(),
    });
    kv::Operation { kind: Some(kind) }.encode_to_vec().into()
}

fn get(i: u64) -> Bytes {
    let kind = Some(Kind::Get(Get { key: key(i) }));
    kv::Operation { kind }.encode_to_vec().into()
}

struct Bench {
    app: Kv,
    slot: u64,
}

impl Bench {
    /// Executes in batches; gives the time in the service alone.
    fn run(&mut self, operations: &[Bytes]) -> Duration {
        let mut spent = Duration::ZERO;
        let mut results = Vec::new();
        for chunk in operations.chunks(usize::try_from(BATCH).expect("small")) {
            let batch: Vec<_> = chunk
                .iter()
                .map(|bytes| Operation {
                    client: ClientId { key: 0, session: 0 },
                    seq: Seq(1),
                    bytes,
                })
                .collect();
            self.slot += 1;
            let context = BatchContext {
                slot: Slot(self.slot),
                timestamp_us: self.slot,
                seed: Digest::ZERO,
            };
            results.clear();
            let start = Instant::now();
            self.app
                .execute(&context, &batch, &mut results)
                .expect("the store works");
            spent += start.elapsed();
        }
        spent
    }

    fn checkpoint(&mut self) -> (Duration, Duration) {
        let start = Instant::now();
        let work = self.app.checkpoint_begin(Slot(self.slot));
        let begun = start.elapsed();
        work.and_then(|work| work.run()).expect("the store works");
        (begun, start.elapsed())
    }
}

/// The memory of this process, operations of the bench included.
fn resident() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.unwrap_or("VmRSS unknown").replace('\t', " ")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn per_second(operations: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let operations = operations as f64;
    operations / time.as_secs_f64()
}

fn measure(durability: Durability, keys: u64) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let app = Kv::open(directory.path(), durability, KvOptions::default()).expect("opens");
    let mut bench = Bench { app, slot: 0 };
    println!("durability {durability:?}, cache 4 MiB, {keys} keys, values of {VALUE_BYTES} B");

    let (mut loading, mut writing) = (Duration::ZERO, Duration::ZERO);
    for first in (0..keys).step_by(usize::try_from(DIRTY).expect("small")) {
        let last = keys.min(first + DIRTY);
        loading += bench.run(&(first..last).map(|i| put(i, 0)).collect::<Vec<_>>());
        writing += bench.checkpoint().1;
    }
    println!(
        "  load: execute {:.0} puts/s, with a checkpoint each {DIRTY} keys {:.0} puts/s",
        per_second(keys, loading),
        per_second(keys, loading + writing)
    );

    let mut rounds: [Vec<Duration>; 6] = Default::default();
    for round in 1..=ROUNDS {
        let some = |i: u64| (i * (keys / DIRTY) + round) % keys;
        let puts: Vec<Bytes> = (0..DIRTY).map(|i| put(some(i), round)).collect();
        rounds[0].push(bench.run(&puts));
        let (begun, done) = bench.checkpoint();
        rounds[1].push(begun);
        rounds[2].push(done);
        let start = Instant::now();
        let full = bench.app.digest_by_full_pass().expect("the store works");
        rounds[3].push(start.elapsed());
        let taken = bench.app.last_checkpoint().expect("taken");
        assert_eq!(full, taken.digest);
        let gets: Vec<Bytes> = (0..DIRTY).map(|i| get(some(i))).collect();
        rounds[4].push(bench.run(&gets));
        bench.run(&[put(round, round)]);
        rounds[5].push(bench.checkpoint().1);
    }
    let file = fs::metadata(directory.path().join("kv.redb")).map_or(0, |file| file.len());
    let [puts, begun, done, full, gets, single] = rounds.map(median);
    println!("  medians of {ROUNDS} rounds, operations in batches of {BATCH}:");
    println!(
        "  puts executed                        {:>10.0} /s",
        per_second(DIRTY, puts)
    );
    println!(
        "  gets from the file                   {:>10.0} /s",
        per_second(DIRTY, gets)
    );
    println!("  checkpoint, {DIRTY} dirty keys         {done:>10.1?}");
    println!("    of that in the executing thread    {begun:>10.1?}");
    println!("  checkpoint, 1 dirty key              {single:>10.1?}");
    println!("  baseline: digest by a full pass      {full:>10.1?} without writing anything");
    println!("  file {} MiB, {}", file >> 20, resident());
}

fn main() {
    println!(
        "{} cores",
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    for file in ["/proc/loadavg", "/proc/version"] {
        println!(
            "{file}: {}",
            fs::read_to_string(file).unwrap_or_default().trim()
        );
    }
    println!("idle: {}", resident());
    measure(Durability::Memory, 100_000);
    measure(Durability::Sync, 100_000);
    measure(Durability::Memory, 1_000_000);
}
