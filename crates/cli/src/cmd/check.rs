//! `twinbft check`: all mistakes of a configuration at once.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};
use twinbft_cli::cluster::config_file;
use twinbft_config::{ClusterConfig, ConfigError, Membership, MembershipError, Mistake};
use twinbft_types::Shape;

/// Check a cluster.toml: every mistake with its line, value and remedy
///
/// Exit status 64 when there are mistakes, or when replicas would refuse the change. Without mistakes it says what the cluster tolerates.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file, or the directory that cluster.toml is in
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The cluster.toml that replicas run under, or its directory: says whether they would accept the change
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Checks the file.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = config_file(&args.file);
    let config = match ClusterConfig::load(&file) {
        Ok(config) => config,
        Err(ConfigError::Invalid { path, mistakes }) if args.json => {
            let mistakes: Vec<Value> = mistakes.iter().map(mistake_json).collect();
            println!(
                "{:#}",
                json!({ "file": path, "valid": false, "mistakes": mistakes })
            );
            return Ok(ExitCode::from(crate::EXIT_CONFIG));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(refused) = refused(args, &config)? {
        if args.json {
            let refused = refused.to_string();
            println!(
                "{:#}",
                json!({ "file": file, "valid": true, "refused": refused })
            );
        } else {
            eprintln!("{}: replicas refuse this change: {refused}", file.display());
        }
        return Ok(ExitCode::from(crate::EXIT_CONFIG));
    }
    let shape = Shape::new(config.host_count(), config.twin_count())
        .expect("the bounds of the file are those of the protocol");
    if args.json {
        println!(
            "{:#}",
            json!({
                "file": file,
                "valid": true,
                "cluster": config.cluster.id,
                "hosts": shape.hosts(),
                "twins": shape.twins(),
                "host_quorum": shape.host_quorum(),
                "twin_quorum": shape.twin_quorum(),
                "host_faults": shape.host_faults(),
                "twin_faults_detected": shape.twin_quorum() - 1,
                "twin_faults_masked": usize::from(shape.twins()) - shape.twin_quorum(),
            })
        );
    } else {
        print!("{}", summary(&config, shape));
    }
    Ok(ExitCode::SUCCESS)
}

/// Why replicas that run under the other file would not start under this one.
fn refused(args: &Args, config: &ClusterConfig) -> anyhow::Result<Option<MembershipError>> {
    let Some(old) = &args.against else {
        return Ok(None);
    };
    let old = ClusterConfig::load(&config_file(old))?;
    let changed = Membership::of(config).check_against(&Membership::of(&old));
    Ok(changed.err())
}

fn mistake_json(mistake: &Mistake) -> Value {
    json!({
        "line": mistake.line,
        "column": mistake.column,
        "path": mistake.path,
        "value": mistake.value,
        "problem": mistake.problem,
        "remedy": mistake.remedy,
    })
}

/// What the cluster is and what it survives, for people.
fn summary(config: &ClusterConfig, shape: Shape) -> String {
    let (hosts, twins) = (usize::from(shape.hosts()), usize::from(shape.twins()));
    let (host_quorum, twin_quorum) = (shape.host_quorum(), shape.twin_quorum());
    let silent = match shape.host_faults() {
        0 => "no host may be silent, slow, cut off or down".to_owned(),
        1 => "one host may be silent, slow, cut off or down".to_owned(),
        faults => format!("{faults} hosts may be silent, slow, cut off or down"),
    };
    let masked = twins - twin_quorum;
    let lying = match (masked, twin_quorum - 1) {
        (0, 1) => "when one twin lies, its host falls silent instead of lying".to_owned(),
        (0, lies) => {
            format!("when up to {lies} twins lie, their host falls silent instead of lying")
        }
        (1, 1) => "when one twin lies or stops, its host goes on without it".to_owned(),
        (masked, lies) => format!(
            "when up to {masked} twins lie or stop, their host goes on; when up to {lies} lie, it does not lie"
        ),
    };
    let durability = match config.storage.durability {
        twinbft_config::Durability::Memory => {
            "a replica's promises outlive its process, not a power failure"
        }
        twinbft_config::Durability::Group | twinbft_config::Durability::Sync => {
            "a replica's promises outlive a power failure"
        }
    };
    format!(
        "OK: cluster \"{id}\", service {service}, {clients} client key{s}\n\
         hosts       N = {hosts}, quorum Q = {host_quorum}: {silent}\n\
         twins       m = {twins}, quorum q = {twin_quorum}: {lying}\n\
         durability  {name}: {durability}\n",
        id = config.cluster.id,
        service = config.service.name,
        clients = config.clients.len(),
        s = if config.clients.len() == 1 { "" } else { "s" },
        name = config.storage.durability.name(),
    )
}
