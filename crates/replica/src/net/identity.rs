//! Who is at the other end of a TLS connection: the process of `cluster.toml` whose name stands in its certificate.
//!
//! TLS has verified by then that the cluster's authority signed the certificate; here its names are looked up.

use std::collections::BTreeMap;
use std::fmt;

use tonic::transport::CertificateDer;
use twinbft_config::ClusterConfig;
use twinbft_types::{HostId, ProcessId, ReplicaId, TwinId};

/// The names of all processes.
#[derive(Clone, Debug)]
pub struct Directory {
    by_name: BTreeMap<String, ProcessId>,
}

/// Why nobody of the cluster is at the other end. Each is counted under its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The connection came without a certificate.
    #[error(
        "no certificate was presented; every connection needs the one that `twinbft init` made for the process"
    )]
    NoCertificate,
    /// The certificate cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// None of its names is in `cluster.toml`.
    #[error("none of the certificate's names ({}) is in cluster.toml of this replica; compare the files on both machines", Names(.0))]
    Unknown(Vec<String>),
    /// It has the names of several processes.
    #[error("the certificate names several processes ({}); make one certificate for each", Names(.0))]
    Ambiguous(Vec<String>),
    /// The process is known and may not do this.
    #[error("{} may not do this: {rule}", name_of(*.who))]
    NotAllowed {
        /// Who.
        who: ProcessId,
        /// Who may.
        rule: &'static str,
    },
}

impl IdentityError {
    /// The name under which it is counted.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Unreadable(_) => "unreadable_certificate",
            Self::Unknown(_) => "unknown_name",
            Self::Ambiguous(_) => "ambiguous_name",
            Self::NotAllowed { .. } => "not_allowed",
        }
    }
}

struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("it has none");
        }
        f.write_str(&self.0.join(", "))
    }
}

/// How operators see a process: `h0/t1`, `client-3`, `admin-0`.
#[must_use]
pub fn name_of(process: ProcessId) -> String {
    match process {
        ProcessId::Twin(replica) => replica.to_string(),
        ProcessId::Client(key) => format!("client-{key}"),
        ProcessId::Admin(key) => format!("admin-{key}"),
    }
}

impl Directory {
    /// Of one cluster.
    #[must_use]
    pub fn new(config: &ClusterConfig) -> Self {
        let mut by_name = BTreeMap::new();
        for host in &config.hosts {
            for twin in &host.twins {
                let replica = ReplicaId {
                    host: HostId(host.id),
                    twin: TwinId(twin.id),
                };
                by_name.insert(
                    config.twin_tls_name(host.id, twin.id),
                    ProcessId::Twin(replica),
                );
            }
        }
        for client in &config.clients {
            by_name.insert(
                config.client_tls_name(client.id),
                ProcessId::Client(client.id),
            );
        }
        for admin in &config.admins {
            by_name.insert(config.admin_tls_name(admin.id), ProcessId::Admin(admin.id));
        }
        Self { by_name }
    }

    /// The process that a verified certificate chain belongs to.
    ///
    /// # Errors
    /// When it belongs to none, or to more than one.
    pub fn identify(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<ProcessId, IdentityError> {
        let end_entity = chain
            .and_then(<[_]>::first)
            .ok_or(IdentityError::NoCertificate)?;
        let certificate = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|error| IdentityError::Unreadable(error.to_string()))?;
        let names: Vec<&str> = certificate.valid_dns_names().collect();
        let known: Vec<ProcessId> = names
            .iter()
            .filter_map(|name| self.by_name.get(&name.to_ascii_lowercase()).copied())
            .collect();
        let owned = || names.iter().map(|name| (*name).to_owned()).collect();
        match known[..] {
            [process] => Ok(process),
            [] => Err(IdentityError::Unknown(owned())),
            [_, _, ..] => Err(IdentityError::Ambiguous(owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::new(names)
            .unwrap()
            .self_signed(&key)
            .unwrap();
        CertificateDer::from(made.der().to_vec())
    }

    fn directory() -> Directory {
        Directory::new(&ClusterConfig::example(3, 2, 2, 7000))
    }

    #[test]
    fn processes_are_known_by_the_name_in_their_certificate() {
        let identify = |name: &str| directory().identify(Some(&[certificate(&[name])]));
        assert_eq!(
            identify("h2t1.example.twinbft"),
            Ok(ProcessId::Twin(ReplicaId::new(2, 1)))
        );
        assert_eq!(
            identify("client-1.example.twinbft"),
            Ok(ProcessId::Client(1))
        );
        assert_eq!(identify("admin-0.example.twinbft"), Ok(ProcessId::Admin(0)));
    }

    #[test]
    fn strangers_are_refused_by_name() {
        let directory = directory();
        let error = directory.identify(None).unwrap_err();
        assert_eq!(
            (error.name(), &error),
            ("no_certificate", &IdentityError::NoCertificate)
        );
        for names in [
            &["h3t0.example.twinbft"][..],
            &["h0t0.other.twinbft"],
            &["client-9.example.twinbft"],
            &["*.example.twinbft"],
            &[],
        ] {
            let error = directory.identify(Some(&[certificate(names)])).unwrap_err();
            assert_eq!(error.name(), "unknown_name", "{names:?}: {error}");
        }
        let both = certificate(&["h0t0.example.twinbft", "client-0.example.twinbft"]);
        assert_eq!(
            directory.identify(Some(&[both])).unwrap_err().name(),
            "ambiguous_name"
        );
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        let error = directory()
            .identify(Some(&[CertificateDer::from(vec![0x30, 3, 1, 2, 3])]))
            .unwrap_err();
        assert_eq!(error.name(), "unreadable_certificate");
    }
}
