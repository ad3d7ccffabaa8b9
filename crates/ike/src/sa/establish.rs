//! What happens when an IKE SA stands: timers, events, children; and to keep a peer up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use testudo_model::{ChildId, Monotonic, Now, PeerId, SaMode, TrafficSelector, UnixTime};

use crate::config::ChildConfig;
use crate::duplicates::HANDOVER;
use crate::engine::Engine;
use crate::event::{DownReason, Event, IkeId, IkeUp};
use crate::keys::IkeKeys;
use crate::peer::{Change, ChildRetry};
use crate::sa::auth::{Proven, facts};
use crate::sa::create::retry_wait;
use crate::sa::{Established, IkeSa, Lineage, Phase, Slot, State, Task};
use crate::timers::Deadline;
use crate::window::Answered;

/// Between keepalives through a NAT (RFC 3948, 4).
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(20);

/// What an IKE SA is established with.
pub(crate) struct Birth {
    pub(crate) keys: IkeKeys,
    pub(crate) tie: Vec<u8>,
    pub(crate) answered: Answered,
    pub(crate) next_request: u32,
}

/// The same of one that replaces another.
pub(crate) struct SuccessorBirth {
    pub(crate) keys: IkeKeys,
    pub(crate) initiator: bool,
    pub(crate) spi_ours: u64,
    pub(crate) spi_peer: u64,
    pub(crate) answered: Answered,
}

impl Engine {
    /// Both ends are authenticated.
    pub(crate) fn establish(&mut self, id: IkeId, birth: Birth, proven: Proven, now: Now) {
        let established = self.tick();
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let initiator = sa.initiator;
        let lineage = Lineage {
            number: id.0,
            initiated: initiator,
            born: sa.born,
            established,
            tie: birth.tie,
            superseded: false,
        };
        sa.peer = Some(proven.peer.clone());
        let mut est = Established {
            lineage,
            expires: self.hard_end(proven.not_after, now),
            phase: Phase::Open,
            confirmed: initiator,
            announced: false,
            identity: proven.identity,
            certificate: proven.certificate,
            chain: proven.chain,
            since: now.wall,
            rekeys: 0,
            last_in: now.monotonic,
            children: BTreeSet::new(),
            unconfirmed: Vec::new(),
            answered: birth.answered,
            settled: false,
            held: Vec::new(),
            peer_window: 1,
            next_request: birth.next_request,
            outstanding: None,
            tasks: VecDeque::new(),
            successors: Vec::new(),
            followers: Vec::new(),
            deleted_spis: Vec::new(),
            rekey_failures: 0,
            moved: false,
            most_resources: BTreeMap::new(),
            keys: birth.keys,
        };
        est.keys.forget_proofs();
        self.set_established(id, est);
        self.timers.cancel(&Deadline::HalfOpen(id));
        self.arm_ike(id, now);
        self.counters.ike_established += 1;
        if let Some(peer) = self.peers.get_mut(&proven.peer) {
            peer.sas.insert(id);
            peer.failures = 0;
            if peer.attempt == Some(id) {
                peer.attempt = None;
                peer.reauth = false;
            }
            if !peer.reauth {
                // The wait after a failure of before means nothing to what follows this one.
                self.timers.cancel(&Deadline::Start(proven.peer.clone()));
            }
        }
        self.arrived(id, &proven.peer, now);
        self.mark_superseded(&proven.peer);
        self.tell_up(id, None, now);
    }

    fn set_established(&mut self, id: IkeId, est: Established) {
        if let Some(sa) = self.sas.get_mut(&id) {
            sa.state = State::Established(Box::new(est));
        }
    }

    /// After the first IKE_AUTH, when its child is handled too.
    pub(crate) fn settle_in(&mut self, id: IkeId, peer_id: &PeerId, now: Now) {
        let initiated = self.sas.get(&id).is_some_and(|sa| sa.initiator);
        if !initiated {
            self.drop_early_attempt(peer_id, now);
            self.limit_sas(id, peer_id, now);
        }
        // A loser must not be used before it goes: the peer would take that for its victory.
        self.resolve(peer_id, false, now);
        self.ensure_children(peer_id, now);
        self.pump(id, now);
    }

