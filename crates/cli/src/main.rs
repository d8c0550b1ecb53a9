//! The `twinbft` command: reads the command line and hands over to `cmd`.
#![forbid(unsafe_code)]

mod cmd;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use twinbft_config::ConfigError;

/// A bad configuration, as in sysexits.h.
const EXIT_CONFIG: u8 = 64;

/// What a shell reports of a process that SIGPIPE has ended.
const EXIT_SIGPIPE: i32 = 128 + 13;

/// Byzantine fault-tolerant replication on twin virtual machines.
///
/// Start with `twinbft init DIR` and `twinbft up DIR`; `twinbft status --config DIR` shows what is running.
#[derive(Debug, Parser)]
#[command(
    name = "twinbft",
    version,
    arg_required_else_help = true,
    after_help = "\
Exit status: 0 success, 1 failure, 2 a wrong command line, 64 a wrong configuration."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(cmd::init::Args),
    Keygen(cmd::keygen::Args),
    Check(cmd::check::Args),
    Demo(cmd::demo::Args),
    Doctor(cmd::doctor::Args),
    Chaos(cmd::chaos::Args),
    Up(cmd::up::Args),
    Down(cmd::down::Args),
    Status(cmd::status::Args),
    Evidence(cmd::evidence::Args),
    Readmit(cmd::readmit::Args),
    Guard(cmd::guard::Args),
    Audit(cmd::audit::Args),
    Recover(cmd::recover::Args),
    Kv(cmd::kv::KvArgs),
    Bench(cmd::bench::BenchArgs),
    #[command(hide = true)]
    BenchServer(cmd::bench::server::BenchServerArgs),
    Completion(cmd::completion::Args),
    #[command(name = twinbft_cli::supervise::LAUNCH, hide = true)]
    Launch(cmd::launch::Args),
}

/// Whoever reads our output may go away, as `head` does; that is no bug of ours and ends the command like a signal
/// would. Processes that the command started die with it.
fn end_quietly_when_nobody_reads() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload().downcast_ref::<String>();
        if message
            .is_some_and(|m| m.starts_with("failed printing to std") && m.contains("Broken pipe"))
        {
            std::process::exit(EXIT_SIGPIPE);
        }
        report(info);
    }));
}

fn main() -> ExitCode {
    end_quietly_when_nobody_reads();
    let outcome = match Cli::parse().command {
        Command::Init(args) => cmd::init::run(&args),
        Command::Keygen(args) => cmd::keygen::run(&args),
        Command::Check(args) => cmd::check::run(&args),
        Command::Demo(args) => cmd::demo::run(&args),
        Command::Doctor(args) => cmd::doctor::run(&args),
        Command::Chaos(args) => cmd::chaos::run(&args),
        Command::Up(args) => cmd::up::run(&args),
        Command::Down(args) => cmd::down::run(&args),
        Command::Status(args) => cmd::status::run(&args),
        Command::Evidence(args) => cmd::evidence::run(&args),
        Command::Guard(args) => cmd::guard::run(&args),
        Command::Readmit(args) => cmd::readmit::run(&args),
        Command::Audit(args) => cmd::audit::run(&args),
        Command::Recover(args) => cmd::recover::run(&args),
        Command::Kv(args) => cmd::kv::block_on(cmd::kv::run(args)),
        Command::Bench(args) => cmd::kv::block_on(cmd::bench::run(args)),
        Command::BenchServer(args) => cmd::kv::block_on(cmd::bench::server::run(args)),
        Command::Completion(args) => cmd::completion::run::<Cli>(&args),
        Command::Launch(args) => cmd::launch::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("twinbft: {error:#}");
        match error.downcast_ref::<ConfigError>() {
            Some(ConfigError::Invalid { .. }) => ExitCode::from(EXIT_CONFIG),
            Some(ConfigError::Read { .. }) | None => ExitCode::FAILURE,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        for command in super::Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            assert!(
                command.get_about().is_some(),
                "{} has no help",
                command.get_name()
            );
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }
}
