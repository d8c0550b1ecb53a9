//! Counting of distinct twins.

use std::collections::{BTreeMap, VecDeque};

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{ClientId, RequestRef, Seq, Shape, TwinId};

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
pub const REQUESTS_OF_A_TWIN_MAX: usize = 1024;

/// Votes of twins for single requests (HAVE, retransmissions), bounded for each twin by itself, so that no
/// twin's votes crowd out another's.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct BoundedVotes {
    votes: BTreeMap<RequestRef, TwinSet>,
    /// For each twin, what it holds, oldest first.
    held: BTreeMap<TwinId, VecDeque<RequestRef>>,
}

impl BoundedVotes {
    /// Whether this vote made the quorum.
    pub fn vote(&mut self, twin: TwinId, request: RequestRef, shape: Shape) -> bool {
        let set = self.votes.entry(request).or_default();
        if !set.insert(twin) {
            return false;
        }
        let reached = set.len() == shape.twin_quorum();
        let held = self.held.entry(twin).or_default();
        held.push_back(request);
        if held.len() > REQUESTS_OF_A_TWIN_MAX
            && let Some(oldest) = held.pop_front()
        {
            self.withdraw(twin, &oldest);
        }
        reached
    }

    fn withdraw(&mut self, twin: TwinId, request: &RequestRef) {
        if let Some(set) = self.votes.get_mut(request) {
            set.0 &= !(1 << twin.0);
            if set.is_empty() {
                self.votes.remove(request);
            }
        }
    }

    /// Whether `q` twins vote for it.
    #[must_use]
    pub fn has_quorum(&self, request: &RequestRef, shape: Shape) -> bool {
        self.votes
            .get(request)
            .is_some_and(|set| set.len() >= shape.twin_quorum())
    }

    /// Drops every vote for this number of this client, whatever the digest.
    pub fn forget(&mut self, client: ClientId, seq: Seq) {
        if self.votes.is_empty() {
            return;
        }
        let of = |r: &RequestRef| r.client == client && r.seq == seq;
        self.votes.retain(|request, _| !of(request));
        for held in self.held.values_mut() {
            held.retain(|request| !of(request));
        }
    }
}
