//! A guest is saved and restored: with its replica running, which operators should not do, and with its replica stopped.

use twinbft_postbox::transport::xen::xenstore::Xenstore;

use crate::client::Client;
use crate::guests::Guest;
use crate::supervisor::Broker;
use crate::{await_some, check, result};

const FILE: &str = "/tmp/twin-1.save";

/// Of twin 1, while twin 0 runs.
pub fn run(broker: &Broker, client: &Client, store: &mut Xenstore, one: &mut Guest) {
    // As docs/operations/xen.md says.
    one.tell(store, "e2e-order", "stop");
    broker.await_connected(1);
    save(broker, one, "whose replica is stopped");
    restore(broker, one);
    one.tell(store, "e2e-order", "start");
    result(
        broker.await_connected(2),
        "dom0: the replica of the restored guest is started and connected",
    );
    check(
        client.got("city", "Lisboa"),
        "after the restore the cluster answers: the replica has rejoined",
    );
    // As it should not be done.
    save(broker, one, "whose replica runs");
    restore(broker, one);
}

/// The guest is gone, with what it was granted; nobody else notices.
fn save(broker: &Broker, one: &Guest, which: &str) {
    let before = broker.status();
    let saved = one.save(FILE);
    let gone = format!("(domain {}) is gone; its pages are given back", one.domid);
    let gone = await_some("its pages are given back", || {
        let texts = broker.events("guest");
        texts.iter().any(|text| text.ends_with(&gone)).then_some(())
    });
    let after = broker.status();
    let same = ["epoch", "generation"].map(|name| before[name] == after[name]) == [true, true];
    result(
        saved && gone.is_some() && same && after["twins"][0]["connected"] == true,
        &format!(
            "dom0: a guest {which} is saved: its pages are given back, the broker goes on, its sibling stays connected"
        ),
    );
}

/// It is another domain then, which is served as any that appears.
fn restore(broker: &Broker, one: &mut Guest) {
    let before = one.domid;
    one.restore(FILE);
    let served = format!("domain {}: its channel is published", one.domid);
    let served = await_some("it is served", || {
        broker.events("guest").contains(&served).then_some(())
    });
    result(
        one.domid > before && served.is_some(),
        &format!(
            "dom0: it is restored: domain {before} is {} now, and the broker serves it",
            one.domid
        ),
    );
    std::fs::remove_file(FILE).expect("it was there");
}
