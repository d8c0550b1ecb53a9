//! Checks the smallest clusters: `twinbft-model`, `twinbft-model smit-leader`.
#![forbid(unsafe_code)]

use std::num::NonZeroUsize;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use twinbft_core::mutants::Rule;
use twinbft_model::{CASES, Case, check};

/// Model checking of the smallest clusters: the real core under all schedules of a bounded case.
#[derive(Parser)]
struct Args {
    /// The cases; all of them when none is named.
    cases: Vec<String>,
    /// Only the cases that every run of the tests checks.
    #[arg(long)]
    short: bool,
    /// Visit so many states of a case at most.
    #[arg(long)]
    states_max: Option<NonZeroUsize>,
    /// Take out this rule first, by its name in `mutants.rs`; "each" takes one after the other. Needs the feature
    /// `mutants`.
    #[arg(long)]
    without: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let cases = chosen(&args)?;
    let rules = match args.without.as_deref() {
        None => vec![None],
        Some(_) if cfg!(not(feature = "mutants")) => {
            bail!("rules can only be taken out of a build with --features mutants")
        }
        Some("each") => Rule::ALL.into_iter().map(Some).collect(),
        Some(name) => {
            let rule = Rule::ALL
                .into_iter()
                .find(|rule| format!("{rule:?}") == name)
                .with_context(|| format!("no rule {name:?}; there are {:?}", Rule::ALL))?;
            vec![Some(rule)]
        }
    };
    // A panic of the core is a violation like any other and is printed as one.
    std::panic::set_hook(Box::new(|_| {}));
    let mut broken = false;
    for rule in rules {
        for case in &cases {
            broken |= show(*case, rule, args.states_max);
        }
    }
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn chosen(args: &Args) -> anyhow::Result<Vec<Case>> {
    if args.cases.is_empty() {
        let all = CASES.iter().filter(|case| case.is_short || !args.short);
        return Ok(all.copied().collect());
    }
    args.cases
        .iter()
        .map(|name| {
            let found = CASES.iter().find(|case| case.name == name);
            let names = || CASES.iter().map(|case| case.name).collect::<Vec<_>>();
            found
                .copied()
                .with_context(|| format!("no case {name:?}; there are {:?}", names()))
        })
        .collect()
}

/// Whether it is broken.
fn show(case: Case, rule: Option<Rule>, states_max: Option<NonZeroUsize>) -> bool {
    let outcome = check(case, rule, states_max);
    if let Some(rule) = rule {
        print!("{rule:?} is out: ");
    }
    println!(
        "{}: {}; {} states, {} transitions, depth {}, {:.1} s, {}",
        case.name,
        case.what,
        outcome.states,
        outcome.transitions,
        outcome.depth,
        outcome.took.as_secs_f64(),
        match (&outcome.violation, outcome.is_complete) {
            (Some(_), _) => "BROKEN",
            (None, true) => "all of them",
            (None, false) => "not all of them",
        },
    );
    for missed in &outcome.missed {
        println!("  never: {missed}");
    }
    if let Some((what, way)) = &outcome.violation {
        println!("  {what}");
        for (number, step) in way.iter().enumerate() {
            println!("  {:>3} {step}", number + 1);
        }
    }
    outcome.violation.is_some() || (outcome.is_complete && !outcome.missed.is_empty())
}
