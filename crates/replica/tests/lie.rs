//! A twin that lies about results: no client sees it, its host withholds, and the liar is named.
#![cfg(feature = "byzantine-doubles")]

mod support;

use bytes::Bytes;
use support::{Brokers, Cluster, PATIENCE, status};
use twinbft_client::kv::KvClient;
use twinbft_client::{Client, ClientOptions};
use twinbft_types::ReplicaId;

#[tokio::test]
async fn a_lie_is_withheld_and_its_twin_is_named() {
    let mut cluster = Cluster::create(3, 2, |_| {});
    cluster.start_brokers(&Brokers::Threads);
    cluster.start_replicas();
    let mut options = ClientOptions::load(&cluster.layout.config(), 0).unwrap();
    options.connect_timeout = PATIENCE;
    options.call_timeout = PATIENCE;
    let kv = KvClient::new(Client::connect(options).await.unwrap().session());
    let put = async |n: u32| {
        let put = kv.put(Bytes::from("key"), Bytes::from(n.to_string())).await;
        assert!(put.is_ok(), "{n}: {put:?}\n{}", cluster.logs());
    };
    put(0).await;
    // The backup host may come into the cluster later than the client: two hosts are enough for an answer.
    until(&cluster, ReplicaId::new(1, 0), |seen| {
        seen["executed"].as_u64() > Some(0)
    })
    .await;
    let (liar, sibling) = (ReplicaId::new(1, 1), ReplicaId::new(1, 0));
    cluster.act(liar, "wrong-result");
    for n in 1..20 {
        put(n).await;
    }
    let got = kv
        .get(Bytes::from("key"))
        .await
        .unwrap()
        .expect("it was written");
    assert_eq!(&got.value[..], b"19");

    let named = |seen: &serde_json::Value| {
        let mut events = seen["events"].as_array().into_iter().flatten();
        events.any(|event| event["kind"] == "culprit")
    };
    let seen = until(&cluster, sibling, named).await;
    assert!(seen["diverged"].as_u64() > Some(0), "{seen:#}");
    let totals = &seen["event_totals"];
    assert!(totals["divergence"].as_u64() > Some(0), "{totals}");
    let culprits: Vec<_> = seen["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["kind"] == "culprit")
        .collect();
    assert!(!culprits.is_empty(), "{seen:#}");
    for event in culprits {
        assert_eq!(
            (&event["host"], &event["twin"]),
            (&1.into(), &1.into()),
            "{event}"
        );
    }
    assert!(cluster.log(sibling).contains("\"kind\":\"culprit\""));
    assert_eq!(status(&cluster, liar).await["double"], "wrong-result");

    // Back to its senses: its host takes part again.
    cluster.act(liar, "off");
    put(20).await;
    let before = status(&cluster, sibling).await["cross_checked"]
        .as_u64()
        .unwrap();
    for n in 21..30 {
        put(n).await;
    }
    until(&cluster, sibling, |seen| {
        seen["cross_checked"].as_u64() > Some(before)
    })
    .await;

    // What was seen outlives the one who saw it.
    let before = status(&cluster, sibling).await["event_totals"]["culprit"].clone();
    cluster.kill(sibling);
    cluster.start_again(sibling);
    let seen = status(&cluster, sibling).await;
    assert_eq!(seen["event_totals"]["culprit"], before, "{seen:#}");
    assert!(named(&seen), "{seen:#}");
}

/// Asks a replica until its status is as wanted, for as long as anything may take.
async fn until(
    cluster: &Cluster,
    replica: ReplicaId,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let seen = status(cluster, replica).await;
        if wanted(&seen) {
            return seen;
        }
        assert!(std::time::Instant::now() < deadline, "{seen:#}");
    }
}
