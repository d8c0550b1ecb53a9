//! From text to the model, section by section.

use std::path::{Component, Path, PathBuf};

use toml::de::DeTable;

use crate::members::{read_hosts, read_people};
use crate::mistake::{ConfigError, Mistake, closest, line_start, place};
use crate::model::{
    Admin, Client, Cluster, ClusterConfig, Durability, Evidence, Execution, KvOptions, NullOptions,
    OnCulprit, Postbox, Protocol, Service, Storage, Tls, Transport,
};
use crate::numbers::{self, Number};
use crate::reader::{At, Reader, Section};
use crate::rules;
use crate::unique::Unique;

/// Most hosts of a cluster.
pub const HOSTS_MAX: u8 = 31;
/// Fewest twins of a host.
pub const TWINS_MIN: u8 = 2;
/// Most twins of a host.
pub const TWINS_MAX: u8 = 8;
/// The services that `[service] name` may name.
pub const SERVICES: [&str; 2] = ["kv", "null"];

const CLUSTER_ID_BYTES_MAX: usize = 40;

impl ClusterConfig {
    /// Reads a `cluster.toml`.
    ///
    /// # Errors
    /// Every mistake in it, in the order of the file; never an empty list.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader::new(text);
        let top = Section {
            table: document.get_ref(),
            span: 0..0,
            path: String::new(),
        };
        let config = read_document(&mut reader, &top);
        let mistakes = reader.into_mistakes();
        if !errors.is_empty() {
            return Err(with_syntax_errors(text, &errors, mistakes));
        }
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            Some(_) | None => {
                assert!(!mistakes.is_empty(), "a refused file has a mistake");
                Err(mistakes)
            }
        }
    }

    /// Reads the `cluster.toml` at `path`.
    ///
    /// # Errors
    /// When the file cannot be read, is not UTF-8, or has mistakes.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read {
            path: path.to_owned(),
            cause,
        })?;
        Self::parse(&text).map_err(|mistakes| ConfigError::Invalid {
            path: path.to_owned(),
            mistakes,
        })
    }
}

/// Adds what the TOML parser found to what was found in the rest.
///
/// What it left out or made up on a broken line is no second mistake; and when a list is never closed, tables that
/// follow were read as parts of it, so nothing is said about them.
fn with_syntax_errors(
    text: &str,
    errors: &[toml::de::Error],
    mistakes: Vec<Mistake>,
) -> Vec<Mistake> {
    let unclosed = errors
        .iter()
        .any(|error| error.message().starts_with("unclosed"));
    let swallowed = |error: &&toml::de::Error| unclosed && error.message().contains("array");
    let end = errors
        .iter()
        .find(swallowed)
        .and_then(toml::de::Error::span);
    let end_line = end.map_or(usize::MAX, |span| place(text, span.start).0);

    let mut reader = Reader::new(text);
    for error in errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        let line = text[line_start(text, span.start)..]
            .lines()
            .next()
            .unwrap_or_default();
        let problem = format!("not valid TOML: {}", error.message().replace('\n', ", "));
        let remedy = if place(text, span.start).0 == end_line {
            "end the list above this line with \"]\""
        } else {
            "correct the line: key = value, with strings in double quotes"
        };
        reader.text_mistake(span.start, line, problem, remedy);
    }
    let mut all = reader.into_mistakes();
    all.dedup_by_key(|mistake| mistake.line);
    let broken: Vec<usize> = all.iter().map(|mistake| mistake.line).collect();
    let rest = mistakes.into_iter();
    all.extend(
        rest.filter(|rest| !unclosed && !rest.value.is_empty() && !broken.contains(&rest.line)),
    );
    all.retain(|mistake| mistake.line <= end_line);
    all.sort_by_key(|mistake| (mistake.line, mistake.column));
    all
}

