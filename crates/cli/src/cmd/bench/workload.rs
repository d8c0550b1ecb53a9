//! What is asked of the service, the same for every target.

use bytes::{BufMut as _, Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use twinbft_client::kv;
use twinbft_types::kv::{Get, Put, operation};

/// The same operations in every run.
const SEED: u64 = 0x7477_696e;

/// Which service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The service `null`: no state, replies of a size
    Null,
    /// The service `kv`: reads and writes
    Kv,
}

/// The shape of the operations.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Which service.
    pub kind: Kind,
    /// Bytes of a request; of `kv` those of the value.
    pub request_bytes: usize,
    /// Bytes of a reply that `null` is asked for.
    pub reply_bytes: u32,
    /// How many of a hundred operations of `kv` read.
    pub read_percent: u8,
    /// How many keys of `kv` there are.
    pub keys: u32,
}

/// One operation, for any target to translate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Of `null`.
    Null,
    /// The value of a key.
    Read(u32),
    /// A new value for a key.
    Write(u32),
}

/// Makes operations.
#[derive(Debug)]
pub struct Workload {
    shape: Shape,
    random: StdRng,
    null: Bytes,
    value: Bytes,
}

impl Workload {
    /// Of this shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self {
            random: StdRng::seed_from_u64(SEED),
            null: null_operation(shape.request_bytes, shape.reply_bytes),
            value: Bytes::from(vec![b'v'; shape.request_bytes]),
            shape,
        }
    }

    /// The next operation.
    pub fn next(&mut self) -> Operation {
        match self.shape.kind {
            Kind::Null => Operation::Null,
            Kind::Kv => {
                let key = self.random.random_range(0..self.shape.keys);
                if self.random.random_range(0..100) < self.shape.read_percent {
                    Operation::Read(key)
                } else {
                    Operation::Write(key)
                }
            }
        }
    }

    /// Its bytes for a replicated service.
    #[must_use]
    pub fn encode(&self, operation: &Operation) -> Bytes {
        match operation {
            Operation::Null => self.null.clone(),
            Operation::Read(key) => kv::encode(operation::Kind::Get(Get {
                key: key_name(*key),
            })),
            Operation::Write(key) => kv::encode(operation::Kind::Put(Put {
                key: key_name(*key),
                value: self.value.clone(),
            })),
        }
    }

    /// Whether these bytes answer that operation; an answer that says "failed" is none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, operation: &Operation, result: &Bytes) -> Result<(), String> {
        match operation {
            Operation::Null if result.len() == self.shape.reply_bytes as usize => Ok(()),
            Operation::Null => Err(format!(
                "a reply of {} bytes instead of {}; is the service null?",
                result.len(),
                self.shape.reply_bytes
            )),
            Operation::Read(_) | Operation::Write(_) => kv::decode_result(result)
                .map(|_| ())
                .map_err(|error| error.to_string()),
        }
    }

    /// The value that writes write.
    #[must_use]
    pub const fn value(&self) -> &Bytes {
        &self.value
    }

    /// The shape of the operations.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }
}

/// The name of a key, the same for every target.
#[must_use]
pub fn key_name(key: u32) -> Bytes {
    format!("bench/{key:08}").into()
}

/// Four bytes with the size of the reply and padding; nothing at all where nothing is asked for, which `null` answers
/// with its default of nothing.
fn null_operation(request_bytes: usize, reply_bytes: u32) -> Bytes {
    if request_bytes == 0 && reply_bytes == 0 {
        return Bytes::new();
    }
    let mut operation = BytesMut::with_capacity(request_bytes.max(4));
    operation.put_u32_le(reply_bytes);
    operation.resize(request_bytes.max(4), 0);
    operation.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_of_null_has_its_size_and_names_the_reply() {
        assert!(null_operation(0, 0).is_empty());
        assert_eq!(null_operation(0, 4096), 4096u32.to_le_bytes()[..]);
        let large = null_operation(4096, 0);
        assert_eq!((large.len(), &large[..4]), (4096, &[0; 4][..]));
    }

    #[test]
    fn reads_have_their_share() {
        let mut workload = Workload::new(Shape {
            kind: Kind::Kv,
            request_bytes: 10,
            reply_bytes: 0,
            read_percent: 30,
            keys: 100,
        });
        let reads = (0..10_000)
            .filter(|_| matches!(workload.next(), Operation::Read(_)))
            .count();
        assert!((2_700..3_300).contains(&reads), "{reads}");
    }

    #[test]
    fn an_answer_of_another_service_is_an_error() {
        let workload = Workload::new(Shape {
            kind: Kind::Null,
            request_bytes: 0,
            reply_bytes: 8,
            read_percent: 0,
            keys: 1,
        });
        assert!(
            workload
                .check(&Operation::Null, &Bytes::from_static(b"12345678"))
                .is_ok()
        );
        assert!(workload.check(&Operation::Null, &Bytes::new()).is_err());
        assert!(
            workload
                .check(&Operation::Read(1), &Bytes::from_static(b"\xff"))
                .is_err()
        );
    }
}
