//! A twin's connection to its broker, whatever carries it: connecting, losing it, coming back to the same log.

use std::fmt;
use std::path::PathBuf;

use crate::appender::{AppendError, Appender};
use crate::link::Link;
use crate::log_view::ReadError;
use crate::reader::Reader;
use crate::transport::local::client::{ConnectError, ConnectOptions, connect};
use crate::transport::xen::client::{XenConnectError, connect_guest};

/// Where a twin finds its broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// A socket on the same kernel.
    Socket(PathBuf),
    /// Dom0, by xenstore: this process runs in a Xen guest.
    Xen,
}

impl Door {
    /// Connects. Blocks for at most `options.timeout`, and on Xen for what xenstored takes besides.
    ///
    /// # Errors
    /// See `ChannelError`.
    pub fn connect(&self, options: &ConnectOptions) -> Result<Channel, ChannelError> {
        Ok(match self {
            Self::Socket(path) => connect(path, options)?,
            Self::Xen => connect_guest(options)?,
        })
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Xen => f.write_str("dom0 of this Xen host"),
        }
    }
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// On one kernel.
    #[error(transparent)]
    Local(#[from] ConnectError),
    /// In a guest.
    #[error(transparent)]
    Xen(#[from] XenConnectError),
}

impl ChannelError {
    /// Whether the same attempt may succeed later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Local(error) => error.is_passing(),
            Self::Xen(error) => error.is_passing(),
        }
    }
}

/// What became of a channel by reconnecting it.
#[derive(Debug, PartialEq, Eq)]
pub enum Reconnected {
    /// The log is the same: the reader stands where it stood, unconfirmed appends are on their way.
    SameEpoch,
    /// The log was lost (protocol.md, section 8). The reader stands at the start of the new one.
    NewEpoch {
        /// Numbers and payloads of the appends whose outcome nobody will know. They are not sent.
        abandoned: Vec<(u64, Vec<u8>)>,
    },
}

/// A twin's connection to its broker.
pub struct Channel {
    /// Out of the log.
    pub reader: Reader,
    /// Into the log.
    pub appender: Appender,
    door: Door,
    options: ConnectOptions,
}

impl Channel {
    /// `options` has the waker that the reader has.
    pub(crate) fn new(
        reader: Reader,
        appender: Appender,
        door: Door,
        options: ConnectOptions,
    ) -> Self {
        assert!(options.waker.is_some(), "it outlives this connection");
        Self {
            reader,
            appender,
            door,
            options,
        }
    }

    /// Connects again after the channel was closed, and carries on. On an error what is not confirmed is kept, and the
    /// reader's place; try again later.
    ///
    /// # Errors
    /// See `ChannelError`.
    pub fn reconnect(&mut self) -> Result<Reconnected, ChannelError> {
        match self.door {
            Door::Socket(_) => {}
            // The ring is the same one for the life of the domain: the broker empties it only when this process has let
            // go of it, and the kernel says so when it is unmapped.
            Door::Xen => self.let_go(),
        }
        let mut fresh = self.door.connect(&self.options)?;
        if fresh.reader.epoch() != self.reader.epoch() {
            let old = std::mem::replace(self, fresh);
            return Ok(Reconnected::NewEpoch {
                abandoned: old.appender.into_unconfirmed(),
            });
        }
        let taken = fresh.reader.take_over(&self.reader);
        taken.map_err(|error: ReadError| self.handover(error.to_string()))?;
        let old = std::mem::replace(self, fresh);
        let taken = self.appender.take_over(old.appender);
        taken.map_err(|error: AppendError| self.handover(error.to_string()))?;
        Ok(Reconnected::SameEpoch)
    }

    fn let_go(&mut self) {
        let link = Link::parked(self.appender.twin());
        self.reader.let_go(link.clone());
        self.appender.let_go(link);
    }

    fn handover(&self, error: String) -> ChannelError {
        match &self.door {
            Door::Socket(path) => ConnectError::Handover {
                path: path.clone(),
                error,
            }
            .into(),
            Door::Xen => XenConnectError::Handover(error).into(),
        }
    }
}
