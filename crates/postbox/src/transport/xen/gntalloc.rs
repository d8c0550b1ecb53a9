//! `/dev/xen/gntalloc`: pages of our own that another domain may map, read-only or writable.
//!
//! A page that is granted cannot be taken back while the other domain maps it. So whoever grants does
//! it once for the life of a domain, never for a connection, or a guest could use the host's grants up.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::error::open_device;
use super::evtchn::EventChannel;
use super::gntdev::retry_mmap;
use super::{DomId, XenError, ioctl};
use crate::raw::{PAGE_BYTES, WriteMemory};

const PATH: &str = "/dev/xen/gntalloc";
const LIMIT: &str = "/sys/module/xen_gntalloc/parameters/limit";

/// What the other domain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read; a writable mapping is refused by Xen.
    Read,
    /// Read and write.
    Write,
}

/// The device. When its last descriptor is closed, all that it granted is given back.
#[derive(Clone, Debug)]
pub struct Gntalloc(Arc<OwnedFd>);

impl Gntalloc {
    /// Opens it.
    ///
    /// # Errors
    /// No Xen, no module, no permission.
    pub fn open() -> Result<Self, XenError> {
        let missing = "load it with modprobe xen-gntalloc, and name it in /etc/modules-load.d (Debian's Xen scripts do not)";
        open_device(PATH, missing).map(|fd| Self(Arc::new(fd)))
    }

    /// A descriptor that an earlier process of this program opened, with all that was granted through it.
    #[must_use]
    pub fn from_kept(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    /// Maps again what was granted through this descriptor. The pages have the content that they had.
    ///
    /// # Errors
    /// Nothing of that size was granted there.
    pub fn map_again(
        &self,
        domid: DomId,
        index: u64,
        refs: Vec<u32>,
    ) -> Result<(WriteMemory, Grant), XenError> {
        let pages = refs.len();
        let memory = retry_mmap(|| WriteMemory::map_at(&self.0, index, pages * PAGE_BYTES));
        let memory = memory.map_err(|errno| {
            let doing = format!("map {pages} pages again that were granted to domain {domid}");
            XenError::new(
                doing,
                errno,
                "the descriptor is not the one that granted them",
            )
        })?;
        let device = self.clone();
        Ok((
            memory,
            Grant {
                device,
                domid,
                index,
                refs,
            },
        ))
    }

    /// Grants fresh zeroed pages to `domid` and maps them here.
    ///
    /// # Errors
    /// A limit; see the error.
    pub fn allocate(
        &self,
        domid: DomId,
        pages: usize,
        access: Access,
    ) -> Result<(WriteMemory, Grant), XenError> {
        let doing = || format!("grant {pages} pages to domain {domid}");
        let count = u32::try_from(pages).unwrap_or(u32::MAX);
        if count == 0 || pages > super::gntdev::PAGES_MAX {
            let remedy = "use a smaller log or ring";
            let value = super::gntdev::PAGES_MAX.to_string();
            return Err(XenError::new(doing(), Errno::EINVAL, remedy)
                .with_value("pages of one grant at most", value));
        }
        let (index, refs) = ioctl::gntalloc_alloc(&*self.0, domid, count, access == Access::Write)
            .map_err(|errno| {
                let remedy = match errno {
                    Errno::ENOSPC => "raise the limit (it counts pages of all domains), and gnttab_max_frames on Xen's command line when that is used up too (512 grants a frame)",
                    Errno::ENOMEM => "this domain has no memory left; raise dom0_mem",
                    _ => "does domain exist, and does /proc/xen/privcmd?",
                };
                XenError::new(doing(), errno, remedy).with_limit(LIMIT)
            })?;
        let grant = Grant {
            device: self.clone(),
            domid,
            index,
            refs,
        };
        let memory = retry_mmap(|| WriteMemory::map_at(&self.0, index, pages * PAGE_BYTES))
            .map_err(|errno| {
                XenError::new(
                    format!("map the pages granted to domain {domid}"),
                    errno,
                    "look at the kernel's log (dmesg)",
                )
            })?;
        Ok((memory, grant))
    }
}

impl AsFd for Gntalloc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Pages that a domain may map. Dropping gives them back: at once when nobody maps them, otherwise the
/// kernel does it when the other domain lets go.
pub struct Grant {
    device: Gntalloc,
    domid: DomId,
    index: u64,
    /// In the order of the pages. Xen hands them out unsorted.
    refs: Vec<u32>,
}

impl Grant {
    /// The references, in the order of the pages.
    #[must_use]
    pub fn refs(&self) -> &[u32] {
        &self.refs
    }

    /// Where the pages are in the device's file.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// When this process dies (and nobody else holds the device open): clears a byte of the pages and
    /// rings.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn clear_on_release(&self, byte: usize, channel: &EventChannel) -> Result<(), XenError> {
        assert!(byte < self.refs.len() * PAGE_BYTES, "inside the pages");
        ioctl::set_unmap_notify(&self.device, self.index + byte as u64, channel.port()).map_err(
            |errno| {
                let doing = format!("have domain {} told of this process's end", self.domid);
                XenError::new(doing, errno, "look at the kernel's log (dmesg)")
            },
        )
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let count = u32::try_from(self.refs.len()).expect("it was one");
        // It can only fail for pages that are not ours; closing the device would free them anyway.
        let _ = ioctl::gntalloc_dealloc(&self.device, self.index, count);
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages for domain {}", self.refs.len(), self.domid)
    }
}
