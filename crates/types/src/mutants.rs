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
    /// 6: `q` votes decide with which log a view begins.
    NvQuorum,
    /// 6: a sibling endorses the log that the VIEW-CHANGEs of `Q` hosts choose, and no other.
    NvChosen,
    /// 6: `q` equal NV-ACCEPTs install a view.
    NvAcceptQuorum,
    /// 6: nothing behind the fence is ordered.
    OrderFence,
    /// 8: a set of VIEW-CHANGEs in which one member's vector of incarnations outdates another member is invalid.
    Incarnations,
    /// 9: `q` twins must name a twin before it is ignored.
    QuarantineQuorum,
    /// 3: a twin signs what it has read back, and nothing before (an ENDORSE carries its signature for every `m`).
    Release,
    /// 2: a twin's appends are in order. The postbox's rule: the simulator takes it out.
    Fifo,
    /// 2: STATE has the open tallies.
    OpenTallies,
    /// 5: JUMPs only raise `n_acc`.
    JumpRaises,
    /// 7: the answers to a fast read agree in the version. The client's rule.
    ReadVersion,
    /// 4.6: `Q` hosts have accepted what is committed.
    CommitQuorum,
    /// 6: `q` LEAVEs fence.
    FenceQuorum,
    /// 4.2: the leader of a view proposes, withdraws and beats in it, and nobody else.
    Proposer,
    /// 3: a SIGN is its sender's own.
    SignSender,
    /// 4.3: the time of a batch is after that of the one before, and near the clock.
    Timestamp,
    /// 6: the request of a FORWARD is the one that it certifies.
    ForwardRequest,
    /// 4.5: a slot that is fetched is the one of the chain.
    ChainHash,
    /// 5: a checkpoint that is fetched is one that `Q` hosts have certified.
    CheckpointAgreed,
    /// 4.9: the MACs of a reply are valid. The client's check.
    ReplyMac,
    /// 4.9: `Q` hosts agree in a result. The client's rule.
    ReplyHosts,
    /// 7: the MAC of a fast read's answer is valid. The client's check.
    AnswerMac,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 41] = [
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
        Self::NvQuorum,
        Self::NvChosen,
        Self::NvAcceptQuorum,
        Self::OrderFence,
        Self::Incarnations,
        Self::QuarantineQuorum,
        Self::Release,
        Self::Fifo,
        Self::OpenTallies,
        Self::JumpRaises,
        Self::ReadVersion,
        Self::CommitQuorum,
        Self::FenceQuorum,
        Self::Proposer,
        Self::SignSender,
        Self::Timestamp,
        Self::ForwardRequest,
        Self::ChainHash,
        Self::CheckpointAgreed,
        Self::ReplyMac,
        Self::ReplyHosts,
        Self::AnswerMac,
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

/// Whether all rules are in. What only guards against a mistake in another rule must not hide that one is out.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn all_in() -> bool {
    true
}

/// Whether all rules are in. What only guards against a mistake in another rule must not hide that one is out.
#[cfg(feature = "mutants")]
#[must_use]
pub fn all_in() -> bool {
    OUT.get().is_none()
}

/// Takes one rule out, on this thread; `None` puts it back. Answers which one was out before.
#[cfg(feature = "mutants")]
pub fn take_out(rule: Option<Rule>) -> Option<Rule> {
    OUT.replace(rule)
}
