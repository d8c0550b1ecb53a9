//! Who belongs to a cluster, as a replica remembers it beside its promises: a configuration that would take a quorum away
//! from under them is refused.
//!
//! There is no change of membership while a cluster lives: numbers of hosts and twins are those of its genesis. Keys may
//! change, a few at a time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::model::ClusterConfig;

const HEADING: &str = "twinbft membership 1";

/// Who belongs to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    cluster: String,
    key_epoch: u32,
    hosts: u8,
    twins: u8,
    keys: BTreeMap<(u8, u8), String>,
}

/// Why a replica does not go on under a new membership; says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Another cluster's.
    #[error(
        "this is the data of cluster {old:?}, and cluster.toml is of {new:?}; name the right directory, or move the old data away"
    )]
    OtherCluster {
        /// Remembered.
        old: String,
        /// In the file.
        new: String,
    },
    /// Hosts or twins were added or removed.
    #[error("the cluster was made with {} hosts of {} twins, and cluster.toml has {} of {}: quorums of the one need not meet quorums of the other, so what was promised could be lost; put the old numbers back, or make a new cluster with `twinbft init` and copy the data over as a client", .old.0, .old.1, .new.0, .new.1)]
    OtherShape {
        /// Remembered: hosts and twins.
        old: (u8, u8),
        /// In the file.
        new: (u8, u8),
    },
    /// Keys differ under one number.
    #[error(
        "the key of {twin} has changed and key_epoch has not: raise cluster.key_epoch on every host, so that old and new keys are never mixed"
    )]
    SameEpoch {
        /// The first of them.
        twin: String,
    },
    /// An old file.
    #[error(
        "key_epoch is {new} and was {old}: this is an older cluster.toml than the one that ran last; use the newer one"
    )]
    OldEpoch {
        /// Remembered.
        old: u32,
        /// In the file.
        new: u32,
    },
    /// Too many keys at a time.
    #[error(
        "the keys of {changed} twins have changed at a time, and only {left} hosts keep a quorum of known twins, of {needed} that are needed: change those of one host, restart all replicas, and then go on with the next"
    )]
    TooManyKeys {
        /// How many.
        changed: usize,
        /// Hosts with `q` twins of known keys.
        left: usize,
        /// `Q`.
        needed: usize,
    },
    /// The file beside the data is damaged.
    #[error(
        "the remembered membership makes no sense: {0}; compare it with cluster.toml, and remove it when you are sure that the cluster is the same"
    )]
    Damaged(&'static str),
}

impl Membership {
    /// What a configuration says.
    #[must_use]
    pub fn of(config: &ClusterConfig) -> Self {
        let keys = config.hosts.iter().flat_map(|host| {
            let twins = host.twins.iter();
            twins.map(|twin| ((host.id, twin.id), twin.public_key.clone()))
        });
        Self {
            cluster: config.cluster.id.clone(),
            key_epoch: config.cluster.key_epoch,
            hosts: config.host_count(),
            twins: config.twin_count(),
            keys: keys.collect(),
        }
    }

