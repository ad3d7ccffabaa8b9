//! What two nodes claim at once. An agent writes addresses and pod prefixes of its own node as it likes:
//! a node that was taken over must not draw another's packets by claiming what is that one's.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use testudo_model::policy::Overlay;
use testudo_model::{NodeEncryption, TrafficPolicy};

use crate::node::Known;
use crate::peers::pods;

/// The nodes without what is in dispute. What two claim at once is this node's own, or else his who had
/// it until now; when neither had it, it is nobody's until one of the two objects is gone or put right.
/// Packets to what is nobody's are not to a peer: in Strict they are dropped.
pub(crate) fn settled<'a>(known: &Known<'a>, overlay: &Overlay) -> Cow<'a, [NodeEncryption]> {
    let lost = |node: &NodeEncryption| Lost::of(node, known, overlay);
    if known.nodes.iter().all(|node| lost(node).is_nothing()) {
        return Cow::Borrowed(known.nodes);
    }
    let mut nodes = known.nodes.to_vec();
    for node in &mut nodes {
        let lost = lost(node);
        let spec = &mut node.spec;
        spec.addresses
            .retain(|address| !lost.addresses.contains(address));
        spec.pod_cidrs.retain(|cidr| !lost.pod_cidrs.contains(cidr));
    }
    Cow::Owned(nodes)
}

/// What a node claims and does not get.
struct Lost {
    addresses: Vec<IpAddr>,
    pod_cidrs: Vec<IpNet>,
}

impl Lost {
    fn of(node: &NodeEncryption, known: &Known<'_>, overlay: &Overlay) -> Lost {
        let own = known.own;
        let had = held(node, known.previous);
        let others = || {
            let all = known.nodes.iter().chain(std::iter::once(own));
            all.filter(|other| other.name() != node.name())
        };
        let is_own = node.name() == own.name();
        let address = |address: &&IpAddr| {
            let disputed = others().any(|other| other.spec.addresses.contains(*address));
            let had = had.is_some_and(|(addresses, _)| addresses.contains(*address));
            disputed && (!had || own.spec.addresses.contains(*address))
        };
        let cidr = |cidr: &&IpNet| {
            let meets = |other: &IpNet| other.contains(*cidr) || cidr.contains(other);
            // What is not believed anyhow disputes nothing.
            let claims = |other: &NodeEncryption| pods(overlay, other).iter().any(meets);
            let had = had.is_some_and(|(_, cidrs)| cidrs.contains(*cidr));
            others().any(claims) && (!had || claims(own))
        };
        let lost = |yes: bool| !is_own && yes;
        Lost {
            addresses: node
                .spec
                .addresses
                .iter()
                .filter(|a| lost(address(a)))
                .copied()
                .collect(),
            pod_cidrs: node
                .spec
                .pod_cidrs
                .iter()
                .filter(|c| lost(cidr(c)))
                .copied()
                .collect(),
        }
    }

    fn is_nothing(&self) -> bool {
        self.addresses.is_empty() && self.pod_cidrs.is_empty()
    }
}

/// What a node has in the traffic that is in force.
fn held<'a>(
    node: &NodeEncryption,
    previous: Option<&'a TrafficPolicy>,
) -> Option<(&'a [IpAddr], &'a [IpNet])> {
    let mut peers = previous?.peers.iter();
    let peer = peers.find(|peer| peer.peer.as_str() == node.name())?;
    Some((&peer.addresses, &peer.pod_cidrs))
}
