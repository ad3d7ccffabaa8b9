//! SAs that outlive their IKE SA: those with a peer whose kernel carries packets while its agent is
//! away.
//!
//! An agent that was killed has forgotten its SAs, its kernel has not: the peer goes on receiving
//! and sending on them until their successors are in use at both ends. So when such a peer's IKE SA
//! ends because its agent is gone ([`DownReason::Dead`]) or has come back
//! ([`DownReason::InitialContact`]), its children stay for a while. A new child that the peer began
//! is sent on when it is known that the peer has installed it; until then packets leave on the old one.
//!
//! Nobody can ask an absent agent for its certificate again. So its children never outlive the
//! certificate that they were made with, and go at once when what it was judged by changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use testudo_ike::{ChildDown, DownReason};
use testudo_model::{ChildId, Monotonic, Now, PeerId, UnixTime};

/// How long an old child receives after its peer's agent has come back.
const BACK: Duration = Duration::from_secs(10);
/// The same while the peer's agent does not answer: an upgrade may take its time.
const AWAY: Duration = Duration::from_secs(600);
/// How long packets leave on an old child at most while it is not known that the peer has the new
/// one. A peer that was restarted too may be starved
/// of its processor between our answer and the moment at which it installs the child; its kernel
/// hears the old one until it has switched itself, and for 30 s more. A peer that does not answer is
/// taken for dead about then.
const LONGEST_UNPROVEN: Duration = Duration::from_secs(30);
/// Old children of one peer and name at most: one that comes back again and again holds no more.
const MOST: usize = 2;

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
    slot: (String, u32),
    until: Monotonic,
}

struct Waiting {
    peer: PeerId,
    due: Monotonic,
}

impl Linger {
    /// Which peers' kernels carry the packets, as they say.
    pub(crate) fn set_kernels(&mut self, kernels: BTreeSet<PeerId>) {
        self.kernels = kernels;
    }

    /// Whether a child that the engine has given up stays in the datapath. What must go for it
    /// comes with the answer. `not_after` is the end of the peer's certificate.
    pub(crate) fn keeps(
        &mut self,
        down: &ChildDown,
        not_after: Option<UnixTime>,
        now: Now,
    ) -> Option<Vec<ChildId>> {
        let stays = match down.reason {
            DownReason::InitialContact => BACK,
            DownReason::Dead => AWAY,
            _ => return None,
        };
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
        if down.reason == DownReason::InitialContact {
            self.came_back(&down.peer, now.monotonic);
        }
        Some(fellows)
    }

    /// The peer's agent is there again: children of before have less time.
    pub(crate) fn came_back(&mut self, peer: &PeerId, now: Monotonic) {
        for old in self.old.values_mut().filter(|old| old.peer == *peer) {
            old.until = old.until.min(now + BACK);
        }
    }

    /// Whether a child is one of the old.
    pub(crate) fn is_old(&self, child: ChildId) -> bool {
        self.old.contains_key(&child)
    }

    /// Packets go on leaving on the old child, or on an SA of before our restart; `new` waits until
    /// the peer is known to have it.
    pub(crate) fn wait(&mut self, new: ChildId, peer: &PeerId, now: Monotonic) {
        self.waiting.entry(new).or_insert(Waiting {
            peer: peer.clone(),
            due: now + LONGEST_UNPROVEN,
        });
    }

    /// New children that wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = ChildId> {
        self.waiting.keys().copied()
    }

    /// Ends the wait of a new child, if it waits: its peer.
    pub(crate) fn proven(&mut self, new: ChildId) -> Option<PeerId> {
        self.waiting.remove(&new).map(|waiting| waiting.peer)
    }

    /// New children whose wait is over.
    pub(crate) fn due(&mut self, now: Monotonic) -> Vec<(ChildId, PeerId)> {
        let due = self.waiting.extract_if(.., |_, waiting| waiting.due <= now);
        due.map(|(id, waiting)| (id, waiting.peer)).collect()
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
        let waiting = self.waiting.values().map(|waiting| waiting.due);
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
        assert_eq!(user.keeps(&down(1, DownReason::Dead), None, now(1)), None);
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
                kernel.keeps(&down(1, reason), None, now(1)),
                None,
                "{reason:?}"
            );
        }
        assert_eq!(kernel.deadline(), None);
        let away = down(1, DownReason::Dead);
        assert_eq!(kernel.keeps(&away, None, now(1)), Some(Vec::new()));
        assert_eq!(kernel.deadline(), Some(at(601)));
        kernel.came_back(&peer(), at(100));
        assert_eq!(kernel.over(at(109)), []);
        assert_eq!(kernel.over(at(110)), [ChildId(1)]);
        assert_eq!(kernel.deadline(), None);
    }

    #[test]
    fn none_outlives_its_certificate_or_the_trust_in_it() {
        let mut linger = linger();
        let dead = |child| down(child, DownReason::Dead);
        let until = Some(UnixTime(1031));
        assert_eq!(linger.keeps(&dead(1), until, now(31)), None);
        assert_eq!(linger.keeps(&dead(1), until, now(40)), None);
        assert_eq!(linger.keeps(&dead(1), until, now(1)), Some(Vec::new()));
        assert_eq!(linger.deadline(), Some(at(31)));
        assert_eq!(linger.over(at(31)), [ChildId(1)]);
        let later = Some(UnixTime(9000));
        assert_eq!(linger.keeps(&dead(2), later, now(1)), Some(Vec::new()));
        assert_eq!(linger.deadline(), Some(at(601)));
        assert_eq!(linger.distrust(|other| *other != peer()), []);
        assert_eq!(linger.distrust(|other| *other == peer()), [ChildId(2)]);
        assert_eq!(linger.deadline(), None);
    }

    #[test]
    fn a_peer_that_comes_back_again_and_again_holds_two() {
        let mut linger = linger();
        for child in 1..=2 {
            let kept = linger.keeps(&down(child, DownReason::InitialContact), None, now(1));
            assert_eq!(kept, Some(Vec::new()));
        }
        let third = linger.keeps(&down(3, DownReason::InitialContact), None, now(2));
        assert_eq!(third, Some(vec![ChildId(1)]));
        assert_eq!(linger.forget(&peer()), [ChildId(2), ChildId(3)]);
        assert_eq!(linger.deadline(), None);
    }

    #[test]
    fn a_new_child_waits_until_the_peer_is_known_to_have_it() {
        let mut linger = linger();
        linger.wait(ChildId(7), &peer(), at(1));
        linger.wait(ChildId(8), &peer(), at(1));
        assert_eq!(linger.proven(ChildId(7)), Some(peer()));
        assert_eq!(linger.proven(ChildId(7)), None);
        assert_eq!(linger.waiting().collect::<Vec<_>>(), [ChildId(8)]);
        assert_eq!(linger.due(at(30)), []);
        assert_eq!(linger.deadline(), Some(at(31)));
        assert_eq!(linger.due(at(31)), [(ChildId(8), peer())]);
        assert_eq!(linger.deadline(), None);
    }
}
