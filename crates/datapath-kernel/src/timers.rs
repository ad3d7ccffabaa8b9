//! What the worker does when time has passed. Each deadline has a name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use testudo_model::ChildId;
use testudo_netlink::XfrmSaId;

/// The kernel tells of an SA's second packet; the first is looked for this often, more and more
/// seldom, and for a bounded time.
const FIRST_CHECK: Duration = Duration::from_millis(50);
const SLOWEST_CHECK: Duration = Duration::from_secs(5);
const LAST_CHECK: Duration = Duration::from_secs(60);
/// SAs looked at in one turn; what is over waits for the next one, [`FIRST_CHECK`] later. When
/// the SAs of a large cluster come at once, the cost of looking stays bounded.
const CHECKS_AT_ONCE: usize = 32;
/// How long an earlier run's inbound SAs accept when their successors are in use: packets are on
/// their way, and the peer may switch later than we do.
pub(crate) const LINGER_INBOUND: Duration = Duration::from_secs(30);
/// How long SAs stand that have a successor. A thread that sends may have looked its way up and
/// not be running just now: the kernel would refuse its packet when the outbound SA is gone, and
/// the peer would not open it when the inbound one is.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// Repairs, and looks at the whole, are not done more often than this: two programs that undo
/// each other's work must not keep a processor busy.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy)]
struct Check {
    at: Instant,
    pause: Duration,
    end: Instant,
}

/// Everything that waits.
#[derive(Default)]
pub(crate) struct Timers {
    first_inbound: BTreeMap<ChildId, Check>,
    /// Whose first packet is awaited, looked for or not: the kernel tells of the second at any
    /// time.
    awaited: BTreeSet<ChildId>,
    /// None of these is done before.
    checks_from: Option<Instant>,
    removals: Vec<(Instant, XfrmSaId)>,
    repair: Option<Instant>,
    resync: Option<Instant>,
    /// Nothing of these two happens before.
    not_before: Option<Instant>,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Look whether the first packet has come in.
    FirstInbound(ChildId),
    /// Remove an SA.
    Remove(XfrmSaId),
    /// Put policies right.
    Repair,
    /// Compare all that is known with the kernel.
    Resync,
}

impl Timers {
    pub(crate) fn await_first(&mut self, child: ChildId, now: Instant) {
        let check = Check {
            at: now + FIRST_CHECK,
            pause: FIRST_CHECK,
            end: now + LAST_CHECK,
        };
        self.first_inbound.insert(child, check);
        self.awaited.insert(child);
    }

    /// Whether its first packet was still awaited; it is not any more.
    pub(crate) fn forget(&mut self, child: ChildId) -> bool {
        self.first_inbound.remove(&child);
        self.awaited.remove(&child)
    }

    pub(crate) fn remove_later(&mut self, id: XfrmSaId, at: Instant) {
        self.removals.push((at, id));
    }

    /// Whether its removal was a matter of time; it is not any more.
    pub(crate) fn forget_removal(&mut self, id: &XfrmSaId) -> bool {
        let before = self.removals.len();
        self.removals.retain(|(_, other)| other != id);
        self.removals.len() < before
    }

    /// Whether its removal is a matter of time.
    pub(crate) fn will_remove(&self, id: &XfrmSaId) -> bool {
        self.removals.iter().any(|(_, other)| other == id)
    }

    pub(crate) fn repair(&mut self, now: Instant) {
        let at = self.earliest(now);
        self.repair.get_or_insert(at);
    }

    pub(crate) fn resync(&mut self, now: Instant) {
        let at = self.earliest(now);
        self.resync.get_or_insert(at);
    }

    fn earliest(&self, now: Instant) -> Instant {
        self.not_before.map_or(now, |at| at.max(now))
    }

    /// When something is due next.
    pub(crate) fn next(&self) -> Option<Instant> {
        let check = self.first_inbound.values().map(|check| check.at).min();
        let checks = check.map(|at| self.checks_from.map_or(at, |from| from.max(at)));
        let removals = self.removals.iter().map(|(at, _)| *at);
        checks
            .into_iter()
            .chain(removals)
            .chain(self.repair)
            .chain(self.resync)
            .min()
    }

    /// All that is due now. Checks are set anew; the rest is forgotten.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = self.checks(now);
        self.first_inbound.retain(|_, check| check.end > now);
        self.removals.retain(|(at, id)| {
            let waits = *at > now;
            if !waits {
                due.push(Due::Remove(*id));
            }
            waits
        });
        for (slot, what) in [
            (&mut self.repair, Due::Repair),
            (&mut self.resync, Due::Resync),
        ] {
            if slot.is_some_and(|at| at <= now) {
                *slot = None;
                due.push(what);
                self.not_before = Some(now + PAUSE);
            }
        }
        due
    }

    /// Of the checks that are due those that have waited longest.
    fn checks(&mut self, now: Instant) -> Vec<Due> {
        if self.checks_from.is_some_and(|from| now < from) {
            return Vec::new();
        }
        let all = self.first_inbound.iter_mut();
        let mut waiting: Vec<_> = all.filter(|(_, check)| check.at <= now).collect();
        let over = waiting.len() > CHECKS_AT_ONCE;
        self.checks_from = over.then(|| now + FIRST_CHECK);
        waiting.sort_by_key(|(_, check)| check.at);
        let turn = waiting.into_iter().take(CHECKS_AT_ONCE);
        turn.map(|(child, check)| {
            check.pause = (check.pause * 2).min(SLOWEST_CHECK);
            check.at = now + check.pause;
            Due::FirstInbound(*child)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_packet_is_looked_for_more_and_more_seldom_and_not_for_ever() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        timers.await_first(ChildId(1), start);
        let mut looks = 0;
        while let Some(at) = timers.next() {
            assert_eq!(timers.due(at), [Due::FirstInbound(ChildId(1))]);
            looks += 1;
        }
        assert!((15..20).contains(&looks), "{looks}");
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn many_first_packets_are_looked_for_in_turns_and_nobody_is_forgotten() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let all = 10 * CHECKS_AT_ONCE as u64;
        for child in 0..all {
            timers.await_first(ChildId(child), start);
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut now = start;
        while let Some(at) = timers.next().filter(|at| *at <= start + FIRST_CHECK * 11) {
            assert!(at > now, "a turn takes its time");
            now = at;
            let due = timers.due(now);
            assert!(!due.is_empty() && due.len() <= CHECKS_AT_ONCE);
            for due in due {
                let Due::FirstInbound(child) = due else {
                    panic!("{due:?}");
                };
                seen.insert(child);
            }
        }
        assert_eq!(seen.len() as u64, all);
    }

    #[test]
    fn a_first_packet_that_comes_late_is_still_awaited() {
        let (mut timers, child) = (Timers::default(), ChildId(1));
        let begin = Instant::now();
        timers.await_first(child, begin);
        timers.due(begin + LAST_CHECK);
        timers.due(begin + LAST_CHECK * 2);
        assert_eq!(timers.next(), None, "nobody looks for it any more");
        assert!(timers.forget(child) && !timers.forget(child));
    }

    #[test]
    fn repairs_are_paced_and_not_piled_up() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        timers.repair(start);
        timers.repair(start);
        assert_eq!(timers.due(start), [Due::Repair]);
        timers.repair(start);
        timers.resync(start);
        assert_eq!(timers.due(start), []);
        assert_eq!(timers.next(), Some(start + PAUSE));
        assert_eq!(timers.due(start + PAUSE), [Due::Repair, Due::Resync]);
        assert_eq!(timers.next(), None);
    }
}
