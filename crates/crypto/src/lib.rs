//! Key newtypes and the algorithms IKEv2 and ESP need, over aws-lc-rs.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

/// Secret bytes, overwritten when dropped.
#[derive(Clone)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes.
    pub fn new(bytes: Vec<u8>) -> SecretBytes {
        SecretBytes(Zeroizing::new(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Ciphers with a 16-byte ICV (RFC 4106, RFC 5282).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aead {
    /// 128-bit key.
    Aes128Gcm16,
    /// 256-bit key.
    Aes256Gcm16,
}
