//! A whole cluster of real processes: replicas as child processes, brokers as threads of the test.

#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postbox_broker::BrokerOptions;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use twinbft_config::{ClusterConfig, Layout};
use twinbft_types::{ReplicaId, SecretKey};

/// Longer than anything takes on a loaded machine; only a failure waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster in a temporary directory.
pub struct Cluster {
    pub directory: tempfile::TempDir,
    pub layout: Layout,
    pub config: ClusterConfig,
    replicas: Vec<(ReplicaId, Child)>,
    brokers: Vec<Child>,
}

/// How brokers run.
pub enum Brokers {
    /// As threads of this process.
    Threads,
    /// As processes of this binary.
    Processes(PathBuf),
    /// As processes of the test's own binary, which has a test `broker_process` that calls [`run_broker`].
    Myself,
}

const BROKER_ARGUMENTS: &str = "BROKER_ARGUMENTS";

/// A broker's command line.
fn arguments(options: &BrokerOptions) -> Vec<String> {
    let limits = &options.limits;
    let pairs = [
        ("--dir", options.dir.display().to_string()),
        ("--state-dir", options.state_dir.display().to_string()),
        ("--cluster-id", options.cluster_id.clone()),
        ("--host", options.host.to_string()),
        ("--twins", limits.twins.to_string()),
        ("--log-bytes", limits.log_bytes.to_string()),
        ("--entry-bytes-max", limits.entry_bytes_max.to_string()),
        ("--state-bytes-max", limits.state_bytes_max.to_string()),
        ("--trim-every", limits.trim_every.to_string()),
        ("--spin-us", options.spin_us.to_string()),
    ];
    pairs
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

/// Is the broker that [`Brokers::Myself`] asked for.
pub fn run_broker() {
    let Ok(arguments) = std::env::var(BROKER_ARGUMENTS) else {
        return;
    };
    let arguments = std::iter::once("postbox-broker").chain(arguments.lines());
    let options = match postbox_broker::parse(arguments.map(Into::into)) {
        Ok(postbox_broker::Command::Run(options)) => *options,
        Ok(_) | Err(_) => panic!("the arguments are those of a broker"),
    };
    let ended = postbox_broker::start(options).and_then(|mut broker| broker.run());
    ended.expect("a broker ends by a signal");
}

fn secret_file(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a fresh directory");
    fs::write(path, text).expect("a fresh directory");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("our own file");
}

fn free_ports(count: usize) -> Vec<u16> {
    // All are held until all are known, so that they differ.
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    held.iter()
        .map(|listener| listener.local_addr().expect("it is bound").port())
        .collect()
}

impl Cluster {
    /// Writes all files. Nothing runs yet.
    pub fn create(hosts: u8, twins: u8, edit: impl FnOnce(&mut ClusterConfig)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(directory.path());
        let mut config = ClusterConfig::example(hosts, twins, 2, 7000);
        // Tests share the machine: a twin that waits for a processor is not suspected, unless the test says so.
        config.protocol.suspect_after_ms = 20_000;
        edit(&mut config);
        let mut ports = free_ports(usize::from(hosts) * usize::from(twins)).into_iter();
        let mut serial = 0u8;
        let mut key = |path: PathBuf, public: &mut String| {
            serial += 1;
            let secret = SecretKey::from_bytes([serial; 32]);
            *public = secret.public().to_string();
            secret_file(&path, &secret.to_hex());
        };
        for host in &mut config.hosts {
            for twin in &mut host.twins {
                twin.listen.set_port(ports.next().expect("one for each"));
                key(layout.twin_key(host.id, twin.id), &mut twin.public_key);
            }
        }
        for client in &mut config.clients {
            key(layout.client_key(client.id), &mut client.public_key);
        }
        for admin in &mut config.admins {
            key(layout.admin_key(admin.id), &mut admin.public_key);
        }
        certificates(&layout, &config);
        for host in &config.hosts {
            let broker = directory.path().join(format!("data/h{}-broker", host.id));
            secret_file(&broker.join("genesis"), &config.cluster.id);
            for twin in &host.twins {
                let mark = layout.twin_data(host.id, twin.id).join("genesis");
                secret_file(&mark, &config.cluster.id);
            }
        }
        fs::write(layout.config(), config.to_toml()).expect("a fresh directory");
        Self {
            directory,
            layout,
            config,
            replicas: Vec::new(),
            brokers: Vec::new(),
        }
    }

    /// The broker options of a host.
    fn broker_options(&self, host: u8) -> BrokerOptions {
        let mut options = BrokerOptions::new(
            self.layout.host_run(host),
            self.directory.path().join(format!("data/h{host}-broker")),
            self.config.cluster.id.clone(),
            u32::from(host),
            self.config.twin_count(),
        );
        let postbox = &self.config.postbox;
        options.record_dir = self.layout.host_record(postbox, host);
        options.limits.log_bytes = postbox.log_bytes;
        options.limits.entry_bytes_max = postbox.entry_bytes_max;
        options.limits.state_bytes_max = postbox.state_bytes_max;
        options.limits.trim_every = twinbft_config::TRIM_MULTIPLE;
        options.spin_us = u32::try_from(postbox.spin_us).expect("small");
        options
    }

    /// Starts all brokers.
    pub fn start_brokers(&mut self, how: &Brokers) {
        self.start_brokers_of(0..=self.config.host_count() - 1, how);
    }

    fn start_brokers_of(&mut self, hosts: std::ops::RangeInclusive<u8>, how: &Brokers) {
        for host in hosts {
            let options = self.broker_options(host);
            match how {
                Brokers::Threads => {
                    // A broker blocks signals on its thread.
                    std::thread::spawn(move || {
                        postbox_broker::start(options).and_then(|mut b| b.run())
                    });
                }
                Brokers::Processes(binary) => {
                    let child = Command::new(binary).args(arguments(&options)).spawn();
                    let child = child.expect("the broker's binary");
                    self.brokers.push(child);
                }
                Brokers::Myself => {
                    let arguments = arguments(&options).join("\n");
                    let child = Command::new(std::env::current_exe().expect("it runs"))
                        .args(["broker_process", "--exact", "--ignored", "--nocapture"])
                        .env(BROKER_ARGUMENTS, arguments)
                        .stdout(Stdio::null())
                        .spawn()
                        .expect("this binary");
                    self.brokers.push(child);
                }
            }
        }
    }

    /// The command that starts a replica.
    pub fn replica_command(&self, id: ReplicaId) -> Command {
        // Benchmarks compare builds.
        let other = std::env::var_os("REPLICA_BINARY");
        let binary = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_twinbft-replica").into());
        let mut command = Command::new(binary);
        command
            .arg("--config")
            .arg(self.layout.config())
            .args(["--host", &id.host.0.to_string()])
            .args(["--twin", &id.twin.0.to_string()])
            .args(["--log-format", "json"])
            .stdin(Stdio::null());
        command
    }

    /// All replicas.
    pub fn ids(&self) -> Vec<ReplicaId> {
        let twins = 0..self.config.twin_count();
        (0..self.config.host_count())
            .flat_map(|host| twins.clone().map(move |twin| ReplicaId::new(host, twin)))
            .collect()
    }

    /// Starts all replicas and waits until each says that it is ready.
    pub fn start_replicas(&mut self) {
        let path = self.directory.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("a fresh directory");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        for id in self.ids() {
            let log = fs::File::create(self.log_path(id)).expect("a fresh directory");
            let child = self
                .replica_command(id)
                .env("NOTIFY_SOCKET", &path)
                .stderr(log)
                .spawn();
            self.replicas
                .push((id, child.expect("the replica's binary")));
        }
        let mut ready = 0;
        let mut bytes = [0; 4096];
        while ready < self.replicas.len() {
            let count = socket
                .recv(&mut bytes)
                .unwrap_or_else(|_| panic!("not ready:\n{}", self.logs()));
            let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
            ready += usize::from(message.lines().any(|line| line == "READY=1"));
        }
    }

    /// Starts one replica again and waits until it says that it is ready.
    pub fn start_again(&mut self, id: ReplicaId) {
        let path = self.directory.path().join("notify-again.sock");
        let _none_before = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("our own directory");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let log = fs::File::options()
            .append(true)
            .open(self.log_path(id))
            .expect("it ran before");
        let child = self
            .replica_command(id)
            .env("NOTIFY_SOCKET", &path)
            .stderr(log)
            .spawn();
        self.replicas
            .push((id, child.expect("the replica's binary")));
        let mut bytes = [0; 4096];
        loop {
            let count = socket
                .recv(&mut bytes)
                .unwrap_or_else(|_| panic!("not ready:\n{}", self.log(id)));
            let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
            if message.lines().any(|line| line == "READY=1") {
                return;
            }
        }
    }

    /// The replicas that run.
    pub fn running(&self) -> Vec<ReplicaId> {
        self.replicas.iter().map(|(id, _)| *id).collect()
    }

    /// Ends a replica as a crash does: SIGKILL.
    pub fn kill(&mut self, id: ReplicaId) {
        let at = self.replicas.iter().position(|(known, _)| *known == id);
        let (_, mut child) = self.replicas.remove(at.expect("it runs"));
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    fn log_path(&self, id: ReplicaId) -> PathBuf {
        self.directory
            .path()
            .join(format!("h{}t{}.log", id.host.0, id.twin.0))
    }

    /// What the replicas logged, for the message of a failed test.
    pub fn logs(&self) -> String {
        self.ids()
            .into_iter()
            .map(|id| {
                format!(
                    "--- {id}\n{}",
                    fs::read_to_string(self.log_path(id)).unwrap_or_default()
                )
            })
            .collect()
    }

    /// What one replica logged.
    pub fn log(&self, id: ReplicaId) -> String {
        fs::read_to_string(self.log_path(id)).expect("it was started")
    }

    /// Sends SIGTERM to a replica and gives its exit status.
    pub fn terminate(&mut self, id: ReplicaId) -> std::process::ExitStatus {
        let at = self
            .replicas
            .iter()
            .position(|(known, _)| *known == id)
            .expect("it runs");
        let (_, mut child) = self.replicas.remove(at);
        let killed = Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .expect("kill(1)");
        assert!(killed.success());
        child.wait().expect("our own child")
    }

    /// The process of a replica.
    pub fn pid(&self, id: ReplicaId) -> u32 {
        self.replicas
            .iter()
            .find(|(known, _)| *known == id)
            .expect("it runs")
            .1
            .id()
    }

    /// Ends a host as a power failure does, but for its disks: SIGKILL to its twins and its broker.
    pub fn kill_host(&mut self, host: u8) {
        for id in self.running() {
            if id.host.0 == host {
                self.kill(id);
            }
        }
        let broker = &mut self.brokers[usize::from(host)];
        broker.kill().expect("our own child");
        broker.wait().expect("our own child");
    }

    /// Starts the broker of a host again, which has forgotten its log, and the twins.
    pub fn start_host_again(&mut self, host: u8) {
        let all = std::mem::take(&mut self.brokers);
        self.start_brokers_of(host..=host, &Brokers::Myself);
        let fresh = self.brokers.pop().expect("just started");
        self.brokers = all;
        self.brokers[usize::from(host)] = fresh;
        for id in self.ids() {
            if id.host.0 == host {
                self.start_again(id);
            }
        }
    }

    /// Processes of the brokers, if they are any.
    pub fn broker_pids(&self) -> Vec<u32> {
        self.brokers.iter().map(Child::id).collect()
    }

    /// Tells a replica to misbehave, or to stop it.
    pub fn act(&self, id: ReplicaId, double: &str) {
        let path = self
            .layout
            .host_run(id.host.0)
            .join(format!("twin-{}.control", id.twin.0));
        let mut stream = UnixStream::connect(path).expect("built with doubles");
        writeln!(stream, "byzantine {double}").expect("it listens");
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .expect("it answers");
        assert_eq!(answer, "ok\n");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let children = self
            .replicas
            .iter_mut()
            .map(|(_, child)| child)
            .chain(&mut self.brokers);
        for child in children {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

fn certificates(layout: &Layout, config: &ClusterConfig) {
    let ca_key = KeyPair::generate().expect("randomness");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = params.self_signed(&ca_key).expect("a valid certificate");
    fs::create_dir_all(layout.tls()).expect("a fresh directory");
    fs::write(layout.tls_ca(&config.tls), ca.pem()).expect("a fresh directory");
    let issuer = Issuer::new(params, ca_key);
    let sign = |name: &str, (certificate, key): (PathBuf, PathBuf)| {
        let own = KeyPair::generate().expect("randomness");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let signed = params
            .signed_by(&own, &issuer)
            .expect("a valid certificate");
        fs::write(certificate, signed.pem()).expect("a fresh directory");
        secret_file(&key, &own.serialize_pem());
    };
    for host in &config.hosts {
        for twin in &host.twins {
            sign(
                &config.twin_tls_name(host.id, twin.id),
                layout.twin_tls(host.id, twin.id),
            );
        }
    }
    for client in &config.clients {
        sign(
            &config.client_tls_name(client.id),
            layout.client_tls(client.id),
        );
    }
    for admin in &config.admins {
        sign(&config.admin_tls_name(admin.id), layout.admin_tls(admin.id));
    }
}

/// Asks a replica for its state, as administrator 0.
pub async fn status(cluster: &Cluster, id: ReplicaId) -> serde_json::Value {
    use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
    use twinbft_types::wire::pb;
    let read = |path: PathBuf| fs::read(path).expect("made above");
    let (certificate, key) = cluster.layout.admin_tls(0);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(
            cluster.layout.tls_ca(&cluster.config.tls),
        )))
        .identity(Identity::from_pem(read(certificate), read(key)))
        .domain_name(cluster.config.twin_tls_name(id.host.0, id.twin.0));
    let address = cluster
        .config
        .twin(id.host.0, id.twin.0)
        .expect("it is in the file")
        .listen;
    let channel = Endpoint::from_shared(format!("https://{address}"))
        .and_then(|endpoint| endpoint.tls_config(tls))
        .expect("a valid address")
        .connect()
        .await
        .expect("the replica listens");
    let mut client = pb::twin_bft_client::TwinBftClient::new(channel);
    let reply = client
        .status(pb::StatusRequest {})
        .await
        .expect("administrators may ask");
    serde_json::from_str(&reply.into_inner().json).expect("it is JSON")
}
