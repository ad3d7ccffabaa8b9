//! The nftables rules that drop clear packets of protected flows, as a script.
//!
//! A drop in any base chain is final, so no rule of another firewall can let a packet past these
//! chains. The whole table changes in one transaction; its counters live on.

use std::fmt::Write as _;

use ipnet::IpNet;
use testudo_model::{ClearTraffic, ProtectedFlows, TrafficPolicy};

/// The table's name, in the family `inet`; never `ipsec`, which the nft grammar reserves.
pub const FIREWALL_TABLE: &str = "testudo";
/// The names of its counters.
pub const FIREWALL_COUNTERS: [&str; 2] = ["clear_inbound", "clear_outbound"];

/// How clear packets are told from others, as matches of an nft rule. What stays on the
/// loopback device is never between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClearMatch {
    /// One that came in and was not opened by us.
    pub inbound: String,
    /// One that is about to leave and will not be sealed.
    pub outbound: String,
}

impl ClearMatch {
    /// What does not pass a device that seals and opens.
    pub fn beside_device(device: &str) -> Self {
        Self {
            inbound: format!("iifname != {{ \"{device}\", \"lo\" }}"),
            outbound: format!("oifname != {{ \"{device}\", \"lo\" }}"),
        }
    }

    /// What the kernel's IPsec did not open or will not seal.
    pub fn beside_xfrm() -> Self {
        Self {
            inbound: "iifname != \"lo\" meta secpath missing".into(),
            outbound: "oifname != \"lo\" rt ipsec missing".into(),
        }
    }
}

/// The transaction that makes the table say what the policy says, or `None` where nothing is
/// dropped and there is to be no table.
pub fn firewall(policy: &TrafficPolicy, clear: &ClearMatch) -> Option<String> {
    let drop_in = policy.clear_inbound == ClearTraffic::Drop;
    let drop_out = policy.clear_outbound == ClearTraffic::Drop;
    if !drop_in && !drop_out {
        return None;
    }
    let (rules_in, rules_out) = match &policy.flows {
        ProtectedFlows::Overlay { port } => overlay(*port),
        ProtectedFlows::Routed { local, cluster } => routed(policy, local, cluster),
    };
    let mut rules = String::new();
    let sides = [
        (rules_in, &clear.inbound, FIREWALL_COUNTERS[0], drop_in),
        (rules_out, &clear.outbound, FIREWALL_COUNTERS[1], drop_out),
    ];
    for (side, clear, counter, _) in sides.iter().filter(|(.., drop)| *drop) {
        for (chain, matches) in side {
            let _ = writeln!(
                rules,
                "add rule inet {FIREWALL_TABLE} {chain} {clear} {matches} \
                 counter name {counter} drop"
            );
        }
    }
    let mut script = format!("add table inet {FIREWALL_TABLE}\n");
    for counter in FIREWALL_COUNTERS {
        let _ = writeln!(script, "add counter inet {FIREWALL_TABLE} {counter}");
    }
    for (chain, hook, priority) in CHAINS {
        let _ = writeln!(
            script,
            "add chain inet {FIREWALL_TABLE} {chain} \
             {{ type filter hook {hook} priority {priority}; policy accept; }}\n\
             flush chain inet {FIREWALL_TABLE} {chain}"
        );
    }
    Some(script + &rules)
}

/// Chain, hook, priority: before all others on the way in, after them on the way out.
const CHAINS: [(&str, &str, i32); 3] = [
    ("prerouting", "prerouting", -310),
    ("input", "input", -310),
    ("output", "postrouting", 310),
];

