//! ML-KEM (FIPS 203) in the two halves of an IKEv2 key exchange.

use aws_lc_rs::kem::{
    Algorithm, AlgorithmId, Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768, ML_KEM_1024,
};

use super::KeMethod;
use crate::SecretBytes;

/// The initiator's private key.
pub(super) type Decapsulation = DecapsulationKey<AlgorithmId>;

/// A fresh key and its encapsulation key.
pub(super) fn generate(method: KeMethod) -> Option<(Decapsulation, Vec<u8>)> {
    let key = DecapsulationKey::generate(algorithm(method)?).ok()?;
    let public = key.encapsulation_key().ok()?.key_bytes().ok()?;
    let public = public.as_ref().to_vec();
    Some((key, public))
}

/// A private key from its expanded bytes.
#[cfg(test)]
pub(super) fn from_bytes(method: KeMethod, bytes: &[u8]) -> Option<Decapsulation> {
    DecapsulationKey::new(algorithm(method)?, bytes).ok()
}

/// Ciphertext and secret for an encapsulation key; `None` if the key is not
/// one: the library checks that every coefficient is reduced (FIPS 203 7.2).
pub(super) fn encapsulate(method: KeMethod, public: &[u8]) -> Option<(Vec<u8>, SecretBytes)> {
    let key = EncapsulationKey::new(algorithm(method)?, public).ok()?;
    let (ciphertext, secret) = key.encapsulate().ok()?;
    Some((
        ciphertext.as_ref().to_vec(),
        SecretBytes::from(secret.as_ref()),
    ))
}

/// The secret inside a ciphertext.
pub(super) fn decapsulate(key: &Decapsulation, ciphertext: &[u8]) -> Option<SecretBytes> {
    let secret = key.decapsulate(Ciphertext::from(ciphertext)).ok()?;
    Some(SecretBytes::from(secret.as_ref()))
}

fn algorithm(method: KeMethod) -> Option<&'static Algorithm<AlgorithmId>> {
    match method {
        KeMethod::MlKem768 => Some(&ML_KEM_768),
        KeMethod::MlKem1024 => Some(&ML_KEM_1024),
        _ => None,
    }
}
