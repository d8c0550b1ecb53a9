//! Who sends a result, and who its digest (protocol.md 4.8).

mod common;

use common::Host;
use twinbft_core::Tuning;
use twinbft_types::ClientId;
use twinbft_types::wire::Outcome;

/// Requests one after the other whose results h2 is to send; h1 acknowledges them all, and h2 those up to `last`. Gives the
/// slots of which the primary has sent the result itself.
fn sent_by_the_primary(last: u64) -> Vec<u64> {
    let mut host = Host::new(0, 3, 2, &Tuning::default());
    // Longer than a digest.
    let operation = [7; 100];
    let client = ClientId { key: 0, session: 2 };
    for slot in 1..=20 {
        // (c + s) mod N = 2.
        let request = host.keys.request_of(client, 3 * slot, &operation, &[0, 1]);
        for twin in [0, 1] {
            host.request(twin, &request);
        }
        host.settle();
        let (accepted, history) = host.twins[0].core.host_log().accepted();
        assert_eq!(accepted.0, slot);
        let hosts: &[u8] = if slot <= last { &[1, 2] } else { &[1] };
        for twin in [0, 1] {
            host.acknowledge_as(twin, hosts, accepted, history);
            host.serve(twin);
        }
        host.settle();
    }
    let replies = host.twins.iter().flat_map(|twin| &twin.done.replies);
    let mut slots: Vec<u64> = replies
        .filter(|reply| matches!(reply.outcome, Outcome::Result(_)))
        .map(|reply| reply.slot.0)
        .collect();
    slots.sort_unstable();
    assert_eq!(
        host.twins
            .iter()
            .map(|t| t.done.replies.len())
            .sum::<usize>(),
        20
    );
    slots
}

#[test]
fn the_primary_sends_results_for_a_host_that_does_not_keep_up() {
    assert_eq!(sent_by_the_primary(20), []);
    // Eight slots, the pipeline, are no sign.
    assert_eq!(sent_by_the_primary(0), Vec::from_iter(9..=20));
    assert_eq!(sent_by_the_primary(7), Vec::from_iter(16..=20));
}
