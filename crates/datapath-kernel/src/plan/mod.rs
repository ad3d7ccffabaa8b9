//! Which XFRM policies a node wants, and how it comes to them from those that stand.
//!
//! Pure: it is told what the kernel has and says what to do. The flows are those that the
//! userspace datapath steers. Of the policies that match a packet the kernel obeys the one of the
//! lowest priority number; ours are asked in this order: packets that never leave the node pass,
//! a peer's packets want that peer's SAs or are dropped, everything else of a protected flow is
//! dropped.
//!
//! - A peer's outbound policies name request ID and SPI of the child in use, so that the switch to
//!   its successor is the replacement of one policy. Without a child they block: an `Allow` would
//!   make the kernel ask for an SA and swallow the packets meanwhile. Where CPUs have SAs of their
//!   own no SPI is named while all that stand are in use.
//! - Its inbound policies name the request ID alone: the old and the new SA are both good.
//! - Each peer has one request ID for all its children. No peer's SA opens packets of another's
//!   flow; the SA's own selectors keep its children apart.

mod bindings;
mod changes;
mod cpus;
mod flows;

#[cfg(test)]
mod evaluator;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use testudo_model::{ClearTraffic, Outbound, PeerId, PeerTraffic, SaMode, TrafficPolicy};
use testudo_netlink::{
    XfrmAction, XfrmDirection, XfrmMode, XfrmPolicy, XfrmPolicyKey, XfrmSelector, XfrmTemplate,
};

pub use bindings::{Bindings, InUse, NoRequestIds};
pub use changes::{Change, Conflict, Plan, changes, is_ours};

use crate::tag::{PRIORITY_ALLOW, PRIORITY_BLOCK, PRIORITY_PEER, REQID_BLOCK};
use flows::{Flows, unspecified};

/// All policies that a node wants, one a key, in the order of their keys. `ipv6` says whether the
/// host has IPv6 at all.
pub fn desired(policy: &TrafficPolicy, bindings: &Bindings, ipv6: bool) -> Vec<XfrmPolicy> {
    let flows = Flows::new(policy);
    let mut wish = Wish::default();
    for (direction, selector) in flows.allowed() {
        wish.add(Rank::Sure, allow(direction, selector));
    }
    for peer in &policy.peers {
        wish.add_peer(policy, &flows, peer, bindings);
    }
    for (direction, selector) in flows.blocked() {
        wish.add(Rank::Last, block(direction, selector, PRIORITY_BLOCK));
    }
    wish.done(ipv6)
}

/// The policies of one peer, as [`desired`] has them, with those of peers that claim the same
/// addresses or prefixes.
pub fn desired_for(
    policy: &TrafficPolicy,
    bindings: &Bindings,
    ipv6: bool,
    peer: &PeerId,
) -> Vec<XfrmPolicy> {
    let flows = Flows::new(policy);
    let mut wish = Wish::default();
    let Some(named) = policy.peers.iter().find(|p| p.peer == *peer) else {
        return Vec::new();
    };
    let same = |other: &&PeerTraffic| overlap(bindings, named, other);
    for other in policy.peers.iter().filter(same) {
        wish.add_peer(policy, &flows, other, bindings);
    }
    wish.done(ipv6)
}

/// Whether two peers may claim the same flow. Of a peer itself: yes.
fn overlap(bindings: &Bindings, a: &PeerTraffic, b: &PeerTraffic) -> bool {
    let prefix = |net| b.pod_cidrs.iter().any(|other| other == net);
    let (also_a, also_b) = (bindings.also_at(&a.peer), bindings.also_at(&b.peer));
    let at_b = |ip| b.addresses.contains(ip) || also_b.contains(ip);
    a.peer == b.peer || a.addresses.iter().chain(also_a).any(at_b) || a.pod_cidrs.iter().any(prefix)
}

/// Where a peer is heard from beside its own addresses: nowhere that is another peer's.
fn also_at(policy: &TrafficPolicy, bindings: &Bindings, peer: &PeerTraffic) -> BTreeSet<IpAddr> {
    let others = policy.peers.iter().filter(|other| other.peer != peer.peer);
    let mut addresses = bindings.also_at(&peer.peer).clone();
    if !addresses.is_empty() {
        let taken: BTreeSet<&IpAddr> = others.flat_map(|other| &other.addresses).collect();
        addresses.retain(|ip| !taken.contains(ip));
    }
    addresses
}

/// Who is heard when two policies of one key are wanted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// What never leaves the node.
    Sure,
    /// A peer with a child in use for this flow: it has proved that the address is its own.
    Proved,
    /// A peer. The first by name, as long as none has proved itself.
    Claimed,
    /// Everybody else.
    Last,
}

#[derive(Default)]
struct Wish(BTreeMap<XfrmPolicyKey, (Rank, XfrmPolicy)>);

impl Wish {
    fn add(&mut self, rank: Rank, policy: XfrmPolicy) {
        match self.0.get(&policy.key()) {
            Some((other, _)) if *other <= rank => {}
            _ => {
                self.0.insert(policy.key(), (rank, policy));
            }
        }
    }

