//! The receiving side of systemd's sd_notify protocol: readiness, status, and the descriptor store.
//!
//! Each process has a socket of its own, in a directory that only the operator may enter, so the socket says who
//! speaks.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::SuperviseError;
use super::shared::{ProcessState, Shared, Slot};

/// The longest notice; systemd's own limit.
const NOTICE_BYTES_MAX: usize = 4096;
/// Descriptors in one notice.
const NOTICE_FDS_MAX: usize = 16;
/// Descriptors that are kept for one process; the oldest stay.
const KEPT_MAX: usize = 16;
/// The longest name of a descriptor; systemd's own limit.
const FD_NAME_BYTES_MAX: usize = 255;
/// The sockets that processes notify, in the order of the slots.
pub(super) struct Notices {
    sockets: Vec<UnixDatagram>,
    paths: Vec<PathBuf>,
    /// Hung up when the supervisor ends.
    end: UnixStream,
    shared: Arc<Shared>,
}

/// While it lives, notices are read.
pub(super) type ReaderLife = UnixStream;

impl Notices {
    pub(super) fn bind<'p>(
        paths: impl Iterator<Item = &'p Path>,
        shared: Arc<Shared>,
    ) -> Result<(Self, ReaderLife), SuperviseError> {
        let pair = UnixStream::pair().map_err(|cause| SuperviseError::File {
            doing: "making a socket pair for",
            path: PathBuf::from("the supervisor"),
            cause,
        });
        let (life, end) = pair?;
        let mut notices = Self {
            sockets: Vec::new(),
            paths: Vec::new(),
            end,
            shared,
        };
        for path in paths {
            let failed = |cause| SuperviseError::File {
                doing: "listening on",
                path: path.to_owned(),
                cause,
            };
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                Ok(()) | Err(_) => {}
            }
            let socket = UnixDatagram::bind(path).map_err(failed)?;
            notices.sockets.push(socket);
            notices.paths.push(path.to_owned());
        }
        Ok((notices, life))
    }

    /// Reads notices until the supervisor ends.
    pub(super) fn run(self) {
        loop {
            let mut fds: Vec<PollFd<'_>> = self
                .sockets
                .iter()
                .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                .chain([PollFd::new(self.end.as_fd(), PollFlags::POLLIN)])
                .collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => panic!("waiting for notices on our own sockets: {error}"),
            }
            let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            let (end, sockets) = fds.split_last().expect("the end is among them");
            if ready(end) {
                return;
            }
            for index in (0..sockets.len()).filter(|index| ready(&sockets[*index])) {
                self.take_one(index);
            }
        }
    }

    /// Takes the notice that waits at a socket.
    fn take_one(&self, index: usize) {
        let mut bytes = [0; NOTICE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(NOTICE_FDS_MAX))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        // Another process's notice that was too long, or gone again, is no reason to stop reading.
        let Ok(received) = recvmsg(&self.sockets[index], &mut buffers, &mut rights, flags) else {
            return;
        };
        let mut fds = Vec::new();
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        let length = received.bytes;
        let Ok(text) = std::str::from_utf8(&bytes[..length]) else {
            return;
        };
        let notice = Notice::parse(text);
        self.shared
            .with_index(index, |slot| notice.apply(fds, slot));
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        for path in &self.paths {
            // Left behind it does no harm: the next supervisor replaces it.
            let _removed = std::fs::remove_file(path);
        }
    }
}

/// What a process says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notice {
    ready: bool,
    status: Option<String>,
    store: bool,
    remove: bool,
    fd_name: Option<String>,
}

impl Notice {
    /// Lines that are not understood are none of a supervisor's business. A BARRIER needs no answer but that its
    /// descriptor is closed once everything before it was dealt with, and so it is.
    fn parse(text: &str) -> Self {
        let mut notice = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "READY" => notice.ready = value == "1",
                "STATUS" => notice.status = Some(value.chars().take(200).collect()),
                "FDSTORE" => notice.store = value == "1",
                "FDSTOREREMOVE" => notice.remove = value == "1",
                "FDNAME" if is_fd_name(value) => notice.fd_name = Some(value.to_owned()),
                _ => {}
            }
        }
        notice
    }

    fn apply(self, fds: Vec<OwnedFd>, slot: &mut Slot) {
        let name = self.fd_name.unwrap_or_else(|| "stored".to_owned());
        if self.remove {
            slot.kept.retain(|(kept, _)| *kept != name);
        } else if self.store {
            for fd in fds
                .into_iter()
                .take(KEPT_MAX.saturating_sub(slot.kept.len()))
            {
                slot.kept.push((name.clone(), fd));
            }
        }
        // What a process said that has ended since is no news about its successor.
        if slot.pid.is_none() {
            return;
        }
        if let Some(status) = self.status {
            slot.detail = Some(status);
        }
        if self.ready && slot.state == ProcessState::Starting {
            slot.state = ProcessState::Ready;
            slot.ready_since = Some(Instant::now());
            slot.was_ready = true;
        }
    }
}

/// As systemd has it: it stands in a list with colons between.
fn is_fd_name(name: &str) -> bool {
    name.len() <= FD_NAME_BYTES_MAX
        && name
            .chars()
            .all(|c| c.is_ascii() && !c.is_ascii_control() && c != ':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_lines_of_assignments() {
        let notice = Notice::parse("READY=1\nSTATUS=2 twins\nX_UNKNOWN=1\nnonsense\n");
        assert!(notice.ready && !notice.store);
        assert_eq!(notice.status.as_deref(), Some("2 twins"));
        let notice = Notice::parse("FDSTORE=1\nFDPOLL=0\nFDNAME=twinbft-log-1-0");
        assert!(notice.store && !notice.remove);
        assert_eq!(notice.fd_name.as_deref(), Some("twinbft-log-1-0"));
        assert_eq!(Notice::parse("FDNAME=a:b").fd_name, None);
        assert_eq!(Notice::parse("READY=0"), Notice::default());
    }
}
