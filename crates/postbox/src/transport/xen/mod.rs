//! The transport for twins in Xen guests, with the broker in dom0: grants for memory, an event
//! channel to wake, xenstore to find each other. Plain ioctls over `/dev/xen`, no link against libxen.
//!
//! Whatever a guest can write (its ring, its part of xenstore) is treated as an enemy's: copied once,
//! then looked at. Nothing here waits without a deadline.

pub mod client;
pub mod descriptor;
mod error;
pub mod evtchn;
pub mod gntalloc;
pub mod gntdev;
pub mod guest;
mod ioctl;
pub mod keepsake;
pub mod xenstore;
pub mod xenstore_wire;

pub use error::XenError;

/// Number of a Xen domain. It changes with each reboot of a guest.
pub type DomId = u16;

/// The domain that the broker runs in.
pub const DOM0: DomId = 0;
