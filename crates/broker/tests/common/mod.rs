//! A real broker process and a supervisor for it, played by the test.

#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use twinbft_postbox::transport::local::fds::receive_with_fds;
use twinbft_postbox::{
    Channel, ConnectOptions, Wake, cluster_tag, connect, socket_path, status_socket_path,
};

/// Longer than anything takes on a loaded machine; only a failure waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const CLUSTER: &str = "test-cluster";

#[derive(Default)]
struct Heard {
    messages: Vec<String>,
    store: BTreeMap<String, OwnedFd>,
}

/// Plays systemd: hears notifications, keeps descriptors.
pub struct Supervisor {
    path: PathBuf,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

impl Supervisor {
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("a fresh directory");
        let heard: Arc<(Mutex<Heard>, Condvar)> = Arc::default();
        let shared = heard.clone();
        std::thread::spawn(move || {
            loop {
                let mut bytes = [0; 4096];
                let Ok((count, fds)) = receive_with_fds(&socket, &mut bytes) else {
                    return;
                };
                let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
                let (lock, changed) = &*shared;
                let mut heard = lock.lock().expect("no panic holds it");
                let name = message
                    .lines()
                    .find_map(|line| line.strip_prefix("FDNAME="))
                    .unwrap_or_default();
                if message.starts_with("FDSTORE=1") {
                    heard.store.insert(
                        name.to_owned(),
                        fds.into_iter().next().expect("a descriptor"),
                    );
                } else if message.starts_with("FDSTOREREMOVE=1") {
                    heard.store.remove(name);
                }
                // A barrier's descriptor is closed here, which is the answer.
                heard.messages.push(message);
                changed.notify_all();
            }
        });
        Self { path, heard }
    }

    /// Waits for the `count`-th message that contains `text`.
    pub fn await_message(&self, text: &str, count: usize) {
        let (lock, changed) = &*self.heard;
        let heard = lock.lock().expect("no panic holds it");
        let missing =
            |heard: &mut Heard| heard.messages.iter().filter(|m| m.contains(text)).count() < count;
        let (heard, timeout) = changed
            .wait_timeout_while(heard, PATIENCE, missing)
            .expect("no panic holds it");
        assert!(
            !timeout.timed_out(),
            "never heard {text} {count} times: {:?}",
            heard.messages
        );
    }

    pub fn stored_names(&self) -> Vec<String> {
        self.heard
            .0
            .lock()
            .expect("no panic holds it")
            .store
            .keys()
            .cloned()
            .collect()
    }

    /// The kept descriptors, as a supervisor passes them on: it keeps its own.
    pub fn stored(&self) -> Vec<(String, OwnedFd)> {
        let heard = self.heard.0.lock().expect("no panic holds it");
        heard
            .store
            .iter()
            .map(|(name, fd)| (name.clone(), fd.try_clone().expect("a descriptor is left")))
            .collect()
    }

    /// Slips a descriptor in, as a confused supervisor might.
    pub fn store(&self, name: &str, fd: OwnedFd) {
        self.heard
            .0
            .lock()
            .expect("no panic holds it")
            .store
            .insert(name.to_owned(), fd);
    }

    pub fn forget(&self) {
        self.heard
            .0
            .lock()
            .expect("no panic holds it")
            .store
            .clear();
    }
}

/// A host: directories, supervisor, broker.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub supervisor: Supervisor,
    flags: Vec<String>,
    pub child: Option<Child>,
    starts: usize,
}

