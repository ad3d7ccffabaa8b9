//! Protected flows as selectors. The same packets as the userspace datapath's rules take.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use testudo_model::{ClearTraffic, Outbound, PeerTraffic, ProtectedFlows, SaMode, TrafficPolicy};
use testudo_netlink::{Family, PortMatch, XfrmDirection, XfrmSelector};

const UDP: u8 = 17;

/// All addresses of a family.
pub(super) fn any(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}

/// The address that names none, of a selector's family.
pub(super) fn unspecified(selector: &XfrmSelector) -> IpAddr {
    any(selector.family()).addr()
}

/// The flows of one policy.
pub(super) struct Flows<'a> {
    policy: &'a TrafficPolicy,
}

impl<'a> Flows<'a> {
    pub(super) fn new(policy: &'a TrafficPolicy) -> Self {
        Self { policy }
    }

    pub(super) fn mode(&self) -> SaMode {
        match self.policy.flows {
            ProtectedFlows::Overlay { .. } => SaMode::Transport,
            ProtectedFlows::Routed { .. } => SaMode::Tunnel,
        }
    }

    /// Outbound packets that the peer's SAs carry.
    pub(super) fn to_peer(&self, peer: &PeerTraffic) -> Vec<XfrmSelector> {
        let own = hosts(&self.policy.addresses);
        let there = hosts(&peer.addresses);
        match &self.policy.flows {
            ProtectedFlows::Overlay { port } => pairs(&own, &there, Some(*port)),
            ProtectedFlows::Routed { local, .. } => {
                let mut all = pairs(local, &peer.pod_cidrs, None);
                all.extend(pairs(&own, &peer.pod_cidrs, None));
                // What pods answer to a host's own packets belongs to the same flow.
                all.extend(pairs(local, &there, None));
                all
            }
        }
    }

    /// Outbound packets to the peer that no SA carries: they have another source. Where clear
    /// packets may leave to nobody, [`Flows::blocked`] has an overlay's already.
    pub(super) fn strangers_to_peer(&self, peer: &PeerTraffic) -> Vec<XfrmSelector> {
        let (nets, port) = match &self.policy.flows {
            ProtectedFlows::Overlay { .. } if self.policy.clear_outbound == ClearTraffic::Drop => {
                return Vec::new();
            }
            ProtectedFlows::Overlay { port } => (hosts(&peer.addresses), Some(*port)),
            ProtectedFlows::Routed { .. } => (peer.pod_cidrs.clone(), None),
        };
        nets.iter().map(|net| to(net, port)).collect()
    }

    /// What the peer's SAs may bring. `also_at` are addresses of the peer beside its own: a NAT's.
    pub(super) fn of_peer(
        &self,
        peer: &PeerTraffic,
        also_at: &BTreeSet<IpAddr>,
    ) -> Vec<(XfrmDirection, XfrmSelector)> {
        let own = hosts(&self.policy.addresses);
        let there = hosts(&peer.addresses);
        match &self.policy.flows {
            ProtectedFlows::Overlay { port } => {
                let mut there = there;
                there.extend(hosts(also_at));
                let pairs = pairs(&there, &own, Some(*port));
                pairs.into_iter().map(|s| (XfrmDirection::In, s)).collect()
            }
            ProtectedFlows::Routed { local, .. } => {
                let mut to_pods = pairs(&peer.pod_cidrs, local, None);
                to_pods.extend(pairs(&there, local, None));
                let to_host = pairs(&peer.pod_cidrs, &own, None);
                mirrored(&to_pods, &to_host)
            }
        }
    }

