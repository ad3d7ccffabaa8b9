//! A real VXLAN over two datapaths with fixed keys, in network namespaces.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::*;
use testudo_datapath::{Datapath, Event};
use testudo_model::{ChildId, Encapsulation, SaDirection, SaId};

fn strict(world: &World, nodes: &[usize]) {
    set(world, nodes, Step::Strict);
}

fn set(world: &World, nodes: &[usize], step: Step) {
    for me in nodes {
        let others: Vec<usize> = nodes.iter().copied().filter(|n| n != me).collect();
        let wanted = policy(*me, &others, overlay_flows(), step);
        world.nodes[*me].with(move |d| d.set_traffic(&wanted).unwrap());
    }
}

fn started(count: usize, v6: bool) -> World {
    let world = World::new(count);
    world.overlay(v6);
    for node in &world.nodes {
        node.start(|_| {});
    }
    world
}

fn events(world: &World, node: usize) -> Vec<Event> {
    world.nodes[node].with(|d| std::iter::from_fn(|| d.poll_event()).collect())
}

/// Ping and numbered packets both ways; only ESP on the wire; a rekey under load loses nothing.
fn carries_and_rekeys(v6: bool, udp: bool) {
    let world = started(2, v6);
    assert!(
        world.nodes[0].ping("10.99.0.2"),
        "the overlay itself does not work"
    );
    strict(&world, &[0, 1]);
    let tap = Tap::new(&world.switch);
    assert!(
        !world.nodes[0].ping("10.99.0.2"),
        "clear packets passed in Strict"
    );
    assert_eq!(tap.clear(), 0);
    let first = Pair {
        v6,
        udp,
        ..Pair::new(1, 0, 1)
    };
    first.install(&world);
    first.switch(&world);
    assert!(world.nodes[0].ping("10.99.0.2"));
    assert!(world.nodes[1].ping("10.99.0.1"));
    for node in [0, 1] {
        assert!(events(&world, node).contains(&Event::FirstInbound { child: ChildId(1) }));
    }
    let rate = transfer(&world.nodes[0], &world.nodes[1], "10.99.0.2:5001");
    eprintln!("v6 {v6}, UDP {udp}: {rate:.0} Mbit/s");
    let floods = flood_both(
        &world.nodes[0],
        &world.nodes[1],
        ("10.99.0.1", "10.99.0.2"),
        3000,
    );
    let mut old = first;
    for child in 2..6 {
        pause(150);
        let next = Pair { child, ..first };
        next.install(&world);
        next.switch(&world);
        pause(100);
        old.remove(&world);
        old = next;
    }
    pause(150);
    assert_no_loss(floods, 2000);
    assert_eq!(tap.clear(), 0);
    let carried = if udp { &tap.udp_esp } else { &tap.esp };
    assert!(carried.load(std::sync::atomic::Ordering::Relaxed) > 4000);
    let counters = world.nodes[0].with(|d| d.counters());
    eprintln!("{:?} {:?}", counters.drops, counters.notices);
    let id = |direction| SaId {
        child: ChildId(5),
        direction,
    };
    assert!(counters.sas[&id(SaDirection::Inbound)].packets > 0);
    assert!(counters.sas[&id(SaDirection::Outbound)].packets > 0);
    assert_eq!(counters.sas.len(), 2);
    assert!(events(&world, 0).contains(&Event::FirstInbound { child: ChildId(5) }));
}

#[test]
fn vxlan_over_ipv4() {
    if can_run("vxlan_over_ipv4") {
        carries_and_rekeys(false, false);
    }
}

#[test]
fn vxlan_over_ipv6() {
    if can_run("vxlan_over_ipv6") {
        carries_and_rekeys(true, false);
    }
}

#[test]
fn vxlan_encapsulated_in_udp() {
    if can_run("vxlan_encapsulated_in_udp") {
        carries_and_rekeys(false, true);
    }
}

#[test]
fn vxlan_encapsulated_in_udp_over_ipv6() {
    if can_run("vxlan_encapsulated_in_udp_over_ipv6") {
        carries_and_rekeys(true, true);
    }
}

