//! Which CPUs a host's processes run on when many hosts share one machine.
//!
//! Hosts are separate machines in the field and share no core. Here each gets a share of its own, too: the twins and
//! the broker of a host hand every request to each other several times, and a hand-over on one core costs a
//! twentieth of one that rouses another core (docs/adr/0021).

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// The CPUs that this process may run on, in order; empty when the kernel does not say.
pub(super) fn available() -> Vec<u16> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .filter_map(|cpu| u16::try_from(cpu).ok())
        .collect()
}

/// The share of the host at `place` among `hosts`: equally many neighbouring CPUs for each, and what is left over for
/// the clients. With more hosts than CPUs each host has one CPU, and hosts share it. Empty (which means all) when
/// there is nothing to divide.
pub(super) fn share(cpus: &[u16], place: usize, hosts: usize) -> Vec<u16> {
    if cpus.len() < 2 || hosts < 2 {
        return Vec::new();
    }
    let each = cpus.len() / hosts;
    if each == 0 {
        return vec![cpus[place % cpus.len()]];
    }
    cpus[place * each..][..each].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_cores_of_their_own_while_there_are_enough() {
        let cpus: Vec<u16> = (0..8).collect();
        let shares: Vec<_> = (0..3).map(|host| share(&cpus, host, 3)).collect();
        assert_eq!(shares, [vec![0, 1], vec![2, 3], vec![4, 5]]);
    }

    #[test]
    fn more_hosts_than_cores_take_turns() {
        let shares: Vec<_> = (0..5).map(|host| share(&[4, 7], host, 5)).collect();
        assert_eq!(shares, [vec![4], vec![7], vec![4], vec![7], vec![4]]);
    }

    #[test]
    fn nothing_to_divide_means_all() {
        assert!(share(&[0], 0, 3).is_empty());
        assert!(share(&[0, 1, 2], 0, 1).is_empty());
        assert!(share(&[], 0, 3).is_empty());
    }

    #[test]
    fn this_process_may_run_somewhere() {
        assert!(!available().is_empty());
    }
}
