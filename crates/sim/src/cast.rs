//! The keys of everybody, made once for each shape: key agreement is slow, and no seed depends on it.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use twinbft_types::{KeyContext, KeyRing, ProcessId, PublicKey, SecretKey, Shape};

/// Most clients of a scenario.
pub const CLIENTS_MAX: u32 = 8;

/// Everybody's key ring.
#[derive(Clone, Debug)]
pub struct Cast(BTreeMap<ProcessId, KeyRing>);

impl Cast {
    /// The cast for clusters of this shape.
    pub fn of(shape: Shape) -> Self {
        static CASTS: OnceLock<Mutex<BTreeMap<(u8, u8), Cast>>> = OnceLock::new();
        let casts = CASTS.get_or_init(Mutex::default);
        let mut casts = casts.lock().expect("no cast panics");
        casts
            .entry((shape.hosts(), shape.twins()))
            .or_insert_with(|| Self::make(shape))
            .clone()
    }

    fn make(shape: Shape) -> Self {
        let context = KeyContext {
            cluster_id: "simulated".to_owned(),
            key_epoch: 0,
        };
        let ids = shape
            .all_replicas()
            .map(ProcessId::Twin)
            .chain((0..CLIENTS_MAX).map(ProcessId::Client));
        let secrets: BTreeMap<ProcessId, SecretKey> = ids
            .enumerate()
            .map(|(n, id)| {
                let byte = u8::try_from(n + 1).expect("a cast is small");
                (id, SecretKey::from_bytes([byte; 32]))
            })
            .collect();
        let public: BTreeMap<ProcessId, PublicKey> = secrets
            .iter()
            .map(|(id, key)| (*id, key.public()))
            .collect();
        let rings = secrets
            .into_iter()
            .map(|(id, secret)| {
                (
                    id,
                    KeyRing::new(context.clone(), id, secret, public.clone()),
                )
            })
            .collect();
        Self(rings)
    }

    /// One process's ring.
    pub fn ring(&self, id: ProcessId) -> KeyRing {
        self.0[&id].clone()
    }
}
