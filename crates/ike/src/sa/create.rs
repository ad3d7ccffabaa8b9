//! CREATE_CHILD_SA for children: new ones and rekeys (RFC 7296, 1.3.1, 1.3.3, 2.25.1).

use std::sync::Arc;
use std::time::Duration;

use testudo_crypto::{KeMethod, KePrivate, SecretBytes};
use testudo_model::{ChildId, Now, PeerId};
use testudo_wire::ike::{ExchangeType, KeyExchange, Notify, NotifyType, Payload, ProtocolId};

use crate::engine::{Engine, Path};
use crate::error::{Fault, Refusal, check_of};
use crate::event::{DownReason, IkeId};
use crate::exchange::Reply;
use crate::message::Payloads;
use crate::proposal;
use crate::sa::child::{NewChild, UNMATCHED};
use crate::sa::followup::{ChildMaking, Making};
use crate::sa::init::NONCE_LEN;
use crate::sa::{
    ChildFollow, ChildOffer, ChildRequest, Established, IkeSa, Pending, Phase, Slot, Task, resource,
};
use crate::timers::Deadline;

/// The first wait before a refused rekey is tried again; doubles up to `RETRY_LONGEST`.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// 1, 2, 4, ... seconds.
pub(crate) fn retry_wait(failures: u32) -> Duration {
    RETRY
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(RETRY_LONGEST)
}

impl Engine {
    /// Asks for a configured child.
    pub(crate) fn start_create(&mut self, ike: IkeId, slot: &Slot, now: Now) {
        let Some(peer) = self.sas.get(&ike).and_then(|sa| sa.peer.clone()) else {
            return;
        };
        let there = self
            .up_children(&peer, slot)
            .any(|c| c.ike == ike && !c.stale);
        if there {
            return;
        }
        if let Some(offer) = self.offer_child(&peer, slot) {
            // The IKE SA's own exchange would be fresh enough, but strongSwan and libreswan
            // with forward secrecy configured refuse a CREATE_CHILD_SA without an exchange.
            let method = self.child_method(ike, None);
            self.send_create(ike, offer, None, method, Vec::new(), now);
        }
    }

    /// Asks for a successor of a child.
    pub(crate) fn start_rekey_child(&mut self, ike: IkeId, child: ChildId, now: Now) {
        let successor = self.has_successor(child);
        let spi = self.esp_spi();
        let born = self.tick();
        let Some(old) = self.children.get(&child) else {
            return;
        };
        if !old.is_up() || old.stale || old.ike != ike || successor {
            return;
        }
        // What was negotiated, not what is configured (lesson L51).
        let offer = ChildOffer {
            slot: old.slot.clone(),
            spi,
            mode: old.mode,
            local_ts: old.local_ts.clone(),
            remote_ts: old.remote_ts.clone(),
            born,
            shares: old.shares == Some(true) || old.slot.resource > 0,
        };
        let last = old.ke;
        let method = self.child_method(ike, last);
        self.send_create(ike, offer, Some(child), method, Vec::new(), now);
    }

    /// The key exchange for a child: the one that worked the last time (lesson L52), for the
    /// child itself or for its IKE SA.
    pub(crate) fn child_method(&self, ike: IkeId, last: Option<KeMethod>) -> Option<KeMethod> {
        let suites = self.suites_on(ike);
        if !suites.pfs {
            return None;
        }
        let of_sa = || {
            let est = self.sas.get(&ike).and_then(IkeSa::established);
            est.map(|e| e.keys.suite.ke)
        };
        last.or_else(of_sa)
            .filter(|m| suites.ke_methods.contains(m))
            .or_else(|| suites.ke_methods.first().copied())
    }

