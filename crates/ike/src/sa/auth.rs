//! IKE_AUTH (RFC 7296, 1.2 and 2.15), both ends.

use std::sync::Arc;

use testudo_model::{Now, PeerId, UnixTime};
use testudo_wire::ike::{
    Authentication, CertEncoding, Certificate, ExchangeType, Header, Message, Notify, NotifyType,
    Payload,
};

use crate::compute::{ProveOp, SignOp};
use crate::config::{Identity, PeerAuth};
use crate::engine::{Dropped, Engine, Path};
use crate::error::{Fault, Refusal, check_of};
use crate::event::{CertificateFacts, DownReason, IkeId};
use crate::intauth::IntAuth;
use crate::keys::{IkeKeys, Roots};
use crate::message::{self, Payloads, RawId, Request};
use crate::ppk::{self, PpkOffer};
use crate::proof::{self, Octets};
use crate::sa::establish::Birth;
use crate::sa::intermediate::is_complete;
use crate::sa::{AuthSent, ChildOffer, Greeting, IkeSa, Refusing, Slot, State};
use crate::timers::Deadline;
use crate::verify::{CertificateVerifier, FailedCheck, PeerExpectation, VerifiedPeer};
use crate::window::{self, Answered, Freshness};

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

/// What a peer says to be, and what has to be computed to believe it.
struct Claim {
    proven: Proven,
    op: Option<ProveOp>,
}

