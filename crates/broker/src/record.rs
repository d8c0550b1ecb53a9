//! Records the log to disk, for audits (protocol.md 9). It reads the log as a twin does, in a thread of its own, so that
//! no disk can ever hold an append up: what it cannot keep up with is a gap in the record, named and counted.

mod directory;
mod recorder;
mod report;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use twinbft_postbox::log_view::LogView;
use twinbft_postbox::transport::local::region::ReadMemoryFile;

use recorder::Recorder;
pub use report::Report;

/// How often the thread looks at the log: what a crash of the whole machine may cost the record is more, see
/// [`SYNC_EVERY`]; what a crash of the broker costs is read again from the log, which survives it.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often what was written is flushed to the disk.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// After a failed write, how long until the next attempt.
const RETRY_EVERY: Duration = Duration::from_secs(10);

/// What is to be recorded, and where.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// The directory of this host's segments.
    pub dir: PathBuf,
    /// Most bytes of them.
    pub bytes_max: u64,
    /// For the headers.
    pub cluster_id: String,
    /// For the headers.
    pub host: u32,
}

/// The running thread.
pub struct Recording {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// What it says of itself.
    pub report: Arc<Report>,
    /// Gets a byte for each event.
    pub bell: UnixStream,
}

impl Recording {
    /// Starts to record the log in this region. A disk that cannot be written is no error here: it is reported.
    ///
    /// # Errors
    /// The kernel gives no thread, or the region cannot be mapped.
    pub fn start(options: RecordOptions, region: BorrowedFd<'_>) -> anyhow::Result<Self> {
        let region = ReadMemoryFile::open(region).context("cannot read the own log")?;
        let view = LogView::open(region.memory).context("cannot read the own log")?;
        let (bell, far_bell) = bell().context("cannot make a bell for the recorder")?;
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Report::new(&options, far_bell));
        let mut recorder = Recorder::new(options, view, report.clone());
        let stopped = stop.clone();
        let life = move || {
            while !stopped.load(Ordering::Acquire) {
                recorder.turn();
                thread::park_timeout(LOOK_EVERY);
            }
            recorder.finish();
        };
        let thread = thread::Builder::new().name("recorder".to_owned());
        let thread = thread
            .spawn(life)
            .context("cannot start the recorder's thread")?;
        Ok(Self {
            thread: Some(thread),
            stop,
            report,
            bell,
        })
    }

    /// Records what is in the log, and ends.
    pub fn finish(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A recorder that panicked has recorded what it could; its broker has nothing to add.
            let _ended = thread.join();
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.finish();
    }
}

fn bell() -> io::Result<(UnixStream, UnixStream)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((near, far))
}
