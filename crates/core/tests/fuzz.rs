//! A fuzz target of what a twin's write-ahead log holds; `scripts/fuzz` drives it by coverage.

use bolero::check;
use twinbft_core::{Record, SessionImage};
use twinbft_types::{canonical, from_canonical};

#[test]
fn records() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        if let Ok(record) = from_canonical::<Record>(bytes) {
            assert_eq!(canonical(&record), bytes);
        }
        if let Ok(image) = from_canonical::<SessionImage>(bytes) {
            assert_eq!(canonical(&image), bytes);
        }
    });
}
