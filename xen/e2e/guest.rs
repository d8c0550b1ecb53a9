//! The guests' side of `scripts/xen-e2e`. As `probe` it is a twin by itself, over the library: appends, reads, lies, breaks its
//! ring. As `agent` it stands beside an installed replica and attacks what it can reach; with `obey` dom0 has the guest reboot, or
//! its replica stop and start.
//! Words on the kernel's command line say which twin, and whether the C library goes first. Writes its verdicts below its
//! own `data` in xenstore, where dom0 reads them.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use twinbft_postbox::raw::WriteMemory;
use twinbft_postbox::transport::xen::client::{connect_guest, find_broker};
use twinbft_postbox::transport::xen::gntdev::{map_read, map_write};
use twinbft_postbox::transport::xen::xenstore::Xenstore;
use twinbft_postbox::transport::xen::{DOM0, descriptor};
use twinbft_postbox::{Channel, ConnectOptions, Reconnected, Wake, cluster_tag};

/// Everything here is emulated, and slow.
const PATIENCE: Duration = Duration::from_secs(120);
const ENTRIES: usize = 100;
/// While it is there, the replica stays stopped.
const STOPPED: &str = "/tmp/stopped";
/// Where libxenvchan's page has the producer's index of the client's ring.
const PRODUCER_INDEX: usize = 4;

/// What the C library's client appends (vchan.c).
const STOCK: &[u8] = b"from libxenvchan";
const STOCK_ENTRIES: usize = 3;

fn main() {
    let role = std::env::args().nth(1).unwrap_or_default();
    let mut verdicts = Verdicts {
        store: Xenstore::open().expect("xenstore is there"),
        twin: word("twin")
            .and_then(|twin| twin.parse().ok())
            .expect("twin=N on the command line"),
        next: 0,
    };
    match role.as_str() {
        "probe" => probe(&mut verdicts),
        "agent" => agent(&mut verdicts),
        "obey" => obey(),
        other => panic!("probe, agent or obey, not {other:?}"),
    }
}

