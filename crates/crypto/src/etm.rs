//! AES-CBC with HMAC-SHA2, encrypt-then-MAC, for old peers (RFC 3602, RFC 4868;
//! RFC 7296 section 3.14 and RFC 4303 section 3.3 say what the MAC covers).

use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
    UnboundCipherKey,
};
use aws_lc_rs::hmac;
use thiserror::Error;

use crate::{OpenError, SecretBytes, constant_time_eq, hmac_sha256};

/// Length in bytes of the IV in the packet, and of a block.
pub const CBC_IV_LEN: usize = 16;

/// Tells the key for IVs from all else that is made of a suite's keys. A packet,
/// which the same keys see, is longer.
const IV_LABEL: &[u8] = b"testudo cbc iv";

/// An integrity algorithm (IKEv2's transform type 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Integrity {
    /// AUTH_HMAC_SHA2_256_128 (12).
    HmacSha256_128,
    /// AUTH_HMAC_SHA2_384_192 (13).
    HmacSha384_192,
    /// AUTH_HMAC_SHA2_512_256 (14).
    HmacSha512_256,
}

impl Integrity {
    /// Every algorithm known here.
    pub const ALL: [Self; 3] = [
        Self::HmacSha256_128,
        Self::HmacSha384_192,
        Self::HmacSha512_256,
    ];

    /// The IKEv2 transform ID (type 3).
    pub fn id(self) -> u16 {
        match self {
            Self::HmacSha256_128 => 12,
            Self::HmacSha384_192 => 13,
            Self::HmacSha512_256 => 14,
        }
    }

    /// The algorithm of that transform ID, if it is known here.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.id() == id)
    }

    /// Key length in bytes: that of the hash (RFC 4868 section 2.1.1).
    pub fn key_len(self) -> usize {
        2 * self.icv_len()
    }

    /// Length in bytes of the integrity check value: half the hash.
    pub fn icv_len(self) -> usize {
        match self {
            Self::HmacSha256_128 => 16,
            Self::HmacSha384_192 => 24,
            Self::HmacSha512_256 => 32,
        }
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256_128 => hmac::HMAC_SHA256,
            Self::HmacSha384_192 => hmac::HMAC_SHA384,
            Self::HmacSha512_256 => hmac::HMAC_SHA512,
        }
    }
}

/// ENCR_AES_CBC with a key length (IKEv2's transform type 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cbc {
    /// With a 128-bit key.
    Aes128,
    /// With a 256-bit key.
    Aes256,
}

impl Cbc {
    /// Every cipher known here.
    pub const ALL: [Self; 2] = [Self::Aes128, Self::Aes256];

    /// The IKEv2 transform ID (type 1).
    pub fn id(self) -> u16 {
        12
    }

    /// Key length in bits, as the Key Length attribute has it.
    pub fn key_bits(self) -> u16 {
        match self {
            Self::Aes128 => 128,
            Self::Aes256 => 256,
        }
    }

    /// The cipher of that transform ID and Key Length attribute, if known here.
    pub fn from_transform(id: u16, key_bits: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|cbc| cbc.id() == id && cbc.key_bits() == key_bits)
    }

    /// Key length in bytes.
    pub fn key_len(self) -> usize {
        usize::from(self.key_bits()) / 8
    }
}

/// A cipher and an integrity algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtmSuite {
    /// The cipher.
    pub cbc: Cbc,
    /// The integrity algorithm.
    pub integrity: Integrity,
}

/// Why a key was refused, or a message not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EtmError {
    /// A key of the wrong length.
    #[error(
        "{suite:?} takes a cipher key of {} and an integrity key of {} bytes, got {cipher} and {integrity}",
        suite.cbc.key_len(),
        suite.integrity.key_len()
    )]
    KeyLength {
        /// The suite asked for.
        suite: EtmSuite,
        /// Bytes given for the cipher.
        cipher: usize,
        /// Bytes given for the integrity algorithm.
        integrity: usize,
    },
    /// The plaintext is not padded to whole blocks.
    #[error("a plaintext of {0} bytes is not whole blocks of 16")]
    Padding(usize),
    /// The room for the IV or the integrity check value has the wrong length.
    #[error("the room for the IV or the integrity check value has the wrong length")]
    Room,
    /// The library failed.
    #[error("the cryptographic library failed")]
    Library,
}

/// The keys of a suite for one direction, ready for any number of threads.
pub struct EtmKey {
    suite: EtmSuite,
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
    mac: hmac::Key,
    /// Makes IVs.
    ivs: EncryptingKey,
}

