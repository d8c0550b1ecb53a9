//! Making a scenario smaller: each edit takes something out of it or calms something down.

use std::fmt;
use std::str::FromStr;

use twinbft_core::Execution;
use twinbft_types::ReplicaId;

use super::{Fault, Scenario};

/// One thing less. On the command line: `fault:2`, `double:1/0`, `client:3`, `operations:4`, `depth`, `fast-reads`,
/// `loss`, `duplication`, `delay`, `batch`, `pipeline`, `committed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Without the fault of this number in the seed's own scenario.
    Fault(usize),
    /// This twin is correct.
    Double(ReplicaId),
    /// Without the client of this key.
    Client(u32),
    /// At most so many operations of each client.
    Operations(u32),
    /// One operation at a time.
    Depth,
    /// No fast reads.
    FastReads,
    /// No loss.
    Loss,
    /// No duplication.
    Duplication,
    /// Short delays.
    Delay,
    /// One request a batch.
    Batch,
    /// One slot at a time.
    Pipeline,
    /// Only what is committed is executed.
    Committed,
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(number) => write!(f, "fault:{number}"),
            Self::Double(r) => write!(f, "double:{}/{}", r.host.0, r.twin.0),
            Self::Client(key) => write!(f, "client:{key}"),
            Self::Operations(most) => write!(f, "operations:{most}"),
            Self::Depth => f.write_str("depth"),
            Self::FastReads => f.write_str("fast-reads"),
            Self::Loss => f.write_str("loss"),
            Self::Duplication => f.write_str("duplication"),
            Self::Delay => f.write_str("delay"),
            Self::Batch => f.write_str("batch"),
            Self::Pipeline => f.write_str("pipeline"),
            Self::Committed => f.write_str("committed"),
        }
    }
}

impl FromStr for Edit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no edit; see `twinbft-sim seed --help`");
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let number = || value.parse::<u32>().map_err(|_| wrong());
        Ok(match name {
            "fault" => Self::Fault(number()? as usize),
            "double" => {
                let (host, twin) = value.split_once('/').ok_or_else(wrong)?;
                let host = host.parse().map_err(|_| wrong())?;
                Self::Double(ReplicaId::new(host, twin.parse().map_err(|_| wrong())?))
            }
            "client" => Self::Client(number()?),
            "operations" => Self::Operations(number()?),
            "depth" => Self::Depth,
            "fast-reads" => Self::FastReads,
            "loss" => Self::Loss,
            "duplication" => Self::Duplication,
            "delay" => Self::Delay,
            "batch" => Self::Batch,
            "pipeline" => Self::Pipeline,
            "committed" => Self::Committed,
            _ => return Err(wrong()),
        })
    }
}

impl Scenario {
    /// This scenario with all of these taken out.
    #[must_use]
    pub fn edited(&self, edits: &[Edit]) -> Self {
        let mut smaller = self.clone();
        let faults = self.faults.iter().enumerate();
        smaller.faults = faults
            .filter(|(number, _)| !edits.contains(&Edit::Fault(*number)))
            .map(|(_, fault)| *fault)
            .collect();
        for edit in edits {
            smaller.apply(*edit);
        }
        smaller
    }

    fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::Fault(_) => {}
            Edit::Double(replica) => {
                self.doubles.remove(&replica);
            }
            Edit::Client(key) => self.clients.retain(|c| c.key != key),
            Edit::Operations(most) => {
                for client in &mut self.clients {
                    client.operations = client.operations.min(most);
                }
            }
            Edit::Depth => self.clients.iter_mut().for_each(|c| c.depth = 1),
            Edit::FastReads => self.clients.iter_mut().for_each(|c| c.fast_reads = 0),
            Edit::Loss => self.loss = 0,
            Edit::Duplication => self.duplication = 0,
            Edit::Delay => self.delay_us_max = 50,
            Edit::Batch => self.tuning.batch_requests_max = 1,
            Edit::Pipeline => self.tuning.pipeline_depth = 1,
            Edit::Committed => self.tuning.execution = Execution::Committed,
        }
    }

    /// Everything that could be taken out of this scenario, the largest pieces first. `original` is the one that
    /// fault numbers refer to.
    #[must_use]
    pub fn possible_edits(&self, original: &[Fault]) -> Vec<Edit> {
        let mut edits: Vec<Edit> = Vec::new();
        let left = |fault: &Fault| self.faults.contains(fault);
        let faults = original.iter().enumerate();
        edits.extend(faults.filter(|(_, f)| left(f)).map(|(n, _)| Edit::Fault(n)));
        edits.extend(self.doubles.keys().map(|r| Edit::Double(*r)));
        if self.clients.len() > 1 {
            edits.extend(self.clients.iter().map(|c| Edit::Client(c.key)));
        }
        let most = self.clients.iter().map(|c| c.operations).max().unwrap_or(0);
        edits.extend([1, most / 2, most.saturating_sub(1)].map(Edit::Operations));
        let calmer = [
            (self.loss > 0, Edit::Loss),
            (self.duplication > 0, Edit::Duplication),
            (self.delay_us_max > 50, Edit::Delay),
            (
                self.clients.iter().any(|c| c.fast_reads > 0),
                Edit::FastReads,
            ),
            (self.clients.iter().any(|c| c.depth > 1), Edit::Depth),
            (self.tuning.batch_requests_max > 1, Edit::Batch),
            (self.tuning.pipeline_depth > 1, Edit::Pipeline),
            (
                self.tuning.execution == Execution::Tentative,
                Edit::Committed,
            ),
        ];
        edits.extend(calmer.into_iter().filter(|(on, _)| *on).map(|(_, e)| e));
        edits.retain(|e| !matches!(e, Edit::Operations(n) if *n == 0 || *n >= most));
        edits
    }
}
