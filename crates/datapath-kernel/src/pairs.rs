//! Pairs of SAs: installed, used, moved, removed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use testudo_datapath::{DatapathError, SaCounters};
use testudo_model::{
    ChildId, Encapsulation, InboundSaSpec, OutboundSaSpec, PeerId, SaDirection, SaId, SaMode, Spi,
    TrafficSelector,
};
use testudo_netlink::{XfrmDirection, XfrmListedSa, XfrmSaId, XfrmSelector, XfrmTemplate};

use crate::core::{Core, Outbound, Pair, refused};
use crate::plan::desired_for;
use crate::sa;
use crate::timers::{LINGER, LINGER_INBOUND};

impl Core {
    pub(crate) fn install_inbound(&mut self, spec: &InboundSaSpec) -> Result<(), DatapathError> {
        const OPERATION: &str = "install an inbound SA";
        if let Some(pair) = self.pairs.get(&spec.child)
            && pair.inbound.is_some()
        {
            return Err(misuse(OPERATION, spec.child, "has one already"));
        }
        let extras = self.extras(&spec.peer)?;
        let sa = sa::inbound(spec, &extras);
        self.make_room(&sa.id)?;
        self.xfrm.add_sa(&sa).map_err(|e| refused(OPERATION, &e))?;
        let pair = self.pair(spec.child, &spec.peer, spec.mode, spec.encapsulation);
        pair.inbound = Some(sa.id);
        self.own(sa.id, spec.child, SaDirection::Inbound);
        self.set_other_addresses(&spec.peer);
        // With its first SA a peer gets its policies on the way in.
        if let Err(error) = self.sync_peer(&spec.peer) {
            if let Some(pair) = self.pairs.get_mut(&spec.child) {
                pair.inbound = None;
                if pair.outbound.is_none() {
                    self.pairs.remove(&spec.child);
                }
            }
            self.delete_sa(&sa.id)?;
            return Err(error);
        }
        self.timers.await_first(spec.child, Instant::now());
        Ok(())
    }

    /// For one CPU, or for all.
    pub(crate) fn install_outbound(
        &mut self,
        spec: &OutboundSaSpec,
        cpu: Option<u32>,
    ) -> Result<(), DatapathError> {
        const OPERATION: &str = "install an outbound SA";
        if let Some(cpu) = cpu
            && cpu >= self.facts.cpus
        {
            let reason = format!("CPU {cpu} can have none of its own");
            return Err(misuse(OPERATION, spec.child, &reason));
        }
        if let Some(pair) = self.pairs.get(&spec.child)
            && pair.outbound.is_some()
        {
            return Err(misuse(OPERATION, spec.child, "has one already"));
        }
        let extras = self.extras(&spec.peer)?;
        let sa = sa::outbound(spec, &extras, cpu);
        self.make_room(&sa.id)?;
        self.about_to_stand(&spec.peer, sa.id)?;
        if let Err(error) = self.xfrm.add_sa(&sa) {
            self.gone(&sa.id);
            return Err(refused(OPERATION, &error));
        }
        let pair = self.pair(spec.child, &spec.peer, spec.mode, spec.encapsulation);
        pair.outbound = Some(Outbound {
            id: sa.id,
            cpu,
            local: spec.local.clone(),
            remote: spec.remote.clone(),
        });
        self.own(sa.id, spec.child, SaDirection::Outbound);
        Ok(())
    }

    /// Before an SA is there that nobody uses yet, no policy may be without an SPI that would find it.
    fn about_to_stand(&mut self, peer: &PeerId, id: XfrmSaId) -> Result<(), DatapathError> {
        self.bindings.stands(peer, id);
        if !self.bindings.has_cpus(peer) {
            return Ok(());
        }
        self.sync_peer(peer).inspect_err(|_| {
            self.bindings.gone(&id);
        })
    }

    /// One replacement of a policy is the whole switch.
    pub(crate) fn use_outbound(&mut self, child: ChildId) -> Result<(), DatapathError> {
        const OPERATION: &str = "use an outbound SA";
        let Some(pair) = self.pairs.get(&child) else {
            return Err(misuse(OPERATION, child, "is not installed"));
        };
        let Some(in_use) = pair.in_use() else {
            return Err(misuse(OPERATION, child, "has none"));
        };
        within_reach(OPERATION, in_use.mode, &in_use.remote, in_use.ends.1)?;
        let (peer, spi) = (pair.peer.clone(), in_use.spi);
        self.bindings.use_outbound(&peer, in_use);
        if let Err(error) = self.sync_peer(&peer) {
            self.bindings.stop_using(&peer, spi);
            return Err(error);
        }
        self.replaced(&peer);
        Ok(())
    }

