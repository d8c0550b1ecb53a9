//! A twin's side of `scripts/xen-e2e`, in a guest; `twin=N` on the kernel's command line says which.
//! Writes its verdicts below its own `data` in xenstore, where dom0 reads them.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use twinbft_postbox::raw::WriteMemory;
use twinbft_postbox::transport::xen::client::{XenChannel, connect_guest};
use twinbft_postbox::transport::xen::gntdev::{map_read, map_write};
use twinbft_postbox::transport::xen::xenstore::Xenstore;
use twinbft_postbox::transport::xen::{DOM0, descriptor};
use twinbft_postbox::{ConnectOptions, Wake, cluster_tag};

/// Everything here is emulated, and slow.
const PATIENCE: Duration = Duration::from_secs(60);
const ENTRIES: usize = 100;
/// Where libxenvchan's page has the producer's index of the client's ring.
const PRODUCER_INDEX: usize = 4;

fn main() {
    let twin = twin();
    let mut verdicts = Verdicts {
        store: Xenstore::open().expect("xenstore is there"),
        twin,
        next: 0,
    };
    let options = ConnectOptions {
        timeout: PATIENCE,
        ..ConnectOptions::new(cluster_tag("xen-e2e"), 0, twin)
    };
    let mut channel = match connect_guest(&options) {
        Ok(channel) => channel,
        Err(error) => {
            verdicts.tell(false, &format!("connects: {error}"));
            verdicts.end();
            return;
        }
    };
    verdicts.tell(true, "connects: vchan and mirror are mapped");
    append_and_read(&mut channel, &mut verdicts);
    attack_mirrors(&channel, &mut verdicts);
    if twin == 1 {
        corrupt_ring(&mut channel, &mut verdicts);
    } else {
        outlive_the_other(&mut channel, &mut verdicts);
    }
    verdicts.end();
}

fn twin() -> u8 {
    let line = std::fs::read_to_string("/proc/cmdline").expect("proc is mounted");
    let twin = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("twin="));
    twin.and_then(|twin| twin.parse().ok())
        .expect("twin=N on the command line")
}

/// Both twins append; each entry says who wrote it, and twin 1 lies about it in every second one.
fn append_and_read(channel: &mut XenChannel, verdicts: &mut Verdicts) {
    let twin = verdicts.twin;
    for n in 0..ENTRIES {
        let claims = if twin == 1 && n % 2 == 1 { 0 } else { twin };
        let payload = format!("from {twin}, claims {claims}, number {n}");
        channel
            .appender
            .append(payload.as_bytes())
            .expect("the queue takes a hundred");
    }
    channel.appender.flush();
    let start = Instant::now();
    let (mut seen, mut order, mut stamps) = ([0; 2], true, true);
    let mut payload = Vec::new();
    while seen != [ENTRIES; 2] && start.elapsed() < PATIENCE {
        match channel.reader.poll_next(&mut payload) {
            // The other may have gone on to its pings already.
            Ok(Some(_)) if payload == b"ping" => {}
            Ok(Some(entry)) => {
                let text = String::from_utf8_lossy(&payload).into_owned();
                let count = &mut seen[usize::from(entry.sender)];
                order &= text.ends_with(&format!(", number {count}"));
                stamps &= text.starts_with(&format!("from {}, ", entry.sender));
                *count += 1;
            }
            Ok(None) => {
                let woken = channel.reader.wait(Some(Duration::from_secs(1)), || false);
                while let Ok(Some(_)) = channel.appender.poll() {}
                if let Wake::Closed(reason) = woken {
                    return verdicts.tell(false, &format!("reads: closed: {reason}"));
                }
            }
            Err(error) => return verdicts.tell(false, &format!("reads: {error}")),
        }
    }
    let whole = seen == [ENTRIES; 2] && order;
    verdicts.tell(
        whole,
        &format!(
            "appends and reads through grants: {seen:?} entries of the twins, in order: {order}"
        ),
    );
    verdicts.tell(
        whole && stamps,
        "the sender's stamp is the true one, also where an entry lies about it",
    );
    while channel.appender.unconfirmed() > 0 && start.elapsed() < PATIENCE {
        let _ = channel.appender.poll();
        channel.reader.wait(Some(Duration::from_secs(1)), || false);
    }
    measure(channel, verdicts);
}

/// Append to read of this twin's own entries, one at a time. Emulated: for the record only.
fn measure(channel: &mut XenChannel, verdicts: &mut Verdicts) {
    let mut payload = Vec::new();
    let mut took_us = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        let number = channel.appender.append(b"ping").expect("room");
        channel.appender.flush();
        while start.elapsed() < PATIENCE {
            match channel.reader.poll_next(&mut payload) {
                Ok(Some(entry))
                    if entry.sender == verdicts.twin && entry.append_number == number =>
                {
                    break;
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    channel.reader.wait(Some(Duration::from_secs(1)), || false);
                    while let Ok(Some(_)) = channel.appender.poll() {}
                }
                Err(error) => return verdicts.tell(false, &format!("reads its pings: {error}")),
            }
        }
        took_us.push(start.elapsed().as_micros());
    }
    took_us.sort_unstable();
    let (p50, max) = (took_us[took_us.len() / 2], took_us[took_us.len() - 1]);
    let good = max < PATIENCE.as_micros();
    verdicts.tell(
        good,
        &format!("append to read, 50 times, emulated: p50 {p50} us, max {max} us"),
    );
}

