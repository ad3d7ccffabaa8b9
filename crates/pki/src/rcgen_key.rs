//! Lets `rcgen` sign with our keys, so that a private key stays in the type that wipes it.

use rcgen::{PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use testudo_crypto::{SignatureScheme, SigningKey};

use crate::PkiError;

/// A borrowed signing key in the shape that `rcgen` wants.
pub(crate) struct RcgenKey<'a> {
    key: &'a SigningKey,
    algorithm: &'static SignatureAlgorithm,
}

impl<'a> RcgenKey<'a> {
    pub(crate) fn new(key: &'a SigningKey) -> Result<Self, PkiError> {
        let algorithm = match key.scheme() {
            SignatureScheme::EcdsaP256Sha256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            SignatureScheme::EcdsaP384Sha384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            SignatureScheme::EcdsaP521Sha512 => &rcgen::PKCS_ECDSA_P521_SHA512,
            SignatureScheme::Ed25519 => &rcgen::PKCS_ED25519,
            other => {
                return Err(PkiError::Unreadable {
                    what: "the signing key",
                    why: format!(
                        "certificates are not made with {other:?}: use an ECDSA or Ed25519 key"
                    ),
                });
            }
        };
        Ok(Self { key, algorithm })
    }
}

impl PublicKeyData for RcgenKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.key.public_raw()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for RcgenKey<'_> {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(msg).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// Reads a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7) of a kind that can be certified.
pub(crate) fn subject_public_key(spki: &[u8]) -> Result<SubjectPublicKeyInfo, PkiError> {
    SubjectPublicKeyInfo::from_der(spki).map_err(|e| PkiError::Unreadable {
        what: "the public key",
        why: e.to_string(),
    })
}
