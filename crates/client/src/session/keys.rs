//! The key ring of a client, shared by all of its sessions.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use twinbft_types::{Digest, Domain, KeyRing, Mac, ProcessId, ReplicaId};

/// One key ring behind many sessions: a ring is some kilobytes, and the keys of all sessions of a client are the same.
///
/// The lock is held for a few MACs at a time and is not contended as long as one thread drives the sessions.
#[derive(Clone, Debug)]
pub struct SharedKeys(Arc<Mutex<KeyRing>>);

impl From<KeyRing> for SharedKeys {
    fn from(ring: KeyRing) -> Self {
        Self(Arc::new(Mutex::new(ring)))
    }
}

impl SharedKeys {
    /// The ring for the next few MACs.
    pub(super) fn lock(&self) -> KeysGuard<'_> {
        // A ring holds keys and a cache of keys: a panic elsewhere cannot leave it half changed.
        KeysGuard(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) struct KeysGuard<'a>(MutexGuard<'a, KeyRing>);

impl KeysGuard<'_> {
    /// The MAC for a replica, or zeroes when its key is unknown: such a replica refuses it and says so.
    pub(super) fn mac(&mut self, to: ReplicaId, domain: Domain, digest: Digest) -> Mac {
        self.0
            .mac(ProcessId::Twin(to), domain, digest)
            .unwrap_or_default()
    }

    pub(super) fn verify(
        &mut self,
        from: ReplicaId,
        domain: Domain,
        digest: Digest,
        mac: &Mac,
    ) -> bool {
        self.0.verify(ProcessId::Twin(from), domain, digest, mac)
    }
}
