//! A network of the kernel: each host in a namespace of its own, which its twins share, and a bridge in one more, to which
//! every host and the clients (in the namespace of this process) have a cable. `ip` makes and cuts them; `tc` slows them
//! and loses packets, by netem where the kernel has it.
//!
//! The bridge has a namespace of its own, too, so that no packet filter of this machine sees what passes it, and so that
//! nothing is left when the namespaces are gone. They are removed on drop; what a run that was killed has left, the next
//! one removes.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::Programs;

use super::network::{Way, Weather};

/// All namespaces begin like this; a process id and a part follow.
const PREFIX: &str = "twinbft-chaos-";
/// Where `ip netns` keeps them.
const NAMESPACES: &str = "/run/netns";
/// Networks of 256 addresses each, of those that are set aside for tests of networks (RFC 2544).
const NETWORKS: u32 = 512;
/// The clients' address in the network.
const OUTSIDE: u8 = 254;
/// What a slow host's cable carries where the kernel has no netem. About what the load needs, so that the queue fills.
const SLOW_RATE: &str = "4mbit";
/// Of a host within its namespace.
const DEVICE: &str = "eth0";
/// Where a filter of `tc` looks at what a host sends, and at what it gets.
const INTO_BRIDGE: &str = "ingress";
const OUT_OF_BRIDGE: &str = "egress";
/// `skb` metadata: a random number (`SKF_AD_OFF + SKF_AD_RANDOM` of linux/filter.h).
const RANDOM_NUMBER: u32 = 0xffff_f038;
/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;

/// The network. Dropping it removes it.
pub struct Namespaces {
    /// This run's namespaces begin like this.
    prefix: String,
    hosts: u8,
    third: (u8, u8),
    has_netem: bool,
    /// What has to be said to undo what was done, the last first.
    undo: RefCell<Vec<Words>>,
}

/// A command.
type Words = Vec<String>;

fn words(text: &str) -> Words {
    text.split(' ').map(str::to_owned).collect()
}

fn run(words: &[String]) -> anyhow::Result<String> {
    let said = || words.join(" ");
    let (program, arguments) = words.split_first().context("no command")?;
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(said)?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", said(), why.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn say(text: &str) -> anyhow::Result<String> {
    run(&words(text))
}

impl Namespaces {
    /// Makes the network of `cluster`, whose addresses and file change, and tells `programs` where each host is.
    ///
    /// # Errors
    /// When this machine cannot: says what is missing.
    pub fn lay(cluster: &mut Cluster, programs: &mut Programs) -> anyhow::Result<Self> {
        let hosts = u8::try_from(cluster.config.hosts.len()).context("too many hosts")?;
        let made = Self::make(hosts)?;
        for host in &mut cluster.config.hosts {
            for twin in &mut host.twins {
                twin.listen.set_ip(IpAddr::V4(made.address(host.id + 1)));
            }
            let namespace = Path::new(NAMESPACES).join(made.of_host(host.id));
            programs.namespaces.insert(host.id, namespace);
        }
        std::fs::write(&cluster.file, cluster.config.to_toml())
            .with_context(|| format!("writing {}", cluster.file.display()))?;
        Ok(made)
    }

