//! The part of the loop that is about guests of Xen: they appear, use their channels, and go.

use nix::sys::epoll::{EpollEvent, EpollFlags};
use twinbft_postbox::raw::WriteMemory;
use twinbft_postbox::transport::xen::descriptor::READY;
use twinbft_postbox::transport::xen::guest::Guest;
use twinbft_postbox::transport::xen::{DomId, XenError};

use super::Broker;
use super::token::Token;
use crate::guests::{Guests, News, names_of};
use crate::twin::CloseReason;

/// Bytes of the log that go into new mirrors in one turn of the loop: some tenths of a millisecond, which the other twins wait.
pub(super) const SLICE_BYTES: usize = 1 << 20;

/// Guests that an earlier process of the broker has granted pages to, each with its twin and its mirror.
pub type Readmitted = Vec<(u8, Guest, WriteMemory)>;

impl Broker {
    /// Serves guests: those of an earlier process at once, all others when the keeper tells of them.
    pub(crate) fn serve_guests(&mut self, readmitted: Readmitted) -> anyhow::Result<()> {
        let known: Vec<(u8, DomId)> = readmitted
            .iter()
            .map(|(twin, guest, _)| (*twin, guest.domid()))
            .collect();
        let guests = Guests::start(self.options.guests.clone(), known)?;
        let input = EpollEvent::new(EpollFlags::EPOLLIN, Token::Keeper.encode());
        self.epoll.add(&guests, input)?;
        self.guests = Some(guests);
        for (twin, guest, mirror) in readmitted {
            let domid = guest.domid();
            self.admit(twin, guest, mirror)?;
            let name = self.guest_name(twin);
            let text = format!("twin {twin}: guest {name} (domain {domid}) keeps its pages");
            self.journal.event("guest", text);
        }
        // Processes of these guests read them: they are whole before anything else is done.
        while self.log.writer.is_filling() {
            self.fill_mirrors();
        }
        Ok(())
    }

