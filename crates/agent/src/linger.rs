//! SAs that outlive their IKE SA: those with a peer whose kernel carries packets while its agent is
//! away.
//!
//! An agent that was killed has forgotten its SAs, its kernel has not: the peer goes on receiving
//! and sending on them until their successors are in use at both ends. So when such a peer's IKE SA
//! ends because its agent is gone ([`DownReason::Dead`]) or has come back
//! ([`DownReason::InitialContact`]), its children stay. A new child that the peer began is sent on
//! when it is known that the peer has installed it; until then packets leave on the old one. Only from
//! then on is the old one's time short: an agent that has come back may be starved, or go again, before
//! it has done anything, and its kernel knows nothing but the old one. For the same reason a child of
//! which nobody knows that the peer has it never becomes an old one.
//!
//! Nobody can ask an absent agent for its certificate again. So its children never outlive the
//! certificate that they were made with, and go at once when what it was judged by changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use testudo_ike::{ChildDown, DownReason};
use testudo_model::{ChildId, Monotonic, Now, PeerId, UnixTime};

/// How long an old child receives after it is known that the peer has its successor.
const BACK: Duration = Duration::from_secs(10);
/// How long it stays without: an upgrade of the peer's agent may take its time.
const AWAY: Duration = Duration::from_secs(600);
/// How long packets leave on what was before, at most, while it is not known that the peer has the
/// new child, though the peer's agent lives. One that answers nothing is taken for dead about then: its
/// new child goes, and packets go on leaving on the old one.
const LONGEST_UNPROVEN: Duration = Duration::from_secs(30);
/// Old children of one peer and name at most: one that comes back again and again holds no more.
const MOST: usize = 2;

/// Which of a peer's children: its name and resource.
pub(crate) type Slot = (String, u32);

/// Old children, and switches to new ones that wait.
#[derive(Default)]
pub(crate) struct Linger {
    old: BTreeMap<ChildId, Old>,
    waiting: BTreeMap<ChildId, Waiting>,
    /// Peers whose kernels carry the packets.
    kernels: BTreeSet<PeerId>,
}

struct Old {
    peer: PeerId,
    slot: Slot,
    until: Monotonic,
}

/// It stays until it is known that the peer has the child, or the child is gone.
struct Waiting {
    peer: PeerId,
    slot: Slot,
    /// When it is sent on all the same; `None`: it is already, or another is.
    due: Option<Monotonic>,
    /// The engine wants it sent on, and no other for the same packets.
    chosen: bool,
}

impl Linger {
    /// Which peers' kernels carry the packets, as they say.
    pub(crate) fn set_kernels(&mut self, kernels: BTreeSet<PeerId>) {
        self.kernels = kernels;
    }

    /// Whether a child that the engine has given up stays in the datapath. What must go for it
    /// comes with the answer. `not_after` is the end of the peer's certificate; `succeeded` says that the
    /// peer is known to have another for the same packets.
    pub(crate) fn keeps(
        &mut self,
        down: &ChildDown,
        not_after: Option<UnixTime>,
        succeeded: bool,
        now: Now,
    ) -> Option<Vec<ChildId>> {
        let unproven = self.waiting.remove(&down.child).is_some();
        let gone = matches!(down.reason, DownReason::Dead | DownReason::InitialContact);
        if unproven || !gone {
            return None;
        }
        let stays = if succeeded { BACK } else { AWAY };
        let valid =
            not_after.map(|end| u64::try_from(end.0.saturating_sub(now.wall.0)).unwrap_or(0));
        if !self.kernels.contains(&down.peer) || valid == Some(0) {
            return None;
        }
        let slot = (down.name.clone(), down.resource);
        let mut fellows: Vec<ChildId> = self
            .old
            .iter()
            .filter(|(_, old)| old.peer == down.peer && old.slot == slot)
            .map(|(id, _)| *id)
            .collect();
        let most = (fellows.len() + 1).saturating_sub(MOST);
        fellows.truncate(most);
        for id in &fellows {
            self.old.remove(id);
        }
        let peer = down.peer.clone();
        let until =
            now.monotonic + valid.map_or(stays, |left| stays.min(Duration::from_secs(left)));
        self.old.insert(down.child, Old { peer, slot, until });
        Some(fellows)
    }

    /// The peer is known to have a new child: the old ones for its packets have less time. With the
    /// child for all CPUs go those for single ones that have no successor, for they need none.
    pub(crate) fn succeeded(&mut self, peer: &PeerId, slot: &Slot, now: Monotonic) {
        let waiting = &self.waiting;
        let waits = |of: &Slot| waiting.values().any(|w| w.peer == *peer && w.slot == *of);
        let with_it = |of: &Slot| slot.1 == 0 && of.0 == slot.0 && !waits(of);
        for old in self.old.values_mut().filter(|old| old.peer == *peer) {
            if old.slot == *slot || with_it(&old.slot) {
                old.until = old.until.min(now + BACK);
            }
        }
    }

    /// Whether a child is one of the old.
    pub(crate) fn is_old(&self, child: ChildId) -> bool {
        self.old.contains_key(&child)
    }

