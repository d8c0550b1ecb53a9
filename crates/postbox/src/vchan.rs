//! One direction of a shared ring with libxenvchan's page layout and algorithm (left = client to
//! server; a twin is the client). The same code serves a local memfd and, later, granted pages.
//!
//! Both sides keep their own index privately and treat the shared copy of the other's as a hint from
//! an enemy: an index that moves back or beyond the ring is a fault, never a length.

use std::mem::{offset_of, size_of};
use std::sync::Arc;

use crate::atomic::{Ordering, fence};
use crate::raw::{PAGE_BYTES, WriteMemory};

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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(order: u16) -> (RingProducer, RingConsumer, Arc<WriteMemory>) {
        let memory = Arc::new(WriteMemory::heap(channel_bytes(order)));
        initialise(&memory, order);
        (
            RingProducer::new(memory.clone(), order),
            RingConsumer::new(memory.clone(), order),
            memory,
        )
    }

    #[test]
    fn the_page_is_what_libxenvchan_expects() {
        let (_producer, _consumer, memory) = pair(12);
        let mut page = [0; 24];
        memory.copy_out(0, &mut page);
        assert_eq!(page[16..24], [12, 0, 10, 0, 1, 1, 1, 1]);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(chunks in proptest::collection::vec((1usize..6000, 1usize..6000), 1..60)) {
            let (mut producer, mut consumer, _memory) = pair(12);
            let (mut sent, mut got) = (0u32, 0u32);
            for (write, read) in chunks {
                let bytes: Vec<u8> = (sent..).take(write).map(|n| (n % 251) as u8).collect();
                sent += u32::try_from(producer.write(&bytes).expect("honest consumer")).expect("small");
                let available = consumer.available().expect("honest producer") as usize;
                prop_assert_eq!(available, (sent - got) as usize);
                let mut out = vec![0; available.min(read)];
                consumer.read(&mut out);
                let _ = consumer.release();
                for byte in out {
                    prop_assert_eq!(byte, (got % 251) as u8);
                    got += 1;
                }
            }
        }

        #[test]
        fn a_hostile_producer_index_is_a_fault_or_within_the_ring(prods in proptest::collection::vec(any::<u32>(), 1..20)) {
            let (_producer, mut consumer, memory) = pair(12);
            for prod in prods {
                memory.store_u32(PROD, prod);
                if let Ok(available) = consumer.available() {
                    prop_assert!(available <= 4096);
                    let mut out = vec![0; available as usize / 2];
                    consumer.read(&mut out);
                }
            }
        }

        #[test]
        fn a_hostile_consumer_index_is_a_fault_or_within_the_ring(conses in proptest::collection::vec(any::<u32>(), 1..20)) {
            let (mut producer, _consumer, memory) = pair(12);
            for cons in conses {
                memory.store_u32(CONS, cons);
                if let Ok(space) = producer.space() {
                    prop_assert!(space <= 4096);
                    prop_assert!(producer.write(&[7; 100]).is_ok());
                }
            }
        }
    }

    #[test]
    fn an_index_that_moves_back_is_a_fault() {
        let (mut producer, mut consumer, memory) = pair(12);
        assert_eq!(producer.write(&[1; 64]), Ok(64));
        assert_eq!(consumer.available(), Ok(64));
        memory.store_u32(PROD, 32);
        assert!(matches!(
            consumer.available(),
            Err(RingFault::Producer {
                prod: 32,
                cons: 0,
                ..
            })
        ));
        memory.store_u32(PROD, 64);
        consumer.read(&mut [0; 64]);
        let _ = consumer.release();
        assert_eq!(producer.space(), Ok(4096));
        memory.store_u32(CONS, 8);
        assert!(matches!(
            producer.space(),
            Err(RingFault::Consumer {
                cons: 8,
                prod: 64,
                ..
            })
        ));
    }

    #[test]
    fn a_sleeper_is_told_once() {
        let (mut producer, mut consumer, _memory) = pair(12);
        consumer.request_data_notice();
        assert_eq!(producer.write(&[1; 8]), Ok(8));
        assert!(producer.consumer_wants_notice());
        assert!(!producer.consumer_wants_notice());
        producer.request_space_notice();
        assert_eq!(consumer.available(), Ok(8));
        consumer.read(&mut [0; 8]);
        assert!(consumer.release());
        assert!(!consumer.release());
    }

    #[test]
    fn two_threads_pass_a_stream() {
        let (mut producer, mut consumer, _memory) = pair(12);
        let total = 1_000_000u32;
        let writer = std::thread::spawn(move || {
            let mut sent = 0;
            while sent < total {
                let bytes: Vec<u8> = (sent..total).take(700).map(|n| (n % 253) as u8).collect();
                sent +=
                    u32::try_from(producer.write(&bytes).expect("honest consumer")).expect("small");
                std::hint::spin_loop();
            }
        });
        let mut got = 0;
        while got < total {
            let mut out = vec![0; consumer.available().expect("honest producer") as usize];
            consumer.read(&mut out);
            let _ = consumer.release();
            for byte in out {
                assert_eq!(byte, (got % 253) as u8);
                got += 1;
            }
        }
        writer.join().expect("the writer ends");
    }
}
