//! Two guests with installed replicas, N = 1 and m = 2, and a client in dom0 that goes through the whole protocol.

use std::process::Command;

use serde_json::Value;
use twinbft_postbox::transport::xen::xenstore::Xenstore;

use crate::client::Client;
use crate::grants::{frames, granted};
use crate::guests::{Guest, Place};
use crate::library::tell_references;
use crate::supervisor::Broker;
use crate::{await_some, check, result, save, say};

const CLUSTER: &str = "/var/lib/twinbft";

/// All of it.
pub fn run() {
    let before = granted();
    let config = format!("{CLUSTER}/cluster.toml");
    let socket = format!("{CLUSTER}/run/h0/broker.sock");
    let mut broker = Broker::start("main", &socket, &["--config", &config, "--host", "0"]);
    let mut store = Xenstore::open().expect("xenstored runs");
    let mut zero = twin(0);
    let mut one = twin(1);
    result(
        broker.await_connected(2),
        "dom0: both replicas have connected by the name of their guests",
    );
    tell_references(&mut store, &zero, &one);
    let client = Client(CLUSTER.to_owned());
    check(
        client.put("colour", "green"),
        "a client writes through the whole protocol",
    );
    check(client.got("colour", "green"), "a client reads it");
    await_some("both agents have said all", || {
        let heard = zero.hear(&mut store);
        (one.hear(&mut store) && heard).then_some(())
    });

    check_doctor();

    kill_broker(&mut broker, &client);
    reboot(&broker, &client, &mut store, &mut one);
    save::run(&broker, &client, &mut store, &mut one);

    let watchdogs = broker.watchdogs();
    result(
        watchdogs > 0,
        &format!("dom0: the broker gave {watchdogs} signs of life"),
    );
    zero.destroy();
    one.destroy();
    let after = await_some("all pages are given back", || {
        let now = granted();
        (now == before).then_some(now)
    });
    result(
        after.is_some(),
        &format!(
            "dom0: no grant is leaked by the replicas' guests, over a broker's death, a reboot, a save and a restore: {before} before, {} after",
            after.unwrap_or_else(granted)
        ),
    );
    result(broker.stop(), "dom0: SIGTERM ends the broker in order");
    say(&frames());
}

/// An installed replica with an agent beside it.
fn twin(number: u8) -> Guest {
    Guest::create(&Place {
        name: &format!("twin-{number}"),
        kind: "twin",
        twin: number,
        disk: number,
        address: &format!("10.77.0.1{number}"),
        words: "host=0 agent=1",
    })
}

/// Of this dom0; the agents ask that of their guests.
fn check_doctor() {
    let output = Command::new("/usr/bin/twinbft")
        .args(["doctor", "--config", CLUSTER, "--host", "0"])
        .output();
    let (fit, said) = match output {
        Ok(output) => (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ),
        Err(error) => (false, error.to_string()),
    };
    for line in said.lines() {
        say(line);
    }
    let knows =
        said.contains("xsm=silo") && said.contains("Xen 4.17") && said.contains("allows 65536");
    result(
        fit && knows,
        "dom0: twinbft doctor says that this dom0 is fit, and knows Xen's version, policy and limits",
    );
}

fn number(status: &Value, name: &str) -> u64 {
    status[name].as_u64().unwrap_or(0)
}

/// Log and epoch, and the pages of all guests, outlive the process.
fn kill_broker(broker: &mut Broker, client: &Client) {
    let (status, pages) = (broker.status(), granted());
    broker.kill();
    broker.launch();
    let after = broker.status();
    let same_epoch = number(&status, "epoch") == number(&after, "epoch");
    let whole = number(&after, "tail") >= number(&status, "tail") && number(&status, "tail") > 0;
    let next = number(&after, "generation") == number(&status, "generation") + 1;
    result(
        same_epoch && whole && next,
        &format!(
            "dom0: SIGKILL of the broker keeps log and epoch: epoch {} and {}, tail {} and {}, generation {} and {}",
            status["epoch"],
            after["epoch"],
            status["tail"],
            after["tail"],
            status["generation"],
            after["generation"]
        ),
    );
    let now = granted();
    result(
        now == pages,
        &format!("dom0: the new process grants nothing anew: {pages} pages before, {now} after"),
    );
    result(
        broker.await_connected(2),
        "dom0: both replicas come back to it on their pages",
    );
    check(
        client.got("colour", "green"),
        "what was written before the broker's death is there",
    );
    check(client.put("city", "Lisboa"), "and a client writes on");
}

/// A guest reboots by itself.
fn reboot(broker: &Broker, client: &Client, store: &mut Xenstore, one: &mut Guest) {
    let before = one.domid;
    one.tell(store, "e2e-order", "reboot");
    let rebooted = one.await_reboot();
    result(
        rebooted && broker.await_connected(2),
        &format!(
            "dom0: twin-1 reboots: domain {before} is {} now, and its replica is connected",
            one.domid
        ),
    );
    check(
        client.got("city", "Lisboa"),
        "after the guest's reboot the cluster answers: its replica has rejoined",
    );
    check(client.put("colour", "blue"), "and takes a write");
    let texts = broker.events("guest");
    let gone = texts
        .iter()
        .any(|text| text.contains(&format!("(domain {before}) is gone")));
    result(
        gone,
        "dom0: the broker has given back the pages of the guest's earlier domain",
    );
}