    /// Packets go on leaving on the old child, or on an SA of before our restart; `new` waits until
    /// the peer is known to have it.
    pub(crate) fn wait(&mut self, new: ChildId, peer: &PeerId, slot: Slot, now: Monotonic) {
        let wait = Waiting {
            peer: peer.clone(),
            slot,
            due: Some(now + LONGEST_UNPROVEN),
            chosen: true,
        };
        self.waiting.entry(new).or_insert(wait);
    }

    /// New children of which it is not known whether the peer has them.
    pub(crate) fn unproven(&self) -> impl Iterator<Item = ChildId> {
        self.waiting.keys().copied()
    }

    /// The peer is known to have a new child: whether it is to be sent on now.
    pub(crate) fn proven(&mut self, new: ChildId) -> bool {
        let waited = self.waiting.remove(&new);
        waited.is_some_and(|wait| wait.chosen && wait.due.is_some())
    }

    /// A child that may wait is gone.
    pub(crate) fn gone(&mut self, new: ChildId) {
        self.waiting.remove(&new);
    }

    /// The engine has chosen another for the packets of a child that may wait.
    pub(crate) fn passed_over(&mut self, new: ChildId) {
        if let Some(wait) = self.waiting.get_mut(&new) {
            (wait.due, wait.chosen) = (None, false);
        }
    }

    /// Ends the wait of a new child, if it waits, for there is nothing else to send on: its peer.
    pub(crate) fn hurry(&mut self, new: ChildId) -> Option<PeerId> {
        let wait = self.waiting.get_mut(&new)?;
        wait.due.take().map(|_| wait.peer.clone())
    }

    /// New children whose wait is over.
    pub(crate) fn due(&mut self, now: Monotonic) -> Vec<(ChildId, PeerId)> {
        let mut due = Vec::new();
        for (id, wait) in &mut self.waiting {
            if wait.due.take_if(|at| *at <= now).is_some() {
                due.push((*id, wait.peer.clone()));
            }
        }
        due
    }

    /// Old children whose time is over.
    pub(crate) fn over(&mut self, now: Monotonic) -> Vec<ChildId> {
        let over = self.old.extract_if(.., |_, old| old.until <= now);
        over.map(|(id, _)| id).collect()
    }

    /// All old children of a peer that is not wanted any more; nothing of it waits.
    pub(crate) fn forget(&mut self, peer: &PeerId) -> Vec<ChildId> {
        self.waiting.retain(|_, waiting| waiting.peer != *peer);
        let gone = self.old.extract_if(.., |_, old| old.peer == *peer);
        gone.map(|(id, _)| id).collect()
    }

    /// All old children of peers of which nobody can say any more who they are.
    pub(crate) fn distrust(&mut self, doubted: impl Fn(&PeerId) -> bool) -> Vec<ChildId> {
        let gone = self.old.extract_if(.., |_, old| doubted(&old.peer));
        gone.map(|(id, _)| id).collect()
    }

    /// An old child's SAs are gone from the datapath.
    pub(crate) fn lost(&mut self, child: ChildId) {
        self.old.remove(&child);
    }

