//! Several SAs for one purpose: which one is used, which ones are closed, and by whom.
//!
//! Two ends that act at the same moment make two IKE SAs, or two children, where one is wanted
//! (RFC 7296, 2.8.1, 2.8.2, 2.25). The rules here need no agreement on the order of events,
//! which the ends may see differently:
//! - Of SAs that the same end began, a later one *supersedes* an earlier one: both ends know.
//!   One that an end began while the other's stood supersedes that: only the end that began
//!   it knows.
//! - Among the rest, the one whose smallest nonce is the smallest loses. Both ends know that.
//! - The loser is deleted by the end that began it, a superseded SA by the end that superseded
//!   it, and only when the winner is known to be installed at both ends: we began it and have
//!   the answer, or the peer has used it since.
//! - The end that began the winner uses it at once, by a probe, so that the other end knows.
//! - Peers with other rules, or none, leave the loser standing: strongSwan two IKE SAs that
//!   crossed, libreswan a child that it made twice. After a while we delete it for them.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use testudo_model::{ChildId, Now, PeerId};

use crate::engine::Engine;
use crate::event::{DownReason, Event, IkeId};
use crate::sa::{Child, Established, IkeSa, Lineage, Slot, Task};
use crate::timers::Deadline;

/// How long children may take to move before the old IKE SA is closed all the same, and how
/// long the peer has to delete what is its to delete.
pub(crate) const HANDOVER: std::time::Duration = std::time::Duration::from_secs(30);

/// `a` takes the place of `b`, as far as this end knows.
fn line_supersedes(a: &Lineage, b: &Lineage) -> bool {
    if a.superseded != b.superseded {
        b.superseded
    } else if a.initiated == b.initiated {
        b.born < a.born
    } else {
        a.initiated && b.established < a.born
    }
}

/// The element that no other supersedes and that has the greatest tie.
fn winner<T: Copy>(
    pool: &[T],
    supersedes: impl Fn(T, T) -> bool,
    order: impl Fn(T, T) -> Ordering,
) -> Option<T> {
    pool.iter()
        .copied()
        .filter(|x| !pool.iter().any(|y| supersedes(*y, *x)))
        .max_by(|x, y| order(*x, *y))
}

