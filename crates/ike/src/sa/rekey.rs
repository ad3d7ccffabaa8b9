//! Rekeying an IKE SA, and what happens when both ends do so at once (RFC 7296, 1.3.2, 2.8,
//! 2.18, 2.25.2).

use std::sync::Arc;
use std::time::Duration;

use testudo_crypto::{KeMethod, KePrivate, SecretBytes};
use testudo_model::Now;
use testudo_wire::ike::{ExchangeType, KeyExchange, NotifyType, Payload};

use crate::engine::{Engine, Path};
use crate::error::{Fault, Refusal, check_of};
use crate::event::{DownReason, IkeId};
use crate::exchange::Reply;
use crate::keys::{IkeKeys, Seeds, Suite, skeyseed_rekey};
use crate::message::Payloads;
use crate::proposal;
use crate::sa::create::retry_wait;
use crate::sa::establish::SuccessorBirth;
use crate::sa::followup::{IkeMaking, Making};
use crate::sa::init::NONCE_LEN;
use crate::sa::{IkeFollow, IkeRequest, IkeSa, Pending, Phase, Successor, Task};
use crate::timers::Deadline;
use crate::window::Answered;

/// How long the peer has to delete an IKE SA that is its to delete.
const REDUNDANT: Duration = Duration::from_secs(60);

/// IKE SAs of a peer on their way out, for each one that it may hold open.
const LEFT_BEHIND: usize = 8;

impl Engine {
    /// Asks for a successor of the IKE SA.
    pub(crate) fn start_rekey_ike(&mut self, id: IkeId, now: Now) {
        let Some(est) = self.sas.get(&id).and_then(IkeSa::established) else {
            return;
        };
        if !est.successors.is_empty() {
            return;
        }
        let ours = &self.suites_on(id).ke_methods;
        let method = Some(est.keys.suite.ke)
            .filter(|m| ours.contains(m))
            .or_else(|| ours.first().copied());
        if let Some(method) = method {
            self.send_rekey(id, method, Vec::new(), now);
        }
    }

    fn send_rekey(&mut self, id: IkeId, method: KeMethod, mut tried: Vec<KeMethod>, now: Now) {
        let spi = self.ike_spi();
        let nonce = self.random_bytes(NONCE_LEN);
        let ke = Arc::new(KePrivate::generate(method, &mut *self.random));
        tried.push(method);
        let suites = self.suites_on(id).clone();
        let payloads = [
            Payload::Sa(proposal::ike_offer(&suites, Some(spi))),
            Payload::Nonce(nonce.clone()),
            Payload::KeyExchange(KeyExchange {
                method: method.id(),
                data: ke.public().to_vec(),
            }),
        ];
        let request = IkeRequest {
            suites,
            spi,
            nonce,
            ke: Some(ke),
            tried,
            follow: None,
        };
        self.send_request(
            now,
            id,
            ExchangeType::CREATE_CHILD_SA,
            &payloads,
            Pending::RekeyIke(Box::new(request)),
        );
    }

    /// The peer's request for a successor.
    pub(crate) fn rekey_request(
        &mut self,
        now: Now,
        id: IkeId,
        payloads: Payloads,
    ) -> Result<Reply, Fault> {
        let est = self
            .sas
            .get(&id)
            .and_then(IkeSa::established)
            .ok_or(Fault::Bug("not established"))?;
        let busy = matches!(
            est.outstanding,
            Some((
                _,
                Pending::CreateChild(_) | Pending::DeleteChild(_) | Pending::DeleteSpi
            ))
        );
        let again = est.successors.iter().any(|s| !s.ours);
        if busy || again || est.phase != Phase::Open || self.too_many_sas(id) {
            return Err(Fault::Incompatible(Refusal::TemporaryFailure));
        }
        let (Some(offer), Some(ke), Some(nonce_i)) = (&payloads.sa, &payloads.ke, &payloads.nonce)
        else {
            return Err(Fault::Misbehaved("missing_payload"));
        };
        let suites = self.suites_on(id);
        let (chosen, spi_i) = proposal::choose_ike(offer, suites, ke.method, true, true)?;
        let goes_on = !chosen.suite.additional.is_empty();
        if goes_on {
            self.may_follow(id)?;
        }
        let (public, shared) = self.answer_ke(chosen.suite.ke, &payloads)?;
        let nonce_r = self.random_bytes(NONCE_LEN);
        let spi_r = self.ike_spi();
        let mut answer = vec![
            Payload::Sa(proposal::ike_answer(&chosen, Some(spi_r))),
            Payload::Nonce(nonce_r.clone()),
            public,
        ];
        let making = IkeMaking {
            suite: chosen.suite,
            spi_i,
            spi_r,
            nonce_i: nonce_i.clone(),
            nonce_r,
        };
        if goes_on {
            let (rounds, makes) = (making.suite.additional, Making::Ike(making));
            answer.push(self.keep_follower(id, rounds, shared, makes, now));
        } else {
            self.made_ike(id, &making, &[shared], now)?;
        }
        Ok(Reply::of(answer))
    }