    /// Packets that never leave the node and that [`Flows::blocked`] would drop.
    pub(super) fn allowed(&self) -> Vec<(XfrmDirection, XfrmSelector)> {
        let (inward, outward) = (self.policy.clear_inbound, self.policy.clear_outbound);
        let mut all = Vec::new();
        match &self.policy.flows {
            ProtectedFlows::Overlay { port } => {
                // The loopback device is beside IPsec in IPv4 alone (NOXFRM, NOPOLICY).
                let mut own: Vec<IpNet> = hosts(&self.policy.addresses);
                own.push(IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)));
                for host in own.iter().filter(|host| host.addr().is_ipv6()) {
                    let itself = selector(host, host, Some(*port));
                    if outward == ClearTraffic::Drop {
                        all.push((XfrmDirection::Out, itself));
                    }
                    if inward == ClearTraffic::Drop {
                        all.push((XfrmDirection::In, itself));
                    }
                }
            }
            ProtectedFlows::Routed { local, .. } => {
                let seals = |p: &PeerTraffic| p.outbound == Outbound::Encrypt;
                if outward == ClearTraffic::Drop || self.policy.peers.iter().any(seals) {
                    let out = local.iter().map(|net| (XfrmDirection::Out, to(net, None)));
                    all.extend(out);
                }
                if inward == ClearTraffic::Drop {
                    let own = hosts(&self.policy.addresses);
                    let among = pairs(local, local, None);
                    all.extend(mirrored(&among, &pairs(local, &own, None)));
                }
            }
        }
        all
    }

    /// Packets of protected flows of anybody, that no peer's policy takes.
    pub(super) fn blocked(&self) -> Vec<(XfrmDirection, XfrmSelector)> {
        let (inward, outward) = (self.policy.clear_inbound, self.policy.clear_outbound);
        let mut all = Vec::new();
        match &self.policy.flows {
            ProtectedFlows::Overlay { port } => {
                for family in Family::BOTH {
                    let everything = to(&any(family), Some(*port));
                    if outward == ClearTraffic::Drop {
                        all.push((XfrmDirection::Out, everything));
                    }
                    if inward == ClearTraffic::Drop {
                        all.push((XfrmDirection::In, everything));
                    }
                }
            }
            ProtectedFlows::Routed { local, cluster } => {
                if outward == ClearTraffic::Drop {
                    let out = cluster
                        .iter()
                        .map(|net| (XfrmDirection::Out, to(net, None)));
                    all.extend(out);
                }
                if inward == ClearTraffic::Drop {
                    let own = hosts(&self.policy.addresses);
                    let to_pods = pairs(cluster, local, None);
                    all.extend(mirrored(&to_pods, &pairs(cluster, &own, None)));
                }
            }
        }
        all
    }
}

/// What comes in for pods passes through the host, or is for an address of its own among them.
fn mirrored(
    to_pods: &[XfrmSelector],
    to_host: &[XfrmSelector],
) -> Vec<(XfrmDirection, XfrmSelector)> {
    let through = to_pods.iter().map(|s| (XfrmDirection::Forward, *s));
    let here = to_pods.iter().chain(to_host);
    through
        .chain(here.map(|s| (XfrmDirection::In, *s)))
        .collect()
}

fn hosts<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> Vec<IpNet> {
    addresses.into_iter().map(|a| IpNet::from(*a)).collect()
}

/// Each of one list with each of the other, of the same family.
fn pairs(sources: &[IpNet], destinations: &[IpNet], port: Option<u16>) -> Vec<XfrmSelector> {
    let all = sources
        .iter()
        .flat_map(|s| destinations.iter().map(move |d| (s, d)));
    all.filter(|(s, d)| s.addr().is_ipv4() == d.addr().is_ipv4())
        .map(|(s, d)| selector(s, d, port))
        .collect()
}

fn to(destination: &IpNet, port: Option<u16>) -> XfrmSelector {
    let source = any(Family::of(&destination.addr()));
    selector(&source, destination, port)
}

fn selector(source: &IpNet, destination: &IpNet, port: Option<u16>) -> XfrmSelector {
    XfrmSelector {
        source: source.trunc(),
        destination: destination.trunc(),
        protocol: port.map_or(0, |_| UDP),
        source_port: PortMatch::ANY,
        destination_port: port.map_or(PortMatch::ANY, PortMatch::exactly),
    }
}