    /// Whether packets that the child is to carry leave on an SA of an earlier run.
    pub(crate) fn follows_leftover(&self, child: ChildId) -> bool {
        let pair = self.pairs.get(&child);
        let Some((pair, next)) = pair.and_then(|pair| Some((pair, pair.in_use()?))) else {
            return false;
        };
        let named = self.named(&pair.peer);
        named
            .iter()
            .any(|(flow, template)| next.covers(flow) && self.leftovers.has_outbound(template))
    }

    /// What a peer's outbound policies name, and for which packets.
    fn named(&self, peer: &PeerId) -> Vec<(XfrmSelector, XfrmTemplate)> {
        let Some(policy) = &self.policy else {
            return Vec::new();
        };
        let policies = desired_for(policy, &self.bindings, self.facts.ipv6, peer);
        let outbound = policies
            .into_iter()
            .filter(|policy| policy.direction == XfrmDirection::Out);
        let named = outbound.flat_map(|policy| {
            let templates = policy.templates.into_iter();
            templates.map(move |template| (policy.selector, template))
        });
        named.filter(|(_, template)| template.spi != 0).collect()
    }

    /// What an earlier run left and no policy names is not needed any more: outbound SAs at once,
    /// inbound ones when the packets that are on their way have come in and the peer has switched
    /// too.
    fn replaced(&mut self, peer: &PeerId) {
        let Some(reqid) = self.bindings.reqid(peer) else {
            return;
        };
        if !self.leftovers.reqids().contains(&reqid) {
            return;
        }
        let named: Vec<XfrmTemplate> = self.named(peer).into_iter().map(|(_, t)| t).collect();
        let (outbound, inbound) = self.leftovers.replaced(reqid, &named);
        for id in outbound {
            self.bindings.stop_using(peer, Spi(id.spi));
            self.retire(id);
        }
        for id in inbound {
            let at = Instant::now() + LINGER_INBOUND;
            self.timers.remove_later(id, at);
        }
    }

    /// An SA that has a successor goes when no packet can be on its way to it.
    fn retire(&mut self, id: XfrmSaId) {
        self.owners.remove(&id);
        let at = Instant::now() + LINGER;
        self.timers.remove_later(id, at);
    }

    /// An SA of this name that is about to go makes room now.
    pub(crate) fn make_room(&mut self, id: &XfrmSaId) -> Result<(), DatapathError> {
        match self.timers.forget_removal(id) {
            true => self.delete_sa(id),
            false => Ok(()),
        }
    }

    pub(crate) fn remove(&mut self, child: ChildId) -> Result<(), DatapathError> {
        let Some(pair) = self.pairs.remove(&child) else {
            return Ok(());
        };
        self.timers.forget(child);
        // No policy names the outbound SA when it goes, so no packet asks for it.
        if let Some(outbound) = &pair.outbound {
            self.bindings.stop_using(&pair.peer, Spi(outbound.id.spi));
            // The SAs go all the same; what still names them is put right, or blocks when asked.
            self.block_or_try_again(&pair.peer);
        }
        self.set_other_addresses(&pair.peer);
        let wanted = self
            .policy
            .as_ref()
            .is_some_and(|policy| policy.peers.iter().any(|p| p.peer == pair.peer));
        let has_more = self.pairs.values().any(|other| other.peer == pair.peer);
        let ids = [pair.inbound, pair.outbound.map(|outbound| outbound.id)];
        let mut done = Ok(());
        for id in ids.into_iter().flatten() {
            self.keep_drops(&id);
            match has_more {
                true => self.retire(id),
                // A peer that is not to be heard any more is not heard any more.
                false => done = done.and(self.delete_sa(&id)),
            }
        }
        if done.is_err() {
            // What is not known stands: it goes then.
            self.timers.resync(Instant::now());
        }
        if !wanted && !has_more {
            self.bindings.forget(&pair.peer);
            self.bound.remove(&pair.peer);
        }
        done
    }

    /// The peer's end has moved. Another port is a change of the SAs in place; another address
    /// makes an outbound SA of the same SPI and key in place of the old one.
    pub(crate) fn rebind(
        &mut self,
        child: ChildId,
        to: Encapsulation,
    ) -> Result<(), DatapathError> {
        const OPERATION: &str = "rebind a pair";
        let Some(pair) = self.pairs.get(&child) else {
            return Err(misuse(OPERATION, child, "is not installed"));
        };
        let from = pair.encapsulation;
        if from == to {
            return Ok(());
        }
        let udp = |e: &Encapsulation| matches!(e, Encapsulation::Udp { .. });
        if from.local() != to.local() || udp(&from) != udp(&to) {
            return Err(DatapathError::Refused {
                operation: OPERATION.into(),
                reason: "our own end and the form of encapsulation take a new child".into(),
            });
        }
        let (inbound, outbound) = (pair.inbound, pair.outbound.as_ref().map(|o| o.id));
        if from.remote() == to.remote() {
            for (id, direction) in [(inbound, XfrmDirection::In), (outbound, XfrmDirection::Out)] {
                let Some(id) = id else { continue };
                let mut listed = self.read(OPERATION, child, &id)?;
                listed.sa.encapsulation = sa::ports(&to, direction);
                let changed = self.xfrm.update_sa(&listed.sa);
                changed.map_err(|e| refused(OPERATION, &e))?;
            }
        } else if let (Some(id), Some(out)) = (outbound, &pair.outbound) {
            within_reach(OPERATION, pair.mode, &out.remote, to.remote())?;
            // The inbound SA is found by our own address and its SPI; it stays.
            self.make_anew(child, &id, &to)?;
        }
        if let Some(pair) = self.pairs.get_mut(&child) {
            pair.encapsulation = to;
            pair.moved = None;
            let peer = pair.peer.clone();
            self.set_other_addresses(&peer);
        }
        Ok(())
    }

