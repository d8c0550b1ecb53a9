//! The session table in chunks, each verified on its own against the table's digest (protocol.md 5, docs/wire.md).

use std::collections::BTreeMap;

use bytes::Bytes;
use twinbft_types::{Digest, canonical, from_canonical};

use super::{KeyImage, KeyList, SessionImage, key_digest, session_digest, table_digest};

/// The chunk that names all keys with their digests.
const KEYS: u64 = u64::MAX;
/// A chunk of sessions ends after so many bytes.
const CHUNK_BYTES_MAX: usize = 256 << 10;

fn list_of(key: u32) -> u64 {
    u64::from(key) << 32
}

fn sessions_from(key: u32, place: usize) -> u64 {
    list_of(key) | (1 + place as u64)
}

/// An image that is given away in chunks.
#[derive(Clone, Debug)]
pub struct SessionChunks {
    image: SessionImage,
    /// Made when somebody asks for the first time.
    lists: Option<BTreeMap<u32, KeyList>>,
}

impl SessionChunks {
    pub const fn new(image: SessionImage) -> Self {
        Self { image, lists: None }
    }

    /// A chunk; `None` when there is none of this number, which comes from outside.
    pub fn chunk(&mut self, id: u64) -> Option<Bytes> {
        let image = &self.image;
        let lists = self.lists.get_or_insert_with(|| lists(image));
        if id == KEYS {
            let keys: BTreeMap<u32, Digest> = lists
                .iter()
                .map(|(key, list)| (*key, key_digest(list)))
                .collect();
            return Some(canonical(&keys).into());
        }
        let key = u32::try_from(id >> 32).expect("32 bits");
        let low = id & u64::from(u32::MAX);
        if low == 0 {
            return lists.get(&key).map(|list| canonical(list).into());
        }
        let sessions = &image.keys.get(&key)?.sessions;
        let from = usize::try_from(low - 1).expect("32 bits");
        let mut bytes = 0;
        let run: Vec<Bytes> = sessions
            .get(from..)?
            .iter()
            .take_while(|(_, session)| {
                let first = bytes == 0;
                bytes += session.len() + 4;
                first || bytes <= CHUNK_BYTES_MAX
            })
            .map(|(_, session)| session.clone())
            .collect();
        (!run.is_empty()).then(|| canonical(&run).into())
    }
}

fn lists(image: &SessionImage) -> BTreeMap<u32, KeyList> {
    let list = |key: &KeyImage| {
        let sessions = key.sessions.iter().map(|(id, bytes)| {
            let digest = session_digest(bytes).expect("this table's own encoding");
            (*id, digest)
        });
        (key.floor, sessions.collect())
    };
    let keys = image.keys.iter();
    keys.map(|(number, key)| (*number, list(key))).collect()
}

/// A table that is fetched.
#[derive(Clone, Debug)]
pub struct SessionFetch {
    digest: Digest,
    keys: Option<BTreeMap<u32, Digest>>,
    lists: BTreeMap<u32, KeyList>,
    /// Invariant: of each key the first ones of its list.
    sessions: BTreeMap<u32, Vec<Bytes>>,
}

impl SessionFetch {
    /// Of the table with this digest.
    pub const fn new(digest: Digest) -> Self {
        Self {
            digest,
            keys: None,
            lists: BTreeMap::new(),
            sessions: BTreeMap::new(),
        }
    }

    /// Chunks to ask for, at most `max`; none when the table is whole.
    pub fn wanted(&self, max: usize) -> Vec<u64> {
        let Some(keys) = &self.keys else {
            return vec![KEYS];
        };
        let next = |key: &u32| match self.lists.get(key) {
            None => Some(list_of(*key)),
            Some((_, list)) => {
                let have = self.sessions.get(key).map_or(0, Vec::len);
                (have < list.len()).then(|| sessions_from(*key, have))
            }
        };
        keys.keys().filter_map(next).take(max).collect()
    }

