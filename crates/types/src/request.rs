//! Requests of clients and the batches that are made of them (protocol.md 4.1, 4.2).

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;

use crate::digest::Digest;
use crate::ids::{ClientId, HostId, Nonce, ReplicaId, Seq, View};
use crate::keys::Mac;

/// What a client asks for: the part of a REQUEST that its digest covers.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Request {
    /// Who asks.
    pub client: ClientId,
    /// The client's running number.
    pub seq: Seq,
    /// For the service.
    pub operation: Bytes,
}

impl Request {
    /// The digest that stands for this request in PROPOSE, HAVE and FORWARD.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_canonical(b"tbft/req", self)
    }

    /// How a batch names it.
    #[must_use]
    pub fn reference(&self) -> RequestRef {
        RequestRef {
            client: self.client,
            seq: self.seq,
            digest: self.digest(),
        }
    }
}

/// `(c, s, digest)`: a request as a PROPOSE names it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize,
)]
pub struct RequestRef {
    /// Who asks.
    pub client: ClientId,
    /// The client's running number.
    pub seq: Seq,
    /// [`Request::digest`].
    pub digest: Digest,
}

/// A request with its client's MACs for the twins of one host.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedRequest {
    /// The request.
    pub request: Request,
    /// The host whose twins the MACs are for.
    pub host: HostId,
    /// One for each twin of that host.
    pub macs: Vec<Mac>,
}

/// `d`: the digest of one batch.
#[must_use]
pub fn batch_digest(requests: &[RequestRef]) -> Digest {
    Digest::of_canonical(b"tbft/bat", requests)
}

/// A fast read (protocol.md 7), as its MAC covers it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Query {
    /// Who asks.
    pub client: ClientId,
    /// Names the answer.
    pub nonce: Nonce,
    /// For the service.
    pub operation: Bytes,
}

impl Query {
    /// What the client's MAC is over.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_canonical(b"tbft/qry", self)
    }
}

/// One twin's answer to a fast read, as its MAC covers it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct QueryAnswer {
    /// Who answers.
    pub replica: ReplicaId,
    /// Who asked.
    pub client: ClientId,
    /// Which question.
    pub nonce: Nonce,
    /// The installed view, when execution is tentative.
    pub view: Option<View>,
    /// The slot of the last write to what was read.
    pub version: u64,
    /// SHA-256 of the result.
    pub result: Digest,
}

impl QueryAnswer {
    /// What the twin's MAC is over.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_canonical(b"tbft/ans", self)
    }
}
