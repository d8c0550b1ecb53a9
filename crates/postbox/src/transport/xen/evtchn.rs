//! `/dev/xen/evtchn`: one event channel, on a descriptor of its own. An event is a wake-up and not a
//! count: whoever is woken looks at the memory again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{read, write};

use super::error::open_device;
use super::{DomId, XenError, ioctl};

const PATH: &str = "/dev/xen/evtchn";
/// Ports that one read takes. There is one on this descriptor, and it is masked once it rang.
const PORTS_READ: usize = 8;

/// One end of an event channel. Dropping it closes the port; the other end stays and can be bound
/// again.
#[derive(Debug)]
pub struct EventChannel {
    device: OwnedFd,
    port: u32,
    domid: DomId,
}

impl EventChannel {
    /// Offers a port to `domid`, and binds the descriptor to that domain for good: the binding comes
    /// first, a restricted descriptor can make no offers.
    ///
    /// # Errors
    /// No Xen, no such domain, no port left.
    pub fn offer(domid: DomId) -> Result<Self, XenError> {
        let channel = Self::bind(domid, |device| ioctl::evtchn_bind_unbound(device, domid))?;
        // Xen knows no restriction to dom0; that is for tests with a broker elsewhere only.
        if domid != super::DOM0 {
            ioctl::evtchn_restrict(&channel.device, domid)
                .map_err(|errno| channel.error("restrict", errno))?;
        }
        Ok(channel)
    }

    /// Binds to a port that `domid` offers. It rings once by itself.
    ///
    /// # Errors
    /// No Xen, no such offer.
    pub fn connect(domid: DomId, remote_port: u32) -> Result<Self, XenError> {
        Self::bind(domid, |device| {
            ioctl::evtchn_bind_interdomain(device, domid, remote_port)
        })
    }

    /// A descriptor that an earlier process of this program bound to `port`, and to `domid`.
    #[must_use]
    pub fn from_kept(device: OwnedFd, domid: DomId, port: u32) -> Self {
        Self {
            device,
            port,
            domid,
        }
    }

    fn bind(
        domid: DomId,
        bind: impl FnOnce(&OwnedFd) -> nix::Result<u32>,
    ) -> Result<Self, XenError> {
        let device = open_device(PATH, "load it with modprobe xen-evtchn")?;
        let port = bind(&device).map_err(|errno| {
            let remedy = match errno {
                Errno::ESRCH => "that domain is gone",
                Errno::ENOSPC => "Xen has no event channel left; restart what leaks them",
                Errno::EACCES | Errno::EPERM => {
                    "the XSM policy forbids it; with xsm=silo guests may talk to dom0 only"
                }
                _ => "the other side offers no such port (any more)",
            };
            XenError::new(
                format!("bind an event channel with domain {domid}"),
                errno,
                remedy,
            )
        })?;
        Ok(Self {
            device,
            port,
            domid,
        })
    }

    /// Our port: what the other side binds to when we offer.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Rings. Nobody learns here whether the other side still is there.
    pub fn ring(&self) {
        // A peer that is gone is no error for Xen; an unbound port of an offer answers EINVAL or
        // nothing, and nobody is there to be woken.
        let _ = ioctl::evtchn_notify(&self.device, self.port);
    }

    /// Takes what has rung off the descriptor and opens it for the next ring. Answers whether
    /// anything had. Look at the memory after it, not before.
    ///
    /// # Errors
    /// The descriptor is broken.
    pub fn settle(&self) -> Result<bool, XenError> {
        let mut ports = [0; 4 * PORTS_READ];
        let rang = match read(&self.device, &mut ports) {
            Ok(count) => count > 0,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            // The queue ran over: what rang is lost, so everything may have.
            Err(Errno::EFBIG) => {
                ioctl::evtchn_reset(&self.device).map_err(|errno| self.error("reset", errno))?;
                true
            }
            Err(errno) => return Err(self.error("read", errno)),
        };
        // Masked since it rang.
        write(&self.device, &self.port.to_ne_bytes())
            .map_err(|errno| self.error("unmask", errno))?;
        Ok(rang)
    }

    fn error(&self, what: &str, errno: Errno) -> XenError {
        let doing = format!("{what} the event channel with domain {}", self.domid);
        XenError::new(doing, errno, "look at the kernel's log (dmesg)")
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
