//! Certificate requests (PKCS#10, RFC 2986): made on the node, read by the CA.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType,
};
use testudo_crypto::{SignatureScheme, SigningKey, VerifyingKey};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::facts::common_name;
use crate::rcgen_key::RcgenKey;
use crate::{MAX_CERTIFICATE, NodeIdentity, PkiError, RequestError};

/// id-kp-ipsecIKE (RFC 4945 section 5.1.3.12).
pub(crate) const IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];

/// Makes the DER of a request for `identity`, signed with the node's new key.
pub fn certificate_request(key: &SigningKey, identity: &NodeIdentity) -> Result<Vec<u8>, PkiError> {
    let making = |e: rcgen::Error| PkiError::Making {
        what: "the certificate request",
        why: e.to_string(),
    };
    let mut params = node_params(identity)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec())];
    let request = params
        .serialize_request(&RcgenKey::new(key)?)
        .map_err(making)?;
    Ok(request.der().to_vec())
}

/// A request in PEM, as a CertificateRequest object carries it.
pub fn request_to_pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE REQUEST", der), config)
}

/// The DER of a request in PEM.
pub fn request_from_pem(text: &str) -> Result<Vec<u8>, RequestError> {
    if text.len() > MAX_CERTIFICATE * 2 {
        return Err(RequestError::Malformed("it is too long".into()));
    }
    let block = pem::parse(text).map_err(|e| RequestError::Malformed(e.to_string()))?;
    match block.tag() {
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Ok(block.into_contents()),
        other => Err(RequestError::Malformed(format!(
            "it is a {other:?}, and a CERTIFICATE REQUEST is wanted"
        ))),
    }
}

/// Subject and names as every node certificate has them.
pub(crate) fn node_params(identity: &NodeIdentity) -> Result<CertificateParams, PkiError> {
    let making = |e: rcgen::Error| PkiError::Making {
        what: "the names of the certificate",
        why: e.to_string(),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, identity.name());
    params.subject_alt_names = vec![
        SanType::DnsName(identity.dns_name().try_into().map_err(making)?),
        SanType::URI(identity.uri().try_into().map_err(making)?),
    ];
    Ok(params)
}

/// Checks a request and returns the public key in it (SubjectPublicKeyInfo, DER).
///
/// The names are never taken over from the request: it must ask for nothing but the node's own,
/// and the certificate is made from `identity`.
pub(crate) fn check_request(der: &[u8], identity: &NodeIdentity) -> Result<Vec<u8>, RequestError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(RequestError::Malformed(format!(
            "{} bytes, and {MAX_CERTIFICATE} is the most",
            der.len()
        )));
    }
    let (rest, request) = X509CertificationRequest::from_der(der)
        .map_err(|e| RequestError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(RequestError::Malformed("bytes follow its end".into()));
    }
    check_signature(&request)?;
    check_names(&request, identity)?;
    Ok(request.certification_request_info.subject_pki.raw.to_vec())
}

fn check_signature(request: &X509CertificationRequest<'_>) -> Result<(), RequestError> {
    let info = &request.certification_request_info;
    let key =
        VerifyingKey::from_spki(info.subject_pki.raw).map_err(|_| RequestError::UnsupportedKey)?;
    let scheme = match request
        .signature_algorithm
        .algorithm
        .to_id_string()
        .as_str()
    {
        "1.2.840.10045.4.3.2" => SignatureScheme::EcdsaP256Sha256,
        "1.2.840.10045.4.3.3" => SignatureScheme::EcdsaP384Sha384,
        "1.2.840.10045.4.3.4" => SignatureScheme::EcdsaP521Sha512,
        "1.3.101.112" => SignatureScheme::Ed25519,
        _ => return Err(RequestError::UnsupportedKey),
    };
    key.verify(scheme, info.raw, request.signature_value.as_ref())
        .map_err(|_| RequestError::BadSignature)
}

fn check_names(
    request: &X509CertificationRequest<'_>,
    identity: &NodeIdentity,
) -> Result<(), RequestError> {
    let foreign = |asked: String| RequestError::ForeignName {
        asked,
        allowed: format!("{} with UID {}", identity.name(), identity.uid()),
    };
    let info = &request.certification_request_info;
    let asked = common_name(&info.subject);
    if asked.as_deref() != Some(identity.name()) || info.subject.iter_attributes().count() != 1 {
        return Err(foreign(format!("subject {}", info.subject)));
    }
    let mut extensions = 0;
    for attribute in info.iter_attributes() {
        match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => {
                for extension in &requested.extensions {
                    extensions += 1;
                    match extension.parsed_extension() {
                        ParsedExtension::SubjectAlternativeName(san) => {
                            for name in &san.general_names {
                                check_san(name, identity).map_err(foreign)?;
                            }
                        }
                        ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {}
                        _ => {
                            return Err(RequestError::ForbiddenExtension(format!(
                                "extension {}",
                                extension.oid.to_id_string()
                            )));
                        }
                    }
                }
            }
            // A challenge password and the like have no meaning here and do no harm.
            _ => continue,
        }
    }
    if extensions > 8 {
        return Err(RequestError::Malformed("too many extensions".into()));
    }
    Ok(())
}

fn check_san(name: &GeneralName<'_>, identity: &NodeIdentity) -> Result<(), String> {
    match name {
        GeneralName::DNSName(dns) if *dns == identity.dns_name() => Ok(()),
        GeneralName::URI(uri) if *uri == identity.uri() => Ok(()),
        other => Err(format!("name {other}")),
    }
}
