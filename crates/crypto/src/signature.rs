//! Signatures by RFC 7427 (ECDSA, RSA) and RFC 8420 (Ed25519).

mod kind;
mod rsa;
mod scheme;

pub use kind::KeyType;
pub use scheme::SignatureScheme;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    EcdsaKeyPair, Ed25519KeyPair, KeyPair, ParsedPublicKey, RsaKeyPair, UnparsedPublicKey,
};
use thiserror::Error;

use crate::SecretBytes;

/// Why a key or a signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The private key is not PKCS#8 of a kind known here.
    #[error(
        "not a PKCS#8 private key of ECDSA P-256, P-384, P-521, Ed25519 or RSA of 2048 to 8192 bits"
    )]
    PrivateKey,
    /// The public key is not a SubjectPublicKeyInfo of a kind known here.
    #[error("not a public key of ECDSA P-256, P-384, P-521, Ed25519 or RSA of 2048 to 8192 bits")]
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
    Rsa(RsaKeyPair),
}

/// A private signing key.
pub struct SigningKey {
    kind: KeyType,
    pair: Pair,
}

impl SigningKey {
    /// A new key from the system's randomness; RSA with 3072 bits.
    pub fn generate(kind: KeyType) -> Result<Self, SignatureError> {
        let pair = match kind.ecdsa() {
            Some(algorithm) => EcdsaKeyPair::generate(algorithm).map(Pair::Ecdsa),
            None if kind == KeyType::Rsa => RsaKeyPair::generate(KeySize::Rsa3072).map(Pair::Rsa),
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
        match RsaKeyPair::from_pkcs8(der) {
            Ok(pair) if rsa::is_sound(pair.public_key().as_ref()) => Ok(Self {
                kind: KeyType::Rsa,
                pair: Pair::Rsa(pair),
            }),
            _ => Err(SignatureError::PrivateKey),
        }
    }

    /// The key as PKCS#8 version 1 (DER), which every other tool reads.
    pub fn to_pkcs8(&self) -> Result<SecretBytes, SignatureError> {
        let document = match &self.pair {
            Pair::Ecdsa(pair) => pair.to_pkcs8v1(),
            Pair::Ed25519(pair) => pair.to_pkcs8v1(),
            Pair::Rsa(pair) => {
                let der = AsDer::<Pkcs8V1Der<'_>>::as_der(pair);
                let der = der.map_err(|_| SignatureError::Library)?;
                return Ok(SecretBytes::from(der.as_ref()));
            }
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

    /// The schemes this key can sign with: an RSA key takes the hash that the
    /// peer knows.
    pub fn schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.kind.schemes().to_vec();
        schemes.retain(|s| *s == self.scheme() || s.rsa_signing().is_some());
        schemes
    }

    /// Signs `message`; ECDSA signatures are in the DER form of RFC 3279.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        self.sign_with(self.scheme(), message)
    }

    /// Signs `message` with one of [`SigningKey::schemes`].
    pub fn sign_with(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
    ) -> Result<Vec<u8>, SignatureError> {
        if !self.schemes().contains(&scheme) {
            return Err(SignatureError::SchemeMismatch(scheme));
        }
        let signature = match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&SystemRandom::new(), message),
            Pair::Ed25519(pair) => pair.try_sign(message),
            Pair::Rsa(pair) => {
                let encoding = scheme
                    .rsa_signing()
                    .ok_or(SignatureError::SchemeMismatch(scheme))?;
                let mut out = vec![0; pair.public_modulus_len()];
                return pair
                    .sign(encoding, &SystemRandom::new(), message, &mut out)
                    .map(|()| out)
                    .map_err(|_| SignatureError::Library);
            }
        };
        let signature = signature.map_err(|_| SignatureError::Library)?;
        Ok(signature.as_ref().to_vec())
    }

    /// The public key as it is inside a SubjectPublicKeyInfo: the uncompressed
    /// point, the 32 bytes of Ed25519, or RSA's RSAPublicKey (DER).
    pub fn public_raw(&self) -> &[u8] {
        match &self.pair {
            Pair::Ecdsa(pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
            Pair::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    /// The public key as a SubjectPublicKeyInfo (DER).
    pub fn public_spki(&self) -> Vec<u8> {
        match self.kind.spki_prefix() {
            Some(prefix) => [prefix, self.public_raw()].concat(),
            None => rsa::spki(self.public_raw()),
        }
    }
}

/// A public key that signatures are checked with.
#[derive(Clone)]
pub struct VerifyingKey {
    kind: KeyType,
    raw: Vec<u8>,
    /// Ready for the kind's own scheme.
    parsed: ParsedPublicKey,
}

impl VerifyingKey {
    /// Reads a SubjectPublicKeyInfo (DER): a named curve with an uncompressed
    /// point, Ed25519, or rsaEncryption with 2048 to 8192 bits and an exponent
    /// of at least 65537.
    pub fn from_spki(der: &[u8]) -> Result<Self, SignatureError> {
        let (kind, raw) = Self::split_spki(der).ok_or(SignatureError::PublicKey)?;
        let parsed = ParsedPublicKey::new(kind.scheme().verification(), raw)
            .map_err(|_| SignatureError::PublicKey)?;
        Ok(Self {
            kind,
            raw: raw.to_vec(),
            parsed,
        })
    }

    fn split_spki(der: &[u8]) -> Option<(KeyType, &[u8])> {
        for kind in KeyType::ALL {
            let Some(raw) = der.strip_prefix(kind.spki_prefix()?) else {
                continue;
            };
            // A first byte other than 4 would be a form the prefix did not promise.
            let good =
                raw.len() == kind.raw_public_len() && (kind.ecdsa().is_none() || raw[0] == 4);
            return good.then_some((kind, raw));
        }
        Some((KeyType::Rsa, rsa::from_spki(der)?))
    }

    /// The kind of key.
    pub fn key_type(&self) -> KeyType {
        self.kind
    }

    /// The schemes this key can check.
    pub fn schemes(&self) -> Vec<SignatureScheme> {
        self.kind.schemes().to_vec()
    }

    /// The scheme that this DER AlgorithmIdentifier means with this key. With
    /// ECDSA the identifier names the hash alone, and the key the curve.
    pub fn scheme_for(&self, algorithm_identifier: &[u8]) -> Option<SignatureScheme> {
        let schemes = self.kind.schemes().iter().copied();
        schemes
            .into_iter()
            .find(|scheme| scheme.is_identified_by(algorithm_identifier))
    }

    /// Checks that `signature` is this key's over `message`.
    pub fn verify(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        if !self.kind.schemes().contains(&scheme) {
            return Err(SignatureError::SchemeMismatch(scheme));
        }
        let checked = if scheme == self.kind.scheme() {
            self.parsed.verify_sig(message, signature)
        } else {
            UnparsedPublicKey::new(scheme.verification(), &self.raw).verify(message, signature)
        };
        checked.map_err(|_| SignatureError::Signature)
    }
}