    /// The next moment at which something is due.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        let waiting = self.waiting.values().filter_map(|waiting| waiting.due);
        waiting.chain(self.old.values().map(|old| old.until)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerId {
        PeerId::new("n2").unwrap()
    }

    fn down(child: u64, reason: DownReason) -> ChildDown {
        ChildDown {
            child: ChildId(child),
            peer: peer(),
            name: "overlay-v4".to_owned(),
            resource: 0,
            reason,
        }
    }

    fn slot(resource: u32) -> Slot {
        ("overlay-v4".to_owned(), resource)
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    /// The wall's clock began 1000 s before the machine's.
    fn now(seconds: u64) -> Now {
        Now {
            monotonic: at(seconds),
            wall: UnixTime(1000 + i64::try_from(seconds).unwrap()),
        }
    }

    fn linger() -> Linger {
        let mut linger = Linger::default();
        linger.set_kernels([peer()].into());
        linger
    }

    #[test]
    fn only_what_an_absent_agent_left_with_a_kernel_stays() {
        let mut user = Linger::default();
        assert_eq!(
            user.keeps(&down(1, DownReason::Dead), None, false, now(1)),
            None
        );
        let mut kernel = linger();
        for reason in [
            DownReason::Replaced,
            DownReason::PeerDeleted,
            DownReason::Closed,
            DownReason::Refused,
            DownReason::Expired,
            DownReason::Untrusted,
            DownReason::Error,
        ] {
            assert_eq!(
                kernel.keeps(&down(1, reason), None, false, now(1)),
                None,
                "{reason:?}"
            );
        }
        assert_eq!(kernel.deadline(), None);
        let away = down(1, DownReason::Dead);
        assert_eq!(kernel.keeps(&away, None, false, now(1)), Some(Vec::new()));
        assert_eq!(kernel.deadline(), Some(at(601)));
        kernel.succeeded(&peer(), &("overlay-v6".to_owned(), 0), at(50));
        kernel.succeeded(&peer(), &("overlay-v4".to_owned(), 1), at(50));
        assert_eq!(kernel.deadline(), Some(at(601)));
        kernel.succeeded(&peer(), &slot(0), at(100));
        assert_eq!(kernel.over(at(109)), []);
        assert_eq!(kernel.over(at(110)), [ChildId(1)]);
        assert_eq!(kernel.deadline(), None);
    }

    #[test]
    fn none_outlives_its_certificate_or_the_trust_in_it() {
        let mut linger = linger();
        let dead = |child| down(child, DownReason::Dead);
        let until = Some(UnixTime(1031));
        assert_eq!(linger.keeps(&dead(1), until, false, now(31)), None);
        assert_eq!(linger.keeps(&dead(1), until, false, now(40)), None);
        assert_eq!(
            linger.keeps(&dead(1), until, false, now(1)),
            Some(Vec::new())
        );
        assert_eq!(linger.deadline(), Some(at(31)));
        assert_eq!(linger.over(at(31)), [ChildId(1)]);
        let later = Some(UnixTime(9000));
        assert_eq!(
            linger.keeps(&dead(2), later, false, now(1)),
            Some(Vec::new())
        );
        assert_eq!(linger.deadline(), Some(at(601)));
        assert_eq!(linger.distrust(|other| *other != peer()), []);
        assert_eq!(linger.distrust(|other| *other == peer()), [ChildId(2)]);
        assert_eq!(linger.deadline(), None);
    }

    #[test]
    fn a_peer_that_comes_back_again_and_again_holds_two() {
        let mut linger = linger();
        for child in 1..=2 {
            let kept = linger.keeps(
                &down(child, DownReason::InitialContact),
                None,
                false,
                now(1),
            );
            assert_eq!(kept, Some(Vec::new()));
        }
        let third = linger.keeps(&down(3, DownReason::InitialContact), None, false, now(2));
        assert_eq!(third, Some(vec![ChildId(1)]));
        assert_eq!(linger.forget(&peer()), [ChildId(2), ChildId(3)]);
        assert_eq!(linger.deadline(), None);
    }

    #[test]
    fn a_new_child_waits_until_the_peer_is_known_to_have_it() {
        let mut linger = linger();
        linger.wait(ChildId(7), &peer(), slot(0), at(1));
        linger.wait(ChildId(8), &peer(), slot(1), at(1));
        linger.wait(ChildId(9), &peer(), slot(2), at(1));
        assert!(linger.proven(ChildId(7)) && !linger.proven(ChildId(7)));
        linger.passed_over(ChildId(9));
        assert_eq!(linger.hurry(ChildId(9)), None);
        assert_eq!(linger.due(at(30)), []);
        assert_eq!(linger.deadline(), Some(at(31)));
        assert_eq!(linger.due(at(31)), [(ChildId(8), peer())]);
        assert_eq!((linger.due(at(99)), linger.deadline()), (vec![], None));
        // It is sent on already, or not to be, and still not known to be there.
        let unproven: Vec<ChildId> = linger.unproven().collect();
        assert_eq!(unproven, [ChildId(8), ChildId(9)]);
        assert!(!linger.proven(ChildId(8)) && !linger.proven(ChildId(9)));
    }

    #[test]
    fn what_the_peer_may_not_have_never_becomes_old() {
        let mut linger = linger();
        let back = DownReason::InitialContact;
        let kept = linger.keeps(&down(1, back), None, false, now(1));
        assert_eq!((kept, linger.deadline()), (Some(Vec::new()), Some(at(601))));
        for (child, reason) in [(2, back), (3, DownReason::Dead)] {
            linger.wait(ChildId(child), &peer(), slot(0), at(2));
            assert_eq!(
                linger.keeps(&down(child, reason), None, false, now(3)),
                None
            );
            assert_eq!(
                (linger.unproven().count(), linger.is_old(ChildId(child))),
                (0, false)
            );
        }
        assert_eq!(linger.deadline(), Some(at(601)), "the first still stays");
        // One with a successor that the peer has.
        let kept = linger.keeps(&down(4, back), None, true, now(20));
        assert_eq!((kept, linger.deadline()), (Some(Vec::new()), Some(at(30))));
    }

    #[test]
    fn with_the_child_for_all_go_those_for_cpus_unless_their_successors_wait() {
        let mut linger = linger();
        for resource in 0..3 {
            let mut down = down(resource, DownReason::Dead);
            down.resource = u32::try_from(resource).unwrap();
            assert!(linger.keeps(&down, None, false, now(0)).is_some());
        }
        linger.wait(ChildId(12), &peer(), slot(2), at(1));
        linger.succeeded(&peer(), &slot(0), at(5));
        assert_eq!(linger.over(at(15)), [ChildId(0), ChildId(1)]);
        assert!(linger.proven(ChildId(12)));
        linger.succeeded(&peer(), &slot(2), at(20));
        assert_eq!(linger.over(at(30)), [ChildId(2)]);
    }
}
