//! 4.3: what is executed was inside its client's window: not more than `W` above the highest number up to which all are
//! executed.

use std::collections::{BTreeMap, BTreeSet};

use twinbft_types::{ClientId, Request};

use super::{Violation, violation};

/// What was executed of one session.
#[derive(Clone, Debug, Default)]
pub struct Executed {
    /// All up to this one.
    low: u64,
    above: BTreeSet<u64>,
}

pub fn check(
    sessions: &mut BTreeMap<ClientId, Executed>,
    window: u64,
    requests: &[Request],
) -> Result<(), Violation> {
    for request in requests {
        let session = sessions.entry(request.client).or_default();
        let seq = request.seq.0;
        if seq > session.low + window {
            return Err(violation(
                4,
                format!(
                    "{} {} was executed, {} above a window of {window}",
                    request.client, request.seq, session.low
                ),
            ));
        }
        session.above.insert(seq);
        while session.above.remove(&(session.low + 1)) {
            session.low += 1;
        }
    }
    Ok(())
}
