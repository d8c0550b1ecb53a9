//! The broker's side of one guest, for one life of its domain: a vchan that the guest appends through,
//! and the mirror that it reads. Nothing here waits for the guest, and nothing that the guest does
//! reaches beyond it.
//!
//! Ring and mirror are granted once. A guest whose process ends and comes back finds the same pages: a
//! grant that is mapped cannot be taken back, so a new one for each connection would be a leak that a
//! guest drives.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::descriptor::Descriptor;
use super::evtchn::EventChannel;
use super::gntalloc::{Access, Gntalloc, Grant};
use super::keepsake::Keepsake;
use super::{DomId, XenError};
use crate::frame::{Frame, FrameAssembler, FrameFault};
use crate::ledger::Limits;
use crate::log_view::LogInfo;
use crate::log_writer::region_bytes;
use crate::raw::{PAGE_BYTES, WriteMemory};
use crate::vchan::{
    self, GRANTED_ORDER_MAX, ORDER_MIN, Peer, RingConsumer, SERVER_LIVE, WaitFlag, channel_bytes,
};

/// What an earlier process of the broker has left of a guest.
pub struct Kept {
    /// The numbers.
    pub keepsake: Keepsake,
    /// Of gntalloc.
    pub grants: OwnedFd,
    /// Of evtchn.
    pub events: OwnedFd,
}

/// A guest as the broker sees it.
pub struct Guest {
    domid: DomId,
    ring_order: u16,
    limits: Limits,
    ring_memory: Arc<WriteMemory>,
    /// `None` from a fault on, until the guest has let go of the ring.
    channel: Option<Channel>,
    events: EventChannel,
    gntalloc: Gntalloc,
    ring_grant: Grant,
    mirror_grant: Grant,
}

struct Channel {
    ring: RingConsumer,
    assembler: FrameAssembler,
    wait_flag: WaitFlag,
}

impl Guest {
    /// Grants a ring and a mirror to a domain that exists. The mirror's memory goes to
    /// `LogWriter::attach_mirror`, before `publish`.
    ///
    /// # Errors
    /// A limit, or no Xen.
    pub fn admit(
        domid: DomId,
        ring_order: u16,
        limits: &Limits,
    ) -> Result<(Self, WriteMemory), XenError> {
        if !(ORDER_MIN..=GRANTED_ORDER_MAX).contains(&ring_order) {
            let doing = format!("make a ring of 2^{ring_order} bytes");
            let error = XenError::new(doing, Errno::EINVAL, "set ring_order between them");
            let bounds = format!("{ORDER_MIN} to {GRANTED_ORDER_MAX}");
            return Err(error.with_value("ring_order on Xen", bounds));
        }
        let gntalloc = Gntalloc::open()?;
        let events = EventChannel::offer(domid)?;
        let ring_pages = channel_bytes(ring_order) / PAGE_BYTES;
        let (ring_memory, ring_grant) = gntalloc.allocate(domid, ring_pages, Access::Write)?;
        let mirror_pages = region_bytes(limits).div_ceil(PAGE_BYTES);
        let (mirror, mirror_grant) = gntalloc.allocate(domid, mirror_pages, Access::Read)?;
        ring_grant.clear_on_release(SERVER_LIVE, &events)?;
        let mut guest = Self {
            domid,
            ring_order,
            limits: limits.clone(),
            ring_memory: Arc::new(ring_memory),
            channel: None,
            events,
            gntalloc,
            ring_grant,
            mirror_grant,
        };
        guest.renew();
        Ok((guest, mirror))
    }

    /// Goes on with what an earlier process of the broker granted, on the same pages. Its channel is closed, so that a
    /// process of the guest that uses it connects anew, to an empty ring.
    ///
    /// # Errors
    /// The descriptors are not those that the keepsake speaks of, or the mirror is too small for `limits`; what was granted
    /// goes with them then.
    pub fn readmit(kept: Kept, limits: &Limits) -> Result<(Self, WriteMemory), XenError> {
        let Keepsake {
            domid, ring_order, ..
        } = kept.keepsake;
        let needed = region_bytes(limits).div_ceil(PAGE_BYTES);
        let granted = kept.keepsake.mirror_refs.len();
        if granted < needed {
            let doing = format!("use the {granted} pages that domain {domid} was granted before");
            let remedy = "the log is larger now; fresh pages are granted";
            let error = XenError::new(doing, Errno::ENOSPC, remedy);
            return Err(error.with_value("pages needed", needed.to_string()));
        }
        let gntalloc = Gntalloc::from_kept(kept.grants);
        let events = EventChannel::from_kept(kept.events, domid, kept.keepsake.port);
        let Keepsake {
            ring_index,
            ring_refs,
            mirror_index,
            mirror_refs,
            ..
        } = kept.keepsake;
        let (ring_memory, ring_grant) = gntalloc.map_again(domid, ring_index, ring_refs)?;
        let (mirror, mirror_grant) = gntalloc.map_again(domid, mirror_index, mirror_refs)?;
        let mut guest = Self {
            domid,
            ring_order,
            limits: limits.clone(),
            ring_memory: Arc::new(ring_memory),
            channel: None,
            events,
            gntalloc,
            ring_grant,
            mirror_grant,
        };
        vchan::close_server(&guest.ring_memory);
        guest.events.ring();
        if guest.peer() != Peer::Up {
            guest.renew();
        }
        Ok((guest, mirror))
    }

