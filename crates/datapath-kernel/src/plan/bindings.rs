//! What ties peers to their SAs: request IDs and the children in use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use testudo_model::{PeerId, SaMode, Spi, TrafficPolicy, TrafficSelector};
use testudo_netlink::{
    XfrmAction, XfrmDirection, XfrmMode, XfrmPolicy, XfrmSaId, XfrmSelector, XfrmTemplate,
};
use thiserror::Error;

use super::changes::is_ours;
use super::flows::Flows;
use crate::tag::{REQID_BASE, REQID_BLOCK, is_our_reqid};

/// There are 65,535 request IDs of ours, and all are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("all 65,535 request IDs are taken by peers")]
pub struct NoRequestIds;

/// An outbound SA in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Its SPI.
    pub spi: Spi,
    /// The CPU whose packets alone it carries; `None`: all of them.
    pub cpu: Option<u32>,
    /// Transport or tunnel.
    pub mode: SaMode,
    /// Its source and destination.
    pub ends: (IpAddr, IpAddr),
    /// What we may send: our side.
    pub local: Vec<TrafficSelector>,
    /// What we may send: the peer's side.
    pub remote: Vec<TrafficSelector>,
}

/// One peer's.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    reqid: u32,
    /// The newest first: of several that fit, the first is taken.
    pub(super) in_use: Vec<InUse>,
    /// Outbound SAs that stand and are not in use.
    pub(super) idle: BTreeSet<XfrmSaId>,
    also_at: BTreeSet<IpAddr>,
}

/// Request ID and children in use of every peer.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    pub(super) peers: BTreeMap<PeerId, Binding>,
    /// Taken by peers and by SAs that stand for nobody any more.
    taken: BTreeSet<u32>,
    /// The last one given: one that was freed is not given again soon, as packets sealed for its
    /// earlier owner may still be on their way.
    last: u16,
}

impl Bindings {
    /// The peer's request ID, if it has one.
    pub fn reqid(&self, peer: &PeerId) -> Option<u32> {
        self.peers.get(peer).map(|binding| binding.reqid)
    }

    /// The peer's request ID; a new one if it has none.
    pub fn bind(&mut self, peer: &PeerId) -> Result<u32, NoRequestIds> {
        if let Some(reqid) = self.reqid(peer) {
            return Ok(reqid);
        }
        for _ in 0..=u16::MAX {
            self.last = self.last.wrapping_add(1);
            let reqid = REQID_BASE | u32::from(self.last);
            if reqid != REQID_BLOCK && self.taken.insert(reqid) {
                self.insert(peer, reqid);
                return Ok(reqid);
            }
        }
        Err(NoRequestIds)
    }

    /// Keeps a request ID from being given to a peer, as an SA that was found bears it.
    pub fn reserve(&mut self, reqid: u32) {
        self.taken.insert(reqid);
    }

    /// Gives a request ID back that nobody bears any more; not a peer's.
    pub fn release(&mut self, reqid: u32) {
        if !self.peers.values().any(|binding| binding.reqid == reqid) {
            self.taken.remove(&reqid);
        }
    }

    /// The peer that has this request ID.
    pub fn peer(&self, reqid: u32) -> Option<&PeerId> {
        let mut all = self.peers.iter();
        all.find(|(_, binding)| binding.reqid == reqid)
            .map(|(peer, _)| peer)
    }

    /// Forgets a peer of which nothing stands any more.
    pub fn forget(&mut self, peer: &PeerId) {
        if let Some(binding) = self.peers.remove(peer) {
            self.taken.remove(&binding.reqid);
        }
    }

    /// From now on this SA carries the peer's packets that its selectors cover. One that is in
    /// use already is replaced: its end may have moved.
    ///
    /// The peer must have been bound; else nothing happens.
    pub fn use_outbound(&mut self, peer: &PeerId, child: InUse) {
        if let Some(binding) = self.peers.get_mut(peer) {
            binding.in_use.retain(|other| other.spi != child.spi);
            binding.idle.remove(&child.id());
            binding.in_use.insert(0, child);
        }
    }

    /// This SA carries nothing any more, and stands until it is [`gone`](Self::gone). `Some`: it was
    /// in use, and its place among the peer's.
    pub fn stop_using(&mut self, peer: &PeerId, spi: Spi) -> Option<usize> {
        let binding = self.peers.get_mut(peer)?;
        let in_use = &mut binding.in_use;
        let place = in_use.iter().position(|child| child.spi == spi)?;
        binding.idle.insert(in_use.remove(place).id());
        Some(place)
    }

    /// An SA that was taken out of use is used again in its place; its end may have moved.
    pub fn use_again(&mut self, peer: &PeerId, place: usize, child: InUse) {
        if let Some(binding) = self.peers.get_mut(peer) {
            let place = place.min(binding.in_use.len());
            binding.idle.remove(&child.id());
            binding.in_use.insert(place, child);
        }
    }

    /// The addresses, beside those of the policy, that packets out of the peer's SAs come from: in
    /// transport mode a NAT's address stays on them.
    ///
    /// Whether one went, so that policies stand that are not wanted any more.
    pub fn set_also_at(&mut self, peer: &PeerId, addresses: BTreeSet<IpAddr>) -> bool {
        let Some(binding) = self.peers.get_mut(peer) else {
            return false;
        };
        let before = std::mem::replace(&mut binding.also_at, addresses);
        !before.is_subset(&binding.also_at)
    }

