//! The session table: which requests were executed, and their late results (protocol.md 4.7, 4.8).
//!
//! It is part of the replicated state: every correct replica has the same table after the same slot. A key
//! has at most `sessions_max` sessions. When one more begins, the one that was used least lately goes, and
//! from then on no *new* session of that key may have a number up to the forgotten one's: so no request is
//! executed twice, however old a copy of it the network holds (docs/adr/0003-sessions.md).

use std::collections::BTreeMap;

use bytes::Bytes;
use twinbft_types::{ClientId, Digest, Seq, Slot};

mod fetch;
mod image;

pub use fetch::{SessionChunks, SessionFetch};
pub use image::{KeyImage, KeyList, SessionImage, key_digest, session_digest, table_digest};

use crate::mutants::{Rule, out as is_out};

/// Bounds of the table; equal on all replicas.
#[derive(Clone, Copy, Debug)]
pub struct SessionBounds {
    /// `W`.
    pub window: u64,
    /// Sessions of one key.
    pub sessions_max: usize,
    /// Bytes of results of one session.
    pub result_bytes_max: usize,
}

/// What a request's number means to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Inside the window and not executed.
    Open,
    /// Executed, or below the window.
    Executed,
    /// Beyond the window: early.
    Early,
    /// Of a session that may not begin any more.
    Expired,
}

/// A result that is kept for retransmissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where it was executed.
    pub slot: Slot,
    /// The history there.
    pub history: Digest,
    /// SHA-256 of the result.
    pub digest: Digest,
    /// The result; `None` when it gave way to newer ones.
    pub result: Option<Bytes>,
}

#[derive(Clone, Debug, Default)]
struct Session {
    /// Every number up to this one is executed.
    low: u64,
    /// Numbers above `low` whose execution has begun. Invariant: none is `low + 1`.
    above: std::collections::BTreeSet<u64>,
    kept: BTreeMap<u64, Kept>,
    kept_bytes: usize,
    /// The last slot that touched it.
    used: Slot,
    /// The digest of the above, until it changes.
    digest: Option<Digest>,
    /// The encoding that goes with the digest.
    encoded: Option<Bytes>,
}

#[derive(Clone, Debug, Default)]
struct Key {
    /// No new session may have a number up to this one.
    floor: u64,
    sessions: BTreeMap<u64, Session>,
}

/// The table.
#[derive(Clone, Debug)]
pub struct SessionTable {
    bounds: SessionBounds,
    keys: BTreeMap<u32, Key>,
}

impl SessionTable {
    /// The empty table of genesis.
    #[must_use]
    pub const fn new(bounds: SessionBounds) -> Self {
        Self {
            bounds,
            keys: BTreeMap::new(),
        }
    }

    fn session(&self, client: ClientId) -> Option<&Session> {
        self.keys.get(&client.key)?.sessions.get(&client.session)
    }

    /// What this request's number means now.
    #[must_use]
    pub fn standing(&self, client: ClientId, seq: Seq) -> Standing {
        let Some(session) = self.session(client) else {
            let floor = self.keys.get(&client.key).map_or(0, |key| key.floor);
            return if client.session <= floor {
                Standing::Expired
            } else if seq.0 == 0 {
                Standing::Executed
            } else if seq.0 > self.bounds.window {
                Standing::Early
            } else {
                Standing::Open
            };
        };
        if seq.0 <= session.low || session.above.contains(&seq.0) {
            Standing::Executed
        } else if seq.0 > session.low + self.bounds.window {
            Standing::Early
        } else {
            Standing::Open
        }
    }

    /// Marks a request as executed in `slot`. `false` when it must be a no-op (4.7).
    pub fn begin(&mut self, client: ClientId, seq: Seq, slot: Slot) -> bool {
        if self.standing(client, seq) != Standing::Open && !is_out(Rule::Once) {
            return false;
        }
        let sessions_max = self.bounds.sessions_max;
        let key = self.keys.entry(client.key).or_default();
        if !key.sessions.contains_key(&client.session) && key.sessions.len() >= sessions_max {
            key.forget_oldest();
        }
        let session = key.sessions.entry(client.session).or_default();
        session.above.insert(seq.0);
        while session.above.remove(&(session.low + 1)) {
            session.low += 1;
        }
        session.used = slot;
        session.digest = None;
        true
    }

    /// Keeps the result of a request that [`Self::begin`] let through.
    pub fn finish(&mut self, client: ClientId, seq: Seq, kept: Kept) {
        let bounds = self.bounds;
        let Some(session) = self
            .keys
            .get_mut(&client.key)
            .and_then(|key| key.sessions.get_mut(&client.session))
        else {
            // A later request of the same batch took its place.
            return;
        };
        session.kept_bytes += kept.result.as_ref().map_or(0, Bytes::len);
        session.kept.insert(seq.0, kept);
        session.digest = None;
        // 4.8: the results of the last W requests.
        let newest = session.kept.keys().next_back().copied().unwrap_or(0);
        while let Some((&oldest, _)) = session.kept.first_key_value()
            && oldest + bounds.window <= newest
        {
            let gone = session.kept.remove(&oldest).and_then(|kept| kept.result);
            session.kept_bytes -= gone.map_or(0, |r| r.len());
        }
        session.shed(seq.0, bounds.result_bytes_max);
    }

