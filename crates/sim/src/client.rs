//! A simulated client: the real session, a few operations, and a record of what it was told.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use twinbft_client::session::{Event, Session, SessionConfig};
use twinbft_types::{ClientId, Nonce, Seq};

use crate::service::Operation;

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
    pub id: ClientId,
    /// Operations still to begin.
    pub left: u32,
    pub depth: usize,
    fast_reads: u8,
    pub history: Vec<Recorded>,
    by_seq: BTreeMap<Seq, usize>,
    by_nonce: BTreeMap<Nonce, usize>,
    next_value: u64,
    pub timer_us: Option<u64>,
    pub failed: Option<String>,
}

impl Client {
    pub fn new(config: SessionConfig, left: u32, depth: usize, fast_reads: u8) -> Self {
        let id = config.client;
        Self {
            session: Session::new(config),
            id,
            left,
            depth,
            fast_reads,
            history: Vec::new(),
            by_seq: BTreeMap::new(),
            by_nonce: BTreeMap::new(),
            next_value: 1,
            timer_us: None,
            failed: None,
        }
    }

    pub fn is_done(&self) -> bool {
        self.left == 0 && self.by_seq.is_empty() && self.by_nonce.is_empty()
    }

    /// Begins operations while there is room.
    pub fn begin(&mut self, now_us: u64, rng: &mut ChaCha8Rng) {
        while self.left > 0 && self.by_seq.len() + self.by_nonce.len() < self.depth {
            let key = rng.random_range(0..3);
            let fast = rng.random_range(0..=255u8) < self.fast_reads;
            let operation = if fast || rng.random_bool(0.3) {
                Operation::Read { key }
            } else {
                let value = u64::from(self.id.key) << 32 | self.next_value;
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
            self.history.push(Recorded {
                client: self.id,
                operation,
                invoked_us: now_us,
                returned: None,
            });
        }
    }

    /// Takes in what the session reports.
    pub fn drain_events(&mut self, now_us: u64) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Completed {
                    seq, slot, result, ..
                } => {
                    let index = self.by_seq.remove(&seq).expect("asked for");
                    self.returned(index, now_us, slot.0, result.to_vec(), false);
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
                    self.returned(index, now_us, version, result.to_vec(), true);
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

    fn returned(&mut self, index: usize, at_us: u64, slot: u64, value: Vec<u8>, fast: bool) {
        self.history[index].returned = Some(Returned {
            at_us,
            slot,
            value,
            fast,
        });
    }
}
