//! Which peers a node wants, and with which selectors.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use testudo_model::policy::{EncapsulationMode, Overlay};
use testudo_model::{NodeEncryption, NodeName, PeerId, PortRange, SaMode, TrafficSelector};

use crate::node::{AddressPair, ChildWanted, PeerWanted};

/// UDP's protocol number.
const UDP: u8 = 17;

/// The other nodes in the order of their names.
pub(crate) fn others<'a>(
    own: &NodeEncryption,
    nodes: &'a [NodeEncryption],
) -> Vec<&'a NodeEncryption> {
    let mut others: Vec<&NodeEncryption> = nodes
        .iter()
        .filter(|node| node.name() != own.name() && PeerId::new(node.name()).is_ok())
        .collect();
    others.sort_by(|a, b| a.name().cmp(b.name()));
    others.dedup_by(|a, b| a.name() == b.name());
    others
}

/// Says what two nodes claim at once. Whose it is meanwhile, [`crate::disputes`] decides.
pub(crate) fn quarrels(
    own: &NodeEncryption,
    others: &[&NodeEncryption],
    problems: &mut Vec<String>,
) {
    let mut uids = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    let mut cidrs = Vec::new();
    for node in std::iter::once(own).chain(others.iter().copied()) {
        let b = node.name();
        if let Some(a) = uids.insert(&node.spec.uid, b) {
            problems.push(format!(
                "{a} and {b} have the same UID: one is a copy of the other's machine; \
                 give it a UID of its own"
            ));
        }
        for address in &node.spec.addresses {
            match addresses.insert(address, b) {
                Some(a) if a != b => problems.push(format!(
                    "{a} and {b} both claim the address {address}; delete the one that is gone"
                )),
                _ => {}
            }
        }
        cidrs.extend(node.spec.pod_cidrs.iter().map(|cidr| (cidr.trunc(), b)));
    }
    // In this order a prefix stands right before those inside it.
    cidrs.sort_unstable();
    for pair in cidrs.windows(2) {
        let [(wide, a), (narrow, b)] = pair else {
            continue;
        };
        if a != b && wide.contains(narrow) {
            problems.push(format!(
                "{b}'s pod CIDR {narrow} overlaps {a}'s {wide}; delete the one that is gone"
            ));
        }
    }
}

pub(crate) fn id(node: &NodeEncryption) -> PeerId {
    PeerId::new(node.name()).expect("others() leaves out nodes whose name is none")
}

/// The prefixes of a node's pods. What it claims outside the cluster's own is not believed: it
/// would draw foreign traffic, or the nodes' own, into its tunnel. Of a family of which the
/// cluster names no prefix, the nodes' word is all there is, and better than clear.
pub(crate) fn pods(overlay: &Overlay, node: &NodeEncryption) -> Vec<IpNet> {
    let believed = |cidr: &&IpNet| {
        let v4 = cidr.addr().is_ipv4();
        let mut cluster = overlay.pod_cidrs.iter();
        let mut family = cluster.clone().filter(|c| c.addr().is_ipv4() == v4);
        family.next().is_none() || cluster.any(|c| c.contains(*cidr))
    };
    let own = node.spec.pod_cidrs.iter();
    own.filter(believed).copied().collect()
}

/// Says of which nodes' prefixes that is so.
pub(crate) fn strange_pods(
    overlay: &Overlay,
    own: &NodeEncryption,
    others: &[&NodeEncryption],
    problems: &mut Vec<String>,
) {
    if overlay.udp_port().is_some() {
        return;
    }
    for node in std::iter::once(own).chain(others.iter().copied()) {
        let believed = pods(overlay, node);
        let strange = node.spec.pod_cidrs.iter().filter(|c| !believed.contains(c));
        for cidr in strange {
            problems.push(format!(
                "{}'s pod CIDR {cidr} lies outside spec.overlay.podCIDRs and is left alone; \
                 correct one of the two",
                node.name()
            ));
        }
    }
}

