//! What stands in `cluster.toml`.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A valid `cluster.toml`.
///
/// Invariant: what [`ClusterConfig::parse`] returns has hosts `0..N` in order, each with the same number of
/// twins `0..m` in order, clients and administrators `0..` in order, and no key, name or address twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// `[cluster]`.
    pub cluster: Cluster,
    /// `[protocol]`.
    pub protocol: Protocol,
    /// `[storage]`.
    pub storage: Storage,
    /// `[service]`.
    pub service: Service,
    /// `[postbox]`.
    pub postbox: Postbox,
    /// `[evidence]`.
    pub evidence: Evidence,
    /// `[tls]`.
    pub tls: Tls,
    /// `[[host]]`, by id.
    pub hosts: Vec<Host>,
    /// `[[client]]`, by id.
    pub clients: Vec<Client>,
    /// `[[admin]]`, by id.
    pub admins: Vec<Admin>,
}

/// `[cluster]`: which cluster this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Part of every MAC key and TLS name: 1 to 40 of `a-z`, `0-9` and `-`.
    pub id: String,
    /// Part of every MAC key; grows when keys are changed.
    pub key_epoch: u32,
}

/// When a slot is executed (protocol.md 4.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Execution {
    /// Only committed slots.
    #[default]
    Committed,
    /// As soon as the host has accepted a slot.
    Tentative,
}

impl Execution {
    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Tentative => "tentative",
        }
    }
}

/// `[protocol]`: the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// When a slot is executed.
    pub execution: Execution,
    /// `c`: slots between checkpoints.
    pub checkpoint_slots: u64,
    /// Most requests of one batch.
    pub batch_requests_max: usize,
    /// Most bytes of the operations of one batch.
    pub batch_bytes_max: usize,
    /// Most slots that are proposed and not committed yet.
    pub pipeline_depth: u64,
    /// `W`: most outstanding requests of one session.
    pub session_window: u64,
    /// Sessions of one client key that are remembered.
    pub sessions_max: usize,
    /// Bytes of results that are kept for one session.
    pub session_result_bytes_max: usize,
    /// Largest operation of a request.
    pub request_bytes_max: usize,
    /// Most requests that wait at the leader for a slot.
    pub pending_requests_max: usize,
    /// `k`: the postbox is trimmed at multiples of it.
    pub trim_entries: u64,
    /// How far a batch's timestamp may lie from a follower's clock, in milliseconds.
    pub clock_bound_ms: u64,
    /// How long a follower waits for a client's own copy of a body, in milliseconds.
    pub need_after_ms: u64,
    /// How long a gap may stand before the missing slots are fetched, in milliseconds.
    pub fetch_after_ms: u64,
    /// After how long without news the primary is suspected, in milliseconds.
    pub suspect_after_ms: u64,
    /// How often [`Self::suspect_after_ms`] doubles at most, for views that fail one after the other.
    pub suspect_doublings_max: u32,
    /// Batches up to this size go from the leader to all twins of a backup.
    pub serve_all_bytes_max: usize,
}

impl Default for Protocol {
    fn default() -> Self {
        Self {
            execution: Execution::Committed,
            checkpoint_slots: 128,
            batch_requests_max: 256,
            batch_bytes_max: 256 << 10,
            pipeline_depth: 8,
            session_window: 64,
            sessions_max: 1024,
            session_result_bytes_max: (1 << 20) + (16 << 10),
            request_bytes_max: (1 << 20) + (16 << 10),
            pending_requests_max: 16 << 10,
            trim_entries: 1024,
            clock_bound_ms: 1000,
            need_after_ms: 5,
            fetch_after_ms: 20,
            suspect_after_ms: 500,
            suspect_doublings_max: 6,
            serve_all_bytes_max: 16 << 10,
        }
    }
}

/// How durable a promise is before it is revealed (protocol.md 3, durability rule).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nowhere but in the postbox's log: a twin that restarts recovers as if its disk were gone.
    Memory,
    /// Handed to the kernel before it is revealed, and on the disk within `group_commit_ms`: outlives the process at
    /// once, the machine a little later. Checkpoints are on the disk before anybody hears of them.
    #[default]
    Group,
    /// On the disk before it is revealed; whatever waits shares one flush.
    Sync,
}

impl Durability {
    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Group => "group",
            Self::Sync => "sync",
        }
    }
}

