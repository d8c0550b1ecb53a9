//! What the processes of the demonstration say about themselves, as far as it needs it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use twinbft_types::ReplicaId;

use crate::cmd::status::{Answer, Asked};

/// A replica at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TwinView {
    /// `leader`, `follower` or `backup`.
    pub role: String,
    /// As the replica names it.
    pub state: String,
    /// The view that it is in.
    pub view: u64,
    /// The last executed slot.
    pub executed: u64,
    /// Results that its host's twins agreed on.
    pub cross_checked: u64,
    /// Times that its host's twins disagreed.
    pub diverged: u64,
    /// Replies that it has sent to clients.
    pub replies: u64,
    /// What it was told to do wrong, if anything.
    pub double: Option<String>,
}

/// All processes at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every replica; `None` for one that does not answer.
    pub twins: BTreeMap<ReplicaId, Option<TwinView>>,
    /// Hosts whose broker answers.
    pub brokers: BTreeSet<u8>,
}

impl Snapshot {
    /// The twins of a host that answer.
    pub fn of_host(&self, host: u8) -> impl Iterator<Item = (ReplicaId, &TwinView)> {
        self.twins
            .iter()
            .filter(move |(id, _)| id.host.0 == host)
            .filter_map(|(id, view)| Some((*id, view.as_ref()?)))
    }

    /// What each of these twins has executed, as far as they answer.
    pub fn executed(&self, is_one: impl Fn(ReplicaId) -> bool) -> Vec<u64> {
        let ones = self.twins.iter().filter(|(id, _)| is_one(**id));
        ones.filter_map(|(_, twin)| Some(twin.as_ref()?.executed))
            .collect()
    }

    /// What the twins of a host have certified, and what all but `liar` have sent.
    pub fn output(&self, host: u8, liar: Option<ReplicaId>) -> Output {
        let mut output = Output::default();
        for (id, view) in self.of_host(host) {
            output.cross_checked.insert(id, view.cross_checked);
            // A liar may say to clients what it likes: without its sibling's signature it is no reply of the host.
            if Some(id) != liar {
                output.replies.insert(id, view.replies);
            }
        }
        output
    }

    /// Divergences that every twin of this host has seen.
    pub fn diverged(&self, host: u8) -> u64 {
        let twins = self.of_host(host);
        twins.map(|(_, view)| view.diverged).min().unwrap_or(0)
    }
}

/// What a host lets out, by twin. It only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Results that its twins agreed on.
    pub cross_checked: BTreeMap<ReplicaId, u64>,
    /// Replies to clients, of twins that do not lie.
    pub replies: BTreeMap<ReplicaId, u64>,
}

impl Output {
    /// The most that a twin's count has grown since `before`.
    fn grown(
        now: &BTreeMap<ReplicaId, u64>,
        before: &BTreeMap<ReplicaId, u64>,
    ) -> impl Iterator<Item = u64> {
        now.iter().map(|(id, count)| {
            let old = before.get(id).copied().unwrap_or(0);
            count.saturating_sub(old)
        })
    }

    /// Results that were certified since `before`.
    pub fn certified_since(&self, before: &Self) -> u64 {
        Self::grown(&self.cross_checked, &before.cross_checked)
            .max()
            .unwrap_or(0)
    }

    /// Whether every twin of `before` has certified results since.
    pub fn all_certify_since(&self, before: &Self) -> bool {
        !before.cross_checked.is_empty()
            && self.cross_checked.len() == before.cross_checked.len()
            && Self::grown(&self.cross_checked, &before.cross_checked).all(|grown| grown > 0)
    }

    /// Replies that were sent since `before`, by all that do not lie together.
    pub fn replies_since(&self, before: &Self) -> u64 {
        Self::grown(&self.replies, &before.replies).sum()
    }
}

/// Who accused whom, gathered for as long as the demonstration runs: a replica that is killed takes its events along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Who was named culprit, and by whom.
    pub accused: BTreeMap<ReplicaId, BTreeSet<String>>,
    /// Hosts whose twins were seen to disagree.
    pub diverged: BTreeSet<u8>,
    /// Replicas that found that no twin matches what the hosts agree on.
    pub not_deterministic: BTreeSet<ReplicaId>,
}

/// Reads the answers of all processes; what is not there or makes no sense is left out.
pub fn read(asked: &[Asked], evidence: &mut Evidence) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for asked in asked {
        let document = match &asked.answer {
            Answer::Document(document) => Some(document),
            Answer::Unreachable(_) | Answer::Elsewhere => None,
        };
        match asked.twin {
            None => {
                if document.is_some() {
                    snapshot.brokers.insert(asked.host);
                }
            }
            Some(twin) => {
                let id = ReplicaId::new(asked.host, twin);
                if let Some(document) = document {
                    gather(id, document, evidence);
                }
                // Before it has a core it has no numbers.
                let view = document
                    .filter(|document| document.get("executed").is_some())
                    .map(twin_view);
                snapshot.twins.insert(id, view);
            }
        }
    }
    snapshot
}

