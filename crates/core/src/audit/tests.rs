//! Each kind of entry that no correct twin posts is named where it stands; what correct twins post is not.

use twinbft_types::{
    Attempt, Authenticator, ClientId, Mac, RequestRef, ResultMac, Seq, Statement, batch_digest,
    canonical, history,
};

use super::*;

const BOUNDS: Bounds = Bounds {
    checkpoint_slots: 4,
    batch_requests_max: 8,
    pipeline_depth: 6,
    trim_multiple: 4,
    trim_entries: 8,
    trim_bytes: 100_000,
};

/// An audit of a log that is made entry by entry.
struct Made {
    auditor: Auditor,
    shape: Shape,
}

impl Made {
    fn new(host: u8, twins: u8) -> Self {
        let shape = Shape::new(3, twins).unwrap();
        Self {
            auditor: Auditor::genesis(shape, HostId(host), BOUNDS),
            shape,
        }
    }

    fn post(&mut self, twin: u8, entry: &Entry) -> Vec<Finding> {
        self.auditor.handle_entry(TwinId(twin), &canonical(entry))
    }

    #[track_caller]
    fn right(&mut self, twin: u8, entry: &Entry) {
        assert_eq!(self.post(twin, entry), []);
    }

    #[track_caller]
    fn wrong(&mut self, twin: u8, entry: &Entry, problem: &str) -> Finding {
        let position = self.auditor.end();
        let found = self.post(twin, entry);
        assert_eq!(found.len(), 1, "{found:?}");
        let finding = found[0].clone();
        assert_eq!((finding.position, finding.twin), (position, TwinId(twin)));
        assert_eq!(finding.entry, entry.name());
        let text = format!("{finding:?}");
        assert!(text.contains(problem), "{text}");
        finding
    }

    fn sign(&self, twin: u8, statement: Statement) -> Entry {
        let receivers = self.shape.receivers(HostId(0)).count();
        Entry::Sign {
            statement,
            authenticator: Authenticator {
                twin: TwinId(twin),
                macs: vec![Mac([0; 16]); receivers],
            },
        }
    }
}

fn request(number: u64) -> RequestRef {
    RequestRef {
        client: ClientId { key: 0, session: 1 },
        seq: Seq(number),
        digest: Digest::of(&number.to_le_bytes()),
    }
}

fn propose(slot: u64, attempt: u32, previous: Digest, number: u64) -> (Entry, Digest) {
    let requests = vec![request(number)];
    let next = history(previous, Slot(slot), batch_digest(&requests), slot);
    let entry = Entry::Propose {
        view: View(0),
        slot: Slot(slot),
        attempt: Attempt(attempt),
        previous,
        timestamp_us: slot,
        requests,
    };
    (entry, next)
}

fn endorse(slot: u64, attempt: u32, history: Digest) -> Entry {
    Entry::Endorse {
        view: View(0),
        slot: Slot(slot),
        attempt: Attempt(attempt),
        history,
        signature: None,
    }
}

fn nack(slot: u64, attempt: u32, history: Digest) -> Entry {
    Entry::Nack {
        view: View(0),
        slot: Slot(slot),
        attempt: Attempt(attempt),
        history,
        requests: Vec::new(),
    }
}

fn results(slot: u64, history: Digest, result: &[u8]) -> Entry {
    Entry::Results {
        slot: Slot(slot),
        history,
        view: None,
        results: vec![ResultMac {
            digest: Digest::of(result),
            mac: Mac([0; 16]),
        }],
    }
}

fn order(slot: u64, history: Digest) -> Statement {
    Statement::Order {
        view: View(0),
        slot: Slot(slot),
        history,
    }
}

/// A log with slot 1 decided.
fn decided(twins: u8) -> (Made, Digest) {
    let mut made = Made::new(0, twins);
    let (one, h1) = propose(1, 0, Digest::ZERO, 1);
    made.right(0, &one);
    made.right(1, &endorse(1, 0, h1));
    (made, h1)
}

