//! Certificates of a world without CAs: a key, and the word of who shows it.
//!
//! What a chain is worth is judged outside of an engine; here each is believed. What the engine
//! does with it, and with the signature under it, is as anywhere.

use testudo_crypto::SigningKey;
use testudo_ike::{
    CertificateCredential, CertificateVerifier, Identity, LocalIdentity, PeerExpectation,
    VerifiedPeer, VerifyError,
};
use testudo_model::UnixTime;

/// PKCS #8 of an Ed25519 key, before its 32 bytes (RFC 8410, 7).
const ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Later than any clock that is set forward.
const NEVER: UnixTime = UnixTime(1 << 40);

/// Who a node is. Its key is that of its number, so that a run can be seen again.
pub(crate) fn of(number: usize, id: Identity) -> LocalIdentity {
    let own = u8::try_from(number).unwrap_or(u8::MAX);
    let der = [&ED25519[..], &[own; 32]].concat();
    let key = SigningKey::from_pkcs8(&der).expect("32 bytes are a key");
    let chain = vec![key.public_spki()];
    LocalIdentity {
        id,
        certificate: Some(CertificateCredential { chain, key }),
    }
}

/// Takes the key that is shown for that of the expected peer.
pub(crate) struct Trusting;

impl CertificateVerifier for Trusting {
    fn verify(
        &self,
        chain: &[&[u8]],
        expected: &PeerExpectation<'_>,
        _now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        Ok(VerifiedPeer {
            spki: chain.first().map_or_else(Vec::new, |key| key.to_vec()),
            not_after: NEVER,
            serial: "01".into(),
            subject: expected.identity.to_string(),
            issuer: "nobody".into(),
        })
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        vec![[7; 20]]
    }
}
