//! A primary host dies under load: no client sees an error, nothing is lost, and the next host takes over (protocol.md 6).

mod support;

use bytes::Bytes;
use support::{Brokers, Cluster, PATIENCE, status};
use tokio::sync::watch;
use twinbft_client::kv::KvClient;
use twinbft_client::{Client, ClientOptions};
use twinbft_config::Execution;
use twinbft_types::ReplicaId;

async fn client(cluster: &Cluster, number: u32) -> Client {
    let mut options =
        ClientOptions::load(&cluster.layout.config(), number).expect("the files are there");
    options.connect_timeout = PATIENCE;
    options.call_timeout = PATIENCE;
    Client::connect(options)
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()))
}

/// Writes numbers under one key until it is told to stop; answers with the last one that was acknowledged.
async fn write_on(
    kv: KvClient,
    key: String,
    mut stop: watch::Receiver<bool>,
) -> Result<u64, String> {
    let mut number = 0;
    while !*stop.borrow_and_update() {
        number += 1;
        kv.put(Bytes::from(key.clone()), Bytes::from(number.to_string()))
            .await
            .map_err(|error| format!("{key} = {number}: {error}"))?;
    }
    Ok(number)
}

async fn value(kv: &KvClient, key: &str) -> String {
    let found = kv
        .get(Bytes::from(key.to_owned()))
        .await
        .expect("a live cluster");
    String::from_utf8(found.expect("it was written").value.to_vec()).expect("a number")
}

/// Kills `dead` under the load of several sessions and goes on until the view has changed and more was written.
async fn survives(dead: &[ReplicaId], execution: Execution) {
    let mut cluster = Cluster::create(3, 2, |config| {
        config.protocol.execution = execution;
        config.protocol.suspect_after_ms = 500;
        config.protocol.checkpoint_slots = 32;
    });
    cluster.start_brokers(&Brokers::Threads);
    cluster.start_replicas();
    let client = client(&cluster, 0).await;
    let (tell, stop) = watch::channel(false);
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let kv = KvClient::new(client.session());
            tokio::spawn(write_on(kv, format!("writer-{n}"), stop.clone()))
        })
        .collect();
    let kv = KvClient::new(client.session());
    let put = |key: &'static str| kv.put(Bytes::from(key), Bytes::from("1"));
    put("before")
        .await
        .unwrap_or_else(|e| panic!("{e}\n{}", cluster.logs()));
    for id in dead {
        cluster.kill(*id);
    }
    // Answered only by a host that took over.
    put("after")
        .await
        .unwrap_or_else(|e| panic!("{e}\n{}", cluster.logs()));
    tell.send(true).expect("the writers listen");
    for (n, writer) in writers.into_iter().enumerate() {
        let last = writer.await.expect("no panic");
        let last = last.unwrap_or_else(|e| panic!("{e}\n{}", cluster.logs()));
        assert!(last > 0, "writer {n} wrote nothing");
        assert_eq!(value(&kv, &format!("writer-{n}")).await, last.to_string());
    }
    assert_eq!(value(&kv, "before").await, "1");
    let new_leader = status(&cluster, ReplicaId::new(1, 0)).await;
    assert!(new_leader["view"].as_u64() >= Some(1), "{new_leader:#}");
    assert!(
        new_leader["view_changes"].as_u64() >= Some(1),
        "{new_leader:#}"
    );
    assert_eq!(new_leader["diverged"], 0);
}

#[tokio::test]
async fn the_primary_host_dies_and_no_client_sees_an_error() {
    survives(
        &[ReplicaId::new(0, 0), ReplicaId::new(0, 1)],
        Execution::Committed,
    )
    .await;
}

/// Protocol.md 4.7: what the dead primary had executed alone is nobody's; what a client was told stays.
#[tokio::test]
async fn the_primary_host_dies_under_tentative_execution() {
    survives(
        &[ReplicaId::new(0, 0), ReplicaId::new(0, 1)],
        Execution::Tentative,
    )
    .await;
}

/// With two twins a host is silent when one of them is, whichever it is.
#[tokio::test]
async fn a_follower_of_the_primary_dies_and_its_host_is_replaced() {
    survives(&[ReplicaId::new(0, 1)], Execution::Committed).await;
}
