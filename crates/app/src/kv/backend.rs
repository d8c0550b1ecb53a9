//! The file under the store, and when it is forced to the disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::Path;
#[cfg(test)]
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use crate::options::Durability;

/// A file that is synced only when the durability asks for it.
///
/// redb's own way to save the sync (`Durability::None`) would lose the checkpoint with the process, because such a
/// commit never reaches the header of the file. Leaving out the sync alone keeps every checkpoint in the kernel's
/// cache, where the next process finds it.
#[derive(Debug)]
pub(crate) struct Backend {
    file: FileBackend,
    durability: Durability,
    #[cfg(test)]
    full: Arc<AtomicBool>,
}

impl Backend {
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<Self, redb::DatabaseError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| redb::DatabaseError::Storage(error.into()))?;
        Ok(Self {
            file: FileBackend::new(file)?,
            durability,
            #[cfg(test)]
            full: Arc::default(),
        })
    }

    /// A switch that makes the disk full.
    #[cfg(test)]
    pub(crate) fn full_switch(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.full)
    }

    #[cfg(test)]
    fn check_space(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        self.check_space()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.durability {
            Durability::Memory => Ok(()),
            Durability::Sync => self.file.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.check_space()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

/// Makes a rename or a new file in this directory durable.
pub(crate) fn sync_directory(directory: &Path, durability: Durability) -> io::Result<()> {
    match durability {
        Durability::Memory => Ok(()),
        Durability::Sync => File::open(directory)?.sync_all(),
    }
}
