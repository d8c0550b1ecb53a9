//! The way to the other replicas.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Finding, Part};

const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Whether each replica's address takes a connection. One that is not running yet is a warning only: somebody must be first.
pub fn peers(part: &Part<'_>) -> Vec<Finding> {
    let own = part.twin.map(|twin| (part.host, twin));
    let twins = part.cluster.config.hosts.iter().flat_map(|host| {
        let twins = host.twins.iter();
        twins.map(|twin| ((host.id, twin.id), twin.listen))
    });
    let asked: Vec<_> = twins
        .filter(|(who, _)| Some(*who) != own)
        .map(|(who, address)| {
            let ask = move || {
                let start = Instant::now();
                TcpStream::connect_timeout(&address, CONNECT_MAX).map(|_| start.elapsed())
            };
            (who, address, thread::spawn(ask))
        })
        .collect();
    let told = asked.into_iter().map(|((host, twin), address, thread)| {
        let took = thread.join().expect("it cannot panic");
        match took {
            Ok(took) => Finding::fit(
                "peer",
                format!(
                    "h{host}/t{twin} at {address} answers after {} us",
                    took.as_micros()
                ),
            ),
            Err(error) => Finding::warning(
                "peer",
                format!("h{host}/t{twin} at {address} does not answer: {error}"),
                "does it run, is the address right, and does no firewall stand between?",
            ),
        }
    });
    told.collect()
}
