//! Real processes: what is written is read, a graceful stop is one, and who does not belong is refused by name.

mod support;

use bytes::Bytes;
use support::{Brokers, Cluster, PATIENCE, status};
use twinbft_client::kv::KvClient;
use twinbft_client::{Client, ClientOptions};
use twinbft_config::Durability;
use twinbft_types::ReplicaId;

async fn client(cluster: &Cluster) -> Client {
    let mut options =
        ClientOptions::load(&cluster.layout.config(), 0).expect("the files are there");
    options.connect_timeout = PATIENCE;
    options.call_timeout = PATIENCE;
    Client::connect(options)
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()))
}

async fn write_and_read(durability: Durability) {
    let mut cluster = Cluster::create(3, 2, |config| config.storage.durability = durability);
    cluster.start_brokers(&Brokers::Threads);
    cluster.start_replicas();
    let client = client(&cluster).await;
    let kv = KvClient::new(client.session());
    let put = kv.put(Bytes::from("key"), Bytes::from("value")).await;
    assert!(put.is_ok(), "{put:?}\n{}", cluster.logs());
    let got = kv
        .get(Bytes::from("key"))
        .await
        .unwrap()
        .expect("it was written");
    assert_eq!(&got.value[..], b"value");
    let (fast, _) = kv.get_fast(Bytes::from("key")).await.unwrap();
    assert_eq!(&fast.expect("it was written").value[..], b"value");
    for id in cluster.ids() {
        let status = status(&cluster, id).await;
        assert_eq!(
            (&status["host"], &status["twin"]),
            (&id.host.0.into(), &id.twin.0.into())
        );
        assert_eq!(status["state"], "running", "{status:#}");
        assert_eq!(status["diverged"], 0);
    }
    for id in cluster.ids() {
        let ended = cluster.terminate(id);
        assert!(ended.success(), "{id}: {ended}\n{}", cluster.log(id));
    }
}

#[tokio::test]
async fn a_write_is_read_back_without_files() {
    write_and_read(Durability::Memory).await;
}

#[tokio::test]
async fn a_write_is_read_back_with_group_commit() {
    write_and_read(Durability::Group).await;
}

#[tokio::test]
async fn a_write_is_read_back_with_every_promise_on_the_disk() {
    write_and_read(Durability::Sync).await;
}

#[tokio::test]
async fn many_requests_pass_checkpoints_and_trims() {
    let mut cluster = Cluster::create(3, 2, |config| {
        config.storage.durability = Durability::Group;
        config.protocol.checkpoint_slots = 16;
        config.protocol.trim_entries = 64;
    });
    cluster.start_brokers(&Brokers::Threads);
    cluster.start_replicas();
    let client = client(&cluster).await;
    let kv = KvClient::new(client.session());
    for n in 0..200u32 {
        let put = kv
            .put(
                Bytes::from(format!("key-{}", n % 10)),
                Bytes::from(n.to_string()),
            )
            .await;
        assert!(put.is_ok(), "{n}: {put:?}\n{}", cluster.logs());
    }
    let status = status(&cluster, ReplicaId::new(0, 0)).await;
    assert!(status["stable"].as_u64() >= Some(160), "{status:#}");
    assert!(status["postbox"]["head"].as_u64() > Some(0), "{status:#}");
    assert_eq!(status["diverged"], 0);
}

#[test]
fn all_mistakes_of_the_configuration_are_reported_at_once() {
    let cluster = Cluster::create(3, 2, |_| {});
    let text = std::fs::read_to_string(cluster.layout.config()).unwrap();
    let text = text
        .replace("session_window", "session_windov")
        .replace("key_epoch", "key_epok");
    std::fs::write(cluster.layout.config(), text).unwrap();
    let output = cluster
        .replica_command(ReplicaId::new(0, 0))
        .output()
        .expect("the replica's binary");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(
        said.contains("session_windov") && said.contains("key_epok"),
        "{said}"
    );
}

#[test]
fn a_key_file_that_others_can_read_stops_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::create(3, 2, |_| {});
    let key = cluster.layout.twin_key(1, 0);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = cluster
        .replica_command(ReplicaId::new(1, 0))
        .output()
        .expect("the replica's binary");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("chmod 600 {}", key.display())),
        "{said}"
    );
}
