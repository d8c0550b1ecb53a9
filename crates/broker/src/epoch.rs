//! The epoch on disk: it must never go back, so it is on stable storage before it is used.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The file that the epoch is kept in.
pub struct EpochFile {
    dir: PathBuf,
}

impl EpochFile {
    /// In a directory that survives a reboot; it is made when it is not there.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the state directory {}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    fn path(&self) -> PathBuf {
        self.dir.join("epoch")
    }

    /// The last epoch that was used; 0 when there was none.
    pub fn load(&self) -> anyhow::Result<u64> {
        let path = self.path();
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().with_context(|| {
                format!(
                    "{} does not hold a number; write one that is above every epoch that this host had",
                    path.display()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Keeps an epoch, durably.
    pub fn store(&self, epoch: u64) -> anyhow::Result<()> {
        let fresh = self.dir.join("epoch.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&fresh)?;
            writeln!(file, "{epoch}")?;
            file.sync_all()?;
            fs::rename(&fresh, self.path())?;
            File::open(&self.dir)?.sync_all()
        };
        write().with_context(|| format!("cannot keep epoch {epoch} in {}", self.dir.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_kept_and_nonsense_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = EpochFile::new(&dir.path().join("deep/er")).expect("it can be made");
        assert_eq!(file.load().expect("nothing there"), 0);
        file.store(7).expect("there is room");
        assert_eq!(file.load().expect("a number"), 7);
        fs::write(file.path(), "seven").expect("there is room");
        assert!(
            format!("{:#}", file.load().expect_err("no number")).contains("does not hold a number")
        );
    }
}
