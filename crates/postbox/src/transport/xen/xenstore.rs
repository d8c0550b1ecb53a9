//! A small client of xenstore: one request at a time, each with a deadline, events kept aside.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use super::XenError;
use super::error::open_device;
use super::xenstore_wire::{
    Content, Decoder, Permission, Request, WatchEvent, WireError, check_path, encode, names,
    permissions,
};

/// The daemon's own socket, in dom0 only.
const SOCKET: &str = "/run/xenstored/socket";
/// The kernel's way, in every domain.
const DEVICE: &str = "/dev/xen/xenbus";
/// How long xenstored may take for one answer. It is one process for the whole host, and slow while
/// domains are made.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How often a transaction is tried while others write to the same nodes.
const TRIES_MAX: u32 = 64;
/// Events that are kept; when there are more, the oldest go and `take_lost_events` says so.
const EVENTS_MAX: usize = 1024;

/// A connection to xenstored.
#[derive(Debug)]
pub struct Xenstore {
    fd: OwnedFd,
    decoder: Decoder,
    answer_max: Duration,
    last_request: u32,
    events: VecDeque<WatchEvent>,
    lost_events: bool,
    /// Set once the stream cannot be followed any more.
    broken: bool,
}

impl Xenstore {
    /// Connects: in dom0 to the daemon, elsewhere through the kernel.
    ///
    /// # Errors
    /// No Xen, no permission.
    pub fn open() -> Result<Self, XenError> {
        if let Ok(stream) = UnixStream::connect(SOCKET) {
            return Self::from_fd(stream.into());
        }
        let missing = "is this a Xen domain, and is xenfs mounted on /proc/xen?";
        open_device(DEVICE, missing).and_then(Self::from_fd)
    }

