//! The broker's side of a twin's channel.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::fds::send_with_fds;
use super::region::create_ring;
use super::wire::{FAREWELL_BYTES_MAX, Welcome};
use crate::frame::{Frame, FrameAssembler, FrameFault};
use crate::ledger::Limits;
use crate::vchan::{RingConsumer, WaitFlag, channel_bytes, initialise};

/// A connected twin as the broker sees it.
pub struct BrokerChannel {
    ring: RingConsumer,
    assembler: FrameAssembler,
    wait_flag: WaitFlag,
    /// The twin rings it; watched edge-triggered and never read, so the twin cannot block us.
    bell_in: EventFd,
    /// We ring it. The twin never holds it: it gets `bell_out` wrapped into an epoll descriptor,
    /// because whoever holds an eventfd can fill it and clear its O_NONBLOCK, and then our next
    /// write would hang the broker.
    bell_out: EventFd,
    stream: UnixStream,
}

impl BrokerChannel {
    /// Makes a ring and bells for a greeted twin and hands them over with `welcome` and the log.
    /// Never blocks.
    ///
    /// # Errors
    /// The kernel has no resources left, or the twin is gone.
    pub fn open(
        stream: UnixStream,
        welcome: &Welcome,
        log: BorrowedFd<'_>,
        limits: &Limits,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (memory, ring_fd) = create_ring(channel_bytes(welcome.ring_order))?;
        initialise(&memory, welcome.ring_order);
        let memory = Arc::new(memory);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let (bell_in, bell_out) = (EventFd::from_flags(flags)?, EventFd::from_flags(flags)?);
        let wrapped = wrap(&bell_out)?;
        let fds = [log, ring_fd.as_fd(), bell_in.as_fd(), wrapped.as_fd()];
        send_with_fds(&stream, &welcome.encode(), &fds)?;
        Ok(Self {
            ring: RingConsumer::new(memory.clone(), welcome.ring_order),
            assembler: FrameAssembler::new(limits),
            wait_flag: WaitFlag::new(memory),
            bell_in,
            bell_out,
            stream,
        })
    }

    /// Becomes readable, edge-triggered, when the twin has written something.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell_in.as_fd()
    }

    /// The socket; it hangs up when the twin is gone, and nothing ever comes in on it.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next whole frame. Takes at most one; call `release` when done for now.
    ///
    /// # Errors
    /// The twin broke the rules; the channel must be closed.
    pub fn poll_frame(&mut self) -> Result<Option<Frame<'_>>, FrameFault> {
        self.assembler.poll_frame(&mut self.ring)
    }

    /// Whether the twin seems to have written something. Only a hint.
    #[must_use]
    pub fn looks_ready(&self) -> bool {
        self.ring.looks_ready()
    }

    /// Gives the room of what was read back, and tells the twin when it waits for it.
    pub fn release(&mut self) {
        if self.ring.release() {
            self.ring_bell();
        }
    }

    /// Asks for the bell at the next write; look at `looks_ready` again afterwards.
    pub fn arm(&self) {
        self.ring.request_data_notice();
    }

    /// Wakes the twin when it sleeps on the log. To be called after publishing and a SeqCst fence.
    /// Answers whether it did. `only_own`: nothing but this twin's own entries was published.
    pub fn wake_if_waiting(&self, only_own: bool) -> bool {
        let waiting = self.wait_flag.take(only_own);
        if waiting {
            self.ring_bell();
        }
        waiting
    }

    fn ring_bell(&self) {
        // Nobody reads the counter, and 2^64 wake-ups take longer than the machine lasts.
        self.bell_out
            .write(1)
            .expect("an eventfd that nobody else holds takes 2^64 wake-ups");
    }

    /// Tells the twin why its channel is closed, as far as its socket takes it, and closes it.
    pub fn close(self, reason: &str) {
        let reason = &reason.as_bytes()[..reason.len().min(FAREWELL_BYTES_MAX)];
        // Best effort: the twin sees the hang-up in any case.
        let _ = (&self.stream).write(reason);
    }
}

fn wrap(bell: &EventFd) -> io::Result<OwnedFd> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(
        bell,
        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0),
    )?;
    Ok(epoll.0)
}
