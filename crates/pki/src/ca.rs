//! The certificate authority of a cluster.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use testudo_crypto::{KeyType, Random, SecretBytes, SigningKey};
use time::OffsetDateTime;

use crate::rcgen_key::{RcgenKey, subject_public_key};
use crate::request::{IPSEC_IKE, check_request, node_params};
use crate::revocation::{self, Revoked};
use crate::{
    BACKDATE, CertificateFacts, NodeIdentity, PkiError, RequestError, chain_from_pem, chain_to_pem,
    hex, key_from_pem, key_to_pem, utc,
};

/// How a CA is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaOptions {
    /// Seconds that it is valid.
    pub lifetime: u64,
    /// The kind of its key.
    pub key_type: KeyType,
}

impl Default for CaOptions {
    fn default() -> Self {
        Self {
            lifetime: 10 * 365 * 24 * 3600,
            key_type: KeyType::EcdsaP256,
        }
    }
}

/// A certificate that the CA has just signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The certificate in DER.
    pub der: Vec<u8>,
    /// What it says.
    pub facts: CertificateFacts,
}

/// A CA with its private key. It cannot be printed or copied.
pub struct Ca {
    certificate: Vec<u8>,
    facts: CertificateFacts,
    key: SigningKey,
}

impl Ca {
    /// Makes a self-signed CA, valid from [`BACKDATE`] before `now`. Its name has a random part,
    /// so that a CA and its successor are never mistaken for each other.
    pub fn generate(
        options: &CaOptions,
        now: u64,
        random: &mut dyn Random,
    ) -> Result<Self, PkiError> {
        let making = |e: rcgen::Error| PkiError::Making {
            what: "the CA certificate",
            why: e.to_string(),
        };
        let key = SigningKey::generate(options.key_type).map_err(|e| PkiError::Making {
            what: "the CA key",
            why: e.to_string(),
        })?;
        let mut label = [0; 4];
        random.fill(&mut label);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = format!("Testudo CA {}", hex(&label));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(new_serial(random));
        params.use_authority_key_identifier_extension = true;
        params.not_before = date(now.saturating_sub(BACKDATE))?;
        params.not_after = date(now.saturating_add(options.lifetime))?;
        let certificate = params.self_signed(&RcgenKey::new(&key)?).map_err(making)?;
        Self::from_der(certificate.der().to_vec(), key)
    }

    /// Takes up a CA from the PEM of its certificate and its key in PKCS#8 (DER or PEM).
    pub fn load(certificate_pem: &str, key: &[u8]) -> Result<Self, PkiError> {
        let unreadable = |what, why: String| PkiError::Unreadable { what, why };
        let certificate = chain_from_pem(certificate_pem)?
            .into_iter()
            .next()
            .ok_or_else(|| unreadable("the CA certificate", "it holds no certificate".into()))?;
        let key = key_from_pem(key)?;
        Self::from_der(certificate, key)
    }

    fn from_der(certificate: Vec<u8>, key: SigningKey) -> Result<Self, PkiError> {
        let facts = CertificateFacts::read(&certificate).map_err(|e| PkiError::Unreadable {
            what: "the CA certificate",
            why: e.text,
        })?;
        if !facts.is_ca {
            return Err(PkiError::NotACa(facts.subject));
        }
        if facts.spki != key.public_spki() {
            return Err(PkiError::KeyMismatch);
        }
        Ok(Self {
            certificate,
            facts,
            key,
        })
    }

    /// Its certificate in DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its certificate in PEM.
    pub fn certificate_pem(&self) -> String {
        chain_to_pem(&[&self.certificate])
    }

    /// What its certificate says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// Its private key as PKCS#8 in PEM, for the one file that only the controller reads.
    pub fn key_pem(&self) -> Result<SecretBytes, PkiError> {
        key_to_pem(&self.key)
    }

    /// Signs a node's request (PKCS#10, DER) with a certificate for exactly `identity`.
    ///
    /// The caller has made sure that it is that node that asks. The request may not ask for any
    /// other name. The certificate is valid from [`BACKDATE`] before `now` for `lifetime`
    /// seconds, but never longer than the CA itself; a CA past its end signs nothing.
    pub fn sign_request(
        &self,
        request: &[u8],
        identity: &NodeIdentity,
        lifetime: u64,
        now: u64,
        random: &mut dyn Random,
    ) -> Result<IssuedCertificate, RequestError> {
        if now >= self.facts.times.not_after {
            return Err(RequestError::CaExpired {
                ended: utc(self.facts.times.not_after),
            });
        }
        let spki = check_request(request, identity)?;
        let der = self.issue(&spki, identity, lifetime, now, random)?;
        let facts = CertificateFacts::read(&der).map_err(|e| PkiError::Unreadable {
            what: "the certificate just signed",
            why: e.text,
        })?;
        Ok(IssuedCertificate { der, facts })
    }

    /// Takes certificates back: a revocation list (DER) in force from `now` on. `number` rises by
    /// one with each list (RFC 5280 section 5.2.3); `next_update` is when the next one will be
    /// there at the latest. A list names all that are revoked, not only the newest.
    pub fn revocation_list(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: u64,
        next_update: u64,
    ) -> Result<Vec<u8>, PkiError> {
        let making = |e: rcgen::Error| PkiError::Making {
            what: "the revocation list",
            why: e.to_string(),
        };
        let issuer_der = CertificateDer::from(self.certificate.as_slice());
        let issuer =
            Issuer::from_ca_cert_der(&issuer_der, RcgenKey::new(&self.key)?).map_err(making)?;
        let key_name = revocation::key_name(&self.certificate);
        let parameters = revocation::parameters(key_name, revoked, number, now, next_update)?;
        let list = parameters.signed_by(&issuer).map_err(making)?;
        Ok(list.der().to_vec())
    }

    fn issue(
        &self,
        spki: &[u8],
        identity: &NodeIdentity,
        lifetime: u64,
        now: u64,
        random: &mut dyn Random,
    ) -> Result<Vec<u8>, PkiError> {
        let making = |e: rcgen::Error| PkiError::Making {
            what: "the node certificate",
            why: e.to_string(),
        };
        let not_before = now.saturating_sub(BACKDATE);
        let not_before = not_before.max(self.facts.times.not_before);
        let not_after = now.saturating_add(lifetime).min(self.facts.times.not_after);
        let mut params = node_params(identity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec())];
        params.serial_number = Some(new_serial(random));
        params.use_authority_key_identifier_extension = true;
        params.not_before = date(not_before)?;
        params.not_after = date(not_after)?;
        let issuer_der = CertificateDer::from(self.certificate.as_slice());
        let issuer =
            Issuer::from_ca_cert_der(&issuer_der, RcgenKey::new(&self.key)?).map_err(making)?;
        let public = subject_public_key(spki)?;
        let certificate = params.signed_by(&public, &issuer).map_err(making)?;
        Ok(certificate.der().to_vec())
    }
}

/// 16 random bytes with the first bit clear and the second set: positive, never short
/// (RFC 5280 section 4.1.2.2).
fn new_serial(random: &mut dyn Random) -> SerialNumber {
    let mut serial = [0; 16];
    random.fill(&mut serial);
    serial[0] = serial[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&serial)
}

pub(crate) fn date(seconds: u64) -> Result<OffsetDateTime, PkiError> {
    let out_of_range = PkiError::Time(seconds);
    let signed = i64::try_from(seconds).map_err(|_| out_of_range.clone())?;
    OffsetDateTime::from_unix_timestamp(signed).map_err(|_| out_of_range)
}
