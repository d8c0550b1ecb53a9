//! The membership under which a replica has made its promises stands beside them: a cluster.toml that would take a
//! quorum away from under them is refused at the start.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;
use twinbft_config::{ClusterConfig, Membership};

/// Compares with what `data` remembers, and remembers the new one.
///
/// # Errors
/// [`twinbft_config::MembershipError`] when the change is refused; others when the file cannot be read or written.
pub fn check(data: &Path, config: &ClusterConfig) -> anyhow::Result<()> {
    let path = data.join("membership");
    let membership = Membership::of(config);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let old =
                Membership::parse(&text).with_context(|| format!("reading {}", path.display()))?;
            if old == membership {
                return Ok(());
            }
            membership
                .check_against(&old)
                .with_context(|| format!("cluster.toml is not that of {}", path.display()))?;
            tracing::warn!("keys of the cluster have changed; the new ones are remembered");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    }
    write(data, &path, &membership.to_text()).with_context(|| format!("writing {}", path.display()))
}

/// There is the old one or the new one, whatever happens meanwhile.
fn write(data: &Path, path: &Path, text: &str) -> io::Result<()> {
    std::fs::create_dir_all(data)?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(data)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinbft_config::MembershipError;

    #[test]
    fn the_first_is_remembered_and_a_lost_host_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("h0t0");
        let config = ClusterConfig::example(3, 2, 1, 7000);
        check(&data, &config).unwrap();
        check(&data, &config).unwrap();
        let smaller = ClusterConfig::example(2, 2, 1, 7000);
        let error = check(&data, &smaller).unwrap_err();
        let refused = error.downcast_ref::<MembershipError>();
        assert!(
            matches!(refused, Some(MembershipError::OtherShape { .. })),
            "{error:#}"
        );
        // A damaged memory is no leave to forget.
        std::fs::write(data.join("membership"), "twinbft").unwrap();
        let error = check(&data, &config).unwrap_err();
        assert!(error.is::<MembershipError>(), "{error:#}");
    }
}
