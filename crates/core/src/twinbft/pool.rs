//! Requests whose client's MAC this twin has checked and that are not executed yet (protocol.md 4.1 to 4.3).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use twinbft_types::{ClientId, Digest, RequestRef, Seq, SignedRequest};

/// Bytes of operations that may wait here; a request that finds no room displaces one of a key that holds more, or is
/// refused.
const BYTES_MAX: usize = 256 << 20;
/// One client key gets at most this part of the pool, in requests and in bytes.
const SHARE_OF_A_KEY: usize = 4;

/// What [`Pool::insert`] made of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is new.
    New,
    /// It was here already.
    Known,
    /// Another request has this number.
    Conflict,
    /// The pool, or this key's share of it, is full.
    Full,
}

#[derive(Clone, Debug)]
struct Pooled {
    digest: Digest,
    request: SignedRequest,
    /// Whether the siblings need the leader's copy.
    alone: bool,
}

/// What one client key holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    count: usize,
    bytes: usize,
}

/// The requests that wait, one for each number of each session.
#[derive(Clone, Debug)]
pub struct Pool {
    requests: BTreeMap<(ClientId, Seq), Pooled>,
    /// Invariant: sums over `requests`; no key without any.
    shares: BTreeMap<u32, Share>,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
}

impl Pool {
    pub const fn new(count_max: usize) -> Self {
        Self {
            requests: BTreeMap::new(),
            shares: BTreeMap::new(),
            bytes: 0,
            count_max,
            bytes_max: BYTES_MAX,
        }
    }

    /// Takes in a request whose MAC is right. `alone`: its client sends the siblings no copy. When there is no room, one of the key that holds most may go, unless
    /// `is_needed`: no set of keys keeps another one out. Answers with what was dropped for it.
    pub fn insert(
        &mut self,
        digest: Digest,
        request: SignedRequest,
        alone: bool,
        is_needed: impl Fn(ClientId, Seq) -> bool,
    ) -> (Inserted, Vec<(ClientId, Seq)>) {
        let key = (request.request.client, request.request.seq);
        let mut dropped = Vec::new();
        if let Some(pooled) = self.requests.get_mut(&key) {
            let inserted = if pooled.digest == digest {
                // A FORWARD brought it without MACs: siblings can check this copy.
                if pooled.request.macs.is_empty() && !request.macs.is_empty() {
                    pooled.request = request;
                }
                Inserted::Known
            } else {
                Inserted::Conflict
            };
            return (inserted, dropped);
        }
        let bytes = request.request.operation.len();
        if !self.has_share_for(key.0.key, bytes) {
            return (Inserted::Full, dropped);
        }
        while self.requests.len() >= self.count_max || self.bytes + bytes > self.bytes_max {
            let Some(victim) = self.victim(key.0.key, bytes, &is_needed) else {
                return (Inserted::Full, dropped);
            };
            self.remove(victim.0, victim.1);
            dropped.push(victim);
        }
        self.put(digest, request, alone);
        (Inserted::New, dropped)
    }

    fn put(&mut self, digest: Digest, request: SignedRequest, alone: bool) {
        let key = (request.request.client, request.request.seq);
        let bytes = request.request.operation.len();
        let share = self.shares.entry(key.0.key).or_default();
        share.count += 1;
        share.bytes += bytes;
        self.bytes += bytes;
        let pooled = Pooled {
            digest,
            request,
            alone,
        };
        self.requests.insert(key, pooled);
    }

    /// Whether one more request fits this key's share. Its first one always does.
    fn has_share_for(&self, key: u32, bytes: usize) -> bool {
        self.shares.get(&key).is_none_or(|share| {
            share.count < self.count_max.div_ceil(SHARE_OF_A_KEY)
                && share.bytes + bytes <= self.bytes_max / SHARE_OF_A_KEY
        })
    }

    /// The latest request, not needed, of the key that holds most, if that is more than `key` will hold.
    fn victim(
        &self,
        key: u32,
        bytes: usize,
        is_needed: impl Fn(ClientId, Seq) -> bool,
    ) -> Option<(ClientId, Seq)> {
        let own = self.shares.get(&key).copied().unwrap_or_default();
        let is_by_count = self.requests.len() >= self.count_max;
        let size = |share: &Share| {
            if is_by_count {
                share.count
            } else {
                share.bytes
            }
        };
        let will_hold = size(&own) + if is_by_count { 1 } else { bytes };
        let mut holders: Vec<(usize, u32)> = (self.shares.iter())
            .map(|(key, share)| (size(share), *key))
            .filter(|(size, _)| *size > will_hold)
            .collect();
        holders.sort_unstable();
        holders.into_iter().rev().find_map(|(_, holder)| {
            let of_holder = self.requests.range(range_of(holder)).rev();
            let mut numbers = of_holder.map(|(number, _)| *number);
            numbers.find(|(client, seq)| !is_needed(*client, *seq))
        })
    }

