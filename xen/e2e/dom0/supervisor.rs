//! systemd's part for one broker: it keeps descriptors, hears signs of life, and starts the process again.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use command_fds::{CommandFdExt, FdMapping};
use serde_json::Value;
use twinbft_postbox::transport::local::fds::receive_with_fds;

use crate::{await_some, say};

const BROKER: &str = "/usr/bin/postbox-broker";

#[derive(Default)]
struct Heard {
    readies: usize,
    watchdogs: usize,
    store: BTreeMap<String, OwnedFd>,
}

/// A broker that runs.
pub struct Broker {
    flags: Vec<String>,
    status_socket: PathBuf,
    notify: PathBuf,
    heard: Arc<Mutex<Heard>>,
    child: Option<Child>,
}

impl Broker {
    /// Starts one. `status_socket` is where its flags put it.
    pub fn start(name: &str, status_socket: &str, flags: &[&str]) -> Self {
        let notify = PathBuf::from(format!("/run/notify-{name}.sock"));
        let socket = UnixDatagram::bind(&notify).expect("a fresh /run");
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let shared = heard.clone();
        std::thread::spawn(move || hear(&socket, &shared));
        let mut broker = Self {
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            status_socket: status_socket.into(),
            notify,
            heard,
            child: None,
        };
        broker.launch();
        broker
    }

    /// A new process, with what was kept.
    pub fn launch(&mut self) {
        let (stored, readies) = {
            let heard = self.heard.lock().expect("no panic holds it");
            let stored: Vec<(String, OwnedFd)> = heard
                .store
                .iter()
                .map(|(name, fd)| (name.clone(), fd.try_clone().expect("a descriptor is left")))
                .collect();
            (stored, heard.readies)
        };
        let names: Vec<String> = stored.iter().map(|(name, _)| name.clone()).collect();
        // The process id is only known inside the new process.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh", BROKER]);
        command
            .args(&self.flags)
            .env("NOTIFY_SOCKET", &self.notify)
            .env("WATCHDOG_USEC", "5000000")
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
        self.child = Some(command.spawn().expect("the broker is installed"));
        let ready = await_some("the broker is ready", || {
            let heard = self.heard.lock().expect("no panic holds it");
            (heard.readies > readies).then_some(())
        });
        if ready.is_none() {
            self.explain();
            panic!("the broker does not start");
        }
    }

    /// What became of a process that says nothing.
    fn explain(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        say(&format!("the broker's process: {:?}", child.try_wait()));
        for name in ["wchan", "stack", "syscall", "status"] {
            let text = std::fs::read_to_string(format!("/proc/{}/{name}", child.id()));
            say(&format!("{name}: {text:?}"));
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
    }

    /// What was kept is gone, as when the machine loses its power.
    pub fn forget(&self) {
        self.heard.lock().expect("no panic holds it").store.clear();
    }

    /// SIGTERM; answers whether it ended well.
    pub fn stop(&mut self) -> bool {
        let mut child = self.child.take().expect("it runs");
        let killed = Command::new("/bin/kill")
            .arg(child.id().to_string())
            .status();
        killed.is_ok_and(|status| status.success())
            && child.wait().is_ok_and(|status| status.success())
    }

    /// What the supervisor keeps.
    pub fn kept(&self) -> Vec<String> {
        let heard = self.heard.lock().expect("no panic holds it");
        heard.store.keys().cloned().collect()
    }

    /// Signs of life so far.
    pub fn watchdogs(&self) -> usize {
        self.heard.lock().expect("no panic holds it").watchdogs
    }

    /// The status document.
    pub fn status(&self) -> Value {
        let read = || -> std::io::Result<Value> {
            let mut stream = UnixStream::connect(&self.status_socket)?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(serde_json::from_str(&text)?)
        };
        read().unwrap_or_else(|error| {
            say(&format!("no status: {error}"));
            Value::Null
        })
    }

    /// Waits until so many twins are connected.
    pub fn await_connected(&self, count: usize) -> bool {
        let what = format!("{count} twins are connected");
        await_some(&what, || (self.connected() == count).then_some(())).is_some()
    }

    pub fn connected(&self) -> usize {
        let status = self.status();
        let twins = status["twins"].as_array().cloned().unwrap_or_default();
        twins
            .iter()
            .filter(|twin| twin["connected"] == true)
            .count()
    }

    /// Texts of the recent events of a kind.
    pub fn events(&self, kind: &str) -> Vec<String> {
        let status = self.status();
        let events = status["events"].as_array().cloned().unwrap_or_default();
        let of_kind = events.iter().filter(|event| event["kind"] == kind);
        of_kind
            .filter_map(|event| event["text"].as_str().map(str::to_owned))
            .collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn hear(socket: &UnixDatagram, shared: &Mutex<Heard>) {
    loop {
        let mut bytes = [0; 4096];
        let Ok((count, fds)) = receive_with_fds(socket, &mut bytes) else {
            return;
        };
        let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
        let name = message
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="))
            .unwrap_or_default();
        let mut heard = shared.lock().expect("no panic holds it");
        if message.starts_with("FDSTORE=1") {
            let fd = fds.into_iter().next().expect("a descriptor");
            heard.store.insert(name.to_owned(), fd);
        } else if message.starts_with("FDSTOREREMOVE=1") {
            heard.store.remove(name);
        }
        heard.readies += usize::from(message.contains("READY=1"));
        heard.watchdogs += usize::from(message.contains("WATCHDOG=1"));
        // A barrier's descriptor is closed here, which is the answer.
    }
}