impl Host {
    /// Starts a broker with extra flags and waits until it is ready.
    pub fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("state")).expect("a fresh directory");
        std::fs::write(dir.path().join("state/genesis"), CLUSTER).expect("a fresh directory");
        let supervisor = Supervisor::new(dir.path());
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut host = Self {
            dir,
            supervisor,
            flags,
            child: None,
            starts: 0,
        };
        host.start_broker();
        host
    }

    /// A small log, so that it wraps and fills soon: entries to 4 KiB, trims at multiples of 8.
    pub fn start_small(twins: &str) -> Self {
        let flags = [
            "--twins",
            twins,
            "--log-bytes",
            "65536",
            "--entry-bytes-max",
            "4000",
            "--state-bytes-max",
            "4096",
            "--trim-every",
            "8",
            "--ring-order",
            "12",
        ];
        Self::start(&flags)
    }

    pub fn sockets(&self) -> &Path {
        self.dir.path()
    }

    pub fn command(&self) -> Vec<String> {
        let dir = |name: &str| {
            self.dir
                .path()
                .join(name)
                .to_str()
                .expect("plain names")
                .to_owned()
        };
        let mut command: Vec<String> = vec![env!("CARGO_BIN_EXE_postbox-broker").to_owned()];
        command.extend([
            "--dir".to_owned(),
            dir(""),
            "--state-dir".to_owned(),
            dir("state"),
        ]);
        command.extend([
            "--cluster-id".to_owned(),
            CLUSTER.to_owned(),
            "--host".to_owned(),
            "3".to_owned(),
        ]);
        command.extend(self.flags.clone());
        command
    }

    /// Starts the broker with whatever the supervisor keeps.
    pub fn start_broker(&mut self) {
        let stored = self.supervisor.stored();
        let names: Vec<String> = stored.iter().map(|(name, _)| name.clone()).collect();
        // The process id is only known inside the new process.
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"])
            .args(self.command());
        command
            .env("NOTIFY_SOCKET", &self.supervisor.path)
            .env("WATCHDOG_USEC", "50000")
            .stdin(Stdio::null());
        if !stored.is_empty() {
            command
                .env("LISTEN_FDS", stored.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        let mappings = (3..)
            .zip(stored)
            .map(|(child_fd, (_, parent_fd))| FdMapping {
                parent_fd,
                child_fd,
            });
        command
            .fd_mappings(mappings.collect())
            .expect("each number once");
        self.child = Some(command.spawn().expect("the broker's binary is there"));
        self.starts += 1;
        self.supervisor.await_message("READY=1", self.starts);
    }

    /// Kills the broker with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
    }

    pub fn options(&self, twin: u8) -> ConnectOptions {
        ConnectOptions {
            timeout: PATIENCE,
            ..ConnectOptions::new(cluster_tag(CLUSTER), 3, twin)
        }
    }

    pub fn connect(&self, twin: u8) -> Channel {
        connect(&socket_path(self.sockets(), twin), &self.options(twin))
            .expect("the broker takes its twins")
    }

    /// The status document.
    pub fn status(&self) -> serde_json::Value {
        let mut stream =
            UnixStream::connect(status_socket_path(self.sockets())).expect("the broker listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time-out is allowed");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("a whole document");
        serde_json::from_str(&text).expect("valid JSON")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a reader saw of one entry.
pub type Seen = (u64, u8, Vec<u8>);

/// Reads `count` entries, waiting for them.
pub fn read(channel: &mut Channel, count: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut payload = Vec::new();
    while seen.len() < count {
        match channel.reader.poll_next(&mut payload).expect("a sound log") {
            Some(entry) => seen.push((entry.position, entry.sender, payload.clone())),
            None => await_news(channel),
        }
    }
    seen
}

/// Waits for anything, and lets the appender work.
pub fn await_news(channel: &mut Channel) {
    assert_eq!(channel.reader.wait(Some(PATIENCE), || false), Wake::Ready);
    while channel.appender.poll().expect("an open channel").is_some() {}
}

/// Appends one entry and tells the broker.
pub fn append(channel: &mut Channel, payload: &[u8]) -> u64 {
    let number = channel.appender.append(payload).expect("there is room");
    channel.appender.flush();
    number
}

/// Waits until the broker has closed the channel; its reason.
pub fn await_close(channel: &mut Channel) -> String {
    loop {
        match channel.reader.wait(Some(PATIENCE), || false) {
            Wake::Closed(reason) => return reason,
            Wake::TimedOut => panic!("the channel was not closed"),
            Wake::Ready => {
                let _ = channel.appender.poll();
                let mut payload = Vec::new();
                while let Ok(Some(_)) = channel.reader.poll_next(&mut payload) {}
            }
        }
    }
}