    pub(crate) fn send_create(
        &mut self,
        ike: IkeId,
        offer: ChildOffer,
        rekeys: Option<ChildId>,
        method: Option<KeMethod>,
        mut tried: Vec<KeMethod>,
        now: Now,
    ) {
        let nonce = self.random_bytes(NONCE_LEN);
        let ke = method.map(|m| Arc::new(KePrivate::generate(m, &mut *self.random)));
        tried.extend(method);
        let mut payloads = Vec::new();
        if let Some(old) = rekeys.and_then(|id| self.children.get(&id)) {
            let notify = Notify::about_esp(NotifyType::REKEY_SA, old.spi_in);
            payloads.push(Payload::Notify(notify));
        }
        let (suites, additional) = (self.suites_on(ike), self.additional_on(ike));
        let offered = self.offer_payloads(suites, &offer, ke.is_some(), additional);
        let mut offered = offered.into_iter().peekable();
        // SA, Ni, KEi, TSi, TSr, after the notifies.
        while let Some(p) = offered.next_if(|p| !matches!(p, Payload::TsInitiator(_))) {
            payloads.push(p);
        }
        payloads.push(Payload::Nonce(nonce.clone()));
        if let Some(ke) = &ke {
            payloads.push(Payload::KeyExchange(KeyExchange {
                method: ke.method().id(),
                data: ke.public().to_vec(),
            }));
        }
        payloads.extend(offered);
        let request = ChildRequest {
            offer,
            rekeys,
            nonce,
            ke,
            tried,
            follow: None,
        };
        self.send_request(
            now,
            ike,
            ExchangeType::CREATE_CHILD_SA,
            &payloads,
            Pending::CreateChild(Box::new(request)),
        );
    }

    /// An authentic CREATE_CHILD_SA request.
    pub(crate) fn create_request(
        &mut self,
        now: Now,
        id: IkeId,
        payloads: Payloads,
    ) -> Result<Reply, Fault> {
        let offer = payloads
            .sa
            .as_ref()
            .ok_or(Fault::Misbehaved("missing_payload"))?;
        let is_ike = offer.iter().any(|p| p.protocol == ProtocolId::IKE);
        if is_ike {
            self.rekey_request(now, id, payloads)
        } else {
            self.child_request(now, id, payloads)
        }
    }

    fn child_request(&mut self, now: Now, id: IkeId, payloads: Payloads) -> Result<Reply, Fault> {
        let sa = self.sas.get(&id).ok_or(Fault::Bug("no such SA"))?;
        let path = sa.path();
        let peer = sa.peer.clone().ok_or(Fault::Bug("no peer"))?;
        let est = sa.established().ok_or(Fault::Bug("not established"))?;
        let rekeying = matches!(est.outstanding, Some((_, Pending::RekeyIke(_))));
        if rekeying || est.phase != Phase::Open {
            return Err(Fault::Incompatible(Refusal::TemporaryFailure));
        }
        let rekeyed = self.rekeyed_child(id, &payloads)?;
        let nonce_i = payloads
            .nonce
            .clone()
            .ok_or(Fault::Misbehaved("missing_payload"))?;
        let agreement = match self.agree_child(id, &peer, &payloads, rekeyed, false, now) {
            Ok(agreement) => agreement,
            Err(fault) => {
                let what = (fault.check(), fault.text());
                let steered = matches!(
                    fault,
                    Fault::Incompatible(
                        Refusal::InvalidKe(_) | Refusal::TsMaxQueue | Refusal::TemporaryFailure
                    )
                );
                if !steered {
                    self.fail(Some(peer), path, Some(UNMATCHED.into()), what, true);
                }
                return Err(fault);
            }
        };
        let suite = agreement.chosen.suite;
        let goes_on = !suite.additional.is_empty();
        if goes_on {
            self.may_follow(id)?;
        }
        let exchanged = match suite.ke {
            Some(method) => Some(self.answer_ke(method, &payloads)?),
            None => None,
        };
        let (public, shared) = exchanged.unzip();
        let nonce_r = self.random_bytes(NONCE_LEN);
        let says_info = resource::says_info(&payloads);
        let spi_in = self.esp_spi();
        let born = self.tick();
        let mut answer = Vec::new();
        let mut agreed = self
            .agreement_payloads(&agreement, spi_in)
            .into_iter()
            .peekable();
        while let Some(p) = agreed.next_if(|p| !matches!(p, Payload::TsInitiator(_))) {
            answer.push(p);
        }
        answer.push(Payload::Nonce(nonce_r.clone()));
        answer.extend(public);
        answer.extend(agreed);
        let making = ChildMaking {
            shares: says_info.then_some(agreement.shares),
            agreement,
            spi_in,
            nonce_i,
            nonce_r,
            rekeyed,
            born,
        };
        match shared {
            Some(shared) if goes_on => {
                let makes = Making::Child(Box::new(making));
                answer.push(self.keep_follower(id, suite.additional, shared, makes, now));
            }
            shared => self.made_child(id, making, shared.as_slice(), now)?,
        }
        Ok(Reply::of(answer))
    }

