//! `twinbft kv`: the key-value service from the command line.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::ArgGroup;
use serde_json::{Map, Value as Json, json};
use twinbft_client::kv::{Expect, KvClient, KvError, Swapped};
use twinbft_client::{CallError, Client, ClientOptions};
use twinbft_types::kv::{Item, Page, Revision};

/// No such key, or the expectation of `cas` did not hold.
const EXIT_ABSENT: u8 = 1;
/// No certified answer in time: the operation may or may not take effect.
const EXIT_TIMED_OUT: u8 = 3;

/// Read and write the key-value service
///
/// Exit status 0 success, 1 no such key or (cas) another value than expected, 3 no certified answer in time, which
/// leaves open whether a write takes effect; 64 a wrong configuration.
#[derive(Debug, clap::Args)]
pub struct KvArgs {
    #[command(subcommand)]
    operation: Operation,
    /// cluster.toml, or the directory that it is in
    #[arg(long, global = true, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// The client whose keys to use
    #[arg(long, global = true, value_name = "ID", default_value_t = 0)]
    client: u32,
    /// How long to wait for a certified answer
    #[arg(long, global = true, value_name = "MS", default_value_t = 5000,
          value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: u64,
    /// One JSON document instead of text; bytes that are no UTF-8 stand in fields that end in _hex
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Operation {
    /// Print the value of a key
    Get {
        /// The key
        key: String,
        /// Do not have the read ordered when enough hosts agree on the answer at once; it is linearizable all the same
        #[arg(long)]
        fast: bool,
    },
    /// Write a value; prints its revision
    Put {
        /// The key
        key: String,
        /// The value; - reads it from the standard input
        value: String,
    },
    /// Remove a key; prints the revision that is gone
    Delete {
        /// The key
        key: String,
    },
    /// Write a value if the key is as expected; prints the new revision
    Cas(CasArgs),
    /// Print keys and values, START <= key < END, a tab between them
    Scan {
        /// The first key; empty: from the beginning
        #[arg(default_value = "")]
        start: String,
        /// The key after the last one; empty: no end
        #[arg(default_value = "")]
        end: String,
        /// The most that are printed; 0: all
        #[arg(long, default_value_t = 0)]
        limit: u32,
    },
    /// Print the keys that begin with a prefix
    List {
        /// The prefix; empty: all keys
        #[arg(default_value = "")]
        prefix: String,
        /// The most that are printed; 0: all
        #[arg(long, default_value_t = 0)]
        limit: u32,
    },
}

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("expected").required(true).args(["expect", "expect_absent", "expect_revision"]),
    group = ArgGroup::new("replacement").required(true).args(["value", "delete"])
)]
struct CasArgs {
    /// The key
    key: String,
    /// The new value; - reads it from the standard input
    value: Option<String>,
    /// Remove the key instead of writing a new value
    #[arg(long)]
    delete: bool,
    /// The value must be this
    #[arg(long, value_name = "VALUE")]
    expect: Option<String>,
    /// There must be no such key
    #[arg(long)]
    expect_absent: bool,
    /// The value must have been written at this revision, as `put` and `get --json` print it: SLOT.INDEX
    #[arg(long, value_name = "REVISION", value_parser = parse_revision)]
    expect_revision: Option<Revision>,
}

/// What is printed, and how the command ends.
struct Outcome {
    text: Vec<u8>,
    json: Json,
    exit: u8,
}

/// Runs `future` on this thread: a client has little to compute, and tasks on one core find each other fastest.
///
/// # Errors
/// What the future says, or that there is no runtime.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(future)
}

/// Carries the operation out and prints what came of it.
///
/// # Errors
/// Says what failed and what to do about it.
pub async fn run(args: KvArgs) -> anyhow::Result<ExitCode> {
    // A configuration that does not stand has an exit status of its own.
    let cluster = twinbft_cli::cluster::Cluster::load(&args.config)?;
    let target = twinbft_client::Target::of(&cluster.config, &cluster.file, args.client)?;
    let mut options = ClientOptions::new(target);
    options.call_timeout = Duration::from_millis(args.timeout_ms);
    options.connect_timeout = options.connect_timeout.min(options.call_timeout);
    let client = Client::connect(options).await?;
    let kv = KvClient::new(client.session());
    match carry_out(&kv, args.operation).await {
        Ok(outcome) => {
            print(&outcome, args.json)?;
            Ok(ExitCode::from(outcome.exit))
        }
        Err(error) => match error.downcast_ref::<KvError>() {
            Some(KvError::Call(CallError::TimedOut(unanswered))) => {
                eprintln!("twinbft: {unanswered}");
                Ok(ExitCode::from(EXIT_TIMED_OUT))
            }
            Some(_) | None => Err(error),
        },
    }
}

