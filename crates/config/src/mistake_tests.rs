//! Every kind of mistake: found, in its line, with a remedy; and all of a file at once.

use crate::{ClusterConfig, Mistake};

/// Puts `new` where `old` first stands in a good file of three hosts with two twins, and expects one mistake: at
/// the line that `§` marks in `new` (its first when none does), at `path`, with `problem` and `remedy` in its text.
#[track_caller]
fn one(old: &str, new: &str, path: &str, problem: &str, remedy: &str) {
    let good = ClusterConfig::example(3, 2, 2, 7100).to_toml();
    let at = good.find(old).expect("the good file has the old text");
    let marked = new.find('§').unwrap_or(0);
    let line = good[..at].matches('\n').count() + new[..marked].matches('\n').count() + 1;
    let bad = good.replacen(old, &new.replace('§', ""), 1);
    let mistakes = ClusterConfig::parse(&bad).expect_err("it is a mistake");
    let [mistake] = mistakes.as_slice() else {
        panic!("one mistake wanted: {mistakes:#?}")
    };
    assert_eq!(
        (mistake.line, mistake.path.as_str()),
        (line, path),
        "{mistake}"
    );
    assert!(mistake.problem.contains(problem), "{mistake}");
    assert!(mistake.remedy.contains(remedy), "{mistake}");
    let text = mistake.to_string();
    assert!(text.starts_with(&format!("line {line}, column ")), "{text}");
}

const KEY_0: &str = "0000000000000000000000000000000000000000000000000000771600000001";
const KEY_1: &str = "0000000000000000000000000000000000000000000000000000771600000002";

#[test]
fn the_form_of_the_document() {
    one(
        "key_epoch = 0",
        "key_epoch = ",
        "",
        "not valid TOML",
        "correct the line",
    );
    one(
        "id = \"example\"",
        "id = \"exa",
        "",
        "not valid TOML",
        "correct the line",
    );
    one(
        "key_epoch = 0",
        "key_epoch = 0\n§key_epoch = 1",
        "",
        "duplicate",
        "correct the line",
    );
    one(
        "[storage]",
        "[storage",
        "",
        "not valid TOML",
        "correct the line",
    );
}

#[test]
fn a_list_that_is_never_closed_is_one_mistake() {
    let good = ClusterConfig::example(3, 2, 2, 7100).to_toml();
    let bad = good.replacen("# cpu = [0, 1] ", "cpu = [0, 1 #", 1);
    let next_table = good.find("[[host.twin]]").unwrap();
    let mistakes = ClusterConfig::parse(&bad).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    assert_eq!(
        mistakes[0].line,
        good[..next_table].matches('\n').count() + 1
    );
    assert!(
        mistakes[0].remedy.contains("end the list above this line"),
        "{}",
        mistakes[0]
    );
}

#[test]
fn unknown_keys() {
    one(
        "batch_requests_max",
        "batch_reqests_max",
        "protocol.batch_reqests_max",
        "unknown",
        "did you mean \"batch_requests_max\"?",
    );
    one(
        "[storage]",
        "[storge]",
        "storge",
        "unknown",
        "did you mean \"storage\"?",
    );
    one(
        "durability =",
        "durabilty =",
        "storage.durabilty",
        "unknown",
        "did you mean \"durability\"?",
    );
    one(
        "trim_entries",
        "whatever_this_is",
        "protocol.whatever_this_is",
        "unknown",
        "known here: checkpoint_slots",
    );
    one(
        "cache_bytes",
        "cachebytes",
        "service.kv.cachebytes",
        "unknown",
        "cache_bytes",
    );
    one(
        "[service.kv]",
        "[service.kvs]",
        "service.kvs",
        "unknown",
        "\"kv\"",
    );
    one(
        "spin_us",
        "log_dir",
        "postbox.log_dir",
        "unknown",
        "remove it",
    );
    one("ca = ", "cax = ", "tls.cax", "unknown", "\"ca\"");
    one(
        "on_culprit = \"alert\"",
        "on_culprit = \"alert\"\n§restart_command = \" \"",
        "evidence.restart_command",
        "no command",
        "leave it out",
    );
    one(
        "spin_us = 0",
        "spin_us = 0\n§record_dir = \"\"",
        "postbox.record_dir",
        "not the name of a directory",
        "leave it out",
    );
    one(
        "key_epoch = 0",
        "key_epoch = 0\n§epoch = 1",
        "cluster.epoch",
        "unknown",
        "remove it",
    );
    one(
        "name = \"host-0\"",
        "nam = \"host-0\"",
        "host[0].nam",
        "unknown",
        "\"name\"",
    );
    one(
        "name = \"client-0\"",
        "nme = \"client-0\"",
        "client[0].nme",
        "unknown",
        "\"name\"",
    );
    one(
        "name = \"admin-0\"",
        "mail = \"admin-0\"",
        "admin[0].mail",
        "unknown",
        "id, name, public_key",
    );
    one(
        "[[host.twin]]\nid",
        "[[host.twin]]\n§gid = 7\nid",
        "host[0].twin[0].gid",
        "unknown",
        "id",
    );
}

