//! Validation of a peer's chain (RFC 5280 section 6) and of who it is.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use std::time::Duration;
use testudo_crypto::sha256;
use webpki::{
    EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, VerifiedPath,
    aws_lc_rs,
};

use crate::bundle::Anchor;
use crate::error::CertificateCheck;
use crate::facts::{Shown, strip_zeros};
use crate::revocation::{RevocationList, content, is_revoked};
use crate::{
    CertificateError, CertificateFacts, CertificateTimes, MAX_CERTIFICATE, MAX_CHAIN,
    NODE_DNS_SUFFIX, NODE_URI_PREFIX, NodeIdentity, TrustBundle, hex, utc,
};

/// Whom a certificate must belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedPeer<'a> {
    /// This node, by name and UID.
    Node(&'a NodeIdentity),
    /// Any node of the cluster; the caller checks who it is.
    AnyNode,
}

/// A certificate that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The node that it belongs to.
    pub identity: NodeIdentity,
    /// Serial number in hex.
    pub serial: String,
    /// Common name of the subject, or the whole subject where it has none.
    pub subject: String,
    /// Common name of the issuer.
    pub issuer: String,
    /// Identifier of the issuer's key in hex, where the certificate has it.
    pub authority_key_id: Option<String>,
    /// When it is valid.
    pub times: CertificateTimes,
    /// SHA-256 of the DER in hex.
    pub fingerprint: String,
    /// The public key, DER SubjectPublicKeyInfo: what the peer's signature is checked with.
    pub spki: Vec<u8>,
}