fn print(outcome: &Outcome, json: bool) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = if json {
        writeln!(stdout, "{}", outcome.json)
    } else {
        stdout.write_all(&outcome.text)
    };
    match written.and_then(|()| stdout.flush()) {
        // Whoever reads has seen enough: `twinbft kv list | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to the standard output"),
    }
}

async fn carry_out(kv: &KvClient, operation: Operation) -> anyhow::Result<Outcome> {
    match operation {
        Operation::Get { key, fast } => get(kv, key, fast).await,
        Operation::Put { key, value } => {
            let revision = kv.put(key.into(), read_value(value)?).await?;
            Ok(done("written", Some(&revision)))
        }
        Operation::Delete { key } => {
            let deleted = kv.delete(key.clone().into()).await?;
            Ok(match deleted {
                Some(revision) => done("deleted", Some(&revision)),
                None => absent(&key),
            })
        }
        Operation::Cas(args) => cas(kv, args).await,
        Operation::Scan { start, end, limit } => scan(kv, start.into(), end.into(), limit).await,
        Operation::List { prefix, limit } => list(kv, prefix.into(), limit).await,
    }
}

async fn get(kv: &KvClient, key: String, fast: bool) -> anyhow::Result<Outcome> {
    let bytes = Bytes::from(key.clone());
    let (value, was_fast) = if fast {
        kv.get_fast(bytes).await?
    } else {
        (kv.get(bytes).await?, false)
    };
    let Some(value) = value else {
        return Ok(absent(&key));
    };
    let mut document = Map::new();
    put_bytes(&mut document, "value", &value.value);
    document.insert(
        "revision".into(),
        revision_text(value.revision.as_ref()).into(),
    );
    if fast {
        document.insert("fast".into(), was_fast.into());
    }
    Ok(Outcome {
        text: [&value.value[..], b"\n"].concat(),
        json: document.into(),
        exit: 0,
    })
}

async fn cas(kv: &KvClient, args: CasArgs) -> anyhow::Result<Outcome> {
    let expect = match (args.expect, args.expect_revision) {
        (Some(value), _) => Expect::Value(value.into()),
        (None, Some(revision)) => Expect::Revision(revision),
        (None, None) => Expect::Absent,
    };
    let new = args.value.map(read_value).transpose()?;
    let swapped = kv.compare_and_swap(args.key.into(), expect, new).await?;
    Ok(match swapped {
        Swapped::Written(revision) => done("written", Some(&revision)),
        Swapped::Deleted(revision) => done("deleted", Some(&revision)),
        Swapped::Mismatch(found) => {
            match &found {
                Some(revision) => eprintln!(
                    "twinbft: not as expected: the value there was written at {}",
                    revision_text(Some(revision))
                ),
                None => eprintln!("twinbft: not as expected: there is no such key"),
            }
            Outcome {
                text: Vec::new(),
                json: json!({
                    "mismatch": true,
                    "revision": found.as_ref().map(|found| revision_text(Some(found))),
                }),
                exit: EXIT_ABSENT,
            }
        }
    })
}

async fn scan(kv: &KvClient, start: Bytes, end: Bytes, limit: u32) -> anyhow::Result<Outcome> {
    let mut items = Vec::new();
    let mut from = start;
    loop {
        let page = kv.scan(from, end.clone(), left(limit, &items)).await?;
        from = page.continuation.clone();
        if take_page(&mut items, page, limit) {
            return Ok(page_outcome(&items, true));
        }
    }
}

async fn list(kv: &KvClient, prefix: Bytes, limit: u32) -> anyhow::Result<Outcome> {
    let mut items = Vec::new();
    let mut from = Bytes::new();
    loop {
        let page = kv.list(prefix.clone(), from, left(limit, &items)).await?;
        from = page.continuation.clone();
        if take_page(&mut items, page, limit) {
            return Ok(page_outcome(&items, false));
        }
    }
}

/// How many more are wanted; 0: all.
fn left(limit: u32, items: &[Item]) -> u32 {
    limit.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX))
}

