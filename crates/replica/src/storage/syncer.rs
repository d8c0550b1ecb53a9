//! The thread that forces segments to the disk, and removes those that nobody needs any more.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Lsn, StorageError};

/// What is to be done. Invariant: `files` holds a file once, in the order of their numbers.
#[derive(Default)]
struct Wanted {
    upto: Lsn,
    files: Vec<(Arc<File>, PathBuf)>,
    remove: Vec<PathBuf>,
    /// One of the files was made since the last flush.
    new_file: bool,
    stop: bool,
    /// The thread waits for work and has to be told of it.
    idle: bool,
    error: Option<StorageError>,
}

struct Shared {
    wanted: Mutex<Wanted>,
    called: Condvar,
    /// A flush is over.
    done: Condvar,
    synced: AtomicU64,
    syncs: AtomicU64,
    failed: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle to the thread.
pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    /// The file of the last request.
    current: Option<Arc<File>>,
}

impl Syncer {
    /// Starts the thread. `interval` is the least time between two flushes.
    pub(super) fn start(
        dir: &Path,
        interval: Duration,
        wake: Box<dyn Fn() + Send>,
    ) -> Result<Self, StorageError> {
        let failed = |cause| StorageError::Io {
            doing: "opening",
            path: dir.to_owned(),
            cause,
        };
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            called: Condvar::new(),
            done: Condvar::new(),
            synced: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        });
        let directory = (File::open(dir).map_err(failed)?, dir.to_owned());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("wal-sync".to_owned())
            .spawn(move || run(&theirs, &directory, interval, &*wake))
            .map_err(failed)?;
        Ok(Self {
            shared,
            thread,
            current: None,
        })
    }

    /// Records up to `upto` were written, the last of them to `file`.
    pub(super) fn request(&mut self, upto: Lsn, file: &Arc<File>, path: &Path) {
        let mut wanted = self.shared.lock();
        wanted.upto = upto;
        if !self
            .current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, file))
        {
            wanted.new_file = true;
            self.current = Some(file.clone());
        }
        if !wanted
            .files
            .last()
            .is_some_and(|(last, _)| Arc::ptr_eq(last, file))
        {
            wanted.files.push((file.clone(), path.to_owned()));
        }
        self.call(wanted);
    }

    /// Removes a segment after the next flush.
    pub(super) fn remove_later(&mut self, path: PathBuf) {
        let mut wanted = self.shared.lock();
        wanted.remove.push(path);
        self.call(wanted);
    }

    fn call(&self, mut wanted: MutexGuard<'_, Wanted>) {
        if std::mem::take(&mut wanted.idle) {
            drop(wanted);
            self.shared.called.notify_one();
        }
    }

    /// Records up to this one are on the disk.
    pub(super) fn synced(&self) -> Lsn {
        self.shared.synced.load(Ordering::Acquire)
    }

    /// Waits until records up to this one are on the disk, or the disk has failed.
    pub(super) fn wait_for(&mut self, upto: Lsn) -> Option<StorageError> {
        let mut wanted = self.shared.lock();
        while self.synced() < upto && !self.shared.failed.load(Ordering::Acquire) {
            wanted = self
                .shared
                .done
                .wait(wanted)
                .unwrap_or_else(PoisonError::into_inner);
        }
        wanted.error.take()
    }

    /// How often the disk was asked.
    pub(super) fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// The error that ended the thread.
    pub(super) fn take_error(&mut self) -> Option<StorageError> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return None;
        }
        self.shared.lock().error.take()
    }

    /// Syncs what is left and ends the thread.
    pub(super) fn stop(self) -> Option<StorageError> {
        {
            let mut wanted = self.shared.lock();
            wanted.stop = true;
            self.call(wanted);
        }
        self.shared.called.notify_one();
        self.thread
            .join()
            .expect("the syncing thread does not panic");
        self.shared.lock().error.take()
    }
}

fn run(shared: &Shared, directory: &(File, PathBuf), interval: Duration, wake: &dyn Fn()) {
    let mut last = None::<Instant>;
    loop {
        let mut wanted = shared.lock();
        while wanted.files.is_empty() && wanted.remove.is_empty() && !wanted.stop {
            wanted.idle = true;
            wanted = shared
                .called
                .wait(wanted)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let stop = wanted.stop;
        // A flush that is due later gathers what comes until then.
        let pause = last.map_or(Duration::ZERO, |at| interval.saturating_sub(at.elapsed()));
        if !stop && !pause.is_zero() {
            drop(wanted);
            std::thread::sleep(pause);
            wanted = shared.lock();
        }
        let upto = wanted.upto;
        let files = std::mem::take(&mut wanted.files);
        let remove = std::mem::take(&mut wanted.remove);
        let new_file = std::mem::take(&mut wanted.new_file);
        drop(wanted);
        last = Some(Instant::now());
        if let Err(error) = carry_out(directory, &files, &remove, new_file) {
            let mut wanted = shared.lock();
            wanted.error = Some(error);
            shared.failed.store(true, Ordering::Release);
            drop(wanted);
            shared.done.notify_all();
            wake();
            return;
        }
        shared.syncs.fetch_add(1, Ordering::Relaxed);
        let before = {
            // Under the lock, so that nobody who looks and then waits misses it.
            let _wanted = shared.lock();
            shared.synced.swap(upto, Ordering::Release)
        };
        shared.done.notify_all();
        if before != upto {
            wake();
        }
        if stop {
            return;
        }
    }
}

fn carry_out(
    (directory, directory_path): &(File, PathBuf),
    files: &[(Arc<File>, PathBuf)],
    remove: &[PathBuf],
    new_file: bool,
) -> Result<(), StorageError> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |cause: io::Error| StorageError::Io { doing, path, cause }
    };
    for (file, path) in files {
        file.sync_data().map_err(failed("flushing", path))?;
    }
    for path in remove {
        std::fs::remove_file(path).map_err(failed("removing", path))?;
    }
    // A file that is new or gone is so only once its directory says it.
    if new_file || !remove.is_empty() {
        directory
            .sync_all()
            .map_err(failed("flushing", directory_path))?;
    }
    Ok(())
}
