//! Kinds of signing keys.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaSigningAlgorithm,
};

use super::SignatureScheme;

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
    /// RSA, for peers that bring their own keys.
    Rsa,
}

impl KeyType {
    /// Every kind that a node may be given; RSA is not among them.
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
            Self::Rsa => SignatureScheme::RsaPssSha256,
        }
    }

    /// Every scheme that signatures of such a key are taken in, its own first.
    pub fn schemes(self) -> &'static [SignatureScheme] {
        match self {
            Self::EcdsaP256 => &[
                SignatureScheme::EcdsaP256Sha256,
                SignatureScheme::EcdsaP256Sha384,
                SignatureScheme::EcdsaP256Sha512,
            ],
            Self::EcdsaP384 => &[
                SignatureScheme::EcdsaP384Sha384,
                SignatureScheme::EcdsaP384Sha256,
                SignatureScheme::EcdsaP384Sha512,
            ],
            Self::EcdsaP521 => &[
                SignatureScheme::EcdsaP521Sha512,
                SignatureScheme::EcdsaP521Sha256,
                SignatureScheme::EcdsaP521Sha384,
            ],
            Self::Ed25519 => &[SignatureScheme::Ed25519],
            Self::Rsa => &[
                SignatureScheme::RsaPssSha256,
                SignatureScheme::RsaPssSha384,
                SignatureScheme::RsaPssSha512,
                SignatureScheme::RsaPkcs1Sha256,
                SignatureScheme::RsaPkcs1Sha384,
                SignatureScheme::RsaPkcs1Sha512,
            ],
        }
    }

    /// What stands before the raw public key in a SubjectPublicKeyInfo: the
    /// whole DER up to the key, as the key's length is fixed (RFC 5480 with a
    /// named curve and the uncompressed form, RFC 8410). `None` for RSA.
    pub(super) fn spki_prefix(self) -> Option<&'static [u8]> {
        Some(match self {
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
            Self::Rsa => return None,
        })
    }

    /// Length in bytes of a raw public key; 0 for RSA, where it varies.
    pub(super) fn raw_public_len(self) -> usize {
        match self {
            Self::EcdsaP256 => 65,
            Self::EcdsaP384 => 97,
            Self::EcdsaP521 => 133,
            Self::Ed25519 => 32,
            Self::Rsa => 0,
        }
    }

    pub(super) fn ecdsa(self) -> Option<&'static EcdsaSigningAlgorithm> {
        match self {
            Self::EcdsaP256 => Some(&ECDSA_P256_SHA256_ASN1_SIGNING),
            Self::EcdsaP384 => Some(&ECDSA_P384_SHA384_ASN1_SIGNING),
            Self::EcdsaP521 => Some(&ECDSA_P521_SHA512_ASN1_SIGNING),
            Self::Ed25519 | Self::Rsa => None,
        }
    }
}
