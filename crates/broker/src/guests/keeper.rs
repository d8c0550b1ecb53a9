//! Watches which domains there are, and puts into xenstore what the loop wants there. Runs in a thread of its own: xenstored
//! is one process for the whole host, and slow while domains are made.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use twinbft_postbox::transport::xen::descriptor::{self, STATE, path};
use twinbft_postbox::transport::xen::xenstore::Xenstore;
use twinbft_postbox::transport::xen::{DOM0, DomId, XenError};

use super::{News, Orders, Publication, Wanted};

/// How long xenstored may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// After something went wrong, how long until the next attempt.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How long the last orders may take when the broker stops.
const FINISH_MAX: Duration = Duration::from_secs(1);

/// The thread's state.
pub(super) struct Keeper {
    wanted: Vec<Wanted>,
    /// Of each twin the domain that the loop knows of.
    present: BTreeMap<u8, DomId>,
    /// What does not stand in xenstore yet. At most one for each domain that was ever ours and is not dealt with.
    open: BTreeMap<DomId, Publication>,
    store: Option<Xenstore>,
    tell: SyncSender<News>,
    bell: UnixStream,
    /// Look at the domains again.
    look: bool,
    retry_at: Option<Instant>,
    last_trouble: String,
}

impl Keeper {
    pub(super) fn new(
        wanted: Vec<Wanted>,
        known: Vec<(u8, DomId)>,
        tell: SyncSender<News>,
        bell: UnixStream,
    ) -> Self {
        Self {
            wanted,
            present: known.into_iter().collect(),
            open: BTreeMap::new(),
            store: None,
            tell,
            bell,
            look: true,
            retry_at: None,
            last_trouble: String::new(),
        }
    }

    /// Until the orders are over. `open` connects to xenstored.
    pub(super) fn run(
        &mut self,
        orders: &Mutex<Orders>,
        order_bell: &UnixStream,
        open: impl Fn() -> Result<Xenstore, XenError>,
    ) {
        loop {
            let is_over = self.take_orders(orders);
            let due = self.retry_at.is_none_or(|at| at <= Instant::now());
            if due || is_over {
                self.retry_at = None;
                if let Err(error) = self.work(is_over, &open) {
                    self.trouble(&error);
                }
            }
            if is_over {
                return;
            }
            self.sleep(order_bell);
        }
    }

    /// Answers whether these were the last ones.
    fn take_orders(&mut self, orders: &Mutex<Orders>) -> bool {
        let mut orders = orders.lock().expect("nobody panics while holding it");
        for (domid, newer) in std::mem::take(&mut orders.publications) {
            if newer.nodes.is_some() || newer.is_withdrawn {
                self.open.insert(domid, newer);
            } else {
                self.open.entry(domid).or_default().state = newer.state;
            }
        }
        for twin in std::mem::take(&mut orders.again) {
            self.present.remove(&twin);
            self.look = true;
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
        }
        orders.is_over
    }

    fn work(
        &mut self,
        is_over: bool,
        open: &impl Fn() -> Result<Xenstore, XenError>,
    ) -> Result<(), XenError> {
        let mut store = match self.store.take() {
            Some(store) => store,
            None => {
                let mut store = open()?;
                store.set_answer_max(ANSWER_MAX);
                store.watch("@introduceDomain", "appeared")?;
                store.watch("@releaseDomain", "gone")?;
                self.look = true;
                store
            }
        };
        if is_over {
            store.set_answer_max(FINISH_MAX);
        }
        // What happens while xenstored is asked is kept aside by the connection, and its descriptor rings no more for it: so after
        // each question the events are looked at, and we sleep only when nothing was asked since.
        loop {
            while store.poll_event()?.is_some() {
                self.look = true;
            }
            self.look |= store.take_lost_events();
            if self.look && !is_over {
                let found = find(&mut store, &self.wanted)?;
                self.look = false;
                self.compare(&found);
            } else if let Some((domid, publication)) = self.open.pop_first() {
                if let Err(error) = carry_out(&mut store, domid, &publication) {
                    self.open.insert(domid, publication);
                    // A domain that is just going takes its permissions with it, and will be said to be gone; after other errors
                    // the connection is made anew.
                    if error.errno == Errno::EINVAL || error.errno == Errno::ENOENT {
                        self.store = Some(store);
                        self.look = true;
                    }
                    return Err(error);
                }
                if publication.nodes.is_some() {
                    self.say(News::Published { domid });
                }
            } else {
                break;
            }
        }
        self.store = Some(store);
        self.last_trouble.clear();
        Ok(())
    }

