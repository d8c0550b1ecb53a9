//! The trait that every service implements.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use twinbft_types::{ClientId, Digest, Seq, Slot};

use crate::error::AppError;
use crate::snapshot::{ChunkId, ChunkRefused, Snapshot};

/// What a service may know about a batch besides its operations (protocol.md 4.8, last line).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchContext {
    /// The slot.
    pub slot: Slot,
    /// The agreed time of the batch, microseconds since the Unix epoch, growing from slot to slot. It is the only
    /// clock that a service may look at.
    pub timestamp_us: u64,
    /// The only randomness that a service may use: `h_n`, known to everybody once the slot is ordered, so nothing
    /// that has to stay secret may depend on it.
    pub seed: Digest,
}

/// One request of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// Whose request it is.
    pub client: ClientId,
    /// The client's running number of it.
    pub seq: Seq,
    /// What the client sent, unchecked.
    pub bytes: &'a Bytes,
}

/// The answer to a fast read (protocol.md 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryAnswer {
    /// For the client.
    pub result: Bytes,
    /// Tells apart two states in which the read gives the same result; see [`Application::query`].
    pub version: u64,
}

/// A checkpoint that is done (protocol.md 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The state is that after this slot.
    pub slot: Slot,
    /// The digest of the state: the root that every chunk of its snapshot is verified against.
    pub digest: Digest,
}

/// What is left to do for a checkpoint. It may run on another thread while batches are executed.
pub struct CheckpointWork(Box<dyn FnOnce() -> Result<Checkpoint, AppError> + Send>);

impl CheckpointWork {
    /// Wraps the work.
    #[must_use]
    pub fn new(work: impl FnOnce() -> Result<Checkpoint, AppError> + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Does the work. When it returns, the checkpoint is as durable as the configured policy says.
    ///
    /// # Errors
    /// When the state cannot be written. The node stops; the checkpoint before is still whole.
    pub fn run(self) -> Result<Checkpoint, AppError> {
        (self.0)()
    }
}

impl fmt::Debug for CheckpointWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckpointWork")
    }
}

/// How many checkpoints a service keeps on its disk: those that a twin can have made since the last stable one, and that one.
pub const CHECKPOINTS_KEPT: usize = 3;

/// A replicated service: a deterministic state machine with checkpoints.
///
/// The replica calls it from one thread at a time. Slots are executed in order, each once, except that
/// [`rollback`](Self::rollback) and [`restore_activate`](Self::restore_activate) set the state back or forward to a
/// checkpoint; what follows it is then executed again. After a start the service stands at
/// [`last_checkpoint`](Self::last_checkpoint), and the replica executes the slots after it from its log.
pub trait Application: Send {
    /// The name under which [`crate::open`] knows it.
    fn name(&self) -> &'static str;

    /// Executes the operations of one slot in their order and pushes exactly one result for each.
    ///
    /// Equal calls on equal states give equal results and equal states, on every machine and after every restart.
    /// A malformed or refused operation is answered by a result that says so.
    ///
    /// # Errors
    /// When the store fails. The batch may then be half done; the node must stop and not use this object again.
    ///
    /// # Panics
    /// When the slot is not above every slot executed since the last checkpoint, rollback or restore.
    fn execute(
        &mut self,
        batch: &BatchContext,
        operations: &[Operation<'_>],
        results: &mut Vec<Bytes>,
    ) -> Result<(), AppError>;

    /// Answers a fast read from the state after the last executed slot, without changing it.
    ///
    /// Clients match `(result, version)` among hosts that may stand at different slots (protocol.md 7). That is
    /// linearizable only if the version keeps this promise: *when a read gives the same result and version in the
    /// states after slots `a < b`, then it gives that same result in every state between them.* Then it does not
    /// matter which of the two slots a host stood at. The slot of the last write to anything that was read keeps
    /// the promise; so does a number that every such write raises to its own slot, whatever else raises it; so
    /// does, for any read, the last executed slot.
    ///
    /// # Errors
    /// When the store fails; the node must stop.
    fn query(&self, operation: &Bytes) -> Result<QueryAnswer, AppError>;

    /// Fixes the state as of `slot`, the last one executed, and gives what is left to do for its checkpoint.
    ///
    /// This call is short. Execution may go on while the work runs elsewhere. The slot must be *committed*, as
    /// protocol.md 5 asks anyway: a rollback never goes behind it.
    ///
    /// # Errors
    /// When the store fails; the node must stop.
    ///
    /// # Panics
    /// When `slot` is not the last slot executed, or the work of the checkpoint before has not been run.
    fn checkpoint_begin(&mut self, slot: Slot) -> Result<CheckpointWork, AppError>;

    /// [`checkpoint_begin`](Self::checkpoint_begin) and its work in one call.
    ///
    /// # Errors
    /// As for both parts.
    fn checkpoint(&mut self, slot: Slot) -> Result<Digest, AppError> {
        Ok(self.checkpoint_begin(slot)?.run()?.digest)
    }

    /// The last checkpoint whose work is done, or `None` for the empty state of genesis.
    fn last_checkpoint(&self) -> Option<Checkpoint>;

    /// At a start, before anything is executed: makes the state of an earlier checkpoint the service's own again, durably,
    /// and answers whether it could. The last [`CHECKPOINTS_KEPT`] are kept, but for those before a
    /// [`restore_activate`](Self::restore_activate). With one host a twin goes back to the last *stable* checkpoint: what it
    /// has made since is its own word alone, and helps no sibling that has lost its disk (protocol.md 8, row 2).
    ///
    /// # Errors
    /// When the store fails; the node must stop.
    fn go_back(&mut self, slot: Slot) -> Result<bool, AppError>;

    /// A view of the last checkpoint whose work is done. It stays readable, from other threads too, while execution
    /// and further checkpoints go on; dropping it lets the store reuse the space. `None` at genesis.
    ///
    /// # Errors
    /// When the store fails; the node must stop.
    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, AppError>;

    /// Drops what was executed after the last checkpoint begun (tentative execution, protocol.md 4.7) and gives the
    /// slot that the state then stands at, 0 for genesis.
    fn rollback(&mut self) -> Slot;

    /// Starts to fetch, or goes on fetching, the state of a stable checkpoint. The running state stays in use until
    /// [`restore_activate`](Self::restore_activate). Chunks that were accepted for the same checkpoint before a
    /// restart are kept as far as they were durable; those of any other are thrown away.
    ///
    /// # Errors
    /// When the store fails, or the digest cannot be one of this service.
    fn restore_begin(&mut self, checkpoint: Checkpoint) -> Result<(), AppError>;

    /// Up to `max` chunks to ask others for, in no order that matters. Empty when all are here. Accepting one can
    /// make more of them known.
    ///
    /// # Panics
    /// Without [`restore_begin`](Self::restore_begin), as do the two below.
    fn restore_wanted(&self, max: usize) -> Vec<ChunkId>;

    /// Verifies a chunk on its own against the digest and keeps it. The inner error refuses the chunk and names it:
    /// whoever sent it is wrong, and it is still wanted. A chunk that is here already is dropped in silence.
    ///
    /// # Errors
    /// When the store fails; the node must stop.
    fn restore_accept(
        &mut self,
        chunk: ChunkId,
        bytes: &[u8],
    ) -> Result<Result<(), ChunkRefused>, AppError>;

    /// Replaces the state by the restored one, durably, and stands at its slot.
    ///
    /// # Errors
    /// When the store fails; the node must stop.
    ///
    /// # Panics
    /// When chunks are still wanted.
    fn restore_activate(&mut self) -> Result<(), AppError>;
}