#[test]
fn switching_on_and_off_under_load_loses_nothing() {
    if !can_run("switching_on_and_off_under_load_loses_nothing") {
        return;
    }
    let world = started(2, false);
    // What Red Hat's systems have: it must not stand in the way, and must come back.
    for node in &world.nodes {
        node.sysctl("ipv4/conf/eth0/rp_filter", "1");
    }
    assert!(world.nodes[0].ping("10.99.0.2"));
    let pair = Pair::new(1, 0, 1);
    pair.install(&world);
    pair.switch(&world);
    let tap = Tap::new(&world.switch);
    let floods = flood_both(
        &world.nodes[0],
        &world.nodes[1],
        ("10.99.0.1", "10.99.0.2"),
        3000,
    );
    for round in 0..3 {
        for step in [Step::Permissive, Step::Strict] {
            for node in [0, 1] {
                // One after the other: for a while one end is ahead.
                let wanted = policy(node, &[1 - node], overlay_flows(), step);
                world.nodes[node].with(move |d| d.set_traffic(&wanted).unwrap());
                pause(60);
            }
        }
        pause(50);
        let before = tap.clear();
        pause(100);
        assert_eq!(
            tap.clear(),
            before,
            "clear packets in Strict, round {round}"
        );
        assert!(tap.esp() > 100);
        for step in [Step::Permissive, Step::Clear] {
            for node in [1, 0] {
                let wanted = policy(node, &[1 - node], overlay_flows(), step);
                world.nodes[node].with(move |d| d.set_traffic(&wanted).unwrap());
                pause(60);
            }
        }
    }
    pause(100);
    assert!(tap.clear() > 100);
    assert_no_loss(floods, 2000);
    for node in &world.nodes {
        let value = node.command("cat /proc/sys/net/ipv4/conf/eth0/rp_filter").1;
        assert_eq!(value.trim(), "1");
    }
}

#[test]
fn strict_drops_clear_packets_both_ways() {
    if !can_run("strict_drops_clear_packets_both_ways") {
        return;
    }
    let world = World::new(3);
    world.overlay(false);
    for node in &world.nodes[..2] {
        node.start(|_| {});
    }
    assert!(world.nodes[2].ping("10.99.0.1"));
    strict(&world, &[0, 1]);
    let pair = Pair::new(1, 0, 1);
    pair.install(&world);
    pair.switch(&world);
    let tap = Tap::new(&world.switch);
    // Outwards: to a node that is no peer, and to any host at all.
    assert!(!world.nodes[0].ping("10.99.0.3"));
    let socket = world.nodes[0].bind("192.0.2.1:0");
    let _ = socket.send_to(b"clear", ("192.0.2.77", PORT));
    assert_eq!(tap.clear(), 0);
    assert!(world.nodes[0].drops("no_outbound_sa") > 0);
    // Inwards: the third node's clear packets, and forged ones in the peer's name.
    assert!(!world.nodes[2].ping("10.99.0.1"));
    assert_eq!(tap.clear(), 0);
    assert!(tap.third.load(std::sync::atomic::Ordering::Relaxed) > 0);
    let before = world.nodes[0].drops("clear_inbound");
    assert!(before > 0);
    assert!(world.nodes[0].ping("10.99.0.2"));
    // A rule that another firewall adds cannot let them in.
    let accept = "nft add table inet other ; add chain inet other in { type filter hook input priority -400 ; policy accept ; } ; add rule inet other in udp dport 4789 accept";
    assert!(world.nodes[0].command(accept).0);
    assert!(!world.nodes[2].ping("10.99.0.1"));
    assert!(world.nodes[0].drops("clear_inbound") > before);
}

#[test]
fn packets_larger_than_the_path_pass_in_fragments() {
    if !can_run("packets_larger_than_the_path_pass_in_fragments") {
        return;
    }
    for udp in [false, true] {
        let world = started(2, false);
        strict(&world, &[0, 1]);
        let pair = Pair {
            udp,
            ..Pair::new(1, 0, 1)
        };
        pair.install(&world);
        pair.switch(&world);
        for node in &world.nodes {
            let mut nl = node.netlink();
            let vx0 = nl.link_index("vx0").unwrap();
            nl.set_mtu(vx0, 1450).unwrap();
        }
        // 1450 and the VXLAN's 50 fill the path alone.
        let (ok, text) = world.nodes[0].command("ping -c 3 -i 0.05 -W 1 -M do -s 1422 10.99.0.2");
        assert!(ok && text.contains(" 0% packet loss"), "{text}");
        let notices = world.nodes[0].with(|d| d.counters().notices);
        assert!(notices["fragmented"] >= 3, "{notices:?}");
        assert!(world.nodes[0].ping("10.99.0.2"));
    }
}