/// `[storage]`: the write-ahead log and the snapshots of every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// How durable.
    pub durability: Durability,
    /// With "group": the longest time between two flushes while there is something to flush, in milliseconds. So
    /// much a machine may forget that loses power.
    pub group_commit_ms: u64,
    /// Bytes of state that a replica sends each second, at most, to those that fetch it; and takes when it fetches.
    pub transfer_bytes_per_s: u64,
    /// Bytes of past batches that a replica keeps in memory for those who catch up: more than clients send while a
    /// replica fetches the state of a checkpoint.
    pub retain_bytes: usize,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            durability: Durability::Group,
            group_commit_ms: 2,
            transfer_bytes_per_s: 32 << 20,
            retain_bytes: 64 << 20,
        }
    }
}

/// `[service]`: what the cluster replicates. Only the options of the service named are of any effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// One of [`crate::SERVICES`].
    pub name: String,
    /// `[service.kv]`.
    pub kv: KvOptions,
    /// `[service.null]`.
    pub null: NullOptions,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            name: "kv".to_owned(),
            kv: KvOptions::default(),
            null: NullOptions::default(),
        }
    }
}

/// `[service.kv]`. All but the cache belong to the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvOptions {
    /// The longest key.
    pub key_bytes_max: u32,
    /// The longest value.
    pub value_bytes_max: u32,
    /// The most items in one page of a scan or a list.
    pub page_items_max: u32,
    /// The most bytes of keys and values in one page.
    pub page_bytes_max: u32,
    /// Memory for pages of the store, of each replica.
    pub cache_bytes: usize,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            key_bytes_max: 4 << 10,
            value_bytes_max: 1 << 20,
            page_items_max: 1000,
            page_bytes_max: 1 << 20,
            cache_bytes: 4 << 20,
        }
    }
}

/// `[service.null]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullOptions {
    /// The length of a reply when the operation does not name one.
    pub reply_bytes_default: u32,
    /// The greatest length of a reply.
    pub reply_bytes_max: u32,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self {
            reply_bytes_default: 0,
            reply_bytes_max: 1 << 20,
        }
    }
}

/// `k`: postbox logs are trimmed at positions that are multiples of this. Small, so that a few of the largest
/// entries cannot fill a quota before the next one is reached.
pub const TRIM_MULTIPLE: u64 = 4;
/// A trim is proposed after so many bytes of entries, if not earlier because of [`Protocol::trim_entries`].
pub const TRIM_BYTES: u64 = 1 << 20;

/// How twins reach their host's broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Sockets and shared memory of one kernel.
    #[default]
    Local,
    /// Twins are Xen guests, the broker is in dom0: grants, event channels, xenstore.
    Xen,
}

impl Transport {
    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Xen => "xen",
        }
    }
}

/// `[postbox]`: the log of every host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postbox {
    /// How twins reach it.
    pub transport: Transport,
    /// Size of the log, a multiple of 4096.
    pub log_bytes: u64,
    /// Largest payload of one entry.
    pub entry_bytes_max: u32,
    /// Largest STATE of one trim.
    pub state_bytes_max: u32,
    /// How long a reader looks at the log before it sleeps, in microseconds.
    pub spin_us: u64,
    /// Where brokers record their logs, each in a directory of its own; absent: they do not. Relative to the file.
    pub record_dir: Option<PathBuf>,
    /// Most bytes of one host's record; the oldest go first.
    pub record_bytes_max: u64,
}

impl Default for Postbox {
    fn default() -> Self {
        Self {
            transport: Transport::Local,
            log_bytes: 32 << 20,
            entry_bytes_max: 2 << 20,
            state_bytes_max: 1 << 20,
            spin_us: 0,
            record_dir: None,
            record_bytes_max: 256 << 20,
        }
    }
}

/// What happens to a twin that `Q` hosts show to be wrong (protocol.md 9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCulprit {
    /// It is an event, and no more.
    #[default]
    Alert,
    /// With three twins or more, `q` of its siblings stop listening to it, until operators readmit it.
    Quarantine,
    /// Whoever guards the host restarts the guest.
    Restart,
}

impl OnCulprit {
    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Quarantine => "quarantine",
            Self::Restart => "restart",
        }
    }
}

/// `[evidence]`: what follows when a twin is caught.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The policy.
    pub on_culprit: OnCulprit,
    /// With "restart": the shell command that restarts a guest; `TWINBFT_HOST` and `TWINBFT_TWIN` are in its environment.
    /// Absent: `twinbft up` restarts the process.
    pub restart_command: Option<String>,
}

/// `[tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate of the authority that signs every process's certificate; relative to the file.
    pub ca: PathBuf,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            ca: PathBuf::from("tls/ca.pem"),
        }
    }
}

/// `[[host]]`: a machine with its postbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `h`, from 0.
    pub id: u8,
    /// For people.
    pub name: String,
    /// The CPUs that `twinbft up` pins the host's processes to; empty: a share of the machine's, one for each host.
    pub cpu: Vec<u16>,
    /// `[[host.twin]]`, by id.
    pub twins: Vec<Twin>,
}

