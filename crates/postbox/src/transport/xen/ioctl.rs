//! The ioctls of `/dev/xen/{gntalloc,gntdev,evtchn}`. Their argument is a struct, for two of them with
//! an array behind it whose length it says; here it is bytes that are put together by safe code.
//! Unsafe is needed because only the kernel knows what it reads and writes there.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

use super::DomId;

/// All are `_IOC_NONE`; the size is that of the struct with an array of one, whatever the count.
const fn request(kind: u8, number: u8, bytes: u32) -> u32 {
    bytes << 16 | (kind as u32) << 8 | number as u32
}

const GNTALLOC_ALLOC: u32 = request(b'G', 5, 24);
const GNTALLOC_DEALLOC: u32 = request(b'G', 6, 16);
/// The same number for gntalloc and for gntdev.
const SET_UNMAP_NOTIFY: u32 = request(b'G', 7, 16);
const GNTDEV_MAP: u32 = request(b'G', 0, 24);
const EVTCHN_BIND_INTERDOMAIN: u32 = request(b'E', 1, 8);
const EVTCHN_BIND_UNBOUND: u32 = request(b'E', 2, 4);
const EVTCHN_NOTIFY: u32 = request(b'E', 4, 4);
const EVTCHN_RESET: u32 = request(b'E', 5, 0);
const EVTCHN_RESTRICT: u32 = request(b'E', 6, 2);

const _: () = {
    assert!(GNTALLOC_ALLOC == 0x18_4705 && GNTALLOC_DEALLOC == 0x10_4706);
    assert!(SET_UNMAP_NOTIFY == 0x10_4707 && GNTDEV_MAP == 0x18_4700);
    assert!(EVTCHN_BIND_INTERDOMAIN == 0x8_4501 && EVTCHN_BIND_UNBOUND == 0x4_4502);
    assert!(EVTCHN_NOTIFY == 0x4_4504 && EVTCHN_RESET == 0x4505 && EVTCHN_RESTRICT == 0x2_4506);
};

/// The peer may write too.
const GNTALLOC_WRITABLE: u16 = 1;
const UNMAP_CLEAR_BYTE: u32 = 1;
const UNMAP_SEND_EVENT: u32 = 2;
/// Bytes before the array of an alloc or map request.
const ARRAY_AT: usize = 16;

/// `argument` is as long as the request's struct and the array that it announces: each caller below
/// builds it from the very numbers that it puts into it.
fn call(device: impl AsFd, request: u32, argument: &mut [u8]) -> nix::Result<u32> {
    assert!(
        argument.len() >= (request >> 16) as usize,
        "an argument is as long as its request says"
    );
    let device = device.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes within `argument`, see above; it keeps no pointer.
    let answer = unsafe {
        libc::ioctl(
            device,
            libc::Ioctl::from(request),
            argument.as_mut_ptr().cast::<libc::c_void>(),
        )
    };
    let answer = Errno::result(answer)?;
    Ok(u32::try_from(answer).expect("negative answers are errors"))
}

fn alloc_argument(domid: DomId, count: u32, writable: bool) -> Vec<u8> {
    let mut bytes = vec![0; ARRAY_AT + 4 * (count as usize).max(2)];
    bytes[0..2].copy_from_slice(&domid.to_ne_bytes());
    let flags = if writable { GNTALLOC_WRITABLE } else { 0 };
    bytes[2..4].copy_from_slice(&flags.to_ne_bytes());
    bytes[4..8].copy_from_slice(&count.to_ne_bytes());
    bytes
}

fn map_argument(domid: DomId, refs: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; ARRAY_AT];
    let count = u32::try_from(refs.len()).expect("the caller bounds it");
    bytes[0..4].copy_from_slice(&count.to_ne_bytes());
    for gref in refs {
        bytes.extend_from_slice(&u32::from(domid).to_ne_bytes());
        bytes.extend_from_slice(&gref.to_ne_bytes());
    }
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().expect("inside the argument"))
}

/// Grants `count` fresh zeroed pages to a domain. Answers their place in the device's file and their
/// references, in the order of the pages.
pub(super) fn gntalloc_alloc(
    device: impl AsFd,
    domid: DomId,
    count: u32,
    writable: bool,
) -> nix::Result<(u64, Vec<u32>)> {
    let mut argument = alloc_argument(domid, count, writable);
    call(device, GNTALLOC_ALLOC, &mut argument)?;
    let (refs, _) = argument[ARRAY_AT..].as_chunks::<4>();
    let refs = refs[..count as usize]
        .iter()
        .map(|bytes| u32::from_ne_bytes(*bytes));
    Ok((u64_at(&argument, 8), refs.collect()))
}

