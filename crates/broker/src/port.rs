//! The way to one twin, whatever carries it: a socket's channel on this kernel, or a Xen guest's.

use twinbft_postbox::frame::{Frame, FrameFault};
use twinbft_postbox::transport::local::server::BrokerChannel;
use twinbft_postbox::transport::xen::guest::Guest;

use crate::greeting::Peer;

/// A way.
pub enum Port {
    /// As long as a connection.
    Socket(BrokerChannel, Peer),
    /// As long as a domain; its channel can be closed meanwhile.
    Guest(Guest),
}

impl Port {
    /// Whether something can come in by it.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Socket(..) => true,
            Self::Guest(guest) => guest.is_open(),
        }
    }

    /// Whether the twin seems to have written something. Only a hint.
    pub fn looks_ready(&self) -> bool {
        match self {
            Self::Socket(channel, _) => channel.looks_ready(),
            Self::Guest(guest) => guest.looks_ready(),
        }
    }

    /// Asks to be rung at the next write; look at `looks_ready` again afterwards.
    pub fn arm(&self) {
        match self {
            Self::Socket(channel, _) => channel.arm(),
            Self::Guest(guest) => guest.arm(),
        }
    }

    /// Wakes the twin when it sleeps on the log. Answers whether it did.
    pub fn wake_if_waiting(&self, only_own: bool) -> bool {
        match self {
            Self::Socket(channel, _) => channel.wake_if_waiting(only_own),
            Self::Guest(guest) => guest.wake_if_waiting(only_own),
        }
    }

    /// The next whole frame.
    pub fn poll_frame(&mut self) -> Result<Option<Frame<'_>>, FrameFault> {
        match self {
            Self::Socket(channel, _) => channel.poll_frame(),
            Self::Guest(guest) => guest.poll_frame(),
        }
    }

    /// Gives the room of what was read back.
    pub fn release(&mut self) {
        match self {
            Self::Socket(channel, _) => channel.release(),
            Self::Guest(guest) => guest.release(),
        }
    }
}
