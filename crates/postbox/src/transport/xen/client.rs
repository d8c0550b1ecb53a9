//! The twin's side in a guest: finds what the broker published for this domain, maps it, and has the
//! same `Reader` and `Appender` as on one kernel.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::descriptor::{Descriptor, DescriptorError, STATE, path};
use super::evtchn::EventChannel;
use super::gntdev::{map_read, map_write, map_write_and_clear};
use super::xenstore::Xenstore;
use super::{DOM0, DomId, XenError};
use crate::appender::Appender;
use crate::channel::{Channel, Door};
use crate::link::{Bell, Link, Sleeper, Slept};
use crate::log_view::{LogView, RegionError};
use crate::raw::WriteMemory;
use crate::reader::Reader;
use crate::transport::local::client::ConnectOptions;
use crate::vchan::{self, CLIENT_LIVE, PageFault, Peer, RingProducer, WaitFlag};
use crate::waker::Waker;

/// Looks at xenstore and at the ring while waiting for the broker.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long xenstored may take for one answer; a connection is tried again anyway.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Most bytes of the broker's last words.
const FAREWELL_BYTES_MAX: usize = 256;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum XenConnectError {
    /// A device or xenstored.
    #[error(transparent)]
    Xen(#[from] XenError),
    /// The broker has published nothing (usable) for this domain.
    #[error(
        "the broker in dom0 has no channel for this guest (domain {domid}): {error}; does it run, and does its configuration name this guest?"
    )]
    Descriptor {
        /// This domain.
        domid: DomId,
        /// What is wrong.
        error: DescriptorError,
    },
    /// The broker is another one than the one that we look for.
    #[error(
        "the broker in dom0 has {name} = {theirs}, this twin expects {ours}; look at both configurations"
    )]
    Mismatch {
        /// What differs.
        name: &'static str,
        /// The broker's value.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// The shared page is no vchan.
    #[error("the append ring: {0}")]
    Ring(#[from] PageFault),
    /// The ring is used by another process, or the broker does not renew it.
    #[error(
        "the append ring is not free after {waited_ms} ms: does another process of this guest use it, or is the broker stopped?"
    )]
    Busy {
        /// How long it was waited for.
        waited_ms: u128,
    },
    /// The mirror is no log.
    #[error("the log's mirror: {0}")]
    Mirror(#[from] RegionError),
    /// The broker has begun a new epoch and not said so yet.
    #[error("the broker is about to publish another epoch of its log; try again")]
    Stale,
    /// What came back is not what was lost.
    #[error("what the broker in dom0 granted cannot be used: {0}")]
    Handover(String),
}

impl XenConnectError {
    /// Whether the same attempt may succeed later. The broker may be starting, and what a broker that is gone has published
    /// stays in xenstore until the next one publishes: so everything may, but what is of another make.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Xen(_) | Self::Ring(_) | Self::Busy { .. } | Self::Mirror(_) | Self::Stale => {
                true
            }
            Self::Descriptor { error, .. } => match error {
                DescriptorError::Missing(_)
                | DescriptorError::Value(_)
                | DescriptorError::NotReady => true,
                DescriptorError::Version(_) => false,
            },
            Self::Mismatch { .. } | Self::Handover(_) => false,
        }
    }
}

/// Connects a twin in a guest to the broker in dom0. Blocks for at most `options.timeout`, and what
/// xenstored takes.
///
/// # Errors
/// See `XenConnectError`.
pub fn connect_guest(options: &ConnectOptions) -> Result<Channel, XenConnectError> {
    let deadline = Instant::now() + options.timeout;
    let (domid, descriptor) = find_broker(options.timeout)?;
    check(&descriptor, options)?;
    let events = Arc::new(EventChannel::connect(DOM0, descriptor.event_channel)?);
    let (memory, order) = map_ring(&descriptor, &events)?;
    await_ring(&memory, &events, options.timeout, deadline)?;
    let mirror = Arc::new(map_read(DOM0, &descriptor.mirror_refs)?);
    let view = LogView::open(mirror.clone())?;
    let reader_view = LogView::open(mirror)?;
    check_info(&view, &descriptor, options.twin)?;
    let waker = match &options.waker {
        Some(waker) => waker.clone(),
        None => Waker::new().map_err(|error| no_descriptor(&error))?,
    };
    let options = ConnectOptions {
        waker: Some(waker.clone()),
        ..options.clone()
    };
    let sleeper = EventSleeper::new(domid, events.clone(), memory.clone(), &waker)?;
    let bell = Box::new(EventBell(events.clone()));
    let link = Arc::new(Link::new(options.twin, bell, memory.clone()));
    let producer = RingProducer::new(memory.clone(), order);
    // The broker learns that somebody is there, as libxenvchan's clients tell it.
    events.ring();
    let appender = Appender::new(
        link.clone(),
        producer,
        view,
        options.append_pending_bytes_max,
    );
    let flag = WaitFlag::new(memory);
    let sleeper = Box::new(sleeper);
    let reader = Reader::new(link, reader_view, flag, waker, sleeper, options.spin_us);
    Ok(Channel::new(reader, appender, Door::Xen, options))
}