/// Whether that was the last page.
fn take_page(items: &mut Vec<Item>, page: Page, limit: u32) -> bool {
    // An empty page with a continuation would go on for ever; no correct service gives one.
    let last = page.continuation.is_empty() || page.items.is_empty();
    items.extend(page.items);
    last || (limit > 0 && left(limit, items) == 0)
}

fn page_outcome(items: &[Item], with_values: bool) -> Outcome {
    let mut text = Vec::new();
    let mut documents = Vec::new();
    for item in items {
        text.extend_from_slice(&item.key);
        let mut document = Map::new();
        put_bytes(&mut document, "key", &item.key);
        if with_values {
            text.push(b'\t');
            text.extend_from_slice(&item.value);
            put_bytes(&mut document, "value", &item.value);
        }
        text.push(b'\n');
        document.insert("value_bytes".into(), item.value_bytes.into());
        document.insert(
            "revision".into(),
            revision_text(item.revision.as_ref()).into(),
        );
        documents.push(Json::from(document));
    }
    Outcome {
        text,
        json: json!({ "items": documents }),
        exit: 0,
    }
}

fn done(what: &str, revision: Option<&Revision>) -> Outcome {
    let revision = revision_text(revision);
    Outcome {
        text: format!("{revision}\n").into_bytes(),
        json: json!({ what: true, "revision": revision }),
        exit: 0,
    }
}

fn absent(key: &str) -> Outcome {
    eprintln!("twinbft: there is no key {key:?}");
    Outcome {
        text: Vec::new(),
        json: json!({ "absent": true }),
        exit: EXIT_ABSENT,
    }
}

fn read_value(value: String) -> anyhow::Result<Bytes> {
    if value != "-" {
        return Ok(value.into());
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .context("reading the value from the standard input")?;
    Ok(bytes.into())
}

fn put_bytes(document: &mut Map<String, Json>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => document.insert(name.to_owned(), text.into()),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            document.insert(format!("{name}_hex"), hex.into())
        }
    };
}

fn revision_text(revision: Option<&Revision>) -> String {
    revision.map_or_else(String::new, |r| format!("{}.{}", r.slot, r.index))
}

fn parse_revision(text: &str) -> Result<Revision, String> {
    let parts = text.split_once('.').and_then(|(slot, index)| {
        Some(Revision {
            slot: slot.parse().ok()?,
            index: index.parse().ok()?,
        })
    });
    parts.ok_or_else(|| {
        format!("{text:?} is no revision; write SLOT.INDEX as `twinbft kv put` prints it")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        kv: KvArgs,
    }

    fn parses(line: &str) -> bool {
        Cli::try_parse_from(line.split(' ')).is_ok()
    }

    #[test]
    fn a_cas_has_one_expectation_and_one_replacement() {
        assert!(parses("kv cas k new --expect old"));
        assert!(parses("kv cas k new --expect-absent"));
        assert!(parses("kv cas k --delete --expect-revision 12.0"));
        assert!(!parses("kv cas k new"));
        assert!(!parses("kv cas k --expect old"));
        assert!(!parses("kv cas k new --delete --expect old"));
        assert!(!parses("kv cas k new --expect old --expect-absent"));
        assert!(!parses("kv cas k new --expect-revision twelve"));
    }

    #[test]
    fn a_revision_is_read_as_it_is_printed() {
        let revision = Revision { slot: 12, index: 3 };
        assert_eq!(
            parse_revision(&revision_text(Some(&revision))),
            Ok(revision)
        );
        assert!(parse_revision("12").is_err());
    }

    #[test]
    fn pages_end_with_the_limit_or_the_last_one() {
        let page = |items: usize, more: bool| Page {
            items: vec![Item::default(); items],
            continuation: if more {
                Bytes::from_static(b"x")
            } else {
                Bytes::new()
            },
        };
        let mut items = Vec::new();
        assert!(!take_page(&mut items, page(2, true), 3));
        assert_eq!(left(3, &items), 1);
        assert!(take_page(&mut items, page(1, true), 3));
        assert!(take_page(&mut items, page(1, false), 0));
        assert!(take_page(&mut items, page(0, true), 0));
    }

    #[test]
    fn bytes_that_are_no_text_stand_in_hex() {
        let mut document = Map::new();
        put_bytes(&mut document, "value", b"text");
        put_bytes(&mut document, "key", &[0xff, 0]);
        assert_eq!(
            Json::from(document),
            json!({ "value": "text", "key_hex": "ff00" })
        );
    }
}
