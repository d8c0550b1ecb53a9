//! The replica daemon: one per guest.

fn main() {}
