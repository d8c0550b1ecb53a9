//! Real processes: a host that may have forgotten what it promised takes a new incarnation, learns from the others where
//! they are, and takes part again (protocol.md 8, last row).

mod support;

use std::fs;

use bytes::Bytes;
use support::{Brokers, Cluster, PATIENCE, status};
use twinbft_client::kv::KvClient;
use twinbft_client::{Client, ClientOptions};
use twinbft_config::Durability;
use twinbft_types::ReplicaId;

#[test]
#[ignore = "a broker for the tests of this file"]
fn broker_process() {
    support::run_broker();
}

fn cluster(durability: Durability) -> Cluster {
    let mut cluster = Cluster::create(3, 2, |config| {
        config.storage.durability = durability;
        config.protocol.checkpoint_slots = 16;
        config.protocol.trim_entries = 64;
        // The primary host may be the one that is lost.
        config.protocol.suspect_after_ms = 1_000;
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

async fn states(cluster: &Cluster) -> String {
    let mut states = String::new();
    for id in cluster.running() {
        let report = status(cluster, id).await;
        states += &format!(
            "{id}: {} view {} accepted {} committed {} executed {} stable {} incarnation {} transfer {} faults {} postbox {}\n",
            report["state"],
            report["view"],
            report["accepted"],
            report["committed"],
            report["executed"],
            report["stable"],
            report["incarnation"],
            report["transfer"],
            report["faults"],
            report["postbox"],
        );
    }
    states
}

async fn write(cluster: &Cluster, client: &Client, first: u32, count: u32) {
    let kv = KvClient::new(client.session());
    for n in first..first + count {
        let put = kv
            .put(Bytes::from(format!("key-{n}")), Bytes::from(n.to_string()))
            .await;
        if put.is_err() {
            panic!("{n}: {put:?}\n{}{}", states(cluster).await, cluster.logs());
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

/// As a machine does that lost its disks: the twins' directories, the broker's, its log.
fn wipe(cluster: &Cluster, host: u8) {
    for twin in 0..2 {
        fs::remove_dir_all(cluster.layout.twin_data(host, twin)).expect("it was there");
    }
    let broker = cluster
        .directory
        .path()
        .join(format!("data/h{host}-broker"));
    fs::remove_dir_all(broker).expect("it was there");
}

/// As after a power failure: the last start was of another boot.
fn reboot(cluster: &Cluster, host: u8) {
    for twin in 0..2 {
        let mark = cluster.layout.twin_data(host, twin).join("boot");
        fs::write(mark, "another boot").expect("it was there");
    }
}

/// Under load until both twins of `host` take part under this incarnation. Answers where the writes ended.
async fn write_until_it_is_back(
    cluster: &Cluster,
    client: &Client,
    first: u32,
    host: u8,
    incarnation: u64,
) -> u32 {
    let mut end = first;
    loop {
        write(cluster, client, end, 5).await;
        end += 5;
        let mut back = 0;
        for twin in 0..2 {
            let report = status(cluster, ReplicaId::new(host, twin)).await;
            let takes_part = report["state"] == "running" || report["state"] == "suspecting";
            if takes_part {
                assert_eq!(report["incarnation"], incarnation, "{report:#}");
                back += 1;
            }
        }
        if back == 2 {
            return end;
        }
        assert!(
            end < first + 5_000,
            "host {host} is not back\n{}{}",
            states(cluster).await,
            cluster.logs()
        );
    }
}

/// Nothing is committed without `host` from here on.
async fn it_is_needed(cluster: &mut Cluster, client: &Client, gone: u8, end: u32) {
    cluster.kill_host(gone);
    write(cluster, client, end, 40).await;
    read(cluster, client, end + 40).await;
    for id in cluster.running() {
        let report = status(cluster, id).await;
        assert_eq!(report["diverged"], 0, "{report:#}");
    }
}

async fn a_lost_host_comes_back(durability: Durability, lost: u8, lose: fn(&Cluster, u8)) {
    let mut cluster = cluster(durability);
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 50).await;
    cluster.kill_host(lost);
    lose(&cluster, lost);
    write(&cluster, &client, 50, 10).await;
    cluster.start_host_again(lost);
    let end = write_until_it_is_back(&cluster, &client, 60, lost, 1).await;
    it_is_needed(&mut cluster, &client, 2, end).await;
}

#[tokio::test]
async fn a_wiped_backup_host_comes_back_under_load() {
    a_lost_host_comes_back(Durability::Group, 1, wipe).await;
}

#[tokio::test]
async fn a_wiped_primary_host_comes_back_under_load() {
    a_lost_host_comes_back(Durability::Sync, 0, wipe).await;
}

/// Promises of the last moments may not have reached the disk.
#[tokio::test]
async fn a_host_whose_machine_restarted_comes_back_with_group_commit() {
    a_lost_host_comes_back(Durability::Group, 1, reboot).await;
}

#[tokio::test]
async fn a_killed_host_that_keeps_nothing_on_disk_comes_back() {
    a_lost_host_comes_back(Durability::Memory, 1, |_, _| {}).await;
}

/// The sibling remembers everything; what the lost disk held, nobody knows.
#[tokio::test]
async fn a_host_with_one_disk_lost_and_its_log_comes_back() {
    let wipe_one = |cluster: &Cluster, host| {
        fs::remove_dir_all(cluster.layout.twin_data(host, 0)).expect("it was there");
    };
    a_lost_host_comes_back(Durability::Sync, 1, wipe_one).await;
}

/// Its second incarnation is another one, and a whole cluster that comes back from its disks still knows.
#[tokio::test]
async fn a_host_is_lost_twice_and_then_the_whole_cluster_killed() {
    let mut cluster = cluster(Durability::Group);
    let before = client(&cluster).await;
    let mut end = 20;
    write(&cluster, &before, 0, end).await;
    for incarnation in 1..=2 {
        cluster.kill_host(1);
        wipe(&cluster, 1);
        cluster.start_host_again(1);
        end = write_until_it_is_back(&cluster, &before, end, 1, incarnation).await;
    }
    for host in 0..3 {
        cluster.kill_host(host);
    }
    for host in 0..3 {
        cluster.start_host_again(host);
    }
    let after = client(&cluster).await;
    write(&cluster, &after, end, 20).await;
    read(&cluster, &after, end + 20).await;
    for twin in 0..2 {
        let report = status(&cluster, ReplicaId::new(1, twin)).await;
        assert_eq!(report["incarnation"], 2, "{report:#}");
    }
}

/// Its twins are killed one after the other while it asks: what they have said in its new log is their memory.
#[tokio::test]
async fn a_wiped_host_comes_back_though_its_twins_die_meanwhile() {
    let mut cluster = cluster(Durability::Group);
    let client = client(&cluster).await;
    write(&cluster, &client, 0, 50).await;
    cluster.kill_host(1);
    wipe(&cluster, 1);
    // Nobody answers yet: both others would have to.
    cluster.kill_host(2);
    cluster.start_host_again(1);
    for twin in 0..2 {
        let id = ReplicaId::new(1, twin);
        cluster.kill(id);
        cluster.start_again(id);
    }
    cluster.start_host_again(2);
    let end = write_until_it_is_back(&cluster, &client, 50, 1, 1).await;
    it_is_needed(&mut cluster, &client, 2, end).await;
}

/// A power failure in the whole room, and durability "group": nobody can say that it has all its promises, so nobody speaks.
/// What is on the disks is whole here; an operator says so.
#[tokio::test]
async fn a_cluster_that_forgot_all_at_once_is_recovered_by_an_operator() {
    let mut cluster = cluster(Durability::Group);
    let before = client(&cluster).await;
    write(&cluster, &before, 0, 40).await;
    for host in 0..3 {
        cluster.kill_host(host);
        reboot(&cluster, host);
    }
    fs::remove_dir_all(cluster.layout.twin_data(1, 0)).expect("it was there");
    for host in 0..3 {
        cluster.start_host_again(host);
    }
    let memories = [
        ["unsure", "unsure"],
        ["lost", "unsure"],
        ["unsure", "unsure"],
    ];
    for id in cluster.ids() {
        let report = status(&cluster, id).await;
        let memory = memories[usize::from(id.host.0)][usize::from(id.twin.0)];
        assert_eq!(report["memory"], memory, "{report:#}");
        assert!(
            report["state"] == "has-forgotten" || report["state"] == "recovering",
            "{report:#}"
        );
    }
    // As `twinbft recover` writes it, for the two hosts that have all their disks; the third comes back by itself.
    for host in 0..3 {
        cluster.kill_host(host);
    }
    for host in [0, 2] {
        for twin in 0..2 {
            let text = format!(
                "cluster {}\ntwin h{host}/t{twin}\nafter 1\nat 1\nby root\nreason a test\n",
                cluster.config.cluster.id
            );
            let data = cluster.layout.twin_data(host, twin);
            fs::write(data.join("recover"), text).expect("it is there");
        }
    }
    for host in 0..3 {
        cluster.start_host_again(host);
    }
    let after = client(&cluster).await;
    write(&cluster, &after, 40, 20).await;
    read(&cluster, &after, 60).await;
    write_until_it_is_back(&cluster, &after, 60, 1, 1).await;
}
