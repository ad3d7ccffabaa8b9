//! Signature schemes and how RFC 7427 names them on the wire.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P256_SHA512_ASN1, ECDSA_P384_SHA256_ASN1,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA512_ASN1, ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA384_ASN1,
    ECDSA_P521_SHA512_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
    VerificationAlgorithm,
};

use crate::HashAlgorithm;

/// A signature scheme: key kind, padding and hash.
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
    /// RSASSA-PSS with SHA-256, MGF1 with SHA-256 and 32 bytes of salt.
    RsaPssSha256,
    /// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt.
    RsaPssSha384,
    /// RSASSA-PSS with SHA-512, MGF1 with SHA-512 and 64 bytes of salt.
    RsaPssSha512,
    /// ECDSA over P-256 with SHA-384; for verifying only.
    EcdsaP256Sha384,
    /// ECDSA over P-256 with SHA-512; for verifying only.
    EcdsaP256Sha512,
    /// ECDSA over P-384 with SHA-256; for verifying only.
    EcdsaP384Sha256,
    /// ECDSA over P-384 with SHA-512; for verifying only.
    EcdsaP384Sha512,
    /// ECDSA over P-521 with SHA-256; for verifying only.
    EcdsaP521Sha256,
    /// ECDSA over P-521 with SHA-384; for verifying only.
    EcdsaP521Sha384,
    /// RSASSA-PKCS1-v1_5 with SHA-256; for verifying only.
    RsaPkcs1Sha256,
    /// RSASSA-PKCS1-v1_5 with SHA-384; for verifying only.
    RsaPkcs1Sha384,
    /// RSASSA-PKCS1-v1_5 with SHA-512; for verifying only.
    RsaPkcs1Sha512,
}

// Every byte of these is checked against the documents in `tests/examples.rs`.

/// ecdsa-with-SHA256, without parameters (RFC 7427, A.3.2; RFC 5758, 3.2).
const ECDSA_SHA256: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];
/// ecdsa-with-SHA384 (RFC 7427, A.3.3).
const ECDSA_SHA384: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
];
/// ecdsa-with-SHA512 (RFC 7427, A.3.4).
const ECDSA_SHA512: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04,
];
/// id-Ed25519, without parameters (RFC 8420, A.1; RFC 8410, 3).
const ED25519_OID: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

/// sha256, sha384 and sha512WithRSAEncryption with their NULL (RFC 7427, A.1.2 to A.1.4).
const fn pkcs1(last: u8) -> [u8; 15] {
    [
        0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, last, 0x05, 0x00,
    ]
}

/// id-RSASSA-PSS with all that DER writes: hash, MGF1 with the same hash, salt
/// of the hash's length (RFC 4055, 3.1). DER leaves out the trailer, which is
/// the default; the example of RFC 7427, A.4.3, writes it, and is taken too.
const fn pss(hash: u8, salt: u8) -> [u8; 67] {
    [
        0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x34,
        0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, hash,
        0x05, 0x00, 0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01,
        0x01, 0x08, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, hash,
        0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, salt,
    ]
}

static PKCS1_SHA256: [u8; 15] = pkcs1(0x0b);
static PKCS1_SHA384: [u8; 15] = pkcs1(0x0c);
static PKCS1_SHA512: [u8; 15] = pkcs1(0x0d);
static PSS_SHA256: [u8; 67] = pss(1, 32);
static PSS_SHA384: [u8; 67] = pss(2, 48);
static PSS_SHA512: [u8; 67] = pss(3, 64);

impl SignatureScheme {
    /// Every scheme known here; those that keys sign with come first.
    pub const ALL: [Self; 16] = [
        Self::EcdsaP256Sha256,
        Self::EcdsaP384Sha384,
        Self::EcdsaP521Sha512,
        Self::Ed25519,
        Self::RsaPssSha256,
        Self::RsaPssSha384,
        Self::RsaPssSha512,
        Self::EcdsaP256Sha384,
        Self::EcdsaP256Sha512,
        Self::EcdsaP384Sha256,
        Self::EcdsaP384Sha512,
        Self::EcdsaP521Sha256,
        Self::EcdsaP521Sha384,
        Self::RsaPkcs1Sha256,
        Self::RsaPkcs1Sha384,
        Self::RsaPkcs1Sha512,
    ];

    /// The hash the peer must have announced in SIGNATURE_HASH_ALGORITHMS.
    pub fn hash(self) -> HashAlgorithm {
        match self {
            Self::EcdsaP256Sha256
            | Self::EcdsaP384Sha256
            | Self::EcdsaP521Sha256
            | Self::RsaPssSha256
            | Self::RsaPkcs1Sha256 => HashAlgorithm::Sha256,
            Self::EcdsaP384Sha384
            | Self::EcdsaP256Sha384
            | Self::EcdsaP521Sha384
            | Self::RsaPssSha384
            | Self::RsaPkcs1Sha384 => HashAlgorithm::Sha384,
            Self::EcdsaP521Sha512
            | Self::EcdsaP256Sha512
            | Self::EcdsaP384Sha512
            | Self::RsaPssSha512
            | Self::RsaPkcs1Sha512 => HashAlgorithm::Sha512,
            Self::Ed25519 => HashAlgorithm::Identity,
        }
    }

