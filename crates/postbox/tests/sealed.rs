//! The kernel, not good manners, keeps twins from writing the log and from each other's rings
//! (protocol.md, section 2).

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect, munmap};
use nix::sys::stat::fstat;
use twinbft_postbox::raw::{PAGE_BYTES, ReadMemory, WriteMemory};
use twinbft_postbox::transport::local::fds::receive_with_fds;
use twinbft_postbox::transport::local::region::{LocalLog, ReadMemoryFile};
use twinbft_postbox::transport::local::server::BrokerChannel;
use twinbft_postbox::transport::local::wire::{PROTOCOL_VERSION, Welcome};
use twinbft_postbox::{Limits, LogInfo, Outcome};

fn log() -> LocalLog {
    let limits = Limits {
        log_bytes: 65536,
        entry_bytes_max: 1000,
        ..Limits::new(2)
    };
    LocalLog::create(LogInfo {
        limits,
        epoch: 1,
        cluster_tag: 7,
        host: 0,
        generation: 0,
    })
    .expect("there is memory")
}

/// What a twin gets over its socket.
fn hand_over(log: &LocalLog, twin: u8) -> (BrokerChannel, Vec<OwnedFd>) {
    let (broker, side) = UnixStream::pair().expect("descriptors are left");
    let welcome = Welcome {
        version: PROTOCOL_VERSION,
        rejection: None,
        cluster_tag: 7,
        host: 0,
        twin,
        twins: 2,
        ring_order: 12,
        epoch: 1,
        next_number: 0,
    };
    let limits = &log.writer.info().limits;
    let channel = BrokerChannel::open(broker, &welcome, log.fd(), limits).expect("there is memory");
    let (_, fds) = receive_with_fds(&side, &mut [0; 64]).expect("a welcome");
    (channel, fds)
}

#[test]
fn a_twin_cannot_write_the_log_by_any_way_that_the_kernel_has() {
    let mut log = log();
    let (_channel, fds) = hand_over(&log, 0);
    let region = &fds[0];
    assert!(matches!(
        WriteMemory::map(region, PAGE_BYTES),
        Err(Errno::EPERM)
    ));
    assert_eq!(nix::unistd::write(region, b"x"), Err(Errno::EPERM));
    assert_eq!(nix::sys::uio::pwrite(region, b"x", 0), Err(Errno::EPERM));
    assert_eq!(nix::unistd::ftruncate(region, 0), Err(Errno::EPERM));
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(region, punch, 0, 4096), Err(Errno::EPERM));
    assert_eq!(
        fcntl(region, FcntlArg::F_ADD_SEALS(SealFlag::empty())),
        Err(Errno::EPERM)
    );

    let page = NonZeroUsize::new(PAGE_BYTES).expect("not zero");
    // SAFETY: a fresh mapping at the kernel's choice; it is never dereferenced, and unmapped below.
    // Unsafe is what the attack is made of.
    let mapped = unsafe {
        mmap(
            None,
            page,
            ProtFlags::PROT_READ,
            MapFlags::MAP_SHARED,
            region,
            0,
        )
    };
    let mapped = mapped.expect("reading is allowed");
    // SAFETY: our own mapping from above.
    let result = unsafe {
        mprotect(
            mapped,
            PAGE_BYTES,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        )
    };
    assert_eq!(result, Err(Errno::EACCES));
    // SAFETY: our own mapping from above, unmapped once.
    unsafe { munmap(mapped, PAGE_BYTES) }.expect("it was mapped");

    // Reopening the file through /proc gives a writable descriptor to the same sealed file.
    let path = format!("/proc/self/fd/{}", region.as_raw_fd());
    let reopened = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("it is ours to open");
    assert!(matches!(
        WriteMemory::map(&reopened, PAGE_BYTES),
        Err(Errno::EPERM)
    ));

    // The broker, which mapped it before the seal, still can, and the twin sees it.
    let view = ReadMemoryFile::open(region).expect("a log");
    assert!(matches!(
        log.writer.append(0, 0, b"entry"),
        Outcome::Accepted(_)
    ));
    assert!(log.writer.publish());
    let mut view = twinbft_postbox::log_view::LogView::open(view.memory).expect("a log");
    let mut payload = Vec::new();
    assert!(view.poll_next(&mut payload).expect("a sound log").is_some());
    assert_eq!(payload, b"entry");
}

#[test]
fn not_even_the_broker_can_map_it_writable_again() {
    let log = log();
    assert!(matches!(
        WriteMemory::map(log.fd(), PAGE_BYTES),
        Err(Errno::EPERM)
    ));
}

#[test]
fn one_twins_ring_is_not_anothers_and_cannot_change_size() {
    let log = log();
    let (_zero, ours) = hand_over(&log, 0);
    let (_one, theirs) = hand_over(&log, 1);
    let inode = |fd: &OwnedFd| fstat(fd).expect("an open file").st_ino;
    assert_ne!(inode(&ours[1]), inode(&theirs[1]));
    assert_eq!(inode(&ours[0]), inode(&theirs[0]), "the log is one");
    let bytes = usize::try_from(fstat(&ours[1]).expect("an open file").st_size).expect("small");
    let (mine, other) = (
        WriteMemory::map(&ours[1], bytes),
        ReadMemory::map(&theirs[1], bytes),
    );
    let (mine, other) = (mine.expect("its own ring"), other.expect("for the test"));
    for at in (0..bytes).step_by(8) {
        mine.store_u64(at, u64::MAX);
    }
    let mut page = vec![0; bytes];
    other.copy_out(0, &mut page);
    assert!(
        page[24..].iter().all(|&byte| byte == 0),
        "nothing that one twin writes shows in the other's ring"
    );
    for size in [0, 1 << 20] {
        assert_eq!(
            nix::unistd::ftruncate(&ours[1], size),
            Err(Errno::EPERM),
            "a shrunk ring would kill the broker"
        );
    }
}

#[test]
fn a_region_that_could_shrink_is_not_mapped() {
    let flags =
        nix::sys::memfd::MFdFlags::MFD_CLOEXEC | nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
    let file = nix::sys::memfd::memfd_create("unsealed", flags).expect("descriptors are left");
    nix::unistd::ftruncate(&file, 1 << 20).expect("there is memory");
    let Err(error) = ReadMemoryFile::open(file.as_fd()) else {
        panic!("it must be refused")
    };
    assert!(error.to_string().contains("seals"), "{error}");
    drop(Arc::new(file));
}