    /// Talks over a descriptor of somebody else's making.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, XenError> {
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&fd, flags)
            .map_err(|errno| XenError::new("set up xenstore's descriptor", errno, "report this"))?;
        Ok(Self {
            fd,
            decoder: Decoder::default(),
            answer_max: ANSWER_MAX,
            last_request: 0,
            events: VecDeque::new(),
            lost_events: false,
            broken: false,
        })
    }

    /// Another patience than the 20 seconds of a fresh connection.
    pub fn set_answer_max(&mut self, answer_max: Duration) {
        self.answer_max = answer_max;
    }

    /// A node's value; `None` when there is no such node.
    ///
    /// # Errors
    /// xenstored refuses or does not answer.
    pub fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, XenError> {
        absent(self.ask(Request::Read, 0, path, &[]))
    }

    /// The names below a path; none when there is no such node.
    ///
    /// # Errors
    /// xenstored refuses or does not answer.
    pub fn directory(&mut self, path: &str) -> Result<Vec<String>, XenError> {
        let payload = absent(self.ask(Request::Directory, 0, path, &[]))?;
        Ok(payload.map_or_else(Vec::new, |payload| names(&payload)))
    }

    /// Writes a node, and makes it when it is not there.
    ///
    /// # Errors
    /// xenstored refuses or does not answer.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), XenError> {
        self.ask(Request::Write, 0, path, &[value]).map(|_| ())
    }

    /// Removes a node and all below it; that it is not there is fine.
    ///
    /// # Errors
    /// xenstored refuses or does not answer.
    pub fn remove(&mut self, path: &str) -> Result<(), XenError> {
        absent(self.ask(Request::Remove, 0, path, &[])).map(|_| ())
    }

    /// Has events come for everything at and below `path`; one comes at once.
    ///
    /// # Errors
    /// xenstored refuses (128 watches are a guest's quota) or does not answer.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), XenError> {
        self.ask(Request::Watch, 0, path, &[token.as_bytes(), b"\0"])
            .map(|_| ())
    }

    /// Runs `body` in a transaction, again from its start while others write to the same nodes.
    ///
    /// # Errors
    /// What `body` answers (nothing is written then), or xenstored refuses.
    pub fn transaction<T>(
        &mut self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, XenError>,
    ) -> Result<T, XenError> {
        for _ in 0..TRIES_MAX {
            let id = self.ask_raw(
                "start a transaction",
                Request::TransactionStart,
                0,
                &[b"\0"],
            )?;
            let id = std::str::from_utf8(&id).ok();
            let id = id.and_then(|id| id.trim_end_matches('\0').parse().ok());
            let Some(id) = id.filter(|id| *id != 0) else {
                return Err(self.give_up("start a transaction", Errno::EPROTO));
            };
            let result = body(&mut Transaction { store: self, id });
            let verdict: &[u8] = if result.is_ok() { b"T\0" } else { b"F\0" };
            let end = self.ask_raw("end a transaction", Request::TransactionEnd, id, &[verdict]);
            match (result, end) {
                (Err(error), _) if error.errno != Errno::EAGAIN => return Err(error),
                (Ok(value), Ok(_)) => return Ok(value),
                (Ok(_), Err(error)) if error.errno != Errno::EAGAIN => return Err(error),
                (Err(_), _) | (Ok(_), Err(_)) => {}
            }
        }
        let remedy = "somebody writes to the same nodes all the time; look with xenstore-watch";
        let error = XenError::new("finish a transaction of xenstore", Errno::EAGAIN, remedy);
        Err(error.with_value("tries", TRIES_MAX.to_string()))
    }

    /// The next event, without waiting. To be called until it answers `None` when the descriptor is
    /// readable.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn poll_event(&mut self) -> Result<Option<WatchEvent>, XenError> {
        // First what was kept: it came before whatever broke the connection.
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        while let Some(message) = self.poll_message("watch")? {
            // An answer that nobody waits for any more cannot be: a time-out breaks the connection.
            let Content::Event(event) = message else {
                return Err(self.give_up("watch", Errno::EPROTO));
            };
            self.keep(event);
        }
        Ok(self.events.pop_front())
    }

    /// Whether events were dropped because too many came at once: look at everything again.
    pub fn take_lost_events(&mut self) -> bool {
        std::mem::take(&mut self.lost_events)
    }

    fn keep(&mut self, event: WatchEvent) {
        if self.events.contains(&event) {
            return;
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
            self.lost_events = true;
        }
        self.events.push_back(event);
    }

    fn ask(
        &mut self,
        request: Request,
        transaction: u32,
        path: &str,
        rest: &[&[u8]],
    ) -> Result<Vec<u8>, XenError> {
        let doing = format!("{request:?} {path} in xenstore");
        if check_path(path).is_err() {
            return Err(XenError::new(
                doing,
                Errno::EINVAL,
                "report this: it is no path",
            ));
        }
        let mut parts = vec![path.as_bytes(), b"\0"];
        parts.extend_from_slice(rest);
        self.ask_raw(&doing, request, transaction, &parts)
    }

    fn ask_raw(
        &mut self,
        doing: &str,
        request: Request,
        transaction: u32,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, XenError> {
        if self.broken {
            return Err(XenError::new(
                doing,
                Errno::EPIPE,
                "connect to xenstore again",
            ));
        }
        self.last_request = self.last_request.wrapping_add(1);
        let id = self.last_request;
        let bytes = encode(request, id, transaction, parts).map_err(|error| {
            let length = format!("{error}");
            XenError::new(doing, Errno::E2BIG, "report this").with_value("length", length)
        })?;
        let deadline = Instant::now() + self.answer_max;
        self.send(doing, &bytes, deadline)?;
        loop {
            match self.poll_reply(doing, id)? {
                Some(Ok(payload)) => return Ok(payload),
                Some(Err(errno)) => return Err(refusal(doing, errno)),
                None => self.wait(doing, PollFlags::POLLIN, deadline)?,
            }
        }
    }

    fn poll_reply(
        &mut self,
        doing: &str,
        id: u32,
    ) -> Result<Option<Result<Vec<u8>, Errno>>, XenError> {
        while let Some((request_id, content)) = self.poll_any(doing)? {
            match content {
                Content::Event(event) => self.keep(event),
                Content::Answer(_) | Content::Refused(_) if request_id != id => {
                    return Err(self.give_up(doing, Errno::EPROTO));
                }
                Content::Answer(payload) => return Ok(Some(Ok(payload))),
                Content::Refused(errno) => return Ok(Some(Err(errno))),
            }
        }
        Ok(None)
    }

    fn poll_message(&mut self, doing: &str) -> Result<Option<Content>, XenError> {
        Ok(self.poll_any(doing)?.map(|(_, content)| content))
    }

    /// The next message that is there, whatever it is.
    fn poll_any(&mut self, doing: &str) -> Result<Option<(u32, Content)>, XenError> {
        loop {
            match self.decoder.poll() {
                Ok(Some(message)) => return Ok(Some((message.request_id, message.content))),
                Ok(None) => {}
                Err(WireError::TooLong(_) | WireError::Path | WireError::Event) => {
                    return Err(self.give_up(doing, Errno::EPROTO));
                }
            }
            let mut bytes = [0; 4096];
            match read(&self.fd, &mut bytes) {
                Ok(0) => return Err(self.give_up(doing, Errno::EPIPE)),
                Ok(count) => self.decoder.feed(&bytes[..count]),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.give_up(doing, errno)),
            }
        }
    }

    fn send(&mut self, doing: &str, mut bytes: &[u8], deadline: Instant) -> Result<(), XenError> {
        while !bytes.is_empty() {
            match write(&self.fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EAGAIN) => self.wait(doing, PollFlags::POLLOUT, deadline)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.give_up(doing, errno)),
            }
        }
        Ok(())
    }

    fn wait(&mut self, doing: &str, what: PollFlags, deadline: Instant) -> Result<(), XenError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let answer = poll(&mut [PollFd::new(self.fd.as_fd(), what)], timeout);
        match answer {
            Ok(0) => Err(self.give_up(doing, Errno::ETIMEDOUT)),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(self.give_up(doing, errno)),
        }
    }

    fn give_up(&mut self, doing: &str, errno: Errno) -> XenError {
        self.broken = true;
        let remedy = match errno {
            Errno::ETIMEDOUT => {
                "xenstored does not answer: does it run, is dom0 out of processor time?"
            }
            Errno::EPROTO => "xenstored says what no xenstored says; is it of this Xen?",
            _ => "is xenstored running? It cannot be restarted under a running Xen",
        };
        let seconds = format!("{} ms", self.answer_max.as_millis());
        let error = XenError::new(doing, errno, remedy);
        match errno {
            Errno::ETIMEDOUT => error.with_value("patience", seconds),
            _ => error,
        }
    }
}

