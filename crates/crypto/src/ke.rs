//! Key exchange: ECP groups (RFC 5903), Curve25519 (RFC 8031), MODP-2048
//! (RFC 3526) and ML-KEM (FIPS 203, draft-ietf-ipsecme-ikev2-mlkem).
//!
//! One shape for both kinds: the initiator makes a [`KePrivate`] and sends its
//! public value; the responder gives that to [`KeMethod::respond`]; the initiator gives
//! the answer to [`KePrivate::agree`]. With Diffie-Hellman both values are
//! public keys; with ML-KEM the first is an encapsulation key, the second a
//! ciphertext.

mod ml_kem;
mod modp;

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
    /// 2048-bit MODP group (14), for old peers.
    Modp2048,
    /// 256-bit random ECP group (19).
    P256,
    /// 384-bit random ECP group (20).
    P384,
    /// 521-bit random ECP group (21).
    P521,
    /// Curve25519 (31).
    X25519,
    /// ML-KEM-768 (36). Its keys and ciphertexts come from the library's own
    /// randomness: no injected source reaches it.
    MlKem768,
    /// ML-KEM-1024 (37). See [`KeMethod::MlKem768`] on randomness.
    MlKem1024,
}

impl KeMethod {
    /// Every method known here.
    pub const ALL: [Self; 7] = [
        Self::Modp2048,
        Self::P256,
        Self::P384,
        Self::P521,
        Self::X25519,
        Self::MlKem768,
        Self::MlKem1024,
    ];

    /// The IKEv2 transform ID (type 4).
    pub fn id(self) -> u16 {
        match self {
            Self::Modp2048 => 14,
            Self::P256 => 19,
            Self::P384 => 20,
            Self::P521 => 21,
            Self::X25519 => 31,
            Self::MlKem768 => 36,
            Self::MlKem1024 => 37,
        }
    }

    /// The method of that transform ID, if it is known here.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.id() == id)
    }

    /// Whether it is a KEM, where the two public values differ in kind.
    pub fn is_kem(self) -> bool {
        matches!(self, Self::MlKem768 | Self::MlKem1024)
    }

    /// Length in bytes of the initiator's public value in a KE payload.
    pub fn public_len(self) -> usize {
        match self {
            Self::Modp2048 => modp::LEN,
            Self::P256 => 64,
            Self::P384 => 96,
            Self::P521 => 132,
            Self::X25519 => 32,
            Self::MlKem768 => 1184,
            Self::MlKem1024 => 1568,
        }
    }

    /// Length in bytes of the responder's public value in a KE payload.
    pub fn response_len(self) -> usize {
        match self {
            Self::MlKem768 => 1088,
            other => other.public_len(),
        }
    }

    /// Length in bytes of the shared secret.
    pub fn secret_len(self) -> usize {
        match self {
            // Padded to the length of the prime (RFC 7296 section 2.14).
            Self::Modp2048 => modp::LEN,
            // The x coordinate alone (RFC 5903 section 9).
            Self::P384 => 48,
            Self::P521 => 66,
            Self::P256 | Self::X25519 | Self::MlKem768 | Self::MlKem1024 => 32,
        }
    }

    /// The responder's side: answers the initiator's public value.
    ///
    /// # Panics
    /// As [`KePrivate::generate`].
    pub fn respond(self, initiator: &[u8], random: &mut dyn Random) -> Result<KeResponse, KeError> {
        if self.is_kem() {
            check_len(self, self.public_len(), initiator)?;
            let (public, secret) =
                ml_kem::encapsulate(self, initiator).ok_or(KeError::Unusable(self))?;
            return Ok(KeResponse { public, secret });
        }
        let private = KePrivate::generate(self, random);
        let public = private.public().to_vec();
        let secret = private.agree(initiator)?;
        Ok(KeResponse { public, secret })
    }

    /// Length in bytes of what is drawn for a private key; 0 for a KEM.
    fn scalar_len(self) -> usize {
        match self {
            Self::Modp2048 => modp::EXPONENT_LEN,
            Self::MlKem768 | Self::MlKem1024 => 0,
            curve => curve.secret_len(),
        }
    }

    fn curve(self) -> Option<&'static Algorithm> {
        match self {
            Self::P256 => Some(&ECDH_P256),
            Self::P384 => Some(&ECDH_P384),
            Self::P521 => Some(&ECDH_P521),
            Self::X25519 => Some(&X25519),
            Self::Modp2048 | Self::MlKem768 | Self::MlKem1024 => None,
        }
    }
}

/// Why a peer's public value was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeError {
    /// Not as long as the method's public values are.
    #[error("a {method:?} public value has {want} bytes, got {got}")]
    Length {
        /// The method in use.
        method: KeMethod,
        /// Bytes that it must have.
        want: usize,
        /// Bytes given.
        got: usize,
    },
    /// Not a point of the curve, of small order, or not a reduced element
    /// (RFC 6989, RFC 7748 6.1, FIPS 203 7.2).
    #[error("the {0:?} public value is not usable")]
    Unusable(KeMethod),
}

