//! What an IKE or ESP SA protects with: an AEAD, or AES-CBC with an HMAC.

use thiserror::Error;

use crate::{
    Aead, AeadKey, CBC_IV_LEN, Cbc, EtmError, EtmKey, EtmSuite, ICV_LEN, IV_LEN, Integrity,
    KeyLengthError, OpenError,
};

/// An encryption algorithm with all that it needs beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cipher {
    /// AES-GCM, which authenticates by itself.
    Gcm(Aead),
    /// AES-CBC and an HMAC, for old peers.
    Cbc(EtmSuite),
}

impl Cipher {
    /// AES-GCM-16 with a 128-bit key.
    pub const AES_128_GCM: Self = Self::Gcm(Aead::Aes128Gcm16);
    /// AES-GCM-16 with a 256-bit key.
    pub const AES_256_GCM: Self = Self::Gcm(Aead::Aes256Gcm16);

    /// Every cipher known here, the best first.
    pub fn all() -> impl Iterator<Item = Self> {
        let cbc = [Cbc::Aes256, Cbc::Aes128].into_iter().flat_map(|cbc| {
            let with = move |integrity| Self::Cbc(EtmSuite { cbc, integrity });
            Integrity::ALL.into_iter().map(with)
        });
        [Self::AES_256_GCM, Self::AES_128_GCM]
            .into_iter()
            .chain(cbc)
    }

    /// The IKEv2 transform ID (type 1).
    pub fn id(self) -> u16 {
        match self {
            Self::Gcm(aead) => aead.id(),
            Self::Cbc(suite) => suite.cbc.id(),
        }
    }

    /// Key length in bits, as the Key Length attribute has it.
    pub fn key_bits(self) -> u16 {
        match self {
            Self::Gcm(aead) => aead.key_bits(),
            Self::Cbc(suite) => suite.cbc.key_bits(),
        }
    }

    /// The integrity algorithm beside it (type 3); an AEAD has none.
    pub fn integrity(self) -> Option<Integrity> {
        match self {
            Self::Gcm(_) => None,
            Self::Cbc(suite) => Some(suite.integrity),
        }
    }

    /// Bytes of SK_e: the key, and the salt of an AEAD (RFC 5282 section 7.1).
    pub fn encryption_len(self) -> usize {
        match self {
            Self::Gcm(aead) => aead.keymat_len(),
            Self::Cbc(suite) => suite.cbc.key_len(),
        }
    }

    /// Bytes of SK_a; an AEAD has none.
    pub fn integrity_len(self) -> usize {
        self.integrity().map_or(0, Integrity::key_len)
    }

    /// Bytes of keying material for one direction of an ESP SA: the encryption
    /// key, then the integrity key (RFC 7296 section 2.17).
    pub fn keymat_len(self) -> usize {
        self.encryption_len() + self.integrity_len()
    }

    /// Bytes of the IV in a message or packet.
    pub fn iv_len(self) -> usize {
        match self {
            Self::Gcm(_) => IV_LEN,
            Self::Cbc(_) => CBC_IV_LEN,
        }
    }

    /// Bytes of the integrity check value.
    pub fn icv_len(self) -> usize {
        match self {
            Self::Gcm(_) => ICV_LEN,
            Self::Cbc(suite) => suite.integrity.icv_len(),
        }
    }

    /// What is encrypted is padded to a multiple of so many bytes; 1 is no
    /// padding.
    pub fn block_len(self) -> usize {
        match self {
            Self::Gcm(_) => 1,
            Self::Cbc(_) => CBC_IV_LEN,
        }
    }

