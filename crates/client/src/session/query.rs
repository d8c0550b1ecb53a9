//! What the twins have answered to one fast read (protocol.md 7).

use bytes::Bytes;
use twinbft_types::mutants::{Rule, out as is_out};
use twinbft_types::{Digest, HostId, QueryAnswer, ReplicaId, Shape, View};

use super::fault::{FaultCounters, ReplicaFault};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    view: Option<View>,
    version: u64,
    result: Digest,
}

/// How a fast read stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum QueryState {
    /// More answers can still make it agree.
    Open,
    /// `Q` hosts agree.
    Done {
        /// The slot of the last write to what was read.
        version: u64,
        /// What was read.
        result: Bytes,
    },
    /// Whatever the silent twins say, `Q` hosts will not agree.
    Impossible,
}

/// The first answer of each twin. Bounded: one word and at most one result for each twin.
#[derive(Clone, Debug)]
pub(super) struct QueryTally {
    shape: Shape,
    words: Vec<Option<Word>>,
    results: Vec<(Digest, Bytes)>,
}

impl QueryTally {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            words: vec![None; usize::from(shape.hosts()) * usize::from(shape.twins())],
            results: Vec::new(),
        }
    }

    fn index(&self, replica: ReplicaId) -> usize {
        usize::from(replica.host.0) * usize::from(self.shape.twins()) + usize::from(replica.twin.0)
    }

    /// Takes in an answer that was verified, from a replica of the cluster.
    pub(super) fn handle_answer(
        &mut self,
        answer: &QueryAnswer,
        result: &Bytes,
        faults: &mut FaultCounters,
    ) -> QueryState {
        let word = Word {
            view: answer.view,
            version: answer.version,
            result: answer.result,
        };
        let index = self.index(answer.replica);
        match self.words[index] {
            Some(old) if old != word => faults.add(ReplicaFault::ContradictingAnswer),
            Some(_) => {}
            None => {
                self.words[index] = Some(word);
                if !self.results.iter().any(|(known, _)| *known == word.result) {
                    self.results.push((word.result, result.clone()));
                }
            }
        }
        self.state()
    }

    fn state(&self) -> QueryState {
        let quorum = self.shape.host_quorum();
        let mut reachable = self.hosts_for(None).1 >= quorum;
        for word in self.words.iter().flatten() {
            let (agreed, possible) = self.hosts_for(Some(word));
            if agreed >= quorum {
                let (_, result) = self
                    .results
                    .iter()
                    .find(|(digest, _)| *digest == word.result)
                    .expect("the result of each word is kept with it");
                return QueryState::Done {
                    version: word.version,
                    result: result.clone(),
                };
            }
            reachable |= possible >= quorum;
        }
        if reachable {
            QueryState::Open
        } else {
            QueryState::Impossible
        }
    }

    /// How many hosts have `q` twins that said this word, and how many may yet; `None` is a word not heard so far.
    fn hosts_for(&self, word: Option<&Word>) -> (usize, usize) {
        let q = self.shape.twin_quorum();
        let (mut agreed, mut possible) = (0, 0);
        for host in self.shape.all_hosts() {
            let words = self.words_of(host);
            let silent = words.iter().filter(|w| w.is_none()).count();
            let said = word.map_or(0, |word| {
                let same = |other: &Word| {
                    let version = other.version == word.version || is_out(Rule::ReadVersion);
                    other.result == word.result && other.view == word.view && version
                };
                words.iter().flatten().filter(|other| same(other)).count()
            });
            agreed += usize::from(said >= q);
            possible += usize::from(said + silent >= q);
        }
        (agreed, possible)
    }

    fn words_of(&self, host: HostId) -> &[Option<Word>] {
        let twins = usize::from(self.shape.twins());
        let first = usize::from(host.0) * twins;
        &self.words[first..first + twins]
    }
}
