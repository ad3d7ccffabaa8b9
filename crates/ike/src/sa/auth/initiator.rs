//! IKE_AUTH of the end that asks.

use std::sync::Arc;

use testudo_model::{Now, PeerId};
use testudo_wire::ike::{ExchangeType, Header, Notify, NotifyType, Payload};

use super::{Proven, needs_child, no_identity};
use crate::config::{Identity, PeerAuth};
use crate::engine::{Dropped, Engine, Path};
use crate::error::{Fault, check_of};
use crate::event::IkeId;
use crate::intauth::IntAuth;
use crate::keys::IkeKeys;
use crate::message::{self, Payloads, Request};
use crate::ppk::{self, PpkOffer};
use crate::proof::Octets;
use crate::sa::establish::Birth;
use crate::sa::{AuthSent, ChildOffer, Greeting, IkeSa, Refusing, Slot, State};
use crate::timers::Deadline;
use crate::verify::FailedCheck;
use crate::window::{self, Answered};

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
