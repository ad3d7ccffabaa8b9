//! Deadlines by name. Work per event grows with the logarithm of their number, not with it.

use std::collections::{BTreeMap, BTreeSet};

use testudo_model::{ChildId, Monotonic, PeerId};

use crate::event::IkeId;

/// Everything the engine waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deadline {
    /// Send the outstanding request again, or give up.
    Retransmit(IkeId),
    /// A half-open SA's peer must have authenticated.
    HalfOpen(IkeId),
    /// Soft lifetime of an IKE SA.
    RekeyIke(IkeId),
    /// Hard lifetime of an IKE SA, or the end of the peer's certificate.
    ExpireIke(IkeId),
    /// Silence that asks for a probe.
    Liveness(IkeId),
    /// A replaced IKE SA that the peer should have deleted.
    Redundant(IkeId),
    /// The other fragments of a message must have come.
    Reassembly(IkeId),
    /// The peer must have gone on with additional key exchanges.
    FollowUp(IkeId),
    /// A NAT wants to see a packet (RFC 3948, 4).
    Keepalive(IkeId),
    /// Soft lifetime of a child.
    RekeyChild(ChildId),
    /// Hard lifetime of a child.
    ExpireChild(ChildId),
    /// The end of a replaced child's late packets.
    Linger(ChildId),
    /// The outcome of a job.
    Job(u64),
    /// The next attempt to reach a peer.
    Start(PeerId),
    /// The next look at a peer's missing and superfluous children and SAs.
    Children(PeerId),
    /// Duplicates are closed now, whether all children moved or not.
    Handover(PeerId),
}

/// All pending deadlines, at most one of each name.
#[derive(Default)]
pub(crate) struct Timers {
    by_time: BTreeSet<(Monotonic, Deadline)>,
    by_name: BTreeMap<Deadline, Monotonic>,
}

impl Timers {
    /// Sets a deadline, in place of an earlier setting.
    pub(crate) fn set(&mut self, deadline: Deadline, at: Monotonic) {
        if let Some(before) = self.by_name.insert(deadline.clone(), at) {
            self.by_time.remove(&(before, deadline.clone()));
        }
        self.by_time.insert((at, deadline));
    }

    /// Sets a deadline unless it is set already.
    pub(crate) fn set_once(&mut self, deadline: Deadline, at: Monotonic) {
        if !self.by_name.contains_key(&deadline) {
            self.set(deadline, at);
        }
    }

    /// Sets a deadline unless it is set for an earlier time.
    pub(crate) fn set_sooner(&mut self, deadline: Deadline, at: Monotonic) {
        if self.by_name.get(&deadline).is_none_or(|set| at < *set) {
            self.set(deadline, at);
        }
    }

    /// Forgets a deadline.
    pub(crate) fn cancel(&mut self, deadline: &Deadline) {
        if let Some(at) = self.by_name.remove(deadline) {
            self.by_time.remove(&(at, deadline.clone()));
        }
    }

    /// When the next deadline is.
    pub(crate) fn next(&self) -> Option<Monotonic> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the next deadline that has passed.
    pub(crate) fn pop(&mut self, now: Monotonic) -> Option<Deadline> {
        if self.next()? > now {
            return None;
        }
        let (_, deadline) = self.by_time.pop_first()?;
        self.by_name.remove(&deadline);
        Some(deadline)
    }

    /// Forgets all deadlines of an IKE SA.
    pub(crate) fn cancel_ike(&mut self, ike: IkeId) {
        for deadline in [
            Deadline::Retransmit(ike),
            Deadline::HalfOpen(ike),
            Deadline::RekeyIke(ike),
            Deadline::ExpireIke(ike),
            Deadline::Liveness(ike),
            Deadline::Redundant(ike),
            Deadline::Reassembly(ike),
            Deadline::FollowUp(ike),
            Deadline::Keepalive(ike),
        ] {
            self.cancel(&deadline);
        }
    }

    /// Forgets all deadlines of a child.
    pub(crate) fn cancel_child(&mut self, child: ChildId) {
        for deadline in [
            Deadline::RekeyChild(child),
            Deadline::ExpireChild(child),
            Deadline::Linger(child),
        ] {
            self.cancel(&deadline);
        }
    }

    /// Forgets all deadlines of a peer.
    pub(crate) fn cancel_peer(&mut self, peer: &PeerId) {
        for deadline in [
            Deadline::Start(peer.clone()),
            Deadline::Children(peer.clone()),
            Deadline::Handover(peer.clone()),
        ] {
            self.cancel(&deadline);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    #[cfg(test)]
    pub(crate) fn at(&self, deadline: &Deadline) -> Option<Monotonic> {
        self.by_name.get(deadline).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_deadline_fires_once_at_its_last_setting() {
        let at = |s| Monotonic(Duration::from_secs(s));
        let mut timers = Timers::default();
        timers.set(Deadline::Liveness(IkeId(1)), at(1));
        timers.set(Deadline::Liveness(IkeId(1)), at(3));
        timers.set(Deadline::Liveness(IkeId(2)), at(2));
        assert_eq!(timers.pop(at(1)), None);
        assert_eq!(timers.pop(at(3)), Some(Deadline::Liveness(IkeId(2))));
        assert_eq!(timers.pop(at(3)), Some(Deadline::Liveness(IkeId(1))));
        assert_eq!(timers.pop(at(9)), None);
        assert_eq!(timers.len(), 0);
    }
}