/// We have no child for a peer that must have one.
pub(crate) fn needs_child() -> Fault {
    Fault::Unproven(
        FailedCheck::Proposal,
        "the peer wants a child with IKE_AUTH and none is configured".into(),
    )
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
    /// Sends IKE_AUTH after IKE_SA_INIT and all additional key exchanges.
    pub(crate) fn send_auth(
        &mut self,
        id: IkeId,
        mut keys: IkeKeys,
        int_auth: IntAuth,
        greeting: Arc<Greeting>,
    ) -> Result<(), Fault> {
        let sa = self.sas.get(&id).ok_or(Fault::Bug("no such SA"))?;
        let peer_id = sa.peer.clone().ok_or(Fault::Bug("no peer"))?;
        let ppk = self.offer_ppk(&peer_id, &keys, greeting.use_ppk)?;
        let offered = ppk.as_ref();
        let (list, child) = self.auth_payloads(&peer_id, &keys, &int_auth, &greeting, offered)?;
        let sa = self.sas.get_mut(&id).ok_or(Fault::Bug("no such SA"))?;
        let (exchange, message_id) = (ExchangeType::IKE_AUTH, int_auth.auth_message_id());
        let header = sa.request_header(exchange, message_id);
        let bytes = message::protect(&mut keys, &header, &list)?;
        let path = sa.path();
        sa.state = State::AuthSent(Box::new(AuthSent {
            keys,
            int_auth,
            greeting,
            request: Request::new(message_id, exchange, bytes.clone()),
            child,
            ppk,
        }));
        self.send(path, &bytes);
        Ok(())
    }

    pub(crate) fn auth_payloads(
        &mut self,
        peer_id: &PeerId,
        keys: &IkeKeys,
        int_auth: &IntAuth,
        greeting: &Greeting,
        ppk: Option<&PpkOffer>,
    ) -> Result<(Vec<Payload>, Option<ChildOffer>), Fault> {
        let identity = self.identity.as_ref().ok_or_else(no_identity)?;
        let id = identity.id.to_wire();
        let octets = Octets {
            message: &greeting.transcript.request,
            nonce: &greeting.transcript.nonce_r,
            sk_p: ppk.map_or(&keys.sk_p.0, |ppk| &ppk.roots.sk_p.0),
            id_body: &id.body(),
            int_auth,
        };
        let proof = self.our_proof(peer_id, &greeting.peer_hashes, keys, &octets)?;
        let without = match ppk.filter(|ppk| ppk.is_optional()) {
            Some(_) => {
                let octets = Octets {
                    sk_p: &keys.sk_p.0,
                    ..octets
                };
                Some(self.our_proof(peer_id, &greeting.peer_hashes, keys, &octets)?)
            }
            None => None,
        };
        let auth = self.prove_ourselves(proof.auth)?;
        let without = match without {
            Some(proof) => Some(self.prove_ourselves(proof.auth)?),
            None => None,
        };
        let peer = self.peers.get(peer_id).ok_or(Fault::Bug("no such peer"))?;
        let mut out = vec![Payload::IdInitiator(id)];
        out.extend(proof.certs);
        if matches!(peer.config.auth, PeerAuth::Certificate) {
            out.extend(self.certificate_request());
        }
        out.push(Payload::IdResponder(peer.config.remote_identity.to_wire()));
        out.push(Payload::Authentication(auth));
        out.extend(window::announcement(&self.config));
        out.extend(ppk.map(PpkOffer::identity));
        out.extend(without.map(ppk::no_ppk_auth));
        let stands = peer.sas.iter().any(|id| {
            self.sas
                .get(id)
                .and_then(IkeSa::established)
                .is_some_and(|e| !matches!(e.phase, crate::sa::Phase::Gone))
        });
        if !stands {
            out.push(Payload::Notify(Notify::new(
                NotifyType::INITIAL_CONTACT,
                [],
            )));
        }
        let first = peer.config.children.first().map(|c| Slot {
            name: c.name.clone(),
            resource: 0,
        });
        let Some(slot) = first else {
            return if greeting.childless {
                Ok((out, None))
            } else {
                Err(needs_child())
            };
        };
        let offer = self
            .offer_child(peer_id, &slot)
            .ok_or(Fault::Bug("no such child"))?;
        out.extend(self.offer_payloads(self.suites_of(peer_id), &offer, false, &[]));
        Ok((out, Some(offer)))
    }

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

    /// The peer's IKE_AUTH.
    pub(crate) fn auth_request(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        let parsed = Message::parse(bytes).map_err(|e| e.reason())?;
        let half = self.half_open(id).map_err(|_| "unexpected_exchange")?;
        if half.answered.freshness(header.message_id, 1) != Freshness::New {
            return Err("message_id");
        }
        if !is_complete(half) {
            return Err("intermediate_missing");
        }
        let Some(plain) = self.open_half_open(now, id, from, (bytes, &parsed))? else {
            return Ok(());
        };
        let outcome = plain
            .payloads()
            .map_err(|fault| (None, fault))
            .and_then(|mut payloads| {
                let proven = self.check_initiator(id, &mut payloads, now)?;
                Ok((proven, payloads))
            });
        let (peer, fault, proven) = match outcome {
            Err((_, Fault::Suspended)) => return Err(Fault::Suspended.reason()),
            // Whoever it was has not proven to be that peer.
            Err((peer, fault)) => (peer, fault, false),
            Ok((proven, payloads)) => {
                let peer = proven.peer.clone();
                match self.admit(id, from, header, proven, &payloads, now) {
                    Ok(()) => return Ok(()),
                    Err(Fault::Suspended) => return Err(Fault::Suspended.reason()),
                    Err(fault) => (Some(peer), fault, true),
                }
            }
        };
        self.fault(peer, from, None, &fault, proven);
        self.refuse_half_open(id, from, header, &fault)
    }

    fn check_initiator(
        &mut self,
        id: IkeId,
        payloads: &mut Payloads,
        now: Now,
    ) -> Result<Proven, (Option<PeerId>, Fault)> {
        let Some(State::HalfOpen(half)) = self.sas.get(&id).map(|sa| &sa.state) else {
            return Err((None, Fault::Bug("not half open")));
        };
        let claimed = payloads
            .id_i
            .as_ref()
            .ok_or((None, Fault::Misbehaved("missing_payload")))?;
        let (identity, peer_id) = self.who_is(claimed).map_err(|fault| (None, fault))?;
        let body = claimed.body.clone();
        let roots = match self.choose_ppk(&peer_id, half.use_ppk, &half.keys, payloads) {
            Ok(roots) => roots,
            Err(fault) => return Err((Some(peer_id), fault)),
        };
        let octets = Octets {
            message: &half.transcript.request,
            nonce: &half.transcript.nonce_r,
            sk_p: roots.as_ref().map_or(&half.keys.sk_p.1, |r| &r.sk_p.1),
            id_body: &body,
            int_auth: &half.int_auth,
        };
        let claim = self.claim(&peer_id, identity, payloads, &half.keys, &octets, now);
        match claim.and_then(|claim| self.prove_peer(claim)) {
            Ok(proven) => Ok(Proven { roots, ..proven }),
            Err(fault) => Err((Some(peer_id), fault)),
        }
    }

    /// The configured peer of a claimed identity.
    fn who_is(&self, claimed: &RawId) -> Result<(Identity, PeerId), Fault> {
        let unknown = |text: String| Fault::Unproven(FailedCheck::UnknownPeer, text);
        let identity = Identity::from_wire(&claimed.id)
            .ok_or_else(|| unknown("the claimed identity cannot be read".into()))?;
        let ours = self.identity.as_ref().map(|i| i.id.normal());
        if ours == Some(identity.normal()) {
            return Err(unknown(format!("the peer claims to be us, {identity}")));
        }
        let peer = self.by_identity.get(&identity.normal()).ok_or_else(|| {
            unknown(format!(
                "no peer with the identity {identity} is configured"
            ))
        })?;
        Ok((identity, peer.clone()))
    }

    /// The initiator is who it says: prove ourselves, negotiate the child, establish.
    fn admit(
        &mut self,
        id: IkeId,
        from: Path,
        header: &Header,
        mut proven: Proven,
        payloads: &Payloads,
        now: Now,
    ) -> Result<(), Fault> {
        let peer_id = proven.peer.clone();
        let roots = proven.roots.take();
        let half = self.half_open(id)?;
        // IKE_SA_INIT chose without knowing for whom.
        if !self.suites_of(&peer_id).allow_ike(&half.keys.suite) {
            return Err(Fault::Incompatible(Refusal::NoProposalChosen));
        }
        let identity = self.identity.as_ref().ok_or_else(no_identity)?;
        let our_id = identity.id.to_wire();
        let octets = Octets {
            message: &half.transcript.response,
            nonce: &half.transcript.nonce_i,
            sk_p: roots.as_ref().map_or(&half.keys.sk_p.0, |r| &r.sk_p.0),
            id_body: &our_id.body(),
            int_auth: &half.int_auth,
        };
        let proof = self.our_proof(&peer_id, &half.peer_hashes, &half.keys, &octets)?;
        let auth = self.prove_ourselves(proof.auth)?;
        let mut answer = vec![Payload::IdResponder(our_id)];
        answer.extend(proof.certs);
        answer.push(Payload::Authentication(auth));
        answer.extend(roots.is_some().then(ppk::in_use));
        answer.extend(window::announcement(&self.config));
        let Some(sa) = self.sas.get_mut(&id) else {
            return Err(Fault::Bug("not half open"));
        };
        let header = sa.answer_header(ExchangeType::IKE_AUTH, header.message_id);
        let State::HalfOpen(mut half) = std::mem::replace(&mut sa.state, State::gap()) else {
            return Err(Fault::Bug("not half open"));
        };
        if let Some(roots) = roots {
            half.keys.set_roots(roots);
        }
        self.uncount_half_open(half.source);
        let nonces = (
            half.transcript.nonce_i.clone(),
            half.transcript.nonce_r.clone(),
        );
        let birth = Birth {
            keys: half.keys,
            tie: half.transcript.tie(),
            answered: half.answered,
            next_request: 0,
        };
        self.establish(id, birth, proven, now);
        self.note_window(id, payloads);
        let initial = payloads.notify(NotifyType::INITIAL_CONTACT).is_some();
        answer.extend(self.auth_child(id, &peer_id, from, payloads, &nonces, now));
        let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
            return Err(Fault::Bug("not established"));
        };
        let bytes = message::protect(&mut est.keys, &header, &answer)?;
        est.answered.answered(bytes.clone(), 1);
        self.send(from, &bytes);
        if initial {
            self.initial_contact(id, &peer_id, now);
        }
        self.settle_in(id, &peer_id, now);
        Ok(())
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

    /// The answer to our IKE_AUTH.
    pub(crate) fn auth_answer(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        let Some((_, plain)) = self.open_answer(now, id, bytes, header)? else {
            return Ok(());
        };
        let payloads = match plain.payloads() {
            Ok(payloads) => payloads,
            Err(fault) => {
                self.attempt_failed(id, (fault.check(), fault.text()), now);
                return Err(fault.reason());
            }
        };
        if let (None, Some(error)) = (&payloads.auth, payloads.error()) {
            let text = format!("{} answers {}", from.remote, error.kind);
            self.attempt_failed(id, (check_of(error.kind), text), now);
            return Ok(());
        }
        let checked = self.check_responder(id, &payloads, now);
        if !matches!(checked, Err(Fault::Suspended)) {
            self.timers.cancel(&Deadline::Retransmit(id));
        }
        match checked {
            Ok(proven) => self.enter(id, from, proven, payloads, now),
            Err(Fault::Suspended) => Err(Fault::Suspended.reason()),
            Err(fault) => {
                self.refuse_responder(id, &fault, now);
                Err(fault.reason())
            }
        }
    }

    fn check_responder(
        &mut self,
        id: IkeId,
        payloads: &Payloads,
        now: Now,
    ) -> Result<Proven, Fault> {
        let sa = self.sas.get(&id).ok_or(Fault::Bug("no such SA"))?;
        let (State::AuthSent(sent), Some(peer_id)) = (&sa.state, &sa.peer) else {
            return Err(Fault::Bug("not waiting for IKE_AUTH"));
        };
        let peer = self.peers.get(peer_id).ok_or(Fault::Bug("no such peer"))?;
        let claimed = payloads.id_r.as_ref().ok_or_else(|| {
            Fault::Unproven(FailedCheck::Identity, "the peer sent no identity".into())
        })?;
        let expected = &peer.config.remote_identity;
        let identity = Identity::from_wire(&claimed.id)
            .filter(|identity| identity.normal() == expected.normal())
            .ok_or_else(|| {
                let text = match Identity::from_wire(&claimed.id) {
                    Some(other) => format!("the peer says it is {other}, not {expected}"),
                    None => format!("the peer's identity cannot be read; {expected} is expected"),
                };
                Fault::Unproven(FailedCheck::Identity, text)
            })?;
        let used = self.ppk_answered(peer_id, sent.ppk.as_ref(), payloads)?;
        let roots = sent.ppk.as_ref().filter(|_| used).map(|ppk| &ppk.roots);
        let octets = Octets {
            message: &sent.greeting.transcript.response,
            nonce: &sent.greeting.transcript.nonce_i,
            sk_p: roots.map_or(&sent.keys.sk_p.1, |r| &r.sk_p.1),
            id_body: &claimed.body,
            int_auth: &sent.int_auth,
        };
        let claim = self.claim(peer_id, identity, payloads, &sent.keys, &octets, now)?;
        self.prove_peer(claim)
    }

    /// The responder did not prove itself: tell it in an exchange of its own (RFC 7296, 2.21.2).
    fn refuse_responder(&mut self, id: IkeId, fault: &Fault, now: Now) {
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let (path, peer_id) = (sa.path(), sa.peer.clone());
        if let State::AuthSent(sent) = std::mem::replace(&mut sa.state, State::gap()) {
            let (exchange, message_id) = (ExchangeType::INFORMATIONAL, sent.after());
            let header = sa.request_header(exchange, message_id);
            let mut keys = sent.keys;
            let notify = Payload::Notify(Notify::new(NotifyType::AUTHENTICATION_FAILED, []));
            if let Ok(bytes) = message::protect(&mut keys, &header, &[notify]) {
                let request = Request::new(message_id, exchange, bytes.clone());
                sa.state = State::Refusing(Box::new(Refusing { keys, request }));
                self.send(path, &bytes);
                self.arm_retransmit(id, 1, now);
            }
        }
        self.fault(peer_id.clone(), path, None, fault, true);
        let Some(peer_id) = peer_id else { return };
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.attempt = None;
        }
        self.retry_peer(&peer_id, now);
    }

    /// The responder is who it must be: establish, and install the child.
    fn enter(
        &mut self,
        id: IkeId,
        from: Path,
        proven: Proven,
        payloads: Payloads,
        now: Now,
    ) -> Result<(), Dropped> {
        let peer_id = proven.peer.clone();
        let sa = self.sas.get_mut(&id).ok_or("unknown_spi")?;
        let State::AuthSent(sent) = std::mem::replace(&mut sa.state, State::gap()) else {
            return Err("unexpected_exchange");
        };
        let next_request = sent.after();
        let AuthSent {
            mut keys,
            greeting,
            child,
            ppk,
            ..
        } = *sent;
        // As check_responder judged it.
        let used = payloads.notify(NotifyType::PPK_IDENTITY).is_some();
        if let Some(ppk) = ppk.filter(|_| used) {
            keys.set_roots(ppk.roots);
        }
        let transcript = &greeting.transcript;
        let birth = Birth {
            keys,
            tie: transcript.tie(),
            answered: Answered::default(),
            next_request,
        };
        self.establish(id, birth, proven, now);
        self.note_window(id, &payloads);
        if let Some(offer) = child {
            let nonces = (&transcript.nonce_i[..], &transcript.nonce_r[..]);
            self.child_of_auth(id, from, offer, &payloads, nonces, now);
        }
        // A responder may say it, too (RFC 7296, 2.4); it has proven who it is (lesson L65).
        if payloads.notify(NotifyType::INITIAL_CONTACT).is_some() {
            self.initial_contact(id, &peer_id, now);
        }
        self.settle_in(id, &peer_id, now);
        Ok(())
    }
}

impl AuthSent {
    /// The message ID after that of IKE_AUTH.
    fn after(&self) -> u32 {
        self.request.message_id + 1
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

/// What proves us.
struct OurProof {
    auth: OurAuth,
    certs: Vec<Payload>,
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