/// `[[host.twin]]`: a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twin {
    /// `t`, from 0.
    pub id: u8,
    /// Where it listens and where others reach it.
    pub listen: SocketAddr,
    /// 64 hexadecimal digits, in lower case.
    pub public_key: String,
    /// The user that the broker lets in on this twin's socket; absent: the broker's own.
    pub uid: Option<u32>,
    /// The Xen guest that this twin is: name or UUID, the latter in lower case. There with the transport "xen" and only then.
    pub guest: Option<String>,
}

/// `[[client]]`: a key that may send requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// From 0.
    pub id: u32,
    /// For people.
    pub name: String,
    /// 64 hexadecimal digits, in lower case.
    pub public_key: String,
}

/// `[[admin]]`: a key that may ask for the state of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// From 0.
    pub id: u32,
    /// For people.
    pub name: String,
    /// 64 hexadecimal digits, in lower case.
    pub public_key: String,
}

impl ClusterConfig {
    /// A cluster on this machine: twin `t` of host `h` listens on `127.0.0.1:base_port + 10h + t`. Keys are made
    /// up and belong to nobody; whoever runs it replaces them.
    ///
    /// # Panics
    /// When `hosts`, `twins` or the ports are out of range (1 to 31, 2 to 8, up to 65535).
    #[must_use]
    pub fn example(hosts: u8, twins: u8, clients: u32, base_port: u16) -> Self {
        assert!(
            (1..=crate::HOSTS_MAX).contains(&hosts),
            "hosts out of range"
        );
        assert!(
            (crate::TWINS_MIN..=crate::TWINS_MAX).contains(&twins),
            "twins out of range"
        );
        let mut serial = 0_u64;
        let mut public_key = || {
            serial += 1;
            format!("{:064x}", (0x7716_u64 << 32) | serial)
        };
        let host = |id: u8, public_key: &mut dyn FnMut() -> String| Host {
            id,
            name: format!("host-{id}"),
            cpu: Vec::new(),
            twins: (0..twins)
                .map(|twin| {
                    let port = base_port
                        .checked_add(u16::from(id) * 10 + u16::from(twin))
                        .expect("ports out of range");
                    Twin {
                        id: twin,
                        listen: SocketAddr::from(([127, 0, 0, 1], port)),
                        public_key: public_key(),
                        uid: None,
                        guest: None,
                    }
                })
                .collect(),
        };
        Self {
            cluster: Cluster {
                id: "example".to_owned(),
                key_epoch: 0,
            },
            protocol: Protocol::default(),
            storage: Storage::default(),
            service: Service::default(),
            postbox: Postbox::default(),
            evidence: Evidence::default(),
            tls: Tls::default(),
            hosts: (0..hosts).map(|id| host(id, &mut public_key)).collect(),
            clients: (0..clients)
                .map(|id| Client {
                    id,
                    name: format!("client-{id}"),
                    public_key: public_key(),
                })
                .collect(),
            admins: vec![Admin {
                id: 0,
                name: "admin-0".to_owned(),
                public_key: public_key(),
            }],
        }
    }

    /// `N`.
    ///
    /// # Panics
    /// When the model was built by hand with more hosts than a file may have.
    #[must_use]
    pub fn host_count(&self) -> u8 {
        u8::try_from(self.hosts.len()).expect("a file has at most 31 hosts")
    }

    /// `m`.
    ///
    /// # Panics
    /// When the model was built by hand with more twins than a file may have.
    #[must_use]
    pub fn twin_count(&self) -> u8 {
        u8::try_from(self.hosts.first().map_or(0, |host| host.twins.len()))
            .expect("a host has at most 8 twins")
    }

    /// Host `host`, if there is one.
    #[must_use]
    pub fn host(&self, host: u8) -> Option<&Host> {
        self.hosts.get(usize::from(host))
    }

    /// Twin `twin` of host `host`, if there is one.
    #[must_use]
    pub fn twin(&self, host: u8, twin: u8) -> Option<&Twin> {
        self.host(host)?.twins.get(usize::from(twin))
    }

    /// The DNS name in the certificate of a replica.
    #[must_use]
    pub fn twin_tls_name(&self, host: u8, twin: u8) -> String {
        format!("h{host}t{twin}.{}.twinbft", self.cluster.id)
    }

    /// The DNS name in the certificate of a client.
    #[must_use]
    pub fn client_tls_name(&self, client: u32) -> String {
        format!("client-{client}.{}.twinbft", self.cluster.id)
    }

    /// The DNS name in the certificate of an administrator.
    #[must_use]
    pub fn admin_tls_name(&self, admin: u32) -> String {
        format!("admin-{admin}.{}.twinbft", self.cluster.id)
    }
}
