//! The host's rules alone: no device, no sockets.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use testudo_datapath::Datapath;
use testudo_datapath_user::{HostOptions, HostRules};
use testudo_model::{Outbound, TrafficPolicy};

fn rules(node: &Node) -> HostOptions {
    HostOptions::new(node.state.path())
}

fn apply(node: &Node, policy: &TrafficPolicy) {
    let (options, policy) = (rules(node), policy.clone());
    node.run(move |_| HostRules::new(options).apply(&policy).unwrap());
}

fn clear(node: &Node) {
    let options = rules(node);
    node.run(move |_| HostRules::new(options).clear().unwrap());
}

/// Everything that could be ours or another's, as text. Handles change and are left out.
fn snapshot(node: &Node) -> String {
    let commands = [
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
        "cat /proc/sys/net/ipv4/conf/eth0/rp_filter",
    ];
    commands
        .iter()
        .map(|command| node.command(command).1)
        .collect()
}

fn foreign(node: &Node) {
    for command in [
        "ip rule add priority 3900 to 198.51.100.0/24 lookup 77",
        "ip rule add priority 100 fwmark 0x7 lookup 78",
        "ip -6 rule add priority 3901 to 2001:db8:9::/64 lookup 77",
        "ip route add 203.0.113.0/24 via 192.0.2.9 table 50050",
        "ip route add 203.0.113.0/24 via 192.0.2.9 table 77",
        "nft add table inet other ; add chain inet other c { type filter hook input priority 0 ; } ; add rule inet other c udp dport 4789 counter accept",
    ] {
        let (ok, text) = node.command(command);
        assert!(ok, "{command}: {text}");
    }
    node.sysctl("ipv4/conf/eth0/rp_filter", "1");
}

#[test]
fn what_others_made_stays_and_what_is_ours_goes() {
    if !can_run("what_others_made_stays_and_what_is_ours_goes") {
        return;
    }
    let world = World::new(2);
    let node = &world.nodes[0];
    foreign(node);
    let before = snapshot(node);
    for flows in [overlay_flows(), routed_flows(0)] {
        for step in [Step::Permissive, Step::Strict] {
            let wanted = policy(0, &[1], flows.clone(), step);
            apply(node, &wanted);
            let once = snapshot(node);
            assert_ne!(once, before);
            apply(node, &wanted);
            assert_eq!(snapshot(node), once, "applied twice");
        }
    }
    // A new process clears what an earlier one made, the link's filter included.
    clear(node);
    assert_eq!(snapshot(node), before);
    clear(node);
    assert_eq!(snapshot(node), before);
    // Back to clear by policy is the same.
    apply(node, &policy(0, &[1], overlay_flows(), Step::Strict));
    apply(node, &policy(0, &[1], overlay_flows(), Step::Clear));
    assert_eq!(snapshot(node), before);
    // And with the device, through the datapath.
    node.start(|_| {});
    node.with(|d| {
        d.set_traffic(&policy(0, &[1], overlay_flows(), Step::Strict))
            .unwrap()
    });
    node.with(|d| d.clear().unwrap());
    assert_eq!(snapshot(node), before);
    // It starts again when it is asked to.
    node.with(|d| {
        d.set_traffic(&policy(0, &[1], overlay_flows(), Step::Permissive))
            .unwrap()
    });
    assert!(node.command("ip link show testudo0").0);
}

