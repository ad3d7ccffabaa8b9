//! ESP that is filtered on the path although no NAT is seen: noticed by what does not come in, and
//! answered with UDP encapsulation for that pair of nodes.
//!
//! Traffic itself is the probe. A look at the counters once a second finds children on which packets
//! leave while nothing comes in; about those the peer is asked ([`doubt`]), and its counts say whether
//! packets arrive. A firewall may drop one direction only, so each end judges both.
//!
//! A verdict is about one pair of addresses and lives in memory: it ends with the process, does not
//! hold for other addresses, and ends after an hour. Then ESP is tried again, each time after twice as
//! long as the last if it was in vain, for the try costs what packets are lost until it is noticed.

mod doubt;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use testudo_datapath::SaCounters;
use testudo_model::{ChildId, Encapsulation, Monotonic, PeerId};

use doubt::Doubt;
pub(crate) use doubt::{Told, Way};

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_secs(1);
/// The same of peers to which ESP is tried that was filtered before.
const EAGER_LOOK: Duration = Duration::from_millis(200);
/// How long such a try is looked at so closely, first and again from the first packet on.
const EAGER: Duration = Duration::from_secs(20);
/// How long after a verdict it is seen whether UDP has helped.
const PROOF: Duration = Duration::from_secs(60);
/// How long a verdict holds, first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));

/// A child that sends ESP without UDP, or one in UDP that is to prove a verdict, as a look finds it.
pub(crate) struct Seen {
    pub(crate) child: ChildId,
    pub(crate) peer: PeerId,
    /// Of the outer addresses.
    pub(crate) v4: bool,
    pub(crate) udp: bool,
    /// Packets to the peer leave on it.
    pub(crate) sending: bool,
    /// Inbound and outbound; `None`: they could not be read, and that says nothing.
    pub(crate) counters: Option<(SaCounters, SaCounters)>,
}

/// Whom a look at the counters takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// All peers.
    All,
    /// Those to which ESP is tried that was filtered before.
    Tried,
}

/// All paths to peers.
#[derive(Default)]
pub(crate) struct Paths {
    watched: BTreeMap<ChildId, Watched>,
    verdicts: BTreeMap<PeerId, Verdict>,
    /// Peers to which ESP is tried again after a verdict.
    tries: BTreeMap<PeerId, Try>,
    /// Peers that have told us a verdict of theirs.
    told: BTreeSet<PeerId>,
    /// The next look at all.
    look: Option<Monotonic>,
    /// The next at peers to which ESP is tried, if it comes before.
    eager_look: Option<Monotonic>,
}

#[derive(Default)]
struct Watched {
    /// Packets, and how far we had sent, at the last look.
    inbound: u64,
    outbound: u64,
    sent: u64,
    doubt: Doubt,
}

/// ESP is filtered between two addresses.
struct Verdict {
    ends: (IpAddr, IpAddr),
    /// Which packets were missing.
    way: Way,
    until: Monotonic,
    /// How long it holds.
    holds: Duration,
    /// Until then it is seen whether UDP has helped.
    proven: Monotonic,
    /// The same packets were missing in UDP. It forces nothing then, and keeps us from another one.
    refuted: bool,
}

/// It ends when it is settled, however rarely packets leave.
struct Try {
    /// The end of the verdict; from the first packet on, that.
    since: Monotonic,
    /// A packet has left without UDP.
    begun: bool,
    /// Packets have arrived.
    passes: bool,
    /// How long the verdict before it held.
    held: Duration,
}

impl Paths {
    /// A child came up. One that sends plain ESP is looked at from now on.
    pub(crate) fn came_up(&mut self, peer: &PeerId, encapsulation: &Encapsulation, now: Monotonic) {
        let plain = matches!(encapsulation, Encapsulation::None { .. });
        if plain {
            self.told.remove(peer);
        }
        if plain || self.is_to_prove(peer, now) {
            let sooner = |look: &mut Option<Monotonic>, at: Monotonic| {
                *look = Some(look.map_or(at, |look| look.min(at)));
            };
            sooner(&mut self.look, now + LOOK);
            if self.is_eager(peer, now) {
                sooner(&mut self.eager_look, now + EAGER_LOOK);
            }
        }
    }

