//! The CAs that are trusted: several at once while one follows another.

use std::collections::BTreeMap;

use rustls_pki_types::{CertificateDer, Der, TrustAnchor};

use crate::revocation::{
    MAX_REVOCATION_LIST, MAX_REVOCATION_LISTS, RevocationFacts, RevocationList,
};
use crate::{CertificateFacts, MAX_ANCHORS, MAX_CERTIFICATE, PkiError, RevocationError};

/// CA certificates, in DER, in the order in which they were added, and what those CAs have
/// revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundle {
    anchors: Vec<Anchor>,
    revoked: Vec<RevocationList>,
}

/// A CA, read once: every peer's chain is checked against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) der: Vec<u8>,
    pub(crate) facts: CertificateFacts,
    /// For the path's validation; `None` where the library cannot use it.
    pub(crate) trusted: Option<TrustAnchor<'static>>,
}

impl Anchor {
    fn new(der: &[u8], facts: CertificateFacts) -> Self {
        let certificate = CertificateDer::from(der);
        let trusted = webpki::anchor_from_trusted_cert(&certificate).ok();
        Self {
            der: der.to_vec(),
            facts,
            trusted: trusted.map(|anchor| anchor.to_owned()),
        }
    }

    /// For the validation of one path.
    pub(crate) fn borrowed(&self) -> Option<TrustAnchor<'_>> {
        let anchor = self.trusted.as_ref()?;
        let constraints = anchor.name_constraints.as_deref();
        Some(TrustAnchor {
            subject: Der::from_slice(&anchor.subject),
            subject_public_key_info: Der::from_slice(&anchor.subject_public_key_info),
            name_constraints: constraints.map(Der::from_slice),
        })
    }
}

impl AsRef<[u8]> for Anchor {
    fn as_ref(&self) -> &[u8] {
        &self.der
    }
}

/// A CA cannot be dropped: nodes still present certificates that it issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CA {ca} is still in use by {}: rotate their certificates first", nodes.join(", "))]
pub struct InUse {
    /// Common name of the CA.
    pub ca: String,
    /// The nodes whose certificates it issued.
    pub nodes: Vec<String>,
}

impl TrustBundle {
    /// A bundle that trusts no one.
    pub const fn new() -> Self {
        Self {
            anchors: Vec::new(),
            revoked: Vec::new(),
        }
    }

