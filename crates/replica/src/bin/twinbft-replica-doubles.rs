//! `twinbft-replica-doubles`: the replica daemon with the Byzantine doubles built in, under a name of its own, so that
//! nobody runs one that can be told to lie without asking for it. For demonstrations and tests.
#![forbid(unsafe_code)]

#[path = "../main.rs"]
mod daemon;

fn main() -> std::process::ExitCode {
    daemon::main()
}
