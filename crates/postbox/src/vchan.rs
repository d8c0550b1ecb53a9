//! One direction of a shared ring with libxenvchan's page layout and algorithm (left = client to
//! server; a twin is the client). The same code serves a local memfd and pages that are granted to a Xen guest.
//!
//! Both sides keep their own index privately and treat the shared copy of the other's as a hint from
//! an enemy: an index that moves back or beyond the ring is a fault, never a length.

use std::mem::{offset_of, size_of};
use std::sync::Arc;

use crate::atomic::{Ordering, fence};
use crate::raw::{PAGE_BYTES, ReadMemory, WriteMemory};

/// Smallest order whose data lies outside page 0.
pub const ORDER_MIN: u16 = 12;
/// Largest order of libxenvchan.
pub const ORDER_MAX: u16 = 20;
/// "Tell me when you have written", or the peer's wish for it.
const NOTIFY_WRITE: u8 = 1;
/// "Tell me when you have read".
const NOTIFY_READ: u8 = 2;
/// A live byte: this side is up.
const LIVE_UP: u8 = 1;
/// A live byte: this side is gone.
const LIVE_GONE: u8 = 0;

#[repr(C)]
struct Indexes {
    cons: u32,
    prod: u32,
}

/// libxenvchan's shared page, without its grant list.
#[repr(C)]
struct SharedPage {
    left: Indexes,
    right: Indexes,
    left_order: u16,
    right_order: u16,
    cli_live: u8,
    srv_live: u8,
    cli_notify: u8,
    srv_notify: u8,
}

const _: () = {
    assert!(size_of::<SharedPage>() == 24);
    assert!(offset_of!(SharedPage, right) == 8 && offset_of!(SharedPage, left_order) == 16);
    assert!(offset_of!(SharedPage, cli_live) == 20 && offset_of!(SharedPage, srv_notify) == 23);
};

const CONS: usize = offset_of!(SharedPage, left) + offset_of!(Indexes, cons);
const PROD: usize = offset_of!(SharedPage, left) + offset_of!(Indexes, prod);
const ORDERS: usize = offset_of!(SharedPage, left_order);
const CLI_LIVE: usize = offset_of!(SharedPage, cli_live);
const SRV_LIVE: usize = offset_of!(SharedPage, srv_live);
const CLI_NOTIFY: usize = offset_of!(SharedPage, cli_notify);
const SRV_NOTIFY: usize = offset_of!(SharedPage, srv_notify);

/// Where the references of the left ring's pages stand; the right ring's, if it had pages, follow.
const GRANTS: usize = size_of::<SharedPage>();
/// Offset of the right ring, which is of order 10 and unused.
const RIGHT_RING: usize = 1024;
/// Largest order whose references end before the right ring begins.
pub const GRANTED_ORDER_MAX: u16 = 19;
const _: () = assert!(GRANTS + 4 * grants(GRANTED_ORDER_MAX) <= RIGHT_RING);
/// Offset of the byte that says whether the client lives; the kernel clears it when the client dies.
pub const CLIENT_LIVE: usize = CLI_LIVE;
/// The same of the server.
pub const SERVER_LIVE: usize = SRV_LIVE;

/// Pages of a left ring of this order.
const fn grants(order: u16) -> usize {
    1 << (order - ORDER_MIN)
}

/// Our own word, beyond libxenvchan's grants: the twin is about to sleep on the log.
const READER_WAITING: usize = 3072;

/// The other side broke the ring's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The producer's index is beyond the ring or moved back.
    #[error(
        "producer index {prod} does not fit consumer index {cons} in a ring of {ring_bytes} bytes"
    )]
    Producer {
        /// The shared index.
        prod: u32,
        /// Our own index.
        cons: u32,
        /// Size of the ring.
        ring_bytes: u32,
    },
    /// The consumer's index is beyond what was produced or moved back.
    #[error(
        "consumer index {cons} does not fit producer index {prod} in a ring of {ring_bytes} bytes"
    )]
    Consumer {
        /// The shared index.
        cons: u32,
        /// Our own index.
        prod: u32,
        /// Size of the ring.
        ring_bytes: u32,
    },
}

