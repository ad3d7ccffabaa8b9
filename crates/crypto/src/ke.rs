//! Key exchange: ECP groups (RFC 5903) and Curve25519 (RFC 8031).

use aws_lc_rs::agreement::{
    self, Algorithm, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey, UnparsedPublicKey, X25519,
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{Random, SecretBytes};

/// How often a scalar is drawn before the source is held to be broken. A good
/// source misses once in 2^32 for P-256 and less often for the others.
const DRAWS: usize = 64;

/// A key exchange method, numbered as IKEv2's transform type 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeMethod {
    /// 256-bit random ECP group (19).
    P256,
    /// 384-bit random ECP group (20).
    P384,
    /// 521-bit random ECP group (21).
    P521,
    /// Curve25519 (31).
    X25519,
}

impl KeMethod {
    /// Every method known here.
    pub const ALL: [Self; 4] = [Self::P256, Self::P384, Self::P521, Self::X25519];

    /// The IKEv2 transform ID (type 4).
    pub fn id(self) -> u16 {
        match self {
            Self::P256 => 19,
            Self::P384 => 20,
            Self::P521 => 21,
            Self::X25519 => 31,
        }
    }

    /// The method of that transform ID, if it is known here.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.id() == id)
    }

    /// Length in bytes of the public value in a KE payload.
    pub fn public_len(self) -> usize {
        match self {
            Self::X25519 => 32,
            nist => 2 * nist.scalar_len(),
        }
    }

    /// Length in bytes of the shared secret.
    pub fn secret_len(self) -> usize {
        // For the NIST curves it is the x coordinate alone (RFC 5903 section 9).
        self.scalar_len()
    }

    fn scalar_len(self) -> usize {
        match self {
            Self::P256 | Self::X25519 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::P256 => &ECDH_P256,
            Self::P384 => &ECDH_P384,
            Self::P521 => &ECDH_P521,
            Self::X25519 => &X25519,
        }
    }
}

/// Why a peer's public value was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeError {
    /// Not as long as the method's public values are.
    #[error("a {method:?} public value has {} bytes, got {got}", method.public_len())]
    Length {
        /// The method in use.
        method: KeMethod,
        /// Bytes given.
        got: usize,
    },
    /// Not a point of the curve, or of small order (RFC 6989, RFC 7748 6.1).
    #[error("the {0:?} public value is not usable")]
    Unusable(KeMethod),
}

/// An ephemeral private key. Used once: `agree` consumes it.
pub struct KePrivate {
    method: KeMethod,
    key: PrivateKey,
    public: Vec<u8>,
}

impl KePrivate {
    /// Draws a private key from `random`.
    ///
    /// # Panics
    /// If `random` yields no usable scalar in 64 draws: it is broken, and a key
    /// from it would be no secret.
    pub fn generate(method: KeMethod, random: &mut dyn Random) -> Self {
        let mut scalar = Zeroizing::new(vec![0; method.scalar_len()]);
        for _ in 0..DRAWS {
            random.fill(&mut scalar);
            if method == KeMethod::P521 {
                // 66 bytes are 528 bits; the order has 521.
                scalar[0] &= 1;
            }
            if let Some(private) = Self::from_scalar(method, &scalar) {
                return private;
            }
        }
        panic!("the random source yields no usable private key");
    }

    /// A private key of this very scalar; `None` if it is out of range. For
    /// published vectors.
    pub(crate) fn from_scalar(method: KeMethod, scalar: &[u8]) -> Option<Self> {
        if method != KeMethod::X25519 && scalar.iter().all(|byte| *byte == 0) {
            return None;
        }
        let key = PrivateKey::from_private_key(method.algorithm(), scalar).ok()?;
        let public = key.compute_public_key().ok()?;
        let public = match method {
            KeMethod::X25519 => public.as_ref(),
            // IKE leaves out the 0x04 of the uncompressed form (RFC 5903 7).
            _ => public.as_ref().strip_prefix(&[4])?,
        };
        (public.len() == method.public_len()).then(|| Self {
            method,
            public: public.to_vec(),
            key,
        })
    }

    /// The method this key is for.
    pub fn method(&self) -> KeMethod {
        self.method
    }

    /// The public value as the KE payload carries it.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret with the owner of `peer`.
    pub fn agree(self, peer: &[u8]) -> Result<SecretBytes, KeError> {
        let method = self.method;
        if peer.len() != method.public_len() {
            let got = peer.len();
            return Err(KeError::Length { method, got });
        }
        let mut encoded = Vec::with_capacity(1 + peer.len());
        if method != KeMethod::X25519 {
            encoded.push(4);
        }
        encoded.extend_from_slice(peer);
        let peer = UnparsedPublicKey::new(method.algorithm(), encoded);
        let unusable = KeError::Unusable(method);
        agreement::agree(&self.key, peer, unusable, |secret| {
            // A point of small order makes X25519 all zero (RFC 7748 6.1).
            if secret.iter().fold(0, |all, byte| all | byte) == 0 {
                return Err(unusable);
            }
            Ok(SecretBytes::new(secret.to_vec()))
        })
    }
}
