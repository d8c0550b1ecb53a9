//! What the supervisor has kept of guests: of each a keepsake and two descriptors, under names of their own.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use twinbft_postbox::transport::xen::DomId;
use twinbft_postbox::transport::xen::guest::Kept;
use twinbft_postbox::transport::xen::keepsake::Keepsake;

use crate::journal::Journal;

/// Names of guests' descriptors in the supervisor's keeping start with this; twin, domain and part follow.
pub const KEPT_PREFIX: &str = "twinbft-guest-";
const PARTS: [&str; 3] = ["keepsake", "grants", "events"];

/// The names under which a guest is kept: its keepsake, its grants, its events.
pub fn names_of(twin: u8, domid: DomId) -> [String; 3] {
    PARTS.map(|part| format!("{KEPT_PREFIX}{twin}-{domid}-{part}"))
}

/// Puts together what belongs together. The names of what is of no use come too: the supervisor need not keep it.
pub fn kept_guests(
    inherited: Vec<(String, OwnedFd)>,
    journal: &mut Journal,
) -> (Vec<Kept>, Vec<String>) {
    let mut parts: BTreeMap<String, (String, OwnedFd)> = BTreeMap::new();
    let mut useless = Vec::new();
    for (name, fd) in inherited {
        let part = name.trim_start_matches(KEPT_PREFIX).to_owned();
        // The supervisor passes one name twice only when it was stored twice; either will do.
        if let Some((double, _)) = parts.insert(part, (name, fd)) {
            useless.push(double);
        }
    }
    let mut kept = Vec::new();
    let keepsakes: Vec<String> = parts
        .keys()
        .filter_map(|part| part.strip_suffix("-keepsake").map(str::to_owned))
        .collect();
    for stem in keepsakes {
        let mut take = |part: &str| parts.remove(&format!("{stem}-{part}"));
        let taken = PARTS.map(&mut take);
        let names: Vec<String> = taken
            .iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect();
        let [Some((_, keepsake)), Some((_, grants)), Some((_, events))] = taken else {
            useless.extend(names);
            continue;
        };
        match Keepsake::load(&keepsake) {
            Some(keepsake) if format!("{}-{}", keepsake.twin, keepsake.domid) == stem => {
                kept.push(Kept {
                    keepsake,
                    grants,
                    events,
                });
            }
            Some(_) | None => useless.extend(names),
        }
    }
    useless.extend(parts.into_values().map(|(name, _)| name));
    if !useless.is_empty() {
        let text = format!("not usable, and given back: {}", useless.join(", "));
        journal.event("store", text);
    }
    (kept, useless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::LogFormat;
    use std::fs::File;

    fn null() -> OwnedFd {
        File::open("/dev/null")
            .expect("every machine has it")
            .into()
    }

    fn keepsake(twin: u8, domid: DomId) -> OwnedFd {
        let keepsake = Keepsake {
            twin,
            domid,
            port: 3,
            ring_order: 12,
            ring_index: 0,
            ring_refs: vec![1, 2],
            mirror_index: 8192,
            mirror_refs: vec![3],
        };
        keepsake.store().expect("there is memory")
    }

    #[test]
    fn what_belongs_together_is_found_in_any_order_and_the_rest_is_named() {
        let [a, b, c] = names_of(0, 5);
        let [half, _, half_events] = names_of(1, 6);
        let [foreign, foreign_grants, foreign_events] = names_of(1, 7);
        let [_, stray, _] = names_of(0, 9);
        let inherited = vec![
            (c, null()),
            (a, keepsake(0, 5)),
            (half.clone(), keepsake(1, 6)),
            (b, null()),
            (half_events.clone(), null()),
            (stray.clone(), null()),
            // It speaks of another domain.
            (foreign.clone(), keepsake(1, 8)),
            (foreign_grants.clone(), null()),
            (foreign_events.clone(), null()),
        ];
        let mut journal = Journal::new(LogFormat::Text, 0);
        let (kept, mut useless) = kept_guests(inherited, &mut journal);
        let found: Vec<_> = kept
            .iter()
            .map(|k| (k.keepsake.twin, k.keepsake.domid))
            .collect();
        assert_eq!(found, [(0, 5)]);
        useless.sort();
        let mut expected = vec![
            half,
            half_events,
            stray,
            foreign,
            foreign_grants,
            foreign_events,
        ];
        expected.sort();
        assert_eq!(useless, expected);
        assert_eq!(journal.recent().count(), 1, "one line about all of it");
    }
}