#[test]
fn what_correct_twins_post_is_not_named() {
    let (mut made, h1) = decided(3);
    let signed = made.sign(0, order(1, h1));
    made.right(0, &signed);
    made.right(0, &results(1, h1, b"r"));
    made.right(1, &results(1, h1, b"r"));
    // A late vote and a repeated result.
    made.right(2, &endorse(1, 0, h1));
    made.right(0, &results(1, h1, b"r"));
    let digest = results_digest_of(b"r");
    let statement = Statement::SlotResult {
        slot: Slot(1),
        history: h1,
        results: digest,
    };
    let signed = made.sign(1, statement);
    made.right(1, &signed);
    // 4.3: a PROPOSE that was ignored leaves its number to the next.
    let (void, void_h) = propose(2, 0, h1, 2);
    made.right(0, &void);
    made.right(1, &nack(2, 0, void_h));
    made.right(2, &nack(2, 0, void_h));
    made.right(
        0,
        &Entry::Withdraw {
            view: View(0),
            slot: Slot(2),
            attempt: Attempt(0),
        },
    );
    let (late, _) = propose(3, 0, void_h, 3);
    made.right(0, &late);
    let (again, h2) = propose(2, 1, h1, 4);
    made.right(0, &again);
    let (three, _) = propose(3, 0, h2, 3);
    made.right(0, &three);
}

fn results_digest_of(result: &[u8]) -> Digest {
    twinbft_types::results_digest(&[Digest::of(result)])
}

#[test]
fn entries_that_the_automaton_refuses_are_named() {
    let (mut made, h1) = decided(2);
    let (by_follower, _) = propose(2, 0, h1, 2);
    made.wrong(1, &by_follower, "only the leader");
    made.wrong(0, &endorse(1, 0, h1), "a vote of a twin that has none");
    made.wrong(1, &results(1, Digest::of(b"x"), b"r"), "its host never had");
    let accept = Entry::Accept {
        view: View(0),
        slot: Slot(1),
        history: h1,
    };
    made.wrong(0, &accept, "on the primary host");
    let found = made.auditor.handle_entry(TwinId(1), b"\xff garbage");
    assert_eq!(found[0].entry, "UNREADABLE");
    let found = made.auditor.handle_entry(TwinId(7), b"");
    assert!(found[0].names_twin());
    let position = made.auditor.end();
    let (two, _) = propose(2, 0, h1, 2);
    made.right(0, &two);
    assert_eq!(made.auditor.end(), position.next(), "positions count on");
}

/// 4.3: an attempt number is above all earlier ones.
#[test]
fn a_second_proposal_under_one_number_is_named() {
    let (mut made, h1) = decided(3);
    let (two, _) = propose(2, 0, h1, 2);
    let (rival, _) = propose(2, 0, h1, 3);
    made.right(0, &two);
    // The same once more is nothing new.
    made.right(0, &two);
    made.wrong(0, &rival, "under one attempt number");
    let (later, _) = propose(2, 1, h1, 3);
    made.right(0, &later);
}

#[test]
fn a_follower_that_votes_twice_or_on_nothing_is_named() {
    let (mut made, h1) = decided(3);
    let (two, h2) = propose(2, 0, h1, 2);
    made.right(0, &two);
    made.right(1, &nack(2, 0, h2));
    made.wrong(1, &endorse(2, 0, h2), "two different votes");
    made.wrong(2, &endorse(2, 0, h1), "another history");
    made.wrong(
        2,
        &endorse(2, 1, h2),
        "a candidate that the log does not have",
    );
    made.right(2, &endorse(2, 0, h2));
}

/// 4.3: a NACK that HAVEs of `q` twins bar is no vote (simulator seed 10631).
#[test]
fn a_follower_whose_nack_was_barred_may_vote_again() {
    let (mut made, h1) = decided(3);
    let (two, h2) = propose(2, 0, h1, 2);
    made.right(0, &two);
    for twin in [0, 2] {
        let have = Entry::Have {
            request: request(2),
        };
        made.right(twin, &have);
    }
    let mut barred = nack(2, 0, h2);
    if let Entry::Nack { requests, .. } = &mut barred {
        requests.push(request(2));
    }
    made.right(1, &barred);
    made.right(1, &endorse(2, 0, h2));
}

