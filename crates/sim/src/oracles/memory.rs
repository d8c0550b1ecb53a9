//! Invariant 9: memory stays bounded, between the marks.

use twinbft_core::{Replica, Tuning};

use super::{Violation, violation};

/// Looks at what one correct replica keeps that has crashed so often.
pub fn check_footprint(
    replica: &Replica,
    tuning: &Tuning,
    unanimous: bool,
    crashes: u32,
) -> Result<(), Violation> {
    // From one interval below L to the high mark of a sibling, whose L may be a checkpoint ahead, and two intervals that a start
    // has taken from its write-ahead log and hands over a few slots a step: it stands at its own checkpoint, at most so far
    // above the last one that it knows to be stable, and may crash again before it hears of another. With m > q a twin that lacks
    // a body falls behind its siblings until state transfer ends that: a loose bound.
    let starts = u64::from(crashes.max(1));
    let intervals = if unanimous { 4 + 2 * starts } else { 18 };
    let slots = usize::try_from(intervals * tuning.checkpoint_slots + 1).unwrap_or(usize::MAX);
    // The least of the bounds below: hardly ever exceeded, and then the names are looked at.
    let least = slots
        .min(tuning.pending_requests_max)
        .min(tuning.sessions_max);
    for (what, count) in replica.footprint() {
        if count <= least {
            continue;
        }
        let bound = match what {
            "slots" | "waiting_orders" => slots,
            "pool" => tuning.pending_requests_max,
            // It may name requests that gave way in the pool.
            "queue" => 2 * tuning.pending_requests_max,
            "sessions" => {
                tuning.sessions_max * usize::try_from(crate::cast::CLIENTS_MAX).unwrap_or(1)
            }
            "replies" => 2048,
            "past_bytes" => tuning.retain_bytes,
            "reads" => 8192,
            _ => usize::MAX,
        };
        // With m > q a twin may fall behind its own host; what it keeps then is bounded by state transfer only.
        if count > bound && replica.status().state == "running" {
            return Err(violation(9, format!("{count} {what}, bound {bound}")));
        }
    }
    Ok(())
}