/// Gives pages back; the kernel frees each as soon as nobody maps it any more.
pub(super) fn gntalloc_dealloc(device: impl AsFd, index: u64, count: u32) -> nix::Result<()> {
    let mut argument = [0; 16];
    argument[0..8].copy_from_slice(&index.to_ne_bytes());
    argument[8..12].copy_from_slice(&count.to_ne_bytes());
    call(device, GNTALLOC_DEALLOC, &mut argument).map(|_| ())
}

/// Announces a mapping of another domain's pages. Answers its place in the device's file.
pub(super) fn gntdev_map(device: impl AsFd, domid: DomId, refs: &[u32]) -> nix::Result<u64> {
    assert!(!refs.is_empty(), "somebody maps nothing");
    let mut argument = map_argument(domid, refs);
    call(device, GNTDEV_MAP, &mut argument)?;
    Ok(u64_at(&argument, 8))
}

/// When the pages go, also by the death of this process: clears a byte and rings `port`.
pub(super) fn set_unmap_notify(device: impl AsFd, byte: u64, port: u32) -> nix::Result<()> {
    let mut argument = [0; 16];
    argument[0..8].copy_from_slice(&byte.to_ne_bytes());
    argument[8..12].copy_from_slice(&(UNMAP_CLEAR_BYTE | UNMAP_SEND_EVENT).to_ne_bytes());
    argument[12..16].copy_from_slice(&port.to_ne_bytes());
    call(device, SET_UNMAP_NOTIFY, &mut argument).map(|_| ())
}

/// A port that `domid` may bind. Answers our port.
pub(super) fn evtchn_bind_unbound(device: impl AsFd, domid: DomId) -> nix::Result<u32> {
    call(
        device,
        EVTCHN_BIND_UNBOUND,
        &mut u32::from(domid).to_ne_bytes(),
    )
}

/// Binds to a port that `domid` offers. Answers our port.
pub(super) fn evtchn_bind_interdomain(
    device: impl AsFd,
    domid: DomId,
    remote_port: u32,
) -> nix::Result<u32> {
    let mut argument = [0; 8];
    argument[0..4].copy_from_slice(&u32::from(domid).to_ne_bytes());
    argument[4..8].copy_from_slice(&remote_port.to_ne_bytes());
    call(device, EVTCHN_BIND_INTERDOMAIN, &mut argument)
}

/// Rings.
pub(super) fn evtchn_notify(device: impl AsFd, port: u32) -> nix::Result<()> {
    call(device, EVTCHN_NOTIFY, &mut port.to_ne_bytes()).map(|_| ())
}

/// Forgets the queue of events, after an overflow.
pub(super) fn evtchn_reset(device: impl AsFd) -> nix::Result<()> {
    call(device, EVTCHN_RESET, &mut []).map(|_| ())
}

/// From now on the descriptor binds to `domid` alone.
pub(super) fn evtchn_restrict(device: impl AsFd, domid: DomId) -> nix::Result<()> {
    call(device, EVTCHN_RESTRICT, &mut domid.to_ne_bytes()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_layout() {
        let alloc = alloc_argument(0x0102, 3, true);
        assert_eq!(alloc.len(), 16 + 12);
        assert_eq!(alloc[..8], [2, 1, 1, 0, 3, 0, 0, 0]);
        assert_eq!(alloc_argument(5, 1, false)[..8], [5, 0, 0, 0, 1, 0, 0, 0]);
        // The array of the struct that the number speaks of fits even when one page is asked for.
        assert_eq!(alloc_argument(5, 1, false).len(), 24);
        let map = map_argument(7, &[0x0a, 0x0b]);
        let expected = [
            2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0x0a, 0, 0, 0, 7, 0, 0, 0,
            0x0b, 0, 0, 0,
        ];
        assert_eq!(map, expected);
    }

    /// Not Xen's device, but a kernel that answers: the error comes back as one.
    #[test]
    fn a_descriptor_of_something_else_is_refused() {
        let null = std::fs::File::open("/dev/null").expect("every machine has it");
        assert_eq!(gntalloc_alloc(&null, 1, 1, false), Err(Errno::ENOTTY));
        assert_eq!(gntdev_map(&null, 1, &[9]), Err(Errno::ENOTTY));
        assert_eq!(evtchn_notify(&null, 1), Err(Errno::ENOTTY));
    }
}