impl Engine {
    /// The children of a peer and slot that stand.
    pub(crate) fn up_children<'e>(
        &'e self,
        peer: &PeerId,
        slot: &Slot,
    ) -> impl Iterator<Item = &'e Child> + use<'e> {
        self.peers
            .get(peer)
            .and_then(|p| p.children.get(slot))
            .into_iter()
            .flatten()
            .filter_map(|id| self.children.get(id))
            .filter(|c| c.is_up())
    }

    fn lineage(&self, ike: IkeId) -> Option<&Lineage> {
        self.sas
            .get(&ike)
            .and_then(IkeSa::established)
            .map(|e| &e.lineage)
    }

    /// Remembers what a new IKE SA of the peer takes the place of. Without that memory an SA
    /// could win against a third once the one that superseded it has lost to the same third:
    /// the two ends would close everything.
    pub(crate) fn mark_superseded(&mut self, peer: &PeerId) {
        let Some(peer) = self.peers.get(peer) else {
            return;
        };
        let lines: Vec<_> = peer
            .sas
            .iter()
            .filter_map(|id| Some((*id, self.lineage(*id)?.clone())))
            .collect();
        for (id, line) in &lines {
            let over = lines
                .iter()
                .any(|(_, other)| other.number != line.number && line_supersedes(other, line));
            if !over {
                continue;
            }
            if let Some(est) = self.sas.get_mut(id).and_then(IkeSa::established_mut) {
                est.lineage.superseded = true;
            }
        }
    }

    fn child_supersedes(&self, a: &Child, b: &Child) -> bool {
        if a.replaces == Some(b.id) {
            return true;
        }
        if a.stale != b.stale {
            return b.stale;
        }
        let (Some(la), Some(lb)) = (self.lineage(a.ike), self.lineage(b.ike)) else {
            return false;
        };
        if la.number == lb.number && a.initiator == b.initiator {
            b.installed < a.installed
        } else if la.number == lb.number {
            a.initiator && b.installed < a.born
        } else {
            line_supersedes(la, lb)
        }
    }

    fn child_order(&self, a: &Child, b: &Child) -> Ordering {
        match (self.lineage(a.ike), self.lineage(b.ike)) {
            (Some(la), Some(lb)) if la.number != lb.number => la.tie.cmp(&lb.tie),
            _ => a.tie.cmp(&b.tie),
        }
    }

    fn best_child(&self, pool: &[&Child]) -> Option<ChildId> {
        winner(
            pool,
            |a, b| self.child_supersedes(a, b),
            |a, b| self.child_order(a, b),
        )
        .map(|c| c.id)
    }

    /// The child to send on: the best of those known to stand at the peer's end. Where none is
    /// known to, the one that was sent on before, or else the newest: the peer has deleted what
    /// stood before, so it has that one.
    fn child_to_send_on(&self, peer: &PeerId, slot: &Slot) -> Option<ChildId> {
        let up: Vec<_> = self.up_children(peer, slot).collect();
        let sure: Vec<_> = up.iter().copied().filter(|c| c.confirmed).collect();
        // A peer that only receives never shows that it has a child; that it makes another does
        // not mean that it has that one already.
        let before = self.peers.get(peer).and_then(|p| p.sending.get(slot));
        self.best_child(&sure)
            .or_else(|| up.iter().map(|c| c.id).find(|id| Some(id) == before))
            .or_else(|| up.iter().max_by_key(|c| c.installed).map(|c| c.id))
    }

    /// Chooses anew what to send on; tells if that changes. `silent` is a child that the agent
    /// does not know yet: it will be told with it.
    pub(crate) fn choose_sending(
        &mut self,
        peer_id: &PeerId,
        slot: &Slot,
        silent: Option<ChildId>,
    ) -> Option<ChildId> {
        let best = self.child_to_send_on(peer_id, slot)?;
        let peer = self.peers.get_mut(peer_id)?;
        if peer.sending.insert(slot.clone(), best) != Some(best) && silent != Some(best) {
            self.events.push_back(Event::OutboundReady {
                child: best,
                peer: peer_id.clone(),
                name: slot.name.clone(),
                resource: slot.resource,
            });
        }
        Some(best)
    }

    pub(crate) fn update_sending(&mut self, peer: &PeerId, slot: &Slot, _now: Now) {
        self.choose_sending(peer, slot, None);
    }

    /// The open IKE SA of a peer that is used when there are several.
    pub(crate) fn best_ike(&self, peer: &PeerId) -> Option<IkeId> {
        let open = self.open_sas(peer);
        winner(
            &open,
            |a, b| match (self.lineage(a), self.lineage(b)) {
                (Some(a), Some(b)) => line_supersedes(a, b),
                _ => false,
            },
            |a, b| {
                let tie = |id| self.lineage(id).map(|l| &l.tie);
                tie(a).cmp(&tie(b))
            },
        )
    }

    pub(crate) fn open_sas(&self, peer: &PeerId) -> Vec<IkeId> {
        let Some(peer) = self.peers.get(peer) else {
            return Vec::new();
        };
        peer.sas
            .iter()
            .copied()
            .filter(|id| self.sas.get(id).is_some_and(IkeSa::is_open))
            .collect()
    }

    /// A child's end at the peer is known to stand.
    pub(crate) fn confirm_child(&mut self, id: ChildId, now: Now) {
        let Some(child) = self
            .children
            .get_mut(&id)
            .filter(|c| !c.confirmed && c.is_up())
        else {
            return;
        };
        child.confirmed = true;
        let (peer, slot, ike) = (child.peer.clone(), child.slot.clone(), child.ike);
        if let Some(est) = self.sas.get_mut(&ike).and_then(IkeSa::established_mut) {
            est.unconfirmed.retain(|c| *c != id);
            // ESP on a child of IKE_AUTH shows that the peer has established the SA.
            est.confirmed = true;
        }
        self.update_sending(&peer, &slot, now);
        self.resolve(&peer, false, now);
    }

    /// The peer has used the IKE SA: it has our answers to all its earlier requests, and so the
    /// children `made` by them. A message that deletes one of these does not use it.
    pub(crate) fn confirm_ike(&mut self, id: IkeId, made: Vec<ChildId>, now: Now) {
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let Some(peer) = sa.peer.clone() else { return };
        let Some(est) = sa.established_mut() else {
            return;
        };
        if est.confirmed && made.is_empty() {
            return;
        }
        est.confirmed = true;
        est.unconfirmed.retain(|c| !made.contains(c));
        for child in made {
            self.confirm_child(child, now);
        }
        self.resolve(&peer, false, now);
    }

    /// Closes what is one too many, where that is ours to do. `force`: children that have not
    /// moved to the winner have had their time.
    pub(crate) fn resolve(&mut self, peer: &PeerId, force: bool, now: Now) {
        self.resolve_ikes(peer, force, now);
        let slots: Vec<Slot> = self
            .peers
            .get(peer)
            .into_iter()
            .flat_map(|p| p.children.iter())
            .filter(|(_, set)| set.len() > 1)
            .map(|(slot, _)| slot.clone())
            .collect();
        for slot in slots {
            self.resolve_children(peer, &slot, force, now);
        }
    }

    fn resolve_ikes(&mut self, peer: &PeerId, force: bool, now: Now) {
        let open = self.open_sas(peer);
        if open.len() < 2 {
            return;
        }
        let Some(best) = self.best_ike(peer) else {
            return;
        };
        let Some(est) = self.sas.get(&best).and_then(IkeSa::established) else {
            return;
        };
        if !est.confirmed {
            // Where no packet shows it, an answer does.
            if force {
                self.push_task(best, Task::Probe, now);
            }
            self.hand_over(peer, now);
            return;
        }
        let line = est.lineage.clone();
        let mut announce = line.initiated && !est.announced;
        for id in open.into_iter().filter(|id| *id != best) {
            let Some(other) = self.lineage(id) else {
                continue;
            };
            let ours = line.initiated && other.established < line.born;
            let theirs = !ours && !other.initiated;
            if force || !theirs && self.has_moved(id, best) {
                self.leave(id, now);
                continue;
            }
            // The peer's to delete, once it knows that we hold the winner.
            if theirs && std::mem::take(&mut announce) {
                self.announce(best, now);
            }
            self.hand_over(peer, now);
        }
    }

    /// Comes back with force.
    fn hand_over(&mut self, peer: &PeerId, now: Now) {
        let at = now.monotonic + HANDOVER;
        self.timers.set_once(Deadline::Handover(peer.clone()), at);
    }

    fn announce(&mut self, ike: IkeId, now: Now) {
        if let Some(est) = self.sas.get_mut(&ike).and_then(IkeSa::established_mut) {
            est.announced = true;
        }
        self.push_task(ike, Task::Probe, now);
    }

    /// Whether every child of `old` has a fellow on `new` that stands at both ends.
    fn has_moved(&self, old: IkeId, new: IkeId) -> bool {
        let established = |id: IkeId| self.sas.get(&id).and_then(IkeSa::established);
        let (Some(old), Some(new)) = (established(old), established(new)) else {
            return false;
        };
        let up = |est: &Established| -> Vec<&Child> {
            est.children
                .iter()
                .filter_map(|id| self.children.get(id))
                .filter(|c| c.is_up())
                .collect()
        };
        let there: BTreeSet<&Slot> = up(new)
            .into_iter()
            .filter(|c| c.confirmed && !c.stale)
            .map(|c| &c.slot)
            .collect();
        let moved = |c: &&Child| there.contains(&c.slot) || self.is_left_out(c, new);
        !new.is_creating() && up(old).iter().all(moved)
    }

    fn resolve_children(&mut self, peer: &PeerId, slot: &Slot, force: bool, now: Now) {
        // Children of different IKE SAs go with those; here only what one line made twice.
        let lines: BTreeSet<u64> = self
            .up_children(peer, slot)
            .filter_map(|c| self.lineage(c.ike).map(|l| l.number))
            .collect();
        for line in lines {
            let pool: Vec<&Child> = self
                .up_children(peer, slot)
                .filter(|c| self.lineage(c.ike).is_some_and(|l| l.number == line))
                .collect();
            let Some(best) = self.best_child(&pool).and_then(|id| self.children.get(&id)) else {
                continue;
            };
            if pool.len() < 2 || !best.confirmed {
                continue;
            }
            let (mut announce, mut theirs) = (false, false);
            let mut doomed = Vec::new();
            for child in pool.iter().filter(|c| c.id != best.id) {
                let ours = best.initiator && self.child_supersedes(best, child);
                let crossed = child.initiator && !self.is_replaced_by_peer(child, best);
                if force || ours || crossed {
                    doomed.push((child.ike, child.id));
                } else {
                    theirs = true;
                    announce |= best.initiator && !best.announced;
                }
            }
            let (best, ike, deletes) = (best.id, best.ike, !doomed.is_empty());
            if theirs {
                self.hand_over(peer, now);
            }
            for (ike, id) in doomed {
                self.mark_deleting(id, DownReason::Replaced, now);
                self.push_task(ike, Task::DeleteChild(id), now);
            }
            // A DELETE tells the peer as much as a probe.
            if announce && !deletes {
                if let Some(child) = self.children.get_mut(&best) {
                    child.announced = true;
                }
                self.push_task(ike, Task::Probe, now);
            }
        }
    }

    /// The peer rekeyed `old` into `new`: it deletes `old`, although we once made that.
    fn is_replaced_by_peer(&self, old: &Child, new: &Child) -> bool {
        !new.initiator && new.replaces == Some(old.id)
    }

    /// Whether a child has been rekeyed already.
    pub(crate) fn has_successor(&self, id: ChildId) -> bool {
        let Some(child) = self.children.get(&id) else {
            return false;
        };
        self.up_children(&child.peer, &child.slot)
            .any(|c| c.replaces == Some(id))
    }
}