#[test]
fn wrong_types() {
    one(
        "suspect_after_ms = 500",
        "suspect_after_ms = \"500\"",
        "protocol.suspect_after_ms",
        "a string where a whole number",
        "quotes",
    );
    one(
        "suspect_after_ms = 500",
        "suspect_after_ms = 0.5",
        "protocol.suspect_after_ms",
        "a fraction",
        "digits only",
    );
    one(
        "suspect_after_ms = 500",
        "suspect_after_ms = true",
        "protocol.suspect_after_ms",
        "true or false",
        "digits only",
    );
    one(
        "id = \"example\"",
        "id = 7",
        "cluster.id",
        "a whole number where a string",
        "double quotes",
    );
    one(
        "[storage]",
        "[[storage]]",
        "storage",
        "a list where a table",
        "[storage]",
    );
    one(
        "ca = \"tls/ca.pem\"",
        "ca = [\"tls\"]",
        "tls.ca",
        "a list where a string",
        "double quotes",
    );
    one(
        "name = \"host-0\"",
        "name = 2026-01-01",
        "host[0].name",
        "a date",
        "double quotes",
    );
    one(
        "name = \"host-0\"",
        "name = \"a\"\n§cpu = 1",
        "host[0].cpu",
        "a list of numbers",
        "[0, 1]",
    );
    one(
        "name = \"host-0\"",
        "name = \"a\"\n§cpu = [\"1\"]",
        "host[0].cpu[0]",
        "a whole number",
        "quotes",
    );
    for section in ["client", "admin"] {
        let mut config = ClusterConfig::example(1, 2, 0, 7100);
        config.admins.clear();
        let text = format!("{section} = [1]\n{}", config.to_toml());
        let mistakes = ClusterConfig::parse(&text).unwrap_err();
        assert_eq!(
            (mistakes.len(), mistakes[0].line, mistakes[0].path.as_str()),
            (1, 1, &*format!("{section}[0]"))
        );
        assert!(
            mistakes[0].remedy.contains(&format!("[[{section}]]")),
            "{}",
            mistakes[0]
        );
    }
}

#[test]
fn numbers_out_of_bounds() {
    one(
        "key_epoch = 0",
        "key_epoch = -1",
        "cluster.key_epoch",
        "out of bounds",
        "0 to 4294967295",
    );
    one(
        "pipeline_depth = 8",
        "pipeline_depth = 0",
        "protocol.pipeline_depth",
        "out of bounds",
        "1 to 256",
    );
    one(
        "suspect_after_ms = 500",
        "suspect_after_ms = 99999999999999999999",
        "protocol.suspect_after_ms",
        "out of bounds",
        "10 to 600000",
    );
    one(
        "group_commit_ms = 2",
        "group_commit_ms = 0",
        "storage.group_commit_ms",
        "out of bounds",
        "1 to 1000",
    );
    one(
        "key_bytes_max = 4_096",
        "key_bytes_max = 0",
        "service.kv.key_bytes_max",
        "out of bounds",
        "1 to",
    );
    one(
        "spin_us = 0",
        "spin_us = 1000001",
        "postbox.spin_us",
        "out of bounds",
        "0 to 1000000",
    );
    one(
        "clock_bound_ms = 1_000",
        "clock_bound_ms = 0",
        "protocol.clock_bound_ms",
        "out of bounds",
        "1 to 3600000",
    );
    one(
        "name = \"host-0\"",
        "name = \"a\"\n§cpu = [0, 1024]",
        "host[0].cpu[1]",
        "out of bounds",
        "0 to 1023",
    );
    one(
        "name = \"host-0\"",
        "name = \"a\"\n§cpu = [0, 0]",
        "host[0].cpu[1]",
        "twice",
        "once",
    );
    one(
        ":7100\"",
        ":7100\"\n§uid = -2",
        "host[0].twin[0].uid",
        "out of bounds",
        "0 to 4294967294",
    );
}

#[test]
fn choices() {
    one(
        "\"committed\"\n",
        "\"commited\"\n",
        "protocol.execution",
        "no such choice",
        "\"committed\" or \"tentative\"",
    );
    one(
        "durability = \"group\"",
        "durability = \"disk\"",
        "storage.durability",
        "no such choice",
        "\"memory\" or \"group\" or \"sync\"",
    );
    one(
        "name = \"kv\"",
        "name = \"etcd\"",
        "service.name",
        "no such choice",
        "\"kv\" or \"null\"",
    );
}