    /// Reads every `CERTIFICATE` block of a PEM text.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let mut bundle = Self::new();
        for der in chain_from_pem(text)? {
            bundle.add(&der)?;
        }
        Ok(bundle)
    }

    /// The bundle as PEM.
    pub fn to_pem(&self) -> String {
        chain_to_pem(&self.anchors)
    }

    /// Adds a CA; one that is already there is not added again. Says whether it was new.
    pub fn add(&mut self, der: &[u8]) -> Result<bool, PkiError> {
        if self.anchors.iter().any(|a| a.der == der) {
            return Ok(false);
        }
        let facts = read_ca(der)?;
        if !facts.is_ca {
            return Err(PkiError::NotACa(facts.subject));
        }
        if self.anchors.len() == MAX_ANCHORS {
            return Err(PkiError::TooManyAnchors);
        }
        self.anchors.push(Anchor::new(der, facts));
        Ok(true)
    }

    /// Drops the CA with this SHA-256 fingerprint (hex), unless a node still presents a
    /// certificate of it. `presented` maps node names to the authority key identifier (hex) of
    /// the certificate that the node uses now. Says whether it was there.
    pub fn remove(
        &mut self,
        fingerprint: &str,
        presented: &BTreeMap<String, String>,
    ) -> Result<bool, InUse> {
        let is_it = |a: &Anchor| a.facts.fingerprint == fingerprint;
        let Some(index) = self.anchors.iter().position(is_it) else {
            return Ok(false);
        };
        let facts = &self.anchors[index].facts;
        let users = presented
            .iter()
            .filter(|(_, issuer)| Some(*issuer) == facts.subject_key_id.as_ref());
        let nodes: Vec<String> = users.map(|(node, _)| node.clone()).collect();
        if !nodes.is_empty() {
            return Err(InUse {
                ca: facts.subject.clone(),
                nodes,
            });
        }
        self.anchors.remove(index);
        // Without its CA a list means nothing.
        let lists = std::mem::take(&mut self.revoked);
        for list in lists {
            let _ = self.add_revocation_list(list.der());
        }
        Ok(true)
    }

    /// Adds a revocation list (DER) of one of its CAs; says whether it was new. A list that is
    /// refused changes nothing: what was revoked before stays revoked.
    pub fn add_revocation_list(&mut self, der: &[u8]) -> Result<bool, RevocationError> {
        if self.revoked.iter().any(|list| list.der() == der) {
            return Ok(false);
        }
        let list = RevocationList::read(der, self.anchors())?;
        if self.revoked.len() == MAX_REVOCATION_LISTS {
            return Err(RevocationError::TooMany);
        }
        self.revoked.push(list);
        Ok(true)
    }

    /// Adds every `X509 CRL` block of a PEM text, and gives the reasons of those refused.
    pub fn add_revocation_lists_from_pem(&mut self, text: &str) -> Vec<RevocationError> {
        if text.len() > MAX_REVOCATION_LISTS * MAX_REVOCATION_LIST * 2 {
            return vec![RevocationError::Malformed("the PEM is too long".into())];
        }
        let blocks = match pem::parse_many(text) {
            Ok(blocks) => blocks,
            Err(error) => return vec![RevocationError::Malformed(error.to_string())],
        };
        let lists = blocks.iter().filter(|block| block.tag() == "X509 CRL");
        let begun = text.matches("-----BEGIN X509 CRL-----").count();
        // The reader passes over a block without its end, which must not go unnoticed.
        let broken = (begun != lists.clone().count())
            .then(|| RevocationError::Malformed("a PEM block does not end".into()));
        lists
            .filter_map(|block| self.add_revocation_list(block.contents()).err())
            .chain(broken)
            .collect()
    }

    /// The same in place of all lists of its CA that are there.
    pub fn replace_revocation_list(&mut self, der: &[u8]) -> Result<(), RevocationError> {
        let list = RevocationList::read(der, self.anchors())?;
        self.revoked.retain(|old| !old.is_of_the_same(&list));
        if self.revoked.len() == MAX_REVOCATION_LISTS {
            return Err(RevocationError::TooMany);
        }
        self.revoked.push(list);
        Ok(())
    }

    /// Whether any of its CAs has a list.
    pub fn has_revocations(&self) -> bool {
        !self.revoked.is_empty()
    }

    /// What the CA with this public key (SubjectPublicKeyInfo, DER) has taken back by the newest of its
    /// lists, and how many lists of it there are; `None` without any.
    pub fn revocations_of(&self, spki: &[u8]) -> Option<(RevocationFacts, usize)> {
        let of_it = || self.revoked.iter().filter(|list| list.is_of(spki));
        let newest = of_it().max_by_key(|list| list.this_update())?;
        Some((newest.facts(), of_it().count()))
    }

    /// Takes over the revocation lists of `earlier` that CAs of this bundle signed: where some of
    /// the new ones were refused, what was revoked before stays revoked.
    pub fn keep_revocation_lists(&mut self, earlier: &Self) {
        for list in &earlier.revoked {
            let _ = self.add_revocation_list(list.der());
        }
    }

    /// Its revocation lists as PEM.
    pub fn revocation_lists_to_pem(&self) -> String {
        let lists = self.revoked.iter().map(RevocationList::der);
        lists.map(revocation_list_to_pem).collect()
    }

    /// What its CAs have revoked.
    pub(crate) fn revoked(&self) -> &[RevocationList] {
        &self.revoked
    }

    /// The CA certificates in DER.
    pub fn anchors(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.anchors.iter().map(|a| a.der.as_slice())
    }

    /// The CAs as they were read.
    pub(crate) fn read(&self) -> &[Anchor] {
        &self.anchors
    }

    /// What each CA certificate says.
    pub fn facts(&self) -> impl Iterator<Item = CertificateFacts> {
        self.anchors.iter().map(|a| a.facts.clone())
    }

    /// How many CAs it holds.
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }
}

/// The DER of every `CERTIFICATE` block in a PEM text. Other blocks and text between are skipped.
pub fn chain_from_pem(text: &str) -> Result<Vec<Vec<u8>>, PkiError> {
    let unreadable = |why: String| PkiError::Unreadable {
        what: "a certificate in PEM",
        why,
    };
    if text.len() > MAX_ANCHORS * MAX_CERTIFICATE * 2 {
        return Err(unreadable("it is too long".into()));
    }
    let blocks = pem::parse_many(text).map_err(|e| unreadable(e.to_string()))?;
    let certificates = blocks.into_iter().filter(|b| b.tag() == "CERTIFICATE");
    Ok(certificates.map(pem::Pem::into_contents).collect())
}

/// Certificates in DER as PEM, in the order given.
pub fn chain_to_pem<C: AsRef<[u8]>>(chain: &[C]) -> String {
    let block = |der: &C| block("CERTIFICATE", der.as_ref());
    chain.iter().map(block).collect()
}

/// A revocation list in DER as PEM.
pub fn revocation_list_to_pem(der: &[u8]) -> String {
    block("X509 CRL", der)
}

fn block(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}

fn read_ca(der: &[u8]) -> Result<CertificateFacts, PkiError> {
    CertificateFacts::read(der).map_err(|e| PkiError::Unreadable {
        what: "a CA certificate",
        why: e.text,
    })
}
