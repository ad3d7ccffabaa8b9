//! What a certificate says, for people and for decisions; nothing here is proof of anything.

use testudo_crypto::sha256;
use time::OffsetDateTime;
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::{
    AuthorityKeyIdentifier, GeneralName, ParsedExtension, X509Extension,
};
use x509_parser::nom::Parser;
use x509_parser::oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use crate::{CertificateError, MAX_CERTIFICATE, NODE_DNS_SUFFIX, NODE_URI_PREFIX};

/// The span in which a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateTimes {
    /// First second in which it is valid.
    pub not_before: u64,
    /// Last second in which it is valid.
    pub not_after: u64,
}

/// What a certificate says of itself. Reading it checks no signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The common name of the subject, or the whole subject where it has none.
    pub subject: String,
    /// The common name of the issuer, or the whole issuer where it has none.
    pub issuer: String,
    /// Serial number in hex.
    pub serial: String,
    /// When it is valid.
    pub times: CertificateTimes,
    /// The node name in the subject alternative names.
    pub node_name: Option<String>,
    /// The node UID in the subject alternative names.
    pub node_uid: Option<String>,
    /// Identifier of its key in hex (RFC 5280 section 4.2.1.2).
    pub subject_key_id: Option<String>,
    /// Identifier of its issuer's key in hex (RFC 5280 section 4.2.1.1).
    pub authority_key_id: Option<String>,
    /// Whether it may sign certificates.
    pub is_ca: bool,
    /// SHA-256 of the DER in hex.
    pub fingerprint: String,
    /// The public key, DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
}

impl CertificateFacts {
    /// Reads a certificate in DER.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateError::malformed(format!(
                "{} bytes, and {MAX_CERTIFICATE} is the most",
                der.len()
            )));
        }
        let certificate = parse(der, true)?;
        let mut facts = Self {
            subject: name_text(certificate.subject()),
            issuer: name_text(certificate.issuer()),
            serial: hex(strip_zeros(certificate.raw_serial())),
            times: times(&certificate),
            node_name: None,
            node_uid: None,
            subject_key_id: None,
            authority_key_id: None,
            is_ca: certificate.is_ca(),
            fingerprint: hex(&sha256(&[der])),
            spki: certificate.public_key().raw.to_vec(),
        };
        facts.read_extensions(&certificate);
        Ok(facts)
    }

    fn read_extensions(&mut self, certificate: &X509Certificate<'_>) {
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    for name in &san.general_names {
                        match name {
                            GeneralName::DNSName(dns) => {
                                let node = dns.strip_suffix(NODE_DNS_SUFFIX);
                                self.node_name = node.map(str::to_owned).or(self.node_name.take());
                            }
                            GeneralName::URI(uri) => {
                                let node = uri.strip_prefix(NODE_URI_PREFIX);
                                self.node_uid = node.map(str::to_owned).or(self.node_uid.take());
                            }
                            _ => {}
                        }
                    }
                }
                ParsedExtension::SubjectKeyIdentifier(id) => {
                    self.subject_key_id = Some(hex(id.0));
                }
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    self.authority_key_id = id.key_identifier.as_ref().map(|id| hex(id.0));
                }
                _ => {}
            }
        }
    }
}

/// What is told of a certificate that has passed every check: as in [`CertificateFacts`], but read
/// for each handshake, and so without the extensions, which a path's validation has read.
pub(crate) struct Shown {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) times: CertificateTimes,
    pub(crate) authority_key_id: Option<String>,
    pub(crate) spki: Vec<u8>,
}

impl Shown {
    pub(crate) fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der, false)?;
        let is_it = |e: &&X509Extension<'_>| e.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
        let authority = certificate.extensions().iter().find(is_it);
        let authority = authority.and_then(|e| AuthorityKeyIdentifier::from_der(e.value).ok());
        Ok(Self {
            subject: name_text(certificate.subject()),
            issuer: name_text(certificate.issuer()),
            times: times(&certificate),
            authority_key_id: authority.and_then(|(_, id)| id.key_identifier.map(|id| hex(id.0))),
            spki: certificate.public_key().raw.to_vec(),
        })
    }
}

fn parse(der: &[u8], extensions: bool) -> Result<X509Certificate<'_>, CertificateError> {
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(extensions);
    let (rest, certificate) = parser
        .parse(der)
        .map_err(|e| CertificateError::malformed(e.to_string()))?;
    match rest.is_empty() {
        true => Ok(certificate),
        false => Err(CertificateError::malformed("bytes follow its end")),
    }
}

fn times(certificate: &X509Certificate<'_>) -> CertificateTimes {
    let seconds = |t: i64| u64::try_from(t).unwrap_or(0);
    let validity = certificate.validity();
    CertificateTimes {
        not_before: seconds(validity.not_before.timestamp()),
        not_after: seconds(validity.not_after.timestamp()),
    }
}

/// A time as people read it: `2026-11-22T04:05:06Z`.
pub fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    match time {
        Some(t) => format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        ),
        None => format!("{seconds} s"),
    }
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// A DER integer has a zero in front when its first bit is set: no part of the number.
pub(crate) fn strip_zeros(serial: &[u8]) -> &[u8] {
    match serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        other => other,
    }
}

pub(crate) fn common_name(name: &X509Name<'_>) -> Option<String> {
    let mut names = name.iter_common_name();
    let first = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(first)
}

fn name_text(name: &X509Name<'_>) -> String {
    common_name(name).unwrap_or_else(|| name.to_string())
}