    /// All key exchanges of a successor that we agreed to are done: `secrets` are theirs.
    pub(crate) fn made_ike(
        &mut self,
        id: IkeId,
        making: &IkeMaking,
        secrets: &[SecretBytes],
        now: Now,
    ) -> Result<(), Fault> {
        let seeds = Seeds {
            nonce_i: &making.nonce_i,
            nonce_r: &making.nonce_r,
            spi_i: making.spi_i,
            spi_r: making.spi_r,
        };
        let keys = self.successor_keys(id, making.suite, &seeds, secrets, false)?;
        let birth = SuccessorBirth {
            keys,
            initiator: false,
            spi_ours: making.spi_r,
            spi_peer: making.spi_i,
            answered: Answered::default(),
        };
        let tie = making.nonce_i.clone().min(making.nonce_r.clone());
        self.add_successor(id, birth, tie, now);
        Ok(())
    }

    fn successor_keys(
        &self,
        old: IkeId,
        suite: Suite,
        seeds: &Seeds<'_>,
        secrets: &[SecretBytes],
        initiator: bool,
    ) -> Result<IkeKeys, Fault> {
        let old = self
            .sas
            .get(&old)
            .and_then(IkeSa::established)
            .ok_or(Fault::Bug("not established"))?;
        let seed = skeyseed_rekey(&old.keys, seeds, secrets);
        let export = self.config.danger_export_keys;
        let mut keys = IkeKeys::derive(suite, &seed, seeds, initiator, export)?;
        keys.largest = old.keys.largest;
        keys.ppk = old.keys.ppk;
        Ok(keys)
    }

    /// A peer that rekeys again and again leaves IKE SAs behind that stay for a while to repeat
    /// their last answers: so many and no more.
    fn too_many_sas(&self, id: IkeId) -> bool {
        let most = self.most_sas();
        let peer = self.sas.get(&id).and_then(|sa| sa.peer.as_ref());
        peer.and_then(|peer| self.peers.get(peer))
            .is_some_and(|peer| peer.sas.len() >= most)
    }

    /// IKE SAs that we hold of one peer, with those that only wait for their end.
    pub(crate) fn most_sas(&self) -> usize {
        let open = self.config.limits.ike_sas_per_peer.max(2);
        open.saturating_mul(LEFT_BEHIND)
    }

    /// The answer to our request for a successor.
    pub(crate) fn rekey_answer(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        mut request: IkeRequest,
        payloads: Payloads,
    ) {
        if let Some(error) = payloads.error() {
            let (kind, wanted) = (error.kind, error.data_u16());
            self.rekey_refused(now, id, from, request, kind, wanted);
            return;
        }
        let outcome = match request.follow.take() {
            None => self.take_rekeyed(now, id, request, &payloads),
            Some(follow) => self.take_rekey_followed(now, id, request, *follow, &payloads),
        };
        if let Err(fault) = outcome {
            self.broken_answer(now, id, from, &fault);
        }
    }

