//! The life of a replica: start, run, stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use twinbft_config::{ClusterConfig, Layout, Transport};
use twinbft_core::CoreConfig;
use twinbft_postbox::{Door, Waker, cluster_tag};
use twinbft_types::{Epoch, ReplicaId};

use crate::driver::{Control, Driver, Egress, Inbox, Link, LinkOptions, Parts};
use crate::net::{Ends, Network};
use crate::progress::{Progress, State};
use crate::service::Service;
use crate::setup;
use crate::startup::Disk;
use crate::status::Events;
use crate::storage::Storage;

/// How long a start waits for the host's broker.
const POSTBOX_PATIENCE: Duration = Duration::from_secs(30);
/// How long a graceful stop may take after the signal.
const STOP_MAX: Duration = Duration::from_millis(1_500);

/// Who this process is, and its configuration.
pub struct NodeOptions {
    /// Read and valid.
    pub config: ClusterConfig,
    /// The files beside it.
    pub layout: Layout,
    /// This replica.
    pub me: ReplicaId,
}

/// Runs the replica until a signal stops it. Blocks.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub fn run(options: &NodeOptions) -> anyhow::Result<()> {
    // Whoever started this process may have blocked them for itself, and it could then not be stopped.
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT])
        .thread_unblock()
        .context("unblocking signals")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // With this many more polls between looks at the sockets, a burst of frames is taken in together.
        .event_interval(61)
        .build()
        .context("starting the network's runtime")?;
    let result = runtime.block_on(run_network(options));
    // Streams that are still open end here.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn run_network(options: &NodeOptions) -> anyhow::Result<()> {
    let NodeOptions { config, layout, me } = options;
    let started = Instant::now();
    let twin = config
        .twin(me.host.0, me.twin.0)
        .with_context(|| format!("{me} is not in {}", layout.config().display()))?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;

    let keys = setup::key_ring(layout, config, *me)?;
    let tls = setup::tls_files(layout, config, *me)?;
    let waker = Waker::new().context("making a waker")?;
    // A core that spins needs a thread of its own; one that sleeps is faster on the network's.
    let inbox = Arc::new(if config.postbox.spin_us == 0 {
        Inbox::for_task(waker)
    } else {
        Inbox::new(waker)
    });
    let egress = Arc::new(Egress::default());
    let progress = Arc::new(Progress::default());
    let ends = Ends {
        inbox: inbox.clone(),
        egress: egress.clone(),
        progress: progress.clone(),
    };
    let network = Network::new(config, *me, &tls, ends, started)?;
    let listener = TcpListener::bind(twin.listen).await.with_context(|| {
        format!(
            "binding {}; is another replica running, or does this machine have another address?",
            twin.listen
        )
    })?;
    tracing::info!(address = %twin.listen, service = config.service.name, "starting");

    let core = setup::core_config(config, *me, keys);
    let mut core_life = CoreLife::start(
        options,
        core,
        inbox.clone(),
        egress,
        progress.clone(),
        started,
    )?;
    let (stop_network, network_stopped) = oneshot::channel::<()>();
    let mut server = tokio::spawn(network.run(listener, async {
        // An end of the sender stops the network too.
        let _ended = network_stopped.await;
    }));
    tokio::spawn(tell_supervisor(progress.clone()));
    #[cfg(feature = "byzantine-doubles")]
    {
        let name = format!("twin-{}.control", me.twin.0);
        let path = layout.host_run(me.host.0).join(name);
        tracing::warn!(socket = %path.display(), "built with byzantine doubles: this replica can be told to lie");
        tokio::spawn(crate::byzantine::serve(path, inbox.clone()));
    }

    let reason = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        ended = &mut core_life.task => {
            ended.context("the core's task")??;
            bail!("the core ended by itself");
        }
        ended = &mut server => {
            ended.context("the server's task")??;
            bail!("the server ended by itself");
        }
    };
    tracing::info!(reason, "stopping");
    progress.set_state(State::Stopping);
    notify(&[sd_notify::NotifyState::Stopping]);
    // Nobody is accepted any more; what is open goes on until the core has ended.
    let _gone = stop_network.send(());
    core_life.stop(&inbox).await?;
    server.abort();
    tracing::info!("stopped");
    Ok(())
}

