//! Newtypes for everything that the protocol counts or names (protocol.md 1).

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            BorshSerialize, BorshDeserialize, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number after this one. Overflow is a broken invariant and panics.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number!(
    /// A physical host, `0 ≤ h < N`.
    HostId(u8), "h"
);
number!(
    /// A twin of a host, `0 ≤ t < m`.
    TwinId(u8), "t"
);
number!(
    /// A view; its primary host is `v mod N`, its leader twin `⌊v/N⌋ mod m`.
    View(u64), "v"
);
number!(
    /// A slot of the replicated log. Slot 0 is genesis and holds no batch.
    Slot(u64), "n"
);
number!(
    /// The running number of a PROPOSE for one `(view, slot)`, from 0.
    Attempt(u32), "a"
);
number!(
    /// The index of an entry in a host's postbox log, from 0 in each epoch.
    Position(u64), "p"
);
number!(
    /// The epoch of a postbox log: grows when dom0 lost it (protocol.md 2, 8).
    Epoch(u64), "e"
);
number!(
    /// How often a host came back with its memory lost (protocol.md 8).
    Incarnation(u64), "i"
);
number!(
    /// The running number of a client's request within its session, from 1.
    Seq(u64), "s"
);
number!(
    /// A client's fast read within its session.
    Nonce(u64), "q"
);

/// A replica process: twin `t` of host `h`.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
pub struct ReplicaId {
    /// The host.
    pub host: HostId,
    /// The twin on it.
    pub twin: TwinId,
}

impl ReplicaId {
    /// Shorthand for tests and tools.
    #[must_use]
    pub const fn new(host: u8, twin: u8) -> Self {
        Self {
            host: HostId(host),
            twin: TwinId(twin),
        }
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.twin)
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A client `c` of the protocol: a key of `cluster.toml` and one session under it.
///
/// Sessions of one key grow with time (microseconds since the Unix epoch serve well), which lets the
/// session table forget old ones without ever executing a request twice (docs/adr/0003-sessions.md).
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
pub struct ClientId {
    /// The number of the client's key in `cluster.toml`.
    pub key: u32,
    /// The session, chosen by the client.
    pub session: u64,
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}.{}", self.key, self.session)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whoever owns a key pair (protocol.md 1, "Keys").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize,
)]
pub enum ProcessId {
    /// A replica.
    Twin(ReplicaId),
    /// All sessions of one client key.
    Client(u32),
    /// An administrator.
    Admin(u32),
}
