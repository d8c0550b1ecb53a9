//! What may stand in the file only once.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::reader::{At, Reader};

/// A space of names. Within one, each may stand once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    HostName,
    ClientName,
    AdminName,
    Key,
    Address,
    Guest,
}

impl Kind {
    /// How a name begins that nobody has chosen.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::HostName => "host",
            Self::ClientName => "client",
            Self::AdminName => "admin",
            Self::Key => "key",
            Self::Address => "address",
            Self::Guest => "guest",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::HostName | Self::ClientName | Self::AdminName => "give each a name of its own",
            Self::Key => "every process needs a key of its own: `twinbft keygen`",
            Self::Guest => "every twin of a host is a guest of its own; look at `xl list`",
            Self::Address => "every twin needs an address of its own; change the port",
        }
    }
}

/// Collects what may stand once only.
#[derive(Default)]
pub(crate) struct Unique {
    seen: BTreeMap<(Kind, String), Vec<At<String>>>,
}

impl Unique {
    pub(crate) fn add(&mut self, kind: Kind, at: At<String>) {
        self.seen
            .entry((kind, at.value.clone()))
            .or_default()
            .push(at);
    }

    /// `address` as it was understood, because one address can be written in several ways.
    pub(crate) fn add_address(&mut self, address: SocketAddr, at: At<String>) {
        self.seen
            .entry((Kind::Address, address.to_string()))
            .or_default()
            .push(at);
    }

    /// Notes every second appearance.
    pub(crate) fn check(self, reader: &mut Reader<'_>) {
        for ((kind, _), places) in self.seen {
            let Some((first, others)) = places.split_first() else {
                continue;
            };
            for other in others {
                let problem = format!("the same as {}", first.path);
                reader.mistake(&other.span, other.path.clone(), problem, kind.remedy());
            }
        }
    }
}
