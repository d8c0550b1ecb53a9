//! Where the files of a cluster lie, all relative to the directory of `cluster.toml`.

use std::path::{Path, PathBuf};

/// The directory of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// Of the cluster in `directory`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Of the cluster that a configuration file describes.
    #[must_use]
    pub fn of_file(file: &Path) -> Self {
        let parent = file
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        Self::new(parent.unwrap_or(Path::new(".")))
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `cluster.toml`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.join("cluster.toml")
    }

    /// `keys/`: secret halves, hexadecimal, mode 0600.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.directory.join("keys")
    }

    /// `keys/h0t0.key`.
    #[must_use]
    pub fn twin_key(&self, host: u8, twin: u8) -> PathBuf {
        self.keys().join(format!("h{host}t{twin}.key"))
    }

    /// `keys/client-0.key`.
    #[must_use]
    pub fn client_key(&self, client: u32) -> PathBuf {
        self.keys().join(format!("client-{client}.key"))
    }

    /// `keys/admin-0.key`.
    #[must_use]
    pub fn admin_key(&self, admin: u32) -> PathBuf {
        self.keys().join(format!("admin-{admin}.key"))
    }

    /// `tls/`.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.directory.join("tls")
    }

    /// The authority's certificate as `[tls] ca` names it.
    #[must_use]
    pub fn tls_ca(&self, tls: &crate::Tls) -> PathBuf {
        self.directory.join(&tls.ca)
    }

    /// `tls/ca.key`: needed to sign further certificates, by no process of a running cluster.
    #[must_use]
    pub fn tls_ca_key(&self) -> PathBuf {
        self.tls().join("ca.key")
    }

    /// `tls/h0t0.pem` and `tls/h0t0.key`.
    #[must_use]
    pub fn twin_tls(&self, host: u8, twin: u8) -> (PathBuf, PathBuf) {
        self.tls_pair(&format!("h{host}t{twin}"))
    }

    /// `tls/client-0.pem` and `tls/client-0.key`.
    #[must_use]
    pub fn client_tls(&self, client: u32) -> (PathBuf, PathBuf) {
        self.tls_pair(&format!("client-{client}"))
    }

    /// `tls/admin-0.pem` and `tls/admin-0.key`.
    #[must_use]
    pub fn admin_tls(&self, admin: u32) -> (PathBuf, PathBuf) {
        self.tls_pair(&format!("admin-{admin}"))
    }

    fn tls_pair(&self, stem: &str) -> (PathBuf, PathBuf) {
        let directory = self.tls();
        (
            directory.join(format!("{stem}.pem")),
            directory.join(format!("{stem}.key")),
        )
    }

    /// `run/`.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// `run/h0/`: sockets and state of a host's broker.
    #[must_use]
    pub fn host_run(&self, host: u8) -> PathBuf {
        self.run().join(format!("h{host}"))
    }

    /// `run/h0/broker.sock`: the broker's counters, for operators.
    #[must_use]
    pub fn broker_socket(&self, host: u8) -> PathBuf {
        self.host_run(host).join("broker.sock")
    }

    /// `run/h0/twin-0.sock`: the door of one twin to its host's postbox.
    #[must_use]
    pub fn twin_socket(&self, host: u8, twin: u8) -> PathBuf {
        self.host_run(host).join(format!("twin-{twin}.sock"))
    }

    /// `record/h0/`: the record of a host's postbox log, where `[postbox]` asks for one.
    #[must_use]
    pub fn host_record(&self, postbox: &crate::Postbox, host: u8) -> Option<PathBuf> {
        let dir = postbox.record_dir.as_ref()?;
        Some(self.directory.join(dir).join(format!("h{host}")))
    }

    /// `data/h0t0/`: a replica's write-ahead log and snapshots.
    #[must_use]
    pub fn twin_data(&self, host: u8, twin: u8) -> PathBuf {
        self.directory.join("data").join(format!("h{host}t{twin}"))
    }

    /// `log/`: what processes print under `twinbft up`.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }
}
