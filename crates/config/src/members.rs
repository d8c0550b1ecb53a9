//! Hosts, twins, clients and administrators.

use std::net::SocketAddr;

use crate::guest::read_guest;
use crate::model::{Host, Transport, Twin};
use crate::parse::{HOSTS_MAX, TWINS_MAX, TWINS_MIN, small};
use crate::reader::{Reader, Section};
use crate::unique::{Kind, Unique};

const NAME_BYTES_MAX: usize = 64;
const CPUS_MAX: u64 = 1023;
const KEY_REMEDY: &str = "`twinbft keygen` makes a key pair; its public half goes here";

/// Points of low order, with which a secret would be shared with everybody. The top bit does not count.
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

/// All hosts, by id.
pub(crate) fn read_hosts(
    reader: &mut Reader<'_>,
    top: &Section<'_, '_>,
    transport: Transport,
    unique: &mut Unique,
) -> Vec<Host> {
    let sections = reader.tables(top, "host");
    if sections.is_empty() && !top.table.contains_key("host") {
        let remedy =
            "add a [[host]] with its [[host.twin]]s for each machine, or run `twinbft init`";
        reader.missing(&(0..0), "host", "there is no host", remedy);
    }
    if let Some(first_too_many) = sections.get(usize::from(HOSTS_MAX)) {
        let problem = format!("{} hosts", sections.len());
        let remedy = format!("a cluster has at most {HOSTS_MAX}");
        reader.mistake(
            &first_too_many.span,
            first_too_many.path.clone(),
            problem,
            remedy,
        );
    }
    let mut hosts = Vec::new();
    let mut ids = Ids::new(sections.len());
    let mut twins_wanted = None;
    for section in &sections {
        reader.only(section, &["id", "name", "cpu", "twin"].into_iter());
        let id = ids.read(reader, section);
        let twins = read_twins(reader, section, transport, &mut twins_wanted, unique);
        hosts.push(Host {
            id: id.and_then(|id| u8::try_from(id).ok()).unwrap_or(u8::MAX),
            name: read_name(reader, section, Kind::HostName, id, unique),
            cpu: read_cpus(reader, section),
            twins,
        });
    }
    hosts.sort_by_key(|host| host.id);
    hosts
}

/// The twins of one host. `wanted` is how many the first host has, and where: all hosts have equally many.
fn read_twins(
    reader: &mut Reader<'_>,
    host: &Section<'_, '_>,
    transport: Transport,
    wanted: &mut Option<(usize, String)>,
    unique: &mut Unique,
) -> Vec<Twin> {
    let sections = reader.tables(host, "twin");
    let count = sections.len();
    let listed = host
        .table
        .get("twin")
        .is_none_or(|twins| twins.get_ref().is_array());
    if listed && !(usize::from(TWINS_MIN)..=usize::from(TWINS_MAX)).contains(&count) {
        let problem = format!("{count} twins");
        let remedy = format!("a host has {TWINS_MIN} to {TWINS_MAX} twins, each a [[host.twin]]");
        reader.mistake(&host.span, host.path.clone(), problem, remedy);
    } else if listed {
        match wanted {
            None => *wanted = Some((count, host.path.clone())),
            Some((wanted, first)) if *wanted != count => {
                let problem = format!("{count} twins, but {first} has {wanted}");
                let remedy = "give all hosts the same number of [[host.twin]]s";
                reader.mistake(&host.span, host.path.clone(), problem, remedy);
            }
            Some(_) => {}
        }
    }
    let mut ids = Ids::new(count);
    // Two machines may each have a guest of the same name; one machine cannot.
    let mut guests = Unique::default();
    let mut twins: Vec<Twin> = sections
        .iter()
        .filter_map(|section| {
            let guest = read_guest(reader, section, transport, &mut guests);
            read_twin(reader, section, &mut ids, unique).map(|twin| Twin { guest, ..twin })
        })
        .collect();
    guests.check(reader);
    twins.sort_by_key(|twin| twin.id);
    twins
}

fn read_twin(
    reader: &mut Reader<'_>,
    section: &Section<'_, '_>,
    ids: &mut Ids,
    unique: &mut Unique,
) -> Option<Twin> {
    reader.only(
        section,
        &["id", "listen", "public_key", "uid", "guest"].into_iter(),
    );
    let id = ids.read(reader, section);
    let listen = read_listen(reader, section, unique);
    let public_key = read_key(reader, section, unique);
    let uid = reader.number(section, "uid", 0, u64::from(u32::MAX - 1));
    Some(Twin {
        id: u8::try_from(id?).ok()?,
        listen: listen?,
        public_key: public_key?,
        uid: uid.map(|at| small(at.value)),
        guest: None,
    })
}

