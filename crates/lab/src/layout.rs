//! The plan of a lab: every namespace, address and route, worked out before anything is made.
//!
//! ```text
//!            testudo-NAME-underlay
//!        +---------- br0 ----------+
//!        | n1         n2        n3 |      the underlay's links, where captures listen
//!        +--|----------|---------|-+
//!         eth0       eth0      eth0       172.18.0.1 .. / fd00:172:18::1 ..
//!   testudo-NAME-n1   -n2       -n3
//!     vxlan0, or geneve-n2 ..             10.244.N.254 / fd00:10:244:N::fe
//!     cni0                                10.244.N.1   / fd00:10:244:N::1
//!      |      |                            (with Open vSwitch all of these are cni0's)
//!     p1     p2                           10.244.N.11 .. / fd00:10:244:N::11 ..
//!   testudo-NAME-n1-p1, -p2
//! ```
//!
//! With OVN `testudo-NAME-central` hangs on the same bridge, with OVN's databases.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::spec::{Family, LabSpec, Overlay, Switch};

/// The link in each node that leads to the underlay, and in each pod to its node.
pub const INTERFACE: &str = "eth0";
/// The bridge of a node's pods.
pub const POD_BRIDGE: &str = "cni0";
/// The bridge of the underlay.
pub const UNDERLAY_BRIDGE: &str = "br0";
/// The VXLAN device in a node. Geneve has a device for each other node
/// ([`Layout::overlay_device`]).
pub const VXLAN_DEVICE: &str = "vxlan0";
/// The overlay's network identifier.
pub const VNI: u32 = 1;
/// MTU of the underlay's links.
pub const UNDERLAY_MTU: u32 = 1500;

/// A lab as it is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The namespace of the underlay's bridge.
    pub underlay_netns: String,
    /// The overlay.
    pub overlay: Overlay,
    /// What pods and tunnels are plugged into.
    #[serde(default)]
    pub switch: Switch,
    /// The overlay's UDP port; none when routed.
    pub overlay_port: Option<u16>,
    /// MTU of the pods' links: what ESP, UDP and the overlay add still fits in the underlay.
    pub pod_mtu: u32,
    /// The pod CIDRs of the whole cluster.
    pub cluster_cidrs: Vec<IpNet>,
    /// Where OVN's databases are; none without OVN.
    #[serde(default)]
    pub central: Option<CentralLayout>,
    /// The nodes.
    pub nodes: Vec<NodeLayout>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLayout {
    /// `n1` and so on; also the name of its port on the underlay's bridge.
    pub name: String,
    /// Counted from 1.
    pub index: u16,
    /// Name of its network namespace.
    pub netns: String,
    /// Its addresses on the underlay; the first is the overlay tunnel's.
    pub addresses: Vec<IpAddr>,
    /// The CIDRs of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses on the pods' bridge.
    pub gateways: Vec<IpAddr>,
    /// Its own addresses on the overlay's device; empty when routed.
    pub vteps: Vec<IpAddr>,
    /// The overlay device's MAC address.
    pub vtep_mac: [u8; 6],
    /// Its pods.
    pub pods: Vec<PodLayout>,
}

