//! What the processes of a cluster are called.

use std::fmt;
use std::str::FromStr;

use twinbft_types::ReplicaId;

/// A process of a cluster. Written `h0/broker` and `h0/t1` (also `h0/1`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProcessName {
    /// The broker of a host.
    Broker(u8),
    /// A twin of a host: host, twin.
    Replica(u8, u8),
}

/// Not the name of a process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no process: write h0/broker for a host's broker and h0/t1 for a twin")]
pub struct UnknownName(String);

impl ProcessName {
    /// The host that it runs on.
    #[must_use]
    pub const fn host(self) -> u8 {
        match self {
            Self::Broker(host) | Self::Replica(host, _) => host,
        }
    }

    /// The name of its files: `h0-broker` or `h0t1`.
    #[must_use]
    pub fn file_stem(self) -> String {
        match self {
            Self::Broker(host) => format!("h{host}-broker"),
            Self::Replica(host, twin) => format!("h{host}t{twin}"),
        }
    }
}

impl From<ReplicaId> for ProcessName {
    fn from(twin: ReplicaId) -> Self {
        Self::Replica(twin.host.0, twin.twin.0)
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(host) => write!(f, "h{host}/broker"),
            Self::Replica(host, twin) => write!(f, "h{host}/t{twin}"),
        }
    }
}

impl FromStr for ProcessName {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (host, process) = text.strip_prefix('h')?.split_once('/')?;
            let host = host.parse().ok()?;
            if process == "broker" {
                return Some(Self::Broker(host));
            }
            let twin = process.strip_prefix('t').unwrap_or(process);
            Some(Self::Replica(host, twin.parse().ok()?))
        };
        parse().ok_or_else(|| UnknownName(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [ProcessName::Broker(3), ProcessName::Replica(30, 7)] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!("h1/1".parse(), Ok(ProcessName::Replica(1, 1)));
        for wrong in ["", "h1", "h1/", "1/t1", "h1/tt", "h300/t1", "h1/t1/x"] {
            assert!(
                wrong
                    .parse::<ProcessName>()
                    .unwrap_err()
                    .to_string()
                    .contains(wrong)
            );
        }
    }
}