/// What is counted for a peer is what the kernel has, and another program's rule is nobody's.
#[test]
fn rules_are_counted_by_peer_as_the_kernel_has_them() {
    if !can_run("rules_are_counted_by_peer_as_the_kernel_has_them") {
        return;
    }
    let world = World::new(3);
    let node = &world.nodes[0];
    foreign(node);
    let wanted = policy(0, &[1, 2], overlay_flows(), Step::Strict);
    let count = || {
        let (options, policy) = (rules(node), wanted.clone());
        let counted = node.run(move |_| HostRules::new(options).rules_of_peers(&policy).unwrap());
        counted.into_values().collect::<Vec<u32>>()
    };
    assert_eq!(count(), [0; 0]);
    apply(node, &wanted);
    // One for each address.
    let addresses = wanted.peers.iter().map(|p| p.addresses.len() as u32);
    assert_eq!(count(), addresses.collect::<Vec<_>>());
    let first = wanted.peers[0].addresses[0];
    let (ok, text) = node.command(&format!("ip rule del priority 3900 to {first}"));
    assert!(ok, "{text}");
    let addresses = wanted.peers.iter().map(|p| p.addresses.len() as u32);
    let mut left: Vec<u32> = addresses.collect();
    left[0] -= 1;
    left.retain(|number| *number > 0);
    assert_eq!(count(), left);
}

#[test]
fn a_node_is_closed_at_boot_without_device_and_sockets() {
    if !can_run("a_node_is_closed_at_boot_without_device_and_sockets") {
        return;
    }
    let world = World::new(2);
    world.overlay(false);
    assert!(world.nodes[0].ping("10.99.0.2"));
    let tap = Tap::new(&world.switch);
    for me in [0, 1] {
        apply(
            &world.nodes[me],
            &policy(me, &[1 - me], overlay_flows(), Step::Strict),
        );
    }
    assert!(!world.nodes[0].ping("10.99.0.2"));
    assert_eq!(tap.clear(), 0);
    // Node to node traffic that is not protected goes on.
    assert!(world.nodes[0].ping("192.0.2.2"));
}

#[test]
fn a_datapath_that_ends_leaves_the_node_closed() {
    if !can_run("a_datapath_that_ends_leaves_the_node_closed") {
        return;
    }
    let world = World::new(2);
    world.overlay(false);
    for (me, node) in world.nodes.iter().enumerate() {
        node.start(|_| {});
        let wanted = policy(me, &[1 - me], overlay_flows(), Step::Strict);
        node.with(move |d| d.set_traffic(&wanted).unwrap());
    }
    let pair = Pair::new(1, 0, 1);
    pair.install(&world);
    pair.switch(&world);
    assert!(world.nodes[0].ping("10.99.0.2"));
    let tap = Tap::new(&world.switch);
    let floods = flood_both(
        &world.nodes[0],
        &world.nodes[1],
        ("10.99.0.1", "10.99.0.2"),
        2000,
    );
    // As a crash does: everything is closed, nothing is cleared.
    world.nodes[0].run(|datapath| *datapath = None);
    pause(200);
    assert!(!world.nodes[0].ping("10.99.0.2"));
    world.nodes[0].start(|_| {});
    let wanted = policy(0, &[1], overlay_flows(), Step::Strict);
    world.nodes[0].with(move |d| d.set_traffic(&wanted).unwrap());
    let next = Pair { child: 2, ..pair };
    next.install(&world);
    next.switch(&world);
    assert!(world.nodes[0].ping("10.99.0.2"));
    for flood in floods {
        let (sent, lost, _) = flood.finish();
        assert!(lost > 0 && lost < sent);
    }
    assert_eq!(tap.clear(), 0);
}

