//! Certificate revocation lists (RFC 5280 section 5): which are believed, and making our own.
//!
//! A list is believed when a CA of the bundle that may sign lists has signed it, and from its
//! thisUpdate on. Of several lists of one CA the newest counts. Past its nextUpdate it counts
//! still: what was revoked stays revoked, and a CA that is late with its next list does not take
//! the cluster down.

use std::sync::Arc;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use testudo_crypto::VerifyingKey;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::asn1_rs::ToDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::ca::date;
use crate::{BACKDATE, PkiError};

/// Lists larger than this many bytes are refused unread: room for some 20,000 certificates.
pub const MAX_REVOCATION_LIST: usize = 1024 * 1024;

/// Lists that one bundle may hold.
pub const MAX_REVOCATION_LISTS: usize = 32;

/// Why a revocation list is not believed. Those that were believed before go on being so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// It cannot be read, or is of a kind that is not understood (delta, indirect).
    #[error("the revocation list cannot be read: {0}")]
    Malformed(String),
    /// No CA of the bundle has that name.
    #[error("the revocation list is issued by {issuer:?}, which is no CA of the bundle")]
    UnknownIssuer {
        /// The name in the list.
        issuer: String,
    },
    /// A CA of that name is there, and its key did not sign the list.
    #[error("the revocation list names {issuer:?} as its issuer, whose key did not sign it")]
    BadSignature {
        /// The name in the list.
        issuer: String,
    },
    /// The CA's certificate does not allow it to sign lists (lesson L38).
    #[error("the CA {issuer:?} may not sign revocation lists: its key usage lacks cRLSign")]
    NotAllowed {
        /// The name in the list.
        issuer: String,
    },
    /// More lists than [`MAX_REVOCATION_LISTS`].
    #[error("the trust bundle holds more than {MAX_REVOCATION_LISTS} revocation lists")]
    TooMany,
}

/// A certificate that its CA takes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number, as the certificate has it.
    pub serial: Vec<u8>,
    /// Since when, in seconds since 1970.
    pub at: u64,
}

impl Revoked {
    /// This certificate (DER), from `at` on.
    pub fn certificate(der: &[u8], at: u64) -> Result<Self, PkiError> {
        let unreadable = |why: String| PkiError::Unreadable {
            what: "the certificate to be revoked",
            why,
        };
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| unreadable(e.to_string()))?;
        Ok(Self {
            serial: certificate.raw_serial().to_vec(),
            at,
        })
    }
}

/// What a CA has taken back, by the newest of its lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationFacts {
    /// The list's number (RFC 5280 section 5.2.3); 0 where it has none that fits.
    pub number: u64,
    /// Since when it is in force, in seconds since 1970.
    pub this_update: u64,
    /// When the next one is to be there; `None` where it does not say.
    pub next_update: Option<u64>,
    /// The certificates.
    pub revoked: Vec<Revoked>,
}

/// A list that a CA of the bundle has signed.
#[derive(Clone, Debug)]
pub(crate) struct RevocationList {
    der: Vec<u8>,
    /// The issuing CA's public key, as the content of its SubjectPublicKeyInfo: names can be
    /// had twice.
    issuer_key: Vec<u8>,
    this_update: u64,
    list: Arc<CertRevocationList<'static>>,
}