    /// Takes in a request that a FORWARD vouches for (6): in place of another one with its number, which its client may
    /// have made good for this twin alone.
    pub fn vouched(&mut self, digest: Digest, request: SignedRequest) {
        let key = (request.request.client, request.request.seq);
        let known = self.requests.get(&key).map(|pooled| pooled.digest);
        let bytes = request.request.operation.len();
        let has_room = self.requests.len() < self.count_max
            && self.bytes + bytes <= self.bytes_max
            && self.has_share_for(key.0.key, bytes);
        if known == Some(digest) || (known.is_none() && !has_room) {
            return;
        }
        self.remove(key.0, key.1);
        self.put(digest, request, false);
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
        (self.requests.range(range_of(key))).map(|((client, seq), pooled)| RequestRef {
            client: *client,
            seq: *seq,
            digest: pooled.digest,
        })
    }

    /// Whether a request of this session with a number up to `seq` waits.
    pub fn has_session(&self, client: ClientId, seq: Seq) -> bool {
        let mut range = self.requests.range((client, Seq(0))..=(client, seq));
        range.next().is_some()
    }

    /// The number is executed: its request can go.
    pub fn remove(&mut self, client: ClientId, seq: Seq) {
        let Some(pooled) = self.requests.remove(&(client, seq)) else {
            return;
        };
        let bytes = pooled.request.request.operation.len();
        self.bytes -= bytes;
        if let Some(share) = self.shares.get_mut(&client.key) {
            share.count -= 1;
            share.bytes -= bytes;
            if share.count == 0 {
                self.shares.remove(&client.key);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }
}

/// All numbers of all sessions of one key.
fn range_of(key: u32) -> RangeInclusive<(ClientId, Seq)> {
    let of = |session| ClientId { key, session };
    (of(0), Seq(0))..=(of(u64::MAX), Seq(u64::MAX))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use twinbft_types::{HostId, Request};

    use super::*;

    fn insert(pool: &mut Pool, key: u32, seq: u64, bytes: usize) -> Inserted {
        insert_beside(pool, key, seq, bytes, |_, _| false)
    }

    fn insert_beside(
        pool: &mut Pool,
        key: u32,
        seq: u64,
        bytes: usize,
        is_needed: impl Fn(ClientId, Seq) -> bool,
    ) -> Inserted {
        let request = Request {
            client: ClientId { key, session: 1 },
            seq: Seq(seq),
            operation: Bytes::from(vec![0; bytes]),
        };
        let signed = SignedRequest {
            request,
            host: HostId(0),
            macs: Vec::new(),
        };
        pool.insert(Digest::ZERO, signed, false, is_needed).0
    }

    fn check(pool: &Pool) {
        let bytes = |p: &Pooled| p.request.request.operation.len();
        assert!(pool.requests.len() <= pool.count_max && pool.bytes <= pool.bytes_max);
        assert_eq!(pool.requests.values().map(bytes).sum::<usize>(), pool.bytes);
        for (key, share) in &pool.shares {
            assert_eq!(pool.of_key(*key).count(), share.count);
        }
    }

    #[test]
    fn one_key_gets_a_share_in_requests_and_in_bytes() {
        let mut pool = Pool::new(16);
        pool.bytes_max = 400;
        assert_eq!(insert(&mut pool, 1, 0, 1000), Inserted::Full);
        let taken = |n| n == Inserted::New;
        assert_eq!(
            (1..9)
                .filter(|s| taken(insert(&mut pool, 1, *s, 1)))
                .count(),
            4
        );
        assert_eq!(
            (1..9)
                .filter(|s| taken(insert(&mut pool, 2, *s, 40)))
                .count(),
            2
        );
        assert_eq!(insert(&mut pool, 3, 1, 200), Inserted::New);
        check(&pool);
    }

    #[test]
    fn whoever_holds_most_gives_way_when_the_pool_is_full() {
        let mut pool = Pool::new(16);
        for key in 1..=4 {
            (1..=4).for_each(|seq| assert_eq!(insert(&mut pool, key, seq, 1), Inserted::New));
        }
        for key in 5..9 {
            assert_eq!(insert(&mut pool, key, 1, 1), Inserted::New);
            assert_eq!(insert(&mut pool, key, 2, 1), Inserted::New);
        }
        check(&pool);
        // Nobody holds more than this one would.
        assert_eq!(insert(&mut pool, 5, 3, 1), Inserted::Full);
        // What is in the log stays.
        assert_eq!(
            insert_beside(&mut pool, 9, 1, 1, |_, _| true),
            Inserted::Full
        );
        assert_eq!(
            insert_beside(&mut pool, 9, 1, 1, |c, _| c.key != 7),
            Inserted::New
        );
        assert_eq!(pool.of_key(7).count(), 1);
        pool.remove(ClientId { key: 9, session: 1 }, Seq(1));
        check(&pool);
    }
}
