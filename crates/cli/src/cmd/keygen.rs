//! `twinbft keygen`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::secret_file;

/// Make an X25519 key pair for a twin, a client or an administrator
///
/// Prints the public half and its line for cluster.toml. The secret half goes to a file of mode 0600, or, without
/// --out, to the standard output.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the secret half to this file, which must not exist yet
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Makes the pair.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let secret = secret_file::fresh_key()?;
    let public = secret.public();
    if let Some(path) = &args.out {
        secret_file::write(path, &format!("{}\n", secret.to_hex()))?;
        println!("# The secret half is in {}.", path.display());
    } else {
        println!("# The secret half; keep it in a file of mode 0600, like keys/client-1.key:");
        println!("{}", secret.to_hex());
    }
    println!("# The public half; this line goes into cluster.toml:");
    println!("public_key = \"{public}\"");
    Ok(ExitCode::SUCCESS)
}
