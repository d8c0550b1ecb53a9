//! The session table as bytes: for the disk, and for those who fetch the state (protocol.md 5).
//!
//! Each session is encoded by itself and verified by itself against the table's digest, so a table of any size
//! travels in pieces. Sessions that did not change share their bytes from one image to the next.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use twinbft_types::{DecodeError, Digest, Slot, canonical, from_canonical};

use super::{Kept, Key, Session, SessionBounds, SessionTable};

/// The table after some slot. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SessionImage {
    /// By the number of the client's key.
    pub keys: BTreeMap<u32, KeyImage>,
}

/// The sessions of one client key.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeyImage {
    /// No new session may have a number up to this one.
    pub floor: u64,
    /// Each session's number and its encoding, ascending.
    pub sessions: Vec<(u64, Bytes)>,
}

/// What the digest of a key covers: its floor, and the digest of each session.
pub type KeyList = (u64, Vec<(u64, Digest)>);

#[derive(BorshSerialize, BorshDeserialize)]
struct Encoded {
    low: u64,
    above: BTreeSet<u64>,
    kept: Vec<(u64, Slot, Digest, Digest, Option<Bytes>)>,
    used: Slot,
}

impl SessionImage {
    /// Bytes of all sessions.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let sessions = self.keys.values().flat_map(|key| &key.sessions);
        sessions.map(|(_, bytes)| bytes.len()).sum()
    }
}

/// The digest of a table whose keys have these digests.
#[must_use]
pub fn table_digest(keys: &BTreeMap<u32, Digest>) -> Digest {
    Digest::of_canonical(b"tbft/ses", keys)
}

/// The digest of a key whose sessions have these digests.
#[must_use]
pub fn key_digest(list: &KeyList) -> Digest {
    Digest::of_canonical(b"tbft/ses", list)
}

/// The digest of an encoded session.
///
/// # Errors
/// When the bytes are none, or contradict themselves.
pub fn session_digest(bytes: &[u8]) -> Result<Digest, DecodeError> {
    Ok(Session::decode(bytes)?.digest())
}

impl SessionTable {
    /// The table as bytes; only sessions that changed are encoded again. To be taken before [`Self::digest`].
    pub fn image(&mut self) -> SessionImage {
        let image = |key: &mut Key| KeyImage {
            floor: key.floor,
            sessions: key
                .sessions
                .iter_mut()
                .map(|(id, session)| (*id, session.encode()))
                .collect(),
        };
        let keys = self.keys.iter_mut();
        SessionImage {
            keys: keys.map(|(number, key)| (*number, image(key))).collect(),
        }
    }

    /// The table that an image shows.
    ///
    /// # Errors
    /// When a session's bytes are none, or contradict themselves.
    pub fn from_image(bounds: SessionBounds, image: &SessionImage) -> Result<Self, DecodeError> {
        let mut table = Self::new(bounds);
        for (number, key) in &image.keys {
            let mut sessions = BTreeMap::new();
            for (id, bytes) in &key.sessions {
                let mut session = Session::decode(bytes)?;
                session.encoded = Some(bytes.clone());
                session.digest();
                sessions.insert(*id, session);
            }
            table.keys.insert(*number, Key::new(key.floor, sessions));
        }
        Ok(table)
    }
}

impl Session {
    fn encode(&mut self) -> Bytes {
        // The digest goes with every change, and comes back only after this.
        if let (Some(encoded), Some(_)) = (&self.encoded, self.digest) {
            return encoded.clone();
        }
        let kept = self.kept.iter().map(|(seq, kept)| {
            let result = kept.result.clone();
            (*seq, kept.slot, kept.history, kept.digest, result)
        });
        let encoded = Bytes::from(canonical(&Encoded {
            low: self.low,
            above: self.above.clone(),
            kept: kept.collect(),
            used: self.used,
        }));
        self.encoded = Some(encoded.clone());
        self.digest();
        encoded
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let encoded: Encoded = from_canonical(bytes)?;
        let wrong = |what: &str| Err(DecodeError(what.to_owned()));
        if encoded.above.contains(&encoded.low.saturating_add(1)) {
            return wrong("a session whose lowest open number is executed");
        }
        let mut session = Self {
            low: encoded.low,
            above: encoded.above,
            used: encoded.used,
            ..Self::default()
        };
        for (seq, slot, history, digest, result) in encoded.kept {
            if result.as_ref().is_some_and(|r| Digest::of(r) != digest) {
                return wrong("a kept result that has not its digest");
            }
            session.kept_bytes += result.as_ref().map_or(0, Bytes::len);
            let kept = Kept {
                slot,
                history,
                digest,
                result,
            };
            session.kept.insert(seq, kept);
        }
        // The digest is of what a session means: of two encodings of it one could count its bytes wrongly.
        if session.encode() != bytes {
            return wrong("a session in another encoding than its own");
        }
        Ok(session)
    }
}