#[test]
fn a_twin_whose_results_change_is_named_and_a_divergence_names_nobody() {
    let (mut made, h1) = decided(3);
    made.right(0, &results(1, h1, b"right"));
    made.wrong(0, &results(1, h1, b"wrong"), "two different RESULTs");
    let found = made.post(1, &results(1, h1, b"other"));
    assert_eq!(found.len(), 1);
    assert!(!found[0].names_twin());
    let said = vec![
        (TwinId(0), results_digest_of(b"right")),
        (TwinId(1), results_digest_of(b"other")),
    ];
    let output = Output::Results;
    assert_eq!(found[0].what, What::Divergence { output, said });
}

#[test]
fn signatures_on_what_is_not_decided_and_in_other_names_are_named() {
    let (mut made, h1) = decided(3);
    let (two, h2) = propose(2, 0, h1, 2);
    made.right(0, &two);
    for statement in [
        order(2, h2),
        Statement::Checkpoint {
            slot: Slot(4),
            digest: h1,
        },
        Statement::Heartbeat {
            view: View(0),
            count: 1,
            slot: Slot(1),
            history: h1,
        },
        Statement::SlotResult {
            slot: Slot(1),
            history: h1,
            results: h1,
        },
        Statement::NewView {
            view: View(3),
            slot: Slot(1),
            history: h1,
            hosts: Vec::new(),
        },
        Statement::ViewChange {
            view: View(1),
            last_normal: View(0),
            accepted: Slot(1),
            history: h1,
            incarnations: Vec::new(),
        },
    ] {
        let entry = made.sign(0, statement);
        made.wrong(0, &entry, "had not decided");
    }
    let other = made.sign(1, order(1, h1));
    made.wrong(0, &other, "another twin's name");
    let mut short = made.sign(0, order(1, h1));
    if let Entry::Sign { authenticator, .. } = &mut short {
        authenticator.macs.pop();
    }
    made.wrong(0, &short, "one MAC for each receiver");
    made.right(1, &endorse(2, 0, h2));
    let late = made.sign(0, order(2, h2));
    made.right(0, &late);
}

/// What was decided before the STATE that an audit begins with is not known, and nobody is named for it.
#[test]
fn an_audit_from_a_state_says_nothing_about_what_came_before_it() {
    let (mut made, h1) = decided(3);
    let (two, h2) = propose(2, 0, h1, 2);
    made.right(0, &two);
    let (three, h3) = propose(3, 0, h2, 3);
    made.right(0, &three);
    let end = made.auditor.end();
    let state = made.auditor.log().to_state();
    let mut later = Made {
        auditor: Auditor::from_state(made.shape, HostId(0), end, &state).unwrap(),
        shape: made.shape,
    };
    for (slot, history) in [(1, h1), (1, h2)] {
        let entry = later.sign(1, order(slot, history));
        later.right(1, &entry);
    }
    later.right(1, &endorse(2, 7, h1));
    // An open candidate is in it.
    later.wrong(1, &endorse(2, 0, h3), "another history");
    let entry = later.sign(1, order(2, h2));
    later.wrong(1, &entry, "had not decided");
    later.right(1, &endorse(2, 0, h2));
    let entry = later.sign(1, order(2, h2));
    later.right(1, &entry);
    assert!(Auditor::from_state(made.shape, HostId(0), end.next(), &state).is_err());
    assert!(Auditor::from_state(made.shape, HostId(1), end, &state).is_err());
    assert!(Auditor::from_state(made.shape, HostId(0), end, &state[1..]).is_err());
}

#[test]
fn the_state_at_a_due_trim_is_that_of_the_twins() {
    let (mut made, h1) = decided(3);
    let mut log = HostLog::genesis(made.shape, HostId(0), BOUNDS);
    let (one, _) = propose(1, 0, Digest::ZERO, 1);
    let mut entries = vec![(0, one), (1, endorse(1, 0, h1))];
    for _ in 0..6 {
        entries.push((0, results(1, h1, b"r")));
        made.right(0, &results(1, h1, b"r"));
    }
    let mut due = None;
    for (twin, entry) in entries {
        log.apply(TwinId(twin), &entry, &mut Vec::new()).unwrap();
        due = due.or(log.note_bytes(canonical(&entry).len() as u64));
    }
    assert_eq!(due, Some(Position(8)));
    let digest = Digest::of(&log.to_state());
    assert_eq!(made.auditor.state_digest(Position(8)), Some(digest));
    assert_eq!(made.auditor.state_digest(Position(4)), None);
}
