//! Real processes: a twin that was killed comes back and its host needs it again (protocol.md 8).

mod support;

use std::path::PathBuf;

use bytes::Bytes;
use support::{Brokers, Cluster, PATIENCE, status};
use twinbft_client::kv::KvClient;
use twinbft_client::{Client, ClientOptions};
use twinbft_config::Durability;
use twinbft_replica::storage::{segment_numbers, segment_path};
use twinbft_types::ReplicaId;

const CHECKPOINT_SLOTS: u64 = 16;

/// Nobody keeps batches below the marks: who is behind fetches a state.
fn cluster(durability: Durability, checkpoint_slots: u64) -> Cluster {
    cluster_that_keeps(0, durability, checkpoint_slots)
}

fn cluster_that_keeps(
    retain_bytes: usize,
    durability: Durability,
    checkpoint_slots: u64,
) -> Cluster {
    let mut cluster = Cluster::create(3, 2, |config| {
        config.storage.durability = durability;
        config.storage.retain_bytes = retain_bytes;
        config.protocol.checkpoint_slots = checkpoint_slots;
        config.protocol.trim_entries = 64;
    });
    cluster.start_brokers(&Brokers::Threads);
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

/// Writes `count` keys from `first` on.
async fn write(cluster: &Cluster, client: &Client, first: u32, count: u32) {
    let kv = KvClient::new(client.session());
    for n in first..first + count {
        let put = kv
            .put(Bytes::from(format!("key-{n}")), Bytes::from(n.to_string()))
            .await;
        if put.is_err() {
            let mut states = String::new();
            for id in cluster.running() {
                let report = status(cluster, id).await;
                states += &format!(
                    "{id}: {} view {} accepted {} committed {} executed {} stable {} transfer {} footprint {} postbox {}\n",
                    report["state"],
                    report["view"],
                    report["accepted"],
                    report["committed"],
                    report["executed"],
                    report["stable"],
                    report["transfer"],
                    report["footprint"],
                    report["postbox"],
                );
            }
            panic!("{n}: {put:?}\n{states}{}", cluster.logs());
        }
    }
}

/// Reads all keys up to `end`, in order.
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

fn data(cluster: &Cluster, id: ReplicaId) -> PathBuf {
    cluster.layout.twin_data(id.host.0, id.twin.0)
}

/// With host 2 gone nothing is committed without both twins of host 1.
async fn only_hosts_0_and_1(cluster: &mut Cluster, client: &Client, first: u32) {
    for twin in 0..2 {
        cluster.kill(ReplicaId::new(2, twin));
    }
    write(cluster, client, first, 3 * 16).await;
    read(cluster, client, first + 3 * 16).await;
    for host in 0..2 {
        for twin in 0..2 {
            let status = status(cluster, ReplicaId::new(host, twin)).await;
            // With host 2 gone a primary may miss an acknowledgement; that is a wish and no more.
            let state = status["state"].as_str();
            assert!(
                matches!(state, Some("running" | "suspecting")),
                "{status:#}"
            );
            assert_eq!(status["diverged"], 0, "{status:#}");
        }
    }
}

async fn a_killed_twin_comes_back(durability: Durability, id: ReplicaId) {
    let mut cluster = cluster(durability, CHECKPOINT_SLOTS);
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 50).await;
    cluster.kill(id);
    cluster.start_again(id);
    write(&cluster, &client, 50, 10).await;
    only_hosts_0_and_1(&mut cluster, &client, 60).await;
}

#[tokio::test]
async fn a_killed_backup_comes_back_with_group_commit() {
    a_killed_twin_comes_back(Durability::Group, ReplicaId::new(1, 1)).await;
}

#[tokio::test]
async fn a_killed_backup_comes_back_with_every_promise_on_the_disk() {
    a_killed_twin_comes_back(Durability::Sync, ReplicaId::new(1, 0)).await;
}

#[tokio::test]
async fn a_killed_leader_comes_back() {
    a_killed_twin_comes_back(Durability::Group, ReplicaId::new(0, 0)).await;
}

#[tokio::test]
async fn a_killed_follower_comes_back() {
    a_killed_twin_comes_back(Durability::Group, ReplicaId::new(0, 1)).await;
}

/// Its promises are in the postbox's log, its slots with the others.
#[tokio::test]
async fn a_twin_without_files_comes_back_before_the_first_checkpoint() {
    let mut cluster = cluster(Durability::Memory, 128);
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 50).await;
    let id = ReplicaId::new(1, 1);
    cluster.kill(id);
    cluster.start_again(id);
    only_hosts_0_and_1(&mut cluster, &client, 50).await;
}

