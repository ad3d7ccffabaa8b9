//! What the node does about ESP that may be filtered: looks, asks, answers, and goes over to UDP.

use testudo_datapath::SaCounters;
use testudo_ike::{EspCounts, IkeUp, Receipt};
use testudo_model::{ChildId, Encapsulation, Now, PeerId, SaDirection, SaId};

use crate::core::Core;
use crate::path::{Seen, Told, Way, Whom};
use crate::tunnels::Child;

/// Children whose counters are asked for one by one.
const FEW: usize = 8;

impl Core {
    /// Looks at children that send plain ESP, when it is time, and asks peers about the doubtful.
    pub(crate) fn watch_paths(&mut self, now: Now) {
        for peer in self.paths.over(now.monotonic) {
            tracing::info!(%peer, "ESP was filtered on the path: it is tried again");
            self.changed = true;
        }
        let mut ask = self.paths.due(now.monotonic);
        if let Some(whom) = self.paths.look_due(now.monotonic) {
            let seen = self.watched_counters(whom, now);
            ask.extend(self.paths.look(whom, &seen, now.monotonic));
        }
        for (child, number) in ask {
            if let Err(error) = self.engine.ask_esp(child, number, now) {
                tracing::debug!(child = child.0, "not asked about its packets: {error}");
            }
            self.settle(now);
        }
    }

    fn watched_counters(&self, whom: Whom, now: Now) -> Vec<Seen> {
        let Some(datapath) = &self.datapath else {
            return Vec::new();
        };
        let children = self.tunnels.children_on_ike_paths();
        let proves = |child: &Child| self.paths.is_to_prove(&child.peer, now.monotonic);
        let taken_in = |child: &Child| self.paths.takes_in(whom, &child.peer, now.monotonic);
        let watched = children
            .filter(|(_, child)| taken_in(child))
            .filter(|(_, child)| child.is_plain() || proves(child));
        let watched: Vec<_> = watched.collect();
        // Of many, one listing costs less than two questions for each.
        let all = (watched.len() > FEW).then(|| datapath.sa_counters());
        let halves = |child| match &all {
            None => datapath.pair_halves(child),
            Some(all) => {
                let of = |direction| all.sas.get(&SaId { child, direction }).copied();
                (of(SaDirection::Inbound), of(SaDirection::Outbound))
            }
        };
        watched
            .into_iter()
            .map(|(child, known)| Seen {
                child,
                peer: known.peer.clone(),
                v4: known.encapsulation.remote().is_ipv4(),
                udp: !known.is_plain(),
                sending: known.sending,
                counters: whole(known, halves(child)),
            })
            .collect()
    }

    /// The peer speaks of ESP.
    pub(crate) fn receipt(&mut self, receipt: Receipt, now: Now) {
        match receipt {
            Receipt::Asked {
                child,
                peer,
                number,
            } => self.answer_asked(child, &peer, number, now),
            Receipt::Counts {
                child,
                peer,
                number,
                counts,
            } => self.counted(child, &peer, (number, counts), now),
            Receipt::Filtered { peer } => {
                if self.paths.heard_verdict(&peer) {
                    tracing::info!(%peer, "ESP is filtered on the path, as the peer has found: UDP is used");
                }
            }
        }
    }

    fn answer_asked(&mut self, child: ChildId, peer: &PeerId, number: u32, now: Now) {
        // Without SAs in the datapath nothing came in, and that says nothing of the path.
        let Some(counts) = self.esp_counts(child) else {
            return;
        };
        if let Err(error) = self.engine.tell_esp(child, number, counts, now) {
            tracing::debug!(%peer, "not told what came in: {error}");
        }
    }

    fn counted(
        &mut self,
        child: ChildId,
        peer: &PeerId,
        (number, theirs): (u32, EspCounts),
        now: Now,
    ) {
        let Some(own) = self.esp_counts(child) else {
            return;
        };
        let told = Told {
            number,
            own,
            theirs,
        };
        let Some(way) = self.paths.told_counts(child, peer, told, now.monotonic) else {
            return;
        };
        let Some(path) = self.tunnels.child(child).map(|c| c.encapsulation) else {
            return;
        };
        let (local, remote) = (path.local(), path.remote());
        let (from, to) = match way {
            Way::Out => (local, remote),
            Way::In => (remote, local),
        };
        let ends = (local, remote);
        if matches!(path, Encapsulation::Udp { .. }) {
            if self.paths.missing_in_udp(peer, ends, way, now.monotonic) {
                tracing::warn!(
                    %peer,
                    "what was lost from {from} to {to} as ESP (IP protocol 50) is lost in UDP 4500 as \
                     well: it is no filter of ESP, and UDP is not used any more; see whether large \
                     packets pass between the nodes (MTU)"
                );
                self.changed = true;
            }
            return;
        }
        if let Some(holds) = self.paths.filtered(peer, ends, way, now.monotonic) {
            let hours = holds.as_secs() / 3600;
            tracing::warn!(
                %peer,
                "ESP (IP protocol 50) from {from} is filtered on its way to {to}: ESP goes into UDP \
                 4500 from now on, 8 bytes less a packet; let protocol 50 pass between the nodes, or \
                 set full.encapsulation: Always; tried again in {hours} h"
            );
            self.changed = true;
        }
    }

    /// Our counts of a child that stands.
    fn esp_counts(&self, child: ChildId) -> Option<EspCounts> {
        let known = self.tunnels.child(child)?;
        let halves = self.datapath.as_ref()?.pair_halves(child);
        let (inbound, outbound) = whole(known, halves)?;
        Some(EspCounts {
            received: inbound.sequence,
            sent: outbound.sequence,
        })
    }

    /// A peer with which ESP is filtered is told why UDP is asked for, on each IKE SA that is made.
    pub(crate) fn tell_verdict(&mut self, up: &IkeUp, now: Now) {
        let ends = [(up.local.ip(), up.remote.ip())].into_iter();
        if up.replaces.is_some() || !up.nat || !self.paths.forces(&up.peer, ends) {
            return;
        }
        if let Err(error) = self.engine.tell_filtered(up.ike, now) {
            tracing::debug!(peer = %up.peer, "not told that ESP is filtered: {error}");
        }
    }
}

/// Counters of a child of which all SAs could be read. On one that only opens nothing was sent.
fn whole(
    child: &Child,
    (inbound, outbound): (Option<SaCounters>, Option<SaCounters>),
) -> Option<(SaCounters, SaCounters)> {
    let unsent = child.opens_only.then(SaCounters::default);
    Some((inbound?, outbound.or(unsent)?))
}

#[cfg(test)]
mod tests;