    fn take_rekeyed(
        &mut self,
        now: Now,
        id: IkeId,
        mut request: IkeRequest,
        payloads: &Payloads,
    ) -> Result<(), Fault> {
        let (Some(answer), Some(nonce_r)) = (&payloads.sa, &payloads.nonce) else {
            return Err(Fault::Misbehaved("missing_payload"));
        };
        let private = request
            .ke
            .take()
            .ok_or(Fault::Bug("no key exchange is under way"))?;
        let (suites, sent) = (&request.suites, private.method());
        let (suite, spi_r) = proposal::read_ike_answer(answer, suites, sent, true, true)?;
        let tie = request.nonce.clone().min(nonce_r.clone());
        if !suite.additional.is_empty() && self.ike_rekey_is_lost(id, &tie) {
            // The peer's goes on; if it comes to nothing, ours begins anew.
            self.rekey_ike_later(id, now);
            self.settle(id, now);
            return Ok(());
        }
        let (_, shared) = self.finish_ke(&private, payloads)?;
        let made = IkeMaking {
            suite,
            spi_i: request.spi,
            spi_r,
            nonce_i: request.nonce.clone(),
            nonce_r: nonce_r.clone(),
        };
        if suite.additional.is_empty() {
            return self.take_successor(id, &made, &[shared], now);
        }
        let (up, next) = self.next_follow_up(suite.additional, vec![shared], payloads)?;
        request.follow = Some(Box::new(IkeFollow { made, up }));
        let pending = Pending::RekeyIke(Box::new(request));
        self.send_follow_up(now, id, &next, pending);
        Ok(())
    }

    /// The answer to an additional key exchange.
    fn take_rekey_followed(
        &mut self,
        now: Now,
        id: IkeId,
        mut request: IkeRequest,
        follow: IkeFollow,
        payloads: &Payloads,
    ) -> Result<(), Fault> {
        let IkeFollow { made, up } = follow;
        let (rounds, secrets) = self.take_follow_up(up, payloads)?;
        if rounds.after(secrets.len() - 1).is_none() {
            return self.take_successor(id, &made, &secrets, now);
        }
        let (up, next) = self.next_follow_up(rounds, secrets, payloads)?;
        request.follow = Some(Box::new(IkeFollow { made, up }));
        let pending = Pending::RekeyIke(Box::new(request));
        self.send_follow_up(now, id, &next, pending);
        Ok(())
    }

    /// All key exchanges of a successor that we asked for are done: `secrets` are theirs.
    fn take_successor(
        &mut self,
        id: IkeId,
        made: &IkeMaking,
        secrets: &[SecretBytes],
        now: Now,
    ) -> Result<(), Fault> {
        let seeds = Seeds {
            nonce_i: &made.nonce_i,
            nonce_r: &made.nonce_r,
            spi_i: made.spi_i,
            spi_r: made.spi_r,
        };
        let keys = self.successor_keys(id, made.suite, &seeds, secrets, true)?;
        let birth = SuccessorBirth {
            keys,
            initiator: true,
            spi_ours: made.spi_i,
            spi_peer: made.spi_r,
            answered: Answered::default(),
        };
        let tie = made.nonce_i.clone().min(made.nonce_r.clone());
        self.add_successor(id, birth, tie, now);
        Ok(())
    }

    /// Whether our rekey with the nonces `tie` has lost to one of the peer's that we know of.
    fn ike_rekey_is_lost(&self, id: IkeId, tie: &[u8]) -> bool {
        let est = self.sas.get(&id).and_then(IkeSa::established);
        est.is_some_and(|e| {
            let mut made = e.successors.iter().filter(|s| self.is_waiting(s.ike));
            e.loses_to_follower(tie) || made.any(|s| &s.tie[..] > tie)
        })
    }

