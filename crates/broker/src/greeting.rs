//! A connection on a twin's socket before it is a channel: who is it, and does it know where it is?

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use twinbft_postbox::transport::local::wire::{
    GREETING_BYTES, Greeting, PROTOCOL_VERSION, Rejection, Welcome,
};

/// How long a connection may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// The process behind a connection, as the kernel knows it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Process id at connect; for people only.
    pub pid: i32,
    /// User id at connect.
    pub uid: u32,
}

impl Peer {
    /// Who connected.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(stream, PeerCredentials)?;
        Ok(Self {
            pid: credentials.pid(),
            uid: credentials.uid(),
        })
    }
}

/// A connection that has not greeted yet.
pub struct Pending {
    /// The connection, not blocking.
    pub stream: UnixStream,
    /// The twin whose socket it came in on.
    pub twin: u8,
    /// The process behind it.
    pub peer: Peer,
    deadline: Instant,
    bytes: [u8; GREETING_BYTES],
    have: usize,
}

/// What became of a connection.
pub enum Progress {
    /// More bytes are needed.
    Waiting,
    /// It greeted.
    Greeted(Greeting),
    /// It is no twin's.
    Rejected(Rejection),
    /// It went away.
    Gone,
}

impl Pending {
    /// Starts to listen to a connection.
    pub fn new(stream: UnixStream, twin: u8, peer: Peer, now: Instant) -> Self {
        Self {
            stream,
            twin,
            peer,
            deadline: now + GREETING_TIMEOUT,
            bytes: [0; GREETING_BYTES],
            have: 0,
        }
    }

    /// When its time is up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads what has come.
    pub fn advance(&mut self) -> Progress {
        while self.have < GREETING_BYTES {
            match self.stream.read(&mut self.bytes[self.have..]) {
                Ok(0) => return Progress::Gone,
                Ok(count) => self.have += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Progress::Waiting;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Gone,
            }
        }
        match Greeting::decode(&self.bytes) {
            Ok(greeting) => Progress::Greeted(greeting),
            Err(_) => Progress::Rejected(Rejection::NoGreeting),
        }
    }

    /// Says why not, as far as the socket takes it, and closes.
    pub fn reject(mut self, rejection: Rejection, ours: &Welcome) {
        let welcome = Welcome {
            rejection: Some(rejection),
            ..*ours
        };
        // Best effort: the other side sees the hang-up in any case.
        let _ = self.stream.write(&welcome.encode());
    }
}

/// Compares a greeting with what this socket is for.
pub fn judge(greeting: &Greeting, ours: &Welcome) -> Option<Rejection> {
    if greeting.version != PROTOCOL_VERSION {
        Some(Rejection::Version)
    } else if greeting.cluster_tag != ours.cluster_tag {
        Some(Rejection::Cluster)
    } else if greeting.host != ours.host {
        Some(Rejection::Host)
    } else if greeting.twin != ours.twin {
        Some(Rejection::Twin)
    } else {
        None
    }
}
