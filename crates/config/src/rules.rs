//! Rules that join several numbers: what is to be stored must fit where it is to be stored.

use std::ops::Range;

use crate::model::{ClusterConfig, Transport};
use crate::reader::{Reader, Section};

/// Bytes that the postbox puts before each payload, and to which it rounds.
const RECORD_HEADER_BYTES: u64 = 32;
const RECORD_ALIGN_BYTES: u64 = 8;
const PAGE_BYTES: u64 = 4096;
/// Bytes of one request in a PROPOSE: client, session, number, digest.
const REQUEST_REF_BYTES: u64 = 52;
/// Bytes of one request in a batch besides its operation: client, session, number, length.
const REQUEST_BYTES: u64 = 24;
/// Bytes of one request in RESULT: digest and MAC.
const RESULT_BYTES: u64 = 48;
/// Everything else in an entry but MACs: tags, numbers, lengths, digests.
const ENTRY_REST_BYTES: u64 = 256;
const MAC_BYTES: u64 = 16;
/// Everything but keys and values in an operation or a result of `kv`.
const KV_REST_BYTES: u64 = 128;

/// Bytes of all that a trim carries on and that no number of the file bounds: late results and their digests, HAVEs
/// and retransmissions of each twin, and what is small. The core's own sum, which a test of the replica compares.
const STATE_FIXED_BYTES: u64 = 192 << 10;
const STATE_TWIN_BYTES: u64 = 80 << 10;
/// One slot that a backup has not accepted yet, beside a digest of each twin.
const STATE_ACCEPT_BYTES: u64 = 12;
const DIGEST_BYTES: u64 = 32;

/// The most bytes that a trim of this cluster's postboxes must carry on (protocol.md 2, STATE).
#[must_use]
pub fn state_bytes_needed(config: &ClusterConfig) -> u64 {
    let protocol = &config.protocol;
    let twins = u64::from(config.twin_count());
    let candidate = bytes(protocol.batch_requests_max) * REQUEST_REF_BYTES + ENTRY_REST_BYTES;
    let accept = STATE_ACCEPT_BYTES + twins * (1 + DIGEST_BYTES);
    STATE_FIXED_BYTES
        + twins * STATE_TWIN_BYTES
        + protocol.pipeline_depth.saturating_mul(candidate)
        + (2 * protocol.checkpoint_slots).saturating_mul(accept)
}

/// The least that a record of a host's log may be bounded to, so that one whole log always fits beside its predecessor
/// (a recorded entry takes up to twice its place in the log).
#[must_use]
pub const fn record_bytes_needed(log_bytes: u64, state_bytes_max: u64) -> u64 {
    log_bytes.saturating_add(state_bytes_max).saturating_mul(4)
}

/// Most pages that gntdev maps in one request.
const MIRROR_PAGES_MAX: u64 = 65_536;
/// Pages of a twin's append ring, its first page included.
const RING_PAGES: u64 = 65;

/// Pages of one twin's copy of the log on Xen: a page of numbers, two summaries, the log.
fn mirror_pages(config: &ClusterConfig) -> u64 {
    let state = u64::from(config.postbox.state_bytes_max).div_ceil(PAGE_BYTES);
    1 + 2 * state + config.postbox.log_bytes.div_ceil(PAGE_BYTES)
}

/// Pages that a broker on Xen grants to all its guests: each has a copy of the log and a ring. `xen-gntalloc`'s `limit` must
/// allow as many, and Xen's grant table too.
#[must_use]
pub fn granted_pages_needed(config: &ClusterConfig) -> u64 {
    u64::from(config.twin_count()) * (mirror_pages(config) + RING_PAGES)
}

/// Where a number stands, or where it would.
fn place(top: &Section<'_, '_>, section: &str, key: &str) -> (Range<usize>, bool) {
    let Some(found) = top.table.get(section) else {
        return (0..0, false);
    };
    let value = section_value(found.get_ref(), key);
    value.map_or((found.span(), false), |span| (span, true))
}

fn section_value(section: &toml::de::DeValue<'_>, key: &str) -> Option<Range<usize>> {
    Some(section.as_table()?.get(key)?.span())
}

/// The joint rules. Called with numbers that are each within their bounds, or with a mistake noted already.
pub(crate) fn check_sizes(reader: &mut Reader<'_>, top: &Section<'_, '_>, config: &ClusterConfig) {
    let mut rules = Rules { reader, top };
    rules.postbox(config);
    rules.mirror(config);
    rules.service(config);
    rules.timing(config);
    rules.window(config);
}