#[cfg(test)]
#[path = "image_fuzz.rs"]
mod fuzz;

#[cfg(test)]
mod tests {
    use twinbft_types::{ClientId, Seq};

    use super::*;

    const BOUNDS: SessionBounds = SessionBounds {
        window: 4,
        sessions_max: 2,
        result_bytes_max: 1000,
    };

    fn executed(table: &mut SessionTable, session: u64, seq: u64, slot: u64) {
        let client = ClientId { key: 3, session };
        assert!(table.begin(client, Seq(seq), Slot(slot)));
        let result = Bytes::from(vec![7; 5]);
        let kept = Kept {
            slot: Slot(slot),
            history: Digest::ZERO,
            digest: Digest::of(&result),
            result: Some(result),
        };
        table.finish(client, Seq(seq), kept);
    }

    #[test]
    fn a_table_comes_back_from_its_image() {
        let mut table = SessionTable::new(BOUNDS);
        executed(&mut table, 1, 1, 1);
        executed(&mut table, 1, 3, 2);
        executed(&mut table, 2, 1, 3);
        executed(&mut table, 5, 1, 4);
        let image = table.image();
        let bytes = canonical(&image);
        let read: SessionImage = from_canonical(&bytes).unwrap();
        let mut again = SessionTable::from_image(BOUNDS, &read).unwrap();
        assert_eq!(again.digest(), table.digest());
        assert_eq!(again.image(), image);
        executed(&mut table, 5, 2, 5);
        executed(&mut again, 5, 2, 5);
        assert_eq!(again.image(), table.image());
        assert_eq!(again.digest(), table.digest());
    }

    #[test]
    fn sessions_that_did_not_change_share_their_bytes() {
        let mut table = SessionTable::new(BOUNDS);
        executed(&mut table, 1, 1, 1);
        executed(&mut table, 2, 1, 1);
        let (before, digest) = (table.image(), table.digest());
        executed(&mut table, 1, 2, 2);
        let after = table.image();
        assert!(table.digest() != digest);
        let of = |image: &SessionImage, place: usize| image.keys[&3].sessions[place].1.clone();
        assert!(of(&before, 0) != of(&after, 0));
        assert_eq!(of(&before, 1).as_ptr(), of(&after, 1).as_ptr());
    }

    /// The digest is of what a session means, so bytes that mean the same in another way would pass it; and a result that
    /// stands there twice would count twice, and so give way here earlier than on the hosts that executed it.
    #[test]
    fn a_session_whose_results_stand_there_twice_or_in_another_order_is_refused() {
        let mut table = SessionTable::new(BOUNDS);
        executed(&mut table, 1, 1, 1);
        executed(&mut table, 1, 2, 2);
        let image = table.image();
        let honest = &image.keys[&3].sessions[0].1;
        let bent = |bend: fn(&mut Encoded)| {
            let mut encoded: Encoded = from_canonical(honest).unwrap();
            bend(&mut encoded);
            session_digest(&canonical(&encoded))
        };
        assert_eq!(bent(|_| {}), session_digest(honest));
        assert!(bent(|session| session.kept.reverse()).is_err());
        assert!(bent(|session| session.kept.push(session.kept[1].clone())).is_err());
    }

    #[test]
    fn the_pieces_of_an_image_verify_against_the_digest() {
        let mut table = SessionTable::new(BOUNDS);
        executed(&mut table, 1, 1, 1);
        executed(&mut table, 2, 1, 2);
        let image = table.image();
        let key = &image.keys[&3];
        let digests = key.sessions.iter();
        let digests = digests.map(|(id, bytes)| (*id, session_digest(bytes).unwrap()));
        let keys = BTreeMap::from([(3, key_digest(&(key.floor, digests.collect())))]);
        assert_eq!(table_digest(&keys), table.digest());
        let mut bent = key.sessions[0].1.to_vec();
        let last_of_a_result = bent.len() - 9;
        bent[last_of_a_result] ^= 1;
        assert!(session_digest(&bent).is_err());
    }
}
