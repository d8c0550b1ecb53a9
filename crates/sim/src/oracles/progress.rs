//! Invariant 8: once the network is timely and at most `f` hosts are faulty, every correct client's request ends.

use super::{Violation, violation};
use crate::client::Client;

/// `clients` are the correct ones, long after the network healed.
pub fn check_progress<'a>(clients: impl Iterator<Item = &'a Client>) -> Result<(), Violation> {
    for client in clients {
        if let Some(failed) = &client.failed {
            return Err(violation(8, format!("{}: {failed}", client.id)));
        }
        if !client.is_done() {
            return Err(violation(
                8,
                format!(
                    "{} still waits, {} operations not begun",
                    client.id, client.left
                ),
            ));
        }
    }
    Ok(())
}
