//! Pods' own packets between nodes, in tunnel mode.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use testudo_datapath::Datapath;
use testudo_model::SaMode;

fn set(world: &World, step: Step) {
    for me in [0, 1] {
        let wanted = policy(me, &[1 - me], routed_flows(me), step);
        world.nodes[me].with(move |d| d.set_traffic(&wanted).unwrap());
    }
}

fn carries(v6: bool, udp: bool, offloads: bool) {
    let world = World::new(2);
    let pods = world.pods();
    for node in &world.nodes {
        node.start(|options| options.offloads = offloads);
    }
    let other = if v6 { "fd00:2::2" } else { "10.2.0.2" };
    assert!(pods[0].ping(other), "the routes themselves do not work");
    set(&world, Step::Strict);
    let tap = Tap::new(&world.switch);
    assert!(!pods[0].ping(other), "clear packets passed in Strict");
    let pair = Pair {
        v6,
        udp,
        mode: SaMode::Tunnel,
        ..Pair::new(1, 0, 1)
    };
    pair.install(&world);
    pair.switch(&world);
    assert!(pods[0].ping(other));
    // The node's own pods and the other family are served too.
    assert!(world.nodes[0].ping("10.1.0.2"));
    assert!(pods[1].ping("10.1.0.2") && pods[1].ping("fd00:1::2"));
    let listen = if v6 {
        "[fd00:2::2]:5001"
    } else {
        "10.2.0.2:5001"
    };
    let rate = transfer(&pods[0], &pods[1], listen);
    eprintln!("v6 {v6}, UDP {udp}, offloads {offloads}: {rate:.0} Mbit/s");
    let addresses = if v6 {
        ("[fd00:1::2]", "[fd00:2::2]")
    } else {
        ("10.1.0.2", "10.2.0.2")
    };
    let floods = flood_both(&pods[0], &pods[1], addresses, 2500);
    pause(200);
    let next = Pair { child: 2, ..pair };
    next.install(&world);
    next.switch(&world);
    pause(200);
    pair.remove(&world);
    pause(200);
    assert_no_loss(floods, 1000);
    assert_eq!(tap.clear(), 0);
    for node in &world.nodes {
        let counters = node.with(|d| d.counters());
        eprintln!("{:?} {:?}", counters.drops, counters.notices);
    }
}

#[test]
fn tunnel_over_ipv4() {
    if can_run("tunnel_over_ipv4") {
        carries(false, false, true);
    }
}

#[test]
fn tunnel_over_ipv6() {
    if can_run("tunnel_over_ipv6") {
        carries(true, false, true);
    }
}

#[test]
fn tunnel_encapsulated_in_udp() {
    if can_run("tunnel_encapsulated_in_udp") {
        carries(false, true, true);
    }
}

#[test]
fn tunnel_encapsulated_in_udp_over_ipv6() {
    if can_run("tunnel_encapsulated_in_udp_over_ipv6") {
        carries(true, true, true);
    }
}

#[test]
fn tunnel_without_offloads() {
    if can_run("tunnel_without_offloads") {
        carries(false, true, false);
    }
}

#[test]
fn routed_switch_on_and_off_under_load_loses_nothing() {
    if !can_run("routed_switch_on_and_off_under_load_loses_nothing") {
        return;
    }
    let world = World::new(2);
    let pods = world.pods();
    for node in &world.nodes {
        node.start(|_| {});
        node.sysctl("ipv4/conf/eth0/rp_filter", "1");
    }
    assert!(pods[0].ping("10.2.0.2"));
    let pair = Pair {
        mode: SaMode::Tunnel,
        ..Pair::new(1, 0, 1)
    };
    pair.install(&world);
    pair.switch(&world);
    let tap = Tap::new(&world.switch);
    let floods = flood_both(&pods[0], &pods[1], ("10.1.0.2", "10.2.0.2"), 2500);
    for _ in 0..3 {
        for step in [Step::Permissive, Step::Strict] {
            pause(80);
            set(&world, step);
        }
        pause(80);
        let before = tap.clear();
        pause(100);
        assert_eq!(tap.clear(), before);
        for step in [Step::Permissive, Step::Clear] {
            set(&world, step);
            pause(80);
        }
    }
    assert_no_loss(floods, 2000);
}

#[test]
fn what_the_selectors_do_not_cover_is_dropped() {
    if !can_run("what_the_selectors_do_not_cover_is_dropped") {
        return;
    }
    let world = World::new(2);
    let pods = world.pods();
    for node in &world.nodes {
        node.start(|_| {});
    }
    set(&world, Step::Strict);
    let pair = Pair {
        mode: SaMode::Tunnel,
        ..Pair::new(1, 0, 1)
    };
    pair.install(&world);
    pair.switch(&world);
    let tap = Tap::new(&world.switch);
    // A pod of no node, in the cluster's prefix.
    assert!(!pods[0].ping("10.7.0.2"));
    assert!(world.nodes[0].drops("no_outbound_sa") > 0);
    // The first node seals what the second does not allow it to send.
    let mut wide = pair;
    wide.child = 9;
    world.nodes[0].with(move |d| {
        let mut sa = wide.outbound(0);
        sa.local = vec![testudo_model::TrafficSelector::prefix(
            "0.0.0.0/0".parse().unwrap(),
        )];
        d.install_outbound(sa).unwrap();
        d.use_outbound(testudo_model::ChildId(9)).unwrap();
    });
    world.nodes[1].with(move |d| d.install_inbound(wide.inbound(1)).unwrap());
    // A pod with an address outside its node's prefix.
    let mut own = pods[0].netlink();
    let eth0 = own.link_index("eth0").unwrap();
    own.add_address(eth0, "10.9.0.9/32".parse().unwrap())
        .unwrap();
    let (answered, text) = pods[0].command("ping -c 3 -i 0.05 -W 1 -I 10.9.0.9 10.2.0.2");
    assert!(!answered, "{text}");
    assert!(world.nodes[1].drops("wrong_inner") >= 3);
    assert!(pods[0].ping("10.2.0.2"));
    assert_eq!(tap.clear(), 0);
}