/// What a CA may sign with.
static SIGNATURES: &[&dyn SignatureVerificationAlgorithm] = &[
    aws_lc_rs::ECDSA_P256_SHA256,
    aws_lc_rs::ECDSA_P256_SHA384,
    aws_lc_rs::ECDSA_P256_SHA512,
    aws_lc_rs::ECDSA_P384_SHA256,
    aws_lc_rs::ECDSA_P384_SHA384,
    aws_lc_rs::ECDSA_P384_SHA512,
    aws_lc_rs::ECDSA_P521_SHA256,
    aws_lc_rs::ECDSA_P521_SHA384,
    aws_lc_rs::ECDSA_P521_SHA512,
    aws_lc_rs::ED25519,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA256,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA384,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA512,
    aws_lc_rs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    aws_lc_rs::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    aws_lc_rs::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Checks a peer's chain at `now` (seconds since 1970). The first certificate is the peer's own,
/// the others are intermediates in any order.
///
/// The error says which check failed. No cache is kept: what a peer sends costs it a bounded
/// amount of our time and leaves nothing behind.
pub fn verify_chain(
    chain: &[&[u8]],
    bundle: &TrustBundle,
    expected: ExpectedPeer<'_>,
    now: u64,
) -> Result<PeerCertificate, CertificateError> {
    check_size(chain)?;
    let ders: Vec<CertificateDer<'_>> =
        chain.iter().map(|der| CertificateDer::from(*der)).collect();
    let leaf = EndEntityCert::try_from(&ders[0]).map_err(|e| translate(&e))?;
    let peer = names(&leaf);

    let anchors = bundle.read();
    let usable = anchors.iter().filter(|a| {
        let times = a.facts.times;
        times.not_before <= now && now <= times.not_after
    });
    let revoked = bundle.revoked();
    if let Err(error) = verify_path(&leaf, &ders[1..], usable, revoked, now) {
        return Err(explain(error, chain[0], &leaf, &ders[1..], anchors, now));
    }

    let identity = check_identity(peer?, expected)?;
    let shown = Shown::read(chain[0])?;
    Ok(PeerCertificate {
        identity,
        serial: hex(strip_zeros(leaf.serial())),
        subject: shown.subject,
        issuer: shown.issuer,
        authority_key_id: shown.authority_key_id,
        times: shown.times,
        fingerprint: hex(&sha256(&[chain[0]])),
        spki: shown.spki,
    })
}

fn check_size(chain: &[&[u8]]) -> Result<(), CertificateError> {
    if chain.is_empty() {
        return Err(CertificateError::malformed("the peer sent no certificate"));
    }
    if chain.len() > MAX_CHAIN {
        return Err(CertificateError::malformed(format!(
            "the peer sent {} certificates, and {MAX_CHAIN} is the most",
            chain.len()
        )));
    }
    match chain.iter().find(|der| der.len() > MAX_CERTIFICATE) {
        Some(der) => Err(CertificateError::malformed(format!(
            "a certificate of {} bytes, and {MAX_CERTIFICATE} is the most",
            der.len()
        ))),
        None => Ok(()),
    }
}

fn verify_path<'a>(
    leaf: &EndEntityCert<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: impl Iterator<Item = &'a Anchor>,
    revoked: &[RevocationList],
    now: u64,
) -> Result<(), Error> {
    let anchors: Vec<TrustAnchor<'_>> = anchors.filter_map(Anchor::borrowed).collect();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
    leaf.verify_for_usage(
        SIGNATURES,
        &anchors,
        intermediates,
        time,
        IkeUsage,
        None,
        Some(&|path: &VerifiedPath<'_>| check_revocation(path, revoked, now)),
    )
    .map(|_| ())
}

/// That no certificate of the path was revoked by the one that issued it. The lists' signatures
/// were checked when they were added; what a handshake costs does not grow with them.
fn check_revocation(
    path: &VerifiedPath<'_>,
    revoked: &[RevocationList],
    now: u64,
) -> Result<(), Error> {
    if revoked.is_empty() {
        return Ok(());
    }
    let mut serial = path.end_entity().serial().to_vec();
    for intermediate in path.intermediate_certificates() {
        let key = intermediate.subject_public_key_info();
        if is_revoked(revoked, content(&key), &serial, now) {
            return Err(Error::CertRevoked);
        }
        serial = intermediate.serial().to_vec();
    }
    match is_revoked(
        revoked,
        &path.anchor().subject_public_key_info,
        &serial,
        now,
    ) {
        true => Err(Error::CertRevoked),
        false => Ok(()),
    }
}

/// Finds out what exactly is wrong where the library's answer alone would mislead.
fn explain(
    error: Error,
    leaf_der: &[u8],
    leaf: &EndEntityCert<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[Anchor],
    now: u64,
) -> CertificateError {
    let facts = CertificateFacts::read(leaf_der);
    let issuer = match &facts {
        Ok(facts) => facts.issuer.clone(),
        Err(_) => "an unreadable issuer".to_owned(),
    };
    match error {
        Error::UnknownIssuer => {
            // A CA that we know, but whose own time is over or has not come, is not "unknown".
            let past = |a: &&Anchor| a.facts.times.not_after < now;
            if verify_path(leaf, intermediates, anchors.iter(), &[], now).is_ok() {
                let ended: Vec<&Anchor> = anchors.iter().filter(past).collect();
                return match ended.first() {
                    Some(ca) => CertificateError::new(
                        CertificateCheck::Expired,
                        format!(
                            "its CA {} ended on {}",
                            ca.facts.subject,
                            utc(ca.facts.times.not_after)
                        ),
                    ),
                    None => CertificateError::new(
                        CertificateCheck::NotYetValid,
                        format!("its CA {issuer} is not valid yet at {}", utc(now)),
                    ),
                };
            }
            unknown_ca(&issuer, anchors)
        }
        // Another CA that took the name of ours: the key identifier tells it from a damaged
        // certificate of ours.
        Error::InvalidSignatureForPublicKey if intermediates.is_empty() => {
            let authority = facts.ok().and_then(|f| f.authority_key_id);
            let known = |id: &String| {
                anchors
                    .iter()
                    .any(|a| a.facts.subject_key_id.as_ref() == Some(id))
            };
            match authority {
                Some(id) if !known(&id) => unknown_ca(&issuer, anchors),
                _ => CertificateError::new(
                    CertificateCheck::BadSignature,
                    format!("it names {issuer} as its issuer, whose key did not sign it"),
                ),
            }
        }
        other => translate(&other),
    }
}

fn unknown_ca(issuer: &str, anchors: &[Anchor]) -> CertificateError {
    let known: Vec<&str> = anchors.iter().map(|a| a.facts.subject.as_str()).collect();
    let known = match known.is_empty() {
        true => "no CA is trusted yet".to_owned(),
        false => format!("trusted are {}", known.join(", ")),
    };
    CertificateError::new(
        CertificateCheck::UnknownCa,
        format!("issued by {issuer:?}; {known}"),
    )
}

fn translate(error: &Error) -> CertificateError {
    use CertificateCheck as Check;
    let (check, text) = match error {
        Error::CertExpired { time, not_after } => (
            Check::Expired,
            format!(
                "it ended on {}, and now is {}",
                utc(not_after.as_secs()),
                utc(time.as_secs())
            ),
        ),
        Error::CertNotValidYet { time, not_before } => (
            Check::NotYetValid,
            format!(
                "it starts on {}, and now is {}",
                utc(not_before.as_secs()),
                utc(time.as_secs())
            ),
        ),
        Error::UnknownIssuer => (Check::UnknownCa, "no CA in the bundle issued it".to_owned()),
        Error::InvalidSignatureForPublicKey => (
            Check::BadSignature,
            "a certificate in the chain is not signed by its issuer".to_owned(),
        ),
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => (
            Check::WrongPurpose,
            "its extended key usage allows neither ipsecIKE, serverAuth nor any".to_owned(),
        ),
        Error::NameConstraintViolation
        | Error::PathLenConstraintViolated
        | Error::EndEntityUsedAsCa => (Check::Forbidden, error.to_string()),
        Error::CertRevoked => (Check::Revoked, "its CA has revoked it".to_owned()),
        other => (Check::Malformed, other.to_string()),
    };
    CertificateError::new(check, text)
}

/// The node that a certificate names. Exactly one of each name, so that no second reading exists.
fn names(leaf: &EndEntityCert<'_>) -> Result<NodeIdentity, CertificateError> {
    // A wildcard or a name in capitals is no node name and is refused with the identity.
    let dns: Vec<&str> = leaf.valid_dns_names().collect();
    let uris: Vec<&str> = leaf.valid_uri_names().collect();
    let (&[dns], &[uri]) = (dns.as_slice(), uris.as_slice()) else {
        return Err(CertificateError::malformed(format!(
            "it has {} DNS names and {} URIs, and a node certificate has one of each",
            dns.len(),
            uris.len()
        )));
    };
    let name = dns.strip_suffix(NODE_DNS_SUFFIX);
    let uid = uri.strip_prefix(NODE_URI_PREFIX);
    let (Some(name), Some(uid)) = (name, uid) else {
        return Err(CertificateError::malformed(format!(
            "its names {dns:?} and {uri:?} are not those of a node"
        )));
    };
    NodeIdentity::new(name, uid).map_err(|e| CertificateError::malformed(e.to_string()))
}

fn check_identity(
    peer: NodeIdentity,
    expected: ExpectedPeer<'_>,
) -> Result<NodeIdentity, CertificateError> {
    match expected {
        ExpectedPeer::Node(wanted) if *wanted != peer => Err(CertificateError::new(
            CertificateCheck::WrongNode,
            format!(
                "it belongs to node {} (UID {}), and node {} (UID {}) is expected",
                peer.name(),
                peer.uid(),
                wanted.name(),
                wanted.uid()
            ),
        )),
        _ => Ok(peer),
    }
}

/// Accepts certificates without extended key usage and those for IKE, TLS servers or anything
/// (RFC 4945 section 5.1.3.12, as far as IKEv2 peers in the field go).
struct IkeUsage;

impl ExtendedKeyUsageValidator for IkeUsage {
    fn validate(&self, iter: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        // id-kp-ipsecIKE, id-kp-serverAuth, anyExtendedKeyUsage.
        const ACCEPTED: [KeyPurposeId<'static>; 3] = [
            KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 17]),
            KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 1]),
            KeyPurposeId::new(&[0x55, 0x1d, 0x25, 0]),
        ];
        let mut present = 0;
        let mut accepted = false;
        for purpose in iter {
            let purpose = purpose?;
            present += 1;
            accepted |= ACCEPTED.contains(&purpose);
        }
        match accepted || present == 0 {
            true => Ok(()),
            false => Err(Error::EmptyEkuExtension),
        }
    }
}
