//! What one run is like. [`Scenario::from_seed`] draws everything from the seed; a scenario is plain data, so that
//! a failure can be made smaller by taking things out of it ([`Edit`]).

mod draw;
mod edit;
mod loss;
mod theme;

use std::collections::BTreeMap;

use twinbft_core::Tuning;
use twinbft_types::{ReplicaId, Shape};

use crate::byzantine::Double;
pub use edit::Edit;

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Names the run.
    pub seed: u64,
    /// `N` and `m`.
    pub shape: Shape,
    /// The cluster's numbers.
    pub tuning: Tuning,
    /// The clients.
    pub clients: Vec<ClientPlan>,
    /// Chance that a message is lost, in 256ths, until the network heals.
    pub loss: u8,
    /// Chance that a message is delivered twice, in 256ths.
    pub duplication: u8,
    /// Longest delay of a message, in microseconds.
    pub delay_us_max: u64,
    /// What goes wrong besides, and heals.
    pub faults: Vec<Fault>,
    /// Twins that do not follow the protocol.
    pub doubles: BTreeMap<ReplicaId, Double>,
    /// Whether twins vote to ignore siblings that are shown to be wrong.
    pub quarantines: bool,
    /// Most entries of the log that a twin takes in at once.
    pub reads_max: u32,
    /// The longest that the write-ahead log takes to be durable, in microseconds; 0 for at once.
    pub sync_us_max: u64,
    /// When faults of the network end, in microseconds.
    pub heal_at_us: u64,
}

/// One client.
#[derive(Clone, Debug)]
pub struct ClientPlan {
    /// Its key's number.
    pub key: u32,
    /// What it is like.
    pub kind: ClientKind,
    /// Its operations.
    pub operations: u32,
    /// Most operations that it has outstanding.
    pub depth: usize,
    /// Share of fast reads, in 256ths.
    pub fast_reads: u8,
}

/// What a client is like. All but the first are Byzantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// Follows the protocol; its requests must end.
    Honest,
    /// The real session, but the MACs for all twins except the first of each host are wrong.
    HalfAuthentic,
    /// The real session, but each MAC is wrong half of the time.
    SpoiltMacs,
    /// Gives two requests one number, and different ones to different twins.
    TwoFaced,
    /// Numbers its requests far beyond its window, and at both of its edges.
    OutOfWindow,
    /// Sends the last number of its window first.
    Backwards,
    /// Begins a session with each request.
    ManySessions,
    /// Sends what is no operation, too large, under another's name, or with too few MACs.
    Malformed,
}

impl ClientKind {
    /// Whether it follows the protocol.
    #[must_use]
    pub const fn is_honest(self) -> bool {
        matches!(self, Self::Honest)
    }

    /// Whether it runs the real session.
    #[must_use]
    pub const fn has_session(self) -> bool {
        matches!(self, Self::Honest | Self::HalfAuthentic | Self::SpoiltMacs)
    }
}

/// Hosts, one bit each; [`CLIENTS`] stands for all clients.
pub type HostMask = u32;

/// The bit of [`HostMask`] that stands for the clients.
pub const CLIENTS: HostMask = 1 << 31;

/// A time during which something is wrong, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it begins.
    pub from_us: u64,
    /// When it is over.
    pub to_us: u64,
}

impl Span {
    /// Whether it is on.
    #[must_use]
    pub const fn contains(self, now_us: u64) -> bool {
        self.from_us <= now_us && now_us < self.to_us
    }
}

/// Something that goes wrong outside the processes, and heals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Messages from these to those are lost; one way, unless `both`.
    Cut {
        /// When.
        span: Span,
        /// Who is not heard.
        from: HostMask,
        /// By whom.
        to: HostMask,
        /// Whether the other way is cut, too.
        both: bool,
    },
    /// What is sent to these hosts meanwhile comes all at once at the end.
    Burst {
        /// When.
        span: Span,
        /// To whom.
        to: HostMask,
    },
    /// This twin does nothing and forgets nothing, as with SIGSTOP.
    Pause {
        /// When.
        span: Span,
        /// Who.
        twin: ReplicaId,
    },
    /// This twin is slow to take anything in.
    Slow {
        /// When.
        span: Span,
        /// Who.
        twin: ReplicaId,
        /// The longest that an input waits, in microseconds.
        by_us: u64,
    },
    /// This twin's clock jumps, and is set right at the end.
    ClockJump {
        /// When.
        span: Span,
        /// Whose.
        twin: ReplicaId,
        /// How far.
        by_us: i64,
    },
    /// This twin's process dies, and starts again.
    Crash {
        /// Whose.
        twin: ReplicaId,
        /// When.
        point: CrashPoint,
        /// After how long it starts again.
        down_us: u64,
        /// What its disk has lost by then.
        loss: Loss,
    },
    /// A whole host goes down and loses its postbox's log; it does not happen while `f` others are without their memory.
    HostLoss {
        /// When.
        at_us: u64,
        /// Which.
        host: u8,
        /// After how long it is up again.
        down_us: u64,
        /// What it has lost by then.
        what: HostLoss,
    },
    /// This host is heard of no more, and hears nothing: it counts to the `f` that may be silent.
    Silence {
        /// From when on, in microseconds.
        from_us: u64,
        /// Which.
        host: u8,
    },
    /// The broker process of this host restarts; the log survives it.
    BrokerRestart {
        /// When.
        at_us: u64,
        /// Where.
        host: u8,
    },
}

/// When a twin's process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// At this time, in microseconds.
    Time(u64),
    /// Right after it has written so many records, before anything that waits for them.
    Record(usize),
}

/// What a host loses that goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLoss {
    /// Its postbox's log alone: every promise was on a disk before it was revealed.
    Log,
    /// And the last moment of its disks.
    Moment,
    /// And the disk of one twin.
    OneDisk,
    /// And all its disks.
    Disks,
}

/// What a crash costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The process alone dies.
    Nothing,
    /// What was not durable is gone.
    Unsynced,
    /// Of what was not durable some is there.
    Torn,
    /// The disk is gone; the postbox's log remembers.
    Disk,
}
