//! A simulated client: the real session, a few operations, and a record of what it was told.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use twinbft_client::history::{Action, End, History, Observed, OperationId};
use twinbft_client::session::{Event, Session, SessionConfig, ViewHints};
use twinbft_types::{ClientId, Nonce, Seq};

use crate::scenario::{ClientKind, ClientPlan};
use crate::service::Operation;

/// Registers that clients with a session use; those without one keep to the others.
pub const KEYS: u8 = 3;

/// An operation as its client saw it.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub client: ClientId,
    pub operation: Operation,
    pub invoked_us: u64,
    /// When the answer came; `None` while it has not.
    pub returned: Option<Returned>,
}

#[derive(Clone, Debug)]
pub struct Returned {
    pub at_us: u64,
    /// The slot of an ordered operation; the version of a fast read.
    pub slot: u64,
    pub value: Vec<u8>,
    pub fast: bool,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    pub session: Session,
    pub hints: ViewHints,
    pub id: ClientId,
    pub plan: ClientPlan,
    /// Operations still to begin.
    pub left: u32,
    pub history: Vec<Recorded>,
    /// The same operations in the history of all clients.
    ids: Vec<OperationId>,
    by_seq: BTreeMap<Seq, usize>,
    by_nonce: BTreeMap<Nonce, usize>,
    next_value: u64,
    pub timer_us: Option<u64>,
    pub failed: Option<String>,
}

impl Client {
    pub fn new(config: SessionConfig, plan: ClientPlan) -> Self {
        let id = config.client;
        Self {
            hints: ViewHints::new(config.shape),
            session: Session::new(config),
            id,
            left: plan.operations,
            plan,
            history: Vec::new(),
            ids: Vec::new(),
            by_seq: BTreeMap::new(),
            by_nonce: BTreeMap::new(),
            next_value: 1,
            timer_us: None,
            failed: None,
        }
    }

    pub fn is_honest(&self) -> bool {
        self.plan.kind == ClientKind::Honest
    }

    pub fn is_done(&self) -> bool {
        self.left == 0 && self.by_seq.is_empty() && self.by_nonce.is_empty()
    }

    /// Begins operations while there is room.
    pub fn begin(&mut self, now_us: u64, rng: &mut ChaCha8Rng, all: &mut History) {
        while self.left > 0 && self.by_seq.len() + self.by_nonce.len() < self.plan.depth {
            let key = rng.random_range(0..KEYS);
            let fast = rng.random_range(0..=255u8) < self.plan.fast_reads;
            let operation = if fast || rng.random_bool(0.3) {
                Operation::Read { key }
            } else {
                // Every third client writes few values, which return.
                let value = if self.id.key % 3 == 2 {
                    rng.random_range(1..3)
                } else {
                    u64::from(self.id.key + 1) << 32 | self.next_value
                };
                self.next_value += 1;
                Operation::Write { key, value }
            };
            let index = self.history.len();
            if fast {
                let Ok(nonce) = self.session.query(now_us, operation.encode()) else {
                    return;
                };
                self.by_nonce.insert(nonce, index);
            } else {
                let Ok(seq) = self.session.submit(now_us, operation.encode()) else {
                    return;
                };
                self.by_seq.insert(seq, index);
            }
            self.left -= 1;
            let (key, action) = action(operation);
            self.ids
                .push(all.begin(u64::from(self.id.key), vec![key].into(), action));
            self.history.push(Recorded {
                client: self.id,
                operation,
                invoked_us: now_us,
                returned: None,
            });
        }
    }

    /// Takes in what the session reports.
    pub fn drain_events(&mut self, now_us: u64, all: &mut History) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Completed {
                    seq, slot, result, ..
                } => {
                    let index = self.by_seq.remove(&seq).expect("asked for");
                    let returned = Returned {
                        at_us: now_us,
                        slot: slot.0,
                        value: result.to_vec(),
                        fast: false,
                    };
                    self.returned(index, returned, all);
                }
                Event::Failed { seq, reason } => {
                    self.by_seq.remove(&seq);
                    self.failed = Some(format!("{seq} failed: {reason:?}"));
                }
                Event::QueryCompleted {
                    nonce,
                    version,
                    result,
                } => {
                    let index = self.by_nonce.remove(&nonce).expect("asked for");
                    let returned = Returned {
                        at_us: now_us,
                        slot: version,
                        value: result.to_vec(),
                        fast: true,
                    };
                    self.returned(index, returned, all);
                }
                Event::QueryFallBack { nonce, .. } => {
                    let index = self.by_nonce.remove(&nonce).expect("asked for");
                    let operation = self.history[index].operation;
                    // When the window is full the read is given up, which a client may do.
                    if let Ok(seq) = self.session.submit(now_us, operation.encode()) {
                        self.by_seq.insert(seq, index);
                    }
                }
            }
        }
    }

    fn returned(&mut self, index: usize, returned: Returned, all: &mut History) {
        let observed = match self.history[index].operation {
            Operation::Read { .. } => Observed::Value(value(&returned.value)),
            Operation::Write { .. } => Observed::Written,
        };
        all.end(self.ids[index], End::Observed(observed));
        self.history[index].returned = Some(returned);
    }
}

/// A register that was never written reads as 0.
fn value(bytes: &[u8]) -> Option<bytes::Bytes> {
    let written = bytes.iter().any(|byte| *byte != 0);
    written.then(|| bytes::Bytes::copy_from_slice(bytes))
}

fn action(operation: Operation) -> (u8, Action) {
    match operation {
        Operation::Read { key } => (key, Action::Read),
        Operation::Write { key, value } => (
            key,
            Action::Write(bytes::Bytes::copy_from_slice(&value.to_le_bytes())),
        ),
    }
}
