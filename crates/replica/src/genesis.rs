//! The mark that says that a replica has never promised anything: `twinbft init` writes it, and the first start takes
//! it away. A replica without it is never at genesis (protocol.md 8): it goes on from its disk, or from the others.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use twinbft_types::Slot;

/// Why a replica does not begin. It has a state that must not be forgotten, so whoever restarts it changes nothing.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
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
    /// When it is another cluster's.
    pub fn find(data: &Path, cluster_id: &str) -> anyhow::Result<Option<Self>> {
        let mark = data.join("genesis");
        let text = match std::fs::read_to_string(&mark) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
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
        Ok(Some(Self {
            data: data.to_owned(),
            mark,
        }))
    }

    /// Checks that neither disk nor postbox remember anything of this twin: the mark would then be a lie.
    ///
    /// # Errors
    /// [`NeedsRecovery`] when one does.
    pub fn check(&self, checkpoint: Option<Slot>, own_entries: u64) -> anyhow::Result<()> {
        let what = match checkpoint {
            Some(slot) => format!("a checkpoint of slot {} is on its disk", slot.0),
            None if own_entries > 0 => {
                format!("the postbox's log holds {own_entries} entries of it")
            }
            None => return Ok(()),
        };
        let mark = self.mark.display();
        Err(needs_recovery(format!(
            "{mark} says that this replica has never run, but {what}; remove {mark}, and it recovers from its disk and the others"
        )))
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

/// The error that is told apart by its exit status.
pub fn needs_recovery(what: String) -> anyhow::Error {
    NeedsRecovery { what }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_serves_once_and_must_not_lie() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("genesis"), "twin-1\n").unwrap();
        let error = Genesis::find(dir.path(), "twin-2").unwrap_err();
        assert!(
            !error.is::<NeedsRecovery>() && error.to_string().contains("twin-1"),
            "{error}"
        );
        let genesis = Genesis::find(dir.path(), "twin-1").unwrap().unwrap();
        genesis.check(None, 0).unwrap();
        for (checkpoint, own) in [(None, 1), (Some(Slot(4)), 0)] {
            let error = genesis.check(checkpoint, own).unwrap_err();
            assert!(
                error.is::<NeedsRecovery>() && error.to_string().contains("remove"),
                "{error}"
            );
        }
        genesis.take().unwrap();
        assert!(Genesis::find(dir.path(), "twin-1").unwrap().is_none());
    }
}