    fn make(hosts: u8) -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("only root can make them");
        }
        remove_left_over()?;
        let me = std::process::id();
        // From here on what was made is removed when anything fails.
        let mut made = Self {
            prefix: format!("{PREFIX}{me}-"),
            hosts,
            third: free_network(me)?,
            has_netem: false,
            undo: RefCell::default(),
        };
        made.wire(me)?;
        made.has_netem = made.try_out()?;
        Ok(made)
    }

    /// What it is, for people.
    pub fn describe(&self) -> String {
        let means = if self.has_netem {
            "delay and loss by netem".to_owned()
        } else {
            format!(
                "this kernel has no netem: packets are lost by a filter of tc, and slow is {SLOW_RATE} with a full queue"
            )
        };
        format!("a network namespace for each host, veth and a bridge; {means}")
    }

    fn of_host(&self, host: u8) -> String {
        format!("{}h{host}", self.prefix)
    }

    fn bridge(&self) -> String {
        format!("{}net", self.prefix)
    }

    const fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, self.third.0, self.third.1, last)
    }

    fn wire(&self, me: u32) -> anyhow::Result<()> {
        let net = self.bridge();
        say(&format!("ip netns add {net}"))?;
        say(&format!(
            "ip -n {net} link add br0 type bridge stp_state 0 forward_delay 0"
        ))?;
        say(&format!("ip -n {net} link set br0 up"))?;
        for host in 0..self.hosts {
            let namespace = self.of_host(host);
            say(&format!("ip netns add {namespace}"))?;
            say(&format!(
                "ip -n {net} link add h{host} type veth peer name {DEVICE} netns {namespace}"
            ))?;
            self.plug(&format!("h{host}"))?;
            say(&format!("ip -n {namespace} link set lo up"))?;
            say(&format!("ip -n {namespace} link set {DEVICE} up"))?;
            let address = self.address(host + 1);
            say(&format!(
                "ip -n {namespace} addr add {address}/24 dev {DEVICE}"
            ))?;
        }
        let own = outside_device(me);
        say(&format!(
            "ip link add {own} type veth peer name clients netns {net}"
        ))?;
        self.plug("clients")?;
        say(&format!(
            "ip addr add {}/24 dev {own}",
            self.address(OUTSIDE)
        ))?;
        say(&format!("ip link set {own} up"))?;
        Ok(())
    }

    fn plug(&self, port: &str) -> anyhow::Result<()> {
        say(&format!(
            "ip -n {} link set {port} master br0 up",
            self.bridge()
        ))?;
        Ok(())
    }

    /// Finds out whether the kernel has netem; without it a filter must do.
    fn try_out(&self) -> anyhow::Result<bool> {
        let (namespace, device) = (self.bridge(), "clients");
        let netem = say(&format!(
            "tc -n {namespace} qdisc add dev {device} root netem delay 1ms"
        ));
        if netem.is_ok() {
            say(&format!("tc -n {namespace} qdisc del dev {device} root"))?;
            return Ok(true);
        }
        say(&format!(
            "tc -n {namespace} qdisc add dev {device} root tbf rate {SLOW_RATE} burst 8000 latency 1ms"
        ))?;
        say(&format!("tc -n {namespace} qdisc del dev {device} root"))?;
        for host in 0..self.hosts {
            say(&format!("tc -n {namespace} qdisc add dev h{host} clsact"))?;
        }
        run(&self.filter_words(0, INTO_BRIDGE, 1))?;
        run(&self.no_filter_words(0, INTO_BRIDGE))?;
        Ok(false)
    }

    /// Where packets queue up: at the host's end of its cable what it sends, at the bridge's what it gets.
    fn ends(&self, host: u8, way: Way) -> Vec<(String, String)> {
        let out = (self.of_host(host), DEVICE.to_owned());
        let into = (self.bridge(), format!("h{host}"));
        match way {
            Way::Out => vec![out],
            Way::In => vec![into],
            Way::Both => vec![out, into],
        }
    }

    /// Both at the bridge's end, so that the host does not notice that its packets are lost.
    fn filter_words(&self, host: u8, direction: &str, per_mille: u16) -> Words {
        let namespace = self.bridge();
        let mut filter = words(&format!(
            "tc -n {namespace} filter add dev h{host} {direction} protocol all pref 1 handle 1 bpf da bytecode"
        ));
        filter.push(losing(per_mille));
        filter
    }

    fn no_filter_words(&self, host: u8, direction: &str) -> Words {
        words(&format!(
            "tc -n {} filter del dev h{host} {direction}",
            self.bridge()
        ))
    }

    fn doing(&self, what: &[String], undone_by: Words) -> anyhow::Result<()> {
        // Before it is done: what fails half-way must be undone, too.
        let mut undo = self.undo.borrow_mut();
        if !undo.contains(&undone_by) {
            undo.push(undone_by);
        }
        run(what).map(drop)
    }

    /// Changes the weather of a host that has fair weather, or ends a cut.
    ///
    /// # Errors
    /// What `ip` or `tc` says.
    pub fn set(&self, host: u8, way: Way, weather: Weather) -> anyhow::Result<()> {
        let cable =
            |state: &str| words(&format!("ip -n {} link set h{host} {state}", self.bridge()));
        match weather {
            Weather::Fair => run(&cable("up")).map(drop),
            Weather::Cut => self.doing(&cable("down"), cable("up")),
            Weather::Slow(delay) => {
                let ms = delay.as_millis();
                let how = if self.has_netem {
                    format!("netem delay {ms}ms limit 100000")
                } else {
                    format!("tbf rate {SLOW_RATE} burst 8000 latency {ms}ms")
                };
                self.queue(host, way, &how)
            }
            Weather::Lossy(per_mille) => self.lose(host, way, per_mille),
            Weather::Silent => self.lose(host, way, 1000),
        }
    }

    fn lose(&self, host: u8, way: Way, per_mille: u16) -> anyhow::Result<()> {
        if self.has_netem {
            let percent = f64::from(per_mille) / 10.0;
            return self.queue(host, way, &format!("netem loss {percent}% limit 100000"));
        }
        let directions: &[&str] = match way {
            Way::Out => &[INTO_BRIDGE],
            Way::In => &[OUT_OF_BRIDGE],
            Way::Both => &[INTO_BRIDGE, OUT_OF_BRIDGE],
        };
        for direction in directions {
            self.doing(
                &self.filter_words(host, direction, per_mille),
                self.no_filter_words(host, direction),
            )?;
        }
        Ok(())
    }

    fn queue(&self, host: u8, way: Way, how: &str) -> anyhow::Result<()> {
        for (namespace, device) in self.ends(host, way) {
            self.doing(
                &words(&format!(
                    "tc -n {namespace} qdisc add dev {device} root {how}"
                )),
                words(&format!("tc -n {namespace} qdisc del dev {device} root")),
            )?;
        }
        Ok(())
    }

    /// Lets nothing pass between two hosts: each takes an address for the other's that nobody has.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn part(&self, one: u8, other: u8) -> anyhow::Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let (namespace, address) = (self.of_host(from), self.address(to + 1));
            self.doing(
                &words(&format!(
                    "ip -n {namespace} neigh replace {address} lladdr 02:00:00:00:00:00 nud permanent dev {DEVICE}"
                )),
                words(&format!("ip -n {namespace} neigh del {address} dev {DEVICE}")),
            )?;
        }
        Ok(())
    }

    /// Undoes everything that was done since it was laid.
    ///
    /// # Errors
    /// The first that `ip` or `tc` says; the rest is tried.
    pub fn heal(&self) -> anyhow::Result<()> {
        let undo = std::mem::take(&mut *self.undo.borrow_mut());
        let mut outcome = Ok(());
        for words in undo.into_iter().rev() {
            let undone = run(&words).map(drop);
            outcome = outcome.and(undone);
        }
        outcome
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove(&self.prefix);
        // Its other end went with the bridge's namespace, but the kernel takes its time over that.
        let own = outside_device(std::process::id());
        drop(say(&format!("ip link del {own}")));
    }
}

