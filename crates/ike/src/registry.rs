//! Ids, SPIs, and the ways in which SAs leave.

use std::time::Duration;

use testudo_model::{ChildId, Now, PeerId};

use crate::engine::{Dropped, Engine, Path};
use crate::error::Fault;
use crate::event::{ChildDown, DownReason, Event, Failure, IkeDown, IkeId, Transmit};
use crate::message::Datagrams;
use crate::sa::{ChildState, IkeSa, Phase, Source, State, Task};
use crate::timers::Deadline;
use crate::verify::FailedCheck;

/// How long an IKE SA that the peer deleted goes on repeating its answer.
const GONE: Duration = Duration::from_secs(20);

impl Engine {
    /// The next number of the order in which things happen.
    pub(crate) fn tick(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(crate) fn random_bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.random.fill(&mut out);
        out
    }

    fn random_u64(&mut self) -> u64 {
        let mut out = [0; 8];
        self.random.fill(&mut out);
        u64::from_be_bytes(out)
    }

    /// A share of `span` between nothing and `percent` of it.
    pub(crate) fn jitter(&mut self, span: Duration, percent: u32) -> Duration {
        let most = span.as_micros() * u128::from(percent) / 100;
        let part = (u128::from(self.random_u64()) * most) >> 64;
        Duration::from_micros(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// The age at which an SA of this lifetime is rekeyed. The end that asked for it goes first,
    /// so that the two seldom cross.
    pub(crate) fn soft_lifetime(&mut self, life: Duration, initiator: bool) -> Duration {
        let percent = self.config.jitter_percent.min(50);
        let early = self.jitter(life, percent);
        if initiator {
            life.saturating_sub(early)
        } else {
            life + early / 2
        }
    }

    /// An SPI for an IKE SA that is not in use.
    pub(crate) fn ike_spi(&mut self) -> u64 {
        loop {
            let spi = self.random_u64();
            if spi != 0 && !self.by_spi.contains_key(&spi) {
                return spi;
            }
        }
    }

    /// An SPI to receive ESP on. Small numbers are left to SAs that are keyed otherwise.
    pub(crate) fn esp_spi(&mut self) -> u32 {
        loop {
            let spi = (self.random_u64() >> 32) as u32;
            if spi >= 0x1000_0000 && !self.by_spi_in.contains_key(&spi) {
                return spi;
            }
        }
    }

    pub(crate) fn count_drop(&mut self, reason: Dropped) {
        *self.counters.drops.entry(reason).or_insert(0) += 1;
    }

    pub(crate) fn transmit(&mut self, path: Path, bytes: Vec<u8>) {
        self.counters.datagrams_out += 1;
        self.transmits.push_back(Transmit {
            local: path.local,
            remote: path.remote,
            marker: path.local.port() == self.config.nat_port,
            bytes,
        });
    }

    /// Puts out all datagrams of a message.
    pub(crate) fn send(&mut self, path: Path, message: &Datagrams) {
        for bytes in message.iter() {
            self.transmit(path, bytes.to_vec());
        }
    }

    /// Tells of a failure; `authenticated` as in [`Failure`].
    pub(crate) fn fail(
        &mut self,
        peer: Option<PeerId>,
        path: Path,
        child: Option<String>,
        what: (FailedCheck, String),
        authenticated: bool,
    ) {
        let (check, text) = what;
        *self.counters.failures.entry(check.name()).or_insert(0) += 1;
        self.events.push_back(Event::Failed(Failure {
            peer,
            remote: path.remote,
            child,
            check,
            authenticated,
            text,
        }));
    }

    pub(crate) fn fault(
        &mut self,
        peer: Option<PeerId>,
        path: Path,
        child: Option<String>,
        fault: &Fault,
        authenticated: bool,
    ) {
        self.fail(
            peer,
            path,
            child,
            (fault.check(), fault.text()),
            authenticated,
        );
    }

    pub(crate) fn insert_sa(&mut self, sa: IkeSa) {
        self.by_spi.insert(sa.spi_ours, sa.id);
        if let Some(key) = &sa.init_key {
            self.inits.insert(key.clone(), sa.id);
        }
        self.sas.insert(sa.id, sa);
    }

    pub(crate) fn count_half_open(&mut self, source: Source) {
        self.half_open_total += 1;
        *self.half_open.entry(source).or_insert(0) += 1;
    }

    pub(crate) fn uncount_half_open(&mut self, source: Source) {
        self.half_open_total = self.half_open_total.saturating_sub(1);
        if let Some(n) = self.half_open.get_mut(&source) {
            *n -= 1;
            if *n == 0 {
                self.half_open.remove(&source);
            }
        }
    }

    /// Forgets an IKE SA in any state, without a word to the peer.
    pub(crate) fn remove_sa(&mut self, id: IkeId, reason: DownReason, now: Now) {
        if self
            .sas
            .get(&id)
            .is_some_and(|sa| sa.established().is_some())
        {
            self.bury(id, reason, now);
        }
        self.forget_fragments(id);
        let Some(sa) = self.sas.remove(&id) else {
            return;
        };
        self.timers.cancel_ike(id);
        self.forget_jobs(id);
        self.by_spi.remove(&sa.spi_ours);
        if let Some(key) = &sa.init_key {
            self.inits.remove(key);
        }
        if let State::HalfOpen(half) = &sa.state {
            self.uncount_half_open(half.source);
        }
        let Some(peer_id) = sa.peer else { return };
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.sas.remove(&id);
            if peer.attempt == Some(id) {
                peer.attempt = None;
            }
        }
    }

    /// Ends an established SA for the agent: its children go, its end is told. The SA stays to
    /// exchange its last messages.
    fn bury(&mut self, id: IkeId, reason: DownReason, now: Now) {
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let Some(peer) = sa.peer.clone() else { return };
        let Some(est) = sa.established_mut() else {
            return;
        };
        if matches!(est.phase, Phase::Shut | Phase::Gone) {
            return;
        }
        est.phase = Phase::Shut;
        est.tasks.clear();
        est.followers.clear();
        let successors = est.successors.clone();
        let children: Vec<_> = est.children.iter().copied().collect();
        for deadline in [
            Deadline::RekeyIke(id),
            Deadline::ExpireIke(id),
            Deadline::Liveness(id),
            Deadline::Keepalive(id),
        ] {
            self.timers.cancel(&deadline);
        }
        for child in children {
            self.retire_child(child, reason, now);
        }
        self.orphan(&successors, now);
        self.events.push_back(Event::IkeDown(IkeDown {
            ike: id,
            peer: peer.clone(),
            reason,
        }));
        self.after_loss(&peer, reason, now);
    }

    /// Closes an established SA: gone for the agent at once, then deleted at the peer.
    pub(crate) fn shut(&mut self, id: IkeId, reason: DownReason, now: Now) {
        let established = self
            .sas
            .get(&id)
            .and_then(IkeSa::established)
            .map(|est| est.phase);
        match established {
            None => self.remove_sa(id, reason, now),
            Some(Phase::Shut | Phase::Gone) => {}
            Some(_) => {
                // A DELETE that waited for the window is forgotten with the other tasks; one
                // that is under way is not sent twice.
                self.bury(id, reason, now);
                self.push_task(id, Task::DeleteIke, now);
            }
        }
    }

    /// Whether we have closed an SA and only wait for the answer to our DELETE.
    pub(crate) fn is_shut(&self, id: IkeId) -> bool {
        self.sas
            .get(&id)
            .and_then(IkeSa::established)
            .is_some_and(|est| est.phase == Phase::Shut)
    }

    /// Whether we close an SA while another with the same peer stands.
    pub(crate) fn has_left(&self, id: IkeId) -> bool {
        let Some(sa) = self.sas.get(&id) else {
            return false;
        };
        let phase = sa.established().map(|est| est.phase);
        matches!(phase, Some(Phase::Leaving(_) | Phase::Shut))
            && sa
                .peer
                .as_ref()
                .is_some_and(|peer| self.best_ike(peer).is_some())
    }

    /// The peer deleted the SA: gone for the agent; repeats its answer for a while.
    pub(crate) fn gone(&mut self, id: IkeId, reason: DownReason, now: Now) {
        self.bury(id, reason, now);
        if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
            est.phase = Phase::Gone;
            est.outstanding = None;
            est.tasks.clear();
        }
        self.timers.cancel(&Deadline::Retransmit(id));
        self.timers
            .set(Deadline::Redundant(id), now.monotonic + GONE);
    }

