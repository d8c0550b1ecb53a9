//! The two messages of a connection: the twin says whom it expects, the broker answers with the log
//! and the ring, or with why not. Fixed length, little endian.

use crate::vchan::{ORDER_MAX, ORDER_MIN};

/// Version of these messages and of what they hand over.
pub const PROTOCOL_VERSION: u32 = 1;
/// Length of the twin's message.
pub const GREETING_BYTES: usize = 32;
/// Length of the broker's message.
pub const WELCOME_BYTES: usize = 64;
/// Descriptors that come with an accepting welcome: log, ring, bell to the broker, bell from it.
pub const WELCOME_FDS: usize = 4;
/// Longest reason that a broker gives when it closes a channel later.
pub const FAREWELL_BYTES_MAX: usize = 256;

const GREETING_MAGIC: u64 = 0x3147_5849_5754_4254;
const WELCOME_MAGIC: u64 = 0x3157_5849_5754_4254;

/// What a twin says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// `PROTOCOL_VERSION` of its build.
    pub version: u32,
    /// See `cluster_tag`.
    pub cluster_tag: u64,
    /// The host that it expects.
    pub host: u32,
    /// The twin that it is.
    pub twin: u8,
}

/// Why a broker turns a connection away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The first bytes were no greeting.
    NoGreeting = 1,
    /// Another protocol version.
    Version = 2,
    /// Another cluster.
    Cluster = 3,
    /// Another host.
    Host = 4,
    /// The socket belongs to another twin.
    Twin = 5,
    /// The process runs under another user than the configured one.
    User = 6,
    /// The broker has no resources left.
    Resources = 7,
}

impl Rejection {
    /// For counters and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoGreeting => "no-greeting",
            Self::Version => "version",
            Self::Cluster => "cluster",
            Self::Host => "host",
            Self::Twin => "twin",
            Self::User => "user",
            Self::Resources => "resources",
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        let all = [
            Self::NoGreeting,
            Self::Version,
            Self::Cluster,
            Self::Host,
            Self::Twin,
            Self::User,
            Self::Resources,
        ];
        all.into_iter().find(|rejection| *rejection as u32 == code)
    }
}

/// What the broker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// `PROTOCOL_VERSION` of its build.
    pub version: u32,
    /// `None`: come in.
    pub rejection: Option<Rejection>,
    /// See `cluster_tag`.
    pub cluster_tag: u64,
    /// The host.
    pub host: u32,
    /// The twin whose socket this is.
    pub twin: u8,
    /// `m`.
    pub twins: u8,
    /// Size of the append ring is `2^ring_order`.
    pub ring_order: u16,
    /// Epoch of the log.
    pub epoch: u64,
    /// The number that the twin's next append must have.
    pub next_number: u64,
}

/// Bytes that are no message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first word is wrong.
    #[error("these bytes are no postbox message")]
    Magic,
    /// A field has an impossible value.
    #[error("{0} has an impossible value")]
    Field(&'static str),
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(*self.0[at..].first_chunk().expect("inside a fixed message"))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(*self.0[at..].first_chunk().expect("inside a fixed message"))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(*self.0[at..].first_chunk().expect("inside a fixed message"))
    }
}

impl Greeting {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        bytes[0..8].copy_from_slice(&GREETING_MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.host.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.cluster_tag.to_le_bytes());
        bytes[24] = self.twin;
        bytes
    }

    /// Reads the message. What a later version puts elsewhere is not looked at.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Result<Self, WireError> {
        let fields = Fields(bytes);
        if fields.u64(0) != GREETING_MAGIC {
            return Err(WireError::Magic);
        }
        Ok(Self {
            version: fields.u32(8),
            host: fields.u32(12),
            cluster_tag: fields.u64(16),
            twin: fields.u8(24),
        })
    }
}

impl Welcome {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> [u8; WELCOME_BYTES] {
        let mut bytes = [0; WELCOME_BYTES];
        bytes[0..8].copy_from_slice(&WELCOME_MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(
            &self
                .rejection
                .map_or(0, |rejection| rejection as u32)
                .to_le_bytes(),
        );
        bytes[16..24].copy_from_slice(&self.cluster_tag.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.host.to_le_bytes());
        bytes[28] = self.twin;
        bytes[29] = self.twins;
        bytes[30..32].copy_from_slice(&self.ring_order.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.next_number.to_le_bytes());
        bytes
    }

    /// Reads the message. Of another version only that it is one is known for sure.
    ///
    /// # Errors
    /// It is none, or a field is impossible.
    pub fn decode(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, WireError> {
        let fields = Fields(bytes);
        if fields.u64(0) != WELCOME_MAGIC {
            return Err(WireError::Magic);
        }
        let code = fields.u32(12);
        let rejection = match code {
            0 => None,
            code => Some(Rejection::from_code(code).ok_or(WireError::Field("rejection"))?),
        };
        let ring_order = fields.u16(30);
        if rejection.is_none() && !(ORDER_MIN..=ORDER_MAX).contains(&ring_order) {
            return Err(WireError::Field("ring_order"));
        }
        Ok(Self {
            version: fields.u32(8),
            rejection,
            cluster_tag: fields.u64(16),
            host: fields.u32(24),
            twin: fields.u8(28),
            twins: fields.u8(29),
            ring_order,
            epoch: fields.u64(32),
            next_number: fields.u64(40),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: [u8; 32], rest: [u8; 32], code in 0u32..10, order: u16) {
            let _ = Greeting::decode(&bytes);
            let mut welcome = [0; WELCOME_BYTES];
            welcome[..32].copy_from_slice(&bytes);
            welcome[32..].copy_from_slice(&rest);
            prop_assert!(Welcome::decode(&welcome).is_err());
            welcome[0..8].copy_from_slice(&WELCOME_MAGIC.to_le_bytes());
            welcome[12..16].copy_from_slice(&code.to_le_bytes());
            welcome[30..32].copy_from_slice(&order.to_le_bytes());
            if let Ok(decoded) = Welcome::decode(&welcome) {
                prop_assert!(decoded.rejection.is_some() || (12..=20).contains(&decoded.ring_order));
            }
        }

        #[test]
        fn messages_round_trip(version: u32, host: u32, cluster_tag: u64, twin: u8, code in 0u32..8, ring_order in 12u16..=20, epoch: u64, next_number: u64) {
            let greeting = Greeting { version, cluster_tag, host, twin };
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
            let rejection = Rejection::from_code(code);
            let welcome = Welcome { version, rejection, cluster_tag, host, twin, twins: 2, ring_order, epoch, next_number };
            prop_assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
        }
    }
}
