//! What each deadline does when it has passed.

use std::time::Duration;

use testudo_model::{ChildId, Now};

use crate::engine::Engine;
use crate::event::{DownReason, IkeId, Transmit};
use crate::sa::{ChildState, IkeSa, Phase, State, Task};
use crate::timers::Deadline;

const KEEPALIVE: Duration = Duration::from_secs(20);

impl Engine {
    pub(crate) fn fire(&mut self, deadline: Deadline, now: Now) {
        match deadline {
            Deadline::Retransmit(id) => self.retransmit(id, now),
            Deadline::HalfOpen(id) => self.half_open_over(id, now),
            Deadline::RekeyIke(id) => self.ike_soft_end(id, now),
            Deadline::ExpireIke(id) => self.shut(id, DownReason::Expired, now),
            Deadline::Liveness(id) => self.silent(id, now),
            Deadline::Redundant(id) => self.redundant(id, now),
            Deadline::Reassembly(id) => self.fragments_over(id),
            Deadline::FollowUp(id) => self.follow_ups_over(id, now),
            Deadline::Keepalive(id) => self.keepalive(id, now),
            Deadline::RekeyChild(id) => self.child_soft_end(id, now),
            Deadline::ExpireChild(id) => self.child_hard_end(id, now),
            Deadline::Linger(id) => self.linger_over(id),
            Deadline::Job(id) => self.job_over(id),
            Deadline::Start(peer) => self.start(&peer, now),
            Deadline::Children(peer) => {
                self.resolve(&peer, false, now);
                self.ensure_children(&peer, now);
            }
            Deadline::Handover(peer) => self.resolve(&peer, true, now),
        }
    }

    fn half_open_over(&mut self, id: IkeId, now: Now) {
        let state = self.sas.get(&id).map(|sa| &sa.state);
        if !matches!(state, Some(State::HalfOpen(_))) {
            return;
        }
        self.count_drop("half_open_timeout");
        self.remove_sa(id, DownReason::Dead, now);
    }

    fn phase(&self, id: IkeId) -> Option<Phase> {
        let est = self.sas.get(&id).and_then(IkeSa::established);
        est.map(|e| e.phase)
    }

    fn ike_soft_end(&mut self, id: IkeId, now: Now) {
        if matches!(self.phase(id), Some(Phase::Open | Phase::Waiting)) {
            self.push_task(id, Task::RekeyIke, now);
        }
    }

    /// The peer should have deleted it by now, or taken it into use.
    fn redundant(&mut self, id: IkeId, now: Now) {
        match self.phase(id) {
            Some(Phase::Waiting | Phase::Rekeyed | Phase::Shut | Phase::Gone) => {
                self.remove_sa(id, DownReason::Replaced, now);
            }
            Some(Phase::Open | Phase::Leaving(_)) | None => {}
        }
    }

    fn linger_over(&mut self, id: ChildId) {
        let state = self.children.get(&id).map(|c| c.state);
        if matches!(state, Some(ChildState::Lingering(_))) {
            self.finish_child(id);
        }
    }

    /// Nothing authentic came for a while. ESP does not count: it proves one direction only
    /// (lesson L63).
    fn silent(&mut self, id: IkeId, now: Now) {
        if !matches!(self.phase(id), Some(Phase::Open | Phase::Waiting)) {
            return;
        }
        self.push_task(id, Task::Probe, now);
        let at = now.monotonic + self.config.liveness;
        self.timers.set(Deadline::Liveness(id), at);
    }

    fn keepalive(&mut self, id: IkeId, now: Now) {
        let Some(sa) = self.sas.get(&id) else { return };
        let path = sa.path();
        self.transmits.push_back(Transmit {
            local: path.local,
            remote: path.remote,
            marker: false,
            bytes: vec![0xff],
        });
        let at = now.monotonic + KEEPALIVE;
        self.timers.set(Deadline::Keepalive(id), at);
    }

    fn child_soft_end(&mut self, id: ChildId, now: Now) {
        if self.has_successor(id) {
            return;
        }
        if let Some(ike) = self.children.get(&id).map(|c| c.ike) {
            self.push_task(ike, Task::RekeyChild(id), now);
        }
    }

    /// No successor came in time: the keys are not used any longer.
    fn child_hard_end(&mut self, id: ChildId, now: Now) {
        let Some(child) = self.children.get(&id) else {
            return;
        };
        let (ike, peer, spi) = (child.ike, child.peer.clone(), child.spi_in);
        let told = matches!(child.state, ChildState::Deleting(_));
        let open = self
            .sas
            .get(&ike)
            .and_then(IkeSa::established)
            .is_some_and(|e| e.phase == Phase::Open);
        let reason = if child.stale {
            DownReason::Closed
        } else {
            DownReason::Expired
        };
        self.retire_child(id, reason, now);
        if open && !told {
            self.push_task(ike, Task::DeleteSpi(spi), now);
        }
        self.ensure_children_later(&peer, now);
    }
}