    /// The peer was faster: our own attempt, if the peer cannot have established it yet, is of no
    /// use. One that has come to IKE_AUTH goes on and is resolved when it stands.
    fn drop_early_attempt(&mut self, peer_id: &PeerId, now: Now) {
        let Some(peer) = self.peers.get(peer_id) else {
            return;
        };
        let Some(attempt) = peer.attempt.filter(|_| !peer.reauth) else {
            return;
        };
        let early = self
            .sas
            .get(&attempt)
            .is_some_and(|sa| matches!(sa.state, State::InitSent(_) | State::IntermediateSent(_)));
        if early {
            self.remove_sa(attempt, DownReason::Replaced, now);
        }
        self.timers.cancel(&Deadline::Start(peer_id.clone()));
    }

    /// A peer that authenticates again and again holds no more than its share.
    fn limit_sas(&mut self, newest: IkeId, peer_id: &PeerId, now: Now) {
        let mut open = self.open_sas(peer_id);
        let limit = self.config.limits.ike_sas_per_peer.max(2);
        if open.len() > limit {
            open.retain(|id| *id != newest);
            if let Some(oldest) = open.into_iter().min() {
                self.count_drop("ike_sas_per_peer");
                self.shut(oldest, DownReason::Replaced, now);
            }
        }
        self.limit_closed_sas(peer_id, now);
    }

    /// Closed ones wait for an answer to our DELETE, or to repeat theirs: of a peer that leaves
    /// them waiting the oldest go.
    fn limit_closed_sas(&mut self, peer_id: &PeerId, now: Now) {
        let Some(peer) = self.peers.get(peer_id) else {
            return;
        };
        let many = peer.sas.len().saturating_sub(self.most_sas());
        let is_closed = |id: &IkeId| {
            let est = self.sas.get(id).and_then(IkeSa::established);
            est.is_some_and(|est| matches!(est.phase, Phase::Shut | Phase::Gone))
        };
        let closed = peer.sas.iter().copied().filter(is_closed);
        let oldest: Vec<_> = closed.take(many).collect();
        for id in oldest {
            self.count_drop("closed_ike_sas_per_peer");
            self.remove_sa(id, DownReason::Replaced, now);
        }
    }

    /// Hard end: a quarter past the soft lifetime, or the end of the certificate.
    fn hard_end(&self, not_after: Option<UnixTime>, now: Now) -> Monotonic {
        let life = self.config.ike_lifetime;
        let hard = now.monotonic + life + life / 4;
        match not_after {
            Some(end) => hard.min(certificate_end(end, now)),
            None => hard,
        }
    }

    fn arm_ike(&mut self, id: IkeId, now: Now) {
        let Some(sa) = self.sas.get(&id) else { return };
        let (initiator, behind_nat) = (sa.initiator, sa.nat.local);
        let Some(expires) = sa.established().map(|e| e.expires) else {
            return;
        };
        let life = self.config.ike_lifetime;
        let soft = self.soft_lifetime(life, initiator);
        self.timers
            .set(Deadline::RekeyIke(id), now.monotonic + soft);
        self.timers.set(Deadline::ExpireIke(id), expires);
        if !self.config.liveness.is_zero() {
            let at = now.monotonic + self.config.liveness;
            self.timers.set(Deadline::Liveness(id), at);
        }
        if behind_nat {
            let at = now.monotonic + KEEPALIVE;
            self.timers.set(Deadline::Keepalive(id), at);
        }
    }

    fn tell_up(&mut self, id: IkeId, replaces: Option<IkeId>, now: Now) {
        let Some(sa) = self.sas.get(&id) else { return };
        let (Some(peer), Some(est)) = (sa.peer.clone(), sa.established()) else {
            return;
        };
        let (spi_i, spi_r) = sa.spis();
        let up = IkeUp {
            ike: id,
            peer,
            initiator: sa.initiator,
            local: sa.local,
            remote: sa.remote,
            nat: sa.nat.encapsulate(),
            spis: (spi_i.to_be_bytes(), spi_r.to_be_bytes()),
            suite: est.keys.suite.name(),
            ppk: est.keys.ppk,
            replaces,
            took: now.monotonic.since(sa.begun),
            identity: est.identity.clone(),
            certificate: est.certificate.clone(),
            danger_keys: est.keys.danger_export(),
        };
        self.events.push_back(Event::IkeUp(Box::new(up)));
    }

