//! The ring over plain memory, honest and hostile.

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

#[test]
fn a_page_with_grants_is_read_as_it_was_written() {
    for order in [12, 15, GRANTED_ORDER_MAX] {
        let (_producer, _consumer, memory) = pair(order);
        let refs: Vec<u32> = (0..).take(1 << (order - 12)).map(|n| 900 - n).collect();
        write_grants(&memory, &refs);
        let page = read_page(&memory).expect("ours");
        assert_eq!((page.left_order, page.left_grants), (order, refs));
        // libxenvchan has the references at byte 24, one after the other.
        assert_eq!(memory.load_u32(24), 900);
    }
}

#[test]
fn a_page_of_another_order_is_a_fault() {
    let (_producer, _consumer, memory) = pair(12);
    for order in [0, 10, 11, 20, u16::MAX] {
        memory.store_u32(ORDERS, u32::from(order).to_le());
        assert_eq!(read_page(&memory), Err(PageFault::Order(order)));
    }
}

#[test]
fn a_ring_that_is_reset_is_empty_whatever_the_last_client_left() {
    let (mut producer, consumer, memory) = pair(12);
    assert_eq!(producer.write(&[1; 500]), Ok(500));
    WaitFlag::new(memory.clone()).set(true);
    drop(producer);
    assert_eq!(client(&memory), Peer::Gone);
    memory.store_u32(CONS, 77);
    drop(consumer);
    assert_eq!(server(&memory), Peer::Gone);
    reset(&memory, 12);
    assert_eq!(
        (client(&memory), server(&memory)),
        (Peer::Awaited, Peer::Up)
    );
    assert!(!WaitFlag::new(memory.clone()).take(false));
    let mut consumer = RingConsumer::new(memory.clone(), 12);
    let mut producer = RingProducer::new(memory.clone(), 12);
    assert_eq!(client(&memory), Peer::Up);
    assert_eq!((consumer.available(), producer.space()), (Ok(0), Ok(4096)));
    assert_eq!(producer.write(b"new"), Ok(3));
    let mut out = [0; 3];
    assert_eq!(consumer.available(), Ok(3));
    consumer.read(&mut out);
    assert_eq!(&out, b"new");
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
    // Under Miri a byte takes a thousand times longer; several rounds of the ring are enough.
    let total: u32 = if cfg!(miri) { 20_000 } else { 1_000_000 };
    let writer = std::thread::spawn(move || {
        let mut sent = 0;
        while sent < total {
            let bytes: Vec<u8> = (sent..total).take(700).map(|n| (n % 253) as u8).collect();
            sent += u32::try_from(producer.write(&bytes).expect("honest consumer")).expect("small");
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
