//! The AUTH payload: how we prove ourselves, how a peer does (RFC 7296, 2.15; RFC 7427).

use std::collections::BTreeSet;

use testudo_crypto::{HashAlgorithm, SecretBytes, SignatureScheme, VerifyingKey, constant_time_eq};
use testudo_wire::ike::{AuthMethod, Authentication, Notify, NotifyType, Payload};

use crate::config::CertificateCredential;
use crate::error::Fault;
use crate::intauth::IntAuth;
use crate::keys::IkeKeys;
use crate::suites::Suites;
use crate::verify::FailedCheck;

const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// What one side signs: its first message, the other's nonce, prf (SK_p, its ID's body), and what
/// came between IKE_SA_INIT and IKE_AUTH.
pub(crate) struct Octets<'a> {
    pub(crate) message: &'a [u8],
    pub(crate) nonce: &'a [u8],
    pub(crate) sk_p: &'a SecretBytes,
    pub(crate) id_body: &'a [u8],
    pub(crate) int_auth: &'a IntAuth,
}

impl Octets<'_> {
    fn mac(&self, keys: &IkeKeys) -> SecretBytes {
        keys.prf(self.sk_p.as_bytes(), &[self.id_body])
    }

    /// All of it: what a signature is over.
    pub(crate) fn joined(&self, keys: &IkeKeys) -> Vec<u8> {
        [
            self.message,
            self.nonce,
            self.mac(keys).as_bytes(),
            &self.int_auth.octets(),
        ]
        .concat()
    }
}

/// The hashes of the signatures that we take, for SIGNATURE_HASH_ALGORITHMS (RFC 7427, 4).
pub(crate) fn hashes<'a>(allowed: impl IntoIterator<Item = &'a Suites>) -> Payload {
    let taken: BTreeSet<_> = allowed
        .into_iter()
        .flat_map(|suites| suites.signatures.iter().map(|scheme| scheme.hash()))
        .collect();
    let ids: Vec<u8> = HashAlgorithm::ALL
        .iter()
        .filter(|hash| taken.contains(hash))
        .flat_map(|h| h.id().to_be_bytes())
        .collect();
    Payload::Notify(Notify::new(NotifyType::SIGNATURE_HASH_ALGORITHMS, ids))
}

/// Signs `octets`, with the first scheme of our key whose hash the peer takes: `peer_hashes`, from its
/// SIGNATURE_HASH_ALGORITHMS. An RSA key signs with PSS. A peer that announces no hash knows but
/// the methods of before RFC 7427, which are bound to SHA-1 (method 1) or were given up by the
/// peers that had them; we do not sign so.
pub(crate) fn sign(
    credential: &CertificateCredential,
    peer_hashes: &[u16],
    octets: &[u8],
) -> Result<Authentication, Fault> {
    let schemes = credential.key.schemes();
    let fits = |scheme: &&SignatureScheme| peer_hashes.contains(&scheme.hash().id());
    let Some(scheme) = schemes.iter().find(fits) else {
        return Err(Fault::Unproven(
            FailedCheck::AuthMethod,
            "the peer does not take RFC 7427 signatures with a hash that our key signs".into(),
        ));
    };
    let signature = credential
        .key
        .sign_with(*scheme, octets)
        .map_err(|_| Fault::Bug("signing failed"))?;
    Authentication::digital_signature(scheme.algorithm_identifier(), &signature)
        .ok_or(Fault::Bug("an algorithm identifier is too long"))
}

/// Checks a signature with the key of the peer's certificate, in one of the allowed schemes.
pub(crate) fn check_signature(
    spki: &[u8],
    allowed: &[SignatureScheme],
    auth: &Authentication,
    octets: &[u8],
) -> Result<(), Fault> {
    let fail = |check, text: &str| Fault::Unproven(check, text.into());
    if auth.method != AuthMethod::DIGITAL_SIGNATURE {
        return Err(fail(
            FailedCheck::AuthMethod,
            "the peer did not use an RFC 7427 signature",
        ));
    }
    let bad = || {
        fail(
            FailedCheck::AuthSignature,
            "the AUTH signature is not the certificate's",
        )
    };
    let (algorithm, signature) = auth.split_digital_signature().ok_or_else(bad)?;
    let key = VerifyingKey::from_spki(spki).map_err(|_| {
        fail(
            FailedCheck::CertificateMalformed,
            "the certificate's key is of a kind that we do not take",
        )
    })?;
    let scheme = key.scheme_for(algorithm).ok_or_else(|| {
        fail(
            FailedCheck::AuthMethod,
            "the peer signed with an algorithm that we do not take",
        )
    })?;
    if !allowed.contains(&scheme) {
        let text = format!("the peer signed with {scheme:?}, which is not allowed for it");
        return Err(Fault::Unproven(FailedCheck::AuthMethod, text));
    }
    key.verify(scheme, octets, signature).map_err(|_| bad())
}

/// The MAC of a pre-shared key.
pub(crate) fn psk_auth(psk: &SecretBytes, keys: &IkeKeys, octets: &Octets<'_>) -> Authentication {
    let key = keys.prf(psk.as_bytes(), &[KEY_PAD]);
    let mac = keys.prf(key.as_bytes(), &[&octets.joined(keys)]);
    Authentication {
        method: AuthMethod::SHARED_KEY,
        data: mac.as_bytes().to_vec(),
    }
}

/// Checks the MAC of a pre-shared key.
pub(crate) fn check_psk(
    psk: &SecretBytes,
    auth: &Authentication,
    keys: &IkeKeys,
    octets: &Octets<'_>,
) -> Result<(), Fault> {
    if auth.method != AuthMethod::SHARED_KEY {
        return Err(Fault::Unproven(
            FailedCheck::AuthMethod,
            "the peer did not use a pre-shared key".into(),
        ));
    }
    let good = psk_auth(psk, keys, octets);
    if constant_time_eq(&good.data, &auth.data) {
        return Ok(());
    }
    Err(Fault::Unproven(
        FailedCheck::PreSharedKey,
        "the AUTH payload was not made with our pre-shared key".into(),
    ))
}