    /// Verifies a chunk and keeps it. One that is not wanted is dropped in silence.
    ///
    /// # Errors
    /// When it is not what the digest commits to: what is wrong.
    pub fn accept(&mut self, id: u64, bytes: &[u8]) -> Result<(), &'static str> {
        if !self.wanted(usize::MAX).contains(&id) {
            return Ok(());
        }
        if id == KEYS {
            let keys: BTreeMap<u32, Digest> =
                from_canonical(bytes).map_err(|_| "no map of keys")?;
            if table_digest(&keys) != self.digest {
                return Err("another table");
            }
            self.keys = Some(keys);
            return Ok(());
        }
        let key = u32::try_from(id >> 32).expect("32 bits");
        let wanted = self.keys.as_ref().and_then(|keys| keys.get(&key).copied());
        let Some((_, list)) = self.lists.get(&key) else {
            let list: KeyList = from_canonical(bytes).map_err(|_| "no list of sessions")?;
            if Some(key_digest(&list)) != wanted {
                return Err("another key");
            }
            self.lists.insert(key, list);
            return Ok(());
        };
        let run: Vec<Bytes> = from_canonical(bytes).map_err(|_| "no list of sessions")?;
        let have = self.sessions.entry(key).or_default();
        if run.is_empty() || run.len() > list.len() - have.len() {
            return Err("no sessions, or too many");
        }
        for session in run {
            let digest = session_digest(&session).map_err(|_| "no session")?;
            if digest != list[have.len()].1 {
                return Err("another session");
            }
            have.push(session);
        }
        Ok(())
    }

    /// The table, once nothing is wanted.
    pub fn image(&self) -> SessionImage {
        let key = |(number, (floor, list)): (&u32, &KeyList)| {
            let bytes = self.sessions.get(number).into_iter().flatten().cloned();
            let sessions = list.iter().map(|(id, _)| *id).zip(bytes).collect();
            let image = KeyImage {
                floor: *floor,
                sessions,
            };
            (*number, image)
        };
        SessionImage {
            keys: self.lists.iter().map(key).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use twinbft_types::{ClientId, Seq, Slot};

    use super::super::{Kept, SessionBounds, SessionTable};
    use super::*;

    const BOUNDS: SessionBounds = SessionBounds {
        window: 4,
        sessions_max: 8,
        result_bytes_max: 1 << 20,
    };

    fn table() -> SessionTable {
        let mut table = SessionTable::new(BOUNDS);
        for (key, session) in [(0, 1), (0, 2), (0, 3), (7, 1)] {
            let client = ClientId { key, session };
            assert!(table.begin(client, Seq(1), Slot(1)));
            let result = Bytes::from(vec![7; 150 << 10]);
            let kept = Kept {
                slot: Slot(1),
                history: Digest::ZERO,
                digest: Digest::of(&result),
                result: Some(result),
            };
            table.finish(client, Seq(1), kept);
        }
        table
    }

    #[test]
    fn a_table_is_fetched_chunk_by_chunk() {
        let mut table = table();
        let image = table.image();
        let mut chunks = SessionChunks::new(image.clone());
        let mut fetch = SessionFetch::new(table.digest());
        let mut taken = 0;
        while let Some(id) = fetch.wanted(1).pop() {
            let chunk = chunks.chunk(id).expect("it is wanted");
            assert!(chunk.len() <= CHUNK_BYTES_MAX);
            fetch.accept(id, &chunk).unwrap();
            taken += 1;
        }
        assert!(taken > 5);
        assert_eq!(fetch.image(), image);
    }

    #[test]
    fn a_bent_chunk_is_refused_and_still_wanted() {
        let mut table = table();
        let mut chunks = SessionChunks::new(table.image());
        let mut fetch = SessionFetch::new(table.digest());
        while let Some(id) = fetch.wanted(1).pop() {
            let chunk = chunks.chunk(id).expect("it is wanted");
            for at in [0, chunk.len() / 2, chunk.len() - 1] {
                let mut bent = chunk.to_vec();
                bent[at] ^= 1;
                assert!(fetch.accept(id, &bent).is_err(), "{id:x} at {at}");
                assert_eq!(fetch.wanted(1), [id]);
            }
            fetch.accept(id, &chunk).unwrap();
        }
        assert_eq!(SessionFetch::new(Digest::ZERO).wanted(9), [KEYS]);
        assert_eq!(chunks.chunk(1 << 40), None);
        assert_eq!(chunks.chunk(99), None);
    }
}
