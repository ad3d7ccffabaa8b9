//! What becomes of packets, phase by phase. See the [crate] documentation for the two rules.

use std::net::IpAddr;

use testudo_model::{
    ClearTraffic, NodeEncryption, Outbound, PeerTraffic, Phase, ProtectedFlows, TrafficPolicy,
};

use crate::node::{Known, Standing};
use crate::peers;

/// The traffic policy of any phase but `Disabled`.
pub(crate) fn decide(standing: &Standing<'_>) -> TrafficPolicy {
    let (known, others) = (standing.known, standing.others);
    let view = View { known, standing };
    let outbound: Vec<Outbound> = others.iter().map(|node| view.outbound(node)).collect();
    let sealed = outbound.iter().all(|o| *o == Outbound::Encrypt);
    let clear_outbound = view.clear_outbound(others, sealed);
    let mut traffic = TrafficPolicy {
        addresses: known.own.spec.addresses.clone(),
        flows: flows(standing),
        clear_inbound: match known.policy.status.phase {
            Phase::Strict => ClearTraffic::Drop,
            _ => ClearTraffic::Pass,
        },
        clear_outbound,
        peers: others
            .iter()
            .zip(outbound)
            .map(|(node, outbound)| PeerTraffic {
                peer: peers::id(node),
                addresses: node.spec.addresses.clone(),
                pod_cidrs: peers::pods(standing.overlay, node),
                outbound,
            })
            .collect(),
    };
    if clear_outbound == ClearTraffic::Drop {
        keep_departed(known, &mut traffic);
    }
    traffic
}

fn flows(standing: &Standing<'_>) -> ProtectedFlows {
    match standing.overlay.udp_port() {
        Some(port) => ProtectedFlows::Overlay { port },
        None => ProtectedFlows::Routed {
            local: peers::pods(standing.overlay, standing.known.own),
            cluster: standing.overlay.pod_cidrs.clone(),
        },
    }
}

struct View<'a> {
    known: &'a Known<'a>,
    standing: &'a Standing<'a>,
}

impl View<'_> {
    /// On the way to `Strict`, in the last phase before it: what is closed now stays closed.
    fn closing(&self) -> bool {
        let status = &self.known.policy.status;
        status.phase == Phase::Permissive && status.target == Phase::Strict
    }

    /// The outbound side was closed before, or this node has just come: others may drop clear
    /// before it has said a word, or still.
    fn closed(&self) -> bool {
        match self.known.previous {
            Some(previous) => previous.clear_outbound == ClearTraffic::Drop,
            None => true,
        }
    }

    fn outbound(&self, node: &NodeEncryption) -> Outbound {
        match self.known.policy.status.phase {
            // Everybody accepts clear here: going up nobody has stopped yet, and going down
            // everybody has acknowledged that he does again.
            Phase::Disabled | Phase::Prepared => Outbound::Clear,
            Phase::Strict => Outbound::Encrypt,
            Phase::Permissive if self.closing() && self.closed() => Outbound::Encrypt,
            Phase::Permissive => self.opportunistic(node),
        }
    }

    fn opportunistic(&self, node: &NodeEncryption) -> Outbound {
        let peer = peers::id(node);
        let before = self
            .known
            .previous
            .and_then(|previous| previous.peers.iter().find(|p| p.peer == peer))
            .map(|p| p.outbound);
        let can_open = self.can_open(node) || before == Some(Outbound::Encrypt);
        if can_open && self.standing.outbound(&peer) {
            Outbound::Encrypt
        } else if before == Some(Outbound::Clear) || self.accepts_clear(node) {
            Outbound::Clear
        } else {
            // It may still drop clear: better nothing than something that it must not take.
            Outbound::Encrypt
        }
    }

    /// The peer's word, since the cluster last left `Disabled`, that its inbound side stands.
    fn can_open(&self, node: &NodeEncryption) -> bool {
        node.status.acknowledged.is_some_and(|given| {
            given.phase >= Phase::Prepared && given.rollout >= self.known.policy.status.since
        })
    }

    /// The peer's word of this very step or a later one that it accepts clear. An earlier word
    /// may have been overtaken by `Strict`.
    fn accepts_clear(&self, node: &NodeEncryption) -> bool {
        node.status.acknowledged.is_some_and(|given| {
            given.phase <= Phase::Permissive && given.rollout >= self.known.policy.status.rollout
        })
    }

    fn clear_outbound(&self, others: &[&NodeEncryption], sealed: bool) -> ClearTraffic {
        match self.known.policy.status.phase {
            Phase::Disabled | Phase::Prepared => ClearTraffic::Pass,
            Phase::Strict => ClearTraffic::Drop,
            Phase::Permissive if self.closing() => match sealed {
                true => ClearTraffic::Drop,
                false => ClearTraffic::Pass,
            },
            Phase::Permissive => match self.closed() && self.strangers(others) {
                true => ClearTraffic::Drop,
                false => ClearTraffic::Pass,
            },
        }
    }

    /// Whether the controller waits for a node of which nothing is known here: it may still drop
    /// clear. What goes to known nodes is decided for each of them.
    fn strangers(&self, others: &[&NodeEncryption]) -> bool {
        let known =
            |name: &str| name == self.known.own.name() || others.iter().any(|n| n.name() == name);
        let waiting_on = &self.known.policy.status.waiting_on;
        waiting_on.iter().any(|name| !known(name))
    }
}

/// A peer whose object is gone may still have pods, and so may those who talk to them: its
/// prefixes stay closed until another node has them. (An overlay's port is closed to everyone.)
fn keep_departed(known: &Known<'_>, traffic: &mut TrafficPolicy) {
    let (ProtectedFlows::Routed { local, .. }, Some(previous)) = (&traffic.flows, known.previous)
    else {
        return;
    };
    let mut departed = Vec::new();
    for old in &previous.peers {
        let known_still = traffic.peers.iter().any(|p| p.peer == old.peer);
        if known_still || old.peer.as_str() == known.own.name() {
            continue;
        }
        let overlaps = |a: &ipnet::IpNet, b: &ipnet::IpNet| a.contains(b) || b.contains(a);
        let taken = |cidr: &ipnet::IpNet| {
            local.iter().any(|c| overlaps(c, cidr))
                || traffic
                    .peers
                    .iter()
                    .any(|p| p.pod_cidrs.iter().any(|c| overlaps(c, cidr)))
        };
        let in_use = |address: &IpAddr| {
            traffic.addresses.contains(address)
                || traffic.peers.iter().any(|p| p.addresses.contains(address))
        };
        let pod_cidrs: Vec<_> = old
            .pod_cidrs
            .iter()
            .copied()
            .filter(|cidr| !taken(cidr))
            .collect();
        if !pod_cidrs.is_empty() {
            departed.push(PeerTraffic {
                peer: old.peer.clone(),
                addresses: old
                    .addresses
                    .iter()
                    .copied()
                    .filter(|address| !in_use(address))
                    .collect(),
                pod_cidrs,
                outbound: Outbound::Encrypt,
            });
        }
    }
    traffic.peers.extend(departed);
    traffic.peers.sort_by(|a, b| a.peer.cmp(&b.peer));
}
