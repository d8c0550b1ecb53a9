//! `twinbft audit`: replays the record of a host's postbox log and names what no correct twin would have posted.

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use twinbft_cli::cluster::Cluster;
use twinbft_config::{ClusterConfig, TRIM_BYTES, TRIM_MULTIPLE};
use twinbft_core::audit::Auditor;
use twinbft_core::hostlog::Bounds;
use twinbft_recording::{Item, Joins, Recording, SegmentHeader};
use twinbft_types::{Digest, HostId, Position, Shape, TwinId};

pub use report::{Report, Wrong};

/// The record is damaged, as in sysexits.h.
const EXIT_DAMAGED: u8 = 65;
/// There is no record, as in sysexits.h.
const EXIT_NO_INPUT: u8 = 66;

/// Audit the record of a host's postbox log
///
/// Verifies its hash chain, replays it through the same code that every twin runs, and names the first entry that no
/// correct twin would have posted. Brokers record where `record_dir` in the section [postbox] of cluster.toml says. Exit
/// status 0 when nothing was found, 1 when something was, 65 when the record is damaged (what stands before the damage
/// is audited all the same), 66 when there is none.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The record of one host, like record/h0
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// cluster.toml, or the directory that it is in: for the numbers of hosts and twins, and the protocol's bounds
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Audits and reports.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.config)?;
    let Some(report) = audit(&args.dir, &cluster.config)? else {
        let dir = args.dir.display();
        eprintln!(
            "twinbft: there is no recorded segment in {dir}; name the directory of one host, like record/h0"
        );
        return Ok(ExitCode::from(EXIT_NO_INPUT));
    };
    if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.text());
    }
    Ok(if report.damage.is_some() {
        ExitCode::from(EXIT_DAMAGED)
    } else if report.found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Follows the record to its end or to its first damage; `None` when there is no segment.
///
/// # Errors
/// When it cannot be read, or is of another cluster.
pub fn audit(dir: &Path, config: &ClusterConfig) -> anyhow::Result<Option<Report>> {
    let opened = Recording::open(dir);
    let mut recording = opened.with_context(|| format!("reading {}", dir.display()))?;
    if recording.is_empty() {
        return Ok(None);
    }
    let mut audit = Audit {
        config,
        report: Report::new(dir),
        auditor: None,
        begun_at: 0,
    };
    let mut payload = Vec::new();
    loop {
        match recording.next(&mut payload) {
            Ok(Some(Item::Segment { header, joins })) => audit.begin(&header, joins)?,
            Ok(Some(Item::Entry(head))) => audit.entry(head.sender, &payload),
            Ok(None) => break,
            Err(damage) => {
                audit.report.damage = Some(damage);
                break;
            }
        }
    }
    audit.report.end = recording.end();
    Ok(Some(audit.report))
}

struct Audit<'a> {
    config: &'a ClusterConfig,
    report: Report,
    auditor: Option<Auditor>,
    /// The position of the STATE that the audit has begun with.
    begun_at: u64,
}

impl Audit<'_> {
    fn begin(&mut self, header: &SegmentHeader, joins: Joins) -> anyhow::Result<()> {
        let id = &self.config.cluster.id;
        if header.cluster_id != *id || header.host >= u32::from(self.config.host_count()) {
            bail!(
                "{} is the record of host {} of cluster \"{}\", and the configuration is of \"{id}\" with {} hosts; \
                 name the right one with --config",
                self.report.dir.display(),
                header.host,
                header.cluster_id,
                self.config.host_count(),
            );
        }
        self.report.begin(header, joins);
        match (&self.auditor, joins) {
            (Some(auditor), Joins::Continues) => {
                let position = Position(header.first_position);
                let is_known = header.first_position == self.begun_at;
                let known = auditor.state_digest(position);
                let wrong = match (&header.state, known) {
                    _ if is_known => None,
                    (Some(state), Some(digest)) if Digest::of(state) == digest => None,
                    (Some(_), Some(_)) => Some("a STATE that the log does not give"),
                    (Some(_), None) => Some("a STATE where no trim was due"),
                    (None, _) => None,
                };
                if let Some(problem) = wrong {
                    self.report
                        .found
                        .push((header.epoch, Wrong::State { position, problem }));
                }
                Ok(())
            }
            (None, _) | (_, Joins::First | Joins::Gap { .. } | Joins::NewEpoch) => {
                self.begun_at = header.first_position;
                self.auditor = Some(self.auditor_of(header)?);
                Ok(())
            }
        }
    }

    fn auditor_of(&self, header: &SegmentHeader) -> anyhow::Result<Auditor> {
        let shape = Shape::new(self.config.host_count(), self.config.twin_count())
            .expect("the bounds of the file are those of the protocol");
        let host = HostId(u8::try_from(header.host).expect("checked against the number of hosts"));
        let bounds = bounds(self.config);
        let Some(state) = &header.state else {
            return Ok(match header.epoch {
                1 => Auditor::genesis(shape, host, bounds),
                _ => Auditor::reopened(shape, host, bounds),
            });
        };
        let position = Position(header.first_position);
        Auditor::from_state(shape, host, position, state).with_context(|| {
            format!(
                "reading the STATE of segment {} in {}; is this the cluster.toml that it was recorded under?",
                header.serial,
                self.report.dir.display()
            )
        })
    }

    fn entry(&mut self, sender: u8, bytes: &[u8]) {
        let auditor = self.auditor.as_mut().expect("entries come in a segment");
        let epoch = self.report.epoch;
        let found = auditor.handle_entry(TwinId(sender), bytes);
        self.report.entries += 1;
        let found = found
            .into_iter()
            .map(|finding| (epoch, Wrong::Entry(finding)));
        self.report.found.extend(found);
    }
}

/// What bounds a host's automaton in a cluster of this configuration.
fn bounds(config: &ClusterConfig) -> Bounds {
    let protocol = &config.protocol;
    Bounds {
        checkpoint_slots: protocol.checkpoint_slots,
        batch_requests_max: protocol.batch_requests_max as u64,
        pipeline_depth: protocol.pipeline_depth,
        trim_multiple: TRIM_MULTIPLE,
        trim_entries: protocol.trim_entries,
        trim_bytes: TRIM_BYTES,
    }
}