// The parsed form follows from the DER.
impl PartialEq for RevocationList {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for RevocationList {}

impl RevocationList {
    /// Reads a list in DER and finds the CA that signed it among `anchors` (DER certificates).
    pub(crate) fn read<'a>(
        der: &[u8],
        anchors: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Self, RevocationError> {
        if der.len() > MAX_REVOCATION_LIST {
            return Err(RevocationError::Malformed(format!(
                "{} bytes, and {MAX_REVOCATION_LIST} is the most",
                der.len()
            )));
        }
        let malformed = |text: String| RevocationError::Malformed(text);
        let (rest, parsed) =
            CertificateRevocationList::from_der(der).map_err(|e| malformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow its end".into()));
        }
        let issuer_key = signer(&parsed, anchors)?;
        // What decides is read once more by the library that decides.
        let list = OwnedCertRevocationList::from_der(der).map_err(|e| malformed(e.to_string()))?;
        let list = CertRevocationList::from(list);
        if list.issuing_distribution_point().is_some() {
            return Err(malformed(
                "it speaks of a part of the CA's certificates only".into(),
            ));
        }
        Ok(Self {
            der: der.to_vec(),
            issuer_key,
            this_update: u64::try_from(parsed.last_update().timestamp()).unwrap_or(0),
            list: Arc::new(list),
        })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether the CA with this SubjectPublicKeyInfo has signed it.
    pub(crate) fn is_of(&self, spki: &[u8]) -> bool {
        self.issuer_key == content(spki)
    }

    /// Whether both are of one CA.
    pub(crate) fn is_of_the_same(&self, other: &Self) -> bool {
        self.issuer_key == other.issuer_key
    }

    pub(crate) fn this_update(&self) -> u64 {
        self.this_update
    }

    /// What it says. It was read before, when it was added.
    pub(crate) fn facts(&self) -> RevocationFacts {
        let Ok((_, list)) = CertificateRevocationList::from_der(&self.der) else {
            return RevocationFacts::default();
        };
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        let number = list.crl_number().map(|number| number.to_u64_digits());
        RevocationFacts {
            number: match number.as_deref() {
                Some([number]) => *number,
                _ => 0,
            },
            this_update: self.this_update,
            next_update: list.next_update().map(|time| seconds(time.timestamp())),
            revoked: list
                .iter_revoked_certificates()
                .map(|revoked| Revoked {
                    serial: revoked.raw_serial().to_vec(),
                    at: seconds(revoked.revocation_date.timestamp()),
                })
                .collect(),
        }
    }
}

/// The public key of the CA that signed a list.
fn signer<'a>(
    list: &CertificateRevocationList<'_>,
    anchors: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, RevocationError> {
    let issuer = list.issuer().to_string();
    let mut named = false;
    for anchor in anchors {
        let Ok((_, ca)) = X509Certificate::from_der(anchor) else {
            continue;
        };
        if ca.subject().as_raw() != list.issuer().as_raw() {
            continue;
        }
        named = true;
        if !is_signed_by(list, &ca) {
            continue;
        }
        // A CA without any key usage may do everything (RFC 5280 section 4.2.1.3).
        let usage = ca.key_usage().ok().flatten();
        if usage.is_some_and(|usage| !usage.value.crl_sign()) {
            return Err(RevocationError::NotAllowed { issuer });
        }
        return Ok(content(ca.public_key().raw).to_vec());
    }
    Err(match named {
        true => RevocationError::BadSignature { issuer },
        false => RevocationError::UnknownIssuer { issuer },
    })
}

fn is_signed_by(list: &CertificateRevocationList<'_>, ca: &X509Certificate<'_>) -> bool {
    let Ok(key) = VerifyingKey::from_spki(ca.public_key().raw) else {
        return false;
    };
    let Some(scheme) = algorithm(list).and_then(|der| key.scheme_for(&der)) else {
        return false;
    };
    let signed = list.tbs_cert_list.as_ref();
    key.verify(scheme, signed, list.signature_value.as_ref())
        .is_ok()
}

/// The list's outer AlgorithmIdentifier, written as DER again.
fn algorithm(list: &CertificateRevocationList<'_>) -> Option<Vec<u8>> {
    let named = &list.signature_algorithm;
    let oid = named.algorithm.as_bytes();
    let mut body = vec![0x06, u8::try_from(oid.len()).ok()?];
    body.extend(oid);
    if let Some(parameters) = &named.parameters {
        body.extend(parameters.to_der_vec().ok()?);
    }
    let mut der = vec![0x30, u8::try_from(body.len()).ok().filter(|n| *n < 0x80)?];
    der.extend(body);
    Some(der)
}

/// Whether the CA with this public key (the content of its SubjectPublicKeyInfo) has taken back
/// the certificate with this serial number, by the newest of its lists that is in force at `now`.
/// A list that is said to come from the future is left out, and the one before it counts
/// (lesson L38).
pub(crate) fn is_revoked(
    lists: &[RevocationList],
    issuer_key: &[u8],
    serial: &[u8],
    now: u64,
) -> bool {
    lists
        .iter()
        .filter(|list| list.issuer_key == issuer_key)
        .filter(|list| list.this_update <= now.saturating_add(BACKDATE))
        .max_by_key(|list| list.this_update)
        // An entry that cannot be read is no proof that the certificate is good.
        .is_some_and(|list| !matches!(list.list.find_serial(serial), Ok(None)))
}

/// The content of a DER element, without tag and length.
pub(crate) fn content(der: &[u8]) -> &[u8] {
    let header = match der.get(1) {
        Some(short) if *short < 0x80 => 2,
        Some(long) => 2 + usize::from(long & 0x7f),
        None => 0,
    };
    der.get(header..).unwrap_or_default()
}

/// How the CA of this certificate (DER) names its key: its lists repeat it (RFC 5280 section 5.2.1), and others
/// find the CA of a list by it. A CA that we have not made has the name by SHA-1, mostly.
pub(crate) fn key_name(ca: &[u8]) -> KeyIdMethod {
    let named = X509Certificate::from_der(ca).ok().and_then(|(_, ca)| {
        let mut extensions = ca.extensions().iter();
        extensions.find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(name) => Some(name.0.to_vec()),
            _ => None,
        })
    });
    named.map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified)
}

/// The parameters of a list of ours; [`crate::Ca::revocation_list`] signs it.
pub(crate) fn parameters(
    key_name: KeyIdMethod,
    revoked: &[Revoked],
    number: u64,
    now: u64,
    next_update: u64,
) -> Result<CertificateRevocationListParams, PkiError> {
    let entry = |revoked: &Revoked| {
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&revoked.serial),
            revocation_time: date(revoked.at)?,
            reason_code: None,
            invalidity_date: None,
        })
    };
    Ok(CertificateRevocationListParams {
        this_update: date(now)?,
        next_update: date(next_update)?,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect::<Result<_, PkiError>>()?,
        key_identifier_method: key_name,
    })
}
