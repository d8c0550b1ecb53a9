//! The size of a cluster and the quorums that follow from it (protocol.md 1).

use borsh::{BorshDeserialize, BorshSerialize};

use crate::ids::{HostId, ReplicaId, TwinId, View};

/// Most hosts of a cluster.
pub const HOSTS_MAX: u8 = 31;
/// Most twins of a host.
pub const TWINS_MAX: u8 = 8;

/// `N` hosts with `m` twins each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Shape {
    hosts: u8,
    twins: u8,
}

impl Shape {
    /// `None` unless `1 ≤ N ≤ 31` and `2 ≤ m ≤ 8`.
    #[must_use]
    pub const fn new(hosts: u8, twins: u8) -> Option<Self> {
        if hosts == 0 || hosts > HOSTS_MAX || twins < 2 || twins > TWINS_MAX {
            return None;
        }
        Some(Self { hosts, twins })
    }

    /// `N`.
    #[must_use]
    pub const fn hosts(self) -> u8 {
        self.hosts
    }

    /// `m`.
    #[must_use]
    pub const fn twins(self) -> u8 {
        self.twins
    }

    /// `Q = ⌊N/2⌋ + 1`.
    #[must_use]
    pub const fn host_quorum(self) -> usize {
        self.hosts as usize / 2 + 1
    }

    /// `q = ⌊m/2⌋ + 1`.
    #[must_use]
    pub const fn twin_quorum(self) -> usize {
        self.twins as usize / 2 + 1
    }

    /// `f = N − Q`.
    #[must_use]
    pub const fn host_faults(self) -> usize {
        self.hosts as usize - self.host_quorum()
    }

    /// Whether every decision needs every twin (`m = q`, two twins): the case in which an ENDORSE may
    /// carry its signature (protocol.md 3).
    #[must_use]
    pub const fn unanimous(self) -> bool {
        self.twin_quorum() == self.twins as usize
    }

    /// `v mod N`.
    #[must_use]
    pub const fn primary(self, view: View) -> HostId {
        #[allow(clippy::cast_possible_truncation, reason = "below N, which is a u8")]
        HostId((view.0 % self.hosts as u64) as u8)
    }

    /// `⌊v/N⌋ mod m` on the primary host.
    #[must_use]
    pub const fn leader(self, view: View) -> ReplicaId {
        #[allow(clippy::cast_possible_truncation, reason = "below m, which is a u8")]
        let twin = TwinId((view.0 / self.hosts as u64 % self.twins as u64) as u8);
        ReplicaId {
            host: self.primary(view),
            twin,
        }
    }

    /// All hosts.
    pub fn all_hosts(self) -> impl Iterator<Item = HostId> {
        (0..self.hosts).map(HostId)
    }

    /// All twins of a host.
    pub fn all_twins(self) -> impl Iterator<Item = TwinId> {
        (0..self.twins).map(TwinId)
    }

    /// All replicas, by host, then twin.
    pub fn all_replicas(self) -> impl Iterator<Item = ReplicaId> {
        self.all_hosts()
            .flat_map(move |host| self.all_twins().map(move |twin| ReplicaId { host, twin }))
    }

    /// The replicas that an authenticator of host `from` has entries for, in their order.
    pub fn receivers(self, from: HostId) -> impl Iterator<Item = ReplicaId> {
        self.all_replicas().filter(move |r| r.host != from)
    }

    /// Where the MAC for `to` stands in an authenticator of host `from`; `None` for a twin of that host
    /// itself and for anything outside the cluster.
    #[must_use]
    pub fn receiver_index(self, from: HostId, to: ReplicaId) -> Option<usize> {
        if from == to.host || !self.contains(to) || from.0 >= self.hosts {
            return None;
        }
        let host = usize::from(to.host.0) - usize::from(to.host > from);
        Some(host * usize::from(self.twins) + usize::from(to.twin.0))
    }

    /// Whether there is such a replica.
    #[must_use]
    pub const fn contains(self, replica: ReplicaId) -> bool {
        replica.host.0 < self.hosts && replica.twin.0 < self.twins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_are_those_of_the_table_in_section_1() {
        for (hosts, host_quorum, faults) in [(1, 1, 0), (2, 2, 0), (3, 2, 1), (5, 3, 2), (7, 4, 3)]
        {
            let shape = Shape::new(hosts, 2).unwrap();
            assert_eq!(
                (shape.host_quorum(), shape.host_faults()),
                (host_quorum, faults)
            );
        }
        for (twins, quorum) in [(2, 2), (3, 2), (4, 3), (5, 3)] {
            assert_eq!(Shape::new(3, twins).unwrap().twin_quorum(), quorum);
        }
        assert!(
            Shape::new(0, 2).is_none() && Shape::new(3, 1).is_none() && Shape::new(32, 2).is_none()
        );
    }

    #[test]
    fn receiver_index_follows_the_order_of_receivers() {
        let shape = Shape::new(3, 2).unwrap();
        for from in shape.all_hosts() {
            for (index, to) in shape.receivers(from).enumerate() {
                assert_eq!(shape.receiver_index(from, to), Some(index));
            }
            assert_eq!(
                shape.receiver_index(
                    from,
                    ReplicaId {
                        host: from,
                        twin: TwinId(0)
                    }
                ),
                None
            );
        }
    }

    #[test]
    fn leaders_rotate_over_hosts_first_then_twins() {
        let shape = Shape::new(3, 2).unwrap();
        let leaders: Vec<_> = (0..7).map(|v| shape.leader(View(v)).to_string()).collect();
        assert_eq!(
            leaders,
            [
                "h0/t0", "h1/t0", "h2/t0", "h0/t1", "h1/t1", "h2/t1", "h0/t0"
            ]
        );
    }
}