    /// The DER AlgorithmIdentifier in front of the signature (RFC 7427
    /// appendix A, RFC 8420 appendix A).
    pub fn algorithm_identifier(self) -> &'static [u8] {
        match self {
            Self::EcdsaP256Sha256 | Self::EcdsaP384Sha256 | Self::EcdsaP521Sha256 => ECDSA_SHA256,
            Self::EcdsaP384Sha384 | Self::EcdsaP256Sha384 | Self::EcdsaP521Sha384 => ECDSA_SHA384,
            Self::EcdsaP521Sha512 | Self::EcdsaP256Sha512 | Self::EcdsaP384Sha512 => ECDSA_SHA512,
            Self::Ed25519 => ED25519_OID,
            Self::RsaPssSha256 => &PSS_SHA256,
            Self::RsaPssSha384 => &PSS_SHA384,
            Self::RsaPssSha512 => &PSS_SHA512,
            Self::RsaPkcs1Sha256 => &PKCS1_SHA256,
            Self::RsaPkcs1Sha384 => &PKCS1_SHA384,
            Self::RsaPkcs1Sha512 => &PKCS1_SHA512,
        }
    }

    /// The scheme of that DER AlgorithmIdentifier, if it is known here. With
    /// ECDSA, where the identifier names the hash alone, it is that of the
    /// curve as strong as the hash; `VerifyingKey::scheme_for` knows the curve.
    pub fn from_algorithm_identifier(der: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scheme| scheme.is_identified_by(der))
    }

    /// Whether `der` names this scheme. RSASSA-PSS may be written in several
    /// ways (RFC 4055 section 2.1: absent parameters of a hash mean NULL; peers
    /// write the default trailer out); all else must be the very bytes, so that
    /// no other salt, hash, mask or default of SHA-1 gets through.
    pub(super) fn is_identified_by(self, der: &[u8]) -> bool {
        der == self.algorithm_identifier()
            || self
                .pss_parameters()
                .is_some_and(|(hash, salt)| (0..8).any(|way| pss_written(hash, salt, way) == der))
    }

    /// Last arc of the hash's OID, and the salt's length in bytes.
    fn pss_parameters(self) -> Option<(u8, u8)> {
        match self {
            Self::RsaPssSha256 => Some((1, 32)),
            Self::RsaPssSha384 => Some((2, 48)),
            Self::RsaPssSha512 => Some((3, 64)),
            _ => None,
        }
    }

    /// How an RSA key signs with this scheme; `None` if it does not.
    pub(super) fn rsa_signing(self) -> Option<&'static dyn RsaEncoding> {
        match self {
            Self::RsaPssSha256 => Some(&RSA_PSS_SHA256),
            Self::RsaPssSha384 => Some(&RSA_PSS_SHA384),
            Self::RsaPssSha512 => Some(&RSA_PSS_SHA512),
            _ => None,
        }
    }

    pub(super) fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::EcdsaP256Sha256 => &ECDSA_P256_SHA256_ASN1,
            Self::EcdsaP256Sha384 => &ECDSA_P256_SHA384_ASN1,
            Self::EcdsaP256Sha512 => &ECDSA_P256_SHA512_ASN1,
            Self::EcdsaP384Sha256 => &ECDSA_P384_SHA256_ASN1,
            Self::EcdsaP384Sha384 => &ECDSA_P384_SHA384_ASN1,
            Self::EcdsaP384Sha512 => &ECDSA_P384_SHA512_ASN1,
            Self::EcdsaP521Sha256 => &ECDSA_P521_SHA256_ASN1,
            Self::EcdsaP521Sha384 => &ECDSA_P521_SHA384_ASN1,
            Self::EcdsaP521Sha512 => &ECDSA_P521_SHA512_ASN1,
            Self::Ed25519 => &ED25519,
            // The library takes a salt of the hash's length alone.
            Self::RsaPssSha256 => &RSA_PSS_2048_8192_SHA256,
            Self::RsaPssSha384 => &RSA_PSS_2048_8192_SHA384,
            Self::RsaPssSha512 => &RSA_PSS_2048_8192_SHA512,
            Self::RsaPkcs1Sha256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::RsaPkcs1Sha384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::RsaPkcs1Sha512 => &RSA_PKCS1_2048_8192_SHA512,
        }
    }
}

/// One of the eight ways to write an RSASSA-PSS AlgorithmIdentifier. Bits of
/// `way`: 1 the hash without NULL, 2 MGF1's hash without NULL, 4 with trailer.
fn pss_written(hash: u8, salt: u8, way: u8) -> Vec<u8> {
    let digest = |bare: bool| {
        let oid = [
            0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, hash,
        ];
        let null: &[u8] = if bare { &[] } else { &[0x05, 0x00] };
        tagged(0x30, &[&oid, null])
    };
    let mgf1 = [
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08,
    ];
    let oid = [
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a,
    ];
    let mask = tagged(0x30, &[&mgf1, &digest(way & 2 != 0)]);
    let trailer: &[u8] = if way & 4 != 0 {
        &[0xa3, 0x03, 0x02, 0x01, 0x01]
    } else {
        &[]
    };
    let parameters = tagged(
        0x30,
        &[
            &tagged(0xa0, &[&digest(way & 1 != 0)]),
            &tagged(0xa1, &[&mask]),
            &[0xa2, 0x03, 0x02, 0x01, salt],
            trailer,
        ],
    );
    tagged(0x30, &[&oid, &parameters])
}

/// A DER element whose content is shorter than 128 bytes.
fn tagged(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    debug_assert!(content.len() < 128);
    [&[tag, content.len() as u8], content.as_slice()].concat()
}
