//! Children that the datapath does not take (lesson L61): no tunnel after tunnel is made.

use std::time::Duration;

use testudo_model::{ChildId, Monotonic, Now, PeerId};

use crate::engine::Engine;
use crate::error::Misuse;
use crate::event::DownReason;
use crate::peer::ChildRetry;
use crate::sa::create::retry_wait;
use crate::sa::{Slot, Task};
use crate::timers::Deadline;

/// A refusal so long after the last wait is not one more in a row.
const FORGOTTEN: Duration = Duration::from_secs(120);

impl Engine {
    /// Tells that the datapath did not take a child that [`crate::Event::ChildUp`] announced, or
    /// lost it. It is deleted at the peer; its IKE SA and its fellows stay. Another is made after
    /// a wait that doubles with each refusal, 1 to 60 seconds; a peer that asks for one meanwhile
    /// is told TEMPORARY_FAILURE.
    pub fn refuse_child(&mut self, child: ChildId, now: Now) -> Result<(), Misuse> {
        let known = self
            .children
            .get(&child)
            .ok_or(Misuse::UnknownChild(child))?;
        let (ike, peer, slot) = (known.ike, known.peer.clone(), known.slot.clone());
        if !known.is_up() {
            // It is on its way out already.
            return Ok(());
        }
        self.counters.children_refused += 1;
        self.note_refusal(&peer, slot, now);
        self.mark_deleting(child, DownReason::Refused, now);
        self.push_task(ike, Task::DeleteChild(child), now);
        Ok(())
    }

    fn note_refusal(&mut self, id: &PeerId, slot: Slot, now: Now) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let last = peer
            .refusals
            .get(&slot)
            .filter(|last| now.monotonic < last.not_before + FORGOTTEN);
        let failures = last.map_or(1, |last| last.failures.saturating_add(1));
        let not_before = now.monotonic + retry_wait(failures);
        let retry = ChildRetry {
            failures,
            not_before,
        };
        peer.refusals.insert(slot, retry);
        let deadline = Deadline::Children(id.clone());
        self.timers.set_sooner(deadline, not_before);
    }

    /// Until when the datapath's refusal of a child keeps another from being made.
    pub(crate) fn refused_until(&self, id: &PeerId, slot: &Slot, now: Now) -> Option<Monotonic> {
        let last = self.peers.get(id)?.refusals.get(slot)?;
        (last.not_before > now.monotonic).then_some(last.not_before)
    }
}
