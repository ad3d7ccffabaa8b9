//! From a policy to the routing rules that steer its packets.

use ipnet::IpNet;
use testudo_model::{ClearTraffic, Outbound, ProtectedFlows, TrafficPolicy};
use testudo_netlink::{Family, Rule, RuleAction};

use super::{MAIN, PRIORITY_ALL, PRIORITY_EXEMPT, PRIORITY_PEER, PROTOCOL, TABLE, families};

const UDP: u8 = 17;

/// The rules that a policy wants, without repetitions. Empty: nothing is steered.
pub(super) fn steering(policy: &TrafficPolicy) -> Vec<Rule> {
    let present: Vec<Family> = families().collect();
    let mut rules = match &policy.flows {
        ProtectedFlows::Overlay { port } => overlay(policy, *port, &present),
        ProtectedFlows::Routed { local, cluster } => routed(policy, local, cluster),
    };
    rules.retain(|rule| present.contains(&rule.family));
    let mut unique: Vec<Rule> = Vec::with_capacity(rules.len());
    rules.sort_by_key(|rule| (rule.priority, rule.family, rule.to, rule.from));
    for rule in rules {
        if unique.last() != Some(&rule) {
            unique.push(rule);
        }
    }
    unique
}

fn overlay(policy: &TrafficPolicy, port: u16, present: &[Family]) -> Vec<Rule> {
    let rule = |family, priority, to: Option<IpNet>| Rule {
        to,
        ip_protocol: Some(UDP),
        destination_ports: Some((port, port)),
        protocol: PROTOCOL,
        ..Rule::new(family, priority, RuleAction::Table(TABLE))
    };
    let mut rules = Vec::new();
    for peer in policy
        .peers
        .iter()
        .filter(|peer| peer.outbound == Outbound::Encrypt)
    {
        for address in &peer.addresses {
            rules.push(rule(
                Family::of(address),
                PRIORITY_PEER,
                Some(IpNet::from(*address)),
            ));
        }
    }
    if policy.clear_outbound == ClearTraffic::Drop {
        rules.extend(
            present
                .iter()
                .map(|family| rule(*family, PRIORITY_ALL, None)),
        );
    }
    rules
}

fn routed(policy: &TrafficPolicy, local: &[IpNet], cluster: &[IpNet]) -> Vec<Rule> {
    let rule = |net: &IpNet, priority, table| Rule {
        to: Some(net.trunc()),
        protocol: PROTOCOL,
        ..Rule::new(Family::of(&net.addr()), priority, RuleAction::Table(table))
    };
    let mut rules = Vec::new();
    for peer in &policy.peers {
        if peer.outbound == Outbound::Encrypt {
            rules.extend(
                peer.pod_cidrs
                    .iter()
                    .map(|net| rule(net, PRIORITY_PEER, TABLE)),
            );
            // What pods answer to a host's own packets belongs to the same flow.
            rules.extend(peer.addresses.iter().flat_map(|address| {
                let to = IpNet::from(*address);
                let same = |net: &&IpNet| Family::of(&net.addr()) == Family::of(address);
                local.iter().filter(same).map(move |net| Rule {
                    from: Some(net.trunc()),
                    ..rule(&to, PRIORITY_PEER, TABLE)
                })
            }));
        }
        if policy.clear_outbound == ClearTraffic::Drop {
            rules.extend(
                peer.pod_cidrs
                    .iter()
                    .map(|net| rule(net, PRIORITY_ALL, TABLE)),
            );
        }
    }
    if policy.clear_outbound == ClearTraffic::Drop {
        rules.extend(cluster.iter().map(|net| rule(net, PRIORITY_ALL, TABLE)));
    }
    if !rules.is_empty() {
        rules.extend(local.iter().map(|net| rule(net, PRIORITY_EXEMPT, MAIN)));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_model::{PeerId, PeerTraffic};

    #[test]
    fn routed_pods_answers_to_hosts_are_steered_too() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut policy = TrafficPolicy {
            addresses: vec!["10.0.0.1".parse().unwrap()],
            flows: ProtectedFlows::Routed {
                local: vec![net("10.244.1.0/24"), net("fd00::/64")],
                cluster: vec![net("10.244.0.0/16")],
            },
            clear_inbound: ClearTraffic::Pass,
            clear_outbound: ClearTraffic::Pass,
            peers: vec![PeerTraffic {
                peer: PeerId::new("n2").unwrap(),
                addresses: vec!["10.0.0.2".parse().unwrap()],
                pod_cidrs: vec![net("10.244.2.0/24")],
                outbound: Outbound::Encrypt,
            }],
        };
        let to_host = |policy: &TrafficPolicy| -> Vec<Rule> {
            let to_host = |rule: &Rule| rule.to == Some(net("10.0.0.2/32"));
            steering(policy).into_iter().filter(to_host).collect()
        };
        let rules = to_host(&policy);
        assert_eq!(rules.len(), 1, "{rules:?}");
        assert_eq!(rules[0].from, Some(net("10.244.1.0/24")));
        policy.peers[0].outbound = Outbound::Clear;
        assert!(to_host(&policy).is_empty());
    }
}
