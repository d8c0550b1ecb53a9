//! The session on a network: one stream of frames to each replica over mutual TLS, shared by all sessions.
//!
//! A task for each connection reads frames; one dispatcher owns the sessions. Everything that has gathered since a
//! stream took its last frame goes into the next, so that frames grow with the load.

mod call;
mod dispatcher;
mod error;
mod link;
mod mailbox;
mod queue;
mod slot;
mod stats;
mod target;

pub use call::{Answer, CallResult};
pub use error::{CallError, ConnectError, Unanswered, explain_refusal};
pub use link::{FRAME_BYTES_MAX, FRAME_BYTES_TARGET, LinkState, OUTBOX_BYTES_MAX};
pub use queue::{CallQueue, Completion, SessionKey};
pub use slot::WAITING_MAX;
pub use stats::Stats;
pub use target::{ReplicaAddress, Target, TargetError, TlsMaterial, config_file};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use twinbft_types::ClientId;

use call::Waiters;
use dispatcher::{Command, Dispatcher};
use link::{INBOUND_FRAMES_MAX, Link};
use mailbox::Mailbox;
use slot::{Operation, Owner};

use crate::session::SessionConfig;

/// A small request goes to the leader alone; see [`SessionConfig::leader_alone_bytes_max`].
const LEADER_ALONE_BYTES_MAX: usize = 512;

/// Which cluster, as which client, and how patiently.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The cluster and the keys.
    pub target: Target,
    /// How long [`Client::connect`] waits for connections.
    pub connect_timeout: Duration,
    /// After how long a call without an answer ends, unless it says otherwise.
    pub call_timeout: Duration,
    /// After how long a request is sent again, to everybody.
    pub retransmit_after: Duration,
    /// After how long a fast read falls back to an ordered one.
    pub query_timeout: Duration,
}

impl ClientOptions {
    /// The defaults for a cluster.
    #[must_use]
    pub const fn new(target: Target) -> Self {
        Self {
            target,
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(10),
            retransmit_after: Duration::from_millis(500),
            query_timeout: Duration::from_millis(250),
        }
    }

    /// Reads `cluster.toml` (`path` is the file or its directory) and the keys of client `client` beside it.
    ///
    /// # Errors
    /// Says which file is wrong and what to do.
    pub fn load(path: &Path, client: u32) -> Result<Self, TargetError> {
        Ok(Self::new(Target::load(path, client)?))
    }
}

/// What handles and queues share. The last one that goes ends the tasks.
#[derive(Debug)]
struct Shared {
    commands: Arc<Mailbox<Command>>,
    keys: AtomicU64,
    tasks: Vec<AbortHandle>,
}

