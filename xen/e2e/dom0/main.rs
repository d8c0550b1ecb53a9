//! Dom0's side of `scripts/xen-e2e`: two installed brokers under a supervisor, guests that `xl` makes, and what must be true
//! of them. Broker `lib` serves two guests with a test program, broker `main` two guests with installed replicas; then three
//! brokers stand for three hosts, with two guests each.
//!
//! Prints `RESULT PASS …` and `RESULT FAIL …` lines; the guests' own come through xenstore.

mod client;
mod cluster;
mod grants;
mod guests;
mod hosts;
mod library;
mod save;
mod supervisor;

use std::time::{Duration, Instant};

/// Everything here is emulated, and slow; only a failure waits so long.
pub const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let wants = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if wants("lib") {
        library::run();
    }
    if wants("main") {
        cluster::run();
    }
    if wants("hosts") {
        hosts::run();
    }
    say("the end");
}

/// One line of the result.
pub fn result(good: bool, text: &str) {
    println!("RESULT {} {text}", if good { "PASS" } else { "FAIL" });
}

/// One line of the result, of something that a client did.
pub fn check(good: Result<(), String>, text: &str) {
    match good {
        Ok(()) => result(true, &format!("dom0: {text}")),
        Err(error) => result(false, &format!("dom0: {text}: {error}")),
    }
}

/// What is going on, with the time.
pub fn say(text: &str) {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().unwrap_or_default();
    println!("E2E {seconds} {text}");
}

/// Looks again and again until `look` finds something.
pub fn await_some<T>(what: &str, look: impl FnMut() -> Option<T>) -> Option<T> {
    await_within(PATIENCE, what, look)
}

/// The same, for something that may take longer.
pub fn await_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() > patience {
            say(&format!("gave up waiting: {what}"));
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
