//! A fuzz target of a session that another host has sent (protocol.md 5); `scripts/fuzz` drives it by coverage.

use bolero::{TypeGenerator, check};

use super::*;

/// A session whose results have their digests, which no fuzzer finds by itself.
#[derive(Clone, Debug, TypeGenerator)]
struct Sent {
    low: u8,
    above: BTreeSet<u8>,
    kept: Vec<(u8, u8, Option<Vec<u8>>)>,
    /// Bytes behind it, or one that turns.
    more: Vec<u8>,
    bent: Option<(u8, u8)>,
}

/// A session has one encoding: two that mean the same would have the same digest, and one of them counts its bytes wrongly.
#[test]
fn sessions() {
    check!()
        .with_iterations(1000)
        .with_type::<Sent>()
        .for_each(|sent| {
            let kept = sent.kept.iter().map(|(seq, slot, result)| {
                let result = result.clone().map(Bytes::from);
                let digest = result.as_ref().map_or(Digest::ZERO, |r| Digest::of(r));
                let slot = Slot((*slot).into());
                (u64::from(*seq), slot, Digest::ZERO, digest, result)
            });
            let mut bytes = canonical(&Encoded {
                low: sent.low.into(),
                above: sent.above.iter().map(|seq| u64::from(*seq)).collect(),
                kept: kept.collect(),
                used: Slot(9),
            });
            bytes.extend_from_slice(&sent.more);
            if let Some((at, bits)) = sent.bent {
                let at = usize::from(at) % bytes.len();
                bytes[at] ^= bits;
            }
            if let Ok(mut session) = Session::decode(&bytes) {
                assert_eq!(session.encode(), bytes);
                let results = session
                    .kept
                    .values()
                    .filter_map(|kept| kept.result.as_ref());
                assert_eq!(session.kept_bytes, results.map(Bytes::len).sum::<usize>());
            }
        });
}