    /// Replaces an SA: its children receive until the peer has answered the DELETE.
    pub(crate) fn leave(&mut self, id: IkeId, now: Now) {
        let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
            return;
        };
        est.phase = Phase::Leaving(DownReason::Replaced);
        est.tasks.clear();
        let children: Vec<_> = est.children.iter().copied().collect();
        self.timers.cancel(&Deadline::RekeyIke(id));
        self.timers.cancel(&Deadline::Liveness(id));
        for child in children {
            self.mark_deleting(child, DownReason::Replaced, now);
        }
        self.push_task(id, Task::DeleteIke, now);
    }

    /// A child is about to be deleted by us: packets go elsewhere if there is an elsewhere.
    pub(crate) fn mark_deleting(&mut self, id: ChildId, reason: DownReason, now: Now) {
        let Some(child) = self.children.get_mut(&id).filter(|c| c.is_up()) else {
            return;
        };
        child.state = ChildState::Deleting(reason);
        let (peer, slot) = (child.peer.clone(), child.slot.clone());
        self.timers.cancel(&Deadline::RekeyChild(id));
        self.update_sending(&peer, &slot, now);
    }

    /// A child no longer hangs on its IKE SA. When another took its place it receives late
    /// packets for a while.
    pub(crate) fn retire_child(&mut self, id: ChildId, reason: DownReason, now: Now) {
        let Some(child) = self.children.get_mut(&id) else {
            return;
        };
        if matches!(child.state, ChildState::Lingering(_)) {
            return;
        }
        let reason = match child.state {
            ChildState::Deleting(why) => why,
            _ => reason,
        };
        child.state = ChildState::Lingering(reason);
        let (peer, slot, ike) = (child.peer.clone(), child.slot.clone(), child.ike);
        self.timers.cancel_child(id);
        if let Some(est) = self.sas.get_mut(&ike).and_then(IkeSa::established_mut) {
            est.children.remove(&id);
            est.unconfirmed.retain(|c| *c != id);
        }
        self.update_sending(&peer, &slot, now);
        let late = matches!(reason, DownReason::Replaced | DownReason::PeerDeleted);
        let replaced = self.up_children(&peer, &slot).next().is_some();
        if late && replaced {
            if let Some(child) = self.children.get_mut(&id) {
                child.state = ChildState::Lingering(DownReason::Replaced);
            }
            let until = now.monotonic + self.config.linger;
            self.timers.set(Deadline::Linger(id), until);
        } else {
            self.finish_child(id);
        }
    }

    /// Forgets a child.
    pub(crate) fn finish_child(&mut self, id: ChildId) {
        let Some(child) = self.children.remove(&id) else {
            return;
        };
        self.timers.cancel_child(id);
        self.by_spi_in.remove(&child.spi_in);
        if let Some(peer) = self.peers.get_mut(&child.peer) {
            if let Some(set) = peer.children.get_mut(&child.slot) {
                set.remove(&id);
                if set.is_empty() {
                    peer.children.remove(&child.slot);
                }
            }
            if peer.sending.get(&child.slot) == Some(&id) {
                peer.sending.remove(&child.slot);
            }
        }
        let reason = match child.state {
            ChildState::Lingering(reason) | ChildState::Deleting(reason) => reason,
            ChildState::Up => DownReason::Closed,
        };
        self.events.push_back(Event::ChildDown(ChildDown {
            child: id,
            peer: child.peer,
            name: child.slot.name,
            resource: child.slot.resource,
            reason,
        }));
    }

    /// Forgets all children of a peer that only wait for late packets.
    pub(crate) fn finish_lingering(&mut self, peer: &PeerId) {
        let all: Vec<_> = self
            .peers
            .get(peer)
            .into_iter()
            .flat_map(|p| p.children.values().flatten().copied())
            .collect();
        for id in all {
            self.finish_child(id);
        }
    }

    /// Closes all established SAs of a peer.
    pub(crate) fn shut_all(&mut self, peer: &PeerId, reason: DownReason, now: Now) {
        let all: Vec<_> = self
            .peers
            .get(peer)
            .into_iter()
            .flat_map(|p| p.sas.iter().copied())
            .collect();
        for id in all {
            self.shut(id, reason, now);
        }
    }

    /// Ends our attempt to reach a peer, if one is under way.
    pub(crate) fn end_attempt(&mut self, peer: &PeerId, now: Now) {
        if let Some(id) = self.peers.get(peer).and_then(|p| p.attempt) {
            self.remove_sa(id, DownReason::Closed, now);
        }
    }

    /// An established SA is gone: start again where that is ours to do.
    pub(crate) fn after_loss(&mut self, peer_id: &PeerId, reason: DownReason, now: Now) {
        let Some(peer) = self.peers.get(peer_id) else {
            return;
        };
        if self.best_ike(peer_id).is_some() {
            let soon = now.monotonic + Duration::from_millis(1);
            let deadline = Deadline::Children(peer_id.clone());
            self.timers.set_sooner(deadline, soon);
            return;
        }
        if !peer.config.initiate || peer.attempt.is_some() {
            return;
        }
        let wait = match reason {
            DownReason::PeerDeleted | DownReason::Closed | DownReason::Untrusted => {
                self.config.retry_initial
            }
            _ => Duration::from_millis(10),
        };
        let at = now.monotonic + wait + self.jitter(wait, 50);
        self.timers.set_sooner(Deadline::Start(peer_id.clone()), at);
    }
}
