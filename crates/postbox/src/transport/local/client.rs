//! The twin's side of a connection.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

use super::fds::receive_with_fds;
use super::region::{LocalLogError, ReadMemoryFile, map_ring};
use super::wire::{
    FAREWELL_BYTES_MAX, Greeting, PROTOCOL_VERSION, Rejection, WELCOME_BYTES, WELCOME_FDS, Welcome,
    WireError,
};
use crate::appender::Appender;
use crate::channel::{Channel, Door};
use crate::link::{Bell, Link, Sleeper, Slept};
use crate::log_view::{LogView, RegionError};
use crate::reader::Reader;
use crate::vchan::{RingProducer, WaitFlag, channel_bytes};
use crate::waker::Waker;

/// Whom to expect behind the socket, and how to use the channel.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// See `cluster_tag`.
    pub cluster_tag: u64,
    /// The host that the twin belongs to.
    pub host: u32,
    /// The twin.
    pub twin: u8,
    /// How long a wait may spin before it sleeps; 0: never.
    pub spin_us: u32,
    /// Bytes of appends that may wait for their confirmation.
    pub append_pending_bytes_max: usize,
    /// For the whole of connecting and greeting.
    pub timeout: Duration,
    /// A waker that other threads already hold; a new one when `None`.
    pub waker: Option<Waker>,
}

impl ConnectOptions {
    /// No spinning, 8 MiB of unconfirmed appends, 5 seconds for connecting.
    #[must_use]
    pub fn new(cluster_tag: u64, host: u32, twin: u8) -> Self {
        Self {
            cluster_tag,
            host,
            twin,
            spin_us: 0,
            append_pending_bytes_max: 8 << 20,
            timeout: Duration::from_secs(5),
            waker: None,
        }
    }
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket cannot be reached or broke.
    #[error(
        "cannot talk to the broker at {path}: {error}; does it run, and may this user open the socket?"
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The broker turned us away.
    #[error("the broker at {path} turned this twin away ({}): {}", rejection.name(), explain(*rejection, greeting, welcome))]
    Rejected {
        /// The socket.
        path: PathBuf,
        /// Why.
        rejection: Rejection,
        /// What we said.
        greeting: Greeting,
        /// What the broker said.
        welcome: Welcome,
    },
    /// The broker's answer is none.
    #[error("the answer at {path} is not a broker's: {error}")]
    Wire {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        error: WireError,
    },
    /// The broker is another one than the one that we look for.
    #[error(
        "the broker at {path} has {name} = {theirs}, this twin expects {ours}; look at both configurations"
    )]
    Mismatch {
        /// The socket.
        path: PathBuf,
        /// What differs.
        name: &'static str,
        /// The broker's value.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// What the broker handed over cannot be used.
    #[error("what the broker at {path} handed over cannot be used: {error}")]
    Handover {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
}

fn explain(rejection: Rejection, greeting: &Greeting, welcome: &Welcome) -> String {
    match rejection {
        Rejection::NoGreeting => "it did not understand the greeting".to_owned(),
        Rejection::Version => {
            format!(
                "it speaks version {}, this twin {}",
                welcome.version, greeting.version
            )
        }
        Rejection::Cluster => "it belongs to another cluster; look at the cluster ids".to_owned(),
        Rejection::Host => format!(
            "it serves host {}, this twin expects host {}",
            welcome.host, greeting.host
        ),
        Rejection::Twin => {
            format!(
                "the socket belongs to twin {}, this is twin {}",
                welcome.twin, greeting.twin
            )
        }
        Rejection::User => {
            "this process runs under another user than the broker is configured for".to_owned()
        }
        Rejection::Resources => "it has no resources left; look at its log".to_owned(),
    }
}

impl ConnectError {
    /// Whether the same attempt may succeed later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Socket { .. } => true,
            Self::Rejected { rejection, .. } => match rejection {
                Rejection::Resources => true,
                Rejection::NoGreeting
                | Rejection::Version
                | Rejection::Cluster
                | Rejection::Host
                | Rejection::Twin
                | Rejection::User => false,
            },
            Self::Wire { .. } | Self::Mismatch { .. } | Self::Handover { .. } => false,
        }
    }
}

