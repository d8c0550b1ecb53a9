//! File descriptors that come from elsewhere: with a message, or inherited from the supervisor.
//! Unsafe is needed because only here a bare number becomes an owned descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors that one message carries.
const FDS_MAX: usize = 8;

/// Sends bytes with descriptors, without blocking.
///
/// # Errors
/// The peer is gone, or its socket has no room.
pub fn send_with_fds(
    socket: &impl AsRawFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let rights = [ControlMessage::ScmRights(&raw)];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &rights,
        flags,
        None,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::WriteZero))
    }
}

/// Receives bytes and whatever descriptors come with them.
///
/// # Errors
/// What recvmsg(2) answers, a time-out among it.
pub fn receive_with_fds(
    socket: &impl AsRawFd,
    into: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; FDS_MAX]);
    let mut slices = [IoSliceMut::new(into)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us and nobody else knows them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok((message.bytes, fds))
}

/// The descriptors that the supervisor passed by the LISTEN_FDS protocol, with their names. To be
/// called once, at the start of a process.
///
/// # Errors
/// The variables are there, meant for this process, and wrong.
pub fn inherited() -> io::Result<Vec<(String, OwnedFd)>> {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(count) = variable("LISTEN_FDS") else {
        return Ok(Vec::new());
    };
    if variable("LISTEN_PID") != Some(std::process::id().to_string()) {
        return Ok(Vec::new());
    }
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let count: RawFd = count
        .parse()
        .map_err(|_| wrong("LISTEN_FDS is no number"))?;
    if !(0..=64).contains(&count) {
        return Err(wrong("LISTEN_FDS is not between 0 and 64"));
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut fds = Vec::new();
    for fd in 3..3 + count {
        // SAFETY: the protocol gives descriptors 3.. to this process, which was just checked to be
        // the one that is meant; `fcntl` below finds out whether they are really open, and an owned
        // number that is not open is never used.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let close_on_exec = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        if let Err(error) = nix::fcntl::fcntl(&fd, close_on_exec) {
            std::mem::forget(fd);
            return Err(io::Error::from(error));
        }
        fds.push((names.next().unwrap_or_default(), fd));
    }
    Ok(fds)
}
