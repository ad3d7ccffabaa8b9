//! Key newtypes and the algorithms IKEv2 and ESP need, over aws-lc-rs.
//!
//! Thin on purpose: each item is one algorithm as IKEv2 names it, with the
//! encoding IKEv2 puts on the wire. Secrets are zeroized when dropped and have
//! no `Debug`. Randomness that must be repeatable in a simulation is injected
//! through [`Random`]; signatures and long-term keys take the system's.
#![forbid(unsafe_code)]

mod aead;
mod cipher;
mod digest;
mod etm;
mod ke;
mod prf;
mod random;
mod secret;
mod signature;

pub use aead::{Aead, AeadKey, ICV_LEN, IV_LEN, KeyLengthError, OpenError, SALT_LEN};
pub use cipher::{Cipher, CipherError, CipherKey};
pub use digest::{HashAlgorithm, constant_time_eq, hmac_sha256, sha1, sha256};
pub use etm::{CBC_IV_LEN, Cbc, EtmError, EtmKey, EtmSuite, Integrity};
pub use ke::{KeError, KeMethod, KePrivate, KeResponse};
pub use prf::Prf;
pub use random::{DangerousSeededRandom, Random, SystemRandom};
pub use secret::SecretBytes;
pub use signature::{KeyType, SignatureError, SignatureScheme, SigningKey, VerifyingKey};

#[cfg(test)]
mod tests;
