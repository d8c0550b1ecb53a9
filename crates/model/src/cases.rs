//! The clusters that are checked.

use twinbft_types::ReplicaId;

/// In which orders things happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedules {
    /// Every order of the appends of all twins. For a cluster of one host: messages between hosts are lost.
    Appends,
    /// Every order of the messages between hosts, of which any may be lost. The broker takes posts as they come.
    Deliveries,
    /// Messages and posts one after the other as they were sent, with so many deviations: one message is late or lost,
    /// or all messages to a host wait for a while.
    Delayed(u8),
}

/// A cluster, and how much may happen to it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
    /// `N`.
    pub hosts: u8,
    /// `m`.
    pub twins: u8,
    /// The Byzantine twin: an honest core, and [`lies`](Self::lies) times what it pleases.
    pub byzantine: Option<ReplicaId>,
    /// Requests, each of a client of its own; one slot each.
    pub requests: u8,
    /// The twins of the primary host for which the MACs of the first request are right.
    pub good_for: &'static [u8],
    /// Whether every twin gets the first request as a retransmission, so that it waits for its execution (6).
    pub retransmitted: bool,
    /// How often the Byzantine twin says something of its own or holds something back.
    pub lies: u8,
    /// How often time runs out: that of the last twin for one host (of the last two where nobody lies), else that of
    /// all hosts but one.
    pub timeouts: u8,
    /// Whether a view can be changed by that.
    pub changes_view: bool,
    /// The orders.
    pub schedules: Schedules,
    /// Whether it is small enough for every run of the tests.
    pub is_short: bool,
}

const fn smit(name: &'static str, what: &'static str) -> Case {
    Case {
        name,
        what,
        hosts: 1,
        twins: 3,
        byzantine: None,
        requests: 2,
        good_for: &[0, 1, 2],
        retransmitted: false,
        lies: 0,
        timeouts: 0,
        changes_view: false,
        schedules: Schedules::Appends,
        is_short: false,
    }
}

const fn three(name: &'static str, what: &'static str) -> Case {
    Case {
        hosts: 3,
        twins: 2,
        good_for: &[0, 1],
        schedules: Schedules::Deliveries,
        ..smit(name, what)
    }
}

/// The leader of view 0.
const LEADER: Option<ReplicaId> = Some(ReplicaId::new(0, 0));
/// Its sibling; with `N = 1` the leader of view 1.
const FOLLOWER: Option<ReplicaId> = Some(ReplicaId::new(0, 1));

/// With `N = 3` the leader of view 1.
const NEXT: Option<ReplicaId> = Some(ReplicaId::new(1, 0));

/// All cases.
pub const CASES: &[Case] = &[
    Case {
        is_short: true,
        ..smit("smit-order", "N=1, m=3: two slots, nobody lies")
    },
    Case {
        byzantine: LEADER,
        requests: 1,
        lies: 1,
        is_short: true,
        ..smit("smit-leader", "N=1, m=3: one slot, the leader lies once")
    },
    Case {
        byzantine: FOLLOWER,
        requests: 1,
        lies: 1,
        is_short: true,
        ..smit("smit-follower", "N=1, m=3: one slot, a follower lies once")
    },
    Case {
        byzantine: LEADER,
        requests: 1,
        lies: 2,
        ..smit("smit-leader-2", "N=1, m=3: one slot, the leader lies twice")
    },
    Case {
        byzantine: FOLLOWER,
        requests: 1,
        lies: 2,
        ..smit(
            "smit-follower-2",
            "N=1, m=3: one slot, a follower lies twice",
        )
    },
    Case {
        byzantine: LEADER,
        lies: 1,
        ..smit(
            "smit-leader-slots",
            "N=1, m=3: two slots, the leader lies once",
        )
    },
    Case {
        good_for: &[0, 1],
        timeouts: 1,
        ..smit(
            "smit-client",
            "N=1, m=3: two slots, a client's MAC is wrong for a follower whose time may run out",
        )
    },
    Case {
        requests: 1,
        retransmitted: true,
        timeouts: 2,
        changes_view: true,
        ..smit(
            "smit-view-honest",
            "N=1, m=3: one slot, a view change, nobody lies",
        )
    },
    Case {
        byzantine: LEADER,
        requests: 1,
        retransmitted: true,
        timeouts: 1,
        changes_view: true,
        lies: 1,
        ..smit(
            "smit-view",
            "N=1, m=3: one slot, a view change, the first leader lies once",
        )
    },
    Case {
        requests: 1,
        byzantine: FOLLOWER,
        retransmitted: true,
        timeouts: 1,
        changes_view: true,
        lies: 1,
        ..smit(
            "smit-view-next",
            "N=1, m=3: one slot, a view change, the next leader lies once",
        )
    },
    Case {
        is_short: true,
        ..three(
            "three-order",
            "N=3, m=2: two slots, messages in every order, any of them lost",
        )
    },
    Case {
        byzantine: LEADER,
        lies: 1,
        ..three(
            "three-leader",
            "N=3, m=2: two slots, messages in every order, any of them lost, the leader lies once",
        )
    },
    Case {
        byzantine: LEADER,
        lies: 2,
        schedules: Schedules::Delayed(0),
        ..three(
            "three-leader-2",
            "N=3, m=2: two slots, messages in order, the leader lies twice",
        )
    },
    Case {
        timeouts: 1,
        changes_view: true,
        schedules: Schedules::Delayed(0),
        is_short: true,
        ..three(
            "three-view",
            "N=3, m=2: two slots, a view change at any time",
        )
    },
    Case {
        timeouts: 1,
        changes_view: true,
        schedules: Schedules::Delayed(1),
        ..three(
            "three-view-1",
            "N=3, m=2: two slots, a view change, one deviation of the network",
        )
    },
    Case {
        timeouts: 1,
        changes_view: true,
        schedules: Schedules::Delayed(2),
        ..three(
            "three-view-2",
            "N=3, m=2: two slots, a view change, two deviations of the network",
        )
    },
    Case {
        byzantine: LEADER,
        lies: 1,
        timeouts: 1,
        changes_view: true,
        schedules: Schedules::Delayed(1),
        ..three(
            "three-view-leader",
            "N=3, m=2: two slots, a view change, one deviation, the first leader lies once",
        )
    },
    Case {
        byzantine: NEXT,
        lies: 1,
        timeouts: 1,
        changes_view: true,
        schedules: Schedules::Delayed(1),
        ..three(
            "three-view-next",
            "N=3, m=2: two slots, a view change, one deviation, the next leader lies once",
        )
    },
];
