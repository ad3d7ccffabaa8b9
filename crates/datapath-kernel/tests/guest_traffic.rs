//! Packets between two nodes with the kernel datapath: sealed, never clear, never lost.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::wire::{Capture, Sink, Source, Stream};
use common::*;
use testudo_datapath::{Datapath, Event};
use testudo_model::{
    ClearTraffic, Outbound, ProtectedFlows, SaMode, TrafficPolicy, TrafficSelector,
};
use testudo_netlink::XfrmReplay;

/// Some packets each way through a pair; what was on the wire must be ESP alone.
fn exchange(world: &mut World, child: &Child) {
    let (a, b) = (world.a.address(child.v6), world.b.address(child.v6));
    let captures = [Capture::start(&world.a), Capture::start(&world.b)];
    let sinks = [Sink::start(&world.b, b), Sink::start(&world.a, a)];
    let mut sources = [Source::new(&world.a, a, b), Source::new(&world.b, b, a)];
    for (source, sink) in sources.iter_mut().zip(&sinks) {
        source.send(200);
        assert_eq!(sink.wait(200), 200);
    }
    for capture in captures {
        let (esp, esp_in_udp, clear) = capture.finish().numbers();
        let (wanted, not) = if child.udp {
            (esp_in_udp, esp)
        } else {
            (esp, esp_in_udp)
        };
        assert_eq!((wanted, not, clear), (200, 0, 0));
    }
    let id = child.child();
    for node in [&mut world.a, &mut world.b] {
        let (inbound, outbound) = node.dp(|dp| dp.pair_counters(id));
        assert_eq!((inbound.packets, outbound.packets), (200, 200));
        assert_eq!((inbound.sequence, outbound.sequence), (200, 200));
    }
}

#[test]
fn the_overlay_passes_as_esp_alone_in_both_families_and_in_udp() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    for (id, (v6, udp)) in [(false, false), (true, false), (false, true), (true, true)]
        .into_iter()
        .enumerate()
    {
        let child = Child {
            v6,
            udp,
            ..Child::new(1 + id as u64)
        };
        world.connect(&child);
        exchange(&mut world, &child);
        world.remove(&child);
    }
}

/// Make before break, 50 times under load.
#[test]
fn fifty_switches_under_load_lose_nothing_and_show_nothing() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let mut child = Child::new(1);
    world.connect(&child);
    let captures = [Capture::start(&world.a), Capture::start(&world.b)];
    let (a, b) = (world.a.v4, world.b.v4);
    let sinks = [Sink::start(&world.b, b), Sink::start(&world.a, a)];
    let streams = [
        Stream::start(Source::new(&world.a, a, b), 2000),
        Stream::start(Source::new(&world.b, b, a), 2000),
    ];
    for id in 2..=51 {
        let next = Child::new(id);
        world.install(&next);
        world.use_outbound(&next);
        std::thread::sleep(Duration::from_millis(20));
        world.remove(&child);
        child = next;
    }
    for (stream, sink) in streams.into_iter().zip(sinks) {
        let source = stream.stop();
        assert!(source.refused.is_empty(), "{:?}", source.refused);
        assert_eq!(sink.wait(source.sent()), source.sent());
        assert!(source.sent() > 1000, "only {} packets", source.sent());
        sink.finish();
    }
    for capture in captures {
        assert_eq!(capture.finish().numbers().2, 0, "clear packets");
    }
    std::thread::sleep(Duration::from_millis(1200));
    let left = world.a.xfrm().sas(|sa| Some(sa.sa.id)).unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// Moves the sequence numbers of what a sends to b on, at both ends.
fn move_on(world: &World, child: &Child, to: u64) {
    let spi = child.spis().1;
    for node in [&world.a, &world.b] {
        let mut xfrm = node.xfrm();
        let found = xfrm.sas(|l| (l.sa.id.spi == spi).then_some((l.sa.id, l.sa.replay)));
        let (id, replay) = found.unwrap()[0];
        let inbound = replay.window > 1;
        let moved = XfrmReplay {
            sent: if inbound { 0 } else { to },
            received: if inbound { to } else { 0 },
            ..replay
        };
        xfrm.danger_set_replay(&id, &moved).unwrap();
    }
}

