//! The epoch on disk: it must never go back, so it is on stable storage before it is used.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

/// What says that this host never had an epoch; `twinbft init` writes it.
const GENESIS: &str = "genesis";

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

    /// The last epoch that was used, 0 when there was none. `None` when it was lost: neither it nor the mark of genesis is there.
    pub fn load(&self) -> anyhow::Result<Option<u64>> {
        let path = self.path();
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).with_context(|| {
                format!(
                    "{} does not hold a number; write one that is above every epoch that this host had",
                    path.display()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(self.dir.join(GENESIS).exists().then_some(0))
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// For an epoch that was lost: the seconds since 1970 are above every epoch that the host had, unless it began a new one
    /// each second.
    pub fn above_all() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |since| since.as_secs()).max(1)
    }

    /// Keeps an epoch, durably.
    pub fn store(&self, epoch: u64) -> anyhow::Result<()> {
        let fresh = self.dir.join("epoch.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&fresh)?;
            writeln!(file, "{epoch}")?;
            file.sync_all()?;
            fs::rename(&fresh, self.path())?;
            match fs::remove_file(self.dir.join(GENESIS)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
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
        assert_eq!(file.load().expect("nothing there"), None);
        assert!(EpochFile::above_all() > 1_600_000_000);
        fs::write(file.dir.join(GENESIS), "").expect("there is room");
        assert_eq!(file.load().expect("the mark is there"), Some(0));
        file.store(7).expect("there is room");
        assert_eq!(file.load().expect("a number"), Some(7));
        assert!(!file.dir.join(GENESIS).exists(), "it serves once");
        fs::write(file.path(), "seven").expect("there is room");
        assert!(
            format!("{:#}", file.load().expect_err("no number")).contains("does not hold a number")
        );
    }
}