/// This domain's number, and what the broker in dom0 has published for it; waits for that at most `timeout`.
///
/// # Errors
/// xenstored, or the broker, does not answer in time.
pub fn find_broker(timeout: Duration) -> Result<(DomId, Descriptor), XenConnectError> {
    let deadline = Instant::now() + timeout;
    let mut store = Xenstore::open()?;
    store.set_answer_max(ANSWER_MAX.max(timeout));
    let domid = own_domid(&mut store)?;
    Ok((domid, await_descriptor(&mut store, domid, deadline)?))
}

fn own_domid(store: &mut Xenstore) -> Result<DomId, XenError> {
    let value = store.read("domid")?.unwrap_or_default();
    let domid = std::str::from_utf8(&value).ok();
    domid.and_then(|domid| domid.parse().ok()).ok_or_else(|| {
        let remedy = "this guest's toolstack did not write it; is it a guest of xl?";
        XenError::new(
            "read this domain's number from xenstore",
            Errno::EPROTO,
            remedy,
        )
    })
}

/// The broker publishes when it has seen this domain appear, which may be after our start.
fn await_descriptor(
    store: &mut Xenstore,
    domid: DomId,
    deadline: Instant,
) -> Result<Descriptor, XenConnectError> {
    loop {
        // In one transaction: all of it is of one publication.
        let decoded = store.transaction(|transaction| {
            Descriptor::decode(|name| {
                match transaction.read(&format!("{}/{name}", path(domid))) {
                    // Not ours to read yet, which is the same as not being there.
                    Err(error) if error.errno == Errno::EACCES => Ok(None),
                    result => result,
                }
            })
        })?;
        match decoded {
            Ok(descriptor) => return Ok(descriptor),
            Err(error) if Instant::now() > deadline => {
                return Err(XenConnectError::Descriptor { domid, error });
            }
            Err(DescriptorError::NotReady) => std::thread::sleep(LOOK_EVERY),
            Err(error) => return Err(XenConnectError::Descriptor { domid, error }),
        }
    }
}

fn check(descriptor: &Descriptor, options: &ConnectOptions) -> Result<(), XenConnectError> {
    let pairs = [
        ("cluster tag", descriptor.cluster_tag, options.cluster_tag),
        ("host", u64::from(descriptor.host), u64::from(options.host)),
        ("twin", u64::from(descriptor.twin), u64::from(options.twin)),
    ];
    compare(&pairs)
}

/// The mirror's own header must say the same, and have a block for this twin.
fn check_info(view: &LogView, descriptor: &Descriptor, twin: u8) -> Result<(), XenConnectError> {
    let info = view.info();
    let known = u64::from(info.limits.twins > twin);
    if info.epoch != descriptor.epoch {
        return Err(XenConnectError::Stale);
    }
    compare(&[
        (
            "cluster tag in the log",
            info.cluster_tag,
            descriptor.cluster_tag,
        ),
        (
            "host in the log",
            u64::from(info.host),
            u64::from(descriptor.host),
        ),
        ("place for this twin in the log", known, 1),
    ])
}