struct Rules<'r, 't, 'a, 'i> {
    reader: &'r mut Reader<'t>,
    top: &'r Section<'a, 'i>,
}

impl Rules<'_, '_, '_, '_> {
    /// Notes that `section.key`, which is `value` (perhaps by default), breaks a rule.
    fn broken(&mut self, section: &str, key: &str, value: u64, problem: &str, remedy: String) {
        let (span, written) = place(self.top, section, key);
        let path = format!("{section}.{key}");
        if written {
            self.reader.mistake(&span, path, problem, remedy);
        } else {
            self.reader.missing(
                &span,
                path,
                format!("{problem} (it is {value} by default)"),
                remedy,
            );
        }
    }

    fn postbox(&mut self, config: &ClusterConfig) {
        let twins = u64::from(config.twin_count());
        let hosts = u64::from(config.host_count());
        let entry_max = u64::from(config.postbox.entry_bytes_max);
        let request = bytes(config.protocol.request_bytes_max);
        let batch = bytes(config.protocol.batch_requests_max);
        let authenticator = MAC_BYTES * twins * hosts.saturating_sub(1) + ENTRY_REST_BYTES;
        let body = request + MAC_BYTES * twins + ENTRY_REST_BYTES;
        let propose = batch * REQUEST_REF_BYTES + ENTRY_REST_BYTES;
        // A LEAVE carries certificates of Q hosts (6).
        let leave = (hosts / 2 + 1) * (twins * authenticator + ENTRY_REST_BYTES);
        let needed = body.max(propose).max(leave);
        if entry_max < needed {
            let what = if needed == body {
                "too small for the body of a largest request (protocol.request_bytes_max)"
            } else if needed == propose {
                "too small for a largest batch (protocol.batch_requests_max)"
            } else {
                "too small for the certificates of so many hosts and twins"
            };
            let remedy = format!("make it at least {needed}, or the other one smaller");
            self.broken("postbox", "entry_bytes_max", entry_max, what, remedy);
        }
        // Small batches are passed on through the postbox, each with its certificate.
        let small = bytes(config.protocol.serve_all_bytes_max);
        let relay = batch * REQUEST_BYTES + twins * authenticator + ENTRY_REST_BYTES;
        if entry_max < small.saturating_add(relay) {
            let what = "too large to be passed on in one entry (postbox.entry_bytes_max)";
            let remedy = format!("make it at most {}", entry_max.saturating_sub(relay));
            self.broken("protocol", "serve_all_bytes_max", small, what, remedy);
        }
        let state_max = u64::from(config.postbox.state_bytes_max);
        let needed = state_bytes_needed(config);
        if state_max < needed {
            let what = "too small for all that a trim must carry on (protocol.pipeline_depth, \
                        batch_requests_max, checkpoint_slots)";
            let remedy = format!("make it at least {needed}, or the others smaller");
            self.broken("postbox", "state_bytes_max", state_max, what, remedy);
        }
        let record_max = config.postbox.record_bytes_max;
        let needed = record_bytes_needed(config.postbox.log_bytes, state_max);
        if config.postbox.record_dir.is_some() && record_max < needed {
            let what = "too small to record a whole log";
            let remedy = format!("make it at least {needed}, or postbox.log_bytes smaller");
            self.broken("postbox", "record_bytes_max", record_max, what, remedy);
        }
        self.log(
            config,
            twins,
            propose + batch * RESULT_BYTES + authenticator + ENTRY_REST_BYTES,
        );
    }

    /// Each twin's guest maps a copy of the whole log, at once.
    fn mirror(&mut self, config: &ClusterConfig) {
        let needed = mirror_pages(config);
        if config.postbox.transport == Transport::Xen && needed > MIRROR_PAGES_MAX {
            let what =
                "too large to be granted to a Xen guest in one piece, with its two summaries";
            let rest = (needed - config.postbox.log_bytes.div_ceil(PAGE_BYTES)) * PAGE_BYTES;
            let most = (MIRROR_PAGES_MAX * PAGE_BYTES).saturating_sub(rest);
            let remedy = format!("make it at most {most}");
            self.broken(
                "postbox",
                "log_bytes",
                config.postbox.log_bytes,
                what,
                remedy,
            );
        }
    }