/// Whether there is no traffic to protect between two nodes: routed, and neither has pods.
pub(crate) fn nothing_to_protect(
    overlay: &Overlay,
    own: &NodeEncryption,
    node: &NodeEncryption,
) -> bool {
    let none = |node| pods(overlay, node).is_empty();
    overlay.udp_port().is_none() && none(own) && none(node)
}

/// The peers wanted. A node without a common family of addresses is none.
pub(crate) fn wanted(
    overlay: &Overlay,
    encapsulation: EncapsulationMode,
    own: &NodeEncryption,
    others: &[&NodeEncryption],
) -> Vec<PeerWanted> {
    others
        .iter()
        .filter_map(|node| peer(overlay, encapsulation, own, node))
        .collect()
}

fn peer(
    overlay: &Overlay,
    encapsulation: EncapsulationMode,
    own: &NodeEncryption,
    node: &NodeEncryption,
) -> Option<PeerWanted> {
    let addresses = pairs(own, node);
    let children = match overlay.udp_port() {
        Some(_) => overlay_children(&addresses),
        None if nothing_to_protect(overlay, own, node) => Vec::new(),
        None => routed_children(overlay, own, node),
    };
    if addresses.is_empty() || children.is_empty() {
        return None;
    }
    let begins = (own.spec.uid.as_str(), own.name()) < (node.spec.uid.as_str(), node.name());
    Some(PeerWanted {
        peer: id(node),
        node: NodeName::new(node.name()).ok()?,
        uid: node.spec.uid.clone(),
        addresses,
        initiate: begins,
        encapsulation,
        children,
    })
}

/// A node's best address of each family goes with the peer's best; the family that the two like
/// best comes first, and both find the same one: the first of the node that begins.
fn pairs(own: &NodeEncryption, node: &NodeEncryption) -> Vec<AddressPair> {
    let best = |of: &NodeEncryption, v6: bool| -> Option<IpAddr> {
        of.spec
            .addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv6() == v6)
    };
    let leads = match own.spec.uid <= node.spec.uid {
        true => own,
        false => node,
    };
    let v6_first = leads.spec.addresses.first().is_some_and(IpAddr::is_ipv6);
    [v6_first, !v6_first]
        .into_iter()
        .filter_map(|v6| {
            Some(AddressPair {
                local: best(own, v6)?,
                remote: best(node, v6)?,
            })
        })
        .collect()
}

/// Transport mode for UDP between the two addresses of each family, all ports: the source port of
/// an overlay's packets follows the flow inside, and the datapath takes the overlay's port alone.
fn overlay_children(addresses: &[AddressPair]) -> Vec<ChildWanted> {
    let udp = |address| TrafficSelector::host(address).with(UDP, PortRange::ANY);
    addresses
        .iter()
        .map(|pair| ChildWanted {
            name: match pair.local.is_ipv6() {
                true => "v6".to_owned(),
                false => "v4".to_owned(),
            },
            mode: SaMode::Transport,
            local: vec![udp(pair.local)],
            remote: vec![udp(pair.remote)],
        })
        .collect()
}

/// One tunnel for all pods of the two nodes, and for what a host itself sends to the other's pods.
fn routed_children(
    overlay: &Overlay,
    own: &NodeEncryption,
    node: &NodeEncryption,
) -> Vec<ChildWanted> {
    vec![ChildWanted {
        name: "pods".to_owned(),
        mode: SaMode::Tunnel,
        local: everything(overlay, own),
        remote: everything(overlay, node),
    }]
}

fn everything(overlay: &Overlay, node: &NodeEncryption) -> Vec<TrafficSelector> {
    let pods = pods(overlay, node).into_iter().map(TrafficSelector::prefix);
    let hosts = node
        .spec
        .addresses
        .iter()
        .map(|address| TrafficSelector::host(*address));
    pods.chain(hosts).collect()
}
