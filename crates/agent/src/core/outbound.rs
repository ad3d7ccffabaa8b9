//! Which child packets leave on, and when one goes for good.

use testudo_datapath::DatapathError;
use testudo_ike::{ChildDown, DownReason};
use testudo_model::{ChildId, Now, PeerId};

use super::Core;

/// What packets leave on when the child is gone that they left on, and none waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Else {
    /// The newest old one, which the peer's kernel may still have.
    Old,
    Nothing,
}

impl Core {
    /// What the peer has begun waits until the peer is known to have it, while packets leave on what
    /// the peer's kernel still knows: a child of before its restart, or an SA of before ours. The peer
    /// installs the new child when our answer has reached it, however long that takes; it is asked
    /// with a probe, for packets may go one way only. Of the first child that we have begun we tell the
    /// peer in the same way: it may be waiting.
    pub(super) fn use_outbound(&mut self, child: ChildId, peer: &PeerId, now: Now) {
        if self.tunnels.child(child).is_some_and(|c| c.opens_only) {
            return;
        }
        for other in self.tunnels.fellows(child) {
            // The engine has chosen anew.
            self.linger.passed_over(other);
        }
        let before = self.tunnels.sends_before(child);
        let slot = self.tunnels.slot(child);
        let waits = match before {
            _ if self.engine.is_confirmed(child) => false,
            Some(before) => self.linger.is_old(before),
            // A CPU's packets leave on the child for all CPUs until the peer has the CPU's own.
            None if slot.as_ref().is_some_and(|(_, cpu)| *cpu != 0) => true,
            None => self.follows_earlier_run(child),
        };
        match slot.filter(|_| waits) {
            Some(slot) => self.linger.wait(child, peer, slot, now.monotonic),
            None => self.switch(child, peer, now),
        }
        if self.engine.is_confirmed(child) {
            self.proven(child, now);
        }
        let began = self.tunnels.child(child).is_some_and(|c| c.initiator);
        if (waits || began && before.is_none())
            && let Err(error) = self.engine.probe_child(child, now)
        {
            tracing::debug!(%peer, "not probed: {error}");
        }
    }

    fn follows_earlier_run(&self, child: ChildId) -> bool {
        let datapath = self.datapath.as_ref();
        datapath.is_some_and(|datapath| datapath.follows_earlier_run(child))
    }

    /// Switches to the new children of which it is known by now that the peer has them. Whether there
    /// were any.
    pub(super) fn switch_to_proven(&mut self, now: Now) -> bool {
        let engine = &self.engine;
        let unproven = self.linger.unproven();
        let proven: Vec<ChildId> = unproven
            .filter(|child| engine.is_confirmed(*child))
            .collect();
        for child in &proven {
            self.proven(*child, now);
        }
        !proven.is_empty()
    }

    /// The peer is known to have a child: it is sent on if it waited for that, and what it follows has
    /// less time.
    pub(super) fn proven(&mut self, child: ChildId, now: Now) {
        let switches = self.linger.proven(child);
        if self.linger.is_old(child) {
            return;
        }
        let peer = self.tunnels.child(child).map(|c| c.peer.clone());
        if let (Some(peer), Some(slot)) = (peer, self.tunnels.slot(child)) {
            if switches {
                self.switch(child, &peer, now);
            }
            self.linger.succeeded(&peer, &slot, now.monotonic);
        }
    }

    pub(super) fn switch(&mut self, child: ChildId, peer: &PeerId, now: Now) {
        let Some(datapath) = &mut self.datapath else {
            return;
        };
        match datapath.use_outbound(child) {
            Ok(()) => self.tunnels.sending(child),
            Err(error) => self.refused(child, peer, &error, now),
        }
    }

    /// The host took one half or none: nothing of the pair may stay, and the peer must know
    /// (libreswan#1602: no tunnel after tunnel; the engine waits longer each time). What else stands
    /// with the peer stays.
    pub(super) fn refused(
        &mut self,
        child: ChildId,
        peer: &PeerId,
        error: &DatapathError,
        now: Now,
    ) {
        tracing::warn!(%peer, "the datapath refused an SA: {error}");
        self.with_datapath(|d| d.remove(child));
        self.tunnels.child_down(child, Default::default());
        self.tunnels.failed(
            peer,
            format!("the datapath refused an SA: {error}"),
            now.wall,
        );
        self.count("children_refused");
        if let Err(error) = self.engine.refuse_child(child, now) {
            tracing::debug!(%peer, "not refused: {error}");
        }
    }

    pub(super) fn consider_old(&mut self, down: &ChildDown, now: Now) {
        if down.reason == DownReason::Untrusted {
            // With it goes all that the same peer's trust once allowed.
            for child in self.linger.distrust(|peer| *peer == down.peer) {
                self.drop_child(child);
            }
        }
        if self.tunnels.child(down.child).is_none() {
            return;
        }
        let mut fellows = self.tunnels.fellows(down.child).into_iter();
        let succeeded = fellows.any(|other| self.engine.is_confirmed(other));
        let valid = self.tunnels.valid_until(&down.peer);
        let gone = self.linger.keeps(down, valid, succeeded, now);
        for child in gone.unwrap_or_default() {
            self.retire(child, Else::Old, now);
        }
    }

    /// A child goes for good. What leaves on it goes on on one that waits, though nobody knows whether
    /// the peer has it.
    pub(super) fn retire(&mut self, child: ChildId, or: Else, now: Now) {
        self.linger.lost(child);
        let sending = self.tunnels.child(child).filter(|c| c.sending);
        if let Some(peer) = sending.map(|c| c.peer.clone()) {
            let fellows = self.tunnels.fellows(child);
            let mut all = fellows.iter().copied();
            let waits = all.find(|id| self.linger.hurry(*id).is_some());
            let mut all = fellows.iter().copied().filter(|_| or == Else::Old);
            let old = all.rfind(|id| self.linger.is_old(*id));
            if let Some(next) = waits.or(old) {
                self.switch(next, &peer, now);
            }
        }
        self.drop_child(child);
    }

    /// A child's SAs go, with their last counters.
    pub(super) fn drop_child(&mut self, child: ChildId) {
        self.changed = true;
        let counters = self.datapath.as_ref().map(|d| d.pair_counters(child));
        self.tunnels.child_down(child, counters.unwrap_or_default());
        self.with_datapath(|d| d.remove(child));
    }
}
