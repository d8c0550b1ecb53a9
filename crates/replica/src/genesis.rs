//! The mark that says that a replica has never promised anything: `twinbft init` writes it, and the first start takes
//! it away. A replica without it is never at genesis (protocol.md 8): it has to recover, which this version cannot.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use twinbft_types::Slot;

use crate::driver::Link;

/// Why a replica does not begin. It has a state that must not be forgotten, so whoever restarts it changes nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what}: this replica has run before and has to recover from the others, which this version cannot do; make a new cluster with `twinbft init`"
)]
pub struct NeedsRecovery {
    what: String,
}

/// The mark, found.
#[derive(Debug)]
pub struct Genesis {
    data: PathBuf,
    mark: PathBuf,
}

impl Genesis {
    /// Looks for the mark of cluster `cluster_id` in a replica's data directory.
    ///
    /// # Errors
    /// [`NeedsRecovery`] when there is none; another error when it is another cluster's.
    pub fn find(data: &Path, cluster_id: &str) -> anyhow::Result<Self> {
        let mark = data.join("genesis");
        let text = match std::fs::read_to_string(&mark) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(needs_recovery(format!("{} is missing", mark.display())));
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", mark.display())),
        };
        if text.trim() != cluster_id {
            bail!(
                "{} belongs to cluster {:?}, cluster.toml to {cluster_id:?}; move the old data away",
                mark.display(),
                text.trim()
            );
        }
        Ok(Self {
            data: data.to_owned(),
            mark,
        })
    }

    /// Checks that the disk remembers nothing.
    ///
    /// # Errors
    /// [`NeedsRecovery`] when it does.
    pub fn check_data(&self, records: usize, checkpoint: Option<Slot>) -> anyhow::Result<()> {
        let shown = self.data.display();
        if records > 0 {
            return Err(needs_recovery(format!(
                "{shown} holds {records} records of a write-ahead log"
            )));
        }
        if let Some(slot) = checkpoint {
            return Err(needs_recovery(format!(
                "{shown} holds a checkpoint of slot {}",
                slot.0
            )));
        }
        Ok(())
    }

    /// Checks that the postbox remembers nothing of this twin, and everything of its siblings.
    ///
    /// # Errors
    /// [`NeedsRecovery`] otherwise.
    pub fn check_log(&self, link: &mut Link) -> anyhow::Result<()> {
        let head = link.reader().head();
        if head > 0 {
            return Err(needs_recovery(format!(
                "the postbox's log is trimmed up to position {head}"
            )));
        }
        let own = link.appender().map_or(0, |appender| appender.next_number());
        if own > 0 {
            return Err(needs_recovery(format!(
                "the postbox's log holds {own} entries of this twin"
            )));
        }
        Ok(())
    }

    /// Takes the mark away for good, before the first word.
    ///
    /// # Errors
    /// When the disk does not do it.
    pub fn take(self) -> anyhow::Result<()> {
        std::fs::remove_file(&self.mark)
            .with_context(|| format!("removing {}", self.mark.display()))?;
        File::open(&self.data)
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("flushing {}", self.data.display()))
    }
}

fn needs_recovery(what: String) -> anyhow::Error {
    NeedsRecovery { what }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_serves_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("genesis"), "twin-1\n").unwrap();
        let error = Genesis::find(dir.path(), "twin-2").unwrap_err();
        assert!(
            !error.is::<NeedsRecovery>() && error.to_string().contains("twin-1"),
            "{error}"
        );
        let genesis = Genesis::find(dir.path(), "twin-1").unwrap();
        genesis.check_data(0, None).unwrap();
        assert!(
            genesis
                .check_data(1, None)
                .unwrap_err()
                .is::<NeedsRecovery>()
        );
        assert!(
            genesis
                .check_data(0, Some(Slot(4)))
                .unwrap_err()
                .is::<NeedsRecovery>()
        );
        genesis.take().unwrap();
        assert!(
            Genesis::find(dir.path(), "twin-1")
                .unwrap_err()
                .is::<NeedsRecovery>()
        );
    }
}
