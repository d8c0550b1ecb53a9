//! Dom0's side of `scripts/xen-e2e`: two installed brokers under a supervisor, guests that `xl` makes, and what must be true
//! of them. Broker `lib` serves two guests with a test program, broker `main` two guests with installed replicas.
//!
//! Prints `RESULT PASS …` and `RESULT FAIL …` lines; the guests' own come through xenstore.

mod cluster;
mod grants;
mod guests;
mod library;
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
    say("the end");
}

/// One line of the result.
pub fn result(good: bool, text: &str) {
    println!("RESULT {} {text}", if good { "PASS" } else { "FAIL" });
}

/// What is going on, with the time.
pub fn say(text: &str) {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().unwrap_or_default();
    println!("E2E {seconds} {text}");
}

/// Looks again and again until `look` finds something.
pub fn await_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() > PATIENCE {
            say(&format!("gave up waiting: {what}"));
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