/// What keeps the core going: a thread that connects it to the postbox and then runs it, or hands it over to a task of
/// the network's runtime.
struct CoreLife {
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl CoreLife {
    /// Opens disk and service, and starts the thread, which first connects to the postbox.
    fn start(
        options: &NodeOptions,
        core: CoreConfig,
        inbox: Arc<Inbox>,
        egress: Arc<Egress>,
        progress: Arc<Progress>,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let NodeOptions { config, layout, me } = options;
        let data = layout.twin_data(me.host.0, me.twin.0);
        let waking = inbox.clone();
        crate::membership::check(&data, config)?;
        let (mut storage, found) = Storage::open(
            &data.join("wal"),
            setup::owner(config, *me),
            setup::storage_policy(config),
            move || waking.wake(),
        )?;
        if let Some(torn) = &found.torn {
            tracing::warn!(file = %torn.path.display(), offset = torn.offset, "the last write before the stop was cut off; it had not been revealed");
        }
        let events = Events::open(&data)?;
        let (disk, app, journal) = Disk::open(config, *me, &data, found)?;
        let service =
            Service::start(app, journal, &inbox).context("starting the service's threads")?;
        let link_options = LinkOptions {
            door: match config.postbox.transport {
                Transport::Local => Door::Socket(layout.twin_socket(me.host.0, me.twin.0)),
                Transport::Xen => Door::Xen,
            },
            cluster_tag: cluster_tag(&config.cluster.id),
            host: me.host.0,
            twin: me.twin.0,
            spin_us: u32::try_from(config.postbox.spin_us).unwrap_or(u32::MAX),
            waker: inbox.waker(),
        };
        #[cfg(feature = "byzantine-doubles")]
        let doubles = crate::byzantine::Doubles::new(
            *me,
            twinbft_types::Incarnation(0),
            core.keys.clone(),
            core.shape.hosts(),
        );
        let (me, stop) = (*me, Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let shares_thread = inbox.is_for_task();
        let life = move || -> anyhow::Result<Option<Box<Driver>>> {
            progress.set_state(State::WaitingForPostbox);
            let is_stopped = || stopped.load(Ordering::Relaxed);
            let Some(mut link) = Link::open(&link_options, POSTBOX_PATIENCE, is_stopped)? else {
                return Ok(None);
            };
            let mut core = core;
            core.epoch = Epoch(link.reader().epoch());
            let core = disk.start(core, &mut link, &mut storage)?;
            progress.set_has_core();
            let driver = Driver::new(Parts {
                me,
                core,
                link,
                inbox,
                egress,
                storage,
                service,
                events,
                progress,
                #[cfg(feature = "byzantine-doubles")]
                doubles,
                started,
            });
            if shares_thread {
                return Ok(Some(Box::new(driver)));
            }
            driver.run().map(|()| None)
        };
        let (tell, told) = oneshot::channel();
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new()
            .name("core".to_owned())
            .spawn(move || {
                let _entered = span.enter();
                if let Err(Err(error)) = tell.send(life()) {
                    tracing::error!("the core ended with an error during the stop: {error:#}");
                }
            })
            .context("starting the core's thread")?;
        let task = tokio::spawn(async move {
            match told.await.context("the core's thread is gone")?? {
                Some(driver) => Box::pin(driver.run_as_task()).await,
                None => Ok(()),
            }
        });
        Ok(Self { task, thread, stop })
    }

    /// Lets the core finish what is begun.
    async fn stop(self, inbox: &Inbox) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        if inbox.control(Control::Stop).is_err() {
            bail!("the core does not take its orders");
        }
        let Ok(ended) = tokio::time::timeout(STOP_MAX, self.task).await else {
            bail!("the core did not end within {} ms", STOP_MAX.as_millis());
        };
        if let Err(error) = ended.context("the core's task")? {
            tracing::error!("the core ended with an error during the stop: {error:#}");
        }
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the core's thread panicked"))
    }
}

/// Tells the supervisor that the replica is ready, and then that it lives, as long as the core's thread does.
async fn tell_supervisor(progress: Arc<Progress>) {
    progress.caught_up().await;
    tracing::info!("ready: the postbox is connected and its log is read to the end");
    notify(&[sd_notify::NotifyState::Ready]);
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut beats = progress.beats();
    loop {
        tokio::time::sleep(limit / 3).await;
        let now = progress.beats();
        // The core's thread wakes up at least once a second.
        if now != beats {
            beats = now;
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("telling the supervisor: {error}");
    }
}
