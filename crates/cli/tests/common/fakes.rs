//! Stand-ins for the daemons: shell scripts that become this test program again, as the one test that is a daemon.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{ProcessName, Programs};

/// How the stand-in of one process behaves; in the file `fake/<name>` of the cluster's directory.
pub const MUTE: &str = "mute";
/// Ends with status 3 before it is ready.
pub const DIES: &str = "dies";
/// Ends as daemons do that find their configuration wrong.
pub const REFUSES: &str = "refuses";
/// Does not end on SIGTERM.
pub const STUBBORN: &str = "stubborn";

/// Makes the stand-ins and answers where they are.
pub fn install(directory: &Path) -> Programs {
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(directory.join("fake")).unwrap();
    let test = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nif grep -qs {STUBBORN} \"{}/fake/\"*; then trap '' TERM; fi\n\
         FAKE_ARGS=\"$*\" exec \"{}\" --ignored --exact fake_daemon --nocapture\n",
        directory.display(),
        test.display()
    );
    for program in ["postbox-broker", "twinbft-replica"] {
        let path = bin.join(program);
        fs::write(&path, &script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Programs {
        replica_configurations: std::collections::BTreeMap::new(),
        namespaces: std::collections::BTreeMap::new(),
        launcher: PathBuf::from(env!("CARGO_BIN_EXE_twinbft")),
        directory: bin,
        replica_arguments: Vec::new(),
    }
}

/// Says how a process is to behave from its next start on; "" for well.
pub fn behave(cluster: &Cluster, name: ProcessName, how: &str) {
    let file = cluster
        .layout
        .directory()
        .join("fake")
        .join(name.file_stem());
    fs::write(file, how).unwrap();
}

/// What the process has written down at each of its starts.
pub fn starts(cluster: &Cluster, name: ProcessName) -> Vec<Start> {
    let file = cluster
        .layout
        .directory()
        .join("fake")
        .join(format!("{}.starts", name.file_stem()));
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// One start of a stand-in.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Start {
    pub pid: u32,
    pub listen_pid: Option<String>,
    pub listen_fds: Option<String>,
    pub listen_names: Option<String>,
    /// What stood in the first inherited descriptor.
    pub inherited: Option<String>,
    pub cpus: Vec<usize>,
    pub arguments: String,
}

/// The body of the stand-in.
pub fn run_daemon() {
    let Ok(arguments) = std::env::var("FAKE_ARGS") else {
        return;
    };
    let words: Vec<&str> = arguments.split(' ').collect();
    let value = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).copied()
    };
    let config = Path::new(value("--config").expect("--config is passed"));
    let host: u8 = value("--host").expect("--host is passed").parse().unwrap();
    let name = match value("--twin") {
        Some(twin) => ProcessName::Replica(host, twin.parse().unwrap()),
        None => ProcessName::Broker(host),
    };
    let directory = config.parent().unwrap().join("fake");
    let start = describe(&arguments);
    let inherits = start.inherited.is_some();
    let file = directory.join(format!("{}.starts", name.file_stem()));
    let mut lines = fs::read_to_string(&file).unwrap_or_default();
    lines.push_str(&serde_json::to_string(&start).unwrap());
    lines.push('\n');
    fs::write(&file, lines).unwrap();

    let behaviour = fs::read_to_string(directory.join(name.file_stem())).unwrap_or_default();
    println!("the stand-in of {name} starts");
    match behaviour.as_str() {
        DIES => std::process::exit(3),
        REFUSES => std::process::exit(64),
        MUTE => {}
        _ => {
            if matches!(name, ProcessName::Broker(_)) && !inherits {
                let log = directory.join(format!("{}.log", name.file_stem()));
                fs::write(&log, format!("log of {}", std::process::id())).unwrap();
                notify("FDSTORE=1\nFDPOLL=0\nFDNAME=twinbft-log-1-0", Some(&log));
            }
            notify("STATUS=well\nREADY=1", None);
        }
    }
    loop {
        std::thread::park();
    }
}

fn describe(arguments: &str) -> Start {
    let variable = |name| std::env::var(name).ok();
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let listen_fds = variable("LISTEN_FDS");
    Start {
        pid: std::process::id(),
        listen_pid: variable("LISTEN_PID"),
        inherited: listen_fds
            .as_ref()
            .map(|_| fs::read_to_string("/proc/self/fd/3").unwrap()),
        listen_fds,
        listen_names: variable("LISTEN_FDNAMES"),
        cpus: (0..nix::sched::CpuSet::count())
            .filter(|cpu| set.is_set(*cpu).unwrap())
            .collect(),
        arguments: arguments.to_owned(),
    }
}

fn notify(text: &str, file: Option<&Path>) {
    let socket = UnixDatagram::unbound().unwrap();
    socket
        .connect(std::env::var("NOTIFY_SOCKET").expect("the supervisor names its socket"))
        .unwrap();
    let file = file.map(|path| fs::File::open(path).unwrap());
    let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let bytes = [IoSlice::new(text.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, rights, MsgFlags::empty(), None).unwrap();
}
