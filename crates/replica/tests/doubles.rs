//! Real processes: whatever one twin does, no client sees an error or a wrong value, and an audit of the recorded logs
//! names that twin and nobody else.
#![cfg(feature = "byzantine-doubles")]

mod support;

use std::collections::BTreeSet;

use bytes::Bytes;
use support::{Brokers, Cluster, PATIENCE, status};
use twinbft_client::kv::KvClient;
use twinbft_client::{Client, ClientOptions};
use twinbft_core::audit::Auditor;
use twinbft_core::hostlog::Bounds;
use twinbft_recording::{Item, Joins, Recording};
use twinbft_types::{HostId, ReplicaId, Shape, TwinId};

/// All that need no time of their own; `refuse` is NACK-less and covered by `no-votes`.
const DOUBLES: [&str; 13] = [
    "wrong-result",
    "wrong-checkpoint",
    "half-mute",
    "no-votes",
    "nack-all",
    "equivocate",
    "spoil-macs",
    "replay",
    "spam",
    "forge",
    "impersonate",
    "garbage",
    "mute",
];
const WRITES: u32 = 8;

fn cluster() -> Cluster {
    let mut cluster = Cluster::create(3, 2, |config| {
        config.postbox.record_dir = Some("record".into());
        config.protocol.checkpoint_slots = 8;
        config.protocol.suspect_after_ms = 1_000;
    });
    cluster.start_brokers(&Brokers::Threads);
    cluster.start_replicas();
    cluster
}

async fn kv(cluster: &Cluster) -> KvClient {
    let mut options = ClientOptions::load(&cluster.layout.config(), 0).unwrap();
    options.connect_timeout = PATIENCE;
    options.call_timeout = PATIENCE;
    KvClient::new(Client::connect(options).await.unwrap().session())
}

/// One twin acts all doubles, one after the other, while a client writes and reads.
async fn act(cluster: &Cluster, twin: ReplicaId, doubles: &[&str]) {
    let kv = kv(cluster).await;
    let mut n = 0;
    for double in doubles {
        cluster.act(twin, double);
        for _ in 0..WRITES {
            n += 1;
            let put = kv.put(Bytes::from("key"), Bytes::from(n.to_string())).await;
            assert!(put.is_ok(), "{double}: {put:?}\n{}", cluster.logs());
        }
        let got = kv.get(Bytes::from("key")).await;
        let got = got.unwrap_or_else(|error| panic!("{double}: {error}\n{}", cluster.logs()));
        let got = got.map(|found| found.value);
        assert_eq!(got, Some(Bytes::from(n.to_string())), "{double}");
        cluster.act(twin, "off");
    }
}

/// Whom an audit of a host's record names.
fn audited(cluster: &Cluster, host: u8) -> BTreeSet<ReplicaId> {
    let config = &cluster.config;
    let dir = cluster.layout.host_record(&config.postbox, host).unwrap();
    let mut recording = Recording::open(&dir).unwrap();
    let shape = Shape::new(config.host_count(), config.twin_count()).unwrap();
    let bounds = Bounds {
        checkpoint_slots: config.protocol.checkpoint_slots,
        batch_requests_max: config.protocol.batch_requests_max as u64,
        pipeline_depth: config.protocol.pipeline_depth,
        trim_multiple: twinbft_config::TRIM_MULTIPLE,
        trim_entries: config.protocol.trim_entries,
        trim_bytes: twinbft_config::TRIM_BYTES,
    };
    let mut auditor = Auditor::genesis(shape, HostId(host), bounds);
    let mut named = BTreeSet::new();
    let mut payload = Vec::new();
    // A running broker may be writing to its end.
    while let Ok(Some(item)) = recording.next(&mut payload) {
        match item {
            Item::Segment { joins, .. } => {
                assert!(matches!(joins, Joins::First | Joins::Continues));
            }
            Item::Entry(head) => {
                let found = auditor.handle_entry(TwinId(head.sender), &payload);
                let found = found.into_iter().filter(|finding| finding.names_twin());
                named.extend(found.map(|finding| ReplicaId {
                    host: HostId(host),
                    twin: finding.twin,
                }));
            }
        }
    }
    named
}

#[tokio::test]
async fn whatever_a_backup_does_no_client_sees_it() {
    let cluster = cluster();
    let twin = ReplicaId::new(1, 1);
    act(&cluster, twin, &DOUBLES).await;
    assert_eq!(audited(&cluster, 0), BTreeSet::new());
    assert_eq!(audited(&cluster, 1), BTreeSet::from([twin]));
    assert_eq!(audited(&cluster, 2), BTreeSet::new());
    // Everybody is still there, and the sibling has seen who it was.
    let seen = status(&cluster, ReplicaId::new(1, 0)).await;
    let totals = &seen["event_totals"];
    for kind in ["divergence", "invalid"] {
        assert!(totals[kind].as_u64() > Some(0), "{kind}: {totals}");
    }
    let named = seen["events"].as_array().unwrap().iter();
    let named = named.filter(|event| event["kind"] != "divergence" && event["kind"] != "mute");
    for event in named {
        assert_eq!(event["twin"], 1, "{event}");
    }
}

#[tokio::test]
async fn whatever_a_leader_does_no_client_sees_it() {
    let cluster = cluster();
    let twin = ReplicaId::new(0, 0);
    act(
        &cluster,
        twin,
        &["equivocate", "impersonate", "garbage", "forge", "replay"],
    )
    .await;
    assert_eq!(audited(&cluster, 0), BTreeSet::from([twin]));
    assert_eq!(audited(&cluster, 1), BTreeSet::new());
    assert_eq!(audited(&cluster, 2), BTreeSet::new());
}
