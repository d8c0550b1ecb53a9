//! A rule that is taken out of the core is missed by the checker.
#![cfg(feature = "mutants")]

use twinbft_core::mutants::Rule;
use twinbft_model::{CASES, check};

/// The first broken invariant of a case without a rule.
fn broken(case: &str, rule: Rule) -> String {
    let case = CASES.iter().find(|c| c.name == case).expect("a case");
    let outcome = check(*case, Some(rule), None);
    let (what, way) = outcome.violation.expect("the checker misses the rule");
    assert!(!way.is_empty());
    what
}

#[test]
fn a_proposal_that_extends_nothing_is_executed_without_the_candidate_rule() {
    let what = broken("smit-leader", Rule::Candidate);
    assert!(what.contains("which no host has ordered"), "{what}");
}

#[test]
fn a_vote_about_something_else_counts_without_its_subject() {
    let what = broken("smit-follower", Rule::VoteSubject);
    assert!(what.contains("which no host has ordered"), "{what}");
}

#[test]
fn one_vote_decides_without_the_quorum() {
    let what = broken("smit-order", Rule::VoteQuorum);
    assert!(what.contains("which no host has ordered"), "{what}");
}

#[test]
fn one_accept_is_certified_without_the_quorum() {
    let what = broken("three-order", Rule::AcceptQuorum);
    assert!(what.contains("never decided Ack"), "{what}");
}

// 6: what matters while a view changes.

#[test]
fn one_twin_fences_its_host_without_the_quorum_of_leaves() {
    let what = broken("behind-next-follower", Rule::FenceQuorum);
    assert!(what.contains("never decided ViewChange"), "{what}");
}

#[test]
fn a_view_begins_with_a_log_that_nobody_holds_without_that_rule() {
    let what = broken("behind-next", Rule::HoldsChosenLog);
    assert!(what.contains("that it does not hold"), "{what}");
}

#[test]
fn a_leader_alone_says_where_a_view_begins_without_the_quorum() {
    let what = broken("behind-next", Rule::NvQuorum);
    assert!(what.contains("invariant 2"), "{what}");
}

#[test]
fn a_view_begins_with_any_log_when_siblings_do_not_check_it() {
    let what = broken("behind-next", Rule::NvChosen);
    assert!(what.contains("invariant"), "{what}");
}

#[test]
fn one_twin_installs_a_view_without_the_quorum() {
    let what = broken("halfway-backup", Rule::NvAcceptQuorum);
    assert!(what.contains("invariant 2"), "{what}");
}

#[test]
fn what_one_twin_alone_certifies_is_believed_without_its_quorum() {
    let what = broken("behind-backup", Rule::CertificateQuorum);
    assert!(what.contains("invariant 1"), "{what}");
}