/// Clients or administrators, by id: number, name and key of each.
pub(crate) fn read_people(
    reader: &mut Reader<'_>,
    top: &Section<'_, '_>,
    role: &'static str,
    unique: &mut Unique,
) -> Vec<(u32, String, String)> {
    let sections = reader.tables(top, role);
    let kind = if role == "client" {
        Kind::ClientName
    } else {
        Kind::AdminName
    };
    let mut ids = Ids::new(sections.len());
    let mut people = Vec::new();
    for section in &sections {
        reader.only(section, &["id", "name", "public_key"].into_iter());
        let id = ids.read(reader, section);
        let name = read_name(reader, section, kind, id, unique);
        let key = read_key(reader, section, unique);
        if let (Some(id), Some(key)) = (id.and_then(|id| u32::try_from(id).ok()), key) {
            people.push((id, name, key));
        }
    }
    people.sort();
    people
}

/// The ids of one list, which must be `0..count` in any order.
struct Ids {
    count: usize,
    seen: Vec<(u64, String)>,
}

impl Ids {
    fn new(count: usize) -> Self {
        Self {
            count,
            seen: Vec::new(),
        }
    }

    fn read(&mut self, reader: &mut Reader<'_>, section: &Section<'_, '_>) -> Option<u64> {
        let last = self.count.saturating_sub(1);
        let remedy = format!("number them 0 to {last}, each once");
        let id = reader.required_number(section, "id", u64::MAX, &remedy)?;
        if usize::try_from(id.value).is_ok_and(|id| id > last) {
            let problem = format!(
                "there are {} of these, so the last id is {last}",
                self.count
            );
            reader.mistake(&id.span, id.path, problem, remedy);
            return None;
        }
        if let Some((_, first)) = self.seen.iter().find(|(seen, _)| *seen == id.value) {
            reader.mistake(&id.span, id.path, format!("the same as {first}"), remedy);
            return None;
        }
        self.seen.push((id.value, id.path));
        Some(id.value)
    }
}

fn read_name(
    reader: &mut Reader<'_>,
    section: &Section<'_, '_>,
    kind: Kind,
    id: Option<u64>,
    unique: &mut Unique,
) -> String {
    let Some(name) = reader.string(section, "name") else {
        return id.map_or_else(String::new, |id| format!("{}-{id}", kind.prefix()));
    };
    let length = name.value.chars().count();
    if !(1..=NAME_BYTES_MAX).contains(&length) || name.value.chars().any(char::is_control) {
        let remedy = format!("a name is 1 to {NAME_BYTES_MAX} printable characters");
        reader.mistake(&name.span, name.path, "not a name", remedy);
        return String::new();
    }
    let value = name.value.clone();
    unique.add(kind, name);
    value
}

fn read_cpus(reader: &mut Reader<'_>, section: &Section<'_, '_>) -> Vec<u16> {
    let mut cpus = Vec::new();
    for cpu in reader.number_list(section, "cpu", CPUS_MAX) {
        let number = small(cpu.value);
        if cpus.contains(&number) {
            reader.mistake(&cpu.span, cpu.path, "named twice", "name each CPU once");
        } else {
            cpus.push(number);
        }
    }
    cpus
}

fn read_listen(
    reader: &mut Reader<'_>,
    section: &Section<'_, '_>,
    unique: &mut Unique,
) -> Option<SocketAddr> {
    const REMEDY: &str =
        "write an IP address and a port, like \"192.0.2.7:7100\" or \"[2001:db8::7]:7100\"";
    let listen = reader.required_string(section, "listen", REMEDY)?;
    let Ok(address) = listen.value.parse::<SocketAddr>() else {
        reader.mistake(
            &listen.span,
            listen.path,
            "not an address with a port",
            REMEDY,
        );
        return None;
    };
    if address.port() == 0 {
        let remedy = "choose a port from 1 to 65535; others must know where to connect";
        reader.mistake(&listen.span, listen.path, "port 0", remedy);
        return None;
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        let remedy = "others connect to this address too, so write the one by which they reach it";
        reader.mistake(
            &listen.span,
            listen.path,
            "nobody can connect to that",
            remedy,
        );
        return None;
    }
    unique.add_address(address, listen);
    Some(address)
}

fn read_key(
    reader: &mut Reader<'_>,
    section: &Section<'_, '_>,
    unique: &mut Unique,
) -> Option<String> {
    let mut key = reader.required_string(section, "public_key", KEY_REMEDY)?;
    key.value.make_ascii_lowercase();
    if key.value.len() != 64 || !key.value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let problem = match key.value.bytes().position(|byte| !byte.is_ascii_hexdigit()) {
            Some(at) => format!(
                "a key is 64 hexadecimal digits, and character {} is none",
                at + 1
            ),
            None => format!("a key is 64 hexadecimal digits, not {}", key.value.len()),
        };
        reader.mistake(&key.span, key.path, problem, KEY_REMEDY);
        return None;
    }
    if is_low_order(&key.value) {
        let problem = "a point of low order: what it encrypts everybody can read";
        reader.mistake(&key.span, key.path, problem, KEY_REMEDY);
        return None;
    }
    let value = key.value.clone();
    unique.add(Kind::Key, key);
    Some(value)
}

/// `key` is 64 hexadecimal digits in lower case.
fn is_low_order(key: &str) -> bool {
    let (head, last) = key.split_at(62);
    let last = u8::from_str_radix(last, 16).expect("hexadecimal digits") & 0x7f;
    LOW_ORDER.contains(&format!("{head}{last:02x}").as_str())
}
