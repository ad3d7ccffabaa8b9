//! A CA and certificates for both ends.

use std::sync::Arc;

use testudo_crypto::{KeyType, SigningKey, SystemRandom, sha1};
use testudo_ike::{
    CertificateCredential, CertificateVerifier, FailedCheck, Identity, LocalIdentity,
    PeerExpectation, VerifiedPeer, VerifyError,
};
use testudo_model::UnixTime;
use testudo_pki::{
    Ca, CaOptions, ExpectedPeer, NodeIdentity, TrustBundle, certificate_request, chain_to_pem,
    key_to_pem, verify_chain,
};

pub struct Authority {
    pub ca: Ca,
    now: u64,
}

/// A certificate with its key, in PEM.
pub struct Issued {
    pub der: Vec<u8>,
    pub key: SigningKey,
}

impl Issued {
    pub fn certificate_pem(&self) -> String {
        chain_to_pem(&[&self.der])
    }

    pub fn key_pem(&self) -> Vec<u8> {
        key_to_pem(&self.key).unwrap().as_bytes().to_vec()
    }

    pub fn into_identity(self, name: &str) -> LocalIdentity {
        LocalIdentity {
            id: Identity::Fqdn(name.into()),
            certificate: Some(CertificateCredential {
                chain: vec![self.der],
                key: self.key,
            }),
        }
    }
}

impl Authority {
    pub fn new() -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let ca = Ca::generate(&CaOptions::default(), now, &mut SystemRandom::new()).unwrap();
        Self { ca, now }
    }

    /// For `NAME.node.testudo`.
    pub fn issue(&self, name: &str, kind: KeyType) -> Issued {
        let node = NodeIdentity::new(name, "1").unwrap();
        let key = SigningKey::generate(kind).unwrap();
        let request = certificate_request(&key, &node).unwrap();
        let issued = self
            .ca
            .sign_request(&request, &node, 3600, self.now, &mut SystemRandom::new())
            .unwrap();
        Issued {
            der: issued.der,
            key,
        }
    }

    /// Accepts certificates of the node `peer` under this CA.
    pub fn verifier(&self) -> Arc<dyn CertificateVerifier + Send + Sync> {
        let mut bundle = TrustBundle::new();
        bundle.add(self.ca.certificate()).unwrap();
        Arc::new(Verifier { bundle })
    }
}

struct Verifier {
    bundle: TrustBundle,
}

impl CertificateVerifier for Verifier {
    fn verify(
        &self,
        chain: &[&[u8]],
        _: &PeerExpectation<'_>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        let node = NodeIdentity::new("peer", "1").unwrap();
        let now = u64::try_from(now.0).unwrap();
        let peer =
            verify_chain(chain, &self.bundle, ExpectedPeer::Node(&node), now).map_err(|e| {
                VerifyError {
                    check: FailedCheck::CertificateUnknownCa,
                    text: e.to_string(),
                }
            })?;
        Ok(VerifiedPeer {
            spki: peer.spki,
            not_after: UnixTime(i64::try_from(peer.times.not_after).unwrap()),
            serial: peer.serial,
            subject: peer.identity.dns_name(),
            issuer: peer.issuer,
        })
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        self.bundle.facts().map(|ca| sha1(&[&ca.spki])).collect()
    }
}