#[tokio::test]
async fn a_twin_whose_disk_was_wiped_comes_back_before_the_first_checkpoint() {
    let mut cluster = cluster(Durability::Group, 128);
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 50).await;
    let id = ReplicaId::new(1, 1);
    cluster.kill(id);
    std::fs::remove_dir_all(data(&cluster, id)).unwrap();
    cluster.start_again(id);
    only_hosts_0_and_1(&mut cluster, &client, 50).await;
    // And now from its new disk.
    cluster.kill(id);
    cluster.start_again(id);
    write(&cluster, &client, 98, 10).await;
    read(&cluster, &client, 108).await;
}

/// Its promises are in the postbox's log, its state with the others.
async fn a_wiped_twin_fetches_a_checkpoint(durability: Durability) {
    let mut cluster = cluster(durability, CHECKPOINT_SLOTS);
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 100).await;
    let id = ReplicaId::new(1, 1);
    cluster.kill(id);
    if durability != Durability::Memory {
        std::fs::remove_dir_all(data(&cluster, id)).unwrap();
    }
    cluster.start_again(id);
    only_hosts_0_and_1(&mut cluster, &client, 100).await;
    let report = status(&cluster, id).await;
    assert_eq!(report["transfers"], 1, "{report:#}");
    cluster.kill(id);
    cluster.start_again(id);
    write(&cluster, &client, 148, 10).await;
    read(&cluster, &client, 158).await;
}

#[tokio::test]
async fn a_twin_whose_disk_was_wiped_fetches_a_checkpoint() {
    a_wiped_twin_fetches_a_checkpoint(Durability::Group).await;
}

#[tokio::test]
async fn a_twin_without_files_fetches_a_checkpoint() {
    a_wiped_twin_fetches_a_checkpoint(Durability::Memory).await;
}

/// A host that was away for more than two checkpoints takes over the state of the others, and counts again.
#[tokio::test]
async fn a_host_that_was_away_fetches_a_state_and_jumps() {
    a_host_that_was_away_catches_up(0, "transfers").await;
}

/// Or it goes from checkpoint to checkpoint by the batches that the others have kept.
#[tokio::test]
async fn a_host_that_was_away_executes_what_it_missed() {
    a_host_that_was_away_catches_up(64 << 20, "bridges").await;
}

async fn a_host_that_was_away_catches_up(retain_bytes: usize, how: &str) {
    let mut cluster = cluster_that_keeps(retain_bytes, Durability::Group, CHECKPOINT_SLOTS);
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 20).await;
    for twin in 0..2 {
        cluster.kill(ReplicaId::new(2, twin));
    }
    write(&cluster, &client, 20, 100).await;
    for twin in 0..2 {
        cluster.start_again(ReplicaId::new(2, twin));
    }
    // Under load until both have caught up.
    let mut end = 120;
    loop {
        write(&cluster, &client, end, 5).await;
        end += 5;
        let mut behind = 0;
        for twin in 0..2 {
            let report = status(&cluster, ReplicaId::new(2, twin)).await;
            behind += u32::from(report["accepted"].as_u64() < Some(u64::from(end)));
        }
        if behind == 0 {
            break;
        }
    }
    for twin in 0..2 {
        let report = status(&cluster, ReplicaId::new(2, twin)).await;
        assert!(report[how].as_u64() >= Some(1), "{report:#}");
        cluster.kill(ReplicaId::new(1, twin));
    }
    write(&cluster, &client, end, 40).await;
    read(&cluster, &client, end + 40).await;
}

/// A bit of a write-ahead log has turned: file and offset are named, nothing of that log is applied, and doing what the error
/// says makes it good.
#[tokio::test]
async fn a_damaged_write_ahead_log_is_named_and_the_others_make_it_good() {
    let mut cluster = cluster(Durability::Group, CHECKPOINT_SLOTS);
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 50).await;
    let id = ReplicaId::new(1, 1);
    cluster.kill(id);
    let log = data(&cluster, id).join("wal");
    let numbers = segment_numbers(&log).unwrap();
    let path = segment_path(&log, numbers[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let output = cluster.replica_command(id).output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let named = format!("{} is damaged at offset", path.display());
    for part in [&*named, "move the data directory away"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // It has changed nothing.
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    write(&cluster, &client, 50, 10).await;
    std::fs::rename(data(&cluster, id), cluster.directory.path().join("away")).unwrap();
    cluster.start_again(id);
    only_hosts_0_and_1(&mut cluster, &client, 60).await;
}

#[tokio::test]
async fn every_twin_is_killed_in_turn() {
    let mut cluster = cluster(Durability::Group, CHECKPOINT_SLOTS);
    let client = client(&cluster).await;
    let mut end = 0;
    for id in cluster.ids() {
        write(&cluster, &client, end, 20).await;
        end += 20;
        cluster.kill(id);
        cluster.start_again(id);
    }
    read(&cluster, &client, end).await;
}