    fn add_peer(
        &mut self,
        policy: &TrafficPolicy,
        flows: &Flows<'_>,
        peer: &PeerTraffic,
        bindings: &Bindings,
    ) {
        let sealed =
            peer.outbound == Outbound::Encrypt || policy.clear_outbound == ClearTraffic::Drop;
        let reqid = bindings.reqid(&peer.peer);
        let also_at = &also_at(policy, bindings, peer);
        let mut proved = false;
        if sealed {
            for selector in flows.to_peer(peer) {
                let in_use = bindings.in_use(&peer.peer, flows.mode(), &selector);
                proved |= in_use.is_some();
                match (in_use, reqid) {
                    (Some(child), Some(reqid)) => {
                        let spi = match bindings.is_spread(&peer.peer, child, &selector) {
                            true => 0,
                            false => child.spi.0,
                        };
                        let sealed = seal(selector, flows.mode(), reqid, child.ends, spi);
                        self.add(Rank::Proved, sealed);
                    }
                    _ => {
                        let nobody = block(XfrmDirection::Out, selector, PRIORITY_PEER);
                        self.add(Rank::Claimed, nobody);
                    }
                }
            }
            for selector in flows.strangers_to_peer(peer) {
                self.add(
                    Rank::Last,
                    block(XfrmDirection::Out, selector, PRIORITY_BLOCK),
                );
            }
        }
        let rank = match proved {
            true => Rank::Proved,
            false => Rank::Claimed,
        };
        let optional = policy.clear_inbound == ClearTraffic::Pass;
        for (direction, selector) in flows.of_peer(peer, also_at) {
            let wanted = match reqid {
                Some(reqid) => open(direction, selector, flows.mode(), reqid, optional),
                None if optional => continue,
                None => block(direction, selector, PRIORITY_PEER),
            };
            self.add(rank, wanted);
        }
    }

    fn done(self, ipv6: bool) -> Vec<XfrmPolicy> {
        let all = self.0.into_values().map(|(_, policy)| policy);
        all.filter(|policy| ipv6 || policy.selector.destination.addr().is_ipv4())
            .collect()
    }
}

fn policy(
    direction: XfrmDirection,
    selector: XfrmSelector,
    action: XfrmAction,
    priority: u32,
    template: Option<XfrmTemplate>,
) -> XfrmPolicy {
    XfrmPolicy {
        direction,
        selector,
        action,
        priority,
        mark: (0, 0),
        if_id: 0,
        templates: template.into_iter().collect(),
    }
}

/// Has no template: on the way out one would ask for an SA. Its priority alone marks it.
fn allow(direction: XfrmDirection, selector: XfrmSelector) -> XfrmPolicy {
    policy(direction, selector, XfrmAction::Allow, PRIORITY_ALLOW, None)
}

fn block(direction: XfrmDirection, selector: XfrmSelector, priority: u32) -> XfrmPolicy {
    let any = unspecified(&selector);
    let tag = XfrmTemplate {
        source: any,
        destination: any,
        spi: 0,
        mode: XfrmMode::Transport,
        reqid: REQID_BLOCK,
        optional: false,
    };
    policy(direction, selector, XfrmAction::Block, priority, Some(tag))
}

/// `spi` is 0 where the kernel may choose among all SAs of the request ID between these ends.
fn seal(
    selector: XfrmSelector,
    mode: SaMode,
    reqid: u32,
    ends: (IpAddr, IpAddr),
    spi: u32,
) -> XfrmPolicy {
    let (source, destination) = match mode {
        SaMode::Transport => (selector.source.addr(), selector.destination.addr()),
        SaMode::Tunnel => ends,
    };
    let template = XfrmTemplate {
        source,
        destination,
        spi,
        mode: xfrm_mode(mode),
        reqid,
        optional: false,
    };
    let out = XfrmDirection::Out;
    policy(
        out,
        selector,
        XfrmAction::Allow,
        PRIORITY_PEER,
        Some(template),
    )
}

/// A tunnel's ends are left open: a peer that moves is heard from both while it does, and the
/// request ID says whose SA it was.
fn open(
    direction: XfrmDirection,
    selector: XfrmSelector,
    mode: SaMode,
    reqid: u32,
    optional: bool,
) -> XfrmPolicy {
    let (source, destination): (IpAddr, IpAddr) = match mode {
        SaMode::Transport => (selector.source.addr(), selector.destination.addr()),
        SaMode::Tunnel => (unspecified(&selector), unspecified(&selector)),
    };
    let template = XfrmTemplate {
        source,
        destination,
        spi: 0,
        mode: xfrm_mode(mode),
        reqid,
        optional,
    };
    policy(
        direction,
        selector,
        XfrmAction::Allow,
        PRIORITY_PEER,
        Some(template),
    )
}

fn xfrm_mode(mode: SaMode) -> XfrmMode {
    match mode {
        SaMode::Transport => XfrmMode::Transport,
        SaMode::Tunnel => XfrmMode::Tunnel,
    }
}
