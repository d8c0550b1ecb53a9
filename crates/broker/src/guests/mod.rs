//! The guests of a Xen host: which are there is the keeper's to find out, in a thread of its own that may wait for
//! xenstored; the loop takes its news, and gives it what is to be published.

mod keeper;
mod kept;

#[cfg(test)]
mod keeper_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::Context;
use twinbft_postbox::transport::xen::xenstore::Xenstore;
use twinbft_postbox::transport::xen::{DomId, XenError};

use keeper::Keeper;
pub use kept::{KEPT_PREFIX, kept_guests, names_of};

/// A twin and the guest that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The twin.
    pub twin: u8,
    /// The guest's name, or its UUID in lower case.
    pub guest: String,
}

/// What the keeper has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A twin's guest is there under this number.
    Appeared {
        /// The twin.
        twin: u8,
        /// The domain.
        domid: DomId,
    },
    /// It is not there any more.
    Gone {
        /// The twin.
        twin: u8,
        /// The domain that it was.
        domid: DomId,
    },
    /// What was asked for stands in xenstore.
    Published {
        /// For whom.
        domid: DomId,
    },
    /// xenstored does not do what is asked; it is tried again.
    Trouble(String),
}

/// News that wait for the loop; then the keeper waits.
const NEWS_MAX: usize = 64;

/// What is to stand in xenstore for a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Publication {
    /// All that a guest must know: names and values, below its path.
    nodes: Option<Vec<(String, String)>>,
    /// Why its channel is closed, or that it is open; after the nodes.
    state: Option<String>,
    /// Nothing any more.
    is_withdrawn: bool,
}

/// What the loop wants of the keeper.
#[derive(Debug, Default)]
struct Orders {
    /// The latest for each domain counts, so a guest that makes trouble faster than xenstored works fills nothing.
    publications: BTreeMap<DomId, Publication>,
    /// Twins whose guests could not be served: they are told of again, after a while.
    again: BTreeSet<u8>,
    is_over: bool,
}

/// The loop's end.
pub struct Guests {
    /// Gets a byte for each news.
    bell: UnixStream,
    far_bell: UnixStream,
    news: Option<Receiver<News>>,
    orders: Arc<Mutex<Orders>>,
    thread: Option<JoinHandle<()>>,
}

impl Guests {
    /// Starts the keeper. `known` are the domains that are served already.
    ///
    /// # Errors
    /// No thread, no descriptor.
    pub fn start(wanted: Vec<Wanted>, known: Vec<(u8, DomId)>) -> anyhow::Result<Self> {
        Self::start_with(wanted, known, Xenstore::open)
    }

    fn start_with(
        wanted: Vec<Wanted>,
        known: Vec<(u8, DomId)>,
        open: impl Fn() -> Result<Xenstore, XenError> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (bell, keeper_bell) = pair().context("cannot make a bell for the guests' keeper")?;
        let (far_bell, order_bell) = pair().context("cannot make a bell for the guests' keeper")?;
        let (tell, news) = sync_channel(NEWS_MAX);
        let orders: Arc<Mutex<Orders>> = Arc::default();
        let mut keeper = Keeper::new(wanted, known, tell, keeper_bell);
        let ordered = orders.clone();
        let thread = thread::Builder::new().name("guests".to_owned());
        let thread = thread
            .spawn(move || keeper.run(&ordered, &order_bell, open))
            .context("cannot start the thread that watches the guests")?;
        Ok(Self {
            bell,
            far_bell,
            news: Some(news),
            orders,
            thread: Some(thread),
        })
    }

    /// The next news, if there is any.
    pub fn poll_news(&self) -> Option<News> {
        // Before the look, so that what comes after it rings again. More than the keeper ever rings.
        let _rung = (&self.bell).read(&mut [0; NEWS_MAX]);
        self.news.as_ref()?.try_recv().ok()
    }

    /// Publishes all that a guest must know.
    pub fn publish(&self, domid: DomId, nodes: Vec<(String, String)>) {
        let nodes = Some(nodes);
        self.replace(
            domid,
            Publication {
                nodes,
                ..Publication::default()
            },
        );
    }

    /// Publishes why a guest's channel is closed, or that it is open.
    pub fn tell_state(&self, domid: DomId, text: String) {
        let set = |orders: &mut Orders| {
            orders.publications.entry(domid).or_default().state = Some(text);
        };
        self.order(set);
    }

    /// Takes away what was published for a domain.
    pub fn withdraw(&self, domid: DomId) {
        let is_withdrawn = true;
        self.replace(
            domid,
            Publication {
                is_withdrawn,
                ..Publication::default()
            },
        );
    }

    /// Asks to be told again that a twin's guest is there, after a while.
    pub fn tell_again(&self, twin: u8) {
        self.order(|orders| {
            orders.again.insert(twin);
        });
    }

    fn replace(&self, domid: DomId, publication: Publication) {
        self.order(|orders| {
            orders.publications.insert(domid, publication);
        });
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().expect("nobody panics while holding it"));
        // A full bell rings already.
        let _full = (&self.far_bell).write(&[1]);
    }

    /// Lets the keeper finish what is ordered, as far as xenstored answers at once, and ends it.
    pub fn finish(&mut self) {
        // Whoever waits to tell us something does not any more.
        drop(self.news.take());
        self.order(|orders| orders.is_over = true);
        if let Some(thread) = self.thread.take() {
            // A keeper that panicked has done what it could.
            let _ended = thread.join();
        }
    }
}

impl AsFd for Guests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        self.finish();
    }
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((near, far))
}
