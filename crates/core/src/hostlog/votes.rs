//! Counting of distinct twins.

use std::collections::{BTreeMap, VecDeque};

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{ClientId, Digest, RequestRef, Seq, Shape, TwinId};

/// A set of twins of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct TwinSet(u8);

impl TwinSet {
    /// Adds a twin; whether it was new.
    pub fn insert(&mut self, twin: TwinId) -> bool {
        let bit = 1u8 << twin.0;
        let new = self.0 & bit == 0;
        self.0 |= bit;
        new
    }

    /// Whether the twin is in it.
    #[must_use]
    pub const fn contains(self, twin: TwinId) -> bool {
        self.0 & (1 << twin.0) != 0
    }

    /// How many.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// One value of each twin, of which `q` equal ones decide.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeyedVotes<T> {
    votes: Vec<(TwinId, T)>,
}

impl<T: Copy + PartialEq> KeyedVotes<T> {
    /// Takes a twin's first vote; a later one is answered with `Err(first)`.
    pub fn vote(&mut self, twin: TwinId, value: T) -> Result<usize, T> {
        if let Some((_, first)) = self.votes.iter().find(|(t, _)| *t == twin) {
            return Err(*first);
        }
        self.votes.push((twin, value));
        Ok(self.votes.iter().filter(|(_, v)| *v == value).count())
    }

    /// All votes in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (TwinId, T)> + '_ {
        self.votes.iter().copied()
    }

    /// Whether two votes differ.
    #[must_use]
    pub fn differ(&self) -> bool {
        self.votes.windows(2).any(|pair| pair[0].1 != pair[1].1)
    }

    /// How many twins have voted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.votes.len()
    }
}

/// How many requests one twin may hold in one [`BoundedVotes`]; its oldest gives way to its next.
pub const REQUESTS_OF_A_TWIN_MAX: usize = 512;
/// How many of them may be of one client key; the oldest of that key gives way, so that no client crowds out others.
pub const REQUESTS_OF_A_KEY_MAX: usize = 128;

/// Bytes of one held request in STATE: its number, client, sequence number and digest.
pub const HELD_BYTES: u64 = 8 + 52;

/// Votes of twins for single requests (HAVE, retransmissions), bounded for each twin by itself, so that no
/// twin's votes crowd out another's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoundedVotes {
    /// For each twin, what it holds, by the order in which it came.
    held: BTreeMap<TwinId, BTreeMap<u64, RequestRef>>,
    /// For each twin, the number of its next one.
    next: BTreeMap<TwinId, u64>,
    /// Who holds what, under which number. Invariant: follows from `held`.
    votes: BTreeMap<RequestRef, BTreeMap<TwinId, u64>>,
}

impl BorshSerialize for BoundedVotes {
    fn serialize<W: std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        (&self.held, &self.next).serialize(writer)
    }
}

impl BorshDeserialize for BoundedVotes {
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        let (held, next) = BorshDeserialize::deserialize_reader(reader)?;
        let mut read = Self {
            held,
            next,
            votes: BTreeMap::new(),
        };
        for (twin, held) in &read.held {
            for (number, request) in held {
                let votes = read.votes.entry(*request).or_default();
                votes.insert(*twin, *number);
            }
        }
        Ok(read)
    }
}

impl BoundedVotes {
    /// Whether this vote made the quorum.
    pub fn vote(&mut self, twin: TwinId, request: RequestRef, shape: Shape) -> bool {
        let votes = self.votes.entry(request).or_default();
        if votes.contains_key(&twin) {
            return false;
        }
        let next = self.next.entry(twin).or_default();
        votes.insert(twin, *next);
        let reached = votes.len() == shape.twin_quorum();
        let held = self.held.entry(twin).or_default();
        held.insert(*next, request);
        *next += 1;
        let of_key = |r: &RequestRef| r.client.key == request.client.key;
        let gives_way = if held.values().filter(|r| of_key(r)).count() > REQUESTS_OF_A_KEY_MAX {
            held.iter().find(|(_, r)| of_key(r))
        } else if held.len() > REQUESTS_OF_A_TWIN_MAX {
            held.first_key_value()
        } else {
            None
        };
        if let Some((&number, &oldest)) = gives_way {
            held.remove(&number);
            self.withdraw(twin, &oldest);
        }
        reached
    }

    fn withdraw(&mut self, twin: TwinId, request: &RequestRef) {
        if let Some(votes) = self.votes.get_mut(request) {
            votes.remove(&twin);
            if votes.is_empty() {
                self.votes.remove(request);
            }
        }
    }

    /// Whether `q` twins vote for it.
    #[must_use]
    pub fn has_quorum(&self, request: &RequestRef, shape: Shape) -> bool {
        self.votes
            .get(request)
            .is_some_and(|votes| votes.len() >= shape.twin_quorum())
    }

    /// Whether this twin's vote for it stands.
    #[must_use]
    pub fn is_held(&self, twin: TwinId, request: &RequestRef) -> bool {
        self.votes
            .get(request)
            .is_some_and(|votes| votes.contains_key(&twin))
    }

    /// Drops every vote for this number of this client, whatever the digest.
    pub fn forget(&mut self, client: ClientId, seq: Seq) {
        let bound = |byte| RequestRef {
            client,
            seq,
            digest: Digest([byte; 32]),
        };
        let range = bound(0)..=bound(u8::MAX);
        while let Some((&request, _)) = self.votes.range(range.clone()).next() {
            let votes = self.votes.remove(&request).unwrap_or_default();
            for (twin, number) in votes {
                if let Some(held) = self.held.get_mut(&twin) {
                    held.remove(&number);
                }
            }
        }
    }

    /// Requests that are held, of all twins together.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.held.values().map(BTreeMap::len).sum()
    }
}

/// How many clients' keys are remembered for having been named in a NACK.
pub const NACKED_KEYS_MAX: usize = 1024;

/// Keys of clients that were named in a NACK; the oldest gives way, which costs its client's next bad request one more
/// attempt. Without a bound a bad leader could invent keys for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct NackedKeys(VecDeque<u32>);

impl NackedKeys {
    /// Remembers a key.
    pub fn insert(&mut self, key: u32) {
        if self.contains(key) {
            return;
        }
        if self.0.len() >= NACKED_KEYS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(key);
    }

    /// Whether it is remembered.
    #[must_use]
    pub fn contains(&self, key: u32) -> bool {
        self.0.contains(&key)
    }
}
