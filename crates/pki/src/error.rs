//! What can be wrong, by the one whose fault it is.

use std::fmt;

/// Which check of a peer's certificate failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertificateCheck {
    /// The certificate, or the CA it comes from, is past its end.
    Expired,
    /// The certificate starts in the future.
    NotYetValid,
    /// The certificate is sound but belongs to another node.
    WrongNode,
    /// No CA in the bundle has issued it.
    UnknownCa,
    /// A CA in the bundle is named as the issuer but did not sign it.
    BadSignature,
    /// It cannot be read, or says what such a certificate must not say.
    Malformed,
    /// Its extended key usage does not allow IKE.
    WrongPurpose,
    /// A name constraint or path length of its CA forbids it.
    Forbidden,
    /// It was revoked.
    Revoked,
}

impl CertificateCheck {
    /// The reason in snake case, as counters and status have it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::WrongNode => "certificate_wrong_node",
            Self::UnknownCa => "certificate_unknown_ca",
            Self::BadSignature => "certificate_bad_signature",
            Self::Malformed => "certificate_malformed",
            Self::WrongPurpose => "certificate_wrong_purpose",
            Self::Forbidden => "certificate_forbidden_by_ca",
            Self::Revoked => "certificate_revoked",
        }
    }
}

impl fmt::Display for CertificateCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
            Self::WrongNode => "wrong node",
            Self::UnknownCa => "unknown CA",
            Self::BadSignature => "bad signature",
            Self::Malformed => "malformed",
            Self::WrongPurpose => "wrong purpose",
            Self::Forbidden => "forbidden by its CA",
            Self::Revoked => "revoked",
        })
    }
}

/// A peer's certificate that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("certificate {check}: {text}")]
pub struct CertificateError {
    /// The check that failed.
    pub check: CertificateCheck,
    /// What was found and what was wanted, for the log and for status.
    pub text: String,
}

impl CertificateError {
    pub(crate) fn new(check: CertificateCheck, text: impl Into<String>) -> Self {
        Self {
            check,
            text: text.into(),
        }
    }

    pub(crate) fn malformed(text: impl Into<String>) -> Self {
        Self::new(CertificateCheck::Malformed, text)
    }
}

/// Why a certificate request is not signed. The text goes back to the one who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The request cannot be read.
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    /// The signature on the request is not of the key in it.
    #[error("the request is not signed by the key that it carries")]
    BadSignature,
    /// A key of a kind that is not accepted.
    #[error("the key in the request is neither ECDSA P-256, P-384, P-521 nor Ed25519")]
    UnsupportedKey,
    /// It asks for a name other than the node's own.
    #[error("the request asks for {asked}, but only {allowed} is allowed")]
    ForeignName {
        /// What the request asks for.
        asked: String,
        /// What the node may have.
        allowed: String,
    },
    /// It asks for a right that nodes do not get.
    #[error("the request asks for {0}, which a node does not get")]
    ForbiddenExtension(String),
    /// The join token does not fit.
    #[error("the proof does not match the join token of node {node}")]
    BadProof {
        /// The node that the request is for.
        node: String,
    },
    /// The CA's own time is over.
    #[error("the CA certificate ended on {ended}: rotate the CA before asking again")]
    CaExpired {
        /// The end, as a date.
        ended: String,
    },
    /// Signing failed for a reason of ours.
    #[error(transparent)]
    Internal(#[from] PkiError),
}

/// Errors about our own material: the CA, the bundle, our keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// A node name that cannot be in a certificate.
    #[error("node name {name:?} cannot be used: {why}")]
    NodeName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A node UID that cannot be in a certificate.
    #[error("node UID {0:?} cannot be used: 1 to 64 letters, digits, '-' and '_' are allowed")]
    NodeUid(String),
    /// PEM or DER of ours that cannot be read.
    #[error("{what} cannot be read: {why}")]
    Unreadable {
        /// Which object.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The key and the certificate do not belong together.
    #[error("the CA key does not belong to the CA certificate: restore both from one backup")]
    KeyMismatch,
    /// A certificate in the bundle is not a CA.
    #[error("certificate {0:?} in the trust bundle is not a CA certificate")]
    NotACa(String),
    /// More CAs than [`crate::MAX_ANCHORS`].
    #[error(
        "the trust bundle holds more than {} CA certificates",
        crate::MAX_ANCHORS
    )]
    TooManyAnchors,
    /// The library refused to make or sign something.
    #[error("cannot make {what}: {why}")]
    Making {
        /// What was to be made.
        what: &'static str,
        /// The reason.
        why: String,
    },
    /// A time outside of what a certificate can say.
    #[error("the time {0} (seconds since 1970) cannot be put into a certificate")]
    Time(u64),
}