/// Bytes of the shared page and a left ring of this order.
#[must_use]
pub fn channel_bytes(order: u16) -> usize {
    assert!(
        (ORDER_MIN..=ORDER_MAX).contains(&order),
        "ring order {order}"
    );
    PAGE_BYTES + (1 << order)
}

/// Prepares the page as libxenvchan's server does. The right ring (order 10, in page 0) is unused.
pub fn initialise(memory: &WriteMemory, order: u16) {
    assert!(memory.bytes() >= channel_bytes(order));
    let orders = u32::from(order) | 10 << 16;
    memory.store_u32(ORDERS, orders.to_le());
    memory.store_u8(CLI_NOTIFY, NOTIFY_WRITE);
    memory.store_u8(SRV_NOTIFY, NOTIFY_WRITE);
    memory.store_u8(CLI_LIVE, 2);
    memory.store_u8(SRV_LIVE, LIVE_UP);
}

/// Empties a ring for the next client, whatever stands in it, and prepares the page.
pub fn reset(memory: &WriteMemory, order: u16) {
    memory.store_u32(CONS, 0);
    memory.store_u32(PROD, 0);
    memory.store_u32(READER_WAITING, 0);
    initialise(memory, order);
}

/// Says that the server is gone, where no consumer does it.
pub(crate) fn close_server(memory: &WriteMemory) {
    memory.store_u8(SRV_LIVE, LIVE_GONE);
}

/// Writes the references of the left ring's pages into the shared page.
///
/// # Panics
/// When there are more than the page has room for.
pub fn write_grants(memory: &WriteMemory, refs: &[u32]) {
    assert!(refs.len() <= grants(GRANTED_ORDER_MAX));
    for (index, gref) in refs.iter().enumerate() {
        memory.store_u32(GRANTS + 4 * index, *gref);
    }
}

/// A shared page that no vchan of ours has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// An order that is out of range.
    #[error("the shared page says order {0}; it must be {ORDER_MIN} to {GRANTED_ORDER_MAX}")]
    Order(u16),
}

/// What the client learns from the shared page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedPage {
    /// The left ring has `2^left_order` bytes.
    pub left_order: u16,
    /// References of its pages.
    pub left_grants: Vec<u32>,
}

/// Copies what the client has to know out of the shared page, once.
///
/// # Errors
/// It is none of ours.
pub fn read_page(memory: &ReadMemory) -> Result<GrantedPage, PageFault> {
    let [low, high, ..] = memory.load_u32_acquire(ORDERS).to_le_bytes();
    let left_order = u16::from_le_bytes([low, high]);
    if !(ORDER_MIN..=GRANTED_ORDER_MAX).contains(&left_order) {
        return Err(PageFault::Order(left_order));
    }
    let refs = (0..grants(left_order)).map(|index| memory.load_u32(GRANTS + 4 * index));
    Ok(GrantedPage {
        left_order,
        left_grants: refs.collect(),
    })
}

/// What a live byte says of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It has not come yet.
    Awaited,
    /// It is there.
    Up,
    /// It is gone.
    Gone,
}

fn live(byte: u8) -> Peer {
    match byte {
        LIVE_GONE => Peer::Gone,
        LIVE_UP => Peer::Up,
        _ => Peer::Awaited,
    }
}

/// What the page says of the client. Only a hint: the client writes it.
#[must_use]
pub fn client(memory: &ReadMemory) -> Peer {
    live(memory.load_u8(CLI_LIVE))
}

/// What the page says of the server.
#[must_use]
pub fn server(memory: &ReadMemory) -> Peer {
    live(memory.load_u8(SRV_LIVE))
}

/// The shared index of the consumer, to notice that it moved. Only a hint.
pub(crate) fn consumer_hint(memory: &WriteMemory) -> u32 {
    memory.load_u32(CONS)
}

#[derive(Clone)]
struct Ring {
    memory: Arc<WriteMemory>,
    ring_bytes: u32,
}

