//! What the broker is started with, and the flags that fill it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use twinbft_config::{ClusterConfig, Layout, TRIM_MULTIPLE, Transport, record_bytes_needed};
use twinbft_postbox::Limits;
use twinbft_postbox::vchan::{GRANTED_ORDER_MAX, ORDER_MAX, ORDER_MIN};

use crate::guests::Wanted;
use crate::journal::LogFormat;

/// The help text.
pub const USAGE: &str = "\
usage: postbox-broker --config FILE --host N [options]
       postbox-broker --dir DIR --state-dir DIR --cluster-id ID [options]

  --config FILE         cluster.toml; the flags below replace what it says
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
  --guest T=NAME        on Xen, in dom0: twin T is the guest of this name or UUID; once for each twin
  --uid T=UID           the user that twin T runs under (default: the broker's own); may be repeated
  --record-dir DIR      record the log there, for `twinbft audit` (default: do not)
  --record-bytes-max N  most bytes of the record; the oldest go first (default 512 MiB)
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
    /// On Xen: the guest of each twin. Empty: twins are processes of this kernel.
    pub guests: Vec<Wanted>,
    /// Where the log is recorded; `None`: it is not.
    pub record_dir: Option<PathBuf>,
    /// Most bytes of the record.
    pub record_bytes_max: u64,
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
            guests: Vec::new(),
            record_dir: None,
            record_bytes_max: 512 << 20,
            log_format: LogFormat::Text,
        }
    }

    /// What `cluster.toml` says of one host.
    ///
    /// # Errors
    /// All mistakes of the file, or a host that is not in it.
    pub fn from_cluster(file: &Path, host: u8) -> Result<Self, String> {
        let cluster = ClusterConfig::load(file).map_err(|error| error.to_string())?;
        let of_host = cluster.host(host).ok_or_else(|| {
            let file = file.display();
            format!(
                "{file} has no host {host}: its hosts are 0 to {}",
                cluster.host_count() - 1
            )
        })?;
        let layout = Layout::of_file(file);
        let directory = layout.host_run(host);
        let twins = cluster.twin_count();
        let id = cluster.cluster.id.clone();
        let mut options = Self::new(directory.clone(), directory, id, u32::from(host), twins);
        options.limits.log_bytes = cluster.postbox.log_bytes;
        options.limits.entry_bytes_max = cluster.postbox.entry_bytes_max;
        options.limits.state_bytes_max = cluster.postbox.state_bytes_max;
        options.limits.trim_every = TRIM_MULTIPLE;
        options.spin_us = u32::try_from(cluster.postbox.spin_us).unwrap_or(u32::MAX);
        options.record_dir = layout.host_record(&cluster.postbox, host);
        options.record_bytes_max = cluster.postbox.record_bytes_max;
        let uids = of_host.twins.iter();
        options.uids = uids.filter_map(|t| Some((t.id, t.uid?))).collect();
        match cluster.postbox.transport {
            Transport::Local => {}
            Transport::Xen => {
                let guests = of_host.twins.iter();
                options.guests = guests
                    .filter_map(|t| {
                        let (twin, guest) = (t.id, t.guest.clone()?);
                        Some(Wanted { twin, guest })
                    })
                    .collect();
            }
        }
        Ok(options)
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
        self.validate_guests()?;
        let state_bytes_max = u64::from(self.limits.state_bytes_max);
        let needed = record_bytes_needed(self.limits.log_bytes, state_bytes_max);
        if self.record_dir.is_some() && self.record_bytes_max < needed {
            return Err(format!(
                "record_bytes_max = {}: with this log it must be at least {needed}",
                self.record_bytes_max
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

impl BrokerOptions {
    /// Whether the twins are guests of Xen.
    #[must_use]
    pub fn is_on_xen(&self) -> bool {
        !self.guests.is_empty()
    }

    fn validate_guests(&self) -> Result<(), String> {
        if !self.is_on_xen() {
            return Ok(());
        }
        for twin in 0..self.limits.twins {
            let count = self.guests.iter().filter(|w| w.twin == twin).count();
            if count != 1 {
                return Err(format!(
                    "twin {twin} has {count} guests: with --guest, give each twin exactly one"
                ));
            }
        }
        if self.guests.len() != usize::from(self.limits.twins) {
            let twins = self.limits.twins;
            return Err(format!(
                "a guest is given for a twin that is not there: there are {twins} twins"
            ));
        }
        if !self.uids.is_empty() {
            return Err("--uid is for twins on this kernel, --guest for guests of Xen".to_owned());
        }
        if self.ring_order > GRANTED_ORDER_MAX {
            return Err(format!(
                "ring_order = {}: on Xen it must be {ORDER_MIN} to {GRANTED_ORDER_MAX}",
                self.ring_order
            ));
        }
        Ok(())
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
    let mut arguments = Vec::new();
    let mut config: Option<PathBuf> = None;
    let mut host = 0;
    // The file first, wherever it stands: flags replace what it says.
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("host") => host = parser.value()?.parse()?,
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("version") => return Ok(Command::Version),
            Long(name) => {
                let name = name.to_owned();
                arguments.push((name, parser.value()?));
            }
            Short(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    let mut options = match &config {
        Some(file) => BrokerOptions::from_cluster(file, host)?,
        None => BrokerOptions::new(
            PathBuf::new(),
            PathBuf::new(),
            String::new(),
            u32::from(host),
            2,
        ),
    };
    for (name, value) in arguments {
        set_flag(&mut options, &name, value)?;
    }
    for (flag, is_missing) in [
        ("--dir", options.dir.as_os_str().is_empty()),
        ("--state-dir", options.state_dir.as_os_str().is_empty()),
        ("--cluster-id", options.cluster_id.is_empty()),
    ] {
        if is_missing {
            return Err(format!("{flag} is missing, or --config FILE").into());
        }
    }
    options.validate()?;
    Ok(Command::Run(Box::new(options)))
}

fn set_flag(options: &mut BrokerOptions, name: &str, value: OsString) -> Result<(), lexopt::Error> {
    match name {
        "dir" => options.dir = PathBuf::from(value),
        "state-dir" => options.state_dir = PathBuf::from(value),
        "cluster-id" => options.cluster_id = value.string()?,
        "twins" => options.limits.twins = value.parse()?,
        "log-bytes" => options.limits.log_bytes = value.parse()?,
        "entry-bytes-max" => options.limits.entry_bytes_max = value.parse()?,
        "state-bytes-max" => options.limits.state_bytes_max = value.parse()?,
        "trim-every" => options.limits.trim_every = value.parse()?,
        "ring-order" => options.ring_order = value.parse()?,
        "spin-us" => options.spin_us = value.parse()?,
        "uid" => options.uids.push(value.parse_with(parse_uid)?),
        "guest" => options.guests.push(value.parse_with(parse_guest)?),
        "record-dir" => options.record_dir = Some(PathBuf::from(value)),
        "record-bytes-max" => options.record_bytes_max = value.parse()?,
        "log-format" => options.log_format = value.parse_with(parse_format)?,
        other => return Err(format!("unknown flag --{other}").into()),
    }
    Ok(())
}

fn parse_uid(text: &str) -> Result<(u8, u32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(twin, uid)| Some((twin.parse().ok()?, uid.parse().ok()?)));
    parsed.ok_or_else(|| format!("'{text}' is not of the form TWIN=UID"))
}

fn parse_guest(text: &str) -> Result<Wanted, String> {
    let parsed = text.split_once('=').and_then(|(twin, guest)| {
        let guest = guest.to_owned();
        let twin = twin.parse().ok()?;
        (!guest.is_empty()).then_some(Wanted { twin, guest })
    });
    parsed.ok_or_else(|| format!("'{text}' is not of the form TWIN=NAME"))
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
            (&["--guest", "1"], "TWIN=NAME"),
            (&["--guest", "0=a"], "twin 1 has 0 guests"),
            (
                &["--guest", "0=a", "--guest", "1=b", "--guest", "2=c"],
                "there are 2 twins",
            ),
            (
                &["--guest", "0=a", "--guest", "1=b", "--uid", "0=1"],
                "--uid is for",
            ),
            (
                &["--guest", "0=a", "--guest", "1=b", "--ring-order", "20"],
                "12 to 19",
            ),
            (&["--log-format", "xml"], "xml"),
            (&["--frobnicate", "1"], "frobnicate"),
            (
                &["--config", "/nowhere/cluster.toml"],
                "/nowhere/cluster.toml",
            ),
            (&["--log-bytes", "4096"], "log_bytes = 4096"),
            (
                &["--record-dir", "/r", "--record-bytes-max", "1000000"],
                "record_bytes_max = 1000000",
            ),
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
