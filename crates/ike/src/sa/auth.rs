//! IKE_AUTH (RFC 7296, 1.2 and 2.15), both ends.

mod initiator;
mod responder;

use std::sync::Arc;

use testudo_model::{Now, PeerId, UnixTime};
use testudo_wire::ike::{Authentication, CertEncoding, Certificate, Payload};

use crate::compute::{ProveOp, SignOp};
use crate::config::{Identity, PeerAuth};
use crate::engine::Engine;
use crate::error::Fault;
use crate::event::{CertificateFacts, DownReason, IkeId};
use crate::keys::{IkeKeys, Roots};
use crate::message::Payloads;
use crate::proof::{self, Octets};
use crate::sa::IkeSa;
use crate::verify::{CertificateVerifier, FailedCheck, PeerExpectation, VerifiedPeer};

/// Certificates of a peer that are read, a leaf and its intermediates: as many as testudo-pki
/// takes.
const LONGEST_CHAIN: usize = 8;

/// How we prove ourselves.
enum OurAuth {
    /// With a pre-shared key.
    Mac(Authentication),
    /// With our certificate: the signature is to be computed.
    Signature(SignOp),
}

/// What proves us.
struct OurProof {
    auth: OurAuth,
    certs: Vec<Payload>,
}

/// What a peer says to be, and what has to be computed to believe it.
struct Claim {
    proven: Proven,
    op: Option<ProveOp>,
}

/// A peer that has proven itself.
pub(crate) struct Proven {
    pub(crate) peer: PeerId,
    pub(crate) identity: Identity,
    pub(crate) certificate: Option<CertificateFacts>,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) not_after: Option<UnixTime>,
    /// The keys with the PPK, if one is used.
    pub(crate) roots: Option<Roots>,
}

impl Engine {
    /// Our AUTH payload.
    fn prove_ourselves(&mut self, auth: OurAuth) -> Result<Authentication, Fault> {
        match auth {
            OurAuth::Mac(mac) => Ok(mac),
            OurAuth::Signature(op) => self.sign(op),
        }
    }

    /// What our AUTH payload is made of, and the certificates with it.
    fn our_proof(
        &self,
        peer_id: &PeerId,
        peer_hashes: &[u16],
        keys: &IkeKeys,
        octets: &Octets<'_>,
    ) -> Result<OurProof, Fault> {
        let peer = self.peers.get(peer_id).ok_or(Fault::Bug("no such peer"))?;
        match &peer.config.auth {
            PeerAuth::PreSharedKey(psk) => Ok(OurProof {
                auth: OurAuth::Mac(proof::psk_auth(psk, keys, octets)),
                certs: Vec::new(),
            }),
            PeerAuth::Certificate => {
                let credential = self
                    .identity
                    .as_ref()
                    .and_then(|i| i.certificate.as_ref())
                    .ok_or_else(|| {
                        Fault::Unproven(
                            FailedCheck::LocalCredential,
                            "we have no certificate of our own yet".into(),
                        )
                    })?;
                let auth = OurAuth::Signature(SignOp {
                    credential: credential.clone(),
                    epoch: self.identity_epoch,
                    peer_hashes: peer_hashes.to_vec(),
                    octets: octets.joined(keys),
                });
                let certs = credential
                    .chain
                    .iter()
                    .map(|der| {
                        Payload::Certificate(Certificate {
                            encoding: CertEncoding::X509_SIGNATURE,
                            data: der.clone(),
                        })
                    })
                    .collect();
                Ok(OurProof { auth, certs })
            }
        }
    }

    /// Checks the peer's AUTH payload and, before it, whose key made it.
    fn prove_peer(&mut self, claim: Claim) -> Result<Proven, Fault> {
        let mut proven = claim.proven;
        if let Some(op) = claim.op {
            proven.chain.clone_from(&op.chain);
            let verified = self.prove(op)?;
            proven.not_after = Some(verified.not_after);
            proven.certificate = Some(facts(verified));
        }
        Ok(proven)
    }