/// OVN's central part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CentralLayout {
    /// Name of its network namespace.
    pub netns: String,
    /// Its addresses on the underlay, of the nodes' families.
    pub addresses: Vec<IpAddr>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLayout {
    /// `p1` and so on.
    pub name: String,
    /// Name of its network namespace.
    pub netns: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Layout {
    /// Works out the plan.
    pub fn new(spec: &LabSpec) -> Self {
        let (pods_v4, pods_v6) = pod_families(spec);
        let mut cluster_cidrs = Vec::new();
        if pods_v4 {
            cluster_cidrs.push(net4([10, 244, 0, 0], 16));
        }
        if pods_v6 {
            cluster_cidrs.push(net6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 48));
        }
        Self {
            underlay_netns: format!("{}underlay", prefix(&spec.name)),
            overlay: spec.overlay,
            switch: spec.switch(),
            overlay_port: match spec.overlay {
                Overlay::Vxlan => Some(4789),
                Overlay::Geneve | Overlay::Ovn => Some(6081),
                Overlay::Routed => None,
            },
            // 1500 - 46 (ESP and UDP) - the overlay's 50 over IPv4 or 70 over IPv6; a tunnel
            // mode packet of a routed pod adds at most 86 bytes. Dual: tunnels over either family
            // stand, and the agents name what the smaller carries. OVN writes an option of 8 bytes
            // into Geneve's header.
            pod_mtu: match (spec.overlay, spec.family) {
                (Overlay::Vxlan | Overlay::Geneve, Family::V6 | Family::Dual) => 1380,
                (Overlay::Ovn, Family::V6 | Family::Dual) => 1372,
                (Overlay::Ovn, Family::V4) => 1392,
                _ => 1400,
            },
            cluster_cidrs,
            central: (spec.overlay == Overlay::Ovn).then(|| CentralLayout {
                netns: format!("{}central", prefix(&spec.name)),
                addresses: underlay_addresses(spec, 254, 0xfe),
            }),
            nodes: (1..=spec.nodes)
                .map(|index| NodeLayout::new(spec, index))
                .collect(),
        }
    }

    /// Every namespace of the lab.
    pub fn namespaces(&self) -> Vec<&str> {
        let mut all = vec![self.underlay_netns.as_str()];
        all.extend(self.central.iter().map(|central| central.netns.as_str()));
        for node in &self.nodes {
            all.push(&node.netns);
            all.extend(node.pods.iter().map(|pod| pod.netns.as_str()));
        }
        all
    }

    /// The device in a node that leads to the node `other` over the overlay; none when routed.
    pub fn overlay_device(&self, other: &NodeLayout) -> Option<String> {
        match (self.overlay, self.switch) {
            (Overlay::Routed, _) => None,
            (_, Switch::Ovs) => Some(POD_BRIDGE.to_owned()),
            (Overlay::Vxlan, Switch::Linux) => Some(VXLAN_DEVICE.to_owned()),
            (Overlay::Geneve | Overlay::Ovn, Switch::Linux) => {
                Some(format!("geneve-{}", other.name))
            }
        }
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&NodeLayout> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The namespace that a word names: `n1`, `host/n1`, `n1/p1`, `pod/n1/p1`, `underlay`, or OVN's
    /// `central`.
    pub fn find_namespace(&self, target: &str) -> Option<&str> {
        if target == "central" {
            return self.central.as_ref().map(|central| central.netns.as_str());
        }
        if target == "underlay" {
            return Some(&self.underlay_netns);
        }
        let target = target.strip_prefix("host/").unwrap_or(target);
        let target = target.strip_prefix("pod/").unwrap_or(target);
        match target.split_once('/') {
            None => self.node(target).map(|node| node.netns.as_str()),
            Some((node, pod)) => {
                let pods = &self.node(node)?.pods;
                Some(&pods.iter().find(|each| each.name == pod)?.netns)
            }
        }
    }

    /// The words that `find_namespace` takes, for messages.
    pub fn targets(&self) -> String {
        let mut words = vec!["underlay".to_owned()];
        words.extend(self.central.iter().map(|_| "central".to_owned()));
        for node in &self.nodes {
            words.push(node.name.clone());
            words.extend(
                node.pods
                    .iter()
                    .map(|pod| format!("{}/{}", node.name, pod.name)),
            );
        }
        words.join(", ")
    }
}

impl NodeLayout {
    /// The node of this number.
    pub(crate) fn new(spec: &LabSpec, index: u16) -> Self {
        let (pods_v4, pods_v6) = pod_families(spec);
        let byte = u8::try_from(index).expect("validated: at most 200 nodes");
        let name = format!("n{index}");
        let v4 = |last: u8| IpAddr::from([10, 244, byte, last]);
        // The last group is written in hexadecimal so that it reads like the IPv4 one.
        let v6 = |last: u16| IpAddr::from([0xfd00, 0x10, 0x244, index, 0, 0, 0, last]);
        let both = |last4: u8, last6: u16| {
            let mut list = Vec::new();
            if pods_v4 {
                list.push(v4(last4));
            }
            if pods_v6 {
                list.push(v6(last6));
            }
            list
        };
        let mut pod_cidrs = Vec::new();
        if pods_v4 {
            pod_cidrs.push(net4([10, 244, byte, 0], 24));
        }
        if pods_v6 {
            pod_cidrs.push(net6([0xfd00, 0x10, 0x244, index, 0, 0, 0, 0], 64));
        }
        let netns = format!("{}{name}", prefix(&spec.name));
        let pods = (1..=spec.pods)
            .map(|pod| {
                let last = u8::try_from(10 + pod).expect("validated: at most 100 pods");
                PodLayout {
                    name: format!("p{pod}"),
                    netns: format!("{netns}-p{pod}"),
                    addresses: both(last, decimal_as_hex(last)),
                }
            })
            .collect();
        Self {
            index,
            addresses: underlay_addresses(spec, byte, index),
            pod_cidrs,
            gateways: both(1, 1),
            vteps: if spec.overlay == Overlay::Routed {
                Vec::new()
            } else {
                both(254, 0xfe)
            },
            vtep_mac: [0x02, 0x54, 0x53, 0x54, 0x00, byte],
            netns,
            name,
            pods,
        }
    }

    /// The address that the overlay's tunnels of this node use.
    pub fn primary(&self) -> IpAddr {
        self.addresses[0]
    }

    /// MAC address of a pod, counted from 1.
    pub(crate) fn pod_mac(&self, number: u16) -> [u8; 6] {
        let [a, b, c, d, _, node] = self.vtep_mac;
        let number = u8::try_from(number).expect("validated: at most 100 pods");
        [a, b, c, d, number, node]
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> Option<&PodLayout> {
        self.pods.iter().find(|pod| pod.name == name)
    }
}

/// What the names of a lab's namespaces begin with.
pub fn prefix(lab: &str) -> String {
    format!("testudo-{lab}-")
}

/// Whether a namespace's name is one that the lab `lab` makes. Exact, so that lab `a` never
/// claims what belongs to lab `a-n1`.
pub fn is_namespace_of(lab: &str, name: &str) -> bool {
    let Some(rest) = name.strip_prefix(&prefix(lab)) else {
        return false;
    };
    let number = |text: &str, letter: char| {
        text.strip_prefix(letter).is_some_and(|digits| {
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    match rest.split_once('-') {
        None => rest == "underlay" || rest == "central" || number(rest, 'n'),
        Some((node, pod)) => number(node, 'n') && number(pod, 'p'),
    }
}

/// An overlay carries both families; without one, pods have the underlay's.
fn pod_families(spec: &LabSpec) -> (bool, bool) {
    if spec.overlay == Overlay::Routed {
        (spec.family.has_v4(), spec.family.has_v6())
    } else {
        (true, true)
    }
}

/// Addresses on the underlay of the families that it has, by their last byte and their last group.
fn underlay_addresses(spec: &LabSpec, last4: u8, last6: u16) -> Vec<IpAddr> {
    let v4 = IpAddr::from([172, 18, 0, last4]);
    let v6 = IpAddr::from([0xfd00, 0x172, 0x18, 0, 0, 0, 0, last6]);
    let v4 = spec.family.has_v4().then_some(v4);
    let v6 = spec.family.has_v6().then_some(v6);
    v4.into_iter().chain(v6).collect()
}

fn decimal_as_hex(value: u8) -> u16 {
    u16::from(value / 100) * 0x100 + u16::from(value / 10 % 10) * 0x10 + u16::from(value % 10)
}

fn net4(octets: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new(Ipv4Addr::from(octets), length).expect("length at most 32"))
}

fn net6(groups: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new(Ipv6Addr::from(groups), length).expect("length at most 128"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;

    fn layout(overlay: Overlay, family: Family) -> Layout {
        let mut spec = LabSpec::new("a", PathBuf::new());
        spec.overlay = overlay;
        spec.family = family;
        Layout::new(&spec)
    }

    #[test]
    fn pods_are_dual_over_an_overlay_and_follow_the_underlay_without() {
        let node = |overlay, family| layout(overlay, family).nodes[1].clone();
        assert_eq!(node(Overlay::Vxlan, Family::V4).pods[0].addresses.len(), 2);
        assert_eq!(node(Overlay::Vxlan, Family::V6).addresses.len(), 1);
        let routed = node(Overlay::Routed, Family::V6);
        assert_eq!(
            routed.pods[1].addresses,
            ["fd00:10:244:2::12".parse::<IpAddr>().unwrap()]
        );
        assert!(routed.vteps.is_empty());
        assert_eq!(node(Overlay::Routed, Family::Dual).pod_cidrs.len(), 2);
    }

    #[test]
    fn addresses_are_unique_and_inside_their_cidr() {
        let layout = layout(Overlay::Vxlan, Family::Dual);
        let mut seen = BTreeSet::new();
        for node in &layout.nodes {
            for pod in &node.pods {
                for address in &pod.addresses {
                    assert!(seen.insert(*address));
                    assert!(node.pod_cidrs.iter().any(|cidr| cidr.contains(address)));
                    assert!(
                        layout
                            .cluster_cidrs
                            .iter()
                            .any(|cidr| cidr.contains(address))
                    );
                }
            }
        }
    }

    #[test]
    fn a_lab_never_claims_the_namespaces_of_another() {
        assert!(is_namespace_of("a", "testudo-a-n1"));
        assert!(is_namespace_of("a", "testudo-a-n12-p3"));
        assert!(is_namespace_of("a", "testudo-a-underlay"));
        assert!(is_namespace_of("a", "testudo-a-central"));
        for other in [
            "testudo-a-n1-n1",
            "testudo-a-n1-underlay",
            "testudo-ab-n1",
            "testudo-a-nx",
            "testudo-a-n",
        ] {
            assert!(!is_namespace_of("a", other), "{other}");
        }
        let a = layout(Overlay::Vxlan, Family::V4);
        assert!(a.namespaces().iter().all(|name| is_namespace_of("a", name)));
        assert!(
            !a.namespaces()
                .iter()
                .any(|name| is_namespace_of("a-n1", name))
        );
    }

    #[test]
    fn ovn_has_a_place_of_its_own_on_the_underlay_and_room_for_its_option() {
        for (family, mtu) in [(Family::V4, 1392), (Family::V6, 1372), (Family::Dual, 1372)] {
            let layout = layout(Overlay::Ovn, family);
            assert_eq!((layout.pod_mtu, layout.overlay_port), (mtu, Some(6081)));
            assert_eq!(layout.switch, Switch::Ovs);
            let central = layout.central.as_ref().unwrap();
            assert_eq!(
                layout.find_namespace("central"),
                Some(central.netns.as_str())
            );
            assert!(layout.namespaces().contains(&central.netns.as_str()));
            assert!(is_namespace_of("a", &central.netns));
            for node in &layout.nodes {
                assert_eq!(node.addresses.len(), central.addresses.len());
                assert!(
                    node.addresses
                        .iter()
                        .all(|a| !central.addresses.contains(a))
                );
            }
        }
        assert_eq!(layout(Overlay::Geneve, Family::V4).central, None);
    }

    #[test]
    fn targets_are_found_by_short_and_long_words() {
        let layout = layout(Overlay::Vxlan, Family::V4);
        for (word, netns) in [
            ("n1", "testudo-a-n1"),
            ("host/n2", "testudo-a-n2"),
            ("n1/p2", "testudo-a-n1-p2"),
            ("pod/n3/p1", "testudo-a-n3-p1"),
            ("underlay", "testudo-a-underlay"),
        ] {
            assert_eq!(layout.find_namespace(word), Some(netns));
        }
        assert_eq!(layout.find_namespace("n9"), None);
        assert_eq!(layout.find_namespace("n1/p9"), None);
    }
}