    /// What a successor needs: numbers, and the descriptors `grants` and `events`.
    #[must_use]
    pub fn keepsake(&self, twin: u8) -> Keepsake {
        Keepsake {
            twin,
            domid: self.domid,
            port: self.events.port(),
            ring_order: self.ring_order,
            ring_index: self.ring_grant.index(),
            ring_refs: self.ring_grant.refs().to_vec(),
            mirror_index: self.mirror_grant.index(),
            mirror_refs: self.mirror_grant.refs().to_vec(),
        }
    }

    /// The descriptor that all was granted through.
    #[must_use]
    pub fn grants(&self) -> BorrowedFd<'_> {
        self.gntalloc.as_fd()
    }

    /// Pages that this guest was granted.
    #[must_use]
    pub fn granted_pages(&self) -> usize {
        self.ring_grant.refs().len() + self.mirror_grant.refs().len()
    }

    /// What the guest has to know. To be published when the domain exists: xenstored ignores permissions for one that does
    /// not.
    #[must_use]
    pub fn descriptor(&self, info: &LogInfo, twin: u8) -> Descriptor {
        Descriptor {
            epoch: info.epoch,
            cluster_tag: info.cluster_tag,
            host: info.host,
            twin,
            ring_ref: self.ring_grant.refs()[0],
            event_channel: self.events.port(),
            mirror_refs: self.mirror_grant.refs().to_vec(),
        }
    }

    /// The domain.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// Whether a process of the guest uses the ring. What the guest says; its domain may be gone.
    #[must_use]
    pub fn peer(&self) -> Peer {
        vchan::client(&self.ring_memory)
    }

    /// Whether the channel is open for the guest, be it used or not.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.channel.is_some()
    }

    /// Closes the channel. It stays closed until the guest lets go of the ring and `renew` is called.
    pub fn close(&mut self) {
        self.channel = None;
        self.events.ring();
    }

    /// Prepares the ring for the guest's next process: on the same pages, empty. To be called when
    /// `peer` says that the last one is gone.
    pub fn renew(&mut self) {
        self.channel = None;
        vchan::reset(&self.ring_memory, self.ring_order);
        vchan::write_grants(&self.ring_memory, &self.ring_grant.refs()[1..]);
        self.channel = Some(Channel {
            ring: RingConsumer::new(self.ring_memory.clone(), self.ring_order),
            assembler: FrameAssembler::new(&self.limits),
            wait_flag: WaitFlag::new(self.ring_memory.clone()),
        });
    }

    /// The next whole frame. Takes at most one; call `release` when done for now.
    ///
    /// # Errors
    /// The guest broke the rules; call `close`.
    pub fn poll_frame(&mut self) -> Result<Option<Frame<'_>>, FrameFault> {
        match &mut self.channel {
            Some(channel) => channel.assembler.poll_frame(&mut channel.ring),
            None => Ok(None),
        }
    }

    /// Whether the guest seems to have written something. Only a hint.
    #[must_use]
    pub fn looks_ready(&self) -> bool {
        let channel = self.channel.as_ref();
        channel.is_some_and(|channel| channel.ring.looks_ready())
    }

    /// Gives the room of what was read back, and tells the guest when it waits for it.
    pub fn release(&mut self) {
        let channel = self.channel.as_mut();
        if channel.is_some_and(|channel| channel.ring.release()) {
            self.events.ring();
        }
    }

    /// Asks to be rung at the next write; look at `looks_ready` again afterwards.
    pub fn arm(&self) {
        if let Some(channel) = &self.channel {
            channel.ring.request_data_notice();
        }
    }

    /// Wakes the guest when it sleeps on the log. To be called after publishing and a SeqCst fence.
    /// Answers whether it did. `only_own`: nothing but this guest's own entries was published.
    pub fn wake_if_waiting(&self, only_own: bool) -> bool {
        let channel = self.channel.as_ref();
        let waiting = channel.is_some_and(|channel| channel.wait_flag.take(only_own));
        if waiting {
            self.events.ring();
        }
        waiting
    }

    /// Takes a ring of the guest off the descriptor; look at the ring and at `peer` after it.
    ///
    /// # Errors
    /// The event channel is broken.
    pub fn settle(&self) -> Result<bool, XenError> {
        self.events.settle()
    }
}

impl AsFd for Guest {
    /// Becomes readable when the guest rings.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
