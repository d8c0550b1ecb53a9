//! Real processes: a host whose broker lost its memory goes on from what its twins remember (protocol.md 8, HELLO).

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use support::{Brokers, Cluster, PATIENCE};
use twinbft_client::kv::{KvClient, KvError};
use twinbft_client::{Client, ClientOptions};

#[test]
#[ignore = "a broker for the tests of this file"]
fn broker_process() {
    support::run_broker();
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::create(3, 2, |config| {
        config.protocol.checkpoint_slots = 16;
        config.protocol.trim_entries = 64;
        // After such a loss the primary of the last view orders nothing: the others go on without it.
        config.protocol.suspect_after_ms = 500;
    });
    cluster.start_brokers(&Brokers::Myself);
    cluster.start_replicas();
    cluster
}

async fn client(cluster: &Cluster) -> Client {
    let mut options =
        ClientOptions::load(&cluster.layout.config(), 0).expect("the files are there");
    options.connect_timeout = PATIENCE;
    options.call_timeout = PATIENCE;
    Client::connect(options)
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()))
}

async fn write(cluster: &Cluster, client: &Client, first: u32, count: u32) {
    let kv = KvClient::new(client.session());
    for n in first..first + count {
        let put = kv
            .put(Bytes::from(format!("key-{n}")), Bytes::from(n.to_string()))
            .await;
        if put.is_err() {
            let mut states = String::new();
            for id in cluster.running() {
                let report = support::status(cluster, id).await;
                states += &format!("{id}: {report:#}\n");
            }
            panic!("{n}: {put:?}\n{states}{}", cluster.logs());
        }
    }
}

async fn read(cluster: &Cluster, client: &Client, end: u32) {
    let kv = KvClient::new(client.session());
    for n in 0..end {
        let got = kv.get(Bytes::from(format!("key-{n}"))).await;
        let got = got.unwrap_or_else(|error| panic!("{n}: {error}\n{}", cluster.logs()));
        assert_eq!(
            &got.expect("it was written").value[..],
            n.to_string().as_bytes()
        );
    }
}

#[tokio::test]
async fn a_whole_cluster_comes_back_with_what_was_written() {
    let mut cluster = cluster();
    let before = client(&cluster).await;
    write(&cluster, &before, 0, 50).await;
    read(&cluster, &before, 50).await;
    for host in 0..3 {
        cluster.kill_host(host);
    }
    for host in 0..3 {
        cluster.start_host_again(host);
    }
    let after = client(&cluster).await;
    write(&cluster, &after, 50, 40).await;
    read(&cluster, &after, 90).await;
}

/// All processes of a cluster are killed at once while eight sessions write: the twins of a host differ by what was under way.
/// Every write ends without an error, and what was acknowledged before is there.
#[tokio::test]
async fn a_whole_cluster_killed_under_load_comes_back() {
    const SESSIONS: u32 = 8;
    const WRITES: u32 = 60;
    let mut cluster = cluster();
    let client = client(&cluster).await;
    let acknowledged = Arc::new(AtomicU32::new(0));
    let writers: Vec<_> = (0..SESSIONS)
        .map(|session| {
            let kv = KvClient::new(client.session());
            let acknowledged = acknowledged.clone();
            tokio::spawn(async move {
                for n in 0..WRITES {
                    let key = Bytes::from(format!("key-{}", session * WRITES + n));
                    let value = Bytes::from((session * WRITES + n).to_string());
                    kv.put(key, value).await?;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, KvError>(())
            })
        })
        .collect();
    while acknowledged.load(Ordering::Relaxed) < SESSIONS * WRITES / 3 {
        tokio::task::yield_now().await;
    }
    for host in 0..3 {
        cluster.kill_host(host);
    }
    assert!(acknowledged.load(Ordering::Relaxed) < SESSIONS * WRITES);
    for host in 0..3 {
        cluster.start_host_again(host);
    }
    for writer in writers {
        let written = writer.await.expect("it does not panic");
        written.unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    }
    read(&cluster, &client, SESSIONS * WRITES).await;
}

#[tokio::test]
async fn a_host_comes_back_and_is_needed() {
    let mut cluster = cluster();
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 50).await;
    cluster.kill_host(1);
    cluster.start_host_again(1);
    write(&cluster, &client, 50, 10).await;
    for host in [1, 2] {
        assert_eq!(
            cluster
                .running()
                .iter()
                .filter(|id| id.host.0 == host)
                .count(),
            2
        );
    }
    cluster.kill_host(2);
    write(&cluster, &client, 60, 40).await;
    read(&cluster, &client, 100).await;
}
