//! Quotas, refusals, trims and lapped readers (protocol.md, section 2).

mod common;

use common::{Host, append, await_news, read};
use twinbft_postbox::{AppendError, AppendEvent, Channel, ReadError, Refusal, Wake};

/// Every twin on its own thread proposes the trim and works until it is done; what they heard.
fn trim_to(position: u64, state: &[u8], twins: &mut [&mut Channel]) -> Vec<AppendEvent> {
    std::thread::scope(|scope| {
        let work = |twin: &mut Channel| {
            let mut events = Vec::new();
            twin.appender
                .trim(position, state)
                .expect("an open channel");
            twin.appender.flush();
            while twin.reader.head() < position {
                assert_eq!(
                    twin.reader.wait(Some(common::PATIENCE), || false),
                    Wake::Ready
                );
                events.extend(twin.appender.poll().expect("an open channel"));
            }
            events
        };
        let threads: Vec<_> = twins
            .iter_mut()
            .map(|twin| scope.spawn(move || work(twin)))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("it ends"))
            .collect()
    })
}

/// Waits for the appender's next event; what is in the log stays unread.
fn await_event(channel: &mut Channel) -> AppendEvent {
    loop {
        if let Some(event) = channel.appender.poll().expect("an open channel") {
            return event;
        }
        // Unread entries would end every wait at once.
        while channel
            .reader
            .poll_next(&mut Vec::new())
            .expect("a sound log")
            .is_some()
        {}
        assert_eq!(
            channel.reader.wait(Some(common::PATIENCE), || false),
            Wake::Ready
        );
    }
}

#[test]
fn a_spamming_twin_cannot_crowd_out_the_other_and_goes_on_after_a_trim() {
    let host = Host::start_small("2");
    let (mut spammer, mut honest) = (host.connect(0), host.connect(1));
    for number in 0..60 {
        assert_eq!(spammer.appender.append(&[7; 1000]), Ok(number));
    }
    spammer.appender.flush();
    let AppendEvent::Refused {
        number,
        reason: Refusal::OverQuota,
    } = await_event(&mut spammer)
    else {
        panic!("the quota ends it");
    };
    // (65536 - 4032) / 2 bytes are 29 records of 1032.
    assert_eq!(number, 29);
    for n in 0..29u8 {
        append(&mut honest, &[n; 1000]);
    }
    let seen = read(&mut honest, 58);
    assert_eq!(seen.iter().filter(|entry| entry.1 == 1).count(), 29);
    let heard = trim_to(16, b"s16", &mut [&mut honest, &mut spammer]);
    let resumed = AppendEvent::Resumed { number };
    while !heard.contains(&resumed) && await_event(&mut spammer) != resumed {}
    while spammer.appender.unconfirmed() > 60 - 29 - 16 {
        await_news(&mut spammer);
        while spammer
            .reader
            .poll_next(&mut Vec::new())
            .expect("a sound log")
            .is_some()
        {}
    }
    let more = read(&mut honest, 16);
    assert!(
        more.iter().all(|entry| entry.1 == 0),
        "what was refused is sent again, in order"
    );
    let status = host.status();
    assert!(
        status["twins"][0]["refused"]["over-quota"]
            .as_u64()
            .expect("a number")
            >= 1,
        "{status}"
    );
    assert_eq!(status["twins"][1]["refused"], serde_json::json!({}));
    assert_eq!(status["head"], 16);
}

#[test]
fn a_lapped_reader_resynchronises_from_the_agreed_state_and_nothing_else() {
    let host = Host::start_small("3");
    let (mut zero, mut one, mut slow) = (host.connect(0), host.connect(1), host.connect(2));
    assert_eq!(slow.reader.agreed_state(), Ok(None));
    // The log wraps several times under the slow reader.
    for round in 1..=40u64 {
        for n in 0..8u64 {
            append(&mut zero, &(round * 8 + n).to_le_bytes().repeat(100));
        }
        read(&mut zero, 8);
        read(&mut one, 8);
        trim_to(
            round * 8,
            format!("state {round}").as_bytes(),
            &mut [&mut zero, &mut one],
        );
    }
    assert_eq!(
        slow.reader.poll_next(&mut Vec::new()),
        Err(ReadError::Lapped { position: 0 })
    );
    assert_eq!(
        slow.reader.seek(100),
        Err(ReadError::Lapped { position: 100 })
    );
    assert_eq!(
        slow.reader.poll_next(&mut Vec::new()),
        Err(ReadError::Lapped { position: 0 }),
        "and it stays lapped"
    );
    let state = slow
        .reader
        .resync()
        .expect("a sound log")
        .expect("it was trimmed");
    assert_eq!(
        (state.position, state.bytes.as_slice()),
        (320, &b"state 40"[..])
    );
    append(&mut zero, b"go on");
    assert_eq!(read(&mut slow, 1), [(320, 0, b"go on".to_vec())]);
    assert_eq!(
        slow.reader.seek(500),
        Err(ReadError::BeyondEnd { position: 500 })
    );
}

#[test]
fn wrong_trims_are_counted_and_change_nothing() {
    let host = Host::start_small("2");
    let (mut zero, mut one) = (host.connect(0), host.connect(1));
    for n in 0..8u8 {
        append(&mut zero, &[n]);
    }
    read(&mut zero, 8);
    for (twin, position, state) in [(&mut zero, 8, b"mine".as_slice()), (&mut one, 8, b"yours")] {
        twin.appender
            .trim(position, state)
            .expect("an open channel");
        twin.appender.flush();
    }
    for position in [3, 16] {
        one.appender.trim(position, b"").expect("an open channel");
        one.appender.flush();
    }
    append(&mut one, b"end");
    assert_eq!(read(&mut zero, 1)[0].2, b"end");
    let twins = &host.status()["twins"];
    assert_eq!(twins[0]["trims"], serde_json::json!({"held": 1}));
    let theirs = serde_json::json!({"held": 1, "trim-not-a-multiple": 1, "trim-beyond-end": 1});
    assert_eq!(twins[1]["trims"], theirs);
    assert_eq!(zero.reader.head(), 0);
    assert_eq!(
        zero.appender.trim(8, &[0; 4097]),
        Err(AppendError::TooLarge {
            bytes: 4097,
            bytes_max: 4096
        })
    );
}

#[test]
fn a_full_queue_says_so_and_empties() {
    let host = Host::start_small("2");
    let mut options = host.options(0);
    options.append_pending_bytes_max = 1;
    let path = twinbft_postbox::socket_path(host.sockets(), 0);
    let mut twin = twinbft_postbox::connect(&path, &options).expect("the broker takes its twins");
    // Without a flush nothing is confirmed, so the queue fills: it holds one largest entry at least.
    assert_eq!(twin.appender.append(&[1; 4000]), Ok(0));
    let mut full = 0;
    for _ in 1..6 {
        while let Err(error) = twin.appender.append(&[2; 4000]) {
            assert_eq!(error, AppendError::QueueFull);
            full += 1;
            twin.appender.flush();
            await_news(&mut twin);
            while twin
                .reader
                .poll_next(&mut Vec::new())
                .expect("a sound log")
                .is_some()
            {}
        }
    }
    assert!(full > 0);
}