#[test]
fn identity() {
    for bad in ["", "Example", "a b", "-a", "a-", "ä", &"a".repeat(41)] {
        one(
            "id = \"example\"",
            &format!("id = \"{bad}\""),
            "cluster.id",
            "not a cluster id",
            "a-z",
        );
    }
    one(
        "name = \"host-0\"",
        "name = \"\"",
        "host[0].name",
        "not a name",
        "printable",
    );
    one(
        "name = \"host-0\"",
        "name = \"a\\u0007\"",
        "host[0].name",
        "not a name",
        "printable",
    );
    one(
        "name = \"host-1\"",
        "name = \"host-0\"",
        "host[1].name",
        "the same as host[0].name",
        "of its own",
    );
    one(
        "name = \"client-1\"",
        "name = \"client-0\"",
        "client[1].name",
        "the same as client[0].name",
        "of its own",
    );
    one(
        "ca = \"tls/ca.pem\"",
        "ca = \"\"",
        "tls.ca",
        "not the name of a file",
        "tls/ca.pem",
    );
}

#[test]
fn ids() {
    one(
        "id = 1\nname = \"host-1\"",
        "id = 0\nname = \"host-1\"",
        "host[1].id",
        "the same as host[0].id",
        "0 to 2",
    );
    one(
        "id = 2\nname = \"host-2\"",
        "id = 3\nname = \"host-2\"",
        "host[2].id",
        "the last id is 2",
        "0 to 2",
    );
    one(
        "id = 1\nlisten",
        "id = 2\nlisten",
        "host[0].twin[1].id",
        "the last id is 1",
        "0 to 1",
    );
    one(
        "id = 1\nname = \"client-1\"",
        "id = 0\nname = \"client-1\"",
        "client[1].id",
        "the same as client[0].id",
        "0 to 1",
    );
    one(
        "id = 0\nname = \"admin-0\"",
        "id = 1\nname = \"admin-0\"",
        "admin[0].id",
        "the last id is 0",
        "0 to 0",
    );
    one(
        "id = 0\nname = \"host-0\"",
        "id = \"h0\"\nname = \"host-0\"",
        "host[0].id",
        "a string",
        "quotes",
    );
    one(
        "[[host]]\nid = 1",
        "§[[host]]",
        "host[1].id",
        "is missing",
        "0 to 2",
    );
}

#[test]
fn addresses() {
    one(
        "127.0.0.1:7100",
        "127.0.0.1",
        "host[0].twin[0].listen",
        "not an address with a port",
        "192.0.2.7:7100",
    );
    one(
        "127.0.0.1:7100",
        "localhost:7100",
        "host[0].twin[0].listen",
        "not an address with a port",
        "IP address",
    );
    one(
        "127.0.0.1:7100",
        "127.0.0.1:0",
        "host[0].twin[0].listen",
        "port 0",
        "1 to 65535",
    );
    one(
        "127.0.0.1:7100",
        "0.0.0.0:7100",
        "host[0].twin[0].listen",
        "nobody can connect",
        "reach it",
    );
    one(
        "127.0.0.1:7101",
        "127.0.0.1:7100",
        "host[0].twin[1].listen",
        "the same as host[0].twin[0].listen",
        "of its own",
    );
    one(
        "127.0.0.1:7120",
        "127.0.0.1:7101",
        "host[2].twin[0].listen",
        "the same as host[0].twin[1].listen",
        "port",
    );
    one(
        "\n[[host.twin]]\nid = 0\nlisten = \"127.0.0.1:7100\"",
        "\n§[[host.twin]]\nid = 0",
        "host[0].twin[0].listen",
        "is missing",
        "IP address",
    );
}

#[test]
fn keys() {
    const PATH: &str = "host[0].twin[0].public_key";
    const PATH_1: &str = "host[0].twin[1].public_key";
    one(
        KEY_1,
        KEY_0,
        PATH_1,
        "the same as host[0].twin[0].public_key",
        "twinbft keygen",
    );
    let upper = format!("{}A", "a".repeat(63));
    let both = format!(
        "{}\"\nuid = 7\n\n[[host.twin]]\nid = 1\nlisten = \"127.0.0.1:7101\"\n§public_key = \"{}",
        upper,
        upper.to_lowercase()
    );
    let first_twin = format!(
        "{KEY_0}\"\n\n[[host.twin]]\nid = 1\nlisten = \"127.0.0.1:7101\"\npublic_key = \"{KEY_1}"
    );
    one(&first_twin, &both, PATH_1, "the same as", "twinbft keygen");
    one(
        KEY_0,
        &KEY_0[1..],
        PATH,
        "64 hexadecimal digits, not 63",
        "twinbft keygen",
    );
    one(
        KEY_0,
        &KEY_0.replace('7', "x"),
        PATH,
        "character 53 is none",
        "twinbft keygen",
    );
    one(
        KEY_0,
        &"ä".repeat(32),
        PATH,
        "character 1 is none",
        "twinbft keygen",
    );
    one(KEY_0, &"0".repeat(64), PATH, "low order", "twinbft keygen");
    one(
        KEY_0,
        &format!("ec{}", "f".repeat(62)),
        PATH,
        "low order",
        "twinbft keygen",
    );
    let missing = format!("public_key = \"{KEY_0}\"\n\n[[host.twin]]\nid = 1");
    let good = ClusterConfig::example(3, 2, 1, 7100).to_toml();
    let mistakes =
        ClusterConfig::parse(&good.replacen(&missing, "\n[[host.twin]]\nid = 1", 1)).unwrap_err();
    assert_eq!((mistakes.len(), mistakes[0].path.as_str()), (1, PATH));
}

