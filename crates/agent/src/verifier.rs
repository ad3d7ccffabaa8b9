//! Judges peers' certificates for the IKE engine: the chain against the trust bundle, the name
//! and UID in it against the node that the store knows under the peer's name.

use std::collections::BTreeMap;
use std::sync::Arc;

use testudo_ike::{CertificateVerifier, FailedCheck, PeerExpectation, VerifiedPeer, VerifyError};
use testudo_model::{PeerId, UnixTime};
use testudo_pki::{
    CertificateCheck, CertificateFacts, ExpectedPeer, NodeIdentity, TrustBundle, verify_chain,
};

use crate::clock::{seconds, unix};

/// A bundle and the nodes as they were at one moment; replaced as a whole when either changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    pub(crate) bundle: TrustBundle,
    pub(crate) nodes: BTreeMap<PeerId, NodeIdentity>,
}

impl Trust {
    /// For the engine.
    pub(crate) fn verifier(&self) -> Arc<dyn CertificateVerifier + Send + Sync> {
        let authorities = self
            .bundle
            .facts()
            .map(|facts| testudo_crypto::sha1(&[&facts.spki]))
            .collect();
        Arc::new(Verifier {
            trust: self.clone(),
            authorities,
        })
    }
}

struct Verifier {
    trust: Trust,
    authorities: Vec<[u8; 20]>,
}

impl CertificateVerifier for Verifier {
    fn verify(
        &self,
        chain: &[&[u8]],
        expected: &PeerExpectation<'_>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        let node = self
            .trust
            .nodes
            .get(expected.peer)
            .ok_or_else(|| VerifyError {
                check: FailedCheck::UnknownPeer,
                text: format!("the store knows no node \"{}\"", expected.peer),
            })?;
        let peer = verify_chain(
            chain,
            &self.trust.bundle,
            ExpectedPeer::Node(node),
            seconds(now),
        )
        .map_err(|error| VerifyError {
            check: failed_check(error.check),
            text: error.to_string(),
        })?;
        let subject = chain
            .first()
            .and_then(|der| CertificateFacts::read(der).ok())
            .map_or_else(|| peer.identity.name().to_owned(), |facts| facts.subject);
        Ok(VerifiedPeer {
            spki: peer.spki,
            not_after: unix(peer.times.not_after),
            serial: peer.serial,
            subject,
            issuer: peer.issuer,
        })
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        self.authorities.clone()
    }
}

fn failed_check(check: CertificateCheck) -> FailedCheck {
    match check {
        CertificateCheck::Expired => FailedCheck::CertificateExpired,
        CertificateCheck::NotYetValid => FailedCheck::CertificateNotYetValid,
        CertificateCheck::WrongNode => FailedCheck::CertificateWrongIdentity,
        CertificateCheck::UnknownCa => FailedCheck::CertificateUnknownCa,
        CertificateCheck::BadSignature => FailedCheck::CertificateBadSignature,
        CertificateCheck::Revoked => FailedCheck::CertificateRevoked,
        CertificateCheck::Malformed
        | CertificateCheck::WrongPurpose
        | CertificateCheck::Forbidden => FailedCheck::CertificateMalformed,
    }
}