fn read_document(reader: &mut Reader<'_>, top: &Section<'_, '_>) -> Option<ClusterConfig> {
    const SECTIONS: [&str; 10] = [
        "cluster", "protocol", "storage", "service", "postbox", "evidence", "tls", "host",
        "client", "admin",
    ];
    reader.only(top, &SECTIONS.into_iter());
    let cluster = read_cluster(reader, top);
    let protocol = read_protocol(reader, top);
    let storage = read_storage(reader, top);
    let service = read_service(reader, top);
    let postbox = read_postbox(reader, top);
    let evidence = read_evidence(reader, top);
    let tls = read_tls(reader, top);
    let mut unique = Unique::default();
    let hosts = read_hosts(reader, top, postbox.transport, &mut unique);
    let clients = read_people(reader, top, "client", &mut unique);
    let admins = read_people(reader, top, "admin", &mut unique);
    unique.check(reader);
    let config = ClusterConfig {
        cluster: cluster?,
        protocol,
        storage,
        service,
        postbox,
        evidence,
        tls,
        hosts,
        clients: clients
            .into_iter()
            .map(|(id, name, public_key)| Client {
                id,
                name,
                public_key,
            })
            .collect(),
        admins: admins
            .into_iter()
            .map(|(id, name, public_key)| Admin {
                id,
                name,
                public_key,
            })
            .collect(),
    };
    rules::check_sizes(reader, top, &config);
    reader.is_clean().then_some(config)
}

fn read_cluster(reader: &mut Reader<'_>, top: &Section<'_, '_>) -> Option<Cluster> {
    const ID_REMEDY: &str = "write id = \"my-cluster\": 1 to 40 of a-z, 0-9 and -, no - at an end";
    let Some(section) = reader.table(top, "cluster") else {
        if !top.table.contains_key("cluster") {
            let problem = "the section [cluster] is missing";
            reader.missing(
                &(0..0),
                "cluster",
                problem,
                "add it with id = \"my-cluster\"",
            );
        }
        return None;
    };
    reader.only(&section, &["id", "key_epoch"].into_iter());
    let key_epoch = reader.number(&section, "key_epoch", 0, u64::from(u32::MAX));
    let id = reader.required_string(&section, "id", ID_REMEDY)?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=CLUSTER_ID_BYTES_MAX).contains(&id.value.len());
    if !fits
        || !id.value.chars().all(allowed)
        || id.value.starts_with('-')
        || id.value.ends_with('-')
    {
        reader.mistake(&id.span, id.path, "not a cluster id", ID_REMEDY);
        return None;
    }
    Some(Cluster {
        id: id.value,
        key_epoch: key_epoch.map_or(0, |at| small(at.value)),
    })
}

fn read_protocol(reader: &mut Reader<'_>, top: &Section<'_, '_>) -> Protocol {
    let mut protocol = Protocol::default();
    if let Some(section) = reader.table(top, "protocol") {
        reader.only(&section, &names(numbers::PROTOCOL).chain(["execution"]));
        reader.numbers(&section, numbers::PROTOCOL, &mut protocol);
        let choices = [Execution::Committed, Execution::Tentative];
        let choices = choices.map(|choice| (choice.name(), choice));
        if let Some(choice) = choose(reader, &section, "execution", &choices) {
            protocol.execution = choice;
        }
    }
    protocol
}

fn read_storage(reader: &mut Reader<'_>, top: &Section<'_, '_>) -> Storage {
    let mut storage = Storage::default();
    if let Some(section) = reader.table(top, "storage") {
        reader.only(&section, &names(numbers::STORAGE).chain(["durability"]));
        reader.numbers(&section, numbers::STORAGE, &mut storage);
        let choices = [Durability::Memory, Durability::Group, Durability::Sync];
        let choices = choices.map(|choice| (choice.name(), choice));
        if let Some(choice) = choose(reader, &section, "durability", &choices) {
            storage.durability = choice;
        }
    }
    storage
}

fn read_evidence(reader: &mut Reader<'_>, top: &Section<'_, '_>) -> Evidence {
    let mut evidence = Evidence::default();
    if let Some(section) = reader.table(top, "evidence") {
        reader.only(&section, &["on_culprit", "restart_command"].into_iter());
        let choices = [OnCulprit::Alert, OnCulprit::Quarantine, OnCulprit::Restart];
        let choices = choices.map(|choice| (choice.name(), choice));
        if let Some(choice) = choose(reader, &section, "on_culprit", &choices) {
            evidence.on_culprit = choice;
        }
        if let Some(command) = reader.string(&section, "restart_command") {
            let is_command = !command.value.trim().is_empty() && !command.value.contains('\0');
            if is_command {
                evidence.restart_command = Some(command.value);
            } else {
                let remedy = "write a shell command, or leave it out";
                reader.mistake(&command.span, command.path, "no command", remedy);
            }
        }
    }
    evidence
}

