//! The MAC keys that one process shares with all others, and what is done with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::digest::Digest;
use crate::ids::{HostId, ProcessId, ReplicaId, TwinId};
use crate::keys::{Domain, KeyContext, Mac, MacKey, PublicKey, SecretKey};
use crate::shape::Shape;
use crate::statement::{Authenticator, Certificate, Signed};

/// Both directions between this process and one other.
#[derive(Clone, Debug)]
struct Pair {
    outgoing: MacKey,
    incoming: MacKey,
}

/// The keys of one process.
///
/// Keys with replicas are derived when the ring is made; those with clients on first use, and kept. A copy shares
/// what it can with its original.
#[derive(Clone, Debug)]
pub struct KeyRing {
    context: KeyContext,
    me: ProcessId,
    secret: SecretKey,
    replicas: Arc<BTreeMap<ReplicaId, Pair>>,
    public: Arc<BTreeMap<ProcessId, PublicKey>>,
    others: Arc<BTreeMap<ProcessId, Pair>>,
}

impl KeyRing {
    /// `public` holds every process of `cluster.toml`; keys of other processes are unknown for ever.
    #[must_use]
    pub fn new(
        context: KeyContext,
        me: ProcessId,
        secret: SecretKey,
        public: BTreeMap<ProcessId, PublicKey>,
    ) -> Self {
        let mut ring = Self {
            context,
            me,
            secret,
            replicas: Arc::default(),
            public: Arc::new(public),
            others: Arc::default(),
        };
        let replicas: Vec<ReplicaId> = ring
            .public
            .keys()
            .filter_map(|id| match id {
                ProcessId::Twin(replica) => Some(*replica),
                ProcessId::Client(_) | ProcessId::Admin(_) => None,
            })
            .collect();
        let pairs = replicas
            .into_iter()
            .filter_map(|replica| Some((replica, ring.derive(ProcessId::Twin(replica))?)))
            .collect();
        ring.replicas = Arc::new(pairs);
        ring
    }

    fn derive(&self, other: ProcessId) -> Option<Pair> {
        let public = self.public.get(&other)?;
        let [outgoing, incoming] =
            MacKey::derive_both(&self.context, &self.secret, public, self.me, other);
        Some(Pair { outgoing, incoming })
    }

    fn pair(&mut self, other: ProcessId) -> Option<&Pair> {
        if let ProcessId::Twin(replica) = other {
            return self.replicas.get(&replica);
        }
        if !self.others.contains_key(&other) {
            let pair = self.derive(other)?;
            Arc::make_mut(&mut self.others).insert(other, pair);
        }
        self.others.get(&other)
    }

    /// Whether `cluster.toml` knows this process.
    #[must_use]
    pub fn knows(&self, other: ProcessId) -> bool {
        self.public.contains_key(&other)
    }

    /// A MAC for `to`; `None` when it is unknown.
    pub fn mac(&mut self, to: ProcessId, domain: Domain, digest: Digest) -> Option<Mac> {
        Some(self.pair(to)?.outgoing.mac(domain, digest))
    }

    /// Whether `mac` is `from`'s for this process. False for an unknown process.
    pub fn verify(&mut self, from: ProcessId, domain: Domain, digest: Digest, mac: &Mac) -> bool {
        self.pair(from)
            .is_some_and(|pair| pair.incoming.verify(domain, digest, mac))
    }

    /// Signs a statement of this twin's own host for all twins of all other hosts.
    ///
    /// # Panics
    /// When this ring belongs to no twin.
    #[must_use]
    pub fn sign(&self, shape: Shape, signed: &Signed) -> Authenticator {
        let ProcessId::Twin(me) = self.me else {
            panic!("only twins sign statements");
        };
        let digest = signed.digest();
        let macs = shape
            .receivers(me.host)
            .map(|to| {
                self.replicas.get(&to).map_or_else(Mac::default, |pair| {
                    pair.outgoing.mac(Domain::Statement, digest)
                })
            })
            .collect();
        Authenticator {
            twin: me.twin,
            macs,
        }
    }

    /// How many distinct twins of the certificate's host have a valid MAC for this twin in it (protocol.md 3).
    #[must_use]
    pub fn count_valid(&self, shape: Shape, certificate: &Certificate) -> usize {
        let ProcessId::Twin(me) = self.me else {
            return 0;
        };
        let from = certificate.signed.host;
        let Some(index) = shape.receiver_index(from, me) else {
            return 0;
        };
        // Exactly one MAC for each receiver, one authenticator for each twin: nothing larger is passed on.
        let receivers = shape.receivers(from).count();
        let is_padded = certificate.authenticators.len() > usize::from(shape.twins())
            || certificate
                .authenticators
                .iter()
                .any(|a| a.macs.len() != receivers);
        if is_padded {
            return 0;
        }
        let digest = certificate.signed.digest();
        let mut seen = [false; 256];
        let mut valid = 0;
        for authenticator in &certificate.authenticators {
            let twin = usize::from(authenticator.twin.0);
            if seen[twin] {
                continue;
            }
            if self.verify_entry(from, authenticator, index, digest) {
                seen[twin] = true;
                valid += 1;
            }
        }
        valid
    }

    fn verify_entry(
        &self,
        from: HostId,
        authenticator: &Authenticator,
        index: usize,
        digest: Digest,
    ) -> bool {
        let signer = ReplicaId {
            host: from,
            twin: TwinId(authenticator.twin.0),
        };
        match (self.replicas.get(&signer), authenticator.macs.get(index)) {
            (Some(pair), Some(mac)) => pair.incoming.verify(Domain::Statement, digest, mac),
            (None, _) | (_, None) => false,
        }
    }
}
