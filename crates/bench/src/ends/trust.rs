//! Certificates, and who judges them: what the agent does, without a store.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use testudo_crypto::{KeyType, SigningKey, SystemRandom, sha1};
use testudo_ike::{
    CertificateCredential, CertificateVerifier, FailedCheck, Identity, LocalIdentity,
    PeerExpectation, VerifiedPeer, VerifyError,
};
use testudo_model::{PeerId, UnixTime};
use testudo_pki::{
    Ca, CaOptions, ExpectedPeer, NodeIdentity, TrustBundle, certificate_request, verify_chain,
};

const LIFETIME: u64 = 24 * 3600;

/// Seconds since 1970.
pub(crate) fn wall() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// The hub's name.
pub(crate) const HUB: &str = "hub";

/// The name of a spoke.
pub(crate) fn spoke(number: u32) -> String {
    format!("n{number}")
}

/// The identity of a node in IKE.
pub(crate) fn identity(name: &str) -> Identity {
    Identity::Fqdn(format!("{name}{}", testudo_pki::NODE_DNS_SUFFIX))
}

/// A CA made for the run.
pub(crate) struct Authority(Ca);

impl Authority {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let ca = Ca::generate(&CaOptions::default(), wall(), &mut SystemRandom::new());
        Ok(Self(ca.context("a CA")?))
    }

    pub(crate) fn certificate(&self) -> &[u8] {
        self.0.certificate()
    }

    /// A P-256 certificate for a node, with its key.
    pub(crate) fn issue(&self, name: &str) -> anyhow::Result<(Vec<u8>, SigningKey)> {
        let node = node(name)?;
        let key = SigningKey::generate(KeyType::EcdsaP256)?;
        let request = certificate_request(&key, &node)?;
        let random = &mut SystemRandom::new();
        let issued = self
            .0
            .sign_request(&request, &node, LIFETIME, wall(), random)?;
        Ok((issued.der, key))
    }
}

/// Who an engine is.
pub(crate) fn local(name: &str, certificate: Vec<u8>, key: SigningKey) -> LocalIdentity {
    LocalIdentity {
        id: identity(name),
        certificate: Some(CertificateCredential {
            chain: vec![certificate],
            key,
        }),
    }
}

fn node(name: &str) -> anyhow::Result<NodeIdentity> {
    NodeIdentity::new(name, &format!("uid-{name}")).context("a node's identity")
}

/// Judges peers against a bundle of one CA, as the agent does.
pub(crate) struct Verifier {
    bundle: TrustBundle,
    authorities: Vec<[u8; 20]>,
}

impl Verifier {
    pub(crate) fn new(ca: &[u8]) -> anyhow::Result<Self> {
        let mut bundle = TrustBundle::new();
        bundle.add(ca).context("the CA")?;
        let authorities = bundle.facts().map(|facts| sha1(&[&facts.spki])).collect();
        Ok(Self {
            bundle,
            authorities,
        })
    }
}

impl CertificateVerifier for Verifier {
    fn verify(
        &self,
        chain: &[&[u8]],
        expected: &PeerExpectation<'_>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        let refused = |text: String| VerifyError {
            check: FailedCheck::CertificateMalformed,
            text,
        };
        let node = node(expected.peer.as_str()).map_err(|e| refused(e.to_string()))?;
        let now = u64::try_from(now.0).unwrap_or(0);
        let peer = verify_chain(chain, &self.bundle, ExpectedPeer::Node(&node), now)
            .map_err(|e| refused(e.to_string()))?;
        Ok(VerifiedPeer {
            spki: peer.spki,
            not_after: UnixTime(i64::try_from(peer.times.not_after).unwrap_or(i64::MAX)),
            serial: peer.serial,
            subject: peer.subject,
            issuer: peer.issuer,
        })
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        self.authorities.clone()
    }
}

/// The name of a node as a peer.
pub(crate) fn peer(name: &str) -> anyhow::Result<PeerId> {
    PeerId::new(name).context("a peer's name")
}
