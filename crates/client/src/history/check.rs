//! The search of Wing and Gong, with Lowe's memory: two ways to the same set of operations and the same state need not
//! both be followed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use bytes::Bytes;

use super::{Action, End, Observed, Recorded};

/// How many operations a violation shows before the one that does not fit.
const CONTEXT: usize = 8;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some order explains everything.
    Linearizable,
    /// No order does, for this key.
    Violated(Box<Violation>),
    /// The search was cut off for this key before it was decided.
    Undecided {
        /// The key.
        key: Bytes,
    },
}

impl Verdict {
    /// Whether it is certain that the history is linearizable.
    #[must_use]
    pub const fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable)
    }
}

/// A key whose operations no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key.
    pub key: Bytes,
    /// The end of the longest order found.
    pub order: Vec<Recorded>,
    /// How many operations that order has.
    pub ordered: usize,
    /// The operation that had ended and fits nowhere behind them.
    pub misfit: Recorded,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "not linearizable: key {:?}; after {} operations in order, the last of them",
            self.key, self.ordered
        )?;
        for operation in &self.order {
            writeln!(f, "    {}", Line(operation))?;
        }
        write!(f, "there is no place for\n    {}", Line(&self.misfit))
    }
}

struct Line<'a>(&'a Recorded);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recorded {
            process,
            action,
            began,
            ended,
            end,
            ..
        } = self.0;
        write!(f, "process {process}, events {began} to ")?;
        match ended {
            &u64::MAX => f.write_str("the end")?,
            ended => write!(f, "{ended}")?,
        }
        write!(f, ": {action:?} -> {end:?}")
    }
}

/// Checks each key on its own.
pub(super) fn check(operations: &[Recorded], steps_max: u64) -> Verdict {
    let mut keys: BTreeMap<&Bytes, Vec<&Recorded>> = BTreeMap::new();
    for operation in operations {
        keys.entry(&operation.key).or_default().push(operation);
    }
    let mut undecided = None;
    for (key, operations) in keys {
        match Search::new(&operations).run(steps_max) {
            Found::Order => {}
            Found::None {
                order,
                ordered,
                misfit,
            } => {
                // A violation says more than a search that was cut off.
                return Verdict::Violated(Box::new(Violation {
                    key: key.clone(),
                    order: order.into_iter().map(|o| operations[o].clone()).collect(),
                    ordered,
                    misfit: operations[misfit].clone(),
                }));
            }
            Found::CutOff => undecided = undecided.or(Some(key.clone())),
        }
    }
    undecided.map_or(Verdict::Linearizable, |key| Verdict::Undecided { key })
}

/// The value of the register: a number for each value that occurs, `None` for an absent key.
type State = Option<u32>;

/// What an operation does to the register, with the values as numbers.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Read {
        saw: State,
    },
    Set {
        to: State,
    },
    /// Delete, told whether there was anything; unknown when not told.
    Remove {
        found: Option<bool>,
    },
    Swap {
        expect: State,
        to: State,
        swapped: Option<bool>,
    },
}

