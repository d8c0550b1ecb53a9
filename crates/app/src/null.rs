//! The service `null`: no state, replies of any size. For benchmarks.

use std::sync::Arc;

use bytes::Bytes;
use twinbft_types::{Digest, Slot};

use crate::application::{
    Application, BatchContext, Checkpoint, CheckpointWork, Operation, QueryAnswer,
};
use crate::error::AppError;
use crate::options::NullOptions;
use crate::snapshot::{ChunkId, ChunkRefused, Snapshot};

/// Replies with as many zero bytes as the first 4 bytes of the operation say (little-endian), at most
/// [`NullOptions::reply_bytes_max`]; a shorter operation gets [`NullOptions::reply_bytes_default`].
///
/// It keeps no file: after a restart it is at genesis, and [`Application::restore_begin`] with the digest of a
/// stable checkpoint wants no chunk.
#[derive(Debug)]
pub struct Null {
    options: NullOptions,
    /// Every reply is a slice of this.
    zeros: Bytes,
    executed: Slot,
    checkpoint: Option<Checkpoint>,
    restoring: Option<Checkpoint>,
}

impl Null {
    /// The greatest `reply_bytes_max` that can be configured: 64 MiB.
    pub const REPLY_BYTES_LIMIT: u32 = 64 << 20;

    /// A service at genesis.
    ///
    /// # Errors
    /// When a size is out of its bounds.
    pub fn new(options: NullOptions) -> Result<Self, AppError> {
        if options.reply_bytes_max > Self::REPLY_BYTES_LIMIT
            || options.reply_bytes_default > options.reply_bytes_max
        {
            return Err(AppError::Options {
                what: format!(
                    "service null: reply_bytes_default = {} and reply_bytes_max = {} are out of bounds",
                    options.reply_bytes_default, options.reply_bytes_max
                ),
                remedy: "choose reply_bytes_default <= reply_bytes_max <= 67108864",
            });
        }
        Ok(Self {
            options,
            zeros: Bytes::from(vec![0; options.reply_bytes_max as usize]),
            executed: Slot(0),
            checkpoint: None,
            restoring: None,
        })
    }

    /// The digest of the state of every `null`.
    #[must_use]
    pub fn state_digest() -> Digest {
        Digest::of(b"tbft/nul")
    }

    fn reply(&self, operation: &[u8]) -> Bytes {
        let bytes = operation
            .first_chunk()
            .map_or(self.options.reply_bytes_default, |head| {
                u32::from_le_bytes(*head).min(self.options.reply_bytes_max)
            });
        self.zeros.slice(..bytes as usize)
    }
}

struct NullSnapshot(Checkpoint);

impl Snapshot for NullSnapshot {
    fn slot(&self) -> Slot {
        self.0.slot
    }

    fn digest(&self) -> Digest {
        self.0.digest
    }

    fn read_chunk(&self, _chunk: ChunkId) -> Result<Option<Bytes>, AppError> {
        Ok(None)
    }
}

