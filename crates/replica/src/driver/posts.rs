//! Own entries on their way into the postbox, in the order in which the core decided them.
//!
//! A post waits for the promises that it reveals to be durable (protocol.md 3, durability rule), for room in the
//! appender, and, when it is lazy, for company. Nothing ever overtakes: appends are FIFO (protocol.md 2).

use std::collections::VecDeque;

use twinbft_core::LAZY_POST_US;
use twinbft_postbox::AppendError;
use twinbft_types::{Entry, canonical};

use crate::storage::Lsn;

/// When so many bytes wait, the core takes in nothing more from the network, so that it does not post more.
pub const POST_BYTES_SOFT_MAX: usize = 16 << 20;
/// So many bytes can only wait when something is broken: the node stops.
pub const POST_BYTES_MAX: usize = 128 << 20;

/// Where posts go; the postbox's appender, and a list in tests.
pub trait AppendLog {
    /// Queues an entry.
    ///
    /// # Errors
    /// See [`AppendError`].
    fn append(&mut self, payload: &[u8]) -> Result<(), AppendError>;

    /// Tells the broker of what was queued.
    fn flush(&mut self);
}

impl AppendLog for twinbft_postbox::Appender {
    fn append(&mut self, payload: &[u8]) -> Result<(), AppendError> {
        Self::append(self, payload).map(|_number| ())
    }

    fn flush(&mut self) {
        Self::flush(self);
    }
}

/// A post that can never be appended. The node stops, because its log would have a hole.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// Above the log's limit.
    #[error(
        "an entry of {bytes} bytes ({name}) is above the postbox's entry_bytes_max = {bytes_max}; raise it in cluster.toml on every process of the host"
    )]
    TooLarge {
        /// The entry's name.
        name: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: u32,
    },
    /// Too much waits.
    #[error(
        "{bytes} bytes of own entries wait for room in the postbox, which is more than any working host has; look at the broker's counters and at the sibling"
    )]
    Stuck {
        /// How much.
        bytes: usize,
    },
    /// The broker's side of the channel is broken.
    #[error("the postbox's channel is broken: {0}")]
    Broken(AppendError),
}

/// What became of an attempt to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// Everything that may go is on its way.
    All,
    /// The appender has no room; try again after it has made progress.
    Full,
    /// The channel is closed; reconnect.
    Closed,
}

struct Post {
    bytes: Vec<u8>,
    name: &'static str,
    /// The last record that has to be durable first.
    after: Lsn,
    lazy: bool,
    posted_us: u64,
}

/// The queue of posts.
#[derive(Default)]
pub struct Posts {
    queue: VecDeque<Post>,
    bytes: usize,
    /// Urgent posts among them.
    urgent: usize,
    appended: u64,
    flushes: u64,
}

impl Posts {
    /// Adds an entry that reveals what was persisted up to `after`.
    pub fn push(&mut self, entry: &Entry, lazy: bool, after: Lsn, now_us: u64) {
        let bytes = canonical(entry);
        self.bytes += bytes.len();
        self.urgent += usize::from(!lazy);
        self.queue.push_back(Post {
            bytes,
            name: entry.name(),
            after,
            lazy,
            posted_us: now_us,
        });
    }

    /// Adds bytes that are no entry.
    #[cfg(feature = "byzantine-doubles")]
    pub fn push_garbage(&mut self, bytes: Vec<u8>, now_us: u64) {
        self.bytes += bytes.len();
        self.urgent += 1;
        self.queue.push_back(Post {
            bytes,
            name: "garbage",
            after: 0,
            lazy: false,
            posted_us: now_us,
        });
    }

    /// Appends what may go, with one flush for all of it. `revealable` is how far records are durable enough.
    ///
    /// # Errors
    /// When the node has to stop.
    pub fn release(
        &mut self,
        log: &mut impl AppendLog,
        revealable: Lsn,
        now_us: u64,
    ) -> Result<Released, PostError> {
        if self.bytes > POST_BYTES_MAX {
            return Err(PostError::Stuck { bytes: self.bytes });
        }
        if !self.is_due(now_us) {
            return Ok(Released::All);
        }
        let mut released = Released::All;
        let before = self.appended;
        while let Some(post) = self.queue.front().filter(|post| post.after <= revealable) {
            match log.append(&post.bytes) {
                Ok(()) => {}
                Err(AppendError::QueueFull) => {
                    released = Released::Full;
                    break;
                }
                Err(AppendError::Closed) => {
                    released = Released::Closed;
                    break;
                }
                Err(AppendError::TooLarge { bytes, bytes_max }) => {
                    return Err(PostError::TooLarge {
                        name: post.name,
                        bytes,
                        bytes_max,
                    });
                }
                Err(error @ AppendError::Broken(_)) => return Err(PostError::Broken(error)),
            }
            let post = self.queue.pop_front().expect("seen before");
            self.bytes -= post.bytes.len();
            self.urgent -= usize::from(!post.lazy);
            self.appended += 1;
        }
        if self.appended > before {
            log.flush();
            self.flushes += 1;
        }
        Ok(released)
    }