impl Shared {
    fn next_key(&self) -> SessionKey {
        SessionKey(self.keys.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A client of a cluster: its connections, and as many sessions as wanted.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    call_timeout_us: u64,
}

impl Client {
    /// Connects to all replicas; must be called within a tokio runtime. Returns as soon as so many answer that calls
    /// can succeed, or when the time is up and at least one answers. The others are tried again for ever.
    ///
    /// # Errors
    /// When no replica can be reached in time.
    pub async fn connect(options: ClientOptions) -> Result<Self, ConnectError> {
        let changed = Arc::new(Notify::new());
        let (to_dispatcher, inbound) = mpsc::channel(INBOUND_FRAMES_MAX);
        let target = options.target;
        let mut tasks = Vec::new();
        let mut links = Vec::new();
        for address in &target.replicas {
            let link = Arc::new(Link::new(address.replica, changed.clone()));
            links.push(link.clone());
            let task = link::keep_up(
                link,
                address.clone(),
                target.tls.clone(),
                to_dispatcher.clone(),
            );
            tasks.push(tokio::spawn(task).abort_handle());
        }
        let commands = Arc::new(Mailbox::default());
        let dispatcher = Dispatcher {
            template: SessionConfig {
                window: target.session_window,
                queries_max: usize::try_from(target.session_window).unwrap_or(usize::MAX),
                operation_bytes_max: target.request_bytes_max,
                retransmit_after_us: micros(options.retransmit_after),
                query_timeout_us: micros(options.query_timeout),
                announce: true,
                leader_alone_bytes_max: LEADER_ALONE_BYTES_MAX,
                ..SessionConfig::new(
                    target.shape,
                    ClientId {
                        key: target.client,
                        session: 0,
                    },
                    target.keys,
                )
            },
            commands: commands.clone(),
            inbound,
            links: links.clone(),
        };
        tasks.push(tokio::spawn(dispatcher.run()).abort_handle());
        let client = Self {
            shared: Arc::new(Shared {
                commands,
                keys: AtomicU64::new(0),
                tasks,
            }),
            call_timeout_us: micros(options.call_timeout),
        };
        let ready = wait_for_quorum(target.shape, &links, &changed);
        // Time-out or not, what counts is who is there now.
        let _ = tokio::time::timeout(options.connect_timeout, ready).await;
        if links.iter().any(|link| link.state() == LinkState::Up) {
            Ok(client)
        } else {
            Err(ConnectError::NobodyThere(dispatcher::unreachable(&links)))
        }
    }

    /// Opens a session.
    #[must_use]
    pub fn session(&self) -> SessionHandle {
        let key = self.shared.next_key();
        let waiters = Arc::new(Waiters::default());
        self.shared.commands.push(Command::Open {
            key,
            owner: Owner::Waiters(waiters.clone()),
        });
        SessionHandle {
            shared: self.shared.clone(),
            key,
            waiters,
            timeout_us: self.call_timeout_us,
        }
    }

    /// Many sessions with one queue of answers.
    #[must_use]
    pub fn queue(&self) -> CallQueue {
        CallQueue::new(self)
    }

    /// What was sent and received so far.
    pub async fn stats(&self) -> Stats {
        let (to, from) = oneshot::channel();
        self.shared.commands.push(Command::Report(to));
        from.await
            .expect("the dispatcher runs as long as the client lives")
    }
}

/// Until `q` twins of `Q` hosts are connected, or every replica has been tried.
async fn wait_for_quorum(shape: twinbft_types::Shape, links: &[Arc<Link>], changed: &Notify) {
    loop {
        let mut told = std::pin::pin!(changed.notified());
        // From here on a change is not missed, and then the states are looked at.
        told.as_mut().enable();
        let states: Vec<LinkState> = links.iter().map(|link| link.state()).collect();
        let hosts = states
            .chunks(usize::from(shape.twins()))
            .filter(|twins| {
                let up = twins.iter().filter(|state| **state == LinkState::Up);
                up.count() >= shape.twin_quorum()
            })
            .count();
        if hosts >= shape.host_quorum() || !states.contains(&LinkState::Connecting) {
            return;
        }
        told.await;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// One session. Calls may be made from many tasks at once; the session's window bounds how many are on their way.
#[derive(Debug)]
pub struct SessionHandle {
    shared: Arc<Shared>,
    key: SessionKey,
    waiters: Arc<Waiters>,
    timeout_us: u64,
}

impl SessionHandle {
    /// Another patience for the calls of this handle.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout_us = micros(timeout);
        self
    }

    /// Has an operation ordered and executed, and waits for the certified result.
    ///
    /// # Errors
    /// See [`CallError`]; unless it says otherwise, the operation may have been executed.
    pub async fn call(&self, operation: Bytes) -> CallResult {
        self.submit(operation, false).await
    }

    /// Reads without ordering (protocol.md 7), and by an ordered request when the replicas do not agree.
    /// Linearizable either way.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn query(&self, operation: Bytes) -> CallResult {
        self.submit(operation, true).await
    }

    async fn submit(&self, bytes: Bytes, fast: bool) -> CallResult {
        let call = self.waiters.begin();
        self.shared.commands.push(Command::Submit {
            key: self.key,
            operation: Operation {
                tag: call.tag(),
                bytes,
                fast,
                timeout_us: self.timeout_us,
            },
        });
        call.await
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.shared.commands.push(Command::Close { key: self.key });
    }
}
