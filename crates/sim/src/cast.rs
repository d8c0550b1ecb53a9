//! The keys of everybody, made once for each shape: key agreement is slow, and no seed depends on it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use twinbft_types::{Digest, Domain, KeyContext, KeyRing, ProcessId, PublicKey, SecretKey, Shape};

/// Most clients of a scenario.
pub const CLIENTS_MAX: u32 = 8;

/// Everybody's key ring.
#[derive(Clone, Debug)]
pub struct Cast(Rc<BTreeMap<ProcessId, KeyRing>>);

impl Cast {
    /// The cast for clusters of this shape.
    pub fn of(shape: Shape) -> Self {
        thread_local! {
            static CASTS: RefCell<BTreeMap<(u8, u8), Cast>> = const { RefCell::new(BTreeMap::new()) };
        }
        CASTS.with_borrow_mut(|casts| {
            casts
                .entry((shape.hosts(), shape.twins()))
                .or_insert_with(|| Self::make(shape))
                .clone()
        })
    }

    fn make(shape: Shape) -> Self {
        let context = KeyContext {
            cluster_id: "simulated".to_owned(),
            key_epoch: 0,
        };
        let clients = || (0..CLIENTS_MAX).map(ProcessId::Client);
        let ids = shape.all_replicas().map(ProcessId::Twin).chain(clients());
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
        let make_ring = |(id, secret)| {
            let mut ring = KeyRing::new(context.clone(), id, secret, public.clone());
            if matches!(id, ProcessId::Twin(_)) {
                // Keys with clients are agreed on first use: here once for all runs.
                for client in clients() {
                    let _agreed = ring.mac(client, Domain::Request, Digest::ZERO);
                }
            }
            (id, ring)
        };
        Self(Rc::new(secrets.into_iter().map(make_ring).collect()))
    }

    /// One process's ring.
    pub fn ring(&self, id: ProcessId) -> KeyRing {
        self.0[&id].clone()
    }
}
