//! Key pairs, key derivation and MACs (protocol.md 1, "Keys"; docs/wire.md has test vectors).

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use hkdf::Hkdf;
use sha2::Sha256;
use sha2::block_api::compress256;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::digest::{Digest, canonical};
use crate::ids::ProcessId;

/// Bytes of a MAC on the wire.
pub const MAC_BYTES: usize = 16;

/// HMAC-SHA256 cut to 16 bytes.
#[derive(Clone, Copy, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct Mac(pub [u8; MAC_BYTES]);

/// In constant time.
impl PartialEq for Mac {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Mac {}

/// What a MAC is about: keeps a MAC for one purpose from serving another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A client's request.
    Request,
    /// A host's statement.
    Statement,
    /// A client's fast read.
    Query,
    /// One twin's answer to a fast read.
    QueryAnswer,
}

impl Domain {
    /// The eight bytes that go before the digest.
    #[must_use]
    pub const fn tag(self) -> &'static [u8; 8] {
        match self {
            Self::Request => b"tbft/req",
            Self::Statement => b"tbft/stm",
            Self::Query => b"tbft/qry",
            Self::QueryAnswer => b"tbft/ans",
        }
    }
}

/// The public half of a key pair, as it stands in `cluster.toml` (64 hexadecimal digits).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// When it is anything else, or a point of low order, with which a secret would be shared with everybody.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| KeyError::NotHex)?;
        let probe = SecretKey::from_bytes([0x42; 32]);
        if !probe.agree(&Self(bytes)).was_contributory() {
            return Err(KeyError::LowOrder);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}…)", hex::encode(&self.0[..4]))
    }
}

/// What is wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 64 hexadecimal digits.
    #[error("a key is 64 hexadecimal digits")]
    NotHex,
    /// A weak point.
    #[error("the key is a point of low order; make a new one with `twinbft keygen`")]
    LowOrder,
}

/// The secret half of a key pair. Overwritten when dropped, never printed.
#[derive(Clone)]
pub struct SecretKey(x25519_dalek::StaticSecret);

impl SecretKey {
    /// From 32 bytes of good randomness.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(x25519_dalek::StaticSecret::from(bytes))
    }

    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| KeyError::NotHex)?;
        let key = Self::from_bytes(bytes);
        bytes.zeroize();
        Ok(key)
    }

    /// For a key file of mode 0600.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    fn agree(&self, other: &PublicKey) -> x25519_dalek::SharedSecret {
        self.0
            .diffie_hellman(&x25519_dalek::PublicKey::from(other.0))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// What a MAC key is bound to besides the two processes.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize)]
pub struct KeyContext {
    /// The cluster's id, from `cluster.toml`.
    pub cluster_id: String,
    /// Grows when keys are changed.
    pub key_epoch: u32,
}

/// Bytes of a block of SHA-256.
const BLOCK_BYTES: usize = 64;

/// The state in which SHA-256 begins (FIPS 180-4, 5.3.3).
const SHA256_BEGINNING: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// A MAC key for one direction: the states of HMAC's inner and outer hash after their first blocks, which hold the key.
/// What is authenticated fits one more block of each, and a MAC is two compressions and nothing else.
#[derive(Clone)]
pub struct MacKey {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl MacKey {
    /// The key of `sender` for `receiver`. `own` belongs to one of them and `other` to the other.
    #[must_use]
    pub fn derive(
        context: &KeyContext,
        own: &SecretKey,
        other: &PublicKey,
        sender: ProcessId,
        receiver: ProcessId,
    ) -> Self {
        Self::expand(context, &own.agree(other), sender, receiver)
    }

    /// The keys of `me` for `peer` and of `peer` for `me`; one key agreement, which is the slow part, serves both.
    pub(crate) fn derive_both(
        context: &KeyContext,
        own: &SecretKey,
        other: &PublicKey,
        me: ProcessId,
        peer: ProcessId,
    ) -> [Self; 2] {
        let shared = own.agree(other);
        [(me, peer), (peer, me)]
            .map(|(sender, receiver)| Self::expand(context, &shared, sender, receiver))
    }

    fn expand(
        context: &KeyContext,
        shared: &x25519_dalek::SharedSecret,
        sender: ProcessId,
        receiver: ProcessId,
    ) -> Self {
        let info = canonical(&(context, sender, receiver));
        let mut key = [0u8; 32];
        Hkdf::<Sha256>::new(Some(b"twinbft/v1/mac-key"), shared.as_bytes())
            .expand(&info, &mut key)
            .expect("32 bytes are a valid HKDF output");
        let prepared = Self::from_bytes(&key);
        key.zeroize();
        prepared
    }

    /// From raw bytes, for test vectors.
    #[must_use]
    pub fn from_bytes(key: &[u8; 32]) -> Self {
        Self {
            inner: after_key(key, 0x36),
            outer: after_key(key, 0x5c),
        }
    }

    /// The MAC over `tag ‖ digest`.
    #[must_use]
    pub fn mac(&self, domain: Domain, digest: Digest) -> Mac {
        let mut message = [0; 40];
        message[..8].copy_from_slice(domain.tag());
        message[8..].copy_from_slice(&digest.0);
        let inner = finish(self.inner, &message);
        let full = finish(self.outer, &inner);
        let mut cut = [0; MAC_BYTES];
        cut.copy_from_slice(&full[..MAC_BYTES]);
        Mac(cut)
    }

    /// Whether this is the MAC over `tag ‖ digest`; in constant time.
    #[must_use]
    pub fn verify(&self, domain: Domain, digest: Digest, mac: &Mac) -> bool {
        self.mac(domain, digest) == *mac
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(…)")
    }
}

/// SHA-256 after one block: the key, padded with zeros, xor `pad` (RFC 2104).
fn after_key(key: &[u8; 32], pad: u8) -> [u32; 8] {
    let mut block = [pad; BLOCK_BYTES];
    for (byte, key) in block.iter_mut().zip(key) {
        *byte ^= key;
    }
    let mut state = SHA256_BEGINNING;
    compress256(&mut state, &[block]);
    block.zeroize();
    state
}

/// The digest when one block went before and `rest`, which fits a block with its padding, is all that follows.
fn finish(mut state: [u32; 8], rest: &[u8]) -> [u8; 32] {
    const LENGTH_AT: usize = BLOCK_BYTES - 8;
    assert!(rest.len() < LENGTH_AT, "one block is enough");
    let mut block = [0; BLOCK_BYTES];
    block[..rest.len()].copy_from_slice(rest);
    block[rest.len()] = 0x80;
    let bits = 8 * (BLOCK_BYTES + rest.len()) as u64;
    block[LENGTH_AT..].copy_from_slice(&bits.to_be_bytes());
    compress256(&mut state, &[block]);
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, KeyInit, Mac as _};

    use super::*;

    #[test]
    fn a_mac_is_the_hmac_sha256_of_rfc_2104() {
        for seed in 0..64u8 {
            let key: [u8; 32] = Digest::of(&[seed]).0;
            let digest = Digest::of(&key);
            for domain in [Domain::Request, Domain::Statement, Domain::QueryAnswer] {
                let mut hmac = Hmac::<Sha256>::new_from_slice(&key).expect("of any length");
                hmac.update(domain.tag());
                hmac.update(&digest.0);
                let full = hmac.finalize().into_bytes();
                let mac = MacKey::from_bytes(&key).mac(domain, digest);
                assert_eq!(mac.0, full[..MAC_BYTES]);
            }
        }
    }
}