fn compare(pairs: &[(&'static str, u64, u64)]) -> Result<(), XenConnectError> {
    match pairs.iter().find(|(_, theirs, ours)| theirs != ours) {
        Some(&(name, theirs, ours)) => Err(XenConnectError::Mismatch { name, theirs, ours }),
        None => Ok(()),
    }
}

/// Maps the shared page, copies from it once what it says, and maps it with the pages that it names.
fn map_ring(
    descriptor: &Descriptor,
    events: &EventChannel,
) -> Result<(Arc<WriteMemory>, u16), XenConnectError> {
    let mut refs = vec![descriptor.ring_ref];
    let first = map_write(DOM0, &refs)?;
    let page = vchan::read_page(&first)?;
    drop(first);
    refs.extend(page.left_grants);
    let memory = map_write_and_clear(DOM0, &refs, CLIENT_LIVE, events)?;
    Ok((Arc::new(memory), page.left_order))
}

/// An earlier process of this guest may just have ended; the broker then empties the ring first.
fn await_ring(
    memory: &WriteMemory,
    events: &EventChannel,
    timeout: Duration,
    deadline: Instant,
) -> Result<(), XenConnectError> {
    loop {
        if vchan::server(memory) == Peer::Up && vchan::client(memory) == Peer::Awaited {
            return Ok(());
        }
        // A broker that was stopped when the last process went has not heard of it.
        events.ring();
        if Instant::now() > deadline {
            let waited_ms = timeout.as_millis();
            return Err(XenConnectError::Busy { waited_ms });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn no_descriptor(error: &std::io::Error) -> XenError {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    XenError::new(
        "make a descriptor to wait with",
        errno,
        "raise LimitNOFILE of this service",
    )
}

/// The event channel, rung.
struct EventBell(Arc<EventChannel>);

impl Bell for EventBell {
    fn ring(&self) {
        self.0.ring();
    }
}

/// Sleeps on the event channel and the waker at once, for edges of both; what rang is taken off the
/// event channel's descriptor after each wait, or it would never ring again.
struct EventSleeper {
    domid: DomId,
    epoll: Epoll,
    events: Arc<EventChannel>,
    memory: Arc<WriteMemory>,
}

impl EventSleeper {
    fn new(
        domid: DomId,
        events: Arc<EventChannel>,
        memory: Arc<WriteMemory>,
        waker: &Waker,
    ) -> Result<Self, XenError> {
        let make = || -> nix::Result<Epoll> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(&*events, EpollEvent::new(edge, 0))?;
            epoll.add(waker.event(), EpollEvent::new(edge, 1))?;
            Ok(epoll)
        };
        let epoll = make().map_err(|errno| no_descriptor(&errno.into()))?;
        Ok(Self {
            domid,
            epoll,
            events,
            memory,
        })
    }

    fn look(&self) -> Slept {
        if let Err(error) = self.events.settle() {
            return Slept::Closed(error.to_string());
        }
        self.closed().unwrap_or(Slept::Rung)
    }

    fn closed(&self) -> Option<Slept> {
        self.looks_closed()
            .then(|| Slept::Closed(farewell(self.domid)))
    }
}

/// The broker's reason, where it left one; asked for once, when the channel is closed already.
fn farewell(domid: DomId) -> String {
    let ask = || -> Result<Option<Vec<u8>>, XenError> {
        let mut store = Xenstore::open()?;
        store.set_answer_max(ANSWER_MAX);
        store.read(&format!("{}/{STATE}", path(domid)))
    };
    match ask() {
        Ok(Some(state)) => {
            let state = &state[..state.len().min(FAREWELL_BYTES_MAX)];
            match state {
                b"ready" => "the broker has started again".to_owned(),
                state => String::from_utf8_lossy(state).into_owned(),
            }
        }
        Ok(None) => "the broker is gone".to_owned(),
        Err(error) => format!("the broker's reason is not known: {error}"),
    }
}

impl Sleeper for EventSleeper {
    fn watched(&self) -> [BorrowedFd<'_>; 2] {
        [self.events.as_fd(), self.events.as_fd()]
    }

    fn looks_closed(&self) -> bool {
        vchan::server(&self.memory) != Peer::Up
    }

    fn settle(&self) {
        // A broken descriptor shows at the next sleep.
        let _ = self.events.settle();
    }

    fn sleep(&self, timeout: Option<Duration>) -> Slept {
        // Nothing is settled before the wait: what rang since the caller looked must still end it.
        if let Some(closed) = self.closed() {
            return closed;
        }
        let mut events = [EpollEvent::empty(); 2];
        // Rounded up, so that a wait never ends before its time; longer than a month is for ever.
        let timeout = timeout.map(|timeout| timeout.as_nanos().div_ceil(1_000_000));
        let timeout = timeout.and_then(|ms| i32::try_from(ms).ok());
        let timeout = timeout.map_or(EpollTimeout::NONE, |ms| {
            EpollTimeout::try_from(ms).expect("not negative")
        });
        match self.epoll.wait(&mut events, timeout) {
            Ok(0) => match self.look() {
                Slept::Rung => Slept::TimedOut,
                other => other,
            },
            Ok(_) | Err(Errno::EINTR) => self.look(),
            Err(error) => panic!("epoll_wait on our own descriptors failed: {error}"),
        }
    }
}
