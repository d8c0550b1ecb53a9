//! Visiting every state of a case.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model as _};
use twinbft_core::mutants::Rule;

use crate::cases::Case;
use crate::model::Model;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Different states.
    pub states: usize,
    /// Transitions that were taken.
    pub transitions: usize,
    /// Steps of the longest of the shortest ways to a state.
    pub depth: usize,
    /// Whether there are no others.
    pub is_complete: bool,
    /// What was broken, and the shortest way there.
    pub violation: Option<(String, Vec<String>)>,
    /// What should be reached in a case and was not: then the case shows little.
    pub missed: Vec<&'static str>,
    /// How long it took.
    pub took: Duration,
}

/// Visits states of a case breadth first, `states_max` of them at most, until one breaks an invariant.
///
/// # Panics
/// When `without` names a rule in a build without the feature `mutants`.
#[must_use]
pub fn check(case: Case, without: Option<Rule>, states_max: Option<NonZeroUsize>) -> Outcome {
    let begin = Instant::now();
    let mut builder = Model::new(case, without)
        .checker()
        .finish_when(HasDiscoveries::AnyFailures);
    if let Some(max) = states_max {
        builder = builder.target_state_count(max.get());
    }
    let checker = builder.spawn_bfs().join();
    let model = checker.model();
    let found = checker.discoveries();
    let mut missed = Vec::new();
    let mut violation = None;
    for property in model.properties() {
        let path = found.get(property.name);
        match (property.expectation.discovery_is_failure(), path) {
            (true, Some(path)) => {
                let what = path.last_state().violation.as_deref().unwrap_or_default();
                let actions = path.clone().into_actions();
                let way = actions.iter().map(|action| model.format_action(action));
                violation = Some((what.to_owned(), way.collect()));
            }
            (false, None) => missed.push(property.name),
            (true, None) | (false, Some(_)) => {}
        }
    }
    Outcome {
        states: checker.unique_state_count(),
        transitions: checker.state_count(),
        depth: checker.max_depth(),
        is_complete: violation.is_none()
            && states_max.is_none_or(|max| checker.state_count() < max.get()),
        violation,
        missed,
        took: begin.elapsed(),
    }
}