    pub(crate) fn read(
        &mut self,
        operation: &'static str,
        child: ChildId,
        id: &XfrmSaId,
    ) -> Result<XfrmListedSa, DatapathError> {
        let read = self.xfrm.sa(id).map_err(|e| refused(operation, &e))?;
        read.ok_or_else(|| misuse(operation, child, "has lost an SA"))
    }

    /// Counters of one pair, inbound and outbound, as far as they stand and can be read.
    pub(crate) fn pair_halves(
        &mut self,
        child: ChildId,
    ) -> (Option<SaCounters>, Option<SaCounters>) {
        let Some(pair) = self.pairs.get(&child) else {
            return Default::default();
        };
        let (inbound, outbound) = (pair.inbound, pair.outbound.as_ref().map(|o| o.id));
        let mut of = |id: Option<XfrmSaId>, direction| {
            let read = self.xfrm.sa(&id?);
            let read = read.inspect_err(|error| tracing::debug!("an SA is not counted: {error}"));
            Some(counters(&read.ok()??, direction))
        };
        (
            of(inbound, SaDirection::Inbound),
            of(outbound, SaDirection::Outbound),
        )
    }

    fn pair(
        &mut self,
        child: ChildId,
        peer: &PeerId,
        mode: SaMode,
        encapsulation: Encapsulation,
    ) -> &mut Pair {
        self.pairs.entry(child).or_insert_with(|| Pair {
            peer: peer.clone(),
            mode,
            encapsulation,
            inbound: None,
            outbound: None,
            lost: false,
            moved: None,
        })
    }

    pub(crate) fn own(&mut self, id: XfrmSaId, child: ChildId, direction: SaDirection) {
        self.owners.insert(id, SaId { child, direction });
    }

    /// Packets in transport mode out of UDP bear the address that a NAT gave them.
    fn set_other_addresses(&mut self, peer: &PeerId) {
        let ends: BTreeSet<IpAddr> = self
            .pairs
            .values()
            .filter(|pair| pair.peer == *peer && pair.mode == SaMode::Transport)
            .filter(|pair| matches!(pair.encapsulation, Encapsulation::Udp { .. }))
            .map(|pair| pair.encapsulation.remote())
            .collect();
        if self.bindings.set_also_at(peer, ends) {
            self.timers.repair(Instant::now());
        }
    }

    fn keep_drops(&mut self, id: &XfrmSaId) {
        if let Ok(Some(listed)) = self.xfrm.sa(id) {
            for (reason, number) in drops(&listed) {
                *self.past_drops.entry(reason).or_default() += number;
            }
        }
    }
}

/// In transport mode the kernel finds an SA by the address that packets are for: one to another
/// address, a NAT's, would never be found.
fn within_reach(
    operation: &str,
    mode: SaMode,
    remote: &[TrafficSelector],
    end: IpAddr,
) -> Result<(), DatapathError> {
    let reached = remote.iter().any(|selector| selector.covers_address(end));
    if mode == SaMode::Tunnel || reached {
        return Ok(());
    }
    Err(DatapathError::Refused {
        operation: operation.into(),
        reason: format!(
            "in transport mode the kernel seals packets for {end} alone, and the peer's are for \
             other addresses"
        ),
    })
}

/// What the kernel counted of an SA.
pub(crate) fn counters(listed: &XfrmListedSa, direction: SaDirection) -> SaCounters {
    SaCounters {
        packets: listed.used.packets,
        bytes: listed.used.bytes,
        sequence: match direction {
            SaDirection::Inbound => listed.sa.replay.received,
            SaDirection::Outbound => listed.sa.replay.sent,
        },
    }
}

/// Packets that an SA dropped, by reason.
pub(crate) fn drops(listed: &XfrmListedSa) -> [(&'static str, u64); 3] {
    [
        ("outside_window", listed.used.outside_window.into()),
        ("replay", listed.used.replayed.into()),
        ("integrity_failed", listed.used.integrity_failed.into()),
    ]
}

pub(crate) fn misuse(operation: &'static str, child: ChildId, reason: &str) -> DatapathError {
    DatapathError::Misuse {
        operation,
        reason: format!("child {}: {reason}", child.0),
    }
}
