//! Which Xen guest a twin is.

use crate::model::Transport;
use crate::reader::{Reader, Section};
use crate::unique::{Kind, Unique};

const NAME_BYTES_MAX: usize = 64;
const REMEDY: &str =
    "write the guest's name or its UUID as `xl list -v` shows them, like guest = \"twin-0-0\"";
/// Where the dashes of a UUID stand.
const DASHES: [usize; 4] = [8, 13, 18, 23];
const UUID_BYTES: usize = 36;

/// The guest of a twin, with what the transport asks for.
pub(crate) fn read_guest(
    reader: &mut Reader<'_>,
    section: &Section<'_, '_>,
    transport: Transport,
    guests: &mut Unique,
) -> Option<String> {
    let is_there = section.table.contains_key("guest");
    match transport {
        Transport::Local if is_there => {
            let remedy = "remove it, or write transport = \"xen\" in [postbox]";
            misplaced(
                reader,
                section,
                "guest",
                "twins are no guests with transport \"local\"",
                remedy,
            );
            return None;
        }
        Transport::Local => return None,
        Transport::Xen => {}
    }
    if section.table.contains_key("uid") {
        let remedy = "remove it: a guest is known by its name or UUID";
        misplaced(
            reader,
            section,
            "uid",
            "there are no sockets with transport \"xen\"",
            remedy,
        );
    }
    let mut guest = reader.required_string(section, "guest", REMEDY)?;
    if is_uuid(&guest.value) {
        guest.value.make_ascii_lowercase();
    } else if let Some(problem) = name_problem(&guest.value) {
        reader.mistake(&guest.span, guest.path, problem, REMEDY);
        return None;
    }
    let value = guest.value.clone();
    guests.add(Kind::Guest, guest);
    Some(value)
}

fn misplaced(
    reader: &mut Reader<'_>,
    section: &Section<'_, '_>,
    key: &str,
    problem: &str,
    remedy: &str,
) {
    let span = section.table.get(key).map_or(0..0, toml::Spanned::span);
    reader.mistake(&span, section.key(key), problem, remedy);
}

fn name_problem(name: &str) -> Option<&'static str> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.chars().all(good) {
        return Some("not a guest's name: 1 to 64 of A-Z, a-z, 0-9, -, _, . and +");
    }
    (name == "Domain-0").then_some("the broker itself is in Domain-0, and a twin cannot be")
}

/// Whether a guest is named by its UUID.
pub(crate) fn is_uuid(text: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| match DASHES.contains(&at) {
        true => byte == b'-',
        false => byte.is_ascii_hexdigit(),
    };
    text.len() == UUID_BYTES && text.bytes().enumerate().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterConfig, Mistake};

    fn on_xen() -> ClusterConfig {
        let mut config = ClusterConfig::example(2, 2, 1, 7100);
        config.postbox.transport = Transport::Xen;
        for host in &mut config.hosts {
            for twin in &mut host.twins {
                // The same on both machines, which is fine.
                twin.guest = Some(format!("twin-{}", twin.id));
            }
        }
        config
    }

    fn mistakes(text: &str) -> Vec<Mistake> {
        ClusterConfig::parse(text).expect_err("it is a mistake")
    }

    #[test]
    fn a_cluster_on_xen_is_written_and_read_back() {
        let mut config = on_xen();
        assert_eq!(ClusterConfig::parse(&config.to_toml()), Ok(config.clone()));
        let uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        let shouted = config.to_toml().replacen("twin-1", &uuid.to_uppercase(), 1);
        config.hosts[0].twins[1].guest = Some(uuid.to_owned());
        assert_eq!(ClusterConfig::parse(&shouted), Ok(config));
    }

    #[test]
    fn all_mistakes_about_guests_are_told_at_once_with_line_value_and_remedy() {
        let text = on_xen().to_toml();
        let first = "guest = \"twin-0\"";
        let bad = text
            .replacen(first, "guest = \"a b\"\nuid = 7", 1)
            .replacen(first, "guest = \"twin-1\"", 1);
        let found: Vec<(String, String, bool)> = mistakes(&bad)
            .into_iter()
            .map(|m| {
                (
                    m.path,
                    m.value,
                    bad.lines()
                        .nth(m.line - 1)
                        .unwrap_or_default()
                        .contains(" = "),
                )
            })
            .collect();
        let expected = [
            ("host[0].twin[0].guest", "\"a b\""),
            ("host[0].twin[0].uid", "7"),
            ("host[1].twin[1].guest", "\"twin-1\""),
        ];
        let expected = expected.map(|(path, value)| (path.to_owned(), value.to_owned(), true));
        assert_eq!(found, expected);
        for (new, problem) in [
            ("", "is missing"),
            ("guest = \"Domain-0\"", "Domain-0"),
            ("guest = 7", "a whole number"),
        ] {
            let found = mistakes(&text.replacen(first, new, 1));
            assert_eq!(found.len(), 1, "{found:#?}");
            assert!(
                found[0].problem.contains(problem) && !found[0].remedy.is_empty(),
                "{}",
                found[0]
            );
        }
    }

    #[test]
    fn a_guest_without_xen_and_a_log_that_no_guest_can_map_are_mistakes() {
        let local = on_xen()
            .to_toml()
            .replacen("transport = \"xen\"", "transport = \"local\"", 1);
        let found = mistakes(&local);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(
            found
                .iter()
                .all(|m| m.path.ends_with(".guest") && m.remedy.contains("transport"))
        );
        let large =
            on_xen()
                .to_toml()
                .replacen("log_bytes = 33_554_432", "log_bytes = 268_435_456", 1);
        let found = mistakes(&large);
        assert_eq!(
            (found.len(), found[0].path.as_str()),
            (1, "postbox.log_bytes")
        );
        let most = found[0].remedy.trim_start_matches("make it at most ");
        let fits = large.replacen("268_435_456", most, 1);
        assert!(
            ClusterConfig::parse(&fits).is_ok(),
            "the remedy helps: {most}"
        );
        let found = mistakes(&local.replacen("\"local\"", "\"zen\"", 1));
        assert!(found[0].remedy.contains("\"xen\""), "{}", found[0]);
    }

    #[test]
    fn what_a_host_grants_is_known_beforehand() {
        let mut config = on_xen();
        // Two copies of 32 MiB with two summaries of 1 MiB and a page each, and two rings of 65 pages.
        assert_eq!(
            crate::granted_pages_needed(&config),
            2 * (8192 + 512 + 1 + 65)
        );
        config.postbox.log_bytes -= 4096;
        assert_eq!(
            crate::granted_pages_needed(&config),
            2 * (8191 + 512 + 1 + 65)
        );
    }

    #[test]
    fn a_uuid_is_told_from_a_name() {
        assert!(is_uuid("0f1e2d3c-4b5a-6978-8796-A5b4c3d2e1f0"));
        for name in [
            "twin-0-0",
            "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1fg",
            "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        ] {
            assert!(!is_uuid(name), "{name}");
        }
    }
}
