//! What may be at one time (protocol.md 1): a host with fewer than `q` twins that are correct, run and are reached counts
//! as faulty, and at most `f` hosts may be; a host has at most `q − 1` Byzantine twins.

use std::collections::{BTreeMap, BTreeSet};

use twinbft_types::{ReplicaId, Shape};

use super::plan::Fault;

/// Whether the model allows all of these together.
#[must_use]
pub fn hold(faults: &[Fault], shape: Shape) -> bool {
    // Hosts that are faulty as a whole.
    let mut faulty = BTreeSet::new();
    let mut out: BTreeMap<u8, BTreeSet<ReplicaId>> = BTreeMap::new();
    let mut byzantine: BTreeMap<u8, BTreeSet<ReplicaId>> = BTreeMap::new();
    for fault in faults {
        match *fault {
            Fault::KillTwin(twin) | Fault::Wipe(twin) | Fault::PauseTwin(twin) => {
                out.entry(twin.host.0).or_default().insert(twin);
            }
            Fault::Byzantine(twin, _) => {
                out.entry(twin.host.0).or_default().insert(twin);
                byzantine.entry(twin.host.0).or_default().insert(twin);
            }
            Fault::KillHost(host)
            | Fault::KillBroker(host)
            | Fault::PauseBroker(host)
            | Fault::PauseHost(host)
            | Fault::CutOff(host)
            | Fault::Mute(host)
            | Fault::Deaf(host)
            | Fault::Slow(host, _)
            | Fault::Flaky(host)
            | Fault::Drop(host, _) => {
                faulty.insert(host);
            }
            Fault::Apart(..) => {}
        }
    }
    let spare = usize::from(shape.twins()) - shape.twin_quorum();
    let silent = out.iter().filter(|(_, twins)| twins.len() > spare);
    faulty.extend(silent.map(|(host, _)| *host));
    // Of two hosts that do not reach each other one counts as faulty: the rest reach each other.
    for fault in faults {
        if let Fault::Apart(one, other) = *fault
            && !faulty.contains(&other)
        {
            faulty.insert(one);
        }
    }
    let safe = byzantine
        .values()
        .all(|twins| twins.len() < shape.twin_quorum());
    safe && faulty.len() <= shape.host_faults()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_the_model() {
        let shape = |hosts, twins| Shape::new(hosts, twins).unwrap();
        let kill = |host, twin| Fault::KillTwin(ReplicaId::new(host, twin));
        assert!(hold(&[], shape(3, 2)));
        assert!(hold(&[kill(0, 0), kill(0, 1)], shape(3, 2)));
        assert!(!hold(&[kill(0, 0), kill(1, 0)], shape(3, 2)));
        assert!(hold(&[kill(0, 0), kill(1, 0), kill(2, 2)], shape(3, 3)));
        assert!(!hold(
            &[kill(0, 0), kill(0, 1), kill(1, 0), kill(1, 2)],
            shape(3, 3)
        ));
        assert!(!hold(&[Fault::Slow(0, 5), Fault::Deaf(1)], shape(4, 3)));
        assert!(hold(&[Fault::Slow(0, 5), Fault::Deaf(1)], shape(5, 2)));
        // What is between a faulty host and another one costs nothing more, between two that are well it does.
        assert!(hold(&[Fault::KillHost(0), Fault::Apart(1, 0)], shape(3, 2)));
        assert!(hold(&[Fault::KillHost(0), Fault::Apart(0, 1)], shape(3, 2)));
        assert!(!hold(
            &[Fault::KillHost(0), Fault::Apart(1, 2)],
            shape(3, 2)
        ));
    }
}