impl EtmKey {
    /// Takes the cipher's key (SK_e) and the integrity algorithm's (SK_a).
    pub fn new(suite: EtmSuite, cipher: &[u8], integrity: &[u8]) -> Result<Self, EtmError> {
        if cipher.len() != suite.cbc.key_len() || integrity.len() != suite.integrity.key_len() {
            return Err(EtmError::KeyLength {
                suite,
                cipher: cipher.len(),
                integrity: integrity.len(),
            });
        }
        let algorithm = match suite.cbc {
            Cbc::Aes128 => &AES_128,
            Cbc::Aes256 => &AES_256,
        };
        let unbound = || UnboundCipherKey::new(algorithm, cipher);
        let library = |_| EtmError::Library;
        let all = SecretBytes::new([cipher, integrity].concat());
        let iv_key = SecretBytes::from(&hmac_sha256(all.as_bytes(), &[IV_LABEL])[..CBC_IV_LEN]);
        let ivs = UnboundCipherKey::new(&AES_128, iv_key.as_bytes());
        Ok(Self {
            suite,
            encrypting: unbound().and_then(EncryptingKey::cbc).map_err(library)?,
            decrypting: unbound().and_then(DecryptingKey::cbc).map_err(library)?,
            mac: hmac::Key::new(suite.integrity.algorithm(), integrity),
            ivs: ivs.and_then(EncryptingKey::ecb).map_err(library)?,
        })
    }

    /// The suite these keys are for.
    pub fn suite(&self) -> EtmSuite {
        self.suite
    }

    /// An IV for the `number`th message or packet: one that nobody without the
    /// keys can foretell, and another for each number (RFC 3602 section 3; NIST
    /// SP 800-38A appendix C has the way, here under a key of its own). So no
    /// randomness is needed for a packet, and none can fail.
    pub fn iv(&self, number: u64) -> Result<[u8; CBC_IV_LEN], EtmError> {
        let mut block = u128::from(number).to_be_bytes();
        self.ivs
            .less_safe_encrypt(&mut block, EncryptionContext::None)
            .map_err(|_| EtmError::Library)?;
        Ok(block)
    }

    /// Encrypts `buf` in place, whole blocks with the padding already in, and
    /// writes the integrity check value over `before`, `iv`, the ciphertext
    /// and `after` into `icv`. For IKE `before` is the message from its header to the IV;
    /// for ESP it is SPI and sequence number, and `after` the high half of an
    /// extended sequence number.
    ///
    /// The `iv` must be one that nobody can foretell: [`EtmKey::iv`] makes such.
    pub fn seal_in_place(
        &self,
        iv: [u8; CBC_IV_LEN],
        before: &[u8],
        buf: &mut [u8],
        after: &[u8],
        icv: &mut [u8],
    ) -> Result<(), EtmError> {
        if icv.len() != self.suite.integrity.icv_len() {
            return Err(EtmError::Room);
        }
        if !buf.len().is_multiple_of(CBC_IV_LEN) {
            return Err(EtmError::Padding(buf.len()));
        }
        self.encrypting
            .less_safe_encrypt(buf, EncryptionContext::Iv128(iv.into()))
            .map_err(|_| EtmError::Library)?;
        let tag = self.mac(&iv, before, buf, after);
        icv.copy_from_slice(&tag.as_ref()[..icv.len()]);
        Ok(())
    }

    /// Checks `icv` in constant time, and only then decrypts `buf` in place.
    /// Padding is the caller's; what it says is authentic by then. On failure
    /// `buf` holds what it held.
    pub fn open_in_place(
        &self,
        iv: [u8; CBC_IV_LEN],
        before: &[u8],
        buf: &mut [u8],
        after: &[u8],
        icv: &[u8],
    ) -> Result<(), OpenError> {
        let tag = self.mac(&iv, before, buf, after);
        let good = &tag.as_ref()[..self.suite.integrity.icv_len()];
        if !constant_time_eq(good, icv) || !buf.len().is_multiple_of(CBC_IV_LEN) {
            return Err(OpenError);
        }
        self.decrypting
            .decrypt(buf, DecryptionContext::Iv128(iv.into()))
            .map(|_| ())
            .map_err(|_| OpenError)
    }

    fn mac(&self, iv: &[u8], before: &[u8], buf: &[u8], after: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        for part in [before, iv, buf, after] {
            context.update(part);
        }
        context.sign()
    }
}
