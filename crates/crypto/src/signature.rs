//! Signatures by RFC 7427 (ECDSA) and RFC 8420 (Ed25519).

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA384_ASN1,
    ECDSA_P256_SHA512_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA512_ASN1, ECDSA_P521_SHA256_ASN1,
    ECDSA_P521_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ECDSA_P521_SHA512_ASN1_SIGNING, ED25519,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, ParsedPublicKey,
    VerificationAlgorithm,
};
use thiserror::Error;

use crate::{HashAlgorithm, SecretBytes};

/// Kinds of signing keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// ECDSA over P-256.
    EcdsaP256,
    /// ECDSA over P-384.
    EcdsaP384,
    /// ECDSA over P-521.
    EcdsaP521,
    /// Ed25519.
    Ed25519,
}

impl KeyType {
    /// Every kind known here.
    pub const ALL: [Self; 4] = [
        Self::EcdsaP256,
        Self::EcdsaP384,
        Self::EcdsaP521,
        Self::Ed25519,
    ];

    /// The scheme keys of this kind sign with.
    pub fn scheme(self) -> SignatureScheme {
        match self {
            Self::EcdsaP256 => SignatureScheme::EcdsaP256Sha256,
            Self::EcdsaP384 => SignatureScheme::EcdsaP384Sha384,
            Self::EcdsaP521 => SignatureScheme::EcdsaP521Sha512,
            Self::Ed25519 => SignatureScheme::Ed25519,
        }
    }

    /// What stands before the raw public key in a SubjectPublicKeyInfo: the
    /// whole DER up to the key, as the key's length is fixed (RFC 5480 with a
    /// named curve and the uncompressed form, RFC 8410).
    fn spki_prefix(self) -> &'static [u8] {
        match self {
            Self::EcdsaP256 => &[
                0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
                0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
            ],
            Self::EcdsaP384 => &[
                0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
                0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
            ],
            Self::EcdsaP521 => &[
                0x30, 0x81, 0x9b, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
                0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23, 0x03, 0x81, 0x86, 0x00,
            ],
            Self::Ed25519 => &[
                0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
            ],
        }
    }

    fn raw_public_len(self) -> usize {
        match self {
            Self::EcdsaP256 => 65,
            Self::EcdsaP384 => 97,
            Self::EcdsaP521 => 133,
            Self::Ed25519 => 32,
        }
    }

    fn ecdsa(self) -> Option<&'static EcdsaSigningAlgorithm> {
        match self {
            Self::EcdsaP256 => Some(&ECDSA_P256_SHA256_ASN1_SIGNING),
            Self::EcdsaP384 => Some(&ECDSA_P384_SHA384_ASN1_SIGNING),
            Self::EcdsaP521 => Some(&ECDSA_P521_SHA512_ASN1_SIGNING),
            Self::Ed25519 => None,
        }
    }

    /// How to check a signature with that hash. The AlgorithmIdentifiers of ECDSA name no curve,
    /// and peers sign with any hash that we have announced: libreswan takes the longest.
    fn verification(self, hash: HashAlgorithm) -> Option<&'static dyn VerificationAlgorithm> {
        use HashAlgorithm::{Identity, Sha256, Sha384, Sha512};
        Some(match (self, hash) {
            (Self::EcdsaP256, Sha256) => &ECDSA_P256_SHA256_ASN1,
            (Self::EcdsaP256, Sha384) => &ECDSA_P256_SHA384_ASN1,
            (Self::EcdsaP256, Sha512) => &ECDSA_P256_SHA512_ASN1,
            (Self::EcdsaP384, Sha256) => &ECDSA_P384_SHA256_ASN1,
            (Self::EcdsaP384, Sha384) => &ECDSA_P384_SHA384_ASN1,
            (Self::EcdsaP384, Sha512) => &ECDSA_P384_SHA512_ASN1,
            (Self::EcdsaP521, Sha256) => &ECDSA_P521_SHA256_ASN1,
            (Self::EcdsaP521, Sha384) => &ECDSA_P521_SHA384_ASN1,
            (Self::EcdsaP521, Sha512) => &ECDSA_P521_SHA512_ASN1,
            (Self::Ed25519, Identity) => &ED25519,
            _ => return None,
        })
    }
}

/// A signature scheme: a hash, and the kind of key that we sign with it. In a peer's ECDSA
/// signature the hash alone counts; the curve is that of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignatureScheme {
    /// ECDSA over P-256 with SHA-256.
    EcdsaP256Sha256,
    /// ECDSA over P-384 with SHA-384.
    EcdsaP384Sha384,
    /// ECDSA over P-521 with SHA-512.
    EcdsaP521Sha512,
    /// Ed25519.
    Ed25519,
}

impl SignatureScheme {
    /// Every scheme known here.
    pub const ALL: [Self; 4] = [
        Self::EcdsaP256Sha256,
        Self::EcdsaP384Sha384,
        Self::EcdsaP521Sha512,
        Self::Ed25519,
    ];

    /// The hash the peer must have announced in SIGNATURE_HASH_ALGORITHMS.
    pub fn hash(self) -> HashAlgorithm {
        match self {
            Self::EcdsaP256Sha256 => HashAlgorithm::Sha256,
            Self::EcdsaP384Sha384 => HashAlgorithm::Sha384,
            Self::EcdsaP521Sha512 => HashAlgorithm::Sha512,
            Self::Ed25519 => HashAlgorithm::Identity,
        }
    }

