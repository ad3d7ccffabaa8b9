//! IKE_AUTH of the end that answers.

use testudo_model::{Now, PeerId};
use testudo_wire::ike::{ExchangeType, Header, Message, NotifyType, Payload};

use super::{Proven, no_identity};
use crate::config::Identity;
use crate::engine::{Dropped, Engine, Path};
use crate::error::{Fault, Refusal};
use crate::event::IkeId;
use crate::message::{self, Payloads, RawId};
use crate::ppk;
use crate::proof::Octets;
use crate::sa::establish::Birth;
use crate::sa::intermediate::is_complete;
use crate::sa::{IkeSa, State};
use crate::verify::FailedCheck;
use crate::window::{self, Freshness};

impl Engine {
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
}