/// Connects a twin to its broker. Blocks for at most `options.timeout`.
///
/// # Errors
/// See `ConnectError`.
pub fn connect(path: &Path, options: &ConnectOptions) -> Result<Channel, ConnectError> {
    let waker = match &options.waker {
        Some(waker) => waker.clone(),
        None => Waker::new().map_err(|error| ConnectError::Socket {
            path: path.to_owned(),
            error,
        })?,
    };
    let options = ConnectOptions {
        waker: Some(waker.clone()),
        ..options.clone()
    };
    let socket_error = |error| ConnectError::Socket {
        path: path.to_owned(),
        error,
    };
    let stream = open_stream(path, options.timeout).map_err(socket_error)?;
    let (welcome, fds) = greet(&stream, path, &options)?;
    let (reader, appender) =
        build(stream, &welcome, fds, &options, waker).map_err(|error| ConnectError::Handover {
            path: path.to_owned(),
            error,
        })?;
    let door = Door::Socket(path.to_owned());
    Ok(Channel::new(reader, appender, door, options))
}

/// A blocking stream with time-outs. The connect itself must not block either, as it does when the
/// listener's queue is full.
fn open_stream(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

fn greet(
    mut stream: &UnixStream,
    path: &Path,
    options: &ConnectOptions,
) -> Result<(Welcome, Vec<OwnedFd>), ConnectError> {
    let socket_error = |error| ConnectError::Socket {
        path: path.to_owned(),
        error,
    };
    let greeting = Greeting {
        version: PROTOCOL_VERSION,
        cluster_tag: options.cluster_tag,
        host: options.host,
        twin: options.twin,
    };
    // A broker that turns this user away does not wait for the greeting; its answer is there to be
    // read although the write fails.
    let written = stream.write_all(&greeting.encode());
    let (welcome, fds) = receive_welcome(stream, options.timeout)
        .map_err(|error| socket_error(written.err().unwrap_or(error)))?;
    let welcome = Welcome::decode(&welcome).map_err(|error| ConnectError::Wire {
        path: path.to_owned(),
        error,
    })?;
    if let Some(rejection) = welcome.rejection {
        return Err(ConnectError::Rejected {
            path: path.to_owned(),
            rejection,
            greeting,
            welcome,
        });
    }
    // The broker has compared these already; a broker is believed no more than need be.
    let pairs = [
        (
            "protocol version",
            u64::from(welcome.version),
            u64::from(greeting.version),
        ),
        ("cluster tag", welcome.cluster_tag, greeting.cluster_tag),
        ("host", u64::from(welcome.host), u64::from(greeting.host)),
        ("twin", u64::from(welcome.twin), u64::from(greeting.twin)),
        (
            "number of descriptors",
            fds.len() as u64,
            WELCOME_FDS as u64,
        ),
    ];
    for (name, theirs, ours) in pairs {
        if theirs != ours {
            return Err(ConnectError::Mismatch {
                path: path.to_owned(),
                name,
                theirs,
                ours,
            });
        }
    }
    Ok((welcome, fds))
}

fn receive_welcome(
    stream: &UnixStream,
    timeout: Duration,
) -> io::Result<([u8; WELCOME_BYTES], Vec<OwnedFd>)> {
    let deadline = Instant::now() + timeout;
    let mut bytes = [0; WELCOME_BYTES];
    let (mut have, mut fds) = (0, Vec::new());
    while have < bytes.len() {
        let (count, more) = receive_with_fds(stream, &mut bytes[have..])?;
        fds.extend(more);
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed the connection",
            ));
        }
        if Instant::now() > deadline {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        have += count;
    }
    Ok((bytes, fds))
}