/// A chain and what a rule in it matches.
type Matches = Vec<(&'static str, String)>;

fn overlay(port: u16) -> (Matches, Matches) {
    let matches = format!("udp dport {port}");
    (vec![("input", matches.clone())], vec![("output", matches)])
}

/// Pods' packets between nodes: what claims to come from elsewhere to a pod here must have been
/// opened by us, what goes from here to a pod elsewhere must go through us.
fn routed(policy: &TrafficPolicy, local: &[IpNet], cluster: &[IpNet]) -> (Matches, Matches) {
    let peers = policy.peers.iter();
    let pods: Vec<IpNet> = cluster
        .iter()
        .chain(peers.clone().flat_map(|p| &p.pod_cidrs))
        .copied()
        .collect();
    let nodes: Vec<IpNet> = peers
        .flat_map(|p| &p.addresses)
        .map(|address| IpNet::from(*address))
        .collect();
    let own: Vec<IpNet> = policy.addresses.iter().map(|a| IpNet::from(*a)).collect();
    let sources: Vec<IpNet> = pods.iter().chain(&nodes).copied().collect();
    let (mut inbound, mut outbound) = (Matches::new(), Matches::new());
    for (word, v4) in [("ip", true), ("ip6", false)] {
        let here = set(local, v4);
        if let (Some(from), Some(to)) = (set(&sources, v4), &here) {
            let matches = format!("{word} saddr {from} {word} saddr != {to} {word} daddr {to}");
            inbound.push(("prerouting", matches));
        }
        let except = |end: &str| match &here {
            Some(here) => format!("{word} {end} != {here} "),
            None => String::new(),
        };
        // What pods elsewhere send to this host under their own addresses.
        if let (Some(from), Some(to)) = (set(&pods, v4), set(&own, v4)) {
            let except = except("saddr");
            let matches = format!("{word} saddr {from} {except}{word} daddr {to}");
            inbound.push(("prerouting", matches));
        }
        if let (Some(from), Some(to)) = (&here, set(&nodes, v4)) {
            outbound.push(("output", format!("{word} saddr {from} {word} daddr {to}")));
        }
        if let Some(to) = set(&pods, v4) {
            let except = except("daddr");
            outbound.push(("output", format!("{except}{word} daddr {to}")));
        }
    }
    (inbound, outbound)
}

/// The prefixes of a family as an anonymous set. Merged, since nft refuses overlaps.
fn set(nets: &[IpNet], v4: bool) -> Option<String> {
    let nets: Vec<IpNet> = nets
        .iter()
        .filter(|n| n.addr().is_ipv4() == v4)
        .map(|n| n.trunc())
        .collect();
    let merged = IpNet::aggregate(&nets);
    let texts: Vec<String> = merged.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| format!("{{ {} }}", texts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_model::{Outbound, PeerId, PeerTraffic};

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn policy(flows: ProtectedFlows) -> TrafficPolicy {
        TrafficPolicy {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            flows,
            clear_inbound: ClearTraffic::Pass,
            clear_outbound: ClearTraffic::Pass,
            peers: vec![PeerTraffic {
                peer: PeerId::new("n2").unwrap(),
                addresses: vec!["192.0.2.2".parse().unwrap()],
                pod_cidrs: nets(&["10.244.2.0/24"]),
                outbound: Outbound::Encrypt,
            }],
        }
    }

    fn rules(script: &str) -> Vec<&str> {
        let rules = script
            .lines()
            .filter_map(|l| l.strip_prefix("add rule inet testudo "));
        rules.collect()
    }

    #[test]
    fn overlapping_prefixes_are_merged() {
        let nets = nets(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.0.2.7/24"]);
        assert_eq!(set(&nets, true).unwrap(), "{ 10.0.0.0/8, 192.0.2.0/24 }");
        assert_eq!(set(&nets, false).unwrap(), "{ fd00::/8 }");
        assert_eq!(set(&nets[2..3], true), None);
    }

    #[test]
    fn each_side_is_closed_alone() {
        let mut policy = policy(ProtectedFlows::Overlay { port: 6081 });
        let clear = ClearMatch::beside_xfrm();
        assert_eq!(firewall(&policy, &clear), None);
        policy.clear_outbound = ClearTraffic::Drop;
        let script = firewall(&policy, &clear).unwrap();
        assert_eq!(
            rules(&script),
            ["output oifname != \"lo\" rt ipsec missing udp dport 6081 \
              counter name clear_outbound drop"]
        );
        policy.clear_inbound = ClearTraffic::Drop;
        policy.clear_outbound = ClearTraffic::Pass;
        let script = firewall(&policy, &ClearMatch::beside_device("testudo0")).unwrap();
        assert_eq!(
            rules(&script),
            ["input iifname != { \"testudo0\", \"lo\" } udp dport 6081 \
              counter name clear_inbound drop"]
        );
    }

    #[test]
    fn routed_pods_are_closed_to_all_that_is_not_local() {
        let mut policy = policy(ProtectedFlows::Routed {
            local: nets(&["10.244.1.0/24"]),
            cluster: nets(&["10.244.0.0/16"]),
        });
        policy.clear_inbound = ClearTraffic::Drop;
        policy.clear_outbound = ClearTraffic::Drop;
        let clear = ClearMatch {
            inbound: "IN".into(),
            outbound: "OUT".into(),
        };
        let script = firewall(&policy, &clear).unwrap();
        let local = "{ 10.244.1.0/24 }";
        assert_eq!(
            rules(&script),
            [
                format!(
                    "prerouting IN ip saddr {{ 10.244.0.0/16, 192.0.2.2/32 }} ip saddr != {local} \
                     ip daddr {local} counter name clear_inbound drop"
                ),
                format!(
                    "prerouting IN ip saddr {{ 10.244.0.0/16 }} ip saddr != {local} \
                     ip daddr {{ 192.0.2.1/32 }} counter name clear_inbound drop"
                ),
                format!(
                    "output OUT ip saddr {local} ip daddr {{ 192.0.2.2/32 }} \
                     counter name clear_outbound drop"
                ),
                format!(
                    "output OUT ip daddr != {local} ip daddr {{ 10.244.0.0/16 }} \
                     counter name clear_outbound drop"
                ),
            ]
        );
    }
}
