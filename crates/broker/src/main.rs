//! The daemon in dom0 that owns a host's postbox. See the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use postbox_broker::{Command, USAGE, parse, start};

/// A mistake on the command line, as in sysexits.h.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let options = match parse(std::env::args_os()) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Command::Version) => {
            println!("postbox-broker {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("postbox-broker: {error}\n\n{USAGE}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match start(*options).and_then(|mut broker| broker.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postbox-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}
