//! One sentence for whoever runs the host: what was tried, what the kernel said, which limit was in
//! the way, and what to do.

use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// Something of Xen's that does not work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct XenError {
    /// What was tried, as in "cannot …".
    pub doing: String,
    /// What the kernel, or xenstored, answered.
    pub errno: Errno,
    /// Name and value of the limit that was hit, where there is one.
    pub limit: Option<(&'static str, String)>,
    /// What to do about it.
    pub remedy: &'static str,
}

impl XenError {
    pub(super) fn new(doing: impl Into<String>, errno: Errno, remedy: &'static str) -> Self {
        Self {
            doing: doing.into(),
            errno,
            limit: None,
            remedy,
        }
    }

    /// With a limit that is read where the kernel shows it.
    pub(super) fn with_limit(self, name: &'static str) -> Self {
        let value = fs::read_to_string(name).map_or_else(
            |error| format!("unknown ({error})"),
            |text| text.trim().to_owned(),
        );
        self.with_value(name, value)
    }

    pub(super) fn with_value(self, name: &'static str, value: String) -> Self {
        Self {
            limit: Some((name, value)),
            ..self
        }
    }
}

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.doing, self.errno)?;
        if let Some((name, value)) = &self.limit {
            write!(f, "; {name} = {value}")?;
        }
        write!(f, "; {}", self.remedy)
    }
}

/// Opens one of `/dev/xen/*` for reading and writing, without blocking.
pub(super) fn open_device(
    path: &'static str,
    remedy_missing: &'static str,
) -> Result<OwnedFd, XenError> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    open(path, flags, Mode::empty()).map_err(|errno| {
        let remedy = match errno {
            Errno::ENOENT => remedy_missing,
            Errno::EACCES | Errno::EPERM => {
                "the device is root's: run as root, or give this user the device with a udev rule"
            }
            Errno::EMFILE | Errno::ENFILE => "raise LimitNOFILE of this service",
            _ => "does this machine run under Xen, and does /proc/xen exist?",
        };
        XenError::new(format!("open {path}"), errno, remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_errno_limit_value_and_remedy() {
        let error = XenError::new("grant 7 pages to domain 3", Errno::ENOSPC, "raise it")
            .with_value("limit", "1024".to_owned());
        let text = error.to_string();
        assert_eq!(
            text,
            "cannot grant 7 pages to domain 3: ENOSPC: No space left on device; limit = 1024; raise it"
        );
    }

    #[test]
    fn a_missing_device_names_its_module() {
        let error = open_device("/dev/xen/no-such-device", "modprobe it").expect_err("none there");
        assert_eq!((error.errno, error.remedy), (Errno::ENOENT, "modprobe it"));
    }
}
