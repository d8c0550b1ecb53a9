//! How a replica begins: at genesis, from its disk, or from the postbox's log and the other hosts (protocol.md 8).

use std::path::Path;

use anyhow::Context as _;
use twinbft_app::{Application, ServiceOptions};
use twinbft_config::{ClusterConfig, Durability};
use twinbft_core::{Checkpoint, CoreConfig, Record, Recovered, Replica, last_stable};
use twinbft_types::{Digest, Epoch, Position, ReplicaId, Slot};

use crate::driver::Link;
use crate::genesis::Genesis;
use crate::order::Order;
use crate::setup;
use crate::storage::{Journal, Journaled, ReadError, Segments, Storage, is_same_boot};

/// The checkpoint that a service stands at, with the digest of its state.
type Base = (Checkpoint, Digest);

/// What the disk remembers.
enum Memory {
    /// This twin has never promised anything.
    Genesis(Genesis),
    /// Its promises, and the epoch of the log that it made them in.
    Kept { records: Vec<Record>, epoch: Epoch },
    /// Nothing: its promises are in the postbox's log.
    Lost,
}

/// A replica's disk, read.
pub struct Disk {
    memory: Memory,
    base: Option<Base>,
    /// Whether the write-ahead log can have lost nothing that was revealed.
    is_whole: bool,
    /// An operator's word that what is here is to be believed.
    order: Option<Order>,
}

impl Disk {
    /// Reads what the data directory holds besides the write-ahead log, and brings the service to a checkpoint that
    /// its journal knows, or to genesis. Gives the service and the journal too.
    ///
    /// # Errors
    /// When a file cannot be read or belongs to another twin or cluster.
    pub fn open(
        config: &ClusterConfig,
        me: ReplicaId,
        data: &Path,
        found: Segments,
    ) -> anyhow::Result<(Self, Box<dyn Application>, Option<Journal>)> {
        let memory = Memory::find(config, data, found.records)?;
        let order = Order::find(data, &config.cluster.id, me)?;
        let options = setup::service_options(config, data);
        if matches!(memory, Memory::Lost) {
            forget_service(&options)?;
        }
        let mut app = twinbft_app::open(&options).context("opening the service")?;
        if config.storage.durability == Durability::Memory {
            let disk = Self {
                memory,
                base: None,
                is_whole: false,
                order,
            };
            return Ok((disk, app, None));
        }
        let owner = setup::owner(config, me);
        let journaled = match Journaled::read(data, owner) {
            Ok(journaled) => journaled,
            Err(error @ ReadError::Corrupt { .. }) => {
                tracing::warn!(
                    "{error}; nothing of it is used, and the state is fetched from the others"
                );
                Journaled::default()
            }
            Err(error) => return Err(error.into()),
        };
        let base = match &memory {
            Memory::Lost => None,
            Memory::Genesis(_) => bring(&mut *app, &journaled, Slot(0))?,
            Memory::Kept { records, .. } => {
                let stable = if config.hosts.len() == 1 {
                    last_stable(records)
                } else {
                    Slot(0)
                };
                bring(&mut *app, &journaled, stable)?
            }
        };
        if base.is_none()
            && let Some(checkpoint) = app.last_checkpoint()
        {
            tracing::warn!(
                slot = checkpoint.slot.0,
                "the service's state has no session table beside it; fetching the state from the others"
            );
            drop(app);
            forget_service(&options)?;
            app = twinbft_app::open(&options).context("opening the service")?;
        }
        let journal = Journal::begin(data, owner, true, base.clone())?;
        let is_same_boot = is_same_boot(data);
        let disk = Self {
            memory,
            base,
            order,
            is_whole: is_same_boot || config.storage.durability == Durability::Sync,
        };
        Ok((disk, app, Some(journal)))
    }