impl Ring {
    fn new(memory: Arc<WriteMemory>, order: u16) -> Self {
        assert!(memory.bytes() >= channel_bytes(order));
        Self {
            memory,
            ring_bytes: 1 << order,
        }
    }

    /// Splits a range of the ring at its end: `(offset in memory, length before the end)`.
    fn span(&self, index: u32, bytes: u32) -> (usize, usize) {
        let within = index & (self.ring_bytes - 1);
        let first = bytes.min(self.ring_bytes - within);
        (PAGE_BYTES + within as usize, first as usize)
    }

    /// Clears a wish of the other side and says whether it was there.
    fn take_wish(&self, at: usize, bit: u8) -> bool {
        // The index that we just stored must be visible before we look whether somebody sleeps.
        fence(Ordering::SeqCst);
        self.memory.load_u8(at) & bit != 0 && self.memory.fetch_and_u8(at, !bit) & bit != 0
    }

    /// States a wish; the caller looks at the indexes again afterwards.
    fn state_wish(&self, at: usize, bit: u8) {
        if self.memory.load_u8(at) & bit == 0 {
            self.memory.fetch_or_u8(at, bit);
        }
        fence(Ordering::SeqCst);
    }
}

/// The writing side: the twin.
pub struct RingProducer {
    ring: Ring,
    /// The true index; the shared copy is for the other side.
    prod: u32,
    /// Invariant: `prod - cons_seen <= ring_bytes`.
    cons_seen: u32,
}

impl RingProducer {
    /// Takes the writing side of a fresh ring.
    #[must_use]
    pub fn new(memory: Arc<WriteMemory>, order: u16) -> Self {
        memory.store_u8(CLI_LIVE, LIVE_UP);
        Self {
            ring: Ring::new(memory, order),
            prod: 0,
            cons_seen: 0,
        }
    }

    /// Free bytes.
    ///
    /// # Errors
    /// The consumer's index is impossible.
    pub fn space(&mut self) -> Result<u32, RingFault> {
        let cons = self.ring.memory.load_u32_acquire(CONS);
        let unread_seen = self.prod.wrapping_sub(self.cons_seen);
        let unread = self.prod.wrapping_sub(cons);
        if unread > unread_seen {
            return Err(RingFault::Consumer {
                cons,
                prod: self.prod,
                ring_bytes: self.ring.ring_bytes,
            });
        }
        self.cons_seen = cons;
        Ok(self.ring.ring_bytes - unread)
    }

    /// Writes as much of `bytes` as there is room for and publishes it, without a notification.
    /// Answers the number of bytes written.
    ///
    /// # Errors
    /// The consumer's index is impossible.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, RingFault> {
        let space = self.space()? as usize;
        let bytes = &bytes[..bytes.len().min(space)];
        let count = u32::try_from(bytes.len()).expect("not more than the ring");
        let (at, first) = self.ring.span(self.prod, count);
        self.ring.memory.copy_in(at, &bytes[..first]);
        self.ring.memory.copy_in(PAGE_BYTES, &bytes[first..]);
        self.prod = self.prod.wrapping_add(count);
        self.ring.memory.store_u32_release(PROD, self.prod);
        Ok(bytes.len())
    }

    /// Whether the consumer sleeps and has to be told of what was written.
    #[must_use]
    pub fn consumer_wants_notice(&self) -> bool {
        self.ring.take_wish(CLI_NOTIFY, NOTIFY_WRITE)
    }

    /// Asks to be told when there is more room; look at `space` again afterwards.
    pub fn request_space_notice(&self) {
        self.ring.state_wish(SRV_NOTIFY, NOTIFY_READ);
    }
}

impl Drop for RingProducer {
    fn drop(&mut self) {
        self.ring.memory.store_u8(CLI_LIVE, LIVE_GONE);
    }
}

/// The reading side: the broker.
pub struct RingConsumer {
    ring: Ring,
    /// The true index; the shared copy is for the other side.
    cons: u32,
    /// Invariant: `prod_seen - cons <= ring_bytes`.
    prod_seen: u32,
    published: u32,
}

