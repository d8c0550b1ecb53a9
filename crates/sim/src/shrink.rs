//! Making a failure small: things are taken out of its scenario, one after the other, while it still fails.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::oracles::Violation;
use crate::scenario::{Edit, Scenario};
use crate::{Report, run};

/// The smallest failing scenario that was found.
#[derive(Debug)]
pub struct Smallest {
    /// The scenario.
    pub scenario: Scenario,
    /// What was taken out of the seed's own.
    pub edits: Vec<Edit>,
    /// How it fails.
    pub violation: Violation,
    /// How many scenarios were tried.
    pub tried: u32,
}

/// Runs a scenario; a panic of the code under test is a violation, too.
///
/// # Errors
/// The first broken invariant.
pub fn run_caught(scenario: Scenario) -> Result<Report, Violation> {
    catch_unwind(AssertUnwindSafe(|| run(scenario))).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Violation {
            invariant: 0,
            what: format!("panic: {}", text.unwrap_or("no text")),
        })
    })
}

/// Shrinks a scenario; `None` when it does not fail. A smaller scenario counts when it breaks the same
/// invariant.
#[must_use]
pub fn shrink(original: &Scenario) -> Option<Smallest> {
    let violation = run_caught(original.clone()).err()?;
    let mut smallest = Smallest {
        scenario: original.clone(),
        edits: Vec::new(),
        violation,
        tried: 1,
    };
    while let Some(smaller) = step(original, &smallest) {
        smallest = smaller;
    }
    Some(smallest)
}

/// The first edit that still fails.
fn step(original: &Scenario, from: &Smallest) -> Option<Smallest> {
    let possible = from.scenario.possible_edits(&original.faults);
    for (edit, tried) in possible.into_iter().zip(from.tried + 1..) {
        let mut edits = from.edits.clone();
        if let Edit::Operations(_) = edit {
            edits.retain(|e| !matches!(e, Edit::Operations(_)));
        }
        edits.push(edit);
        let scenario = original.edited(&edits);
        match run_caught(scenario.clone()) {
            Err(violation) if violation.invariant == from.violation.invariant => {
                return Some(Smallest {
                    scenario,
                    edits,
                    violation,
                    tried,
                });
            }
            Err(_) | Ok(_) => {}
        }
    }
    None
}