    /// The kept outcome of an executed request.
    #[must_use]
    pub fn kept(&self, client: ClientId, seq: Seq) -> Option<&Kept> {
        self.session(client)?.kept.get(&seq.0)
    }

    /// The digest of the whole table; only sessions that changed are hashed again.
    pub fn digest(&mut self) -> Digest {
        let mut keys: BTreeMap<u32, Digest> = BTreeMap::new();
        for (number, key) in &mut self.keys {
            let sessions: Vec<(u64, Digest)> = key
                .sessions
                .iter_mut()
                .map(|(id, session)| (*id, session.digest()))
                .collect();
            keys.insert(*number, key_digest(&(key.floor, sessions)));
        }
        table_digest(&keys)
    }

    /// Sessions in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.values().map(|key| key.sessions.len()).sum()
    }
}

impl Key {
    fn forget_oldest(&mut self) {
        let oldest = self
            .sessions
            .iter()
            .min_by_key(|(id, session)| (session.used, **id))
            .map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.sessions.remove(&id);
            self.floor = self.floor.max(id);
        }
    }
}

impl Session {
    /// Lets the bytes of old results go until the rest fits; never those of `newest`.
    fn shed(&mut self, newest: u64, bytes_max: usize) {
        if self.kept_bytes <= bytes_max {
            return;
        }
        for (seq, kept) in &mut self.kept {
            if self.kept_bytes <= bytes_max || *seq == newest {
                break;
            }
            self.kept_bytes -= kept.result.take().map_or(0, |r| r.len());
        }
    }

    fn digest(&mut self) -> Digest {
        if let Some(digest) = self.digest {
            return digest;
        }
        let kept: Vec<(u64, Slot, Digest, Digest, bool)> = self
            .kept
            .iter()
            .map(|(seq, k)| (*seq, k.slot, k.history, k.digest, k.result.is_some()))
            .collect();
        let digest = Digest::of_canonical(b"tbft/ses", &(self.low, &self.above, kept, self.used));
        self.digest = Some(digest);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: SessionBounds = SessionBounds {
        window: 4,
        sessions_max: 2,
        result_bytes_max: 10,
    };

    fn client(session: u64) -> ClientId {
        ClientId { key: 0, session }
    }

    fn kept(slot: u64, bytes: usize) -> Kept {
        let result = Bytes::from(vec![7; bytes]);
        Kept {
            slot: Slot(slot),
            history: Digest::ZERO,
            digest: Digest::of(&result),
            result: Some(result),
        }
    }

    #[test]
    fn a_request_is_executed_once_and_only_inside_the_window() {
        let mut table = SessionTable::new(BOUNDS);
        assert_eq!(table.standing(client(1), Seq(5)), Standing::Early);
        assert!(table.begin(client(1), Seq(2), Slot(1)));
        assert!(!table.begin(client(1), Seq(2), Slot(1)));
        assert_eq!(table.standing(client(1), Seq(4)), Standing::Open);
        assert_eq!(table.standing(client(1), Seq(5)), Standing::Early);
        assert!(table.begin(client(1), Seq(1), Slot(2)));
        assert_eq!(table.standing(client(1), Seq(6)), Standing::Open);
        assert!(!table.begin(client(1), Seq(0), Slot(2)));
    }

    #[test]
    fn a_forgotten_session_never_begins_again() {
        let mut table = SessionTable::new(BOUNDS);
        for (slot, session) in [10, 20, 30].into_iter().enumerate() {
            assert!(table.begin(client(session), Seq(1), Slot(slot as u64)));
        }
        assert_eq!(table.len(), 2);
        assert_eq!(table.standing(client(10), Seq(1)), Standing::Expired);
        assert!(!table.begin(client(10), Seq(1), Slot(4)));
        assert_eq!(table.standing(client(15), Seq(1)), Standing::Open);
    }

    #[test]
    fn results_are_kept_for_a_window_and_within_their_bytes() {
        let mut table = SessionTable::new(BOUNDS);
        for seq in 1..=6 {
            assert!(table.begin(client(1), Seq(seq), Slot(seq)));
            table.finish(client(1), Seq(seq), kept(seq, 4));
        }
        assert!(table.kept(client(1), Seq(2)).is_none());
        let bytes: Vec<bool> = (3..=6)
            .map(|s| table.kept(client(1), Seq(s)).unwrap().result.is_some())
            .collect();
        assert_eq!(bytes, [false, false, true, true]);
    }

    #[test]
    fn the_digest_follows_every_change() {
        let mut table = SessionTable::new(BOUNDS);
        let empty = table.digest();
        assert!(table.begin(client(1), Seq(1), Slot(1)));
        let begun = table.digest();
        table.finish(client(1), Seq(1), kept(1, 3));
        let finished = table.digest();
        assert!(empty != begun && begun != finished);
        assert_eq!(finished, table.clone().digest());
    }
}