    /// All key exchanges of a child that we agreed to are done: `secrets` are theirs.
    pub(crate) fn made_child(
        &mut self,
        id: IkeId,
        making: ChildMaking,
        secrets: &[SecretBytes],
        now: Now,
    ) -> Result<(), Fault> {
        let sa = self.sas.get(&id).ok_or(Fault::Bug("no such SA"))?;
        let peer = sa.peer.clone().ok_or(Fault::Bug("no peer"))?;
        let est = sa.established().ok_or(Fault::Bug("not established"))?;
        let ChildMaking {
            agreement,
            shares,
            spi_in,
            nonce_i,
            nonce_r,
            rekeyed,
            born,
        } = making;
        let suite = agreement.chosen.suite;
        let keys = est
            .keys
            .child_keymat(suite.cipher, secrets, &nonce_i, &nonce_r);
        let new = NewChild {
            ike: id,
            slot: agreement.slot,
            mode: agreement.mode,
            suite,
            spi_in,
            spi_out: agreement.spi_out,
            local_ts: agreement.local_ts,
            remote_ts: agreement.remote_ts,
            keys,
            initiator: false,
            born,
            tie: nonce_i.min(nonce_r),
            replaces: rekeyed,
            shares,
            original: agreement.original,
        };
        self.install(new, now);
        self.resolve(&peer, false, now);
        // On an IKE SA that we began, those for CPUs beside it are ours to make.
        if rekeyed.is_none() {
            self.ensure_children_later(&peer, now);
        }
        Ok(())
    }

    /// The child that REKEY_SA names, by the SPI that the peer receives on.
    fn rekeyed_child(&self, id: IkeId, payloads: &Payloads) -> Result<Option<ChildId>, Fault> {
        let Some(notify) = payloads.notify(NotifyType::REKEY_SA) else {
            return Ok(None);
        };
        let spi = notify
            .spi_u32()
            .filter(|_| notify.protocol == ProtocolId::ESP)
            .ok_or(Fault::Misbehaved("bad_rekey_notify"))?;
        let est = self.sas.get(&id).and_then(IkeSa::established);
        let old = est
            .into_iter()
            .flat_map(|e| e.children.iter())
            .filter_map(|c| self.children.get(c))
            .find(|c| c.spi_out == spi);
        match old {
            // It may be the one that our own request makes, whose answer is still on its way.
            None if est.is_some_and(Established::awaits_child) => {
                Err(Fault::Incompatible(Refusal::TemporaryFailure))
            }
            None => Err(Fault::Incompatible(Refusal::ChildNotFound(spi))),
            // We are deleting it (RFC 7296, 2.25.1), or are about to.
            Some(old) if !old.is_up() || old.stale => {
                Err(Fault::Incompatible(Refusal::TemporaryFailure))
            }
            Some(old) => Ok(Some(old.id)),
        }
    }

    /// Our half of a key exchange that the peer began: the KE payload and the secret.
    pub(crate) fn answer_ke(
        &mut self,
        method: KeMethod,
        payloads: &Payloads,
    ) -> Result<(Payload, SecretBytes), Fault> {
        let bad = Fault::Misbehaved("bad_public_key");
        let ke = payloads.ke.as_ref().ok_or(bad.clone())?;
        if ke.method != method.id() || ke.data.len() != method.public_len() {
            return Err(bad);
        }
        let answer = self.respond(method, &ke.data)?;
        let payload = Payload::KeyExchange(KeyExchange {
            method: method.id(),
            data: answer.public,
        });
        Ok((payload, answer.secret))
    }

