//! The door through which certificates are judged: the engine knows no X.509.

use testudo_model::{PeerId, UnixTime};

use crate::config::Identity;

/// Judges certificate chains for the engine.
pub trait CertificateVerifier {
    /// Checks `chain` (DER, the peer's own certificate first) against the trusted CAs, and
    /// that it is a certificate of the peer that is expected.
    fn verify(
        &self,
        chain: &[&[u8]],
        expected: &PeerExpectation<'_>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError>;

    /// SHA-1 hashes of the trusted CAs' SubjectPublicKeyInfo, for CERTREQ (RFC 7296, 3.7).
    fn authorities(&self) -> Vec<[u8; 20]> {
        Vec::new()
    }
}

/// Whom a certificate must belong to.
#[derive(Debug, Clone, Copy)]
pub struct PeerExpectation<'a> {
    /// The peer's name in the engine.
    pub peer: &'a PeerId,
    /// The identity it claimed, already found equal to the configured one.
    pub identity: &'a Identity,
}

/// What a good chain says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// DER SubjectPublicKeyInfo of the peer's certificate.
    pub spki: Vec<u8>,
    /// When the chain's first certificate ends; the IKE SA ends with it at the latest.
    pub not_after: UnixTime,
    /// Serial number in hex, for people.
    pub serial: String,
    /// The subject, for people.
    pub subject: String,
    /// The issuing CA, for people.
    pub issuer: String,
}

/// Which check a chain failed, and the details for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{check}: {text}")]
pub struct VerifyError {
    /// The check.
    pub check: FailedCheck,
    /// What exactly was wrong.
    pub text: String,
}

/// The checks that an authentication or a negotiation can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailedCheck {
    /// A certificate's notAfter has passed.
    CertificateExpired,
    /// A certificate's notBefore is ahead.
    CertificateNotYetValid,
    /// The certificate belongs to another node.
    CertificateWrongIdentity,
    /// No trusted CA issued the chain.
    CertificateUnknownCa,
    /// A certificate's signature does not verify.
    CertificateBadSignature,
    /// A certificate was revoked.
    CertificateRevoked,
    /// A certificate is missing or cannot be read.
    CertificateMalformed,
    /// The AUTH payload's signature does not verify.
    AuthSignature,
    /// The AUTH payload was not made with our pre-shared key.
    PreSharedKey,
    /// The peer does not use the post-quantum pre-shared key that it must (RFC 8784).
    Ppk,
    /// The peer proved itself by another method than the configured one.
    AuthMethod,
    /// The peer claimed another identity than the configured one.
    Identity,
    /// No peer with the claimed identity is configured.
    UnknownPeer,
    /// We have no certificate, key or verifier.
    LocalCredential,
    /// The peer refused our authentication.
    RefusedByPeer,
    /// No common algorithms.
    Proposal,
    /// No common traffic selectors, or the wrong mode.
    TrafficSelectors,
    /// The peer does not answer.
    NoAnswer,
    /// The peer broke the protocol.
    Protocol,
    /// A limit of ours or the peer's was reached.
    Limit,
}

impl FailedCheck {
    /// The check's name in snake case, for counters and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateNotYetValid => "certificate_not_yet_valid",
            Self::CertificateWrongIdentity => "certificate_wrong_identity",
            Self::CertificateUnknownCa => "certificate_unknown_ca",
            Self::CertificateBadSignature => "certificate_bad_signature",
            Self::CertificateRevoked => "certificate_revoked",
            Self::CertificateMalformed => "certificate_malformed",
            Self::AuthSignature => "auth_signature",
            Self::PreSharedKey => "pre_shared_key",
            Self::Ppk => "ppk",
            Self::AuthMethod => "auth_method",
            Self::Identity => "identity",
            Self::UnknownPeer => "unknown_peer",
            Self::LocalCredential => "local_credential",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Proposal => "proposal",
            Self::TrafficSelectors => "traffic_selectors",
            Self::NoAnswer => "no_answer",
            Self::Protocol => "protocol",
            Self::Limit => "limit",
        }
    }
}

impl std::fmt::Display for FailedCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