fn build(
    stream: UnixStream,
    welcome: &Welcome,
    fds: Vec<OwnedFd>,
    options: &ConnectOptions,
    waker: Waker,
) -> Result<(Reader, Appender), String> {
    let [log, ring, bell, broker_bell] =
        <[OwnedFd; WELCOME_FDS]>::try_from(fds).expect("counted before");
    let region = ReadMemoryFile::open(&log).map_err(|error: LocalLogError| error.to_string())?;
    let info = &region.info;
    let same = info.epoch == welcome.epoch
        && info.limits.twins == welcome.twins
        && info.host == welcome.host
        && info.cluster_tag == welcome.cluster_tag;
    if !same || options.twin >= info.limits.twins {
        return Err(format!(
            "the log's header {info:?} does not match the welcome {welcome:?}"
        ));
    }
    let io_error = |error: io::Error| format!("the append ring: {error}");
    let memory = map_ring(ring.as_fd(), channel_bytes(welcome.ring_order)).map_err(io_error)?;
    let memory = Arc::new(memory);
    let view = |memory| LogView::open(memory).map_err(|error: RegionError| error.to_string());
    let link = Arc::new(Link::new(
        options.twin,
        Box::new(EventBell(bell)),
        memory.clone(),
    ));
    let producer = RingProducer::new(memory.clone(), welcome.ring_order);
    let appender = Appender::new(
        link.clone(),
        producer,
        view(region.memory.clone())?,
        options.append_pending_bytes_max,
    );
    if appender.next_number() != welcome.next_number {
        return Err("the log's next append number does not match the welcome".to_owned());
    }
    let sleeper =
        SocketSleeper::new(stream, broker_bell, &waker).map_err(|error| error.to_string())?;
    let flag = WaitFlag::new(memory);
    let reader = Reader::new(
        link,
        view(region.memory)?,
        flag,
        waker,
        Box::new(sleeper),
        options.spin_us,
    );
    Ok((reader, appender))
}

/// An eventfd that the broker watches.
struct EventBell(OwnedFd);

impl Bell for EventBell {
    fn ring(&self) {
        loop {
            match nix::unistd::write(&self.0, &1u64.to_ne_bytes()) {
                Err(Errno::EINTR) => {}
                // A broker that is gone shows on the socket; a full counter rings anyway.
                Ok(_) | Err(_) => return,
            }
        }
    }
}

/// Sleeps on the broker's bell, the waker and the socket at once. All are edge-triggered, so that no
/// event has to be read away: one system call a sleep.
struct SocketSleeper {
    epoll: Epoll,
    stream: UnixStream,
    broker_bell: OwnedFd,
}

const STREAM: u64 = 2;

impl SocketSleeper {
    fn new(stream: UnixStream, broker_bell: OwnedFd, waker: &Waker) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&broker_bell, EpollEvent::new(edge, 0))?;
        epoll.add(waker.event(), EpollEvent::new(edge, 1))?;
        epoll.add(
            &stream,
            EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, STREAM),
        )?;
        Ok(Self {
            epoll,
            stream,
            broker_bell,
        })
    }

    fn farewell(&self) -> String {
        let mut bytes = [0; FAREWELL_BYTES_MAX];
        let count = (&self.stream).read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }
}

impl Sleeper for SocketSleeper {
    fn watched(&self) -> [BorrowedFd<'_>; 2] {
        [self.broker_bell.as_fd(), self.stream.as_fd()]
    }

    fn sleep(&self, timeout: Option<Duration>) -> Slept {
        let mut events = [EpollEvent::empty(); 3];
        // Rounded up, so that a wait never ends before its time; longer than a month is for ever.
        let timeout = timeout.map(|timeout| timeout.as_nanos().div_ceil(1_000_000));
        let timeout = timeout.and_then(|ms| i32::try_from(ms).ok());
        let timeout = timeout.map_or(EpollTimeout::NONE, |ms| {
            EpollTimeout::try_from(ms).expect("not negative")
        });
        match self.epoll.wait(&mut events, timeout) {
            Ok(0) => Slept::TimedOut,
            Ok(count) if events[..count].iter().any(|event| event.data() == STREAM) => {
                Slept::Closed(self.farewell())
            }
            Ok(_) | Err(Errno::EINTR) => Slept::Rung,
            Err(error) => panic!("epoll_wait on our own descriptors failed: {error}"),
        }
    }
}
