//! What the broker tells its supervisor (systemd, or `twinbft up` in its place) by the sd_notify
//! protocol: that it is ready, that it lives, and which log to keep for its successor.

use std::env;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// How long a supervisor may take to confirm that it has the log.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// The supervisor, if there is one.
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog_every: Option<Duration>,
    last_ping: Instant,
}

impl Supervisor {
    /// As the environment says. A supervisor that cannot be reached is none.
    pub fn from_environment() -> io::Result<Self> {
        let socket = match env::var_os("NOTIFY_SOCKET") {
            Some(path) => Some(connect(path.as_encoded_bytes())?),
            None => None,
        };
        let variable = |name| {
            env::var(name)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
        };
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = variable("WATCHDOG_USEC").filter(|limit_us| ours && *limit_us > 0);
        let watchdog_every = limit.map(|limit_us| Duration::from_micros(limit_us) / 2);
        Ok(Self {
            socket,
            watchdog_every,
            last_ping: Instant::now(),
        })
    }

    /// Whether anybody listens.
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Sends a message; a supervisor that does not listen is not worth stopping for.
    pub fn notify(&self, message: &str) -> bool {
        self.send(message, &[])
    }

    fn send(&self, message: &str, fds: &[BorrowedFd<'_>]) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() {
            &rights[..0]
        } else {
            &rights[..]
        };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(message.as_bytes())],
            rights,
            flags,
            None,
        )
        .is_ok()
    }

    /// Gives a descriptor to the supervisor, without waiting for it.
    pub fn store(&self, name: &str, fd: BorrowedFd<'_>) {
        self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd]);
    }

    /// Takes one back.
    pub fn forget(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
    }

    /// Gives a log to the supervisor and takes the earlier ones back, and waits until it has done
    /// so: nothing may be appended to a log that could still be lost with this process.
    pub fn keep(&self, name: &str, log: BorrowedFd<'_>, earlier: &[String]) -> bool {
        // FDPOLL=0: the supervisor must not drop the log because it looks "ready" or hung up.
        let stored = self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[log]);
        for name in earlier {
            self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        }
        stored && self.barrier().unwrap_or(false)
    }

    /// Everything sent so far was dealt with when the other end of a pipe is closed.
    fn barrier(&self) -> io::Result<bool> {
        let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        if !self.send("BARRIER=1", &[write.as_fd()]) {
            return Ok(false);
        }
        drop(write);
        let timeout = PollTimeout::try_from(BARRIER_TIMEOUT).expect("a few seconds fit");
        let mut fds = [PollFd::new(read.as_fd(), PollFlags::empty())];
        Ok(poll(&mut fds, timeout)? == 1)
    }

    /// When the next sign of life is due.
    pub fn next_ping(&self) -> Option<Instant> {
        self.watchdog_every.map(|every| self.last_ping + every)
    }

    /// Sends a sign of life when it is due. Answers whether it did.
    pub fn ping(&mut self, now: Instant) -> bool {
        let due = self.next_ping().is_some_and(|due| due <= now);
        if due {
            self.last_ping = now;
            self.notify("WATCHDOG=1");
        }
        due
    }
}

fn connect(path: &[u8]) -> io::Result<UnixDatagram> {
    let address = match path.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        Some((b'/', _)) => {
            SocketAddr::from_pathname(std::str::from_utf8(path).map_err(io::Error::other)?)?
        }
        Some(_) | None => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "NOTIFY_SOCKET is no absolute path",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}
