//! Hashes, and the comparison that leaks no position.

use aws_lc_rs::{constant_time, digest, hmac};

/// Hash algorithms as the IKEv2 registry numbers them (RFC 7427 section 4;
/// `Identity` is RFC 8420).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum HashAlgorithm {
    /// SHA2-256.
    Sha256 = 2,
    /// SHA2-384.
    Sha384 = 3,
    /// SHA2-512.
    Sha512 = 4,
    /// The message is signed as it is (Ed25519).
    Identity = 5,
}

impl HashAlgorithm {
    /// Every algorithm known here, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Sha384, Self::Sha512, Self::Identity];

    /// The number in SIGNATURE_HASH_ALGORITHMS.
    pub fn id(self) -> u16 {
        self as u16
    }

    /// The algorithm of that number, if it is known here.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.id() == id)
    }
}

/// SHA-1 of the parts in order. Only for NAT detection (RFC 7296 2.23) and
/// CERTREQ key hashes (3.7), where IKEv2 fixes it and nothing rests on it.
pub fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(hash(&digest::SHA1_FOR_LEGACY_USE_ONLY, parts).as_ref());
    out
}

/// SHA-256 of the parts in order.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(hash(&digest::SHA256, parts).as_ref());
    out
}

/// HMAC-SHA-256 of the parts in order (RFC 2104, RFC 4231).
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Whether both are equal, in a time that depends on the lengths alone.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

fn hash(algorithm: &'static digest::Algorithm, parts: &[&[u8]]) -> digest::Digest {
    let mut context = digest::Context::new(algorithm);
    for part in parts {
        context.update(part);
    }
    context.finish()
}