    /// The core, and what its write-ahead log must hold before its first word.
    ///
    /// # Errors
    /// [`crate::genesis::NeedsRecovery`] when neither disk nor log remember enough.
    pub fn start(
        self,
        core: CoreConfig,
        link: &mut Link,
        storage: &mut Storage,
    ) -> anyhow::Result<Replica> {
        let epoch = core.epoch;
        let (mut is_new_epoch, mut is_unsure) = (false, false);
        let is_ordered = match self.order {
            Some(order) => order.use_in(epoch)?,
            None => false,
        };
        if is_ordered {
            tracing::warn!(
                epoch = epoch.0,
                "an operator has ordered to go on from what this host's disks hold (`twinbft recover`): promises may be missing"
            );
        }
        let records = match self.memory {
            Memory::Genesis(genesis) => {
                let own = link.appender().map_or(0, |appender| appender.next_number());
                let checkpoint = self.base.as_ref().map(|(checkpoint, _)| checkpoint.slot);
                genesis.check(checkpoint, own)?;
                if link.reader().head() == 0 && epoch <= Epoch(1) {
                    storage.append(&Record::Joined { epoch })?;
                    storage.sync()?;
                    genesis.take()?;
                    return Ok(Replica::new(core));
                }
                // The log is not the first, or does not begin at genesis any more: its siblings have gone ahead.
                storage.append(&Record::Joined { epoch })?;
                storage.sync()?;
                genesis.take()?;
                vec![Record::Joined { epoch }]
            }
            Memory::Kept {
                records,
                epoch: joined,
            } => {
                is_new_epoch = joined != epoch;
                is_unsure = !self.is_whole;
                if is_new_epoch && is_unsure && !is_ordered {
                    tracing::warn!(
                        from = joined.0,
                        to = epoch.0,
                        "the postbox's log was lost, and so may be this twin's last promises, because this machine has started again and durability is not \"sync\": the host stays silent until the others have told it where they are"
                    );
                }
                records
            }
            Memory::Lost => {
                tracing::warn!(
                    "this twin's disk remembers nothing; its promises are read from the postbox's log, or, where that is lost too, its host takes a new incarnation; its state comes from the others"
                );
                Vec::new()
            }
        };
        let state = link
            .reader()
            .resync()
            .context("reading the agreed STATE of the postbox's log")?;
        let recovered = Recovered {
            records,
            checkpoint: self.base,
            log_end: Position(link.reader().end()),
            log_state: state.map(|state| (Position(state.position), state.bytes.into())),
            is_new_epoch,
            is_unsure,
            is_ordered,
            nonce: Digest(rand::random()),
        };
        tracing::info!(
            from = recovered.log_state.as_ref().map_or(0, |(p, _)| p.0),
            to = recovered.log_end.0,
            records = recovered.records.len(),
            checkpoint = recovered.checkpoint.as_ref().map_or(0, |(c, _)| c.slot.0),
            "starting again"
        );
        Replica::recover(core, recovered)
            .context("going on from the agreed STATE of the postbox's log and the own checkpoint")
    }
}

impl Memory {
    fn find(config: &ClusterConfig, data: &Path, records: Vec<Record>) -> anyhow::Result<Self> {
        let joined = records.iter().rev().find_map(|record| match record {
            Record::Joined { epoch } => Some(*epoch),
            Record::Promise(_)
            | Record::Slot { .. }
            | Record::Stable { .. }
            | Record::Forgotten { .. }
            | Record::Proof(_)
            | Record::Installed { .. } => None,
        });
        let genesis = Genesis::find(data, &config.cluster.id)?;
        Ok(match (joined, genesis) {
            (Some(epoch), genesis) => {
                // A crash may have come between the first record and this.
                genesis.map_or(Ok(()), Genesis::take)?;
                Self::Kept { records, epoch }
            }
            (None, Some(genesis)) => Self::Genesis(genesis),
            (None, None) => Self::Lost,
        })
    }
}

/// Brings the service to a checkpoint of which the journal has the rest: this one, or, when it is not there any more, the
/// last one. With one host it is the stable one (docs/adr/0011-starting-again.md).
fn bring(
    app: &mut dyn Application,
    journaled: &Journaled,
    stable: Slot,
) -> anyhow::Result<Option<Base>> {
    if let Some(stands) = app.last_checkpoint() {
        if stable > Slot(0)
            && stable < stands.slot
            && let Some(checkpoint) = journaled.checkpoint(stable)
            && app.go_back(stable)?
        {
            let stands = app.last_checkpoint().expect("it stands there");
            return Ok(Some((checkpoint, stands.digest)));
        }
        let checkpoint = journaled.checkpoint(stands.slot);
        return Ok(checkpoint.map(|checkpoint| (checkpoint, stands.digest)));
    }
    // A service without files of its own may need nothing but the digest.
    let Some((slot, digest)) = journaled.done(stable) else {
        return Ok(None);
    };
    let Some(checkpoint) = journaled.checkpoint(slot) else {
        return Ok(None);
    };
    app.restore_begin(twinbft_app::Checkpoint { slot, digest })?;
    if !app.restore_wanted(1).is_empty() {
        return Ok(None);
    }
    app.restore_activate()?;
    Ok(Some((checkpoint, digest)))
}

/// What a service holds is of no use without the session table of the same slot.
fn forget_service(options: &ServiceOptions) -> anyhow::Result<()> {
    let Some(directory) = &options.directory else {
        return Ok(());
    };
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
