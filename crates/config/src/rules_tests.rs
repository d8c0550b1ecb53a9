//! Numbers that are each within their bounds and do not go together.

use crate::ClusterConfig;

/// Puts `new` where `old` first stands in a good file and expects one mistake, in the line of the key `path`,
/// which need not be the one that was changed.
#[track_caller]
fn joint(old: &str, new: &str, path: &str, problem: &str, remedy: &str) {
    let good = ClusterConfig::example(3, 2, 2, 7100).to_toml();
    assert!(good.contains(old));
    let bad = good.replacen(old, new, 1);
    let mistakes = ClusterConfig::parse(&bad).expect_err("it is a mistake");
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    let (mistake, key) = (&mistakes[0], path.rsplit('.').next().unwrap());
    assert_eq!(mistake.path, path, "{mistake}");
    assert!(
        bad.lines().nth(mistake.line - 1).unwrap().starts_with(key),
        "{mistake}"
    );
    assert!(mistake.problem.contains(problem), "{mistake}");
    assert!(mistake.remedy.contains(remedy), "{mistake}");
}

#[test]
fn sizes_that_do_not_fit_each_other() {
    const LOG: &str = "postbox.log_bytes";
    const ENTRY: &str = "postbox.entry_bytes_max";
    let log = "log_bytes = 33_554_432";
    joint(
        log,
        "log_bytes = 33554433",
        LOG,
        "multiple of 4096",
        "33558528",
    );
    joint(
        log,
        "log_bytes = 4194304",
        LOG,
        "full batches between two trims",
        "protocol.trim_entries smaller",
    );
    joint(
        "trim_entries = 1_024",
        "trim_entries = 8192",
        LOG,
        "full batches",
        "smaller",
    );
    let entry = "entry_bytes_max = 2_097_152";
    joint(
        entry,
        "entry_bytes_max = 20_971_520",
        LOG,
        "largest entry of each twin",
        "at least 62",
    );
    joint(
        entry,
        "entry_bytes_max = 1_000_000",
        ENTRY,
        "protocol.request_bytes_max",
        "at least 1065",
    );
    let request = "request_bytes_max = 1_064_960";
    joint(
        request,
        "request_bytes_max = 4_000_000",
        ENTRY,
        "body of a largest request",
        "at least 4000",
    );
    joint(
        request,
        "request_bytes_max = 1_048_576",
        "protocol.request_bytes_max",
        "largest value under a largest key",
        "1052800",
    );
    let results = "session_result_bytes_max = 1_064_960";
    joint(
        results,
        "session_result_bytes_max = 1024",
        "protocol.session_result_bytes_max",
        "one largest result",
        "at least 1048",
    );
    let pending = "pending_requests_max = 16_384";
    joint(
        pending,
        "pending_requests_max = 255",
        "protocol.pending_requests_max",
        "no batch",
        "256",
    );
}

#[test]
fn a_batch_must_fit_an_entry() {
    let mut config = ClusterConfig::example(3, 2, 2, 7100);
    config.protocol.request_bytes_max = 2048;
    config.service.kv.value_bytes_max = 1024;
    config.service.kv.key_bytes_max = 64;
    config.postbox.entry_bytes_max = 4096;
    let mistakes = ClusterConfig::parse(&config.to_toml()).unwrap_err();
    // The other one is about the small batches that are passed on.
    assert_eq!(mistakes.len(), 2, "{mistakes:#?}");
    let largest = mistakes
        .iter()
        .position(|m| m.problem.contains("largest batch"));
    let mistakes = &mistakes[largest.expect("it is a mistake")..];
    assert!(mistakes[0].problem.contains("largest batch") && mistakes[0].remedy.contains("13568"));
    let mut config = ClusterConfig::example(31, 8, 2, 7100);
    config.protocol.request_bytes_max = 100_000;
    config.service.kv.value_bytes_max = 50_000;
    config.postbox.entry_bytes_max = 200_000;
    let mistakes = ClusterConfig::parse(&config.to_toml()).unwrap_err();
    assert!(
        mistakes[0].problem.contains("so many hosts and twins"),
        "{mistakes:#?}"
    );
}