#[test]
fn a_device_that_is_taken_away_is_told_and_nothing_leaves_in_clear() {
    if !can_run("a_device_that_is_taken_away_is_told_and_nothing_leaves_in_clear") {
        return;
    }
    let world = World::new(2);
    world.overlay(false);
    let node = &world.nodes[0];
    node.start(|_| {});
    node.with(|d| {
        d.set_traffic(&policy(0, &[1], overlay_flows(), Step::Strict))
            .unwrap()
    });
    let tap = Tap::new(&world.switch);
    assert!(node.command("ip link del testudo0").0);
    pause(100);
    let failed = node.with(|d| {
        std::iter::from_fn(|| d.poll_event())
            .any(|e| matches!(e, testudo_datapath::Event::Failed { .. }))
    });
    assert!(failed);
    assert!(!node.ping("10.99.0.2"));
    // The second node, which has no datapath here, may speak in clear: not the first.
    assert_eq!(tap.first.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn a_peer_in_clear_is_left_alone_in_permissive() {
    if !can_run("a_peer_in_clear_is_left_alone_in_permissive") {
        return;
    }
    let world = World::new(3);
    world.overlay(false);
    for (me, node) in world.nodes[..2].iter().enumerate() {
        node.start(|_| {});
        let mut wanted = policy(me, &[1 - me, 2], overlay_flows(), Step::Permissive);
        wanted.peers[1].outbound = Outbound::Clear;
        node.with(move |d| d.set_traffic(&wanted).unwrap());
    }
    let pair = Pair::new(1, 0, 1);
    pair.install(&world);
    pair.switch(&world);
    let tap = Tap::new(&world.switch);
    assert!(world.nodes[0].ping("10.99.0.2"));
    assert!(tap.esp() > 0);
    assert!(world.nodes[0].ping("10.99.0.3") && world.nodes[2].ping("10.99.0.2"));
}

#[test]
fn without_nft_the_error_says_so_and_the_node_stays_closed_outwards() {
    if !can_run("without_nft_the_error_says_so_and_the_node_stays_closed_outwards") {
        return;
    }
    let world = World::new(2);
    world.overlay(false);
    let node = &world.nodes[0];
    let options = HostOptions {
        nft: "/nowhere/nft".into(),
        ..rules(node)
    };
    let error = node.run(move |_| {
        let wanted = policy(0, &[1], overlay_flows(), Step::Strict);
        HostRules::new(options)
            .apply(&wanted)
            .unwrap_err()
            .to_string()
    });
    assert!(error.contains("nftables"), "{error}");
    let tap = Tap::new(&world.switch);
    assert!(!node.ping("10.99.0.2"));
    tap.clear();
    assert_eq!(tap.first.load(std::sync::atomic::Ordering::Relaxed), 0);
}

// Many hosts have IPv6 in the kernel and switched off by sysctl: no route into a device is taken
// there. The node must close and work all the same.
#[test]
fn a_host_with_ipv6_switched_off_closes_and_opens() {
    if !can_run("a_host_with_ipv6_switched_off_closes_and_opens") {
        return;
    }
    let world = World::new(2);
    let node = &world.nodes[0];
    for which in ["all", "default"] {
        node.sysctl(&format!("ipv6/conf/{which}/disable_ipv6"), "1");
    }
    let strict = policy(0, &[1], overlay_flows(), Step::Strict);
    apply(node, &strict);
    node.start(|_| {});
    node.with(move |d| d.set_traffic(&strict).unwrap());
    let (ok, routes) = node.command("ip -4 route show table 50050");
    assert!(ok && routes.contains("testudo0"), "{routes}");
    let (ok, rules) = node.command("nft list table inet testudo");
    assert!(ok && rules.contains("clear_outbound"), "{rules}");
    node.with(|d| d.clear().unwrap());
}

// A firewall that is restarted flushes all of nft, and a network manager routing rules: to tell
// the same policy again puts ours back.
#[test]
fn what_others_flushed_comes_back_with_the_same_policy() {
    if !can_run("what_others_flushed_comes_back_with_the_same_policy") {
        return;
    }
    let world = World::new(2);
    let node = &world.nodes[0];
    let strict = policy(0, &[1], overlay_flows(), Step::Strict);
    apply(node, &strict);
    let whole = snapshot(node);
    for command in [
        "nft flush ruleset",
        "ip -4 rule del priority 3901",
        "ip -4 route flush table 50050",
    ] {
        let (ok, text) = node.command(command);
        assert!(ok, "{command}: {text}");
    }
    assert_ne!(snapshot(node), whole);
    apply(node, &strict);
    assert_eq!(snapshot(node), whole);
}