/// `name=value` on the kernel's command line.
fn word(name: &str) -> Option<String> {
    let line = std::fs::read_to_string("/proc/cmdline").expect("proc is mounted");
    let mut words = line.split_whitespace();
    words.find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

fn probe(verdicts: &mut Verdicts) {
    if let Some(next) = word("stock") {
        stock_client(&next, verdicts);
    }
    let options = ConnectOptions {
        timeout: PATIENCE,
        ..ConnectOptions::new(cluster_tag("xen-e2e"), 0, verdicts.twin)
    };
    let mut channel = match connect_guest(&options) {
        Ok(channel) => channel,
        Err(error) => {
            verdicts.tell(false, &format!("connects: {error}"));
            return verdicts.end();
        }
    };
    if word("stock").is_some() {
        let good = append_one(&mut channel, b"after the C library");
        verdicts.tell(
            good,
            "connects after the C library's client on the same pages, and appends",
        );
        return verdicts.end();
    }
    verdicts.tell(true, "connects: vchan and mirror are mapped");
    append_and_read(&mut channel, verdicts);
    attack_mirrors(verdicts);
    if verdicts.twin == 1 {
        corrupt_ring(&mut channel, verdicts);
        come_back(&mut channel, verdicts);
    } else {
        outlive_the_other(&mut channel, verdicts);
        read_stock(&mut channel, verdicts);
    }
    verdicts.end();
}

fn agent(verdicts: &mut Verdicts) {
    // The replica finds it too, and uses it meanwhile.
    match find_broker(PATIENCE) {
        Ok(_) => attack_mirrors(verdicts),
        Err(error) => verdicts.tell(false, &format!("the agent finds the broker: {error}")),
    }
    ask_doctor(verdicts);
    verdicts.end();
}

/// Does what dom0 wants, which is the last that it wrote. twin-init starts no replica while the file is there.
fn obey() {
    let mut done = None;
    loop {
        // Anew each time: the guest may have been saved and restored meanwhile.
        let mut store = Xenstore::open().expect("xenstore is there");
        let order = store.read("data/e2e-order").unwrap_or(None);
        if order.is_some() && order != done {
            match order.as_deref() {
                Some(b"reboot") => busybox(&["reboot", "-f"]),
                Some(b"stop") => {
                    std::fs::write(STOPPED, "").expect("there is room");
                    busybox(&["killall", "twinbft-replica"]);
                }
                Some(b"start") => busybox(&["rm", "-f", STOPPED]),
                _ => println!("no order: {order:?}"),
            }
            done = order;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn busybox(arguments: &[&str]) {
    let status = Command::new("/bin/busybox").args(arguments).status();
    println!("{arguments:?}: {status:?}");
}

fn ask_doctor(verdicts: &mut Verdicts) {
    let twin = verdicts.twin.to_string();
    let output = Command::new("/usr/bin/twinbft")
        .args([
            "doctor",
            "--config",
            "/var/lib/twinbft",
            "--host",
            "0",
            "--twin",
            &twin,
        ])
        .output();
    let said = match &output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => error.to_string(),
    };
    println!("{said}");
    let unwell = said.lines().filter(|line| line.starts_with("unfit"));
    let unwell = unwell.collect::<Vec<_>>().join("; ");
    let fit = output.is_ok_and(|output| output.status.success());
    verdicts.tell(
        fit,
        &format!("twinbft doctor says that this guest is fit {unwell}"),
    );
}

/// Debian's libxenvchan as a client of our server.
fn stock_client(next: &str, verdicts: &mut Verdicts) {
    let (domid, _) = match find_broker(PATIENCE) {
        Ok(found) => found,
        Err(error) => return verdicts.tell(false, &format!("finds the broker: {error}")),
    };
    let output = Command::new("/bin/xen-e2e-vchan")
        .args([&descriptor::path(domid), next])
        .output();
    let (good, said) = match output {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            (
                output.status.success(),
                String::from_utf8_lossy(&said).trim().replace('\n', "; "),
            )
        }
        Err(error) => (false, error.to_string()),
    };
    verdicts.tell(
        good,
        &format!("a stock client of Debian's libxenvchan connects and sends: {said}"),
    );
}

/// The other guest's C library has written these.
fn read_stock(channel: &mut Channel, verdicts: &mut Verdicts) {
    let (mut seen, mut payload) = (0, Vec::new());
    let start = Instant::now();
    while seen < STOCK_ENTRIES && start.elapsed() < 2 * PATIENCE {
        match channel.reader.poll_next(&mut payload) {
            Ok(Some(entry)) => seen += usize::from(entry.sender == 1 && payload == STOCK),
            Ok(None) => {
                channel.reader.wait(Some(Duration::from_secs(1)), || false);
                while let Ok(Some(_)) = channel.appender.poll() {}
            }
            Err(error) => return verdicts.tell(false, &format!("reads the C library's: {error}")),
        }
    }
    let good = seen == STOCK_ENTRIES;
    verdicts.tell(
        good,
        &format!("reads {seen} entries of the other guest's libxenvchan, with its stamp"),
    );
}

/// A process that has lost its channel lets go of the ring, and gets an empty one.
fn come_back(channel: &mut Channel, verdicts: &mut Verdicts) {
    let start = Instant::now();
    let mut last = String::new();
    while start.elapsed() < PATIENCE {
        match channel.reconnect() {
            Ok(Reconnected::SameEpoch) => {
                let good = append_one(channel, b"back again");
                return verdicts.tell(
                    good,
                    "comes back after its channel was closed, to an empty ring on the same pages",
                );
            }
            Ok(Reconnected::NewEpoch { .. }) => {
                return verdicts.tell(false, "comes back: to another epoch");
            }
            Err(error) => last = error.to_string(),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    verdicts.tell(false, &format!("comes back: {last}"));
}

/// Appends and reads it back.
fn append_one(channel: &mut Channel, text: &[u8]) -> bool {
    let start = Instant::now();
    let Ok(number) = channel.appender.append(text) else {
        return false;
    };
    channel.appender.flush();
    let (twin, mut payload) = (channel.appender.twin(), Vec::new());
    while start.elapsed() < PATIENCE {
        match channel.reader.poll_next(&mut payload) {
            Ok(Some(entry)) if entry.sender == twin && entry.append_number == number => {
                return payload == text;
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                channel.reader.wait(Some(Duration::from_secs(1)), || false);
                while let Ok(Some(_)) = channel.appender.poll() {}
            }
            Err(_) => return false,
        }
    }
    false
}

/// Both twins append; each entry says who wrote it, and twin 1 lies about it in every second one.
fn append_and_read(channel: &mut Channel, verdicts: &mut Verdicts) {
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
fn measure(channel: &mut Channel, verdicts: &mut Verdicts) {
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

/// What a guest tries to map that is not its own, or not in this way. Every attempt must fail.
fn attack_mirrors(verdicts: &mut Verdicts) {
    let own = match find_broker(PATIENCE) {
        Ok((_, descriptor)) => descriptor.mirror_refs,
        Err(error) => return verdicts.tell(false, &format!("finds the broker: {error}")),
    };
    let refused = Some(Errno::EINVAL);
    let said = errno(map_write(DOM0, &own));
    verdicts.tell(
        said == refused,
        &format!("cannot map its mirror writable: {said:?}"),
    );
    let said = errno(map_write(DOM0, &own[..1]));
    verdicts.tell(said == refused, &format!("nor a page of it: {said:?}"));
    let mirror = verdicts.await_number("e2e-other-mirror");
    let said = errno(map_read(DOM0, &[mirror]));
    verdicts.tell(
        said == refused,
        &format!("cannot map the other's mirror: {said:?}"),
    );
    let ring = verdicts.await_number("e2e-other-ring");
    let said = (
        errno(map_read(DOM0, &[ring])),
        errno(map_write(DOM0, &[ring])),
    );
    verdicts.tell(
        said == (refused, refused),
        &format!("cannot map the other's ring: {said:?}"),
    );
    let other = u16::try_from(verdicts.await_number("e2e-other-domid")).unwrap_or(u16::MAX);
    let node = format!("{}/ring-ref", descriptor::path(other));
    let said = verdicts.store.read(&node).map_err(|error| error.errno);
    verdicts.tell(
        said == Err(Errno::EACCES),
        &format!("cannot read what is published for the other: {said:?}"),
    );
}

fn errno<T>(result: Result<T, twinbft_postbox::transport::xen::XenError>) -> Option<Errno> {
    result.err().map(|error| error.errno)
}

/// Twin 1 ends as an enemy: its producer's index goes beyond the ring.
fn corrupt_ring(channel: &mut Channel, verdicts: &mut Verdicts) {
    let (_, own) = find_broker(PATIENCE).expect("it was there before");
    let page: WriteMemory = map_write(DOM0, &[own.ring_ref]).expect("its own ring");
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
    let told = closed
        .as_deref()
        .is_some_and(|reason| reason.contains("broke the channel's rules"));
    verdicts.tell(
        told,
        &format!("corrupts its ring, loses its channel and is told why: {closed:?}"),
    );
}

/// Twin 0 goes on after the other's channel was closed.
fn outlive_the_other(channel: &mut Channel, verdicts: &mut Verdicts) {
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
        self.write(&format!("{verdict} {text}"));
    }

    fn end(&mut self) {
        self.write("end");
    }

    /// A number that dom0 writes below this guest's `data`.
    fn await_number(&mut self, name: &str) -> u32 {
        let start = Instant::now();
        loop {
            let value = self
                .store
                .read(&format!("data/{name}"))
                .expect("its own data");
            let number = value.and_then(|value| String::from_utf8_lossy(&value).parse().ok());
            if let Some(number) = number {
                return number;
            }
            assert!(start.elapsed() < PATIENCE, "dom0 never wrote {name}");
            std::thread::sleep(Duration::from_millis(100));
        }
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