impl AsFd for Xenstore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A transaction that runs.
pub struct Transaction<'a> {
    store: &'a mut Xenstore,
    id: u32,
}

impl Transaction<'_> {
    /// A node's value; `None` when there is no such node.
    ///
    /// # Errors
    /// xenstored refuses or does not answer.
    pub fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, XenError> {
        absent(self.store.ask(Request::Read, self.id, path, &[]))
    }

    /// Writes a node.
    ///
    /// # Errors
    /// xenstored refuses or does not answer.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), XenError> {
        self.store
            .ask(Request::Write, self.id, path, &[value])
            .map(|_| ())
    }

    /// Removes a node and all below it; that it is not there is fine.
    ///
    /// # Errors
    /// xenstored refuses or does not answer.
    pub fn remove(&mut self, path: &str) -> Result<(), XenError> {
        absent(self.store.ask(Request::Remove, self.id, path, &[])).map(|_| ())
    }

    /// Sets who may do what with a node. Of a domain that does not exist yet xenstored forgets it.
    ///
    /// # Errors
    /// xenstored refuses or does not answer.
    pub fn set_permissions(&mut self, path: &str, entries: &[Permission]) -> Result<(), XenError> {
        let payload = permissions(entries);
        self.store
            .ask(Request::SetPermissions, self.id, path, &[&payload])
            .map(|_| ())
    }
}

fn absent(result: Result<Vec<u8>, XenError>) -> Result<Option<Vec<u8>>, XenError> {
    match result {
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        result => result.map(Some),
    }
}

fn refusal(doing: &str, errno: Errno) -> XenError {
    let remedy = match errno {
        Errno::ENOENT => "there is no such node (yet)",
        Errno::EACCES => {
            "this domain may not; permissions are set by the broker once the domain exists"
        }
        Errno::ENOSPC => {
            "a quota of xenstore is used up (xenstore-control quota): nodes, watches or transactions"
        }
        Errno::E2BIG => "a value is longer than xenstore's quota (2048 bytes for a guest)",
        Errno::EAGAIN => "somebody else wrote to the same nodes",
        _ => "look at xenstored's log (/var/log/xen)",
    };
    XenError::new(doing, errno, remedy)
}

#[cfg(test)]
#[path = "xenstore_tests.rs"]
mod tests;