fn attack_mirrors(channel: &XenChannel, verdicts: &mut Verdicts) {
    let own = &channel.descriptor.mirror_refs;
    let said = errno(map_write(DOM0, own));
    verdicts.tell(
        said == Some(Errno::EINVAL),
        &format!("cannot map its mirror writable: {said:?}"),
    );
    let said = errno(map_write(DOM0, &own[..1]));
    verdicts.tell(
        said == Some(Errno::EINVAL),
        &format!("nor a page of it: {said:?}"),
    );
    let node = "data/e2e-other-mirror";
    let other = verdicts
        .store
        .read(node)
        .expect("readable")
        .expect("dom0 wrote it");
    let other: u32 = String::from_utf8_lossy(&other).parse().expect("a number");
    let said = errno(map_read(DOM0, &[other]));
    verdicts.tell(
        said == Some(Errno::EINVAL),
        &format!("cannot map the other's mirror: {said:?}"),
    );
    let domid = verdicts
        .store
        .read("domid")
        .expect("readable")
        .expect("there");
    let domid: u16 = String::from_utf8_lossy(&domid).parse().expect("a number");
    let other = if verdicts.twin == 0 {
        domid + 1
    } else {
        domid - 1
    };
    let said = verdicts
        .store
        .read(&format!("{}/ring-ref", descriptor::path(other)));
    let said = said.map_err(|error| error.errno);
    verdicts.tell(
        said == Err(Errno::EACCES),
        &format!("cannot read what is published for the other: {said:?}"),
    );
}

fn errno<T>(result: Result<T, twinbft_postbox::transport::xen::XenError>) -> Option<Errno> {
    result.err().map(|error| error.errno)
}

/// Twin 1 ends as an enemy: its producer's index goes beyond the ring.
fn corrupt_ring(channel: &mut XenChannel, verdicts: &mut Verdicts) {
    let page: WriteMemory = map_write(DOM0, &[channel.descriptor.ring_ref]).expect("its own ring");
    page.store_u32(PRODUCER_INDEX, 0x7fff_fff0);
    // The bell has to ring for it: a wish of the broker's may stand.
    let _ = channel.appender.append(b"never read");
    page.store_u32(PRODUCER_INDEX, 0x7fff_fff0);
    channel.appender.flush();
    let start = Instant::now();
    let mut closed = None;
    while closed.is_none() && start.elapsed() < PATIENCE {
        page.store_u32(PRODUCER_INDEX, 0x7fff_fff0);
        match channel.reader.wait(Some(Duration::from_secs(1)), || false) {
            Wake::Closed(reason) => closed = Some(reason),
            Wake::Ready | Wake::TimedOut => {
                let mut payload = Vec::new();
                while let Ok(Some(_)) = channel.reader.poll_next(&mut payload) {}
            }
        }
    }
    verdicts.tell(
        closed.is_some(),
        &format!("corrupts its ring and loses its channel: {closed:?}"),
    );
}

/// Twin 0 goes on after the other's channel was closed.
fn outlive_the_other(channel: &mut XenChannel, verdicts: &mut Verdicts) {
    let start = Instant::now();
    while !matches!(verdicts.store.read("data/e2e-other-closed"), Ok(Some(_))) {
        if start.elapsed() > PATIENCE {
            return verdicts.tell(false, "goes on: the other's channel was never closed");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = channel.reader.end();
    let mut rounds = 0;
    let mut payload = Vec::new();
    while rounds < 20 && start.elapsed() < PATIENCE {
        let number = channel.appender.append(b"still here").expect("room");
        channel.appender.flush();
        let mut read = false;
        while !read && start.elapsed() < PATIENCE {
            match channel.reader.poll_next(&mut payload) {
                Ok(Some(entry)) => read = entry.sender == 0 && entry.append_number == number,
                Ok(None) => {
                    channel
                        .reader
                        .wait(Some(Duration::from_millis(500)), || false);
                    while let Ok(Some(_)) = channel.appender.poll() {}
                }
                Err(error) => return verdicts.tell(false, &format!("goes on: {error}")),
            }
        }
        rounds += 1;
    }
    let good = rounds == 20 && channel.reader.end() >= before + 20;
    verdicts.tell(
        good,
        &format!("goes on after the other's channel was closed: {rounds} more entries"),
    );
}

/// Where verdicts go.
struct Verdicts {
    store: Xenstore,
    twin: u8,
    next: u32,
}

impl Verdicts {
    fn tell(&mut self, good: bool, text: &str) {
        let verdict = if good { "PASS" } else { "FAIL" };
        self.write(&format!("{verdict} twin {}: {text}", self.twin));
    }

    fn end(&mut self) {
        self.write("end");
    }

    fn write(&mut self, line: &str) {
        println!("{line}");
        let node = format!("data/e2e-{}", self.next);
        self.store
            .write(&node, line.as_bytes())
            .expect("its own data");
        self.next += 1;
    }
}