    pub(super) fn also_at(&self, peer: &PeerId) -> &BTreeSet<IpAddr> {
        static NOWHERE: BTreeSet<IpAddr> = BTreeSet::new();
        self.peers.get(peer).map_or(&NOWHERE, |b| &b.also_at)
    }

    /// The SA that carries a peer's packets of a flow, where the CPU that sends has none of its own.
    pub(super) fn in_use(
        &self,
        peer: &PeerId,
        mode: SaMode,
        flow: &XfrmSelector,
    ) -> Option<&InUse> {
        let mut all = self.peers.get(peer)?.in_use.iter();
        all.find(|child| child.cpu.is_none() && child.mode == mode && child.covers(flow))
    }

    /// Learns, after a restart, from the policies that stand: a peer keeps its request ID and the
    /// SA that its packets leave with. `found` is the SA with which packets may go on that an outbound
    /// template speaks of, by its SPI or for all CPUs; where there is none, none is used.
    ///
    /// What is known already is not changed.
    pub fn adopt(
        &mut self,
        policy: &TrafficPolicy,
        have: &[XfrmPolicy],
        found: impl Fn(&XfrmTemplate) -> Option<Spi>,
    ) {
        let ours = have
            .iter()
            .filter(|p| is_ours(p) && p.action == XfrmAction::Allow);
        let standing: BTreeMap<_, _> = ours
            .filter_map(|p| Some(((p.direction, p.selector), p.templates.first()?)))
            .filter(|(_, template)| is_our_reqid(template.reqid) && template.reqid != REQID_BLOCK)
            .collect();
        // A stranger's SA must not be given to a peer.
        self.taken.extend(standing.values().map(|t| t.reqid));
        let flows = Flows::new(policy);
        let mut given: BTreeSet<u32> = self.peers.values().map(|b| b.reqid).collect();
        for peer in &policy.peers {
            if self.peers.contains_key(&peer.peer) {
                continue;
            }
            let out = flows.to_peer(peer).into_iter().filter_map(|selector| {
                let template = standing.get(&(XfrmDirection::Out, selector))?;
                Some((selector, **template))
            });
            let out: Vec<(XfrmSelector, XfrmTemplate)> = out.collect();
            let inbound = flows.of_peer(peer, &BTreeSet::new());
            let heard = inbound.iter().filter_map(|flow| standing.get(flow));
            let seen = out
                .iter()
                .map(|(_, t)| t.reqid)
                .chain(heard.map(|t| t.reqid));
            let Some(reqid) = seen.into_iter().find(|reqid| !given.contains(reqid)) else {
                continue;
            };
            given.insert(reqid);
            self.insert(&peer.peer, reqid);
            let mut in_use: BTreeMap<u32, InUse> = BTreeMap::new();
            for (selector, template) in out {
                if template.reqid != reqid {
                    continue;
                }
                let (Some(spi), Some(mode)) = (found(&template), mode(template.mode)) else {
                    continue;
                };
                let child = in_use.entry(spi.0).or_insert_with(|| InUse {
                    spi,
                    cpu: None,
                    mode,
                    ends: (template.source, template.destination),
                    local: Vec::new(),
                    remote: Vec::new(),
                });
                add(&mut child.local, TrafficSelector::prefix(selector.source));
                add(
                    &mut child.remote,
                    TrafficSelector::prefix(selector.destination),
                );
            }
            for child in in_use.into_values() {
                self.use_outbound(&peer.peer, child);
            }
        }
    }

    fn insert(&mut self, peer: &PeerId, reqid: u32) {
        self.taken.insert(reqid);
        let binding = Binding {
            reqid,
            in_use: Vec::new(),
            idle: BTreeSet::new(),
            also_at: BTreeSet::new(),
        };
        self.peers.insert(peer.clone(), binding);
    }
}

impl InUse {
    /// Its name in the kernel.
    pub(super) fn id(&self) -> XfrmSaId {
        XfrmSaId {
            destination: self.ends.1,
            spi: self.spi.0,
            mark: (0, 0),
        }
    }

    /// Whether all packets of the flow may be sent with it.
    pub(crate) fn covers(&self, flow: &XfrmSelector) -> bool {
        let side = |list: &[TrafficSelector], net: ipnet::IpNet, port: u16, any_port: bool| {
            list.iter().any(|selector| {
                selector.covers_address(net.network())
                    && selector.covers_address(net.broadcast())
                    && (selector.protocol == 0 || selector.protocol == flow.protocol)
                    && match any_port {
                        true => selector.ports == testudo_model::PortRange::ANY,
                        false => selector.ports.contains(port),
                    }
            })
        };
        let (from, to) = (flow.source_port, flow.destination_port);
        side(&self.local, flow.source, from.value, from.mask == 0)
            && side(&self.remote, flow.destination, to.value, to.mask == 0)
    }
}

fn add(list: &mut Vec<TrafficSelector>, selector: TrafficSelector) {
    if !list.contains(&selector) {
        list.push(selector);
    }
}

fn mode(mode: XfrmMode) -> Option<SaMode> {
    match mode {
        XfrmMode::Transport => Some(SaMode::Transport),
        XfrmMode::Tunnel => Some(SaMode::Tunnel),
        XfrmMode::Other(_) => None,
    }
}
