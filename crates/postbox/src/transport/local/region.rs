//! The log region as a memfd: mapped writable once by the broker, then sealed so that nobody, the
//! broker included, can ever map or write it again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use crate::log_view::{LogInfo, RegionError};
use crate::log_writer::{AdoptError, LogWriter, peek_info, region_bytes};
use crate::raw::{ReadMemory, WriteMemory};

/// A log region and its writer.
pub struct LocalLog {
    /// The writer; the mapping lives in it.
    pub writer: LogWriter,
    fd: OwnedFd,
}

/// Why a region cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LocalLogError {
    /// The kernel refuses.
    #[error(
        "cannot make a log region of {bytes} bytes: {error}; is there enough memory, and a kernel from 5.1 on?"
    )]
    Kernel {
        /// Size of the region.
        bytes: usize,
        /// What it says.
        error: io::Error,
    },
    /// Limits that no log can be built with.
    #[error(transparent)]
    Limits(#[from] crate::ledger::LimitsError),
    /// The earlier region cannot be mapped.
    #[error("cannot map the earlier log: {0}")]
    Map(io::Error),
    /// The earlier region does not verify.
    #[error("the earlier log cannot be continued: {0}")]
    Adopt(#[from] AdoptError),
}

impl From<RegionError> for LocalLogError {
    fn from(error: RegionError) -> Self {
        Self::Adopt(error.into())
    }
}

impl LocalLog {
    /// An empty log.
    ///
    /// # Errors
    /// The kernel refuses, or the limits are impossible.
    pub fn create(info: LogInfo) -> Result<Self, LocalLogError> {
        info.limits.validate()?;
        let (memory, fd) = fresh(region_bytes(&info.limits))?;
        Ok(Self {
            writer: LogWriter::format(memory, info)?,
            fd,
        })
    }

    /// Continues the log of an earlier broker process in a fresh region, under the same epoch and
    /// positions.
    ///
    /// # Errors
    /// The old region does not verify, or the kernel refuses.
    pub fn adopt(old: &ReadMemoryFile) -> Result<Self, LocalLogError> {
        let (memory, fd) = fresh(region_bytes(&old.info.limits))?;
        Ok(Self {
            writer: LogWriter::adopt(memory, old.memory.clone())?,
            fd,
        })
    }

    /// The sealed descriptor, to be handed to twins and to the supervisor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A region that somebody else made, mapped read-only.
pub struct ReadMemoryFile {
    /// The mapping.
    pub memory: Arc<ReadMemory>,
    /// What its control page says.
    pub info: LogInfo,
}

impl ReadMemoryFile {
    /// Maps a region read-only, after a look at its seals: a file that could shrink could kill us.
    ///
    /// # Errors
    /// It is not sealed as a broker seals it, cannot be mapped, or is no log.
    pub fn open(fd: impl AsFd) -> Result<Self, LocalLogError> {
        let memory = map_sealed(fd.as_fd(), region_seals()).map_err(LocalLogError::Map)?;
        let memory = Arc::new(memory);
        let info = peek_info(memory.clone())?;
        Ok(Self { memory, info })
    }
}

fn region_seals() -> SealFlag {
    ring_seals() | SealFlag::F_SEAL_FUTURE_WRITE
}

fn ring_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

fn fresh(bytes: usize) -> Result<(WriteMemory, OwnedFd), LocalLogError> {
    create_sealed("twinbft-log", bytes, region_seals())
        .map_err(|error| LocalLogError::Kernel { bytes, error })
}

/// A memfd that is mapped writable and then sealed.
fn create_sealed(name: &str, bytes: usize, seals: SealFlag) -> io::Result<(WriteMemory, OwnedFd)> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let length = i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    ftruncate(&fd, length)?;
    let memory = WriteMemory::map(&fd, bytes)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok((memory, fd))
}

/// The memory of one twin's append channel.
pub(crate) fn create_ring(bytes: usize) -> io::Result<(WriteMemory, OwnedFd)> {
    create_sealed("twinbft-ring", bytes, ring_seals())
}

/// Size of a sealed file.
fn sealed_bytes(fd: BorrowedFd<'_>, seals: SealFlag) -> io::Result<usize> {
    let found = SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS)?);
    if !found.contains(seals) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its seals are {found:?}, not {seals:?}"),
        ));
    }
    usize::try_from(fstat(fd)?.st_size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn map_sealed(fd: BorrowedFd<'_>, seals: SealFlag) -> io::Result<ReadMemory> {
    let bytes = sealed_bytes(fd, seals)?;
    Ok(ReadMemory::map(fd, bytes)?)
}

/// Maps a channel that the broker made.
pub(crate) fn map_ring(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<WriteMemory> {
    let found = sealed_bytes(fd, ring_seals())?;
    if found < bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it has {found} bytes, not {bytes}"),
        ));
    }
    Ok(WriteMemory::map(fd, bytes)?)
}
