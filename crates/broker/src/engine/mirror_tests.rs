//! A guest that appears does not hold its siblings up: the log goes into its mirror in slices, between turns.

use nix::sys::epoll::EpollTimeout;
use twinbft_postbox::Outcome;
use twinbft_postbox::log_view::LogView;
use twinbft_postbox::log_writer::region_bytes;
use twinbft_postbox::raw::WriteMemory;

use super::fuzz::{HOSTILE, Honest, broker, kit};
use super::on_xen::SLICE_BYTES;

const LOG_BYTES: usize = 8 * SLICE_BYTES;

#[test]
fn a_siblings_entries_are_delivered_between_two_slices_of_a_mirror() {
    let (mut broker, _dir) = broker(kit(), LOG_BYTES as u64);
    let mut sibling = Honest::connect(&mut broker);
    let log = &mut broker.log.writer;
    while log.ledger().tail_offset() < 3 * SLICE_BYTES as u64 {
        let number = log.ledger().next_number(HOSTILE);
        let outcome = log.append(HOSTILE, number, &[7; 4000]);
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
    let (memory, mirror) = WriteMemory::heap_pair(region_bytes(&broker.options.limits));
    broker.log.writer.attach_mirror(HOSTILE, memory);
    let mut delivered = 0;
    while broker.log.writer.is_filling() {
        assert!(LogView::open(mirror.clone()).is_err(), "it is not whole");
        assert_eq!(broker.prepare_sleep(), EpollTimeout::ZERO);
        // It appends; then comes one turn of the broker, and it reads what it has appended.
        sibling.act(&mut broker, false);
        delivered += 1;
    }
    assert_eq!(delivered, 4, "three slices and what the STATEs take");
    // What was appended meanwhile is in the mirror as well.
    let (mut view, mut payload) = (LogView::open(mirror).expect("it is whole"), Vec::new());
    while view.poll_next(&mut payload).expect("sound").is_some() {}
    assert_eq!(view.position(), broker.log.writer.ledger().tail_position());
}