    /// The initiator's end of a key exchange; computed ahead where anything is (see
    /// [`Engine::agree_ahead`]).
    pub(crate) fn finish_ke(
        &mut self,
        private: &Arc<KePrivate>,
        payloads: &Payloads,
    ) -> Result<(KeMethod, SecretBytes), Fault> {
        let bad = Fault::Misbehaved("bad_public_key");
        let value = peer_value(private, payloads).ok_or(bad)?;
        Ok((private.method(), self.agree_now(private, value)?))
    }

    /// The answer to our request for a child.
    pub(crate) fn create_answer(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        mut request: ChildRequest,
        payloads: Payloads,
    ) {
        let Some(peer) = self.sas.get(&id).and_then(|sa| sa.peer.clone()) else {
            return;
        };
        if let Some(error) = payloads.error().cloned() {
            self.create_refused(now, id, from, request, &error, &peer);
            return;
        }
        let (slot, rekeys) = (request.offer.slot.clone(), request.rekeys);
        let spi = request.offer.spi;
        let outcome = match request.follow.take() {
            None => self.take_created(now, id, request, payloads),
            Some(follow) => self.take_followed(now, id, request, *follow, &payloads),
        };
        match outcome {
            Ok(()) => {
                self.resolve(&peer, false, now);
                if rekeys.is_none() {
                    // Those for CPUs follow the one for all.
                    self.ensure_children(&peer, now);
                }
            }
            Err(Fault::Incompatible(Refusal::TsMaxQueue)) => self.resources_full(id, &slot.name),
            Err(Fault::Incompatible(Refusal::ChildNotFound(_))) => {
                self.ensure_children_later(&peer, now);
            }
            Err(fault) => {
                // The peer believes that it stands: it must not.
                self.push_task(id, Task::DeleteSpi(spi), now);
                let what = (fault.check(), fault.text());
                match rekeys {
                    Some(old) => {
                        self.fail(Some(peer), from, Some(slot.name), what, true);
                        self.rekey_later(old, now);
                    }
                    None => self.child_failed(&peer, from, &slot, what, now),
                }
            }
        }
    }

    fn take_created(
        &mut self,
        now: Now,
        id: IkeId,
        mut request: ChildRequest,
        answer: Payloads,
    ) -> Result<(), Fault> {
        let (Some(chosen), Some(nonce_r)) = (&answer.sa, &answer.nonce) else {
            return Err(Fault::Misbehaved("missing_payload"));
        };
        let method = request.ke.as_ref().map(|ke| ke.method());
        let (suites, additional) = (self.suites_on(id), self.additional_on(id));
        let (suite, _) = proposal::read_child_answer(chosen, suites, method, additional)?;
        let tie = request.nonce.clone().min(nonce_r.clone());
        let lost = |old: &ChildId| self.rekey_is_lost(id, *old, &tie);
        if let Some(old) = request
            .rekeys
            .filter(lost)
            .filter(|_| !suite.additional.is_empty())
        {
            // The peer's goes on; if it comes to nothing, ours begins anew.
            self.rekey_later(old, now);
            return Ok(());
        }
        let secrets = match request.ke.take() {
            Some(private) => vec![self.finish_ke(&private, &answer)?.1],
            None => Vec::new(),
        };
        if suite.additional.is_empty() {
            return self.accept_child(id, request, &answer, method, &secrets, now);
        }
        let (up, payloads) = self.next_follow_up(suite.additional, secrets, &answer)?;
        let follow = ChildFollow { answer, method, up };
        request.follow = Some(Box::new(follow));
        let pending = Pending::CreateChild(Box::new(request));
        self.send_follow_up(now, id, &payloads, pending);
        Ok(())
    }