impl Application for Null {
    fn name(&self) -> &'static str {
        "null"
    }

    fn execute(
        &mut self,
        batch: &BatchContext,
        operations: &[Operation<'_>],
        results: &mut Vec<Bytes>,
    ) -> Result<(), AppError> {
        assert!(batch.slot > self.executed, "slots are executed in order");
        self.executed = batch.slot;
        results.extend(
            operations
                .iter()
                .map(|operation| self.reply(operation.bytes)),
        );
        Ok(())
    }

    /// The result depends on the operation alone, so every version keeps the promise, and 0 is one.
    fn query(&self, operation: &Bytes) -> Result<QueryAnswer, AppError> {
        Ok(QueryAnswer {
            result: self.reply(operation),
            version: 0,
        })
    }

    fn checkpoint_begin(&mut self, slot: Slot) -> Result<CheckpointWork, AppError> {
        assert_eq!(
            slot, self.executed,
            "a checkpoint is of the last executed slot"
        );
        let checkpoint = Checkpoint {
            slot,
            digest: Self::state_digest(),
        };
        self.checkpoint = Some(checkpoint);
        Ok(CheckpointWork::new(move || Ok(checkpoint)))
    }

    fn last_checkpoint(&self) -> Option<Checkpoint> {
        self.checkpoint
    }

    /// Every state is the empty one.
    fn go_back(&mut self, slot: Slot) -> Result<bool, AppError> {
        self.executed = slot;
        self.checkpoint = Some(Checkpoint {
            slot,
            digest: Self::state_digest(),
        });
        Ok(true)
    }

    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, AppError> {
        Ok(self
            .checkpoint
            .map(|checkpoint| Arc::new(NullSnapshot(checkpoint)) as Arc<dyn Snapshot>))
    }

    fn rollback(&mut self) -> Slot {
        self.executed = self
            .checkpoint
            .map_or(Slot(0), |checkpoint| checkpoint.slot);
        self.executed
    }

    fn restore_begin(&mut self, checkpoint: Checkpoint) -> Result<(), AppError> {
        if checkpoint.digest != Self::state_digest() {
            return Err(AppError::Snapshot {
                service: "null",
                digest: checkpoint.digest,
                why: "a null service has no state but the empty one".into(),
            });
        }
        self.restoring = Some(checkpoint);
        Ok(())
    }

    fn restore_wanted(&self, _max: usize) -> Vec<ChunkId> {
        assert!(self.restoring.is_some(), "no restore was begun");
        Vec::new()
    }

    fn restore_accept(
        &mut self,
        chunk: ChunkId,
        _bytes: &[u8],
    ) -> Result<Result<(), ChunkRefused>, AppError> {
        assert!(self.restoring.is_some(), "no restore was begun");
        Ok(Err(ChunkRefused {
            chunk,
            why: "a null service has no chunks".into(),
        }))
    }

    fn restore_activate(&mut self) -> Result<(), AppError> {
        let checkpoint = self.restoring.take().expect("no restore was begun");
        self.executed = checkpoint.slot;
        self.checkpoint = Some(checkpoint);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use twinbft_types::{ClientId, Seq};

    use super::*;

    fn null() -> Null {
        Null::new(NullOptions {
            reply_bytes_default: 7,
            reply_bytes_max: 4096,
        })
        .expect("in bounds")
    }

    #[test]
    fn the_operation_names_the_length_of_the_reply() {
        let operations: Vec<Bytes> = [
            &b""[..],
            &[1, 0, 0],
            &[5, 0, 0, 0],
            &[0, 16, 0, 0, 9],
            &[255, 255, 255, 255],
        ]
        .into_iter()
        .map(Bytes::copy_from_slice)
        .collect();
        let batch: Vec<_> = operations
            .iter()
            .map(|bytes| Operation {
                client: ClientId { key: 0, session: 0 },
                seq: Seq(1),
                bytes,
            })
            .collect();
        let context = BatchContext {
            slot: Slot(1),
            timestamp_us: 1,
            seed: Digest::ZERO,
        };
        let mut results = Vec::new();
        let mut app = null();
        app.execute(&context, &batch, &mut results).expect("null");
        assert_eq!(
            results.iter().map(Bytes::len).collect::<Vec<_>>(),
            [7, 7, 5, 4096, 4096]
        );
        for (operation, result) in operations.iter().zip(&results) {
            let answer = app.query(operation).expect("null");
            assert_eq!((&answer.result, answer.version), (result, 0));
        }
    }

    #[test]
    fn a_restored_null_stands_at_the_checkpoint() {
        let checkpoint = Checkpoint {
            slot: Slot(128),
            digest: Null::state_digest(),
        };
        let mut app = null();
        app.restore_begin(checkpoint).expect("its own digest");
        assert!(app.restore_wanted(9).is_empty());
        app.restore_activate().expect("complete");
        assert_eq!(app.last_checkpoint(), Some(checkpoint));
        assert_eq!(app.rollback(), Slot(128));
        let other = Checkpoint {
            slot: Slot(128),
            digest: Digest::ZERO,
        };
        assert!(matches!(
            app.restore_begin(other),
            Err(AppError::Snapshot { .. })
        ));
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        let refused = Null::new(NullOptions {
            reply_bytes_default: 2,
            reply_bytes_max: 1,
        });
        assert!(matches!(refused, Err(AppError::Options { .. })));
    }
}
