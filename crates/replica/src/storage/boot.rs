//! Whether this machine has run without a break since this twin joined the epoch of its log: what was handed to the kernel
//! since then is not lost, whether or not it had reached the disk (docs/adr/0011-starting-again.md).

use std::io;
use std::path::Path;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn boot_id() -> String {
    // A system without one counts as started again each time.
    std::fs::read_to_string(BOOT_ID).unwrap_or_default()
}

/// Whether the mark in a twin's data directory is of this boot.
#[must_use]
pub fn is_same_boot(data: &Path) -> bool {
    let now = boot_id();
    let before = std::fs::read_to_string(data.join("boot")).unwrap_or_default();
    !now.is_empty() && before == now
}

/// Leaves the mark. A mark of an earlier boot stays until a new epoch is joined: promises of the old one may be missing.
///
/// # Errors
/// When it cannot be written.
pub fn remember_boot(data: &Path) -> io::Result<()> {
    std::fs::write(data.join("boot"), boot_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_of_another_boot_or_none_is_not_this_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_same_boot(dir.path()));
        remember_boot(dir.path()).unwrap();
        assert!(is_same_boot(dir.path()));
        std::fs::write(dir.path().join("boot"), "another").unwrap();
        assert!(!is_same_boot(dir.path()));
    }
}
