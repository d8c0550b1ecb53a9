//! The order of an operator to go on from what the disks hold (`twinbft recover`, protocol.md 8).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use twinbft_types::{Epoch, ReplicaId};

/// An order that is valid for this start.
#[derive(Debug)]
pub struct Order {
    path: PathBuf,
    text: String,
    /// The epoch of the log when it was given: the broker has to begin a later one first.
    after: Epoch,
    /// The epoch that it was used in.
    epoch: Option<Epoch>,
}

impl Order {
    /// Looks for an order in a replica's data directory.
    ///
    /// # Errors
    /// When it is for another cluster or twin, or not what `twinbft recover` writes.
    pub fn find(data: &Path, cluster_id: &str, me: ReplicaId) -> anyhow::Result<Option<Self>> {
        let path = data.join("recover");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let field = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        };
        let wanted = (cluster_id, me.to_string());
        match (
            field("cluster"),
            field("twin"),
            field("by"),
            field("reason"),
        ) {
            (Some(cluster), Some(twin), Some(_), Some(_))
                if (cluster, twin) == (wanted.0, &wanted.1) => {}
            _ => bail!(
                "{} is no order for {me} of cluster {cluster_id:?}; remove it, and give the order again with `twinbft recover`",
                path.display()
            ),
        }
        let epoch = |name: &str| match field(name).map(str::parse) {
            None => Ok(None),
            Some(Ok(epoch)) => Ok(Some(Epoch(epoch))),
            Some(Err(_)) => bail!(
                "{} names an epoch that is no number; remove it, and give the order again with `twinbft recover`",
                path.display()
            ),
        };
        let (after, epoch) = (epoch("after")?, epoch("epoch")?);
        let Some(after) = after else {
            bail!(
                "{} does not say after which epoch of the log it holds; remove it, and give the order again with `twinbft recover`",
                path.display()
            );
        };
        Ok(Some(Self {
            path,
            text,
            after,
            epoch,
        }))
    }

    /// Uses the order in this epoch of the log; whether it is for this epoch. One that was used in an earlier epoch is put aside;
    /// one that was given in this epoch waits for the next, because in this one the host has said that it forgot.
    ///
    /// # Errors
    /// When the disk does not do it.
    pub fn use_in(self, epoch: Epoch) -> anyhow::Result<bool> {
        let doing = || format!("noting in {} that it is used", self.path.display());
        match self.epoch {
            None if epoch <= self.after => Ok(false),
            Some(used) if used == epoch => Ok(true),
            Some(used) => {
                let aside = self.path.with_extension(format!("used-{}", used.0));
                std::fs::rename(&self.path, aside).with_context(doing)?;
                Ok(false)
            }
            None => {
                let text = format!("{}epoch {}\n", self.text, epoch.0);
                std::fs::write(&self.path, text).with_context(doing)?;
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "cluster twin-1\ntwin h1/t0\nafter 3\nat 7\nby root\nreason power loss\n";

    fn find(data: &Path) -> anyhow::Result<Option<Order>> {
        Order::find(data, "twin-1", ReplicaId::new(1, 0))
    }

    #[test]
    fn an_order_serves_in_one_epoch() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(dir.path()).unwrap().is_none());
        std::fs::write(dir.path().join("recover"), TEXT).unwrap();
        // A replica that starts again before its broker does.
        let order = find(dir.path()).unwrap().unwrap();
        assert!(!order.use_in(Epoch(3)).unwrap());
        for _ in 0..2 {
            let order = find(dir.path()).unwrap().unwrap();
            assert!(order.use_in(Epoch(4)).unwrap());
        }
        let order = find(dir.path()).unwrap().unwrap();
        assert!(!order.use_in(Epoch(5)).unwrap());
        assert!(find(dir.path()).unwrap().is_none());
        assert!(dir.path().join("recover.used-4").exists(), "it is a record");
    }

    #[test]
    fn an_order_for_somebody_else_or_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let texts = [
            TEXT.replace("twin-1", "twin-2"),
            TEXT.replace("h1/t0", "h1/t1"),
            TEXT.replace("reason", "raeson"),
            format!("{TEXT}epoch seven\n"),
            TEXT.replace("after 3", "after all"),
            TEXT.replace("after 3\n", ""),
        ];
        for text in texts {
            std::fs::write(dir.path().join("recover"), &text).unwrap();
            let error = find(dir.path()).unwrap_err().to_string();
            assert!(error.contains("give the order again"), "{error}");
        }
    }
}
