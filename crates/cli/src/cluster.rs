//! A cluster as an operator names it: by its file or by the directory that the file is in.

use std::path::{Path, PathBuf};

use twinbft_config::{ClusterConfig, ConfigError, Layout};

/// A configuration and where its other files lie.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// What the file says.
    pub config: ClusterConfig,
    /// The file.
    pub file: PathBuf,
    /// What lies beside it.
    pub layout: Layout,
}

impl Cluster {
    /// Reads the configuration `place`, or `place/cluster.toml` when it is a directory.
    ///
    /// # Errors
    /// When it cannot be read or has mistakes.
    pub fn load(place: &Path) -> Result<Self, ConfigError> {
        let file = config_file(place);
        Ok(Self {
            config: ClusterConfig::load(&file)?,
            layout: Layout::of_file(&file),
            file,
        })
    }
}

/// The configuration file that `place` stands for.
#[must_use]
pub fn config_file(place: &Path) -> PathBuf {
    if place.is_dir() {
        Layout::new(place).config()
    } else {
        place.to_owned()
    }
}