    /// Whether counters are to be looked at, and whose.
    pub(crate) fn look_due(&self, now: Monotonic) -> Option<Whom> {
        let is_due = |look: Option<Monotonic>| look.is_some_and(|at| at <= now);
        if is_due(self.look) {
            return Some(Whom::All);
        }
        is_due(self.eager_look).then_some(Whom::Tried)
    }

    /// Whether a look takes this peer in.
    pub(crate) fn takes_in(&self, whom: Whom, peer: &PeerId, now: Monotonic) -> bool {
        whom == Whom::All || self.is_eager(peer, now)
    }

    fn is_eager(&self, peer: &PeerId, now: Monotonic) -> bool {
        self.tries.get(peer).is_some_and(|t| t.is_eager(now))
    }

    /// Looks at all children, of the peers that the look takes in, that send plain ESP, or did until a
    /// moment ago, and at those in UDP that are to prove a verdict. Says about which of them the peer is
    /// to be asked, with the question's number.
    pub(crate) fn look(
        &mut self,
        whom: Whom,
        seen: &[Seen],
        now: Monotonic,
    ) -> Vec<(ChildId, u32)> {
        let mut heard = BTreeSet::new();
        for child in seen {
            let Some((inbound, _)) = child.counters else {
                continue;
            };
            let before = self.watched.get(&child.child).map_or(0, |w| w.inbound);
            if inbound.packets > before {
                heard.insert((&child.peer, child.v4, child.udp));
                if let Some(t) = self.tries.get_mut(&child.peer).filter(|_| !child.udp) {
                    t.passes = true;
                }
            }
        }
        let mut ask = Vec::new();
        let mut watched = BTreeMap::new();
        for child in seen {
            let mut known = self.watched.remove(&child.child).unwrap_or_default();
            let Some((inbound, outbound)) = child.counters else {
                watched.insert(child.child, known);
                continue;
            };
            let left = child.sending && outbound.packets > known.outbound;
            let unheard = left && !heard.contains(&(&child.peer, child.v4, child.udp));
            if let Some(t) = self.tries.get_mut(&child.peer)
                && left
                && !child.udp
                && !t.begun
            {
                (t.begun, t.since) = (true, now);
            }
            if let Some(number) = known.doubt.look(unheard, known.sent, now) {
                ask.push((child.child, number));
            }
            known.inbound = inbound.packets;
            known.outbound = outbound.packets;
            known.sent = outbound.sequence;
            watched.insert(child.child, known);
        }
        let eager = seen.iter().any(|child| self.is_eager(&child.peer, now));
        self.eager_look = eager.then(|| now + EAGER_LOOK);
        match whom {
            Whom::All => {
                self.watched = watched;
                self.look = (!seen.is_empty()).then(|| now + LOOK);
            }
            Whom::Tried => self.watched.append(&mut watched),
        }
        ask
    }

    /// Children about which the peer is to be asked once more.
    pub(crate) fn due(&mut self, now: Monotonic) -> Vec<(ChildId, u32)> {
        let watched = self.watched.iter_mut();
        let due = watched.filter_map(|(id, w)| Some((*id, w.doubt.due(now)?)));
        due.collect()
    }

    /// Peers whose verdict is over: ESP is tried again.
    pub(crate) fn over(&mut self, now: Monotonic) -> Vec<PeerId> {
        self.tries.retain(|_, t| !t.is_settled(now));
        let over: Vec<_> = self
            .verdicts
            .extract_if(.., |_, verdict| verdict.until <= now)
            .collect();
        for (peer, verdict) in &over {
            let tried = Try {
                since: now,
                begun: false,
                passes: false,
                held: verdict.holds,
            };
            self.tries.insert(peer.clone(), tried);
        }
        let forced = over.into_iter().filter(|(_, verdict)| !verdict.refuted);
        forced.map(|(peer, _)| peer).collect()
    }

