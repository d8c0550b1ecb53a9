//! Fuzz targets of what an operator writes, and of the membership that a replica keeps of it; `scripts/fuzz` drives them by
//! coverage.

use bolero::check;
use twinbft_config::{ClusterConfig, Membership};

/// A text is a configuration, which is written and read back as the same, or a list of mistakes that each have a place.
#[test]
fn cluster_toml() {
    check!().with_iterations(300).for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        match ClusterConfig::parse(&text) {
            Ok(config) => {
                assert_eq!(ClusterConfig::parse(&config.to_toml()), Ok(config.clone()));
                let kept = Membership::of(&config);
                assert_eq!(Membership::parse(&kept.to_text()), Ok(kept));
            }
            Err(mistakes) => {
                assert!(!mistakes.is_empty());
                for mistake in mistakes {
                    assert!(!mistake.to_string().is_empty());
                }
            }
        }
    });
}

#[test]
fn membership() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(kept) = Membership::parse(&text) {
            assert_eq!(kept.check_against(&kept), Ok(()));
            assert_eq!(Membership::parse(&kept.to_text()), Ok(kept));
        }
    });
}
