//! What a broker leaves to its successor about a guest that it has granted pages to: numbers in a text, kept in a memfd
//! beside the descriptors of the grants and of the event channel. The guest has no part in it.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::pread;
use nix::unistd::write;

use super::DomId;
use super::gntdev::PAGES_MAX;
use crate::vchan::{GRANTED_ORDER_MAX, ORDER_MIN};

const VERSION: u32 = 1;
/// Longer than that of the largest mirror and ring.
const BYTES_MAX: usize = 1 << 20;

/// The numbers of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keepsake {
    /// The twin that it is.
    pub twin: u8,
    /// The domain.
    pub domid: DomId,
    /// Our port of the event channel.
    pub port: u32,
    /// The append ring has `2^ring_order` bytes.
    pub ring_order: u16,
    /// Where the ring is in gntalloc's file.
    pub ring_index: u64,
    /// Its references.
    pub ring_refs: Vec<u32>,
    /// Where the mirror is in gntalloc's file.
    pub mirror_index: u64,
    /// Its references.
    pub mirror_refs: Vec<u32>,
}

impl Keepsake {
    /// Into a file without a name.
    ///
    /// # Errors
    /// No memory, no descriptor.
    pub fn store(&self) -> io::Result<OwnedFd> {
        let fd = memfd_create("twinbft-guest", MFdFlags::MFD_CLOEXEC)?;
        let text = self.encode();
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            let count = write(&fd, bytes)?;
            bytes = &bytes[count..];
        }
        Ok(fd)
    }

    /// Out of it again; `None` when it is not what `store` made.
    #[must_use]
    pub fn load(fd: impl AsFd) -> Option<Self> {
        let mut bytes = vec![0; BYTES_MAX];
        let mut have = 0;
        while have < bytes.len() {
            match pread(&fd, &mut bytes[have..], i64::try_from(have).ok()?) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(_) => return None,
            }
        }
        Self::decode(std::str::from_utf8(&bytes[..have]).ok()?)
    }

    fn encode(&self) -> String {
        let mut text = format!(
            "{VERSION} {} {} {} {} {} {}",
            self.twin, self.domid, self.port, self.ring_order, self.ring_index, self.mirror_index
        );
        for refs in [&self.ring_refs, &self.mirror_refs] {
            text.push('\n');
            for gref in refs {
                write!(text, "{gref} ").expect("writing to a string cannot fail");
            }
        }
        text.push('\n');
        text
    }

    fn decode(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut numbers = lines.next()?.split(' ');
        if numbers.next()? != VERSION.to_string() {
            return None;
        }
        let mut refs = || -> Option<Vec<u32>> {
            let refs = lines.next()?.split_ascii_whitespace();
            refs.map(|gref| gref.parse().ok()).collect()
        };
        let keepsake = Self {
            twin: numbers.next()?.parse().ok()?,
            domid: numbers.next()?.parse().ok()?,
            port: numbers.next()?.parse().ok()?,
            ring_order: numbers.next()?.parse().ok()?,
            ring_index: numbers.next()?.parse().ok()?,
            mirror_index: numbers.next()?.parse().ok()?,
            ring_refs: refs()?,
            mirror_refs: refs()?,
        };
        let order = keepsake.ring_order;
        let fits = (ORDER_MIN..=GRANTED_ORDER_MAX).contains(&order)
            && keepsake.ring_refs.len() == 1 + (1 << (order - ORDER_MIN))
            && (1..=PAGES_MAX).contains(&keepsake.mirror_refs.len())
            && lines.next().is_none();
        fits.then_some(keepsake)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keepsake() -> Keepsake {
        Keepsake {
            twin: 1,
            domid: 17,
            port: 40,
            ring_order: 13,
            ring_index: 0,
            ring_refs: vec![900, 12, 7],
            mirror_index: 3 * 4096,
            mirror_refs: (0..20_000).rev().collect(),
        }
    }

    #[test]
    fn what_is_left_is_found_again() {
        let fd = keepsake().store().expect("there is memory");
        assert_eq!(Keepsake::load(&fd), Some(keepsake()));
        assert_eq!(
            Keepsake::load(&fd),
            Some(keepsake()),
            "as often as one likes"
        );
    }

    #[test]
    fn anything_else_is_nothing() {
        let text = keepsake().encode();
        for bent in [
            String::new(),
            text.replacen('1', "2", 1),
            text.replacen(" 13 ", " 14 ", 1),
            text.replacen("900 ", "", 1),
            text.replacen("900 ", "-9 ", 1),
            format!("{text}more\n"),
            text[..text.len() / 2].lines().take(2).collect(),
        ] {
            assert_eq!(Keepsake::decode(&bent), None, "{:?}", bent.get(..40));
        }
        let (read, _write) = nix::unistd::pipe().expect("descriptors are left");
        assert_eq!(Keepsake::load(&read), None);
    }
}
