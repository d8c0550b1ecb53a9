//! State transfer (protocol.md 5): the parts of a checkpoint's digest, and chunks of the state.

use bytes::Bytes;

use super::{FormError, digest, pb, wrong};
use crate::digest::Digest;
use crate::ids::Slot;
use crate::statement::Certificate;

/// A stable checkpoint as somebody offers it: everything that its digest is made of, and who has certified that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOffer {
    /// The slot.
    pub slot: Slot,
    /// What the digest is made of.
    pub parts: CheckpointParts,
    /// CHECKPOINT certificates of that slot.
    pub certificates: Vec<Certificate>,
}

/// What the digest of a checkpoint is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointParts {
    /// The root of the service's state.
    pub service: Digest,
    /// The digest of the session table.
    pub sessions: Digest,
    /// The digest of the configuration's agreed part.
    pub config: Digest,
    /// `h_n`.
    pub history: Digest,
    /// The slot's timestamp.
    pub timestamp_us: u64,
}

impl CheckpointParts {
    /// The digest that CHECKPOINT carries.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let parts = (
            self.service,
            self.sessions,
            self.config,
            self.history,
            self.timestamp_us,
        );
        Digest::of_canonical(b"tbft/chk", &parts)
    }
}

/// Which part of a state a chunk belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StatePart {
    /// The service's; the chunk's number belongs to the service.
    Service,
    /// The session table's; see docs/wire.md.
    Sessions,
}

/// The name of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName {
    /// Of the state after this slot.
    pub slot: Slot,
    /// Of which part.
    pub part: StatePart,
    /// Its number.
    pub id: u64,
}

/// The answer to a question for a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkMessage {
    /// Which one.
    pub name: ChunkName,
    /// Its bytes; `None` when the sender has not that state, or no longer.
    pub bytes: Option<Bytes>,
}

impl From<&CheckpointOffer> for pb::CheckpointOffer {
    fn from(offer: &CheckpointOffer) -> Self {
        let parts = &offer.parts;
        let bytes = |digest: Digest| Bytes::from(digest.0.to_vec());
        Self {
            slot: offer.slot.0,
            service: bytes(parts.service),
            sessions: bytes(parts.sessions),
            config: bytes(parts.config),
            history: bytes(parts.history),
            timestamp_us: parts.timestamp_us,
            certificates: offer.certificates.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::CheckpointOffer> for CheckpointOffer {
    type Error = FormError;

    fn try_from(message: pb::CheckpointOffer) -> Result<Self, FormError> {
        let certificates = message.certificates.into_iter().map(TryInto::try_into);
        Ok(Self {
            slot: Slot(message.slot),
            parts: CheckpointParts {
                service: digest("checkpoint_offer.service", &message.service)?,
                sessions: digest("checkpoint_offer.sessions", &message.sessions)?,
                config: digest("checkpoint_offer.config", &message.config)?,
                history: digest("checkpoint_offer.history", &message.history)?,
                timestamp_us: message.timestamp_us,
            },
            certificates: certificates.collect::<Result<_, FormError>>()?,
        })
    }
}

impl From<ChunkName> for pb::ChunkQuery {
    fn from(name: ChunkName) -> Self {
        let part = match name.part {
            StatePart::Service => pb::StatePart::Service,
            StatePart::Sessions => pb::StatePart::Sessions,
        };
        Self {
            slot: name.slot.0,
            part: part.into(),
            id: name.id,
        }
    }
}

impl TryFrom<pb::ChunkQuery> for ChunkName {
    type Error = FormError;

    fn try_from(message: pb::ChunkQuery) -> Result<Self, FormError> {
        let part = match pb::StatePart::try_from(message.part) {
            Ok(pb::StatePart::Service) => StatePart::Service,
            Ok(pb::StatePart::Sessions) => StatePart::Sessions,
            Ok(pb::StatePart::Unspecified) | Err(_) => {
                let problem = format!("{} is no part of a state", message.part);
                return Err(wrong("chunk_query.part", problem));
            }
        };
        Ok(Self {
            slot: Slot(message.slot),
            part,
            id: message.id,
        })
    }
}

impl From<&ChunkMessage> for pb::Chunk {
    fn from(chunk: &ChunkMessage) -> Self {
        Self {
            name: Some(chunk.name.into()),
            bytes: chunk.bytes.clone(),
        }
    }
}

impl TryFrom<pb::Chunk> for ChunkMessage {
    type Error = FormError;

    fn try_from(message: pb::Chunk) -> Result<Self, FormError> {
        let name = message
            .name
            .ok_or_else(|| wrong("chunk.name", "is missing"))?;
        Ok(Self {
            name: name.try_into()?,
            bytes: message.bytes,
        })
    }
}
