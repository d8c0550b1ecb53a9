//! Rules that can be taken out, one at a time, to see that the simulator misses them (protocol.md 11, last paragraph).
//!
//! Without the feature `mutants`, which no daemon is built with, [`out`] is a constant `false` and leaves no trace.

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// 4.3: the candidate is the first PROPOSE that extends the log.
    Candidate,
    /// 4.3: an attempt number is not taken twice.
    Attempt,
    /// 4.3: a vote is about the candidate's attempt and history.
    VoteSubject,
    /// 4.4: `q` votes decide.
    VoteQuorum,
    /// 4.5: `q` equal ACCEPTs.
    AcceptQuorum,
    /// 4.5: ACCEPTs count between install and fence.
    AcceptView,
    /// 4.8: `q` equal RESULTs under equal history.
    ResultQuorum,
    /// 3: a certificate counts with `q` valid signatures.
    CertificateQuorum,
    /// 4.5: the batch of an ORDER is the one that its history covers.
    OrderHistory,
    /// 4.1: the client's MAC.
    ClientMac,
    /// 4.3: every number is inside its client's window.
    ClientWindow,
    /// 4.7: what is executed already is a no-op.
    Once,
    /// 4.7: what a view change drops is undone where it was executed tentatively.
    Undo,
    /// 4.8: a tentative reply names its view.
    ReplyView,
    /// 5: a checkpoint is of a committed slot.
    CommittedCheckpoint,
    /// 5: COMMITTED of one host lets another one jump.
    Committed,
    /// 7: a fast read waits for the log's end.
    ReadLogEnd,
    /// 6: NV-PROPOSE and its votes count between the fences.
    NvWindow,
    /// 6: whoever votes for a new view holds its log.
    HoldsChosenLog,
    /// 8: a set of VIEW-CHANGEs in which one member's vector of incarnations outdates another member is invalid.
    Incarnations,
    /// 9: `q` twins must name a twin before it is ignored.
    QuarantineQuorum,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Candidate,
        Self::Attempt,
        Self::VoteSubject,
        Self::VoteQuorum,
        Self::AcceptQuorum,
        Self::AcceptView,
        Self::ResultQuorum,
        Self::CertificateQuorum,
        Self::OrderHistory,
        Self::ClientMac,
        Self::ClientWindow,
        Self::Once,
        Self::Undo,
        Self::ReplyView,
        Self::CommittedCheckpoint,
        Self::Committed,
        Self::ReadLogEnd,
        Self::NvWindow,
        Self::HoldsChosenLog,
        Self::Incarnations,
        Self::QuarantineQuorum,
    ];
}

/// Whether this rule is taken out.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn out(_rule: Rule) -> bool {
    false
}

#[cfg(feature = "mutants")]
thread_local! {
    static OUT: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// Whether this rule is taken out.
#[cfg(feature = "mutants")]
#[must_use]
pub fn out(rule: Rule) -> bool {
    OUT.get() == Some(rule)
}

/// Takes one rule out, on this thread; `None` puts it back.
#[cfg(feature = "mutants")]
pub fn take_out(rule: Option<Rule>) {
    OUT.set(rule);
}