    /// A rekey that was refused for now is tried again.
    fn rekey_ike_later(&mut self, id: IkeId, now: Now) {
        let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
            return;
        };
        est.rekey_failures += 1;
        let wait = retry_wait(est.rekey_failures);
        let at = now.monotonic + wait + self.jitter(wait, 100);
        self.timers.set(Deadline::RekeyIke(id), at);
    }

    fn rekey_refused(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        request: IkeRequest,
        kind: NotifyType,
        wanted: Option<u16>,
    ) {
        if kind == NotifyType::INVALID_KE_PAYLOAD {
            let ours = &self.suites_on(id).ke_methods;
            let usable = wanted
                .and_then(KeMethod::from_id)
                .filter(|m| ours.contains(m) && !request.tried.contains(m));
            if let Some(method) = usable {
                self.send_rekey(id, method, request.tried, now);
                return;
            }
        }
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let peer = sa.peer.clone();
        let Some(est) = sa.established_mut() else {
            return;
        };
        if !est.successors.is_empty() {
            // The peer's own rekey takes its place.
            self.settle(id, now);
            return;
        }
        if matches!(
            kind,
            NotifyType::TEMPORARY_FAILURE | NotifyType::STATE_NOT_FOUND
        ) {
            self.rekey_ike_later(id, now);
            return;
        }
        let what = (check_of(kind), format!("the peer answers {kind}"));
        self.fail(peer.clone(), from, None, what, true);
        // A peer that cannot rekey may still authenticate anew.
        if let Some(peer) = peer {
            let _ = self.reauthenticate(&peer, now);
        }
    }

    fn add_successor(&mut self, old: IkeId, birth: SuccessorBirth, tie: Vec<u8>, now: Now) {
        let ours = birth.initiator;
        let Some(new) = self.establish_successor(old, birth, now) else {
            return;
        };
        let Some(est) = self.sas.get_mut(&old).and_then(IkeSa::established_mut) else {
            return;
        };
        if est.phase == Phase::Shut {
            // Closed while we waited for the answer: so is what it made.
            self.shut(new, DownReason::Closed, now);
            return;
        }
        if matches!(est.phase, Phase::Leaving(_)) {
            self.leave_successor(old, new, now);
            return;
        }
        if est.phase != Phase::Open {
            // The peer has settled on its own already.
            self.retire_ike(new, ours, now);
            return;
        }
        est.successors.push(Successor {
            ike: new,
            ours,
            tie,
        });
        self.settle(old, now);
    }

    /// We leave an IKE SA, and had asked for a successor before. The peer has moved the children to
    /// that and goes on sending on them until it is deleted, too: so they stay as long with us.
    fn leave_successor(&mut self, old: IkeId, new: IkeId, now: Now) {
        self.move_children(old, new);
        self.retire_ike(old, true, now);
        self.leave(new, now);
    }

    /// Once it is known which successors there are, the one with the greater smallest nonce
    /// wins.
    pub(crate) fn settle(&mut self, old: IkeId, now: Now) {
        let Some(est) = self.sas.get(&old).and_then(IkeSa::established) else {
            return;
        };
        if matches!(est.outstanding, Some((_, Pending::RekeyIke(_)))) {
            return;
        }
        // One that was deleted meanwhile has lost.
        let best = est
            .successors
            .iter()
            .filter(|s| self.is_waiting(s.ike))
            .max_by(|a, b| a.tie.cmp(&b.tie))
            .cloned();
        // A better one that the peer is still making comes, or is given up in time.
        if let Some(best) = best.filter(|best| !est.loses_to_follower(&best.tie)) {
            self.settle_on(old, &best, now);
        }
    }

    fn is_waiting(&self, id: IkeId) -> bool {
        self.sas
            .get(&id)
            .and_then(IkeSa::established)
            .is_some_and(|e| e.phase == Phase::Waiting)
    }

    /// The winner takes the children and the tasks; the losers go by the end that began each,
    /// the old IKE SA by the end that began the winner.
    fn settle_on(&mut self, old: IkeId, best: &Successor, now: Now) {
        let Some(est) = self.sas.get_mut(&old).and_then(IkeSa::established_mut) else {
            return;
        };
        let losers: Vec<_> = est
            .successors
            .iter()
            .filter(|s| s.ike != best.ike)
            .cloned()
            .collect();
        est.phase = Phase::Rekeyed;
        est.followers.clear();
        let tasks: Vec<_> = est
            .tasks
            .drain(..)
            .filter(|t| !matches!(t, Task::RekeyIke | Task::DeleteIke))
            .collect();
        self.move_children(old, best.ike);
        if let Some(new) = self.sas.get_mut(&best.ike).and_then(IkeSa::established_mut) {
            new.phase = Phase::Open;
        }
        self.timers.cancel(&Deadline::Redundant(best.ike));
        self.timers.cancel(&Deadline::RekeyIke(old));
        self.timers.cancel(&Deadline::Liveness(old));
        self.timers.cancel(&Deadline::FollowUp(old));
        for task in tasks {
            self.push_task(best.ike, task, now);
        }
        for loser in losers
            .iter()
            .filter(|s| self.is_waiting(s.ike))
            .cloned()
            .collect::<Vec<_>>()
        {
            self.retire_ike(loser.ike, loser.ours, now);
        }
        self.retire_ike(old, best.ours, now);
        // What was queued while it waited, as a probe; the same task would not be queued again.
        self.pump(best.ike, now);
        // What was one too many before the rekey still is, under its new name.
        let peer = self.sas.get(&best.ike).and_then(|sa| sa.peer.clone());
        if let Some(peer) = peer {
            self.ensure_children(&peer, now);
            self.resolve(&peer, false, now);
        }
    }

    /// A rekeyed IKE SA leaves its children to its successor (RFC 7296, 2.18).
    fn move_children(&mut self, old: IkeId, new: IkeId) {
        let Some(est) = self.sas.get_mut(&old).and_then(IkeSa::established_mut) else {
            return;
        };
        let children = std::mem::take(&mut est.children);
        let unconfirmed = std::mem::take(&mut est.unconfirmed);
        for child in &children {
            if let Some(child) = self.children.get_mut(child) {
                child.ike = new;
            }
        }
        if let Some(new) = self.sas.get_mut(&new).and_then(IkeSa::established_mut) {
            new.children.extend(children);
            new.unconfirmed.extend(unconfirmed);
        }
    }

    /// The peer uses its successor: it has settled on it, whatever our own request comes to.
    pub(crate) fn peer_uses(&mut self, new: IkeId, now: Now) {
        if !self.is_waiting(new) {
            return;
        }
        let Some(peer) = self.sas.get(&new).and_then(|sa| sa.peer.as_ref()) else {
            return;
        };
        let found = self
            .peers
            .get(peer)
            .into_iter()
            .flat_map(|p| p.sas.iter())
            .filter_map(|id| Some((*id, self.sas.get(id)?.established()?)))
            .find_map(|(id, est)| {
                let best = est.successors.iter().find(|s| s.ike == new)?;
                Some((id, best.clone()))
            });
        let stands = |id: &IkeId| {
            self.sas
                .get(id)
                .and_then(IkeSa::established)
                .is_some_and(|e| !matches!(e.phase, Phase::Gone | Phase::Shut))
        };
        match found.filter(|(old, _)| stands(old)) {
            Some((old, best)) => self.settle_on(old, &best, now),
            None => self.open_orphan(new, now),
        }
    }

    /// A successor of an IKE SA that is gone stands on its own.
    fn open_orphan(&mut self, id: IkeId, now: Now) {
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let peer = sa.peer.clone();
        if let Some(est) = sa.established_mut() {
            est.phase = Phase::Open;
        }
        self.timers.cancel(&Deadline::Redundant(id));
        self.pump(id, now);
        if let Some(peer) = peer {
            self.resolve(&peer, false, now);
        }
    }

    /// The IKE SA that these were to succeed is gone before one was settled on. The peer may
    /// still use one; one that it does not use must not stay.
    pub(crate) fn orphan(&mut self, successors: &[Successor], now: Now) {
        for successor in successors {
            if self.is_waiting(successor.ike) {
                let at = now.monotonic + REDUNDANT;
                self.timers.set_once(Deadline::Redundant(successor.ike), at);
            }
        }
    }

    /// An IKE SA without children that another took the place of.
    fn retire_ike(&mut self, id: IkeId, ours: bool, now: Now) {
        if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
            est.phase = Phase::Rekeyed;
        }
        self.timers.cancel(&Deadline::RekeyIke(id));
        self.timers.cancel(&Deadline::Liveness(id));
        self.timers.cancel(&Deadline::Keepalive(id));
        if ours {
            self.push_task(id, Task::DeleteIke, now);
        } else {
            self.timers
                .set(Deadline::Redundant(id), now.monotonic + REDUNDANT);
        }
    }

    /// The peer deletes an IKE SA that may have successors: our own request is forgotten, the
    /// peer's takes its place (RFC 7296, 2.25.2).
    pub(crate) fn settle_deleted(&mut self, id: IkeId, now: Now) {
        let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
            return;
        };
        let stands = matches!(est.phase, Phase::Open | Phase::Leaving(_));
        if est.successors.is_empty() || !stands {
            return;
        }
        if matches!(est.outstanding, Some((_, Pending::RekeyIke(_)))) {
            est.outstanding = None;
            self.timers.cancel(&Deadline::Retransmit(id));
        }
        self.settle(id, now);
    }

    /// A replaced IKE SA has no more to wait for.
    pub(crate) fn remove_rekeyed(&mut self, id: IkeId, now: Now) {
        self.remove_sa(id, DownReason::Replaced, now);
    }
}