/// L97: 64-bit sequence numbers go on where 32 bits end.
#[test]
fn extended_sequence_numbers_pass_the_end_of_32_bits() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    let start = (1u64 << 32) - 100;
    move_on(&world, &child, start);
    let sink = Sink::start(&world.b, world.b.v4);
    let mut source = Source::new(&world.a, world.a.v4, world.b.v4);
    source.send(300);
    assert_eq!(sink.wait(300), 300);
    let id = child.child();
    let (_, outbound) = world.a.dp(|dp| dp.pair_counters(id));
    let (inbound, _) = world.b.dp(|dp| dp.pair_counters(id));
    assert_eq!(
        (outbound.sequence, inbound.sequence),
        (start + 300, start + 300)
    );
}

/// L81: where no peer is known yet, or any more, forged clear packets are dropped as well, whatever
/// rule of the host takes them first: policies ask no rule.
#[test]
fn without_a_peer_clear_packets_are_dropped_too() {
    let mut world = world();
    let sinks = [false, true].map(|v6| Sink::start(&world.b, world.b.address(v6)));
    let send = |world: &World, count| {
        for v6 in [false, true] {
            let (a, b) = (world.a.address(v6), world.b.address(v6));
            Source::new(&world.a, a, b).send(count);
        }
    };
    // The neighbours know each other from here on.
    send(&world, 1);
    assert_eq!(sinks.each_ref().map(|sink| sink.wait(1)), [1, 1]);
    let mut policy = overlay(&world.b, &world.a, "a", ClearTraffic::Drop);
    policy.peers.clear();
    world.b.dp(|dp| dp.set_traffic(&policy)).unwrap();
    let capture = Capture::start(&world.a);
    send(&world, 50);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(capture.finish().numbers().2, 100);
    assert_eq!(sinks.each_ref().map(Sink::got), [1, 1]);
}

/// L97: without them none is sent past the end: a number that comes twice would be an IV that does.
#[test]
fn sequence_numbers_of_32_bits_end_and_never_begin_again() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child {
        esn: false,
        ..Child::new(1)
    };
    world.connect(&child);
    let last = u64::from(u32::MAX);
    move_on(&world, &child, last - 100);
    let capture = Capture::start(&world.a);
    let sink = Sink::start(&world.b, world.b.v4);
    let mut source = Source::new(&world.a, world.a.v4, world.b.v4);
    source.send(300);
    assert_eq!(sink.wait(100), 100);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sink.got(), 100);
    let (esp, _, clear) = capture.finish().numbers();
    assert_eq!((esp, clear), (100, 0));
    let id = child.child();
    let (inbound, _) = world.b.dp(|dp| dp.pair_counters(id));
    assert_eq!(inbound.sequence, last);
}

/// Without an SA nothing leaves, and forged clear packets are not let in (L80, L81, L118).
#[test]
fn strict_lets_no_clear_packet_out_or_in() {
    let mut world = world();
    let captures = [Capture::start(&world.a), Capture::start(&world.b)];
    let sinks: Vec<Sink> = [false, true]
        .map(|v6| Sink::start(&world.b, world.b.address(v6)))
        .into();
    let send = |world: &World, count| {
        for v6 in [false, true] {
            let (a, b) = (world.a.address(v6), world.b.address(v6));
            Source::new(&world.a, a, b).send(count);
        }
    };
    send(&world, 1);
    assert_eq!((sinks[0].wait(1), sinks[1].wait(1)), (1, 1));
    let before = captures[0].settled().2;
    world.seal(ClearTraffic::Drop);
    send(&world, 50);
    // No packet has asked for an SA, and no larval SA stands.
    assert_eq!(world.a.xfrm().sas(|sa| Some(sa.sa.id)).unwrap(), []);
    assert_eq!(captures[0].settled().2, before, "clear packets left");
    // Now a is open again, and b is not.
    world.a.dp(|dp| dp.clear()).unwrap();
    send(&world, 50);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(captures[0].settled().2, before + 100);
    assert_eq!(
        (sinks[0].got(), sinks[1].got()),
        (1, 1),
        "clear packets came in"
    );
    let drops = world.b.dp(|dp| dp.counters()).drops;
    assert!(!drops.is_empty(), "{drops:?}");
}

/// Packets of a node to itself never leave it, and are none of ours.
#[test]
fn packets_to_the_node_itself_pass() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    for v6 in [false, true] {
        let own = world.a.address(v6);
        let sink = Sink::start(&world.a, own);
        Source::new(&world.a, own, own).send(10);
        assert_eq!(sink.wait(10), 10, "IPv6: {v6}");
    }
}