/// What the responder of a key exchange has: the value to send, and the secret.
#[derive(Clone)]
pub struct KeResponse {
    /// The public value for the responder's KE payload.
    pub public: Vec<u8>,
    /// The shared secret.
    pub secret: SecretBytes,
}

enum Secret {
    Curve(PrivateKey),
    Modp(modp::Exponent),
    MlKem(ml_kem::Decapsulation),
}

/// An ephemeral private key, for one exchange. A computation whose outcome is lost may be done
/// again with it; another exchange wants another key.
pub struct KePrivate {
    method: KeMethod,
    secret: Secret,
    public: Vec<u8>,
}

impl KePrivate {
    /// Draws a private key from `random` (ML-KEM: from the library's own).
    ///
    /// # Panics
    /// If `random` yields no usable scalar in 64 draws, or the library cannot
    /// make a key: the source is broken, and a key from it would be no secret.
    pub fn generate(method: KeMethod, random: &mut dyn Random) -> Self {
        if method.is_kem() {
            let (secret, public) = ml_kem::generate(method).expect("the library makes keys");
            return Self {
                method,
                secret: Secret::MlKem(secret),
                public,
            };
        }
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

    /// A private key of this very scalar; `None` if it is out of range, or the
    /// method has no scalars. For published vectors.
    pub(crate) fn from_scalar(method: KeMethod, scalar: &[u8]) -> Option<Self> {
        if method == KeMethod::Modp2048 {
            let (exponent, public) = modp::Exponent::new(scalar)?;
            return Some(Self {
                method,
                secret: Secret::Modp(exponent),
                public,
            });
        }
        if method != KeMethod::X25519 && scalar.iter().all(|byte| *byte == 0) {
            return None;
        }
        let key = PrivateKey::from_private_key(method.curve()?, scalar).ok()?;
        let public = key.compute_public_key().ok()?;
        let public = match method {
            KeMethod::X25519 => public.as_ref(),
            // IKE leaves out the 0x04 of the uncompressed form (RFC 5903 7).
            _ => public.as_ref().strip_prefix(&[4])?,
        };
        (public.len() == method.public_len()).then(|| Self {
            method,
            public: public.to_vec(),
            secret: Secret::Curve(key),
        })
    }

    /// A decapsulation key in the expanded form of FIPS 203. For published
    /// vectors: it does not know its public value.
    #[cfg(test)]
    pub(crate) fn from_decapsulation_key(method: KeMethod, bytes: &[u8]) -> Option<Self> {
        Some(Self {
            method,
            secret: Secret::MlKem(ml_kem::from_bytes(method, bytes)?),
            public: Vec::new(),
        })
    }

    /// The method this key is for.
    pub fn method(&self) -> KeMethod {
        self.method
    }

    /// The public value as the initiator's KE payload carries it.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret with the owner of `peer`: the responder's public value
    /// or ciphertext. With Diffie-Hellman either side may call it.
    ///
    /// A wrong ML-KEM ciphertext of the right length yields a secret that the
    /// peer does not have (implicit rejection, FIPS 203 6.3): authentication
    /// fails then.
    pub fn agree(&self, peer: &[u8]) -> Result<SecretBytes, KeError> {
        let method = self.method;
        check_len(method, method.response_len(), peer)?;
        let unusable = KeError::Unusable(method);
        match &self.secret {
            Secret::Curve(key) => agree_on_curve(method, key, peer),
            Secret::Modp(exponent) => exponent.agree(peer).ok_or(unusable),
            Secret::MlKem(key) => ml_kem::decapsulate(key, peer).ok_or(unusable),
        }
    }
}

fn check_len(method: KeMethod, want: usize, value: &[u8]) -> Result<(), KeError> {
    let got = value.len();
    if got != want {
        return Err(KeError::Length { method, want, got });
    }
    Ok(())
}

fn agree_on_curve(method: KeMethod, key: &PrivateKey, peer: &[u8]) -> Result<SecretBytes, KeError> {
    let unusable = KeError::Unusable(method);
    let mut encoded = Vec::with_capacity(1 + peer.len());
    if method != KeMethod::X25519 {
        encoded.push(4);
    }
    encoded.extend_from_slice(peer);
    let peer = UnparsedPublicKey::new(method.curve().ok_or(unusable)?, encoded);
    agreement::agree(key, peer, unusable, |secret| {
        // A point of small order makes X25519 all zero (RFC 7748 6.1).
        if secret.iter().fold(0, |all, byte| all | byte) == 0 {
            return Err(unusable);
        }
        Ok(SecretBytes::new(secret.to_vec()))
    })
}