fn twin_view(document: &Value) -> TwinView {
    let text = |name: &str| {
        document
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or(0);
    TwinView {
        role: text("role").unwrap_or_default(),
        state: text("state").unwrap_or_default(),
        view: number(document.get("view")),
        executed: number(document.get("executed")),
        cross_checked: number(document.get("cross_checked")),
        diverged: number(document.get("diverged")),
        replies: number(document.pointer("/network/sent/reply")),
        double: text("double"),
    }
}

fn gather(id: ReplicaId, document: &Value, evidence: &mut Evidence) {
    let total = |kind: &str| {
        let totals = document.get("event_totals");
        totals
            .and_then(|totals| totals.get(kind)?.as_u64())
            .unwrap_or(0)
    };
    if total("divergence") > 0 {
        evidence.diverged.insert(id.host.0);
    }
    if total("not-deterministic") > 0 {
        evidence.not_deterministic.insert(id);
    }
    let events = document.get("events").and_then(Value::as_array);
    for event in events.into_iter().flatten() {
        if event.get("kind").and_then(Value::as_str) != Some("culprit") {
            continue;
        }
        let number = |name: &str| {
            let number = event.get(name)?.as_u64()?;
            u8::try_from(number).ok()
        };
        if let (Some(host), Some(twin)) = (number("host"), number("twin")) {
            let accused = evidence.accused.entry(ReplicaId::new(host, twin));
            accused.or_default().insert(id.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replica(host: u8, twin: u8, document: Value) -> Asked {
        Asked {
            host,
            twin: Some(twin),
            answer: Answer::Document(document),
        }
    }

    fn document(cross_checked: u64, replies: u64) -> Value {
        json!({
            "role": "backup", "state": "running", "view": 0, "executed": 7, "cross_checked": cross_checked,
            "diverged": 2, "double": null, "network": {"sent": {"reply": replies}},
            "event_totals": {"culprit": 1, "divergence": 2},
            "events": [
                {"kind": "divergence", "host": 1, "twin": null},
                {"kind": "culprit", "host": 1, "twin": 1, "seen_by": "h1/t0"},
            ],
        })
    }

    #[test]
    fn numbers_and_accusations_are_read() {
        let mut evidence = Evidence::default();
        let silent = Asked {
            host: 2,
            twin: Some(0),
            answer: Answer::Unreachable("gone".to_owned()),
        };
        let asked = [
            replica(1, 0, document(10, 4)),
            replica(1, 1, document(10, 5)),
            silent,
        ];
        let before = read(&asked, &mut evidence);
        assert_eq!(before.diverged(1), 2);
        assert_eq!(before.twins[&ReplicaId::new(2, 0)], None);
        assert_eq!(evidence.diverged, BTreeSet::from([1]));
        let by: Vec<&str> = evidence.accused[&ReplicaId::new(1, 1)]
            .iter()
            .map(String::as_str)
            .collect();
        assert_eq!(by, ["h1/t0", "h1/t1"]);

        let asked = [
            replica(1, 0, document(13, 4)),
            replica(1, 1, document(10, 8)),
        ];
        let after = read(&asked, &mut evidence).output(1, None);
        let before = before.output(1, None);
        assert_eq!(after.certified_since(&before), 3);
        assert_eq!(after.replies_since(&before), 3);
        let honest = read(&asked, &mut evidence).output(1, Some(ReplicaId::new(1, 1)));
        assert_eq!(
            honest.replies_since(&before),
            0,
            "what the liar sends is no reply of the host"
        );
        assert!(
            !after.all_certify_since(&before),
            "one of them stands still"
        );
    }

    #[test]
    fn a_host_that_is_gone_does_not_count_as_certifying() {
        let mut evidence = Evidence::default();
        let before = read(&[replica(1, 0, document(1, 1))], &mut evidence).output(1, None);
        assert!(!Output::default().all_certify_since(&before));
        assert!(!before.all_certify_since(&Output::default()));
    }

    #[test]
    fn strange_documents_are_left_out() {
        let mut evidence = Evidence::default();
        for strange in [
            json!(null),
            json!([1]),
            json!({"executed": {}, "events": [{"kind": "culprit", "host": 900}, 3]}),
        ] {
            let snapshot = read(&[replica(0, 0, strange)], &mut evidence);
            assert!(
                snapshot
                    .output(0, None)
                    .cross_checked
                    .values()
                    .all(|count| *count == 0)
            );
        }
        assert_eq!(evidence, Evidence::default());
    }
}