    /// `slot_bytes` is what a leader posts for one full slot.
    fn log(&mut self, config: &ClusterConfig, twins: u64, slot_bytes: u64) {
        let log = config.postbox.log_bytes;
        let entry_max = u64::from(config.postbox.entry_bytes_max);
        let record = (RECORD_HEADER_BYTES + entry_max).next_multiple_of(RECORD_ALIGN_BYTES);
        if !log.is_multiple_of(PAGE_BYTES) {
            let remedy = format!("make it {}", log.next_multiple_of(PAGE_BYTES));
            self.broken(
                "postbox",
                "log_bytes",
                log,
                "not a multiple of 4096",
                remedy,
            );
        }
        // The log holds one largest entry of each twin besides the pad at its end. And between two trims, the
        // agreed one and the next, a leader must be able to post every full slot: two times k entries, of which
        // a slot has PROPOSE, the other twins' votes, and SIGN and RESULT of all; of two twins, one signs with
        // its vote.
        let entries_a_slot = (3 * twins).saturating_sub(1).max(1);
        let slots = (2 * config.protocol.trim_entries).div_ceil(entries_a_slot);
        let share = record.max(slots * slot_bytes);
        let needed = (twins * share + record).next_multiple_of(PAGE_BYTES);
        if log < needed {
            let (what, other) = if share == record {
                (
                    "too small for one largest entry of each twin",
                    "postbox.entry_bytes_max",
                )
            } else {
                (
                    "too small for the full batches between two trims",
                    "protocol.trim_entries",
                )
            };
            let remedy = format!("make it at least {needed}, or {other} smaller");
            self.broken("postbox", "log_bytes", log, what, remedy);
        }
    }

    fn service(&mut self, config: &ClusterConfig) {
        let request = bytes(config.protocol.request_bytes_max);
        let kept = bytes(config.protocol.session_result_bytes_max);
        let reply = match config.service.name.as_str() {
            "kv" => {
                let kv = config.service.kv;
                let value = u64::from(kv.value_bytes_max);
                let needed = value + u64::from(kv.key_bytes_max) + KV_REST_BYTES;
                if request < needed {
                    let what = "too small to put a largest value under a largest key";
                    let remedy =
                        format!("make it at least {needed}, or service.kv's limits smaller");
                    self.broken("protocol", "request_bytes_max", request, what, remedy);
                }
                value.max(u64::from(kv.page_bytes_max)) + KV_REST_BYTES
            }
            _ => {
                let null = config.service.null;
                if null.reply_bytes_default > null.reply_bytes_max {
                    let what = "service.null.reply_bytes_default is above reply_bytes_max";
                    let (span, _) = place(self.top, "service", "null");
                    let remedy = format!("make it at most {}", null.reply_bytes_max);
                    self.reader.missing(&span, "service.null", what, remedy);
                }
                u64::from(null.reply_bytes_max)
            }
        };
        if kept < reply {
            let what = "too small for one largest result";
            let remedy = format!("make it at least {reply}");
            self.broken("protocol", "session_result_bytes_max", kept, what, remedy);
        }
    }

    fn timing(&mut self, config: &ClusterConfig) {
        let protocol = &config.protocol;
        for (key, value) in [
            ("need_after_ms", protocol.need_after_ms),
            ("fetch_after_ms", protocol.fetch_after_ms),
        ] {
            if value >= protocol.suspect_after_ms {
                let what = "not below protocol.suspect_after_ms";
                let remedy = "a primary would be deposed before what is missing was asked for; \
                              make it smaller"
                    .to_owned();
                self.broken("protocol", key, value, what, remedy);
            }
        }
    }

    fn window(&mut self, config: &ClusterConfig) {
        let protocol = &config.protocol;
        if protocol.pipeline_depth > protocol.checkpoint_slots {
            let what = "above protocol.checkpoint_slots";
            let remedy = format!("make it at most {}", protocol.checkpoint_slots);
            self.broken(
                "protocol",
                "pipeline_depth",
                protocol.pipeline_depth,
                what,
                remedy,
            );
        }
        if protocol.pending_requests_max < protocol.batch_requests_max {
            let what = "below protocol.batch_requests_max: no batch could ever be full";
            let remedy = format!("make it at least {}", protocol.batch_requests_max);
            let value = bytes(protocol.pending_requests_max);
            self.broken("protocol", "pending_requests_max", value, what, remedy);
        }
    }
}

fn bytes(number: usize) -> u64 {
    u64::try_from(number).expect("usize has at most 64 bits")
}