    /// A rekey made a new IKE SA. The peer's proof, and its end, are those of the old one: a
    /// rekey authenticates nobody.
    pub(crate) fn establish_successor(
        &mut self,
        old_id: IkeId,
        birth: SuccessorBirth,
        now: Now,
    ) -> Option<IkeId> {
        let born = self.tick();
        let id = IkeId(born);
        let old = self.sas.get(&old_id)?;
        let peer = old.peer.clone()?;
        let est = old.established()?;
        let life = self.config.ike_lifetime;
        let not_after = est.certificate.as_ref().map(|c| c.not_after);
        let mut expires = now.monotonic + life + life / 4;
        if let Some(end) = not_after {
            expires = expires.min(certificate_end(end, now));
        }
        let new = Established {
            keys: birth.keys,
            lineage: est.lineage.clone(),
            phase: Phase::Waiting,
            // Whether the peer holds the line established; this SA is but its newest link.
            confirmed: est.confirmed || birth.initiator,
            announced: est.announced,
            identity: est.identity.clone(),
            certificate: est.certificate.clone(),
            chain: est.chain.clone(),
            since: est.since,
            rekeys: est.rekeys + 1,
            last_in: now.monotonic,
            expires,
            children: BTreeSet::new(),
            unconfirmed: Vec::new(),
            answered: birth.answered,
            settled: false,
            held: Vec::new(),
            peer_window: 1,
            next_request: 0,
            outstanding: None,
            tasks: VecDeque::new(),
            successors: Vec::new(),
            followers: Vec::new(),
            deleted_spis: Vec::new(),
            rekey_failures: 0,
            moved: est.moved,
            most_resources: est.most_resources.clone(),
        };
        let sa = IkeSa {
            id,
            initiator: birth.initiator,
            spi_ours: birth.spi_ours,
            spi_peer: birth.spi_peer,
            local: old.local,
            remote: old.remote,
            nat: old.nat,
            peer: Some(peer.clone()),
            born,
            begun: now.monotonic,
            init_key: None,
            partial: Vec::new(),
            state: State::Established(Box::new(new)),
        };
        self.insert_sa(sa);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.sas.insert(id);
        }
        self.counters.ike_rekeys += 1;
        self.arm_ike(id, now);
        self.tell_up(id, Some(old_id), now);
        Some(id)
    }

    /// Judges the peer of one SA anew, with the verifier of now.
    pub(crate) fn recheck(&mut self, id: IkeId, now: Now) {
        let Some(sa) = self.sas.get(&id) else { return };
        let path = sa.path();
        let (Some(peer), Some(est)) = (sa.peer.clone(), sa.established()) else {
            return;
        };
        if est.chain.is_empty() || matches!(est.phase, Phase::Shut | Phase::Gone) {
            return;
        }
        match self.verify_chain(&peer, &est.identity, &est.chain, now) {
            Ok(verified) => {
                let expires = est.expires.min(certificate_end(verified.not_after, now));
                let facts = facts(verified);
                self.timers.set(Deadline::ExpireIke(id), expires);
                if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
                    est.certificate = Some(facts);
                    est.expires = expires;
                }
            }
            Err(fault) => {
                self.fault(Some(peer), path, None, &fault, true);
                self.shut(id, DownReason::Untrusted, now);
            }
        }
    }

    /// A peer's configuration changed.
    pub(crate) fn apply_change(&mut self, id: &PeerId, change: Change, now: Now) {
        if change.restart {
            self.end_attempt(id, now);
            self.shut_all(id, DownReason::Closed, now);
            return;
        }
        if change.addresses {
            self.addresses_changed(id, change.own_addresses, now);
        }
        if change.resources {
            self.forget_full(id);
        }
        let mut doomed = self.surplus_resources(id);
        for name in change.closed {
            self.forget_retries(id, &name);
            self.overtake_followers(id, &name);
            doomed.extend(self.children_named(id, &name));
        }
        for name in change.changed {
            self.forget_retries(id, &name);
            self.overtake_followers(id, &name);
            for (_, child) in self.children_named(id, &name) {
                self.mark_stale(child, now);
            }
        }
        for (ike, child) in doomed {
            self.mark_deleting(child, DownReason::Closed, now);
            self.push_task(ike, Task::DeleteChild(child), now);
        }
        if change.reauth {
            // An attempt under way speaks of what was wanted before.
            let attempted = self.peers.get(id).is_some_and(|p| p.attempt.is_some());
            self.end_attempt(id, now);
            if attempted || self.best_ike(id).is_some() {
                let _ = self.reauthenticate(id, now);
            }
        }
    }

    fn forget_retries(&mut self, id: &PeerId, name: &str) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.retries.retain(|slot, _| slot.name != name);
        }
    }

    /// A child whose configuration changed goes on until its successor stands at both ends: the
    /// peer reads of the change before or after us. What may still be sent is the datapath's to
    /// know; the child has so long and no longer.
    fn mark_stale(&mut self, id: ChildId, now: Now) {
        let Some(child) = self.children.get_mut(&id) else {
            return;
        };
        child.stale = true;
        self.timers.cancel(&Deadline::RekeyChild(id));
        let end = now.monotonic + HANDOVER;
        self.timers.set_sooner(Deadline::ExpireChild(id), end);
    }

    /// What we asked for may be wanted no longer, or otherwise, when the answer comes.
    pub(crate) fn check_wish(
        &mut self,
        spi: u32,
        (mode, local, remote): (SaMode, Vec<TrafficSelector>, Vec<TrafficSelector>),
        replaces: Option<ChildId>,
        now: Now,
    ) {
        let Some(child) = self.by_spi_in.get(&spi).and_then(|c| self.children.get(c)) else {
            return;
        };
        let (id, ike, peer_id) = (child.id, child.ike, child.peer.clone());
        let name = &child.slot.name;
        let config = self.peers.get(&peer_id).and_then(|p| p.child(name));
        let stale = match (replaces.and_then(|old| self.children.get(&old)), config) {
            (_, None) => {
                self.mark_deleting(id, DownReason::Closed, now);
                self.push_task(ike, Task::DeleteChild(id), now);
                return;
            }
            // A rekey asks for what was negotiated, which may be less than what is configured.
            (Some(old), Some(_)) => old.stale,
            // Nor is it known of one that is gone whether it was still as it should be.
            (None, Some(c)) => (c.mode, &c.local_ts, &c.remote_ts) != (mode, &local, &remote),
        };
        if stale {
            self.mark_stale(id, now);
            let soon = now.monotonic + std::time::Duration::from_millis(1);
            self.timers.set_sooner(Deadline::Children(peer_id), soon);
        }
    }

    /// The children of a name that stand, with their IKE SAs.
    fn children_named(&self, id: &PeerId, name: &str) -> Vec<(IkeId, ChildId)> {
        self.peers
            .get(id)
            .into_iter()
            .flat_map(|p| p.children.iter())
            .filter(|(slot, _)| slot.name == name)
            .flat_map(|(_, set)| set)
            .filter_map(|child| self.children.get(child))
            .filter(|c| c.is_up())
            .map(|c| (c.ike, c.id))
            .collect()
    }

    /// Starts a peer that has nothing and should, and makes its missing children. What failed
    /// before may succeed when its way or its proof is another now (`other_ways`): it does not
    /// wait any longer.
    pub(crate) fn keep_up(&mut self, id: &PeerId, other_ways: bool, now: Now) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        if self.best_ike(id).is_some() {
            self.ensure_children(id, now);
        } else if peer.config.initiate && peer.attempt.is_none() {
            let start = Deadline::Start(id.clone());
            if other_ways {
                self.timers.set_sooner(start, now.monotonic);
            } else {
                self.timers.set_once(start, now.monotonic);
            }
        }
    }

    /// Starts a peer whose wait is over.
    pub(crate) fn start(&mut self, id: &PeerId, now: Now) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        let stands = self.best_ike(id).is_some();
        if peer.attempt.is_none() && (peer.reauth || peer.config.initiate && !stands) {
            self.begin(id, now);
        }
    }

    /// Queues the making of children that are configured and not there: on an IKE SA that we
    /// began, all of them; on the peer's, if we are to start by ourselves and have none at all.
    /// One that must wait holds up no other: all share a deadline, which is the earliest.
    pub(crate) fn ensure_children(&mut self, id: &PeerId, now: Now) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        let mut todo = Vec::new();
        let mut wanted = BTreeSet::new();
        let mut wait: Option<Monotonic> = None;
        let best = self.best_ike(id);
        for ike in self.open_sas(id) {
            let Some(est) = self.sas.get(&ike).and_then(IkeSa::established) else {
                continue;
            };
            let begun = est.lineage.initiated;
            // One between addresses of before makes way for another.
            let leaves = est.moved && peer.moving;
            if best != Some(ike) && !begun || leaves {
                continue;
            }
            for slot in self.wanted_slots(id, ike, begun) {
                wanted.insert(slot.clone());
                let retry = peer.retries.get(&slot).map(|r| r.not_before);
                let retry = retry.filter(|at| *at > now.monotonic);
                match retry.max(self.refused_until(id, &slot, now)) {
                    Some(at) => wait = Some(wait.map_or(at, |w| w.min(at))),
                    None => todo.push((ike, slot)),
                }
            }
        }
        if let Some(peer) = self.peers.get_mut(id) {
            // What was refused on an IKE SA that lost may stand on the winner.
            peer.retries.retain(|slot, _| wanted.contains(slot));
        }
        if let Some(at) = wait {
            self.timers.set_sooner(Deadline::Children(id.clone()), at);
        }
        for (ike, slot) in todo {
            self.push_task(ike, Task::CreateChild(slot), now);
        }
    }

    fn wanted_slots(&self, id: &PeerId, ike: IkeId, begun: bool) -> Vec<Slot> {
        let Some(peer) = self.peers.get(id) else {
            return Vec::new();
        };
        let children = peer.config.children.iter();
        if begun {
            return children
                .flat_map(|child| self.missing_slots(ike, child))
                .collect();
        }
        let fallback = |child: &ChildConfig| Slot {
            name: child.name.clone(),
            resource: 0,
        };
        children
            .map(fallback)
            .filter(|slot| {
                let mut up = self.up_children(id, slot).peekable();
                match up.peek() {
                    None => peer.config.initiate,
                    // Whoever reads of a change last makes it come true.
                    Some(_) => up.all(|c| c.stale),
                }
            })
            .collect()
    }

    /// Looks for missing children after a short wait: what took one away may bring another.
    pub(crate) fn ensure_children_later(&mut self, id: &PeerId, now: Now) {
        let wait = self.config.retry_initial;
        let at = now.monotonic + wait + self.jitter(wait, 50);
        self.timers.set_sooner(Deadline::Children(id.clone()), at);
    }

    /// A child could not be made: the next try after a wait that doubles.
    pub(crate) fn retry_child(&mut self, id: &PeerId, slot: &Slot, now: Now) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        if peer.child(&slot.name).is_none() {
            // No longer wanted: the refusal is welcome.
            return;
        }
        let failures = peer.retries.get(slot).map_or(1, |r| r.failures + 1);
        let wait = retry_wait(failures);
        let not_before = now.monotonic + wait + self.jitter(wait, 50);
        let retry = ChildRetry {
            failures,
            not_before,
        };
        if let Some(peer) = self.peers.get_mut(id) {
            peer.retries.insert(slot.clone(), retry);
        }
        self.timers
            .set_sooner(Deadline::Children(id.clone()), not_before);
    }
}

/// The monotonic moment of a certificate's end.
fn certificate_end(not_after: UnixTime, now: Now) -> Monotonic {
    let left = not_after.0.saturating_sub(now.wall.0).max(0);
    now.monotonic + std::time::Duration::from_secs(u64::try_from(left).unwrap_or(0))
}