    fn is_due(&self, now_us: u64) -> bool {
        self.urgent > 0 || self.lazy_deadline().is_some_and(|at| at <= now_us)
    }

    /// When the oldest lazy post has waited long enough; `None` when an urgent one drives the queue, or none waits.
    #[must_use]
    pub fn lazy_deadline(&self) -> Option<u64> {
        let oldest = self.queue.front()?;
        (self.urgent == 0).then_some(oldest.posted_us + LAZY_POST_US)
    }

    /// Whether the core should take in nothing more from the network.
    #[must_use]
    pub const fn is_crowded(&self) -> bool {
        self.bytes > POST_BYTES_SOFT_MAX
    }

    /// Posts that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Entries handed to the appender, and flushes for them.
    #[must_use]
    pub const fn counts(&self) -> (u64, u64) {
        (self.appended, self.flushes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use twinbft_types::{Digest, View};

    use super::*;

    #[derive(Default)]
    struct List {
        entries: Vec<Vec<u8>>,
        room: usize,
        flushes: usize,
    }

    impl AppendLog for List {
        fn append(&mut self, payload: &[u8]) -> Result<(), AppendError> {
            if self.room == 0 {
                return Err(AppendError::QueueFull);
            }
            self.room -= 1;
            self.entries.push(payload.to_vec());
            Ok(())
        }

        fn flush(&mut self) {
            self.flushes += 1;
        }
    }

    fn beat(count: u64) -> Entry {
        Entry::Beat {
            view: View(0),
            count,
        }
    }

    #[test]
    fn a_post_waits_for_what_it_reveals_and_so_does_everything_behind_it() {
        let mut posts = Posts::default();
        let mut log = List {
            room: 9,
            ..List::default()
        };
        posts.push(&beat(1), false, 2, 0);
        posts.push(&beat(2), false, 2, 0);
        posts.push(&beat(3), false, 3, 0);
        posts.release(&mut log, 1, 0).unwrap();
        assert!(log.entries.is_empty());
        posts.release(&mut log, 2, 0).unwrap();
        assert_eq!(log.entries, [canonical(&beat(1)), canonical(&beat(2))]);
        assert_eq!(log.flushes, 1);
        posts.release(&mut log, 3, 0).unwrap();
        assert_eq!(log.entries.len(), 3);
    }

    #[test]
    fn a_lazy_post_goes_with_the_next_urgent_one_or_after_its_time() {
        let mut posts = Posts::default();
        let mut log = List {
            room: 9,
            ..List::default()
        };
        posts.push(&beat(1), true, 0, 100);
        assert_eq!(posts.lazy_deadline(), Some(100 + LAZY_POST_US));
        posts.release(&mut log, 0, 100).unwrap();
        assert!(log.entries.is_empty());
        posts.push(
            &Entry::Need {
                digest: Digest::ZERO,
            },
            false,
            0,
            150,
        );
        assert_eq!(posts.lazy_deadline(), None);
        posts.release(&mut log, 0, 150).unwrap();
        assert_eq!(log.entries.len(), 2);
        posts.push(&beat(2), true, 0, 200);
        posts.release(&mut log, 0, 200 + LAZY_POST_US).unwrap();
        assert_eq!(log.entries.len(), 3);
        assert!(posts.is_empty());
    }

    #[test]
    fn an_entry_above_the_limit_stops_the_node_by_name() {
        struct Small;
        impl AppendLog for Small {
            fn append(&mut self, payload: &[u8]) -> Result<(), AppendError> {
                Err(AppendError::TooLarge {
                    bytes: payload.len(),
                    bytes_max: 1,
                })
            }
            fn flush(&mut self) {}
        }
        let mut posts = Posts::default();
        posts.push(&beat(1), false, 0, 0);
        let error = posts.release(&mut Small, 0, 0).unwrap_err();
        assert!(error.to_string().contains("BEAT"), "{error}");
    }

    proptest! {
        /// Whatever the room, the durability and the laziness, entries come out whole and in order.
        #[test]
        fn order_is_kept(steps in proptest::collection::vec((any::<bool>(), 0u64..3, 0usize..4), 1..60)) {
            let mut posts = Posts::default();
            let mut log = List::default();
            let (mut lsn, mut revealable) = (0, 0);
            for (count, (lazy, more, room)) in steps.iter().enumerate() {
                lsn += more;
                posts.push(&beat(count as u64), *lazy, lsn, count as u64);
                revealable = (revealable + 1).min(lsn);
                log.room = *room;
                posts.release(&mut log, revealable, count as u64).unwrap();
            }
            log.room = usize::MAX;
            posts.release(&mut log, lsn, u64::MAX).unwrap();
            let expected: Vec<Vec<u8>> = (0..steps.len() as u64).map(|n| canonical(&beat(n))).collect();
            prop_assert_eq!(log.entries, expected);
        }
    }
}