/// The clients' end of their cable, in the namespace that this process is in. At most 15 bytes.
fn outside_device(process: u32) -> String {
    format!("tbx{process}")
}

/// Classic BPF, as `tc` takes it: loses so many of a thousand packets.
fn losing(per_mille: u16) -> String {
    let lost = u64::from(per_mille.min(1000)) * (1 << 32) / 1000;
    // Load the random number; if it is not below the bound, pass.
    match u32::try_from(lost) {
        Ok(bound) => format!("4,32 0 0 {RANDOM_NUMBER},53 1 0 {bound},6 0 0 {SHOT},6 0 0 0"),
        Err(_) => format!("1,6 0 0 {SHOT}"),
    }
}

/// The names of this program's namespaces, of all runs.
fn all_namespaces() -> anyhow::Result<Vec<String>> {
    let list = say("ip netns list")?;
    let names = list.lines().filter_map(|line| line.split(' ').next());
    let names = names.filter(|name| name.starts_with(PREFIX));
    Ok(names.map(str::to_owned).collect())
}

fn remove(prefix: &str) {
    let Ok(all) = all_namespaces() else {
        return;
    };
    for name in all.iter().filter(|name| name.starts_with(prefix)) {
        if let Err(error) = say(&format!("ip netns del {name}")) {
            eprintln!("chaos: {error:#}");
        }
    }
}

/// Removes what runs that were killed have left.
fn remove_left_over() -> anyhow::Result<()> {
    for name in all_namespaces()? {
        if let Some(process) = process_of(&name)
            && !PathBuf::from(format!("/proc/{process}")).exists()
        {
            eprintln!("chaos: removing {name}, which a run that was killed has left");
            say(&format!("ip netns del {name}"))?;
            // It may be gone with its other end.
            drop(say(&format!("ip link del {}", outside_device(process))));
        }
    }
    Ok(())
}

/// The process that made a namespace.
fn process_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// The second and third number of a network that no device of this machine has.
fn free_network(start: u32) -> anyhow::Result<(u8, u8)> {
    let taken = say("ip -4 -o addr show")?;
    free_among(start, &taken).context("all of 198.18.0.0/15 is taken")
}