    /// The answer to an additional key exchange.
    fn take_followed(
        &mut self,
        now: Now,
        id: IkeId,
        mut request: ChildRequest,
        follow: ChildFollow,
        payloads: &Payloads,
    ) -> Result<(), Fault> {
        let ChildFollow { answer, method, up } = follow;
        let (rounds, secrets) = self.take_follow_up(up, payloads)?;
        if rounds.after(secrets.len() - 1).is_none() {
            return self.accept_child(id, request, &answer, method, &secrets, now);
        }
        let (up, payloads) = self.next_follow_up(rounds, secrets, payloads)?;
        let follow = ChildFollow { answer, method, up };
        request.follow = Some(Box::new(follow));
        let pending = Pending::CreateChild(Box::new(request));
        self.send_follow_up(now, id, &payloads, pending);
        Ok(())
    }

    fn create_refused(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        request: ChildRequest,
        error: &Notify,
        peer: &PeerId,
    ) {
        let ChildRequest {
            offer,
            rekeys,
            tried,
            ..
        } = request;
        match error.kind {
            NotifyType::INVALID_KE_PAYLOAD => {
                let wanted = error.data_u16().and_then(KeMethod::from_id);
                let ours = &self.suites_on(id).ke_methods;
                let usable = wanted.filter(|m| ours.contains(m) && !tried.contains(m));
                if let Some(method) = usable {
                    self.send_create(id, offer, rekeys, Some(method), tried, now);
                    return;
                }
            }
            // The peer has forgotten what it agreed to (RFC 9370, 2.2.4): as much a matter of time.
            NotifyType::TEMPORARY_FAILURE | NotifyType::STATE_NOT_FOUND => {
                match rekeys {
                    Some(old) => self.rekey_later(old, now),
                    None => self.retry_child(peer, &offer.slot, now),
                }
                return;
            }
            NotifyType::CHILD_SA_NOT_FOUND => {
                let unsure = rekeys
                    .and_then(|old| self.children.get(&old))
                    .is_some_and(|old| !old.confirmed);
                if let Some(old) = rekeys {
                    if unsure {
                        // The peer has not seen our answer that made it.
                        self.rekey_later(old, now);
                        return;
                    }
                    self.retire_child(old, DownReason::PeerDeleted, now);
                }
                self.ensure_children_later(peer, now);
                return;
            }
            // Not a failure: it has said how many it takes (RFC 9611).
            NotifyType::TS_MAX_QUEUE if rekeys.is_none() && offer.slot.resource > 0 => {
                self.resources_full(id, &offer.slot.name);
                self.resolve(peer, false, now);
                return;
            }
            NotifyType::INVALID_SYNTAX => {
                let fault = Fault::Misbehaved("invalid_syntax_answered");
                self.broken_answer(now, id, from, &fault);
                return;
            }
            _ => {}
        }
        let what = (
            check_of(error.kind),
            format!("the peer answers {}", error.kind),
        );
        match rekeys {
            // The peer makes no more SAs here: a new IKE SA can (RFC 7296, 1.3).
            Some(_) if error.kind == NotifyType::NO_ADDITIONAL_SAS => {
                let _ = self.reauthenticate(peer, now);
            }
            Some(old) => {
                self.fail(Some(peer.clone()), from, Some(offer.slot.name), what, true);
                self.rekey_later(old, now);
            }
            None => self.child_failed(peer, from, &offer.slot, what, now),
        }
    }

    /// A rekey that was refused for now is tried again, as long as the old child lives.
    pub(crate) fn rekey_later(&mut self, child: ChildId, now: Now) {
        let Some(old) = self.children.get_mut(&child).filter(|c| c.is_up()) else {
            return;
        };
        old.failures += 1;
        let wait = retry_wait(old.failures);
        let at = now.monotonic + wait + self.jitter(wait, 100);
        self.timers.set(Deadline::RekeyChild(child), at);
    }
}

/// The peer's value, if it is one for our half of the key exchange.
pub(crate) fn peer_value<'a>(private: &KePrivate, payloads: &'a Payloads) -> Option<&'a [u8]> {
    let method = private.method();
    let ke = payloads.ke.as_ref()?;
    (ke.method == method.id() && ke.data.len() == method.response_len()).then_some(&ke.data)
}
