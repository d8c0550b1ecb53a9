//! The fault experiment of the papers: a twin refuses a share of what it is asked, and views change.

use twinbft_cli::cluster::Cluster;
use twinbft_types::ReplicaId;

use crate::cmd::control::tell;
use crate::cmd::status::{Answer, Asker};

/// The twin of each host that refuses: in the first views the follower of its primary.
const TWIN: u8 = 1;

/// Twins that refuse a share of the batches, until it ends.
pub struct Fault<'c> {
    cluster: &'c Cluster,
    view_before: u64,
}

impl<'c> Fault<'c> {
    /// Tells one twin of each host to refuse.
    ///
    /// # Errors
    /// When the replicas cannot be told, or do not say in which view they are.
    pub async fn begin(cluster: &'c Cluster, share: f64) -> anyhow::Result<Self> {
        let fault = Self {
            cluster,
            view_before: view(cluster).await?,
        };
        fault.tell(&format!("refuse {share}"))?;
        Ok(fault)
    }

    fn tell(&self, double: &str) -> anyhow::Result<()> {
        for host in &self.cluster.config.hosts {
            tell(&self.cluster.layout, ReplicaId::new(host.id, TWIN), double)?;
        }
        Ok(())
    }

    /// All are honest again. Answers how many views have changed meanwhile.
    ///
    /// # Errors
    /// When the replicas cannot be told, or do not say in which view they are.
    pub async fn end(self) -> anyhow::Result<u64> {
        self.tell("off")?;
        Ok(view(self.cluster).await?.saturating_sub(self.view_before))
    }
}

/// The highest view of any replica.
async fn view(cluster: &Cluster) -> anyhow::Result<u64> {
    let answers = Asker::new(cluster, 0)?.ask_all().await;
    let views = answers.iter().filter_map(|asked| match &asked.answer {
        Answer::Document(document) => document.get("view")?.as_u64(),
        Answer::Unreachable(_) | Answer::Elsewhere => None,
    });
    Ok(views.max().unwrap_or(0))
}
