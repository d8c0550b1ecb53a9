//! Telling a replica to misbehave, through the socket that only a build with Byzantine doubles has.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};
use twinbft_config::Layout;
use twinbft_types::ReplicaId;

/// A control socket answers at once.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Tells a replica to be this double, or with `off` to stop it.
///
/// # Errors
/// When it has no such socket, or does not obey.
pub fn tell(layout: &Layout, twin: ReplicaId, double: &str) -> anyhow::Result<()> {
    let name = format!("twin-{}.control", twin.twin.0);
    let path = layout.host_run(twin.host.0).join(name);
    let doing = || format!("telling {twin} to be {double} through {}", path.display());
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "{}; only a build of twinbft-replica with --features twinbft-replica/byzantine-doubles can be told to misbehave",
            doing()
        )
    })?;
    stream.set_read_timeout(Some(TIMEOUT)).with_context(doing)?;
    stream
        .write_all(format!("byzantine {double}\n").as_bytes())
        .with_context(doing)?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .with_context(doing)?;
    match answer.trim() {
        "ok" => Ok(()),
        refusal => bail!("{}: {refusal}", doing()),
    }
}