    /// As it stands in a file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{HEADING}\n{}\n{}\n{} {}\n",
            self.cluster, self.key_epoch, self.hosts, self.twins
        );
        for ((host, twin), key) in &self.keys {
            writeln!(text, "{host} {twin} {key}").expect("writing to a string does not fail");
        }
        text
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`MembershipError::Damaged`] when it is none, or not whole.
    pub fn parse(text: &str) -> Result<Self, MembershipError> {
        const NUMBERS: MembershipError = MembershipError::Damaged("its numbers are none");
        let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
        if lines.next() != Some(HEADING) {
            return Err(MembershipError::Damaged("it has no heading"));
        }
        let mut next = || {
            lines
                .next()
                .ok_or(MembershipError::Damaged("it is cut off"))
        };
        let cluster = next()?.to_owned();
        let key_epoch = next()?.parse().map_err(|_| NUMBERS)?;
        let (hosts, twins) = next()?.split_once(' ').ok_or(NUMBERS)?;
        let (hosts, twins) = (
            hosts.parse::<u8>().map_err(|_| NUMBERS)?,
            twins.parse::<u8>().map_err(|_| NUMBERS)?,
        );
        let mut keys = BTreeMap::new();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let [host, twin, key] = words[..] else {
                return Err(NUMBERS);
            };
            let id = (
                host.parse().map_err(|_| NUMBERS)?,
                twin.parse().map_err(|_| NUMBERS)?,
            );
            keys.insert(id, key.to_owned());
        }
        if keys.len() != usize::from(hosts) * usize::from(twins) {
            return Err(MembershipError::Damaged("it has not one key for each twin"));
        }
        Ok(Self {
            cluster,
            key_epoch,
            hosts,
            twins,
            keys,
        })
    }

    /// Whether a replica that ran under `old` may go on under this.
    ///
    /// # Errors
    /// When a quorum of the old cluster could be lost.
    pub fn check_against(&self, old: &Self) -> Result<(), MembershipError> {
        if self.cluster != old.cluster {
            return Err(MembershipError::OtherCluster {
                old: old.cluster.clone(),
                new: self.cluster.clone(),
            });
        }
        if (self.hosts, self.twins) != (old.hosts, old.twins) {
            return Err(MembershipError::OtherShape {
                old: (old.hosts, old.twins),
                new: (self.hosts, self.twins),
            });
        }
        if self.key_epoch < old.key_epoch {
            return Err(MembershipError::OldEpoch {
                old: old.key_epoch,
                new: self.key_epoch,
            });
        }
        let is_known = |twin: &(u8, u8)| self.keys.get(twin) == old.keys.get(twin);
        let changed: Vec<&(u8, u8)> = self.keys.keys().filter(|twin| !is_known(twin)).collect();
        let Some((host, twin)) = changed.first() else {
            return Ok(());
        };
        if self.key_epoch == old.key_epoch {
            return Err(MembershipError::SameEpoch {
                twin: format!("h{host}/t{twin}"),
            });
        }
        let quorum = |count: u8| usize::from(count) / 2 + 1;
        let keeps = |host: &u8| {
            let known = (0..self.twins).filter(|twin| is_known(&(*host, *twin)));
            known.count() >= quorum(self.twins)
        };
        let (left, needed) = ((0..self.hosts).filter(keeps).count(), quorum(self.hosts));
        if left < needed {
            return Err(MembershipError::TooManyKeys {
                changed: changed.len(),
                left,
                needed,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(hosts: u8, twins: u8) -> ClusterConfig {
        ClusterConfig::example(hosts, twins, 1, 7100)
    }

    fn refusal(old: &ClusterConfig, new: &ClusterConfig) -> Option<MembershipError> {
        Membership::of(new)
            .check_against(&Membership::of(old))
            .err()
    }

    fn rekey(config: &mut ClusterConfig, host: usize, twin: usize) {
        config.hosts[host].twins[twin].public_key = format!("{:064x}", 77 + host * 10 + twin);
    }

    #[test]
    fn it_is_read_as_it_was_written_and_damage_is_noticed() {
        let membership = Membership::of(&config(3, 2));
        let text = membership.to_text();
        assert_eq!(Membership::parse(&text), Ok(membership));
        for damaged in [
            "",
            "x",
            &text[..text.len() - 80],
            &text.replace("3 2", "3 x"),
        ] {
            let error = Membership::parse(damaged).unwrap_err();
            assert!(matches!(error, MembershipError::Damaged(_)), "{damaged}");
        }
    }

    #[test]
    fn hosts_and_twins_are_those_of_the_beginning() {
        let old = config(3, 2);
        assert_eq!(refusal(&old, &old), None);
        for (hosts, twins) in [(2, 2), (4, 2), (3, 3)] {
            let error = refusal(&old, &config(hosts, twins)).expect("refused");
            assert!(matches!(error, MembershipError::OtherShape { .. }));
            assert!(error.to_string().contains("3 hosts of 2 twins"), "{error}");
        }
        let mut other = old.clone();
        other.cluster.id = "another".to_owned();
        let error = refusal(&old, &other);
        assert!(matches!(error, Some(MembershipError::OtherCluster { .. })));
    }

    #[test]
    fn keys_change_under_a_new_number_and_a_host_at_a_time() {
        let old = config(3, 2);
        let mut new = old.clone();
        rekey(&mut new, 1, 0);
        rekey(&mut new, 1, 1);
        let error = refusal(&old, &new).expect("refused");
        assert!(error.to_string().contains("h1/t0"), "{error}");
        new.cluster.key_epoch = 1;
        assert_eq!(refusal(&old, &new), None);
        // And not back.
        let error = refusal(&new, &old);
        assert!(matches!(error, Some(MembershipError::OldEpoch { .. })));
        // With two twins one key is as much as two.
        rekey(&mut new, 2, 1);
        let error = refusal(&old, &new);
        let too_many = MembershipError::TooManyKeys {
            changed: 3,
            left: 1,
            needed: 2,
        };
        assert_eq!(error, Some(too_many));
    }

    #[test]
    fn names_places_and_numbers_of_the_protocol_are_no_membership() {
        let old = config(3, 2);
        let mut new = old.clone();
        new.hosts[0].name = "moved".to_owned();
        new.hosts[0].twins[0].listen = "192.0.2.1:9".parse().unwrap();
        new.protocol.suspect_after_ms = 1000;
        new.clients.clear();
        assert_eq!(refusal(&old, &new), None);
    }
}
