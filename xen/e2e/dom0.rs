//! The broker's side of `scripts/xen-e2e`, in dom0: a log, and a guest for each domain number on the
//! command line, whose twin is its place there. Built on the library alone; the daemon comes later.
//!
//! Prints `RESULT PASS …` and `RESULT FAIL …` lines; the guests' own come through xenstore.

use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use twinbft_postbox::frame::Frame;
use twinbft_postbox::log_writer::LogWriter;
use twinbft_postbox::transport::local::region::LocalLog;
use twinbft_postbox::transport::xen::gntalloc::Gntalloc;
use twinbft_postbox::transport::xen::guest::Guest;
use twinbft_postbox::transport::xen::xenstore::Xenstore;
use twinbft_postbox::transport::xen::{DomId, descriptor};
use twinbft_postbox::{Limits, LogInfo, cluster_tag};

/// Everything here is emulated, and slow.
const PATIENCE: Duration = Duration::from_secs(150);
const RING_ORDER: u16 = 14;

fn limits() -> Limits {
    Limits {
        log_bytes: 256 << 10,
        entry_bytes_max: 16 << 10,
        state_bytes_max: 4096,
        ..Limits::new(2)
    }
}

fn main() {
    let domids: Vec<DomId> = std::env::args()
        .skip(1)
        .map(|domid| domid.parse().expect("domain numbers"))
        .collect();
    assert_eq!(domids.len(), 2, "two guests");
    let mut broker = Broker::start(&domids);
    broker.run();
}

struct Broker {
    log: LogWriter,
    store: Xenstore,
    guests: Vec<Guest>,
    /// Of each twin, whether it was seen breaking its ring.
    faults: Vec<Option<String>>,
    told: Vec<usize>,
}

impl Broker {
    fn start(domids: &[DomId]) -> Self {
        let info = LogInfo {
            limits: limits(),
            epoch: 1,
            cluster_tag: cluster_tag("xen-e2e"),
            host: 0,
            generation: 0,
        };
        let mut log = LocalLog::create(info.clone())
            .expect("there is memory")
            .writer;
        let mut store = Xenstore::open().expect("xenstored runs");
        let mut guests = Vec::new();
        let mut mirror_ref = Vec::new();
        for (twin, domid) in (0..).zip(domids) {
            let (guest, mirror) = Guest::admit(*domid, RING_ORDER, &info.limits).expect("grants");
            log.attach_mirror(twin, mirror);
            guest.publish(&mut store, &info, twin).expect("published");
            let node = format!("{}/mirror-0", descriptor::path(*domid));
            let refs = store.read(&node).expect("readable").expect("published");
            let refs = String::from_utf8(refs).expect("numbers");
            mirror_ref.push(refs.split(' ').next().expect("one").to_owned());
            guests.push(guest);
        }
        // A guest is told a reference of the other's mirror, so that it can try to map it.
        for (twin, domid) in domids.iter().enumerate() {
            let node = format!("/local/domain/{domid}/data/e2e-other-mirror");
            let other = mirror_ref[1 - twin].as_bytes();
            store.write(&node, other).expect("written");
        }
        result(
            true,
            "dom0: ring and mirror are granted and published for both guests",
        );
        Self {
            log,
            store,
            told: vec![0; guests.len()],
            faults: vec![None; guests.len()],
            guests,
        }
    }

    fn run(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.told.iter().any(|told| *told < usize::MAX) {
            if Instant::now() > deadline {
                result(
                    false,
                    &format!("dom0: the guests did not end: {:?}", self.told),
                );
                return;
            }
            self.serve();
            self.hear_verdicts();
            self.sleep();
        }
        let named = self.faults[1].as_deref().unwrap_or("nothing");
        let caught = self.faults[1].is_some() && self.faults[0].is_none();
        result(
            caught,
            &format!(
                "dom0: twin 1 corrupted its ring index, its channel alone was closed: {named}"
            ),
        );
        self.check_limit();
    }

    fn sleep(&self) {
        for guest in &self.guests {
            guest.arm();
        }
        let ready = self.guests.iter().any(Guest::looks_ready);
        let mut fds: Vec<PollFd<'_>> = self
            .guests
            .iter()
            .map(|guest| PollFd::new(guest.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = if ready { 0u16 } else { 100 };
        let _ = poll(&mut fds, PollTimeout::from(timeout));
        for guest in &self.guests {
            guest.settle().expect("the event channel is sound");
        }
    }

    fn serve(&mut self) {
        for twin in 0..self.guests.len() {
            let sender = u8::try_from(twin).expect("two");
            loop {
                let fault = match self.guests[twin].poll_frame() {
                    Ok(Some(Frame::Append { number, payload })) => {
                        self.log.append(sender, number, payload);
                        continue;
                    }
                    Ok(Some(other)) => panic!("nobody sends {other:?}"),
                    Ok(None) => break,
                    Err(fault) => fault.to_string(),
                };
                let closed = self.guests[twin].close(&mut self.store, &fault);
                closed.expect("xenstored answers");
                self.faults[twin] = Some(fault);
                self.tell_the_other(twin);
                break;
            }
            self.guests[twin].release();
        }
        self.log.publish();
        fence(Ordering::SeqCst);
        for guest in &self.guests {
            guest.wake_if_waiting(false);
        }
    }

    fn tell_the_other(&mut self, twin: usize) {
        let domid = self.guests[1 - twin].domid();
        let node = format!("/local/domain/{domid}/data/e2e-other-closed");
        self.store.write(&node, b"1").expect("written");
    }

    /// Lines that the guests put below their own `data`.
    fn hear_verdicts(&mut self) {
        for (twin, told) in self.told.iter_mut().enumerate() {
            while *told < usize::MAX {
                let domid = self.guests[twin].domid();
                let node = format!("/local/domain/{domid}/data/e2e-{told}");
                let Some(line) = self.store.read(&node).expect("xenstored answers") else {
                    break;
                };
                *told += 1;
                let line = String::from_utf8_lossy(&line).into_owned();
                if line == "end" {
                    *told = usize::MAX;
                } else {
                    println!("RESULT {line}");
                }
            }
        }
    }

    /// What the kernel says when its limit is too low for a grant.
    fn check_limit(&self) {
        let path = "/sys/module/xen_gntalloc/parameters/limit";
        std::fs::write(path, "1").expect("dom0 is root's");
        let guest = self.guests[0].domid();
        let gntalloc = Gntalloc::open().expect("the module is there");
        let access = twinbft_postbox::transport::xen::gntalloc::Access::Read;
        let text = match gntalloc.allocate(guest, 2, access) {
            Ok(_) => "granted beyond the limit".to_owned(),
            Err(error) => error.to_string(),
        };
        let good = text.contains("ENOSPC") && text.contains("limit = 1;");
        result(
            good,
            &format!("dom0: a grant beyond the limit says: {text}"),
        );
    }
}

fn result(good: bool, text: &str) {
    println!("RESULT {} {text}", if good { "PASS" } else { "FAIL" });
}
