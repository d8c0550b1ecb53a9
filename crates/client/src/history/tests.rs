use super::*;
use proptest::prelude::*;

const STEPS: u64 = 1_000_000;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn value(text: &'static str) -> End {
    End::Observed(Observed::Value(Some(bytes(text))))
}

fn written() -> End {
    End::Observed(Observed::Written)
}

/// Begins and ends an operation with nothing between.
fn at_once(history: &mut History, action: Action, end: End) {
    let id = history.begin(0, bytes("k"), action);
    history.end(id, end);
}

fn write(text: &'static str) -> Action {
    Action::Write(bytes(text))
}

fn violation(history: &History) -> Violation {
    match history.check(STEPS) {
        Verdict::Violated(violation) => *violation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sequential_history_is_linearizable() {
    let mut history = History::new();
    at_once(
        &mut history,
        Action::Read,
        End::Observed(Observed::Value(None)),
    );
    at_once(&mut history, write("a"), written());
    at_once(&mut history, Action::Read, value("a"));
    let swap = |expect, new| Action::CompareAndSwap { expect, new };
    at_once(
        &mut history,
        swap(Some(bytes("b")), Some(bytes("c"))),
        End::Observed(Observed::Swapped(false)),
    );
    at_once(
        &mut history,
        swap(Some(bytes("a")), Some(bytes("c"))),
        End::Observed(Observed::Swapped(true)),
    );
    at_once(
        &mut history,
        Action::Delete,
        End::Observed(Observed::Deleted(true)),
    );
    at_once(
        &mut history,
        Action::Delete,
        End::Observed(Observed::Deleted(false)),
    );
    at_once(
        &mut history,
        swap(None, Some(bytes("d"))),
        End::Observed(Observed::Swapped(true)),
    );
    at_once(&mut history, Action::Read, value("d"));
    assert!(history.check(STEPS).is_linearizable());
}

#[test]
fn a_lost_write_is_found() {
    let mut history = History::new();
    at_once(&mut history, write("a"), written());
    at_once(&mut history, write("b"), written());
    at_once(&mut history, Action::Read, value("a"));
    let violation = violation(&history);
    assert_eq!(violation.ordered, 2);
    assert_eq!(violation.misfit, history.operations()[2]);
    assert!(violation.to_string().contains("no place for"));
}

#[test]
fn a_stale_read_is_found_and_a_concurrent_one_is_not_stale() {
    let mut history = History::new();
    at_once(&mut history, write("a"), written());
    let long = history.begin(1, bytes("k"), write("b"));
    at_once(&mut history, Action::Read, value("b"));
    let mut good = history.clone();
    // The write has taken effect, seen by one reader; another one after it must see it too.
    at_once(&mut history, Action::Read, value("a"));
    history.end(long, written());
    violation(&history);

    at_once(&mut good, Action::Read, value("b"));
    good.end(long, written());
    assert!(good.check(STEPS).is_linearizable());
}

#[test]
fn a_value_that_returns_is_found() {
    let mut history = History::new();
    for text in ["a", "b"] {
        at_once(&mut history, write(text), written());
        at_once(&mut history, Action::Read, value(text));
    }
    at_once(&mut history, Action::Read, value("a"));
    violation(&history);
}

#[test]
fn an_unknown_write_may_come_late_once_or_never() {
    let mut history = History::new();
    at_once(&mut history, write("a"), written());
    let lost = history.begin(1, bytes("k"), write("b"));
    history.end(lost, End::Unknown);
    at_once(&mut history, Action::Read, value("a"));
    assert!(history.check(STEPS).is_linearizable(), "never");
    at_once(&mut history, Action::Read, value("b"));
    assert!(history.check(STEPS).is_linearizable(), "late");
    at_once(&mut history, write("c"), written());
    at_once(&mut history, Action::Read, value("b"));
    violation(&history);
}

#[test]
fn what_is_without_effect_must_not_be_seen() {
    let mut history = History::new();
    let id = history.begin(0, bytes("k"), write("a"));
    history.end(id, End::WithoutEffect);
    at_once(&mut history, Action::Read, value("a"));
    violation(&history);
}

#[test]
fn keys_do_not_matter_to_each_other() {
    let mut history = History::new();
    at_once(&mut history, write("a"), written());
    let id = history.begin(0, bytes("other"), Action::Read);
    history.end(id, End::Observed(Observed::Value(None)));
    assert!(history.check(STEPS).is_linearizable());
}

#[test]
fn a_search_that_is_cut_off_says_so() {
    let mut history = History::new();
    at_once(&mut history, write("a"), written());
    at_once(&mut history, Action::Read, value("a"));
    assert_eq!(history.check(1), Verdict::Undecided { key: bytes("k") });
}

/// Long histories must stay cheap: each operation is tried a few times, not each subset.
#[test]
fn a_long_history_with_some_concurrency_is_decided() {
    let mut history = History::new();
    let text = |n: u32| Bytes::from(n.to_string());
    for round in 0..5_000u32 {
        let ids: Vec<_> = (0..4)
            .map(|n| {
                history.begin(
                    n,
                    bytes("k"),
                    Action::Write(text(round * 4 + u32::try_from(n).unwrap())),
                )
            })
            .collect();
        let read = history.begin(9, bytes("k"), Action::Read);
        for id in ids.into_iter().rev() {
            history.end(id, written());
        }
        history.end(
            read,
            End::Observed(Observed::Value(Some(text(round * 4 + 1)))),
        );
    }
    assert_eq!(history.check(STEPS), Verdict::Linearizable);
}

/// Tries every order of every choice of the unknown operations.
fn brute_force(operations: &[Recorded]) -> bool {
    fn go(operations: &[Recorded], used: u32, state: &Option<Bytes>) -> bool {
        let open = |index: &usize| used & (1 << index) == 0;
        let all = 0..operations.len();
        let known = |index: &usize| matches!(operations[*index].end, End::Observed(_));
        if !all.clone().filter(open).any(|index| known(&index)) {
            return true;
        }
        all.clone().filter(open).any(|index| {
            let candidate = &operations[index];
            // Nothing that ended before this one began may come after it.
            let too_late = all
                .clone()
                .filter(|other| open(other) && known(other))
                .any(|other| operations[other].ended < candidate.began);
            !too_late
                && after(candidate, state)
                    .is_some_and(|after| go(operations, used | 1 << index, &after))
        })
    }
    go(operations, 0, &None)
}

/// The register once more, in plain words.
fn after(operation: &Recorded, state: &Option<Bytes>) -> Option<Option<Bytes>> {
    let (would_see, would_be) = match &operation.action {
        Action::Read => (Observed::Value(state.clone()), state.clone()),
        Action::Write(value) => (Observed::Written, Some(value.clone())),
        Action::Delete => (Observed::Deleted(state.is_some()), None),
        Action::CompareAndSwap { expect, new } if expect == state => {
            (Observed::Swapped(true), new.clone())
        }
        Action::CompareAndSwap { .. } => (Observed::Swapped(false), state.clone()),
    };
    match &operation.end {
        End::Observed(observed) => (*observed == would_see).then_some(would_be),
        End::Unknown => Some(would_be),
        End::WithoutEffect => None,
    }
}

#[derive(Clone, Debug)]
struct Plan {
    action: u8,
    value: u8,
    other: u8,
    answer: u8,
    /// After how many further beginnings it ends.
    length: usize,
}

fn plan() -> impl Strategy<Value = Plan> {
    (0..4u8, 0..3u8, 0..3u8, 0..7u8, 0..3usize).prop_map(
        |(action, value, other, answer, length)| Plan {
            action,
            value,
            other,
            answer,
            length,
        },
    )
}

fn maybe(value: u8) -> Option<Bytes> {
    (value > 0).then(|| Bytes::copy_from_slice(&[value]))
}

fn recorded(plans: &[Plan]) -> History {
    let mut history = History::new();
    let mut open: Vec<(usize, OperationId, End)> = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let (action, observed) = match plan.action {
            0 => (Action::Read, Observed::Value(maybe(plan.value))),
            1 => (
                Action::Write(Bytes::copy_from_slice(&[plan.value + 1])),
                Observed::Written,
            ),
            2 => (Action::Delete, Observed::Deleted(plan.value > 0)),
            _ => (
                Action::CompareAndSwap {
                    expect: maybe(plan.value),
                    new: maybe(plan.other),
                },
                Observed::Swapped(plan.answer > 2),
            ),
        };
        let end = match plan.answer {
            0 => End::Unknown,
            1 => End::WithoutEffect,
            _ => End::Observed(observed),
        };
        let id = history.begin(index as u64, Bytes::new(), action);
        open.push((index + plan.length, id, end));
        let (over, still): (Vec<_>, Vec<_>) = open.into_iter().partition(|(at, ..)| *at <= index);
        open = still;
        for (_, id, end) in over {
            history.end(id, end);
        }
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn it_agrees_with_trying_everything(plans in prop::collection::vec(plan(), 0..7)) {
        let history = recorded(&plans);
        let expected = brute_force(history.operations());
        match history.check(STEPS) {
            Verdict::Linearizable => prop_assert!(expected),
            Verdict::Violated(_) => prop_assert!(!expected),
            Verdict::Undecided { .. } => prop_assert!(false, "so few operations are always decided"),
        }
    }
}
