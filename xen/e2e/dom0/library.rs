//! Two guests with a test program: the channel itself, honest and not.

use twinbft_postbox::transport::xen::descriptor;
use twinbft_postbox::transport::xen::xenstore::Xenstore;

use crate::grants::{frames, granted, refusal};
use crate::guests::{Guest, Place};
use crate::supervisor::Broker;
use crate::{await_some, result, say};

const FLAGS: [&str; 22] = [
    "--dir",
    "/run/lib",
    "--state-dir",
    "/run/lib",
    "--cluster-id",
    "xen-e2e",
    "--twins",
    "2",
    "--guest",
    "0=probe-0",
    "--guest",
    "1=probe-1",
    "--log-bytes",
    "262144",
    "--entry-bytes-max",
    "16384",
    "--state-bytes-max",
    "4096",
    "--ring-order",
    "14",
    "--trim-every",
    "1024",
];

/// All of it.
pub fn run() {
    let before = granted();
    say(&format!("{before} pages are granted; {}", frames()));
    let text = refusal();
    let good = text.contains("ENOSPC") && text.contains("limit = 1;");
    result(
        good,
        &format!("dom0: a grant beyond the limit says: {text}"),
    );

    let broker = Broker::start("lib", "/run/lib/broker.sock", &FLAGS);
    let mut store = Xenstore::open().expect("xenstored runs");
    let mut zero = probe(0, "");
    let mut one = probe(1, "");
    result(
        broker.await_connected(2),
        "dom0: both guests of broker lib have connected by name",
    );
    let during = granted();
    let shown: u64 = (0..2)
        .filter_map(|t| broker.status()["twins"][t]["granted_pages"].as_u64())
        .sum();
    result(
        u64::from(during - before) == shown && shown > 0,
        &format!("dom0: the pages granted are those that the broker shows: {shown}"),
    );
    tell_references(&mut store, &zero, &one);
    await_some("the guests' first words", || {
        zero.hear(&mut store);
        one.hear(&mut store).then_some(())
    });
    check_fault(&broker, &mut store, &zero);
    check_stock_client(&broker, &mut store, &mut zero, &mut one);

    let ended = await_some("probe-0 has said all", || {
        zero.hear(&mut store).then_some(())
    });
    result(ended.is_some(), "dom0: probe-0 has said all");
    zero.destroy();
    one.destroy();
    let after = await_some("all pages are given back", || {
        let now = granted();
        (now == before).then_some(now)
    });
    result(
        after.is_some(),
        &format!(
            "dom0: no grant is leaked by three domains of broker lib: {before} before, {} after",
            after.unwrap_or_else(granted)
        ),
    );
    let gone = store
        .directory("/local/domain/0/data/twinbft")
        .unwrap_or_default();
    result(
        gone.is_empty(),
        &format!("dom0: nothing of them is left in xenstore: {gone:?}"),
    );
    let kept = broker.kept();
    result(
        kept.len() == 1 && kept[0].starts_with("twinbft-log-"),
        &format!("dom0: the supervisor keeps the log alone: {kept:?}"),
    );
    say(&format!(
        "{} signs of life; {}",
        broker.watchdogs(),
        frames()
    ));
}

fn probe(number: u8, words: &str) -> Guest {
    Guest::create(&Place {
        name: &format!("probe-{number}"),
        kind: "probe",
        twin: number,
        words,
        ..Place::default()
    })
}

/// Each guest is told a reference of the other's mirror and ring, so that it can try to map them.
pub fn tell_references(store: &mut Xenstore, zero: &Guest, one: &Guest) {
    for (guest, other) in [(zero, one), (one, zero)] {
        let base = descriptor::path(other.domid);
        let found = await_some("the other's channel is published", || {
            let mirror = store.read(&format!("{base}/mirror-0")).ok()??;
            let ring = store.read(&format!("{base}/ring-ref")).ok()??;
            let mirror = String::from_utf8(mirror).ok()?;
            let first = mirror.split(' ').next()?.to_owned();
            Some((first, String::from_utf8(ring).ok()?))
        });
        let (mirror, ring) = found.unwrap_or_default();
        guest.tell(store, "e2e-other-domid", &other.domid.to_string());
        guest.tell(store, "e2e-other-ring", &ring);
        guest.tell(store, "e2e-other-mirror", &mirror);
    }
}

/// probe-1 has corrupted its ring.
fn check_fault(broker: &Broker, store: &mut Xenstore, zero: &Guest) {
    let faults = await_some("the fault", || {
        let faults = broker.events("twin-fault");
        (!faults.is_empty()).then_some(faults)
    });
    let faults = faults.unwrap_or_default();
    let only_one = !faults.is_empty() && faults.iter().all(|text| text.starts_with("twin 1:"));
    result(
        only_one,
        &format!(
            "dom0: the guest that corrupted its ring lost its channel, and nobody else: {faults:?}"
        ),
    );
    zero.tell(store, "e2e-other-closed", "1");
}

/// A guest comes anew, with Debian's C library instead of our code.
fn check_stock_client(broker: &Broker, store: &mut Xenstore, zero: &mut Guest, one: &mut Guest) {
    let before = one.domid;
    one.destroy();
    let next = broker.status()["twins"][1]["next_number"]
        .as_u64()
        .unwrap_or(0);
    *one = probe(1, &format!("stock={next}"));
    let connected = format!("twin 1: connected: domain {}", one.domid);
    let seen = await_some("it is connected", || {
        // It may have said all and be gone by now.
        broker.events("channel").contains(&connected).then_some(())
    });
    result(
        one.domid != before && seen.is_some(),
        &format!(
            "dom0: probe-1 is destroyed and made again: domain {before} is {} now, and connected",
            one.domid
        ),
    );
    await_some("probe-1 has said all", || {
        zero.hear(store);
        one.hear(store).then_some(())
    });
}