    /// The peer has told its counts of a child. Says which packets are filtered, if that is certain
    /// now.
    pub(crate) fn told_counts(
        &mut self,
        child: ChildId,
        peer: &PeerId,
        told: Told,
        now: Monotonic,
    ) -> Option<Way> {
        let step = match self.is_eager(peer, now) {
            true => doubt::EAGER_STEP,
            false => doubt::STEP,
        };
        let watched = self.watched.get_mut(&child)?;
        let way = watched.doubt.told(told, step, now);
        if let Some(t) = self.tries.get_mut(peer) {
            t.passes |= watched.doubt.is_at_rest();
        }
        way
    }

    /// ESP is filtered on the path to the peer. Says for how long that is taken for true; `None`: it
    /// was known, or UDP did not help the last time.
    pub(crate) fn filtered(
        &mut self,
        peer: &PeerId,
        ends: (IpAddr, IpAddr),
        way: Way,
        now: Monotonic,
    ) -> Option<Duration> {
        if self.verdicts.get(peer).is_some_and(|v| v.ends == ends) {
            return None;
        }
        let last = self.tries.remove(peer).filter(|t| !t.is_settled(now));
        let holds = last.map_or(RETRY.0, |t| (t.held * 2).min(RETRY.1));
        let verdict = Verdict {
            ends,
            way,
            until: now + holds,
            holds,
            proven: now + PROOF,
            refuted: false,
        };
        self.verdicts.insert(peer.clone(), verdict);
        Some(holds)
    }

    /// Whether it is to be seen if UDP helps.
    pub(crate) fn is_to_prove(&self, peer: &PeerId, now: Monotonic) -> bool {
        let verdict = self.verdicts.get(peer);
        verdict.is_some_and(|verdict| !verdict.refuted && now < verdict.proven)
    }

    /// Packets are missing in UDP as well. Whether a verdict is taken back by that: it was about the
    /// same packets, so that something else than the protocol decides which of them arrive, their
    /// length perhaps.
    pub(crate) fn missing_in_udp(
        &mut self,
        peer: &PeerId,
        ends: (IpAddr, IpAddr),
        way: Way,
        now: Monotonic,
    ) -> bool {
        let to_prove = self.is_to_prove(peer, now);
        let verdict = self.verdicts.get_mut(peer).filter(|_| to_prove);
        let Some(verdict) = verdict.filter(|v| v.ends == ends && v.way == way) else {
            return false;
        };
        verdict.refuted = true;
        true
    }

    /// Whether UDP is to be asked for with a peer that is reached between these addresses.
    pub(crate) fn forces(
        &self,
        peer: &PeerId,
        mut ends: impl Iterator<Item = (IpAddr, IpAddr)>,
    ) -> bool {
        let verdict = self.verdicts.get(peer).filter(|v| !v.refuted);
        verdict.is_some_and(|verdict| ends.any(|pair| pair == verdict.ends))
    }

    /// The peer has found that ESP is filtered. Whether that is new.
    pub(crate) fn heard_verdict(&mut self, peer: &PeerId) -> bool {
        self.told.insert(peer.clone())
    }

    /// All peers with which ESP is known to be filtered, by either end.
    pub(crate) fn all_filtered(&self) -> BTreeSet<PeerId> {
        let found = self.verdicts.iter().filter(|(_, v)| !v.refuted);
        let found = found.map(|(peer, _)| peer);
        self.told.iter().chain(found).cloned().collect()
    }

    /// A peer is not wanted any more.
    pub(crate) fn forget(&mut self, peer: &PeerId) {
        self.verdicts.remove(peer);
        self.tries.remove(peer);
        self.told.remove(peer);
    }

    /// The next moment at which something is due.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        let doubts = self.watched.values().filter_map(|w| w.doubt.deadline());
        let verdicts = self.verdicts.values().map(|v| v.until);
        let looks = self.look.into_iter().chain(self.eager_look);
        doubts.chain(verdicts).chain(looks).min()
    }
}

impl Try {
    fn is_eager(&self, now: Monotonic) -> bool {
        now.since(self.since) < EAGER
    }

    fn is_settled(&self, now: Monotonic) -> bool {
        self.begun && self.passes && !self.is_eager(now)
    }
}

#[cfg(test)]
mod tests;