/// Permissive: clear packets come in beside sealed ones.
#[test]
fn permissive_takes_both() {
    let mut world = world();
    world.seal(ClearTraffic::Pass);
    let child = Child::new(1);
    world.connect(&child);
    let capture = Capture::start(&world.a);
    let sink = Sink::start(&world.b, world.b.v4);
    let mut source = Source::new(&world.a, world.a.v4, world.b.v4);
    source.send(10);
    assert_eq!(sink.wait(10), 10);
    assert_eq!(capture.settled(), (10, 0, 0));
    // A peer that does not seal yet.
    world.a.dp(|dp| dp.clear()).unwrap();
    source.send(10);
    assert_eq!(sink.wait(20), 20);
    assert_eq!(capture.settled(), (10, 0, 10));
}

/// One SA opens the overlay's packets and no others.
#[test]
fn nothing_but_the_overlay_comes_out_of_an_sa() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    // a seals another port too, which it never does by itself.
    let mut xfrm = world.a.xfrm();
    let (to_b, b) = (child.spis().1, world.b.v4);
    let mut policy = xfrm
        .policies()
        .unwrap()
        .into_iter()
        .find(|p| p.templates.iter().any(|t| t.spi == to_b) && p.selector.destination.addr() == b)
        .unwrap();
    policy.selector.destination_port.value = 53;
    xfrm.add_policy(&policy).unwrap();
    let other = common::wire::socket(&world.b, (b, 53).into());
    other
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let from = common::wire::socket(&world.a, (world.a.v4, 0).into());
    let capture = Capture::start(&world.a);
    from.send_to(&[1; 64], (b, 53)).unwrap();
    assert!(
        other.recv(&mut [0; 100]).is_err(),
        "a packet to another port came out"
    );
    assert_eq!(capture.finish().numbers().0, 1, "it was not sealed at all");
}

/// Pods routed between nodes, through tunnels, forwarded on both sides.
#[test]
fn pods_speak_through_a_tunnel() {
    let mut world = world();
    let pods = [("10.244.1.2", "10.244.1.1"), ("10.244.2.2", "10.244.2.1")];
    let netns = [new_netns(), new_netns()];
    let mut nodes = Vec::new();
    for (i, (node, pod)) in [&world.a, &world.b].into_iter().zip(&netns).enumerate() {
        attach_pod(node, pod, pods[i].0, pods[i].1);
        let other = if i == 0 { world.b.v4 } else { world.a.v4 };
        node.command(&format!("ip route add 10.244.{}.0/24 via {other}", 2 - i));
        nodes.push(Node {
            netns: open_again(pod),
            v4: ip(pods[i].0),
            v6: ip("::1"),
            datapath: None,
        });
    }
    let policy = |own: usize, node: &Node, other: &Node, name: &str| {
        let net = |i: usize| format!("10.244.{}.0/24", i + 1).parse().unwrap();
        let mut policy: TrafficPolicy = overlay(node, other, name, ClearTraffic::Drop);
        policy.flows = ProtectedFlows::Routed {
            local: vec![net(own)],
            cluster: vec!["10.244.0.0/16".parse().unwrap()],
        };
        policy.peers[0].pod_cidrs = vec![net(1 - own)];
        policy.peers[0].outbound = Outbound::Encrypt;
        policy
    };
    let of_a = policy(0, &world.a, &world.b, "b");
    let of_b = policy(1, &world.b, &world.a, "a");
    world.a.dp(|dp| dp.set_traffic(&of_a)).unwrap();
    world.b.dp(|dp| dp.set_traffic(&of_b)).unwrap();
    let captures = [Capture::start(&world.a), Capture::start(&world.b)];
    let sink = Sink::start(&nodes[1], nodes[1].v4);
    let back = Sink::start(&nodes[0], nodes[0].v4);
    let mut there = Source::new(&nodes[0], nodes[0].v4, nodes[1].v4);
    let mut here = Source::new(&nodes[1], nodes[1].v4, nodes[0].v4);
    there.send(10);
    let side = |node: &Node, net: &str| {
        vec![
            TrafficSelector::prefix(net.parse().unwrap()),
            TrafficSelector::prefix(node.v4.into()),
        ]
    };
    let child = Child {
        mode: SaMode::Tunnel,
        a_side: side(&world.a, "10.244.1.0/24"),
        b_side: side(&world.b, "10.244.2.0/24"),
        ..Child::new(1)
    };
    world.connect(&child);
    there.send(100);
    here.send(100);
    assert_eq!((sink.wait(100), back.wait(100)), (100, 100));
    let event = world.b.event(|e| matches!(e, Event::FirstInbound { .. }));
    assert_eq!(
        event,
        Event::FirstInbound {
            child: child.child()
        }
    );
    for capture in captures {
        let (esp, _, clear) = capture.finish().numbers();
        assert_eq!((esp, clear), (100, 0));
    }
}

