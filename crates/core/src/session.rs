//! The session table: which requests were executed, and their late results (protocol.md 4.7, 4.8).
//!
//! It is part of the replicated state: every correct replica has the same table after the same slot. A key
//! has at most `sessions_max` sessions. When one more begins, the one that was used least lately goes, and
//! from then on no *new* session of that key may have a number up to the forgotten one's: so no request is
//! executed twice, however old a copy of it the network holds (docs/adr/0003-sessions.md).

use std::collections::{BTreeMap, BTreeSet};

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
    /// Bytes of results of one session; one key keeps as much as [`SESSIONS_OF_A_KEY_FULL`] such sessions.
    pub result_bytes_max: usize,
}

/// So many full sessions one client key may keep the results of; when it has more, its oldest results give way.
pub const SESSIONS_OF_A_KEY_FULL: usize = 8;

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
    above: BTreeSet<u64>,
    kept: BTreeMap<u64, Kept>,
    kept_bytes: usize,
    /// The last slot that touched it.
    used: Slot,
    /// The digest of the above, until it changes.
    digest: Option<Digest>,
    /// The encoding that goes with the digest.
    encoded: Option<Bytes>,
}

/// A kept result: its slot, session and number. The lowest was executed first.
type ResultKey = (Slot, u64, u64);

#[derive(Clone, Debug, Default)]
struct Key {
    /// No new session may have a number up to this one.
    floor: u64,
    sessions: BTreeMap<u64, Session>,
    /// Sessions that gave way to others in slots whose results have not come yet. Execution may have begun some slots
    /// further here than elsewhere: what is kept must not depend on it, so their results count until that slot's come.
    leaving: Vec<(Slot, u64, Session)>,
    /// The kept results that have bytes, of all sessions, and the sum of these.
    results: BTreeSet<ResultKey>,
    bytes: usize,
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

    /// Whether the table holds this session.
    #[must_use]
    pub fn has_session(&self, client: ClientId) -> bool {
        self.session(client).is_some()
    }

    /// Marks a request as executed in `slot`. `false` when it must be a no-op (4.7).
    pub fn begin(&mut self, client: ClientId, seq: Seq, slot: Slot) -> bool {
        match self.standing(client, seq) {
            Standing::Open => {}
            Standing::Early if is_out(Rule::ClientWindow) => {}
            _ if is_out(Rule::Once) => {}
            Standing::Early | Standing::Executed | Standing::Expired => return false,
        }
        let sessions_max = self.bounds.sessions_max;
        let key = self.keys.entry(client.key).or_default();
        if !key.sessions.contains_key(&client.session) && key.sessions.len() >= sessions_max {
            key.forget_oldest(slot);
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
        if let Some(key) = self.keys.get_mut(&client.key) {
            key.finish(client.session, seq.0, kept, self.bounds);
        }
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
    /// A key with these sessions, as an image shows them.
    fn new(floor: u64, sessions: BTreeMap<u64, Session>) -> Self {
        let mut key = Self {
            floor,
            ..Self::default()
        };
        for (id, session) in &sessions {
            key.bytes += session.kept_bytes;
            key.results.extend(session.results(*id));
        }
        key.sessions = sessions;
        key
    }

    fn forget_oldest(&mut self, slot: Slot) {
        let oldest = self
            .sessions
            .iter()
            .min_by_key(|(id, session)| (session.used, **id))
            .map(|(id, _)| *id);
        if let Some(id) = oldest
            && let Some(session) = self.sessions.remove(&id)
        {
            self.leaving.push((slot, id, session));
            self.floor = self.floor.max(id);
        }
    }

    fn finish(&mut self, id: u64, seq: u64, kept: Kept, bounds: SessionBounds) {
        self.let_leave(kept.slot);
        let slot = kept.slot;
        let Some(session) = Self::find(&mut self.sessions, &mut self.leaving, id) else {
            // A later request of the same batch took its place.
            return;
        };
        let bytes_before = session.kept_bytes;
        if kept.result.as_ref().is_some_and(|r| !r.is_empty()) {
            self.results.insert((slot, id, seq));
        }
        for (slot, seq) in session.keep(seq, kept, bounds) {
            self.results.remove(&(slot, id, seq));
        }
        self.bytes = self.bytes - bytes_before + session.kept_bytes;
        let bytes_max = bounds
            .result_bytes_max
            .saturating_mul(SESSIONS_OF_A_KEY_FULL);
        while self.bytes > bytes_max
            && let Some(&oldest) = self.results.first()
            && oldest != (slot, id, seq)
        {
            self.results.remove(&oldest);
            let (_, id, seq) = oldest;
            let session = Self::find(&mut self.sessions, &mut self.leaving, id);
            self.bytes -= session.map_or(0, |session| session.drop_result(seq));
        }
    }

    /// The session, also while it is leaving.
    fn find<'a>(
        sessions: &'a mut BTreeMap<u64, Session>,
        leaving: &'a mut [(Slot, u64, Session)],
        id: u64,
    ) -> Option<&'a mut Session> {
        sessions.get_mut(&id).or_else(|| {
            let mut leaving = leaving.iter_mut();
            leaving
                .find(|(_, left, _)| *left == id)
                .map(|(.., session)| session)
        })
    }