#[test]
fn a_record_must_hold_a_whole_log() {
    let mut config = ClusterConfig::example(3, 2, 1, 7100);
    config.postbox.record_bytes_max = 64 << 20;
    assert!(ClusterConfig::parse(&config.to_toml()).is_ok(), "it is off");
    config.postbox.record_dir = Some("record".into());
    let mistakes = ClusterConfig::parse(&config.to_toml()).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    assert_eq!(mistakes[0].path, "postbox.record_bytes_max");
    let needed = crate::record_bytes_needed(32 << 20, 1 << 20).to_string();
    assert!(mistakes[0].remedy.contains(&needed), "{mistakes:#?}");
}

#[test]
fn a_small_batch_must_be_passed_on_in_one_entry() {
    joint(
        "serve_all_bytes_max = 16_384",
        "serve_all_bytes_max = 2_097_152",
        "protocol.serve_all_bytes_max",
        "too large to be passed on in one entry",
        "at most 2090",
    );
}

#[test]
fn a_trim_must_carry_the_state() {
    joint(
        "state_bytes_max = 1_048_576",
        "state_bytes_max = 400_000",
        "postbox.state_bytes_max",
        "too small for all that a trim must carry on",
        "at least 488960",
    );
    // Whatever the shape, the defaults go together.
    for (hosts, twins) in [(1, 2), (3, 3), (31, 8)] {
        let config = ClusterConfig::example(hosts, twins, 0, 7100);
        assert!(ClusterConfig::parse(&config.to_toml()).is_ok());
    }
}

#[test]
fn numbers_that_contradict_each_other() {
    joint(
        "need_after_ms = 5",
        "need_after_ms = 500",
        "protocol.need_after_ms",
        "suspect_after_ms",
        "smaller",
    );
    joint(
        "fetch_after_ms = 20",
        "fetch_after_ms = 501",
        "protocol.fetch_after_ms",
        "suspect_after_ms",
        "smaller",
    );
    let text = ClusterConfig::example(1, 2, 0, 7100).to_toml();
    let text = text.replace("checkpoint_slots = 128", "checkpoint_slots = 8");
    let text = text.replace("pipeline_depth = 8", "pipeline_depth = 9");
    // A default that has changed would leave the text as it was.
    assert!(text.contains("checkpoint_slots = 8\n") && text.contains("pipeline_depth = 9\n"));
    let mistakes = ClusterConfig::parse(&text).unwrap_err();
    assert_eq!(
        (mistakes.len(), mistakes[0].path.as_str()),
        (1, "protocol.pipeline_depth")
    );
    assert!(mistakes[0].remedy.contains("at most 8"));
}

#[test]
fn a_default_that_breaks_a_rule_is_said_to_be_one() {
    let text = ClusterConfig::example(3, 2, 2, 7100).to_toml();
    let text: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("log_bytes"))
        .collect();
    let text = text
        .join("\n")
        .replace("trim_entries = 1_024", "trim_entries = 8192");
    let mistakes = ClusterConfig::parse(&text).unwrap_err();
    assert_eq!(mistakes.len(), 1);
    assert!(
        mistakes[0].problem.contains("(it is 33554432 by default)"),
        "{}",
        mistakes[0]
    );
    assert_eq!(text.lines().nth(mistakes[0].line - 1), Some("[postbox]"));
}

#[test]
fn null_replies_have_a_maximum() {
    let mut config = ClusterConfig::example(1, 2, 1, 7100);
    config.service.name = "null".to_owned();
    config.service.null.reply_bytes_max = 9;
    config.service.null.reply_bytes_default = 10;
    let mistakes = ClusterConfig::parse(&config.to_toml()).unwrap_err();
    assert_eq!(
        (mistakes.len(), mistakes[0].path.as_str()),
        (1, "service.null")
    );
    assert!(mistakes[0].remedy.contains("at most 9"));
}