#[test]
fn events_say_what_the_agent_must_know() {
    if !can_run("events_say_what_the_agent_must_know") {
        return;
    }
    let world = started(2, false);
    strict(&world, &[0, 1]);
    let (one, two) = (address(0, false), address(1, false));
    // IKE on port 4500, both ways.
    world.nodes[0].with(move |d| {
        d.send_ike((one, 4500).into(), (two, 4500).into(), b"an IKE message")
            .unwrap();
    });
    pause(100);
    let expected = Event::Ike {
        local: (two, 4500).into(),
        remote: (one, 4500).into(),
        message: b"an IKE message".to_vec(),
    };
    assert!(events(&world, 1).contains(&expected));
    // A keepalive leaves from the same socket and is nobody's message.
    world.nodes[0].with(move |d| {
        d.send_keepalive((one, 4500).into(), (two, 4500).into())
            .unwrap();
    });
    pause(100);
    let notices = world.nodes[1].with(|d| d.counters().notices);
    assert_eq!(notices.get("keepalive"), Some(&1));
    // A soft limit is told once, and sending goes on.
    let pair = Pair {
        udp: true,
        soft_packets: 3,
        ..Pair::new(1, 0, 1)
    };
    pair.install(&world);
    pair.switch(&world);
    assert!(world.nodes[0].ping("10.99.0.2") && world.nodes[0].ping("10.99.0.2"));
    let told = events(&world, 0);
    assert_eq!(
        told.iter()
            .filter(|e| **e == Event::SoftLimit { child: ChildId(1) })
            .count(),
        1
    );
    // The first node believes that its peer is elsewhere: it says so, and does not follow.
    let elsewhere = Encapsulation::Udp {
        local: (one, 4500).into(),
        remote: (two, 4999).into(),
    };
    world.nodes[0].with(move |d| d.rebind(ChildId(1), elsewhere).unwrap());
    assert!(!world.nodes[1].ping("10.99.0.1"));
    let moved = Event::PeerMoved {
        child: ChildId(1),
        remote: (two, 4500).into(),
    };
    assert_eq!(events(&world, 0).iter().filter(|e| **e == moved).count(), 1);
    world.nodes[0].with(move |d| d.rebind(ChildId(1), pair.encapsulation(0, 1)).unwrap());
    assert!(world.nodes[1].ping("10.99.0.1"));
    // An SPI that is not ours.
    world.nodes[1].with(|d| d.remove(ChildId(1)).unwrap());
    assert!(!world.nodes[0].ping("10.99.0.2"));
    let spi = pair.spi(1);
    assert!(events(&world, 1).contains(&Event::UnknownSpi { spi, remote: one }));
    assert!(world.nodes[1].drops("unknown_spi") > 0);
}

#[test]
fn hostile_datagrams_are_counted_and_the_pair_lives_on() {
    if !can_run("hostile_datagrams_are_counted_and_the_pair_lives_on") {
        return;
    }
    let world = World::new(3);
    world.overlay(false);
    for node in &world.nodes[..2] {
        node.start(|_| {});
    }
    strict(&world, &[0, 1]);
    let pair = Pair {
        udp: true,
        ..Pair::new(1, 0, 1)
    };
    pair.install(&world);
    pair.switch(&world);
    let socket = world.nodes[2].bind("192.0.2.3:0");
    let spi = pair.spi(0).0.to_be_bytes();
    let mut seed = 1u32;
    for len in (0..300).chain([9000, 40_000]) {
        let mut bytes: Vec<u8> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect();
        if len % 2 == 0 && len >= 4 {
            bytes[..4].copy_from_slice(&spi);
        }
        let _ = socket.send_to(&bytes, ("192.0.2.1", 4500));
    }
    pause(200);
    assert!(world.nodes[0].ping("10.99.0.2"));
    assert!(world.nodes[0].drops("esp_bad_integrity") > 50);
    assert!(world.nodes[0].drops("unknown_spi") > 50);
}

#[test]
fn a_second_agent_and_a_taken_port_are_named() {
    if !can_run("a_second_agent_and_a_taken_port_are_named") {
        return;
    }
    let world = World::new(1);
    let node = &world.nodes[0];
    node.start(|_| {});
    let state = node.state.path().to_owned();
    let error = node.run(move |_| {
        let options = testudo_datapath_user::Options::new(state);
        testudo_datapath_user::UserDatapath::new(options)
            .err()
            .unwrap()
            .to_string()
    });
    assert!(error.contains("another agent"), "{error}");
    node.run(|datapath| *datapath = None);
    std::thread::sleep(Duration::from_millis(50));
    let taken = node.bind("0.0.0.0:4500");
    let state = node.state.path().to_owned();
    let error = node.run(move |_| {
        let options = testudo_datapath_user::Options::new(state);
        testudo_datapath_user::UserDatapath::new(options)
            .err()
            .unwrap()
            .to_string()
    });
    assert!(error.contains("4500"), "{error}");
    drop(taken);
    node.start(|_| {});
}

#[test]
fn a_path_that_shrinks_costs_no_packet_and_gso_goes_on_below_it() {
    if !can_run("a_path_that_shrinks_costs_no_packet_and_gso_goes_on_below_it") {
        return;
    }
    let world = started(2, false);
    strict(&world, &[0, 1]);
    let pair = Pair {
        udp: true,
        ..Pair::new(1, 0, 1)
    };
    pair.install(&world);
    pair.switch(&world);
    assert!(world.nodes[0].ping("10.99.0.2"));
    // The SAs were installed for 1500: batches of larger datagrams are now refused by the kernel.
    for node in &world.nodes {
        let mut nl = node.netlink();
        let eth0 = nl.link_index("eth0").unwrap();
        nl.set_mtu(eth0, 1300).unwrap();
    }
    transfer(&world.nodes[0], &world.nodes[1], "10.99.0.2:5001");
    let counters = world.nodes[0].with(|d| d.counters());
    let fallbacks = counters.notices["gso_fallback"];
    // Once refused, the size is remembered: not every batch is tried in vain.
    assert!((1..100).contains(&fallbacks), "{counters:?}");
    assert!(!counters.drops.contains_key("send_failed"), "{counters:?}");
}