fn free_among(start: u32, taken: &str) -> Option<(u8, u8)> {
    (0..NETWORKS)
        .map(|n| (start.wrapping_add(n) % NETWORKS).to_le_bytes())
        .map(|[low, high, ..]| (18 + high, low))
        .find(|(second, third)| !taken.contains(&format!(" 198.{second}.{third}.")))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use nix::sched::{CloneFlags, setns};

    use super::*;

    const PORT: u16 = 7000;
    const PACKETS: usize = 1000;

    /// A socket of a host, which stays in that host's namespace.
    fn socket(network: &Namespaces, host: u8) -> UdpSocket {
        let path = Path::new(NAMESPACES).join(network.of_host(host));
        let address = network.address(host + 1);
        let within = move || {
            setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            UdpSocket::bind((address, PORT)).unwrap()
        };
        let socket = std::thread::spawn(within).join().unwrap();
        let patience = Some(Duration::from_millis(200));
        socket.set_read_timeout(patience).unwrap();
        socket
    }

    /// How many of [`PACKETS`] arrive while `weather` lasts. Afterwards one must.
    fn arrive(
        network: &Namespaces,
        from: u8,
        to: u8,
        weather: impl FnOnce() -> anyhow::Result<()>,
    ) -> usize {
        let (sender, receiver) = (socket(network, from), socket(network, to));
        let address = (network.address(to + 1), PORT);
        weather().unwrap();
        // A packet that has no place is a packet that is lost.
        sender.set_nonblocking(true).unwrap();
        let (mut buffer, mut arrived) = ([0; 1], 0);
        for _ in 0..PACKETS / 10 {
            for _ in 0..10 {
                drop(sender.send_to(b"x", address));
            }
            receiver.set_nonblocking(true).unwrap();
            while receiver.recv(&mut buffer).is_ok() {
                arrived += 1;
            }
        }
        receiver.set_nonblocking(false).unwrap();
        // Some may be on their way.
        while receiver.recv(&mut buffer).is_ok() {
            arrived += 1;
        }
        network.heal().unwrap();
        let comes_back = (0..100).any(|_| {
            drop(sender.send_to(b"y", address));
            // What has waited for a cable comes first.
            while receiver.recv(&mut buffer).is_ok() {
                if buffer == *b"y" {
                    return true;
                }
            }
            false
        });
        assert!(comes_back, "h{from} does not reach h{to} afterwards");
        arrived
    }

    #[test]
    #[ignore = "needs root, ip and tc"]
    fn each_weather_does_what_its_name_says() {
        let network = Namespaces::make(3).unwrap();
        let set = |host, way, weather| arrive(&network, 0, 1, || network.set(host, way, weather));
        assert_eq!(arrive(&network, 0, 1, || Ok(())), PACKETS);
        for host in [0, 1] {
            let half = set(host, Way::Both, Weather::Lossy(500));
            assert!((400..600).contains(&half), "{half} arrive");
            assert_eq!(set(host, Way::Both, Weather::Cut), 0);
        }
        assert_eq!(set(0, Way::Out, Weather::Silent), 0);
        assert_eq!(set(0, Way::In, Weather::Silent), PACKETS);
        assert_eq!(set(1, Way::In, Weather::Silent), 0);
        assert_eq!(set(1, Way::Out, Weather::Silent), PACKETS);
        assert_eq!(set(2, Way::Both, Weather::Silent), PACKETS);
        for (one, other) in [(0, 1), (1, 0)] {
            assert_eq!(arrive(&network, 0, 1, || network.part(one, other)), 0);
            assert_eq!(arrive(&network, 0, 2, || network.part(one, other)), PACKETS);
        }
        let prefix = network.prefix.clone();
        drop(network);
        let all = all_namespaces().unwrap();
        assert!(!all.iter().any(|name| name.starts_with(&prefix)), "{all:?}");
    }

    #[test]
    fn a_network_that_is_taken_is_not_taken_again() {
        assert_eq!(free_among(5, ""), Some((18, 5)));
        assert_eq!(free_among(300, ""), Some((19, 44)));
        let taken = "7: tbx9    inet 198.19.255.254/24 scope global tbx9";
        assert_eq!(free_among(511, taken), Some((18, 0)));
    }

    #[test]
    fn a_namespace_names_the_process_that_made_it() {
        assert_eq!(process_of("twinbft-chaos-4711-h2"), Some(4711));
        assert_eq!(process_of("twinbft-chaos-4711-net"), Some(4711));
        assert_eq!(process_of("twinbft-chaos-x-net"), None);
        assert_eq!(process_of("other"), None);
        // Interfaces have names of at most 15 bytes.
        assert!(outside_device(u32::MAX).len() <= 15);
    }

    #[test]
    fn the_filter_loses_the_share_that_it_is_told() {
        assert_eq!(losing(1000), "1,6 0 0 2");
        assert_eq!(
            losing(500),
            "4,32 0 0 4294963256,53 1 0 2147483648,6 0 0 2,6 0 0 0"
        );
        assert_eq!(losing(0), "4,32 0 0 4294963256,53 1 0 0,6 0 0 2,6 0 0 0");
    }
}
