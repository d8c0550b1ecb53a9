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

/// What the Byzantine twin can say of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Entries of each kind. What it holds back is never posted.
    Anything,
    /// Views, from when they are left until they have begun; and whatever it holds back it may post at any later time.
    Views,
}

/// The state from which on everything that can happen is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// The clients have sent their requests to host 0.
    Asked,
    /// Then so many messages have arrived, in the order in which they were sent, all to one host were lost if one is
    /// named, and now time has run out for all hosts but [`patient`](Case::patient).
    TimeIsOut {
        /// So many.
        messages: usize,
        /// It has heard nothing.
        deaf: Option<u8>,
    },
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
    /// How many of them are sent only as time runs out.
    pub later: u8,
    /// The twins of the primary host for which the MACs of the first request are right.
    pub good_for: &'static [u8],
    /// Whether every twin gets the first request as a retransmission, so that it waits for its execution (6).
    pub retransmitted: bool,
    /// How often the Byzantine twin says something of its own or holds something back.
    pub lies: u8,
    /// What it says.
    pub about: About,
    /// How often time runs out: that of the last twin for one host (of the last two where nobody lies), else that of
    /// all hosts but one.
    pub timeouts: u8,
    /// The host whose time does not run out; any one where none is named.
    pub patient: Option<u8>,
    /// Where it begins.
    pub begins: Begins,
    /// Whether clients then ask all twins again for everything.
    pub asked_again: bool,
    /// How often a moment passes in which nothing is under way, so that what was lost is asked for or sent again.
    pub moments: u8,
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
        later: 0,
        good_for: &[0, 1, 2],
        retransmitted: false,
        lies: 0,
        about: About::Anything,
        timeouts: 0,
        patient: None,
        begins: Begins::Asked,
        asked_again: false,
        moments: 0,
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

/// A view change in which one twin lies about views.
const fn change(name: &'static str, what: &'static str, byzantine: Option<ReplicaId>) -> Case {
    Case {
        byzantine,
        lies: 1,
        about: About::Views,
        timeouts: 1,
        patient: Some(0),
        asked_again: true,
        moments: 4,
        changes_view: true,
        schedules: Schedules::Delayed(0),
        ..three(name, what)
    }
}

/// The hosts 0 and 2 have executed everything without host 1.
const DEAF: Begins = Begins::TimeIsOut {
    messages: usize::MAX,
    deaf: Some(1),
};

/// The first ORDERs are on the way to host 2, and lost to host 1.
const HALFWAY: Begins = Begins::TimeIsOut {
    messages: 0,
    deaf: Some(1),
};

/// The next primary host has to fetch what two slots were, and a third one follows in its view.
const fn behind(name: &'static str, what: &'static str, byzantine: Option<ReplicaId>) -> Case {
    Case {
        begins: DEAF,
        requests: 3,
        later: 1,
        ..change(name, what, byzantine)
    }
}

/// What was ordered is accepted while its view is left.
const fn halfway(name: &'static str, what: &'static str, byzantine: Option<ReplicaId>) -> Case {
    Case {
        begins: HALFWAY,
        ..change(name, what, byzantine)
    }
}

/// The leader of view 0.
const LEADER: Option<ReplicaId> = Some(ReplicaId::new(0, 0));
/// Its sibling; with `N = 1` the leader of view 1.
const FOLLOWER: Option<ReplicaId> = Some(ReplicaId::new(0, 1));

/// With `N = 3` the leader of view 1.
const NEXT: Option<ReplicaId> = Some(ReplicaId::new(1, 0));

/// Its sibling there.
const NEXT_FOLLOWER: Option<ReplicaId> = Some(ReplicaId::new(1, 1));

/// A twin of the host that is a backup in both views.
const BACKUP: Option<ReplicaId> = Some(ReplicaId::new(2, 0));

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
        is_short: true,
        ..behind(
            "behind-next",
            "N=3, m=2: two slots of which host 1 knows nothing, its view, a third slot, its leader lies once",
            NEXT,
        )
    },
    Case {
        is_short: true,
        ..behind(
            "behind-next-follower",
            "N=3, m=2: two slots of which host 1 knows nothing, its view, a third slot, its follower lies once",
            NEXT_FOLLOWER,
        )
    },
    Case {
        is_short: true,
        ..behind(
            "behind-backup",
            "N=3, m=2: two slots of which host 1 knows nothing, its view, a third slot, a backup lies once",
            BACKUP,
        )
    },
    halfway(
        "halfway-backup",
        "N=3, m=2: two slots under way while the view changes, a backup lies once",
        BACKUP,
    ),
    Case {
        schedules: Schedules::Delayed(1),
        ..behind(
            "behind-next-1",
            "N=3, m=2: two slots of which host 1 knows nothing, its view, a third slot, one deviation, its leader lies once",
            NEXT,
        )
    },
    Case {
        schedules: Schedules::Delayed(1),
        ..halfway(
            "halfway-backup-1",
            "N=3, m=2: two slots under way while the view changes, one deviation, a backup lies once",
            BACKUP,
        )
    },
    Case {
        lies: 2,
        ..halfway(
            "halfway-next-2",
            "N=3, m=2: two slots under way while the view changes, the next leader lies twice",
            NEXT,
        )
    },
    change(
        "change-leader",
        "N=3, m=2: two slots, a view change at any time, the first leader lies once",
        LEADER,
    ),
    change(
        "change-follower",
        "N=3, m=2: two slots, a view change at any time, the first follower lies once",
        FOLLOWER,
    ),
    change(
        "change-next",
        "N=3, m=2: two slots, a view change at any time, the next leader lies once",
        NEXT,
    ),
    change(
        "change-next-follower",
        "N=3, m=2: two slots, a view change at any time, the next follower lies once",
        NEXT_FOLLOWER,
    ),
    change(
        "change-backup",
        "N=3, m=2: two slots, a view change at any time, a backup lies once",
        BACKUP,
    ),
];
