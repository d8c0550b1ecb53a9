//! `run/supervisor.json`: who runs a cluster on this machine. The file is locked as long as that supervisor lives,
//! so a pid in it that is out of date is never believed.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use twinbft_config::Layout;

use super::{ProcessStatus, SuperviseError, make_directory};

/// The longest such file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A supervisor that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its process id; 0 in the moment between its start and its first note.
    pub pid: i32,
    /// Its processes.
    pub processes: Vec<RunningProcess>,
}

/// A process in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningProcess {
    /// Like `h0/t1`.
    pub name: String,
    /// Like `ready`.
    pub state: String,
    /// While it runs.
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
}

/// The file while this process holds its lock.
#[derive(Debug)]
pub struct RunFile {
    path: PathBuf,
    file: Flock<File>,
}

fn path(layout: &Layout) -> PathBuf {
    layout.run().join("supervisor.json")
}

impl RunFile {
    /// Takes the lock.
    ///
    /// # Errors
    /// When another supervisor has it, or the file cannot be made.
    pub fn take(layout: &Layout) -> Result<Self, SuperviseError> {
        make_directory(&layout.run())?;
        let path = path(layout);
        let failed = |cause| SuperviseError::File {
            doing: "opening",
            path: path.clone(),
            cause,
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path);
        match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => {
                let mut taken = Self { path, file };
                taken.note(&[])?;
                Ok(taken)
            }
            Err((file, Errno::EWOULDBLOCK)) => Err(SuperviseError::Running(read(file))),
            Err((_, error)) => Err(failed(error.into())),
        }
    }

    /// Writes down how the processes are.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note(&mut self, processes: &[ProcessStatus]) -> Result<(), SuperviseError> {
        let running = Running {
            pid: i32::try_from(std::process::id()).expect("process ids are positive and fit"),
            processes: processes
                .iter()
                .map(|process| RunningProcess {
                    name: process.name.to_string(),
                    state: process.state.name().to_owned(),
                    pid: process.pid,
                    restarts: process.restarts,
                })
                .collect(),
        };
        let text = serde_json::to_string(&running).expect("plain data");
        let file = &mut *self.file;
        let written = file
            .rewind()
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| file.set_len(u64::try_from(text.len()).expect("a length")));
        written.map_err(|cause| SuperviseError::File {
            doing: "writing",
            path: self.path.clone(),
            cause,
        })
    }
}

/// The supervisor of a cluster on this machine, if one lives.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn running(layout: &Layout) -> Result<Option<Running>, SuperviseError> {
    let path = path(layout);
    let failed = |cause| SuperviseError::File {
        doing: "opening",
        path: path.clone(),
        cause,
    };
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(None),
        Err((file, Errno::EWOULDBLOCK)) => Ok(Some(read(file))),
        Err((_, error)) => Err(failed(error.into())),
    }
}

/// What is in the file; nothing when its owner is writing it right now.
fn read(file: File) -> Running {
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
    match read {
        Ok(_) => serde_json::from_str(&text).unwrap_or_default(),
        Err(_) => Running::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_not_believed_and_a_held_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        assert_eq!(running(&layout).unwrap(), None);
        let mut held = RunFile::take(&layout).unwrap();
        let name = super::super::ProcessName::Broker(0);
        held.note(&[ProcessStatus {
            name,
            state: super::super::ProcessState::Ready,
            pid: Some(7),
            restarts: 2,
            kept: 0,
            detail: None,
        }])
        .unwrap();
        let seen = running(&layout).unwrap().unwrap();
        assert_eq!(u32::try_from(seen.pid).unwrap(), std::process::id());
        assert_eq!(
            (seen.processes[0].name.as_str(), seen.processes[0].restarts),
            ("h0/broker", 2)
        );
        assert!(matches!(
            RunFile::take(&layout),
            Err(SuperviseError::Running(_))
        ));
        held.note(&[]).unwrap();
        assert_eq!(running(&layout).unwrap().unwrap().processes, []);
        drop(held);
        assert!(path(&layout).exists());
        assert_eq!(running(&layout).unwrap(), None);
        assert!(RunFile::take(&layout).is_ok());
    }
}