    pub(super) fn transport_name(&self) -> &'static str {
        if self.options.is_on_xen() {
            "xen"
        } else {
            "local"
        }
    }

    fn guest_name(&self, twin: u8) -> String {
        let wanted = self.options.guests.iter().find(|w| w.twin == twin);
        wanted.map_or_else(String::new, |wanted| format!("'{}'", wanted.guest))
    }

    /// What the keeper has found out.
    pub(super) fn hear_keeper(&mut self) {
        while let Some(news) = self.guests.as_ref().and_then(Guests::poll_news) {
            match news {
                News::Appeared { twin, domid } => self.handle_appeared(twin, domid),
                News::Gone { twin, domid } => self.handle_gone(twin, domid),
                News::Published { domid } => {
                    let text = format!("domain {domid}: its channel is published");
                    self.journal.event("guest", text);
                }
                News::Trouble(text) => self.journal.event("xenstore", text),
            }
        }
    }

    fn handle_appeared(&mut self, twin: u8, domid: DomId) {
        let name = self.guest_name(twin);
        let index = usize::from(twin);
        if let Some(earlier) = self.twins[index].guest().map(Guest::domid) {
            self.handle_gone(twin, earlier);
        }
        let limits = self.log.writer.info().limits.clone();
        let admitted = Guest::admit(domid, self.options.ring_order, &limits)
            .map_err(anyhow::Error::from)
            .and_then(|(guest, mirror)| {
                self.keep(twin, &guest)?;
                self.admit(twin, guest, mirror)
            });
        match admitted {
            Ok(()) => {
                let pages = self.twins[index].guest().map_or(0, Guest::granted_pages);
                let text = format!(
                    "twin {twin}: guest {name} is there as domain {domid}; it is granted {pages} pages"
                );
                self.journal.event("guest", text);
            }
            Err(error) => {
                let text = format!(
                    "twin {twin}: guest {name} (domain {domid}) cannot be served: {error:#}"
                );
                self.journal.event("guest-refused", text);
                self.forget(twin, domid);
                if let Some(guests) = &self.guests {
                    guests.tell_again(twin);
                }
            }
        }
    }

    /// Gives what was granted into the supervisor's keeping, before any guest can have mapped it.
    fn keep(&self, twin: u8, guest: &Guest) -> anyhow::Result<()> {
        let keepsake = guest.keepsake(twin).store()?;
        let [keepsake_name, grants_name, events_name] = names_of(twin, guest.domid());
        use std::os::fd::AsFd as _;
        self.supervisor.store(&keepsake_name, keepsake.as_fd());
        self.supervisor.store(&grants_name, guest.grants());
        self.supervisor.store(&events_name, guest.as_fd());
        Ok(())
    }

    fn forget(&self, twin: u8, domid: DomId) {
        for name in names_of(twin, domid) {
            self.supervisor.forget(&name);
        }
    }

    fn admit(&mut self, twin: u8, guest: Guest, mirror: WriteMemory) -> anyhow::Result<()> {
        let input = EpollEvent::new(EpollFlags::EPOLLIN, Token::Guest(twin).encode());
        self.epoll.add(&guest, input)?;
        self.log.writer.attach_mirror(twin, mirror);
        self.twins[usize::from(twin)].admit(guest);
        Ok(())
    }

    /// One slice of the log into a mirror that lacks something; a guest whose mirror is whole is told where it is.
    pub(super) fn fill_mirrors(&mut self) {
        let Some(twin) = self.log.writer.fill_mirror(SLICE_BYTES) else {
            return;
        };
        let guest = self.twins[usize::from(twin)].guest();
        if let (Some(guests), Some(guest)) = (&self.guests, guest) {
            let descriptor = guest.descriptor(self.log.writer.info(), twin);
            guests.publish(guest.domid(), descriptor.encode());
        }
    }

    fn handle_gone(&mut self, twin: u8, domid: DomId) {
        let index = usize::from(twin);
        if self.twins[index].guest().map(Guest::domid) != Some(domid) {
            return;
        }
        self.drain_and_close(index, CloseReason::DomainGone);
        self.log.writer.detach_mirror(twin);
        self.twins[index].release(&self.epoll);
        self.forget(twin, domid);
        if let Some(guests) = &self.guests {
            guests.withdraw(domid);
        }
        let name = self.guest_name(twin);
        let text =
            format!("twin {twin}: guest {name} (domain {domid}) is gone; its pages are given back");
        self.journal.event("guest", text);
        self.notify_status();
    }

    /// The guest rang, or the kernel did for a process of it that has ended.
    pub(super) fn handle_guest(&mut self, index: usize) {
        if !self.twins[index].settle() {
            self.close(index, CloseReason::HungUp);
            return;
        }
        if let Some(domid) = self.twins[index].let_go() {
            // What it wrote before it went counts, as it does on a socket.
            self.drain_and_close(index, CloseReason::HungUp);
            self.twins[index].renew();
            if let Some(guests) = &self.guests {
                guests.tell_state(domid, READY.to_owned());
            }
        }
        if self.twins[index].take_connected() {
            let domid = self.twins[index].guest().map_or(0, Guest::domid);
            let text = format!("twin {index}: connected: domain {domid}");
            self.journal.event("channel", text);
            self.notify_status();
        }
    }

    /// Leaves a guest the reason where its process looks for it.
    pub(super) fn tell_guest_closed(&self, index: usize, reason: &str) {
        let domid = self.twins[index].guest().map(Guest::domid);
        if let (Some(guests), Some(domid)) = (&self.guests, domid) {
            guests.tell_state(domid, format!("closed: {reason}"));
        }
    }
}

/// Takes over the guests that the supervisor has kept. What cannot be used is given back, and its guest is granted anew when
/// it appears.
pub fn readmit(
    kept: Vec<twinbft_postbox::transport::xen::guest::Kept>,
    limits: &twinbft_postbox::Limits,
    journal: &mut crate::journal::Journal,
    supervisor: &crate::supervisor::Supervisor,
) -> Readmitted {
    let mut readmitted: Readmitted = Vec::new();
    for kept in kept {
        let (twin, domid) = (kept.keepsake.twin, kept.keepsake.domid);
        let is_double = readmitted.iter().any(|(of, ..)| *of == twin);
        let taken: Result<(Guest, WriteMemory), Option<XenError>> =
            if twin < limits.twins && !is_double {
                Guest::readmit(kept, limits).map_err(Some)
            } else {
                Err(None)
            };
        match taken {
            Ok((guest, mirror)) => readmitted.push((twin, guest, mirror)),
            Err(error) => {
                let why = error.map_or_else(|| "it is of no twin".to_owned(), |e| e.to_string());
                let text =
                    format!("what domain {domid} was granted as twin {twin} is given back: {why}");
                journal.event("guest", text);
                for name in names_of(twin, domid) {
                    supervisor.forget(&name);
                }
            }
        }
    }
    readmitted
}