    /// What the peer has to prove. A pre-shared key's proof is checked here.
    fn claim(
        &self,
        peer_id: &PeerId,
        identity: Identity,
        payloads: &Payloads,
        keys: &IkeKeys,
        octets: &Octets<'_>,
        now: Now,
    ) -> Result<Claim, Fault> {
        let peer = self.peers.get(peer_id).ok_or(Fault::Bug("no such peer"))?;
        // Without AUTH the peer wants EAP, or nothing (lesson L15).
        let auth = payloads.auth.as_ref().ok_or_else(|| {
            Fault::Unproven(
                FailedCheck::AuthMethod,
                "the peer sent no AUTH payload".into(),
            )
        })?;
        let proven = Proven {
            peer: peer_id.clone(),
            identity,
            certificate: None,
            chain: Vec::new(),
            not_after: None,
            roots: None,
        };
        match &peer.config.auth {
            PeerAuth::PreSharedKey(psk) => {
                proof::check_psk(psk, auth, keys, octets)?;
                Ok(Claim { proven, op: None })
            }
            PeerAuth::Certificate => {
                let chain: Vec<Vec<u8>> = payloads
                    .certs
                    .iter()
                    .filter(|c| c.encoding == CertEncoding::X509_SIGNATURE)
                    .map(|c| c.data.clone())
                    .take(LONGEST_CHAIN)
                    .collect();
                check_encodings(&payloads.certs, &chain)?;
                let op = ProveOp {
                    verifier: self.verifier_of(&chain)?.clone(),
                    epoch: self.verifier_epoch,
                    peer: peer_id.clone(),
                    identity: proven.identity.clone(),
                    chain,
                    wall: now.wall,
                    allowed: self.suites_of(peer_id).signatures.clone(),
                    auth: auth.clone(),
                    octets: octets.joined(keys),
                };
                Ok(Claim {
                    proven,
                    op: Some(op),
                })
            }
        }
    }

    /// Who judges a chain, if there is one to be judged.
    fn verifier_of(
        &self,
        chain: &[Vec<u8>],
    ) -> Result<&Arc<dyn CertificateVerifier + Send + Sync>, Fault> {
        let unproven = |check, text: &str| Fault::Unproven(check, text.into());
        let verifier = self
            .verifier
            .as_ref()
            .ok_or_else(|| unproven(FailedCheck::LocalCredential, "we trust no CA yet"))?;
        if chain.is_empty() {
            return Err(unproven(
                FailedCheck::CertificateMalformed,
                "the peer sent no certificate",
            ));
        }
        Ok(verifier)
    }

    /// Asks the verifier.
    pub(crate) fn verify_chain(
        &self,
        peer: &PeerId,
        identity: &Identity,
        chain: &[Vec<u8>],
        now: Now,
    ) -> Result<VerifiedPeer, Fault> {
        let verifier = self.verifier_of(chain)?;
        let parts: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        let expected = PeerExpectation { peer, identity };
        verifier
            .verify(&parts, &expected, now.wall)
            .map_err(|e| Fault::Unproven(e.check, e.text))
    }

    /// The peer knows nothing of older SAs (RFC 7296, 2.4). Those that were made while this
    /// one was under way are not older.
    fn initial_contact(&mut self, id: IkeId, peer_id: &PeerId, now: Now) {
        let Some(born) = self.sas.get(&id).map(|sa| sa.born) else {
            return;
        };
        let old: Vec<_> = self
            .peers
            .get(peer_id)
            .into_iter()
            .flat_map(|p| p.sas.iter().copied())
            .filter(|other| {
                *other != id
                    && self
                        .sas
                        .get(other)
                        .and_then(IkeSa::established)
                        .is_some_and(|e| e.lineage.established < born)
            })
            .collect();
        for other in old {
            self.remove_sa(other, DownReason::InitialContact, now);
        }
    }
}

/// What certificates cannot be read, if none can. We do not say HTTP_CERT_LOOKUP_SUPPORTED, and
/// fetch nothing that an unproven peer names (RFC 7296, 3.6; lesson L37).
fn check_encodings(certs: &[Certificate], readable: &[Vec<u8>]) -> Result<(), Fault> {
    let Some(strange) = certs.first().filter(|_| readable.is_empty()) else {
        return Ok(());
    };
    let text = match strange.encoding {
        CertEncoding::HASH_AND_URL | CertEncoding::HASH_AND_URL_BUNDLE => {
            "the peer sent the URL of its certificate, and we fetch none: it must send it".into()
        }
        other => format!("the peer sent a certificate of encoding {other}, which is not X.509"),
    };
    Err(Fault::Unproven(FailedCheck::CertificateMalformed, text))
}

/// We have no child for a peer that must have one.
pub(crate) fn needs_child() -> Fault {
    Fault::Unproven(
        FailedCheck::Proposal,
        "the peer wants a child with IKE_AUTH and none is configured".into(),
    )
}

fn no_identity() -> Fault {
    Fault::Unproven(
        FailedCheck::LocalCredential,
        "we have no identity yet".into(),
    )
}

pub(crate) fn facts(verified: VerifiedPeer) -> CertificateFacts {
    CertificateFacts {
        serial: verified.serial,
        subject: verified.subject,
        issuer: verified.issuer,
        not_after: verified.not_after,
    }
}
