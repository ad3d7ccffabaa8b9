//! AES-GCM as ESP and IKEv2 use it (RFC 4106, RFC 5282).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use thiserror::Error;

/// Length in bytes of the salt at the end of the keying material.
pub const SALT_LEN: usize = 4;
/// Length in bytes of the explicit IV in the packet.
pub const IV_LEN: usize = 8;
/// Length in bytes of the integrity check value.
pub const ICV_LEN: usize = 16;

/// An authenticated cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aead {
    /// ENCR_AES_GCM_16 with a 128-bit key.
    Aes128Gcm16,
    /// ENCR_AES_GCM_16 with a 256-bit key.
    Aes256Gcm16,
}

impl Aead {
    /// Every cipher known here.
    pub const ALL: [Self; 2] = [Self::Aes128Gcm16, Self::Aes256Gcm16];

    /// The IKEv2 transform ID (type 1).
    pub fn id(self) -> u16 {
        20
    }

    /// Key length in bits, as the Key Length attribute has it.
    pub fn key_bits(self) -> u16 {
        match self {
            Self::Aes128Gcm16 => 128,
            Self::Aes256Gcm16 => 256,
        }
    }

    /// The cipher of that transform ID and Key Length attribute, if known here.
    pub fn from_transform(id: u16, key_bits: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|aead| aead.id() == id && aead.key_bits() == key_bits)
    }

    /// Key length in bytes, without the salt.
    pub fn key_len(self) -> usize {
        usize::from(self.key_bits()) / 8
    }

    /// Length in bytes to take from the key schedule: key, then salt.
    pub fn keymat_len(self) -> usize {
        self.key_len() + SALT_LEN
    }
}

/// Keying material of the wrong length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{aead:?} takes {} bytes of keying material, got {got}", aead.keymat_len())]
pub struct KeyLengthError {
    /// The cipher asked for.
    pub aead: Aead,
    /// Bytes given.
    pub got: usize,
}

/// The integrity check failed: wrong key, or the packet was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the integrity check failed")]
pub struct OpenError;

/// A key with its salt, ready to be used by any number of threads.
pub struct AeadKey {
    key: LessSafeKey,
    salt: [u8; SALT_LEN],
    aead: Aead,
}

impl AeadKey {
    /// Takes `aead.keymat_len()` bytes: key, then salt.
    pub fn new(aead: Aead, keymat: &[u8]) -> Result<Self, KeyLengthError> {
        let wrong = KeyLengthError {
            aead,
            got: keymat.len(),
        };
        if keymat.len() != aead.keymat_len() {
            return Err(wrong);
        }
        let (key, salt) = keymat.split_at(aead.key_len());
        let algorithm = match aead {
            Aead::Aes128Gcm16 => &AES_128_GCM,
            Aead::Aes256Gcm16 => &AES_256_GCM,
        };
        let unbound = UnboundKey::new(algorithm, key).map_err(|_| wrong)?;
        Ok(Self {
            key: LessSafeKey::new(unbound),
            salt: salt.try_into().map_err(|_| wrong)?,
            aead,
        })
    }

    /// The cipher this key is for.
    pub fn aead(&self) -> Aead {
        self.aead
    }

    /// Encrypts `buf` in place and returns the integrity check value.
    ///
    /// An `iv` must never be used twice with one key: the caller counts.
    ///
    /// # Panics
    /// If `buf` is longer than one nonce may cover (64 GiB).
    #[inline]
    pub fn seal_in_place(&self, iv: [u8; IV_LEN], aad: &[u8], buf: &mut [u8]) -> [u8; ICV_LEN] {
        let tag = self
            .key
            .seal_in_place_separate_tag(self.nonce(iv), Aad::from(aad), buf)
            .expect("a packet is far shorter than 64 GiB");
        let mut icv = [0; ICV_LEN];
        icv.copy_from_slice(tag.as_ref());
        icv
    }

    /// Checks and decrypts `buf` in place. On failure `buf` holds no plaintext.
    #[inline]
    pub fn open_in_place(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        buf: &mut [u8],
        tag: &[u8; ICV_LEN],
    ) -> Result<(), OpenError> {
        self.key
            .open_in_place_separate_tag(self.nonce(iv), Aad::from(aad), tag, buf)
            .map(|_| ())
            .map_err(|_| OpenError)
    }

    #[inline]
    fn nonce(&self, iv: [u8; IV_LEN]) -> Nonce {
        let mut nonce = [0; SALT_LEN + IV_LEN];
        nonce[..SALT_LEN].copy_from_slice(&self.salt);
        nonce[SALT_LEN..].copy_from_slice(&iv);
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Drop for AeadKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.salt);
    }
}
