//! What replicas can do wrong towards a client, each under its own name.

use std::fmt;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// One way in which a message to a client deviates from what a correct replica sends.
        ///
        /// Such a message, or the part of it that is wrong, is dropped. The counter says that it happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ReplicaFault {
            $($(#[$doc])* $name,)*
        }

        impl ReplicaFault {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name under which it is counted, for people and for metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

faults! {
    /// The message names another host, or another twin, than the one that the transport authenticated.
    ForeignSender => "foreign-sender",
    /// The message names a host that the cluster does not have.
    UnknownHost => "unknown-host",
    /// A MAC is attributed to a twin that the cluster does not have.
    UnknownTwin => "unknown-twin",
    /// The same twin's MAC stands twice in one reply.
    DuplicateTwin => "duplicate-twin",
    /// A reply has more MACs than a host has twins.
    TooManyMacs => "too-many-macs",
    /// A reply's MAC does not verify.
    BadReplyMac => "bad-reply-mac",
    /// A reply is for another client or session.
    WrongClient => "wrong-client",
    /// A reply or refusal is for a request that was never sent.
    UnknownSeq => "unknown-seq",
    /// A reply is for slot 0, which holds no requests.
    GenesisSlot => "genesis-slot",
    /// A twin vouched for two different outcomes of one request.
    ContradictingReply => "contradicting-reply",
    /// A host certified an outcome that contradicts the one that `Q` hosts had certified before.
    ContradictsAccepted => "contradicts-accepted",
    /// Two hosts certified different committed outcomes of one request: one of them is not safe.
    HostsDisagree => "hosts-disagree",
    /// An answer is for a fast read that was never sent.
    UnknownNonce => "unknown-nonce",
    /// An answer's MAC does not verify.
    BadAnswerMac => "bad-answer-mac",
    /// A twin gave two different answers to one fast read.
    ContradictingAnswer => "contradicting-answer",
    /// A refusal gives no reason that this version knows.
    UnknownRefusal => "unknown-refusal",
    /// A message does not have the form of the wire contract (docs/wire.md).
    Malformed => "malformed",
}

/// How often each fault was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultCounters([u64; ReplicaFault::ALL.len()]);

impl Default for FaultCounters {
    fn default() -> Self {
        Self([0; ReplicaFault::ALL.len()])
    }
}

impl FaultCounters {
    /// Counts one.
    pub fn add(&mut self, fault: ReplicaFault) {
        let counter = &mut self.0[fault as usize];
        *counter = counter.saturating_add(1);
    }

    /// Adds the counts of another session.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// How often this one was seen.
    #[must_use]
    pub const fn count(&self, fault: ReplicaFault) -> u64 {
        self.0[fault as usize]
    }

    /// The sum of all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Those that were seen, by name.
    pub fn seen(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ReplicaFault::ALL
            .iter()
            .map(|fault| (fault.name(), self.count(*fault)))
            .filter(|(_, count)| *count > 0)
    }
}

impl fmt::Display for FaultCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, count) in self.seen() {
            write!(f, "{separator}{name} {count}")?;
            separator = ", ";
        }
        Ok(())
    }
}