    /// The results of `slot` have come: sessions that gave way in it, or before, are gone.
    fn let_leave(&mut self, slot: Slot) {
        let (results, bytes) = (&mut self.results, &mut self.bytes);
        self.leaving.retain(|(left, id, session)| {
            let stays = *left > slot;
            if !stays {
                *bytes -= session.kept_bytes;
                for gone in session.results(*id) {
                    results.remove(&gone);
                }
            }
            stays
        });
    }
}

impl Session {
    /// Its kept results that have bytes.
    fn results(&self, id: u64) -> impl Iterator<Item = ResultKey> + '_ {
        (self.kept.iter())
            .filter(|(_, kept)| kept.result.as_ref().is_some_and(|r| !r.is_empty()))
            .map(move |(seq, kept)| (kept.slot, id, *seq))
    }

    /// Keeps a result; answers with the slots and numbers of those that gave way.
    fn keep(&mut self, seq: u64, kept: Kept, bounds: SessionBounds) -> Vec<(Slot, u64)> {
        let mut gone = Vec::new();
        self.kept_bytes += kept.result.as_ref().map_or(0, Bytes::len);
        self.kept.insert(seq, kept);
        self.digest = None;
        // 4.8: the results of the last W requests.
        let newest = self.kept.keys().next_back().copied().unwrap_or(0);
        while let Some(oldest) = self.kept.first_entry()
            && oldest.key() + bounds.window <= newest
        {
            let (number, kept) = oldest.remove_entry();
            self.kept_bytes -= kept.result.map_or(0, |r| r.len());
            gone.push((kept.slot, number));
        }
        // What was executed first goes first, whatever its number; never the newest.
        while self.kept_bytes > bounds.result_bytes_max
            && let Some((slot, _, first)) = self.results(0).filter(|(.., s)| *s != seq).min()
        {
            self.drop_result(first);
            gone.push((slot, first));
        }
        gone
    }

    /// Lets the bytes of a result go; how many they were.
    fn drop_result(&mut self, seq: u64) -> usize {
        let kept = self.kept.get_mut(&seq);
        let gone = kept.and_then(|kept| kept.result.take());
        let bytes = gone.map_or(0, |r| r.len());
        self.kept_bytes -= bytes;
        self.digest = None;
        bytes
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

    /// A session whose numbers are executed the wrong way round keeps no more than its bytes.
    #[test]
    fn results_give_way_in_the_order_of_execution() {
        let mut table = SessionTable::new(BOUNDS);
        for (slot, seq) in [(1, 4), (2, 3), (3, 2), (4, 1)] {
            assert!(table.begin(client(1), Seq(seq), Slot(slot)));
            table.finish(client(1), Seq(seq), kept(slot, 4));
        }
        let has = |seq| table.kept(client(1), Seq(seq)).unwrap().result.is_some();
        assert_eq!([1, 2, 3, 4].map(has), [true, true, false, false]);
    }

    const MANY: SessionBounds = SessionBounds {
        window: 4,
        sessions_max: 20,
        result_bytes_max: 10,
    };

    /// One key keeps as much as some full sessions, however many it opens.
    #[test]
    fn the_results_of_one_key_are_bounded() {
        let mut table = SessionTable::new(MANY);
        for session in 1..=20 {
            assert!(table.begin(client(session), Seq(1), Slot(session)));
            table.finish(client(session), Seq(1), kept(session, 10));
        }
        let has = |session: &u64| {
            table
                .kept(client(*session), Seq(1))
                .unwrap()
                .result
                .is_some()
        };
        let first = 20 - SESSIONS_OF_A_KEY_FULL as u64;
        assert!(!(1..=first).any(|s| has(&s)) && (first + 1..=20).all(|s| has(&s)));
    }

    /// Replicas begin slots ahead of the results as far as they like: what they keep does not depend on it.
    #[test]
    fn what_is_kept_does_not_depend_on_how_far_execution_runs_ahead() {
        let bounds = SessionBounds {
            sessions_max: 3,
            ..MANY
        };
        let run = |ahead: u64| {
            let mut table = SessionTable::new(bounds);
            let of = |slot: u64| client(10 + slot / 2 * 7 % 11 + slot);
            let (mut begun, last) = (0, 60);
            let mut runs = BTreeSet::new();
            for slot in 1..=last {
                while begun < (slot + ahead).min(last) {
                    begun += 1;
                    if table.begin(of(begun), Seq(1), Slot(begun)) {
                        runs.insert(begun);
                    }
                }
                if runs.contains(&slot) {
                    table.finish(of(slot), Seq(1), kept(slot, 40));
                }
            }
            table.digest()
        };
        assert!([1, 2, 5, 16].iter().all(|ahead| run(*ahead) == run(0)));
    }

    #[test]
    fn a_key_counts_the_same_from_its_image() {
        let mut table = SessionTable::new(MANY);
        let run = |table: &mut SessionTable, sessions: std::ops::RangeInclusive<u64>| {
            for session in sessions {
                assert!(table.begin(client(session), Seq(1), Slot(session)));
                table.finish(client(session), Seq(1), kept(session, 7));
            }
        };
        run(&mut table, 1..=10);
        let mut again = SessionTable::from_image(MANY, &table.image()).unwrap();
        run(&mut table, 11..=30);
        run(&mut again, 11..=30);
        assert_eq!(again.digest(), table.digest());
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
