//! Three hosts in one dom0, N = 3 and m = 2: each has a broker of its own with its own directory and supervisor, and two guests with
//! installed replicas, disks and addresses of their own. A client reads and writes through the whole protocol; then a host is
//! lost with all that its broker kept, the others go on (f = 1), it comes back, and another one is lost.

use std::time::Duration;

use twinbft_postbox::transport::xen::descriptor;
use twinbft_postbox::transport::xen::xenstore::Xenstore;

use crate::client::{Client, Replica, list};
use crate::grants::{frames, granted};
use crate::guests::{Guest, Place};
use crate::supervisor::Broker;
use crate::{await_some, check, result, say};

const HOME: &str = "/var/lib/hosts";
const HOSTS: u8 = 3;
const TWINS: u8 = 2;
/// The first loop device of these guests; those before it are the twins' of part `main`.
const FIRST_DISK: u8 = 2;
/// Six replicas share one emulated processor.
const PATIENCE: Duration = Duration::from_secs(300);

/// One host: its broker, and its guests while they are there.
struct Host {
    number: u8,
    broker: Broker,
    /// Of the broker's log.
    epoch: u64,
    guests: Vec<Guest>,
}

impl Host {
    fn start(number: u8) -> Self {
        let home = format!("{HOME}/h{number}");
        let config = format!("{home}/cluster.toml");
        let socket = format!("{home}/run/h{number}/broker.sock");
        let flags = ["--config", &config, "--host", &number.to_string()];
        let broker = Broker::start(&format!("h{number}"), &socket, &flags);
        Self {
            number,
            epoch: epoch(&broker),
            broker,
            guests: Vec::new(),
        }
    }

    fn make_guests(&mut self) {
        let host = self.number;
        let guests = (0..TWINS).map(|twin| {
            Guest::create(&Place {
                name: &format!("h{host}t{twin}"),
                kind: "twin",
                twin,
                disk: FIRST_DISK + host * TWINS + twin,
                address: &format!("10.77.{}.1{twin}", host + 1),
                words: &format!("host={host}"),
            })
        });
        self.guests = guests.collect();
    }

    /// Broker, guests, log and grants go; the disks stay.
    fn lose_power(&mut self) {
        say(&format!("host {} loses its power", self.number));
        self.broker.kill();
        for guest in self.guests.drain(..) {
            guest.destroy();
        }
        self.broker.forget();
    }

    fn come_back(&mut self) {
        self.broker.launch();
        self.make_guests();
    }
}

fn epoch(broker: &Broker) -> u64 {
    broker.status()["epoch"].as_u64().unwrap_or(0)
}

/// All of it.
pub fn run() {
    let before = granted();
    let mut store = Xenstore::open().expect("xenstored runs");
    let client = Client(format!("{HOME}/client"));
    let mut hosts: Vec<Host> = (0..HOSTS).map(Host::start).collect();
    hosts.iter_mut().for_each(Host::make_guests);
    check_brokers(&hosts, &mut store);

    check(
        client.put("colour", "green"),
        "a client writes through three hosts",
    );
    check(client.got("colour", "green"), "a client reads it");
    let (level, replicas) = await_level(&client, &[0, 1, 2]);
    result(
        level,
        &format!(
            "dom0: six replicas run and have executed the same: {}",
            list(&replicas)
        ),
    );

    let first = leading(&replicas);
    lose(
        &mut hosts,
        first,
        &client,
        ("city", "Lisboa"),
        "the primary",
    );
    check(
        client.got("colour", "green"),
        "what was written before is there without that host",
    );
    let replicas = come_back(&mut hosts[usize::from(first)], &client);

    let second = leading(&replicas);
    lose(
        &mut hosts,
        second,
        &client,
        ("river", "Tejo"),
        "another host",
    );
    check(
        client.got("city", "Lisboa"),
        "what was written while the first host was gone is read with its help",
    );
    end(hosts, second, before);
}