    /// Tells what has changed; first who is gone.
    fn compare(&mut self, found: &BTreeMap<u8, DomId>) {
        let gone: Vec<(u8, DomId)> = self
            .present
            .iter()
            .filter(|(twin, domid)| found.get(twin) != Some(domid))
            .map(|(twin, domid)| (*twin, *domid))
            .collect();
        for (twin, domid) in gone {
            self.present.remove(&twin);
            self.say(News::Gone { twin, domid });
        }
        for (&twin, &domid) in found {
            if self.present.insert(twin, domid).is_none() {
                self.say(News::Appeared { twin, domid });
            }
        }
    }

    fn trouble(&mut self, error: &XenError) {
        self.retry_at = Some(Instant::now() + RETRY_AFTER);
        let text = error.to_string();
        // Once, however long it lasts.
        if text != self.last_trouble {
            self.last_trouble.clone_from(&text);
            self.say(News::Trouble(text));
        }
    }

    fn say(&mut self, news: News) {
        // A loop that is gone needs no news.
        let _gone = self.tell.send(news);
        let _full = self.bell.write(&[1]);
    }

    /// Until there is an order, an event, or something to be tried again.
    fn sleep(&self, mut order_bell: &UnixStream) {
        let now = Instant::now();
        let left = self.retry_at.map(|at| at.saturating_duration_since(now));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(order_bell.as_fd(), PollFlags::POLLIN)];
        // While it is tried again later anyway, events need not wake us.
        if let Some(store) = self.store.as_ref().filter(|_| self.retry_at.is_none()) {
            fds.push(PollFd::new(store.as_fd(), PollFlags::POLLIN));
        }
        // Whatever ends it, everything is looked at.
        let _ended = poll(&mut fds, timeout);
        let _rung = order_bell.read(&mut [0; 64]);
    }
}

fn carry_out(
    store: &mut Xenstore,
    domid: DomId,
    publication: &Publication,
) -> Result<(), XenError> {
    if publication.is_withdrawn {
        return descriptor::withdraw(store, domid);
    }
    if let Some(nodes) = &publication.nodes {
        descriptor::publish(store, domid, nodes)?;
    }
    if let Some(text) = &publication.state {
        store.write(&format!("{}/{STATE}", path(domid)), text.as_bytes())?;
    }
    Ok(())
}

/// The wanted guests that there are. A guest may write neither its own name nor where its UUID stands: the toolstack makes
/// both nodes readable to it and no more.
fn find(store: &mut Xenstore, wanted: &[Wanted]) -> Result<BTreeMap<u8, DomId>, XenError> {
    let mut found = BTreeMap::new();
    for domain in store.directory("/local/domain")? {
        let Some(domid) = domain.parse::<DomId>().ok().filter(|domid| *domid != DOM0) else {
            continue;
        };
        let name = text(store, &format!("/local/domain/{domain}/name"))?;
        let vm = text(store, &format!("/local/domain/{domain}/vm"))?;
        let uuid = vm.strip_prefix("/vm/").unwrap_or_default().to_lowercase();
        let is_it = |wanted: &&Wanted| wanted.guest == name || wanted.guest == uuid;
        if let Some(wanted) = wanted.iter().find(is_it) {
            // While one dies and the next is made, both stand there; the newer one counts.
            let newest = found.entry(wanted.twin).or_insert(domid);
            *newest = domid.max(*newest);
        }
    }
    Ok(found)
}

/// Empty when it is not there, or no text.
fn text(store: &mut Xenstore, path: &str) -> Result<String, XenError> {
    let value = store.read(path)?.unwrap_or_default();
    Ok(String::from_utf8(value).unwrap_or_default())
}
