//! The twinbft command.

fn main() {}