/// Each guest has found the broker of its own host, and nobody else's.
fn check_brokers(hosts: &[Host], store: &mut Xenstore) {
    let mut read = |domid, name: &str| {
        let value = store.read(&format!("{}/{name}", descriptor::path(domid)));
        let value = value.ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&value).into_owned()
    };
    for host in hosts {
        let connected = host.broker.await_connected(TWINS.into());
        let numbers: Vec<(String, String)> = host
            .guests
            .iter()
            .map(|guest| (read(guest.domid, "host"), read(guest.domid, "twin")))
            .collect();
        let told = (0..TWINS)
            .map(|twin| (host.number.to_string(), twin.to_string()))
            .eq(numbers.iter().cloned());
        result(
            connected && told,
            &format!(
                "dom0: both replicas of host {} have connected to its own broker: xenstore says {numbers:?}",
                host.number
            ),
        );
    }
}

/// Until all twins of these hosts, and no others, run and have executed the same.
fn await_level(client: &Client, wanted: &[u8]) -> (bool, Vec<Replica>) {
    let what = format!("hosts {wanted:?} run and have executed the same");
    client.await_replicas(&what, PATIENCE, |replicas| {
        let there = replicas.iter().map(|replica| replica.host);
        let expected = wanted
            .iter()
            .flat_map(|host| [u64::from(*host); TWINS as usize]);
        let executed = replicas.first().map_or(0, |replica| replica.executed);
        there.eq(expected)
            && executed > 0
            && replicas
                .iter()
                .all(|replica| replica.state == "running" && replica.executed == executed)
    })
}

/// The primary host.
fn leading(replicas: &[Replica]) -> u8 {
    let leader = replicas
        .iter()
        .filter(|replica| replica.is_leader)
        .max_by_key(|replica| replica.view);
    leader.map_or(0, |leader| {
        u8::try_from(leader.host).expect("there are three")
    })
}

/// A host is gone; the client writes and reads.
fn lose(hosts: &mut [Host], gone: u8, client: &Client, (key, value): (&str, &str), which: &str) {
    hosts[usize::from(gone)].lose_power();
    check(
        client.put(key, value),
        &format!(
            "{which} is gone (host {gone}: its broker killed, its guests destroyed, its log and grants with them): a client writes on"
        ),
    );
    check(client.got(key, value), "and reads it");
    let others: Vec<u8> = (0..HOSTS).filter(|host| *host != gone).collect();
    let (level, replicas) = await_level(client, &others);
    result(
        level,
        &format!(
            "dom0: the other hosts run without host {gone}: {}",
            list(&replicas)
        ),
    );
}

/// A host that was lost has its disks, and a log that begins anew. Answers what all replicas say then.
fn come_back(host: &mut Host, client: &Client) -> Vec<Replica> {
    host.come_back();
    let (number, before, now) = (host.number, host.epoch, epoch(&host.broker));
    result(
        host.broker.await_connected(TWINS.into()) && now == before + 1,
        &format!(
            "dom0: host {number} is there again, its log is empty (epoch {before} is {now} now), and its replicas have connected"
        ),
    );
    let (level, replicas) = await_level(client, &[0, 1, 2]);
    result(
        level,
        &format!(
            "dom0: host {number} runs again and has executed what the others have: {}",
            list(&replicas)
        ),
    );
    replicas
}

/// Nothing is left of them.
fn end(hosts: Vec<Host>, gone: u8, before: u32) {
    for guest in hosts.iter().flat_map(|host| &host.guests) {
        guest.destroy();
    }
    let after = await_some("all pages are given back", || {
        let now = granted();
        (now == before).then_some(now)
    });
    result(
        after.is_some(),
        &format!(
            "dom0: no grant is leaked by three hosts, over the loss of two: {before} before, {} after",
            after.unwrap_or_else(granted)
        ),
    );
    let stopped: Vec<bool> = hosts
        .into_iter()
        .filter(|host| host.number != gone)
        .map(|mut host| host.broker.stop())
        .collect();
    result(
        stopped == [true, true],
        &format!("dom0: SIGTERM ends the brokers that are left: {stopped:?}"),
    );
    say(&frames());
}