#[test]
fn shape() {
    let parse = |config: &ClusterConfig| ClusterConfig::parse(&config.to_toml());
    let mut config = ClusterConfig::example(3, 2, 1, 7100);
    config.hosts[1].twins.pop();
    config.hosts[2].twins.clear();
    let mistakes = parse(&config).unwrap_err();
    let found: Vec<_> = mistakes
        .iter()
        .map(|m| (m.path.as_str(), m.problem.as_str()))
        .collect();
    assert_eq!(found, [("host[1]", "1 twins"), ("host[2]", "0 twins")]);

    let mut config = ClusterConfig::example(2, 3, 1, 7100);
    config.hosts[1].twins.pop();
    let mistakes = parse(&config).unwrap_err();
    assert_eq!(mistakes[0].problem, "2 twins, but host[0] has 3");

    let mut config = ClusterConfig::example(31, 2, 1, 7100);
    let mut another = config.hosts[30].clone();
    another.id = 31;
    another.name = "host-31".to_owned();
    for (twin, digit) in another.twins.iter_mut().zip(["a", "b"]) {
        twin.listen.set_port(twin.listen.port() + 10);
        twin.public_key.replace_range(0..1, digit);
    }
    config.hosts.push(another);
    let mistakes = parse(&config).unwrap_err();
    assert_eq!(
        (
            mistakes.len(),
            mistakes[0].path.as_str(),
            mistakes[0].problem.as_str()
        ),
        (1, "host[31]", "32 hosts")
    );

    let mistakes = ClusterConfig::parse("[cluster]\nid = \"a\"\n").unwrap_err();
    assert_eq!(
        (mistakes.len(), mistakes[0].problem.as_str()),
        (1, "there is no host")
    );
    let mistakes = ClusterConfig::parse("").unwrap_err();
    assert_eq!(mistakes[0].problem, "the section [cluster] is missing");
}

#[test]
fn all_mistakes_of_a_file_come_at_once_in_its_order() {
    let text = "\
[cluster]
id = \"my cluster\"

[protocol]
execution = \"optimistic\"
batch_reqests_max = 4
suspect_after_ms = \"500\"

[[host]]
id = 0

[[host.twin]]
id = 0
listen = \"127.0.0.1\"
public_key = \"12\"

[[client]]
id = 5
";
    let mistakes = ClusterConfig::parse(text).unwrap_err();
    let found: Vec<(usize, &str)> = mistakes.iter().map(|m| (m.line, m.path.as_str())).collect();
    assert_eq!(
        found,
        [
            (2, "cluster.id"),
            (5, "protocol.execution"),
            (6, "protocol.batch_reqests_max"),
            (7, "protocol.suspect_after_ms"),
            (9, "host[0]"),
            (14, "host[0].twin[0].listen"),
            (15, "host[0].twin[0].public_key"),
            (17, "client[0].public_key"),
            (18, "client[0].id"),
        ]
    );
    assert_eq!(mistakes[0].value, "\"my cluster\"");
    assert_eq!((mistakes[2].column, mistakes[2].value.as_str()), (1, "4"));
    assert_eq!(mistakes[3].column, 20);
    let first = &mistakes[0];
    let expected: Mistake = first.clone();
    assert_eq!(
        expected.to_string(),
        "line 2, column 6: cluster.id = \"my cluster\": not a cluster id; \
         write id = \"my-cluster\": 1 to 40 of a-z, 0-9 and -, no - at an end"
    );
}

#[test]
fn a_broken_line_does_not_hide_the_mistakes_of_others() {
    let text = ClusterConfig::example(1, 2, 0, 7100).to_toml();
    let text = text
        .replace("key_epoch = 0", "key_epoch = ?")
        .replace("spin_us = 0", "spin_us = -1");
    let mistakes = ClusterConfig::parse(&text).unwrap_err();
    let found: Vec<&str> = mistakes.iter().map(|m| m.path.as_str()).collect();
    assert_eq!(found, ["", "postbox.spin_us"]);
    assert_eq!(mistakes[0].value, "key_epoch = ?");
}
