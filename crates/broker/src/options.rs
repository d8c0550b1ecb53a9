//! What the broker is started with, and the flags that fill it.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::*;
use twinbft_postbox::Limits;
use twinbft_postbox::vchan::{ORDER_MAX, ORDER_MIN};

use crate::journal::LogFormat;

/// The help text.
pub const USAGE: &str = "\
usage: postbox-broker --dir DIR --state-dir DIR --cluster-id ID [options]

  --dir DIR             where the sockets are (twin-<t>.sock, broker.sock)
  --state-dir DIR       where the epoch is kept; must survive a reboot
  --cluster-id ID       the cluster that this host belongs to
  --host N              the host's number (default 0)
  --twins M             twins of the host, 2 to 8 (default 2)
  --log-bytes N         size of the log (default 64 MiB, a multiple of 4096)
  --entry-bytes-max N   largest entry (default 2 MiB)
  --state-bytes-max N   largest STATE of a trim (default 1 MiB)
  --trim-every K        trim positions are multiples of K (default 1024)
  --ring-order N        a twin's append ring has 2^N bytes, 12 to 20 (default 18)
  --spin-us N           spin this long before sleeping (default 0: never)
  --uid T=UID           the user that twin T runs under (default: the broker's own); may be repeated
  --log-format FORMAT   text or json, on standard error (default text)
  --help, --version";

/// What the broker is started with.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Where the sockets are.
    pub dir: PathBuf,
    /// Where the epoch is kept.
    pub state_dir: PathBuf,
    /// The cluster that the host belongs to.
    pub cluster_id: String,
    /// The host's number.
    pub host: u32,
    /// Sizes of the log; `limits.twins` is `m`.
    pub limits: Limits,
    /// A twin's append ring has `2^ring_order` bytes.
    pub ring_order: u16,
    /// How long to spin before sleeping; 0: never.
    pub spin_us: u32,
    /// `(twin, uid)`: the user that a twin runs under, where it is not the broker's own.
    pub uids: Vec<(u8, u32)>,
    /// On standard error.
    pub log_format: LogFormat,
}

impl BrokerOptions {
    /// Defaults for a host with `twins` twins.
    #[must_use]
    pub fn new(dir: PathBuf, state_dir: PathBuf, cluster_id: String, host: u32, twins: u8) -> Self {
        Self {
            dir,
            state_dir,
            cluster_id,
            host,
            limits: Limits::new(twins),
            ring_order: 18,
            spin_us: 0,
            uids: Vec::new(),
            log_format: LogFormat::Text,
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first value that is out of range.
    pub fn validate(&self) -> Result<(), String> {
        self.limits.validate().map_err(|error| error.to_string())?;
        if !(ORDER_MIN..=ORDER_MAX).contains(&self.ring_order) {
            return Err(format!(
                "ring_order = {}: it must be {ORDER_MIN} to {ORDER_MAX}",
                self.ring_order
            ));
        }
        match self
            .uids
            .iter()
            .find(|(twin, _)| *twin >= self.limits.twins)
        {
            Some((twin, _)) => Err(format!(
                "a uid is given for twin {twin}, but there are {} twins",
                self.limits.twins
            )),
            None => Ok(()),
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run the daemon.
    Run(Box<BrokerOptions>),
    /// Print `USAGE`.
    Help,
    /// Print the version.
    Version,
}

/// Reads the command line.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    parse_flags(lexopt::Parser::from_iter(args)).map_err(|error| error.to_string())
}

fn parse_flags(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let (mut dir, mut state_dir, mut cluster_id) = (None, None, None);
    let mut options = BrokerOptions::new(PathBuf::new(), PathBuf::new(), String::new(), 0, 2);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => dir = Some(PathBuf::from(parser.value()?)),
            Long("state-dir") => state_dir = Some(PathBuf::from(parser.value()?)),
            Long("cluster-id") => cluster_id = Some(parser.value()?.string()?),
            Long("host") => options.host = parser.value()?.parse()?,
            Long("twins") => options.limits.twins = parser.value()?.parse()?,
            Long("log-bytes") => options.limits.log_bytes = parser.value()?.parse()?,
            Long("entry-bytes-max") => options.limits.entry_bytes_max = parser.value()?.parse()?,
            Long("state-bytes-max") => options.limits.state_bytes_max = parser.value()?.parse()?,
            Long("trim-every") => options.limits.trim_every = parser.value()?.parse()?,
            Long("ring-order") => options.ring_order = parser.value()?.parse()?,
            Long("spin-us") => options.spin_us = parser.value()?.parse()?,
            Long("uid") => options.uids.push(parser.value()?.parse_with(parse_uid)?),
            Long("log-format") => options.log_format = parser.value()?.parse_with(parse_format)?,
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("version") => return Ok(Command::Version),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    let missing = |name: &str| lexopt::Error::from(format!("{name} is missing"));
    options.dir = dir.ok_or_else(|| missing("--dir"))?;
    options.state_dir = state_dir.ok_or_else(|| missing("--state-dir"))?;
    options.cluster_id = cluster_id.ok_or_else(|| missing("--cluster-id"))?;
    options.validate()?;
    Ok(Command::Run(Box::new(options)))
}

fn parse_uid(text: &str) -> Result<(u8, u32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(twin, uid)| Some((twin.parse().ok()?, uid.parse().ok()?)));
    parsed.ok_or_else(|| format!("'{text}' is not of the form TWIN=UID"))
}

fn parse_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("'{other}' is neither text nor json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(flags: &[&str]) -> Result<Command, String> {
        parse(
            std::iter::once("postbox-broker")
                .chain(flags.iter().copied())
                .map(OsString::from),
        )
    }

    #[test]
    fn flags_fill_the_options() {
        let flags = [
            "--dir",
            "/d",
            "--state-dir=/s",
            "--cluster-id",
            "c",
            "--twins",
            "3",
            "--uid",
            "2=1000",
        ];
        let Ok(Command::Run(options)) = run(&flags) else {
            panic!("these flags are right")
        };
        assert_eq!(
            (options.limits.twins, options.uids.as_slice()),
            (3, &[(2, 1000)][..])
        );
    }

    #[test]
    fn mistakes_name_the_flag_or_value() {
        let required = ["--dir", "/d", "--state-dir", "/s", "--cluster-id", "c"];
        for (flags, word) in [
            (&["--twins", "9"][..], "twins = 9"),
            (&["--uid", "1"], "TWIN=UID"),
            (&["--uid", "5=0"], "twin 5"),
            (&["--ring-order", "30"], "ring_order = 30"),
            (&["--log-format", "xml"], "xml"),
            (&["--frobnicate"], "frobnicate"),
            (&["--log-bytes", "4096"], "log_bytes = 4096"),
        ] {
            let error = run(&[&required[..], flags].concat()).expect_err("a mistake");
            assert!(error.contains(word), "{error}");
        }
        assert!(
            run(&["--dir", "/d"])
                .expect_err("a mistake")
                .contains("--state-dir")
        );
    }
}
