//! Files that only their owner may read, and the randomness that goes into them.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use twinbft_types::SecretKey;

/// Writes a new file of mode 0600. It must not exist: whoever has it open already would read the secret.
pub fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = file.with_context(|| format!("creating {}", path.display()))?;
    file.write_all(content.as_bytes())
        .with_context(|| format!("writing {}", path.display()))
}

/// Makes a directory, and those above it, that only its owner may enter.
pub fn private_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("making the directory {}", path.display()))
}

/// Writes a file that others may read.
pub fn write_public(path: &Path, content: &str) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

/// A fresh key from the kernel's randomness.
pub fn fresh_key() -> anyhow::Result<SecretKey> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("the kernel gives no randomness: {error}"))?;
    Ok(SecretKey::from_bytes(bytes))
}
