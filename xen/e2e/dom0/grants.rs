//! Counts what dom0 has granted. The kernel shows its limit only; so the limit is moved until one page more fits just so.

use std::process::Command;

use twinbft_postbox::transport::xen::gntalloc::{Access, Gntalloc};

const LIMIT: &str = "/sys/module/xen_gntalloc/parameters/limit";
/// As xen/dom0/modprobe.conf has it.
const LIMIT_INSTALLED: u32 = 65_536;

/// Pages that are granted through gntalloc now.
pub fn granted() -> u32 {
    let gntalloc = Gntalloc::open().expect("the module is there");
    let fits = |limit: u32| {
        set_limit(limit);
        gntalloc.allocate(1, 1, Access::Read).is_ok()
    };
    let (mut no, mut yes) = (0, LIMIT_INSTALLED);
    while yes - no > 1 {
        let middle = no.midpoint(yes);
        if fits(middle) {
            yes = middle
        } else {
            no = middle
        }
    }
    set_limit(LIMIT_INSTALLED);
    yes - 1
}

fn set_limit(limit: u32) {
    std::fs::write(LIMIT, limit.to_string()).expect("dom0 is root's");
}

/// What the kernel says when its limit is too low for a grant.
pub fn refusal() -> String {
    set_limit(1);
    let gntalloc = Gntalloc::open().expect("the module is there");
    let text = match gntalloc.allocate(1, 2, Access::Read) {
        Ok(_) => "granted beyond the limit".to_owned(),
        Err(error) => error.to_string(),
    };
    set_limit(LIMIT_INSTALLED);
    text
}

/// Frames of dom0's grant table: it never shrinks, so it grows where grants leak that the kernel has given up on.
pub fn frames() -> String {
    let output = Command::new("/bin/xen-diag")
        .args(["gnttab_query_size", "0"])
        .output();
    output.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