impl Effect {
    /// The state afterwards, or `None` when what was observed is not possible in this state.
    fn apply(self, state: State) -> Option<State> {
        match self {
            Self::Read { saw } => (saw == state).then_some(state),
            Self::Set { to } => Some(to),
            // Where it is not known, an operation without effect need not be in the order at all.
            Self::Remove { found } => (found.unwrap_or(true) == state.is_some()).then_some(None),
            Self::Swap {
                expect,
                to,
                swapped,
            } => {
                let holds = expect == state;
                let after = if holds { to } else { state };
                (swapped.unwrap_or(true) == holds).then_some(after)
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    operation: usize,
    is_end: bool,
    previous: usize,
    next: usize,
}

enum Found {
    Order,
    None {
        order: Vec<usize>,
        ordered: usize,
        misfit: usize,
    },
    CutOff,
}

/// The beginnings and ends of one key that are not in the order yet, as a linked list; node 0 is its head and tail.
struct Search {
    nodes: Vec<Node>,
    /// The nodes of each operation's beginning and end.
    begin: Vec<usize>,
    end: Vec<Option<usize>>,
    /// `None` for what takes no part: reads with unknown outcome, operations without effect.
    effects: Vec<Option<Effect>>,
    /// Operations whose outcome is known and which are not in the order yet.
    known_left: usize,
    /// Which operations are in the order.
    set: Vec<u64>,
}

impl Search {
    fn new(operations: &[&Recorded]) -> Self {
        let effects = effects(operations);
        let mut events: Vec<(u64, usize, bool)> = Vec::new();
        let mut known_left = 0;
        for (index, operation) in operations.iter().enumerate() {
            if effects[index].is_none() {
                continue;
            }
            events.push((operation.began, index, false));
            if matches!(operation.end, End::Observed(_)) {
                known_left += 1;
                events.push((operation.ended, index, true));
            }
        }
        events.sort_unstable();
        let mut search = Self {
            nodes: vec![Node {
                operation: usize::MAX,
                is_end: false,
                previous: events.len(),
                next: usize::from(!events.is_empty()),
            }],
            begin: vec![0; operations.len()],
            end: vec![None; operations.len()],
            effects,
            known_left,
            set: vec![0; operations.len().div_ceil(64)],
        };
        let count = events.len();
        for (at, (_, operation, is_end)) in events.into_iter().enumerate() {
            let node = at + 1;
            if is_end {
                search.end[operation] = Some(node);
            } else {
                search.begin[operation] = node;
            }
            search.nodes.push(Node {
                operation,
                is_end,
                previous: node - 1,
                next: (node + 1) % (count + 1),
            });
        }
        search
    }

    fn run(mut self, steps_max: u64) -> Found {
        let mut tried: HashSet<(Box<[u64]>, State)> = HashSet::new();
        let mut order: Vec<(usize, State)> = Vec::new();
        let mut state: State = None;
        let mut at = self.nodes[0].next;
        let mut best: Option<(usize, Vec<usize>, usize)> = None;
        for _ in 0..steps_max {
            if self.known_left == 0 {
                return Found::Order;
            }
            let node = self.nodes[at];
            assert!(at != 0, "what is known has an end, and that is met first");
            if !node.is_end {
                let effect = self.effects[node.operation].expect("only those are in the list");
                let after = effect.apply(state).filter(|after| {
                    self.flip(node.operation);
                    let new = tried.insert((self.canonical(), *after));
                    self.flip(node.operation);
                    new
                });
                at = match after {
                    Some(after) => {
                        order.push((node.operation, state));
                        state = after;
                        self.lift(node.operation);
                        self.nodes[0].next
                    }
                    None => node.next,
                };
                continue;
            }
            // This operation has ended here, so it must be in the order by now, and is not.
            if best
                .as_ref()
                .is_none_or(|(length, ..)| order.len() > *length)
            {
                let shown = order.iter().rev().take(CONTEXT).rev();
                best = Some((
                    order.len(),
                    shown.map(|(operation, _)| *operation).collect(),
                    node.operation,
                ));
            }
            let Some((operation, before)) = order.pop() else {
                let (ordered, order, misfit) = best.expect("it has just been set");
                return Found::None {
                    order,
                    ordered,
                    misfit,
                };
            };
            state = before;
            self.unlift(operation);
            at = self.nodes[self.begin[operation]].next;
        }
        Found::CutOff
    }

    fn flip(&mut self, operation: usize) {
        self.set[operation / 64] ^= 1 << (operation % 64);
    }

    /// The set without what nearly all sets have in common: full words at the front, empty ones at the end. The first
    /// word is how many are left out.
    fn canonical(&self) -> Box<[u64]> {
        let full = self
            .set
            .iter()
            .take_while(|word| **word == u64::MAX)
            .count();
        let rest = &self.set[full..];
        let used = rest.len() - rest.iter().rev().take_while(|word| **word == 0).count();
        let mut words = Vec::with_capacity(used + 1);
        words.push(full as u64);
        words.extend_from_slice(&rest[..used]);
        words.into_boxed_slice()
    }

    fn lift(&mut self, operation: usize) {
        self.flip(operation);
        self.unlink(self.begin[operation]);
        if let Some(end) = self.end[operation] {
            self.unlink(end);
            self.known_left -= 1;
        }
    }

    fn unlift(&mut self, operation: usize) {
        self.flip(operation);
        if let Some(end) = self.end[operation] {
            self.relink(end);
            self.known_left += 1;
        }
        self.relink(self.begin[operation]);
    }

    fn unlink(&mut self, node: usize) {
        let Node { previous, next, .. } = self.nodes[node];
        self.nodes[previous].next = next;
        self.nodes[next].previous = previous;
    }

    fn relink(&mut self, node: usize) {
        let Node { previous, next, .. } = self.nodes[node];
        self.nodes[previous].next = node;
        self.nodes[next].previous = node;
    }
}

/// The effects of the operations of one key. An observation that does not answer its action is a mistake of whoever
/// recorded it and panics.
fn effects(operations: &[&Recorded]) -> Vec<Option<Effect>> {
    let mut numbers: HashMap<Bytes, u32> = HashMap::new();
    let mut number = |value: &Option<Bytes>| -> State {
        let value = value.as_ref()?;
        if let Some(known) = numbers.get(value) {
            return Some(*known);
        }
        let next = u32::try_from(numbers.len()).expect("a history has fewer values than that");
        numbers.insert(value.clone(), next);
        Some(next)
    };
    operations
        .iter()
        .map(|operation| {
            let observed = match &operation.end {
                End::Observed(observed) => Some(observed),
                End::Unknown => None,
                End::WithoutEffect => return None,
            };
            match (&operation.action, observed) {
                (Action::Read, Some(Observed::Value(value))) => {
                    Some(Effect::Read { saw: number(value) })
                }
                (Action::Read, None) => None,
                (Action::Write(value), Some(Observed::Written) | None) => Some(Effect::Set {
                    to: number(&Some(value.clone())),
                }),
                (Action::Delete, Some(Observed::Deleted(found))) => Some(Effect::Remove {
                    found: Some(*found),
                }),
                (Action::Delete, None) => Some(Effect::Remove { found: None }),
                (
                    Action::CompareAndSwap { expect, new },
                    observed @ (Some(Observed::Swapped(_)) | None),
                ) => Some(Effect::Swap {
                    expect: number(expect),
                    to: number(new),
                    swapped: observed.map(|o| *o == Observed::Swapped(true)),
                }),
                (action, Some(observed)) => {
                    panic!("{observed:?} was recorded as the answer to {action:?}")
                }
            }
        })
        .collect()
}
