//! `/dev/xen/gntdev`: maps pages that another domain has granted to us.
//!
//! One descriptor a mapping, closed at once: the mapping itself keeps the device's file, so that the
//! grants are let go exactly when the memory is unmapped.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::error::open_device;
use super::evtchn::EventChannel;
use super::{DomId, XenError, ioctl};
use crate::raw::{PAGE_BYTES, ReadMemory, WriteMemory};

/// Most pages that the kernel maps in one request, by default.
pub const PAGES_MAX: usize = 65_536;

const PATH: &str = "/dev/xen/gntdev";
const LIMIT: &str = "/sys/module/xen_gntdev/parameters/limit";
/// How long a mapping may answer "again".
const AGAIN_MAX: Duration = Duration::from_secs(2);
const AGAIN_AFTER: Duration = Duration::from_millis(1);

/// Maps pages that `domid` granted, in this order, read-only.
///
/// # Errors
/// No such grant, no Xen, or a limit.
pub fn map_read(domid: DomId, refs: &[u32]) -> Result<ReadMemory, XenError> {
    let (device, index) = announce(domid, refs)?;
    retry_mmap(|| ReadMemory::map_at(&device, index, refs.len() * PAGE_BYTES))
        .map_err(|errno| refused(domid, refs, "read-only", errno))
}

/// Maps pages that `domid` granted writable, in this order.
///
/// # Errors
/// No such grant, or a read-only one (EINVAL), no Xen, or a limit.
pub fn map_write(domid: DomId, refs: &[u32]) -> Result<WriteMemory, XenError> {
    let (device, index) = announce(domid, refs)?;
    retry_mmap(|| WriteMemory::map_at(&device, index, refs.len() * PAGE_BYTES))
        .map_err(|errno| refused(domid, refs, "writable", errno))
}

/// The same; when the memory is unmapped, also by the death of this process, `byte` of it is cleared
/// and `channel` rings.
///
/// # Errors
/// As `map_write`.
pub fn map_write_and_clear(
    domid: DomId,
    refs: &[u32],
    byte: usize,
    channel: &EventChannel,
) -> Result<WriteMemory, XenError> {
    assert!(byte < refs.len() * PAGE_BYTES, "inside the pages");
    let (device, index) = announce(domid, refs)?;
    let memory = retry_mmap(|| WriteMemory::map_at(&device, index, refs.len() * PAGE_BYTES))
        .map_err(|errno| refused(domid, refs, "writable", errno))?;
    ioctl::set_unmap_notify(&device, index + byte as u64, channel.port())
        .map_err(|errno| refused(domid, refs, "with a last word", errno))?;
    Ok(memory)
}

fn announce(domid: DomId, refs: &[u32]) -> Result<(OwnedFd, u64), XenError> {
    if refs.is_empty() || refs.len() > PAGES_MAX {
        return Err(refused(domid, refs, "at all", Errno::EINVAL));
    }
    let missing = "load it with modprobe xen-gntdev";
    let device = open_device(PATH, missing)?;
    let index = ioctl::gntdev_map(&device, domid, refs)
        .map_err(|errno| refused(domid, refs, "at all", errno))?;
    Ok((device, index))
}

fn refused(domid: DomId, refs: &[u32], how: &str, errno: Errno) -> XenError {
    let doing = format!("map {} pages of domain {domid} {how}", refs.len());
    let remedy = match errno {
        Errno::EINVAL => {
            "domain has not granted these pages to this one in this way (a mirror is read-only), or they are more than the limit"
        }
        Errno::ENOMEM => {
            "this domain has no memory left, or too few grant frames (gnttab_max_maptrack_frames)"
        }
        Errno::EAGAIN => "the other domain's page is paged out and stays so",
        _ => "look at the kernel's log (dmesg)",
    };
    XenError::new(doing, errno, remedy).with_limit(LIMIT)
}

/// Xen answers "again" while the other domain's page is being brought back.
pub(super) fn retry_mmap<T>(mut map: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    let deadline = Instant::now() + AGAIN_MAX;
    loop {
        match map() {
            Err(Errno::EAGAIN) if Instant::now() < deadline => std::thread::sleep(AGAIN_AFTER),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn again_is_tried_again_and_other_errors_are_not() {
        let mut answers = vec![Ok(7), Err(Errno::EAGAIN), Err(Errno::EAGAIN)];
        assert_eq!(retry_mmap(|| answers.pop().expect("not that often")), Ok(7));
        let mut answers = vec![Ok(7), Err(Errno::EINVAL)];
        let result = retry_mmap(|| answers.pop().expect("not that often"));
        assert_eq!(result, Err(Errno::EINVAL));
    }

    #[test]
    fn nothing_and_too_much_are_refused_before_the_kernel_is_asked() {
        for refs in [vec![], vec![8; PAGES_MAX + 1]] {
            let error = map_read(0, &refs).map(|_| ()).expect_err("refused");
            assert_eq!(error.errno, Errno::EINVAL);
            assert!(error.to_string().contains(LIMIT), "{error}");
        }
    }
}
