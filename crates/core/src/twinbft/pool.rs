//! Requests whose client's MAC this twin has checked and that are not executed yet (protocol.md 4.1 to 4.3).

use std::collections::BTreeMap;

use twinbft_types::{ClientId, Digest, RequestRef, Seq, SignedRequest};

/// What [`Pool::insert`] made of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is new.
    New,
    /// It was here already.
    Known,
    /// Another request has this number.
    Conflict,
    /// The pool is full.
    Full,
}

#[derive(Debug)]
struct Pooled {
    digest: Digest,
    request: SignedRequest,
    /// Whether the siblings need the leader's copy.
    alone: bool,
}

/// The requests that wait, one for each number of each session.
#[derive(Debug)]
pub struct Pool {
    requests: BTreeMap<(ClientId, Seq), Pooled>,
    count_max: usize,
}

impl Pool {
    pub const fn new(count_max: usize) -> Self {
        Self {
            requests: BTreeMap::new(),
            count_max,
        }
    }

    /// Takes in a request whose MAC is right. `alone`: its client sends the siblings no copy.
    pub fn insert(&mut self, digest: Digest, request: SignedRequest, alone: bool) -> Inserted {
        let key = (request.request.client, request.request.seq);
        if let Some(pooled) = self.requests.get_mut(&key) {
            return if pooled.digest == digest {
                // A FORWARD brought it without MACs: siblings can check this copy.
                if pooled.request.macs.is_empty() && !request.macs.is_empty() {
                    pooled.request = request;
                }
                Inserted::Known
            } else {
                Inserted::Conflict
            };
        }
        if self.requests.len() >= self.count_max {
            return Inserted::Full;
        }
        let pooled = Pooled {
            digest,
            request,
            alone,
        };
        self.requests.insert(key, pooled);
        Inserted::New
    }

    /// Takes in a request that a FORWARD vouches for (6): in place of another one with its number, which its client may
    /// have made good for this twin alone.
    pub fn vouched(&mut self, digest: Digest, request: SignedRequest) {
        let key = (request.request.client, request.request.seq);
        let known = self.requests.get(&key).map(|pooled| pooled.digest);
        if known == Some(digest) || (known.is_none() && self.requests.len() >= self.count_max) {
            return;
        }
        let pooled = Pooled {
            digest,
            request,
            alone: false,
        };
        self.requests.insert(key, pooled);
    }

    /// The requests among these that came to this twin alone: siblings need its copy.
    pub fn alone<'a>(
        &'a self,
        batch: &'a [RequestRef],
    ) -> impl Iterator<Item = &'a SignedRequest> + 'a {
        batch.iter().filter_map(|reference| {
            let pooled = self.requests.get(&(reference.client, reference.seq))?;
            (pooled.alone && pooled.digest == reference.digest).then_some(&pooled.request)
        })
    }

    /// All that wait, by client and number.
    pub fn all(&self) -> impl Iterator<Item = (ClientId, Seq)> + '_ {
        self.requests.keys().copied()
    }

    /// The request that a batch names.
    pub fn find(&self, reference: &RequestRef) -> Option<&SignedRequest> {
        self.requests
            .get(&(reference.client, reference.seq))
            .filter(|pooled| pooled.digest == reference.digest)
            .map(|pooled| &pooled.request)
    }

    /// The request under this number, and its digest.
    pub fn by_number(&self, client: ClientId, seq: Seq) -> Option<(Digest, &SignedRequest)> {
        self.requests
            .get(&(client, seq))
            .map(|pooled| (pooled.digest, &pooled.request))
    }

    /// All requests of one key.
    pub fn of_key(&self, key: u32) -> impl Iterator<Item = RequestRef> + '_ {
        let first = ClientId { key, session: 0 };
        self.requests
            .range((first, Seq(0))..)
            .take_while(move |((client, _), _)| client.key == key)
            .map(|((client, seq), pooled)| RequestRef {
                client: *client,
                seq: *seq,
                digest: pooled.digest,
            })
    }

    /// The number is executed: its request can go.
    pub fn remove(&mut self, client: ClientId, seq: Seq) {
        self.requests.remove(&(client, seq));
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }
}
