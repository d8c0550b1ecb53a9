//! The status socket: whoever may open it gets one JSON document and is hung up on. What it sends is
//! not even read.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Connections at a time; more are hung up on at once.
pub const CONNECTIONS_MAX: usize = 8;
/// How long a connection may take to read the document.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that has not read all of its document.
pub struct StatusConnection {
    stream: UnixStream,
    document: Vec<u8>,
    written: usize,
    deadline: Instant,
}

impl StatusConnection {
    /// For a connection that does not block.
    pub fn new(stream: UnixStream, document: String, now: Instant) -> Self {
        Self {
            stream,
            document: document.into_bytes(),
            written: 0,
            deadline: now + TIMEOUT,
        }
    }

    /// When its time is up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Writes as much as the socket takes. Answers whether the connection is done with.
    pub fn advance(&mut self) -> bool {
        while self.written < self.document.len() {
            match self.stream.write(&self.document[self.written..]) {
                Ok(count) if count > 0 => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return true,
            }
        }
        true
    }
}

impl AsFd for StatusConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