    /// The name that people and other daemons know: `AES_GCM_16_256`,
    /// `AES_CBC_128/HMAC_SHA2_256_128`.
    pub fn name(self) -> &'static str {
        use {Cbc::*, Integrity::*};
        match self {
            Self::Gcm(Aead::Aes128Gcm16) => "AES_GCM_16_128",
            Self::Gcm(Aead::Aes256Gcm16) => "AES_GCM_16_256",
            Self::Cbc(EtmSuite { cbc, integrity }) => match (cbc, integrity) {
                (Aes128, HmacSha256_128) => "AES_CBC_128/HMAC_SHA2_256_128",
                (Aes128, HmacSha384_192) => "AES_CBC_128/HMAC_SHA2_384_192",
                (Aes128, HmacSha512_256) => "AES_CBC_128/HMAC_SHA2_512_256",
                (Aes256, HmacSha256_128) => "AES_CBC_256/HMAC_SHA2_256_128",
                (Aes256, HmacSha384_192) => "AES_CBC_256/HMAC_SHA2_384_192",
                (Aes256, HmacSha512_256) => "AES_CBC_256/HMAC_SHA2_512_256",
            },
        }
    }
}

/// Why a cipher's key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CipherError {
    /// Keying material of the wrong length for an AEAD.
    #[error(transparent)]
    Gcm(#[from] KeyLengthError),
    /// The same for AES-CBC with an HMAC.
    #[error(transparent)]
    Cbc(#[from] EtmError),
}

/// The keys of a cipher for one direction, ready for any number of threads.
pub enum CipherKey {
    /// AES-GCM.
    Gcm(AeadKey),
    /// AES-CBC and an HMAC: several times as large, and rare.
    Cbc(Box<EtmKey>),
}

impl CipherKey {
    /// Takes [`Cipher::keymat_len`] bytes: the encryption key with its salt, or
    /// the encryption key and the integrity key.
    pub fn new(cipher: Cipher, keymat: &[u8]) -> Result<Self, CipherError> {
        Ok(match cipher {
            Cipher::Gcm(aead) => Self::Gcm(AeadKey::new(aead, keymat)?),
            Cipher::Cbc(suite) => {
                let (cipher, integrity) = keymat
                    .split_at_checked(suite.cbc.key_len())
                    .unwrap_or((keymat, &[]));
                Self::Cbc(Box::new(EtmKey::new(suite, cipher, integrity)?))
            }
        })
    }

    /// The cipher this key is for.
    pub fn cipher(&self) -> Cipher {
        match self {
            Self::Gcm(key) => Cipher::Gcm(key.aead()),
            Self::Cbc(key) => Cipher::Cbc(key.suite()),
        }
    }

    /// Encrypts `text` in place, and writes the IV before and the integrity
    /// check value over `before`, IV and `text`. The three are as long as the
    /// cipher says. No `number` may come twice with one key.
    pub fn seal_in_place(
        &self,
        number: u64,
        before: &[u8],
        iv: &mut [u8],
        text: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), EtmError> {
        match self {
            Self::Gcm(key) => {
                let (Some(iv), Some(icv)) = (iv.first_chunk_mut(), icv.first_chunk_mut()) else {
                    return Err(EtmError::Room);
                };
                *iv = number.to_be_bytes();
                *icv = key.seal_in_place(*iv, before, text);
                Ok(())
            }
            Self::Cbc(key) => {
                let iv = iv.first_chunk_mut().ok_or(EtmError::Room)?;
                *iv = key.iv(number)?;
                key.seal_in_place(*iv, before, text, &[], icv)
            }
        }
    }

    /// Checks and decrypts `text` in place; the reverse of sealing.
    pub fn open_in_place(
        &self,
        before: &[u8],
        iv: &[u8],
        text: &mut [u8],
        icv: &[u8],
    ) -> Result<(), OpenError> {
        match self {
            Self::Gcm(key) => {
                let iv = iv.try_into().map_err(|_| OpenError)?;
                let icv = icv.try_into().map_err(|_| OpenError)?;
                key.open_in_place(iv, before, text, icv)
            }
            Self::Cbc(key) => {
                let iv = iv.try_into().map_err(|_| OpenError)?;
                key.open_in_place(iv, before, text, &[], icv)
            }
        }
    }
}