/// L86: the host's own rules rewrite addresses and marks of what leaves, before IPsec sees it. With
/// MASQUERADE for everything, and other programs' marks, the overlay is sealed under its own addresses;
/// what gets another node's address is dropped, and never clear.
#[test]
fn nat_and_marks_of_the_host_change_neither_sealing_nor_source() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let rules = |nat: &str| {
        format!(
            "table inet others {{
               chain marks_out {{
                 type route hook output priority mangle
                 meta mark set 0x4000
               }}
               chain marks_post {{
                 type filter hook postrouting priority mangle
                 meta mark set 0x99
               }}
               chain nat {{
                 type nat hook postrouting priority srcnat
                 oifname \"eth0\" {nat}
               }}
             }}"
        )
    };
    let nft = testudo_netlink::Nft::new("nft");
    let hostile = |node: &Node, nat: &str| node.run(|| nft.apply(&rules(nat)));
    for node in [&world.a, &world.b] {
        if let Err(error) = hostile(node, "masquerade") {
            // User-mode-linux has no nftables for IP and must refuse; the other kernels go on.
            let kernel = std::env::var("TESTUDO_GUEST").unwrap();
            assert_eq!(kernel, "uml", "{error}");
            return;
        }
    }
    for (id, v6) in [(1, false), (2, true)] {
        let child = Child {
            v6,
            ..Child::new(id)
        };
        world.connect(&child);
        exchange(&mut world, &child);
        // The source is the node's own.
        let (from, to) = (world.a.address(v6), world.b.address(v6));
        let receiver = common::wire::socket(&world.b, (to, PORT).into());
        let limit = Some(Duration::from_secs(5));
        receiver.set_read_timeout(limit).unwrap();
        Source::new(&world.a, from, to).send(1);
        let (_, source) = receiver.recv_from(&mut [0; 200]).unwrap();
        assert_eq!(source.ip(), from);
    }
    for (v6, other) in [(false, "ip to 10.9.0.77"), (true, "ip6 to fd09::77")] {
        let nft = testudo_netlink::Nft::new("nft");
        world.a.run(|| nft.remove_table("others")).unwrap();
        hostile(&world.a, &format!("snat {other}")).unwrap();
        let capture = Capture::start(&world.a);
        let (from, to) = (world.a.address(v6), world.b.address(v6));
        Source::new(&world.a, from, to).send(50);
        let (_, _, clear) = capture.settled();
        assert_eq!(clear, 0);
    }
}

fn open_again(netns: &std::os::fd::OwnedFd) -> std::os::fd::OwnedFd {
    netns.try_clone().unwrap()
}

/// A pod's namespace on a veth pair of a node.
fn attach_pod(node: &Node, pod: &std::os::fd::OwnedFd, address: &str, gateway: &str) {
    use std::os::fd::AsFd;
    let mut here = testudo_netlink::Netlink::open_in(node.netns.as_fd()).unwrap();
    let mut there = testudo_netlink::Netlink::open_in(pod.as_fd()).unwrap();
    here.create_veth("pod0", "peer0", Some(pod.as_fd()))
        .unwrap();
    for (netlink, name, own) in [(&mut here, "pod0", gateway), (&mut there, "peer0", address)] {
        let link = netlink.link_index(name).unwrap();
        netlink
            .add_address(link, format!("{own}/24").parse().unwrap())
            .unwrap();
        netlink.set_up(link).unwrap();
    }
    let route = testudo_netlink::Route::via("0.0.0.0/0".parse().unwrap(), gateway.parse().unwrap());
    there.add_route(&route).unwrap();
    node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
}