fn read_service(reader: &mut Reader<'_>, top: &Section<'_, '_>) -> Service {
    let mut service = Service::default();
    let Some(section) = reader.table(top, "service") else {
        return service;
    };
    reader.only(&section, &["name", "kv", "null"].into_iter());
    let choices = SERVICES.map(|name| (name, name));
    if let Some(name) = choose(reader, &section, "name", &choices) {
        name.clone_into(&mut service.name);
    }
    if let Some(section) = reader.table(&section, "kv") {
        reader.only(
            &section,
            &names(numbers::KV).chain(names(numbers::KV_LOCAL)),
        );
        let mut kv = KvOptions::default();
        reader.numbers(&section, numbers::KV, &mut kv);
        reader.numbers(&section, numbers::KV_LOCAL, &mut kv);
        service.kv = kv;
    }
    if let Some(section) = reader.table(&section, "null") {
        reader.only(&section, &names(numbers::NULL));
        let mut null = NullOptions::default();
        reader.numbers(&section, numbers::NULL, &mut null);
        service.null = null;
    }
    service
}

fn read_postbox(reader: &mut Reader<'_>, top: &Section<'_, '_>) -> Postbox {
    let mut postbox = Postbox::default();
    if let Some(section) = reader.table(top, "postbox") {
        reader.only(
            &section,
            &names(numbers::POSTBOX).chain(["record_dir", "transport"]),
        );
        reader.numbers(&section, numbers::POSTBOX, &mut postbox);
        let choices = [Transport::Local, Transport::Xen];
        let choices = choices.map(|choice| (choice.name(), choice));
        if let Some(choice) = choose(reader, &section, "transport", &choices) {
            postbox.transport = choice;
        }
        if let Some(dir) = reader.string(&section, "record_dir") {
            let remedy = "name a directory, like record_dir = \"record\", or leave it out";
            postbox.record_dir = file_path(reader, dir, "not the name of a directory", remedy);
        }
    }
    postbox
}

fn read_tls(reader: &mut Reader<'_>, top: &Section<'_, '_>) -> Tls {
    let mut tls = Tls::default();
    if let Some(section) = reader.table(top, "tls") {
        reader.only(&section, &["ca"].into_iter());
        if let Some(ca) = reader.string(&section, "ca") {
            let remedy = "name the authority's certificate, like ca = \"tls/ca.pem\"";
            if let Some(path) = file_path(reader, ca, "not the name of a file", remedy) {
                tls.ca = path;
            }
        }
    }
    tls
}

/// The path that `text` names; a mistake when it names nothing.
fn file_path(
    reader: &mut Reader<'_>,
    text: At<String>,
    problem: &str,
    remedy: &str,
) -> Option<PathBuf> {
    let path = PathBuf::from(&text.value);
    let mut parts = path.components();
    let is_named = parts.any(|part| matches!(part, Component::Normal(_)));
    if !is_named || text.value.contains('\0') {
        reader.mistake(&text.span, text.path, problem, remedy);
        return None;
    }
    Some(path)
}

/// The choice that the string `key` names; absent means the default.
fn choose<T: Copy>(
    reader: &mut Reader<'_>,
    section: &Section<'_, '_>,
    key: &str,
    choices: &[(&'static str, T)],
) -> Option<T> {
    let word = reader.string(section, key)?;
    let found = choices.iter().find(|(name, _)| *name == word.value);
    if found.is_none() {
        let known = choices.iter().map(|(name, _)| *name);
        let all = known
            .clone()
            .map(|name| format!("\"{name}\""))
            .collect::<Vec<_>>();
        let remedy = match closest(&word.value, known) {
            Some(name) => format!("did you mean \"{name}\"? It may be {}", all.join(" or ")),
            None => format!("it may be {}", all.join(" or ")),
        };
        reader.mistake(&word.span, word.path, "no such choice", remedy);
    }
    found.map(|(_, choice)| *choice)
}

fn names<T>(numbers: &'static [Number<T>]) -> impl Iterator<Item = &'static str> + Clone {
    numbers.iter().map(|number| number.name)
}

/// A number that the reader has held below its type's maximum.
pub(crate) fn small<T: TryFrom<u64>>(number: u64) -> T {
    T::try_from(number).ok().expect("bounded when it was read")
}