impl RingConsumer {
    /// Takes the reading side of a fresh ring.
    #[must_use]
    pub fn new(memory: Arc<WriteMemory>, order: u16) -> Self {
        Self {
            ring: Ring::new(memory, order),
            cons: 0,
            prod_seen: 0,
            published: 0,
        }
    }

    /// Unread bytes.
    ///
    /// # Errors
    /// The producer's index is impossible.
    pub fn available(&mut self) -> Result<u32, RingFault> {
        let prod = self.ring.memory.load_u32_acquire(PROD);
        let seen = self.prod_seen.wrapping_sub(self.cons);
        let unread = prod.wrapping_sub(self.cons);
        if unread > self.ring.ring_bytes || unread < seen {
            return Err(RingFault::Producer {
                prod,
                cons: self.cons,
                ring_bytes: self.ring.ring_bytes,
            });
        }
        self.prod_seen = prod;
        Ok(unread)
    }

    /// Whether the producer's shared index differs from ours: something to look at. Only a hint.
    #[must_use]
    pub fn looks_ready(&self) -> bool {
        self.ring.memory.load_u32(PROD) != self.cons
    }

    /// Copies the next bytes out, once. `into` must not be longer than what `available` answered.
    pub fn read(&mut self, into: &mut [u8]) {
        let count = u32::try_from(into.len()).expect("not more than the ring");
        assert!(
            count <= self.prod_seen.wrapping_sub(self.cons),
            "read only what is there"
        );
        let (at, first) = self.ring.span(self.cons, count);
        let (head, tail) = into.split_at_mut(first);
        self.ring.memory.copy_out(at, head);
        self.ring.memory.copy_out(PAGE_BYTES, tail);
        self.cons = self.cons.wrapping_add(count);
    }

    /// Gives the room of what was read back to the producer. Answers whether it has to be told.
    #[must_use]
    pub fn release(&mut self) -> bool {
        if self.published == self.cons {
            return false;
        }
        self.published = self.cons;
        self.ring.memory.store_u32_release(CONS, self.cons);
        self.ring.take_wish(SRV_NOTIFY, NOTIFY_READ)
    }

    /// Asks to be told when something is written; look at `available` again afterwards.
    pub fn request_data_notice(&self) {
        self.ring.state_wish(CLI_NOTIFY, NOTIFY_WRITE);
    }
}

impl Drop for RingConsumer {
    fn drop(&mut self) {
        self.ring.memory.store_u8(SRV_LIVE, LIVE_GONE);
    }
}

/// The twin's word "I am about to sleep on the log", in its own channel page.
pub struct WaitFlag(Arc<WriteMemory>);

/// The twin sleeps until anything is published.
const FOR_ANY: u32 = 1;
/// The twin sleeps until something is published that is not its own.
const FOR_OTHERS: u32 = 2;

impl WaitFlag {
    /// The flag of a channel.
    #[must_use]
    pub fn new(memory: Arc<WriteMemory>) -> Self {
        Self(memory)
    }

    /// The twin: set before the last look at the log. Unless `for_own`, its own entries do not wake it.
    pub fn set(&self, for_own: bool) {
        let value = if for_own { FOR_ANY } else { FOR_OTHERS };
        self.0.swap_u32(READER_WAITING, value);
        fence(Ordering::SeqCst);
    }

    /// The twin: it is awake again.
    pub fn clear(&self) {
        self.0.store_u32(READER_WAITING, 0);
    }

    /// The broker, after publishing and a SeqCst fence: whether a wake-up is due; `only_own` when nothing but
    /// this twin's own entries was published. Clears the flag then, so that a sleeping twin costs one
    /// system call however much is published.
    #[must_use]
    pub fn take(&self, only_own: bool) -> bool {
        match self.0.load_u32(READER_WAITING) {
            0 => false,
            FOR_OTHERS if only_own => false,
            _ => self.0.swap_u32(READER_WAITING, 0) != 0,
        }
    }
}

#[cfg(test)]
#[path = "vchan_tests.rs"]
mod tests;
