//! Pseudo-random functions and prf+ (RFC 7296 sections 2.13 and 3.3.2, RFC 4868).

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::SecretBytes;

/// A pseudo-random function of IKEv2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256.
    HmacSha256,
    /// PRF_HMAC_SHA2_384.
    HmacSha384,
    /// PRF_HMAC_SHA2_512.
    HmacSha512,
}

impl Prf {
    /// Every function known here.
    pub const ALL: [Self; 3] = [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512];

    /// The IKEv2 transform ID (type 2).
    pub fn id(self) -> u16 {
        match self {
            Self::HmacSha256 => 5,
            Self::HmacSha384 => 6,
            Self::HmacSha512 => 7,
        }
    }

    /// The function of that transform ID, if it is known here.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|prf| prf.id() == id)
    }

    /// Length of the output in bytes.
    pub fn output_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// Preferred key length in bytes: that of the output (RFC 7296 2.13).
    pub fn key_len(self) -> usize {
        self.output_len()
    }

    /// prf(key, parts in order). A key of any length is taken.
    pub fn compute(self, key: &[u8], parts: &[&[u8]]) -> SecretBytes {
        let mut context = hmac::Context::with_key(&self.key(key));
        for part in parts {
            context.update(part);
        }
        SecretBytes::new(context.sign().as_ref().to_vec())
    }

    /// prf+(key, seed parts in order), the first `len` bytes (RFC 7296 2.13).
    ///
    /// # Panics
    /// If `len` is more than 255 outputs: prf+ is not defined beyond, and no
    /// key schedule of IKEv2 comes near.
    pub fn plus(self, key: &[u8], seed: &[&[u8]], len: usize) -> SecretBytes {
        assert!(
            len <= 255 * self.output_len(),
            "prf+ ends after 255 outputs"
        );
        let key = self.key(key);
        // Room for whole outputs, so that no growth leaves a copy behind.
        let mut out = Vec::with_capacity(len + self.output_len());
        let mut last = Zeroizing::new(Vec::with_capacity(self.output_len()));
        let mut count = 0u8;
        while out.len() < len {
            count += 1;
            let mut context = hmac::Context::with_key(&key);
            context.update(&last);
            for part in seed {
                context.update(part);
            }
            context.update(&[count]);
            last.clear();
            last.extend_from_slice(context.sign().as_ref());
            out.extend_from_slice(&last);
        }
        let mut out = Zeroizing::new(out);
        SecretBytes::new({
            // `truncate` alone would leave the tail of the last output in memory.
            zeroize::Zeroize::zeroize(&mut out[len..]);
            out.truncate(len);
            std::mem::take(&mut *out)
        })
    }

    fn key(self, key: &[u8]) -> hmac::Key {
        let algorithm = match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        };
        hmac::Key::new(algorithm, key)
    }
}