    /// The DER AlgorithmIdentifier in front of the signature (RFC 7427
    /// appendix A.3, RFC 8420 appendix A).
    pub fn algorithm_identifier(self) -> &'static [u8] {
        match self {
            Self::EcdsaP256Sha256 => &[
                0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
            ],
            Self::EcdsaP384Sha384 => &[
                0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
            ],
            Self::EcdsaP521Sha512 => &[
                0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04,
            ],
            Self::Ed25519 => &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70],
        }
    }

    /// The scheme of that DER AlgorithmIdentifier, if it is known here.
    pub fn from_algorithm_identifier(der: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scheme| scheme.algorithm_identifier() == der)
    }
}

/// Why a key or a signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The private key is not PKCS#8 of a kind known here.
    #[error("not a PKCS#8 private key of ECDSA P-256, P-384, P-521 or Ed25519")]
    PrivateKey,
    /// The public key is not a SubjectPublicKeyInfo of a kind known here.
    #[error("not a public key of ECDSA P-256, P-384, P-521 or Ed25519")]
    PublicKey,
    /// The key cannot be used with that scheme.
    #[error("the key does not fit the scheme {0:?}")]
    SchemeMismatch(SignatureScheme),
    /// The signature is not that of the message by this key.
    #[error("the signature is wrong")]
    Signature,
    /// The library could not generate, encode or sign.
    #[error("the cryptographic library failed")]
    Library,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A private signing key.
pub struct SigningKey {
    kind: KeyType,
    pair: Pair,
}

impl SigningKey {
    /// A new key from the system's randomness.
    pub fn generate(kind: KeyType) -> Result<Self, SignatureError> {
        let pair = match kind.ecdsa() {
            Some(algorithm) => EcdsaKeyPair::generate(algorithm).map(Pair::Ecdsa),
            None => Ed25519KeyPair::generate().map(Pair::Ed25519),
        };
        let pair = pair.map_err(|_| SignatureError::Library)?;
        Ok(Self { kind, pair })
    }

    /// Reads an unencrypted PKCS#8 document (DER) of any kind known here.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SignatureError> {
        for kind in KeyType::ALL {
            let pair = match kind.ecdsa() {
                Some(algorithm) => EcdsaKeyPair::from_pkcs8(algorithm, der).map(Pair::Ecdsa),
                None => Ed25519KeyPair::from_pkcs8(der).map(Pair::Ed25519),
            };
            if let Ok(pair) = pair {
                return Ok(Self { kind, pair });
            }
        }
        Err(SignatureError::PrivateKey)
    }

    /// The key as PKCS#8 version 1 (DER), which every other tool reads.
    pub fn to_pkcs8(&self) -> Result<SecretBytes, SignatureError> {
        let document = match &self.pair {
            Pair::Ecdsa(pair) => pair.to_pkcs8v1(),
            Pair::Ed25519(pair) => pair.to_pkcs8v1(),
        };
        let document = document.map_err(|_| SignatureError::Library)?;
        Ok(SecretBytes::from(document.as_ref()))
    }

    /// The kind of key.
    pub fn key_type(&self) -> KeyType {
        self.kind
    }

    /// The scheme this key signs with.
    pub fn scheme(&self) -> SignatureScheme {
        self.kind.scheme()
    }

    /// Signs `message`; ECDSA signatures are in the DER form of RFC 3279.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let signature = match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&SystemRandom::new(), message),
            Pair::Ed25519(pair) => pair.try_sign(message),
        };
        let signature = signature.map_err(|_| SignatureError::Library)?;
        Ok(signature.as_ref().to_vec())
    }

    /// The public key as it is inside a SubjectPublicKeyInfo: the uncompressed
    /// point, or the 32 bytes of Ed25519.
    pub fn public_raw(&self) -> &[u8] {
        match &self.pair {
            Pair::Ecdsa(pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
        }
    }

    /// The public key as a SubjectPublicKeyInfo (DER).
    pub fn public_spki(&self) -> Vec<u8> {
        [self.kind.spki_prefix(), self.public_raw()].concat()
    }
}

/// A public key that signatures are checked with.
#[derive(Clone)]
pub struct VerifyingKey {
    kind: KeyType,
    raw: Vec<u8>,
}

impl VerifyingKey {
    /// Reads a SubjectPublicKeyInfo (DER): named curve, uncompressed point.
    pub fn from_spki(der: &[u8]) -> Result<Self, SignatureError> {
        for kind in KeyType::ALL {
            let Some(raw) = der.strip_prefix(kind.spki_prefix()) else {
                continue;
            };
            // A first byte other than 4 would be a form the prefix did not promise.
            if raw.len() != kind.raw_public_len() || (kind.ecdsa().is_some() && raw[0] != 4) {
                break;
            }
            let own = kind.verification(kind.scheme().hash());
            let own = own.ok_or(SignatureError::PublicKey)?;
            ParsedPublicKey::new(own, raw).map_err(|_| SignatureError::PublicKey)?;
            let raw = raw.to_vec();
            return Ok(Self { kind, raw });
        }
        Err(SignatureError::PublicKey)
    }

    /// The kind of key.
    pub fn key_type(&self) -> KeyType {
        self.kind
    }

    /// The schemes this key can check.
    pub fn schemes(&self) -> Vec<SignatureScheme> {
        let fits = |s: &SignatureScheme| self.kind.verification(s.hash()).is_some();
        SignatureScheme::ALL.into_iter().filter(fits).collect()
    }

    /// Checks that `signature` is this key's over `message`.
    pub fn verify(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        let algorithm = self
            .kind
            .verification(scheme.hash())
            .ok_or(SignatureError::SchemeMismatch(scheme))?;
        ParsedPublicKey::new(algorithm, &self.raw)
            .and_then(|key| Ok(key.verify_sig(message, signature)?))
            .map_err(|_| SignatureError::Signature)
    }
}
