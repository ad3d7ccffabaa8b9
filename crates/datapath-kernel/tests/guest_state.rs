//! What stands in the kernel: read back as asked, others' left alone, found again after a restart.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::wire::{Capture, Sink, Source, Stream};
use common::*;
use testudo_datapath::{Datapath, DatapathError, Event};
use testudo_datapath_kernel::plan::is_ours;
use testudo_datapath_kernel::{Options, is_our_reqid};
use testudo_model::{
    ChildId, ClearTraffic, Encapsulation, InboundSaSpec, OutboundSaSpec, PeerTraffic, SaMode,
    TrafficPolicy, TrafficSelector,
};
use testudo_netlink::{XfrmDirection, XfrmEncapsulation, XfrmMode, XfrmSaId};

fn id(node: &Node, spi: u32) -> XfrmSaId {
    XfrmSaId {
        destination: node.v4,
        spi,
        mark: (0, 0),
    }
}

/// L100: window, ESN, direction, limits, ports and mark stand in the kernel as they were asked.
#[test]
fn sas_are_read_back_as_they_were_asked_for() {
    let mut world = bare_world();
    let options = Options {
        output_mark: Some((0x40, 0xf0)),
        hard_time: Some(Duration::from_secs(3600)),
        ..Options::default()
    };
    world.a.open(options);
    world.b.open(Options::default());
    world.seal(ClearTraffic::Drop);
    let directions = world.a.dp(|dp| dp.facts()).directions;
    let mut child = Child {
        udp: true,
        ..Child::new(1)
    };
    child.limits.soft_packets = 1000;
    child.limits.soft_bytes = 1_000_000;
    world.install(&child);
    let (to_a, to_b) = child.spis();
    let mut xfrm = world.a.xfrm();
    let inbound = xfrm.sa(&id(&world.a, to_a)).unwrap().unwrap().sa;
    let outbound = xfrm.sa(&id(&world.b, to_b)).unwrap().unwrap().sa;
    assert_eq!((inbound.source, outbound.source), (world.b.v4, world.a.v4));
    assert_eq!(inbound.reqid, outbound.reqid);
    assert!(is_our_reqid(inbound.reqid));
    let told = |direction| directions.then_some(direction);
    assert_eq!(inbound.direction, told(XfrmDirection::In));
    assert_eq!(outbound.direction, told(XfrmDirection::Out));
    assert_eq!((inbound.replay.window, inbound.replay.esn), (1024, true));
    assert_eq!(outbound.replay.window, u32::from(!directions));
    assert!(outbound.replay.esn);
    assert_eq!(outbound.limits.soft_packets, Some(1000));
    assert_eq!(outbound.limits.soft_bytes, Some(1_000_000));
    assert_eq!(outbound.limits.hard_packets, Some(1 << 46));
    assert_eq!(outbound.limits.hard_bytes, Some(1 << 51));
    assert_eq!(
        (inbound.limits.hard_packets, inbound.limits.hard_bytes),
        (None, None)
    );
    for sa in [&inbound, &outbound] {
        assert_eq!(sa.mode, XfrmMode::Transport);
        assert_eq!(sa.limits.hard_time, Some(Duration::from_secs(3600)));
        let ports = XfrmEncapsulation {
            source_port: 4500,
            destination_port: 4500,
        };
        assert_eq!(sa.encapsulation, Some(ports));
        assert_eq!(sa.algorithm.names(), "rfc4106(gcm(aes)) 128");
    }
    assert_eq!(outbound.output_mark, Some((0x40, 0xf0)));
    assert_eq!(inbound.output_mark, None);
    assert_eq!(inbound.mapping_interval, Some(Duration::from_secs(1)));
}

/// Everything that is not ours, as `ip` lists it.
fn foreign(node: &Node) -> String {
    let mut xfrm = node.xfrm();
    let mut policies = xfrm.policies().unwrap();
    policies.retain(|policy| !is_ours(policy));
    policies.sort();
    let mut sas = xfrm
        .sas(|l| (!is_our_reqid(l.sa.reqid)).then(|| format!("{:?}", l.sa)))
        .unwrap();
    sas.sort();
    format!("{policies:#?}\n{sas:#?}")
}

/// L90: SAs and policies of another daemon survive all that we do.
#[test]
fn what_others_made_survives_every_operation() {
    let mut world = bare_world();
    let key = format!("0x{}", "ab".repeat(36));
    for line in [
        format!(
            "ip xfrm state add src 10.9.0.2 dst 10.9.0.1 proto esp spi 0x99 reqid 5 mode tunnel \
             aead rfc4106(gcm(aes)) {key} 128"
        ),
        "ip xfrm policy add src 10.50.0.0/16 dst 10.51.0.0/16 dir out priority 366911 tmpl \
         src 10.9.0.1 dst 10.9.0.2 proto esp reqid 5 mode tunnel"
            .into(),
        "ip xfrm policy add src 10.51.0.0/16 dst 10.50.0.0/16 dir in priority 58740".into(),
        "ip xfrm policy add src 10.51.0.0/16 dst 10.50.0.0/16 dir fwd action block".into(),
    ] {
        world.a.command(&line);
    }
    let theirs = foreign(&world.a);
    assert_eq!(theirs.matches("XfrmPolicy {").count(), 3, "{theirs}");
    world.a.open(Options::default());
    world.b.open(Options::default());
    assert_eq!(foreign(&world.a), theirs);
    for clear in [ClearTraffic::Pass, ClearTraffic::Drop, ClearTraffic::Pass] {
        world.seal(clear);
        assert_eq!(foreign(&world.a), theirs);
    }
    let child = Child::new(1);
    world.connect(&child);
    world.connect(&Child::new(2));
    world.remove(&child);
    assert_eq!(foreign(&world.a), theirs);
    world.a.dp(|dp| dp.clear()).unwrap();
    assert_eq!(foreign(&world.a), theirs);
    // And nothing of ours is left.
    let mut xfrm = world.a.xfrm();
    assert!(!xfrm.policies().unwrap().iter().any(is_ours));
    assert_eq!(xfrm.sas(|l| Some(l.sa.id)).unwrap(), [id(&world.a, 0x99)]);
}

/// A policy of somebody else in the place of one of ours is named and stays.
#[test]
fn a_conflict_is_named_and_nothing_is_overwritten() {
    let mut world = bare_world();
    world.a.command(
        "ip xfrm policy add src 10.9.0.1/32 dst 10.9.0.2/32 proto udp dport 6081 dir out \
         priority 366911 tmpl src 10.9.0.1 dst 10.9.0.2 proto esp reqid 5 mode transport",
    );
    let theirs = foreign(&world.a);
    world.a.open(Options::default());
    let policy = overlay(&world.a, &world.b, "b", ClearTraffic::Drop);
    let error = world.a.dp(|dp| dp.set_traffic(&policy)).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, DatapathError::Partly { .. }));
    for part in ["10.9.0.2/32", "366911", "reqid 5"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(foreign(&world.a), theirs);
}

/// L61, L82: the kernel refuses an SA: its packets wait, closed; nothing half-done is left, and a
/// next try works.
#[test]
fn a_refused_sa_opens_nothing_and_leaves_nothing() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    let (to_a, to_b) = child.spis();
    let key = format!("0x{}", "ab".repeat(36));
    for (source, destination, spi) in [
        ("10.9.0.2", "10.9.0.1", to_a),
        ("10.9.0.1", "10.9.0.2", to_b),
    ] {
        world.a.command(&format!(
            "ip xfrm state add src {source} dst {destination} proto esp spi {spi} reqid 5 \
             mode transport aead rfc4106(gcm(aes)) {key} 128"
        ));
    }
    let theirs = foreign(&world.a);
    let (inbound, outbound) = child.specs(&world.a, &world.b, true);
    let error = world.a.dp(|dp| dp.install_inbound(inbound)).unwrap_err();
    assert!(
        error.to_string().contains("install an inbound SA"),
        "{error}"
    );
    assert!(error.to_string().contains("exists"), "{error}");
    let error = world.a.dp(|dp| dp.install_outbound(outbound)).unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
    let id = child.child();
    assert!(world.a.dp(|dp| dp.use_outbound(id)).is_err());
    let capture = Capture::start(&world.a);
    Source::new(&world.a, world.a.v4, world.b.v4).send(20);
    assert_eq!(capture.finish().numbers(), (0, 0, 0));
    world.a.dp(|dp| dp.remove(id)).unwrap();
    assert_eq!(foreign(&world.a), theirs);
    let next = Child::new(2);
    world.connect(&next);
    let sink = Sink::start(&world.b, world.b.v4);
    Source::new(&world.a, world.a.v4, world.b.v4).send(20);
    assert_eq!(sink.wait(20), 20);
}

/// An agent that is killed and started again: its SAs carry packets all the time, are replaced,
/// and nothing of the earlier run is left.
#[test]
fn a_restart_loses_nothing_and_leaves_nothing() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let old = Child::new(1);
    world.connect(&old);
    let captures = [Capture::start(&world.a), Capture::start(&world.b)];
    let (a, b) = (world.a.v4, world.b.v4);
    let sinks = [Sink::start(&world.b, b), Sink::start(&world.a, a)];
    let streams = [
        Stream::start(Source::new(&world.a, a, b), 500),
        Stream::start(Source::new(&world.b, b, a), 500),
    ];
    std::thread::sleep(Duration::from_millis(300));
    let (options, policy) = world.kill_and_close();
    world.a.open(options);
    assert_eq!(world.a.dp(|dp| dp.leftovers()), 2);
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    assert_eq!(world.a.dp(|dp| dp.leftovers()), 2);
    std::thread::sleep(Duration::from_millis(300));
    // The successor: b still sends on the old one for a moment.
    let new = Child::new(2);
    world.install(&new);
    let child = new.child();
    world.a.dp(|dp| dp.use_outbound(child)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    world.b.dp(|dp| dp.use_outbound(child)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    for (stream, sink) in streams.into_iter().zip(&sinks) {
        let source = stream.stop();
        assert!(source.refused.is_empty(), "{:?}", source.refused);
        assert_eq!(sink.wait(source.sent()), source.sent());
    }
    for capture in captures {
        assert_eq!(capture.finish().numbers().2, 0, "clear packets");
    }
    std::thread::sleep(Duration::from_millis(1200));
    let (to_a, to_b) = new.spis();
    let mut expected = vec![
        id(&world.a, to_a),
        id(&world.b, to_b),
        id(&world.a, old.spis().0),
    ];
    expected.sort();
    let left = |world: &World| {
        let mut sas = world.a.xfrm().sas(|l| Some(l.sa.id)).unwrap();
        sas.sort();
        sas
    };
    assert_eq!(left(&world), expected);
    // The old inbound one goes when the packets on their way have come in.
    std::thread::sleep(Duration::from_secs(30));
    expected.retain(|sa| sa.spi != old.spis().0);
    assert_eq!(left(&world), expected);
}

/// The same with a child of each family: the first successor takes nothing from the other family.
#[test]
fn a_restart_with_children_of_both_families_loses_nothing() {
    let mut world = world();
    let ends = [(world.a.v4, world.b.v4), (world.a.v6, world.b.v6)];
    // An IPv6 address is the node's own when no neighbour has said otherwise for a second.
    for (from, to) in ends {
        let sink = Sink::start(&world.b, to);
        Source::new(&world.a, from, to).send(1);
        assert_eq!(sink.wait(1), 1);
    }
    world.seal(ClearTraffic::Drop);
    let child = |id, v6| Child {
        v6,
        ..Child::new(id)
    };
    let old = [child(1, false), child(2, true)];
    old.iter().for_each(|child| world.connect(child));
    let capture = Capture::start(&world.a);
    let sinks = ends.map(|(_, to)| Sink::start(&world.b, to));
    let streams = ends.map(|(from, to)| Stream::start(Source::new(&world.a, from, to), 300));
    std::thread::sleep(Duration::from_millis(300));
    let (options, policy) = world.kill_and_close();
    world.a.open(options);
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    assert_eq!(world.a.dp(|dp| dp.leftovers()), 4);
    let new = [child(11, true), child(12, false)];
    for next in &new {
        world.install(next);
        let id = next.child();
        assert!(world.a.dp(|dp| dp.follows_earlier_run(id)));
        world.use_outbound(next);
        std::thread::sleep(Duration::from_millis(1500));
    }
    for (stream, sink) in streams.into_iter().zip(&sinks) {
        let source = stream.stop();
        assert!(source.refused.is_empty(), "{:?}", source.refused);
        assert!(source.sent() > 100, "only {} packets", source.sent());
        assert_eq!(sink.wait(source.sent()), source.sent());
    }
    assert_eq!(capture.finish().numbers().2, 0, "clear packets");
    let seals = |node: &Node| {
        let all = node.xfrm().sas(|l| Some(l.sa.id)).unwrap();
        let to_b = [world.b.v4, world.b.v6];
        all.into_iter()
            .filter(|id| to_b.contains(&id.destination))
            .collect::<Vec<_>>()
    };
    let mut standing = seals(&world.a);
    standing.sort();
    let mut wanted = [
        id(&world.b, new[1].spis().1),
        XfrmSaId {
            destination: world.b.v6,
            ..id(&world.b, new[0].spis().1)
        },
    ];
    wanted.sort();
    assert_eq!(standing, wanted);
}

/// SAs of a peer that is not wanted any more go when the policy says so; nor does another node get
/// them that has its addresses now, or anybody when nothing says whose they are.
#[test]
fn leftovers_of_a_stranger_go_at_once() {
    for (kept, now) in [(Some("b"), None), (Some("b"), Some("c")), (None, Some("b"))] {
        let mut world = world();
        world.seal(ClearTraffic::Drop);
        world.connect(&Child::new(1));
        world.a.datapath = None;
        let of = |name| overlay(&world.a, &world.b, name, ClearTraffic::Drop);
        let mut policy = of(now.unwrap_or("b"));
        if now.is_none() {
            policy.peers.clear();
        }
        let kept = kept.map(of);
        world.a.open(Options {
            kept,
            ..Options::default()
        });
        assert_eq!(world.a.dp(|dp| dp.leftovers()), 2);
        world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
        assert_eq!(world.a.xfrm().sas(|l| Some(l.sa.id)).unwrap(), []);
        let capture = Capture::start(&world.a);
        Source::new(&world.a, world.a.v4, world.b.v4).send(20);
        assert_eq!(capture.settled(), (0, 0, 0), "{now:?}");
    }
}

/// A leftover that expires or is removed is no longer asked for.
#[test]
fn a_leftover_that_is_lost_is_blocked() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    world.a.datapath = None;
    let policy = overlay(&world.a, &world.b, "b", ClearTraffic::Drop);
    world.a.open(Options {
        kept: Some(policy.clone()),
        ..Options::default()
    });
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    let outbound = id(&world.b, child.spis().1);
    world.a.xfrm().delete_sa(&outbound).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let capture = Capture::start(&world.a);
    Source::new(&world.a, world.a.v4, world.b.v4).send(20);
    assert_eq!(capture.settled(), (0, 0, 0));
    let mut xfrm = world.a.xfrm();
    let stand = xfrm
        .sas(|l| (l.sa.id.spi == outbound.spi).then_some(()))
        .unwrap();
    assert_eq!(stand, [], "a larval SA stands");
}

/// A peer that moves to another address in tunnel mode: the same SPI and key go on there, and no
/// sequence number comes twice.
#[test]
fn a_moved_tunnel_goes_on_with_higher_sequence_numbers() {
    let mut world = world();
    world.b.command("ip addr add 10.9.0.3/24 dev eth0");
    let any = vec![TrafficSelector::prefix("0.0.0.0/0".parse().unwrap())];
    let child = Child {
        mode: SaMode::Tunnel,
        udp: true,
        a_side: any.clone(),
        b_side: any,
        ..Child::new(1)
    };
    let routed = |own: &str, node: &Node, other: &Node, name: &str, pods: &str| TrafficPolicy {
        flows: testudo_model::ProtectedFlows::Routed {
            local: vec![own.parse().unwrap()],
            cluster: vec!["10.244.0.0/16".parse().unwrap()],
        },
        peers: vec![PeerTraffic {
            pod_cidrs: vec![pods.parse().unwrap()],
            ..overlay(node, other, name, ClearTraffic::Drop)
                .peers
                .remove(0)
        }],
        ..overlay(node, other, name, ClearTraffic::Drop)
    };
    let of_a = routed("10.244.1.0/24", &world.a, &world.b, "b", "10.244.2.0/24");
    world.a.dp(|dp| dp.set_traffic(&of_a)).unwrap();
    let (a_in, a_out) = child.specs(&world.a, &world.b, true);
    let number = child.child();
    world.a.dp(|dp| dp.install_inbound(a_in)).unwrap();
    world.a.dp(|dp| dp.install_outbound(a_out)).unwrap();
    world.a.dp(|dp| dp.use_outbound(number)).unwrap();
    let lo = "ip addr add 10.244.1.1/32 dev lo";
    world.a.command(lo);
    world.a.command("ip route add 10.244.2.0/24 via 10.9.0.2");
    let mut source = Source::new(&world.a, ip("10.244.1.1"), ip("10.244.2.7"));
    source.send(50);
    let (_, before) = world.a.dp(|dp| dp.pair_counters(number));
    assert_eq!(before.sequence, 50);
    let to = Encapsulation::Udp {
        local: SocketAddr::new(world.a.v4, 4500),
        remote: "10.9.0.3:4500".parse().unwrap(),
    };
    world.a.dp(|dp| dp.rebind(number, to)).unwrap();
    let capture = Capture::start(&world.a);
    source.send(50);
    assert!(source.refused.is_empty(), "{:?}", source.refused);
    assert_eq!(capture.finish().numbers(), (0, 50, 0));
    let (_, after) = world.a.dp(|dp| dp.pair_counters(number));
    assert_eq!(after.sequence, 50 + (1 << 20) + 50);
    assert_eq!(after.packets, 50);
    let moved = XfrmSaId {
        destination: ip("10.9.0.3"),
        spi: child.spis().1,
        mark: (0, 0),
    };
    let mut left = world.a.xfrm().sas(|l| Some(l.sa.id)).unwrap();
    left.sort();
    let mut wanted = vec![id(&world.a, child.spis().0), moved];
    wanted.sort();
    assert_eq!(left, wanted, "the old one went at once");
    let events = world.a.events();
    assert!(!events.iter().any(|e| matches!(e, Event::SaLost { .. })));
    let soft = Event::SoftLimit { child: number };
    assert!(events.contains(&soft), "a fresh key is wanted");
    // A third address, where somebody else's SA has the name: nothing is left with the key, and
    // nothing leaves.
    let mut theirs = world.a.xfrm();
    let mut stands = theirs.sa(&moved).unwrap().unwrap().sa;
    stands.id.destination = ip("10.9.0.4");
    stands.reqid = 1;
    let theirs_key = testudo_netlink::XfrmKey::new(&[9; 36]);
    if let testudo_netlink::XfrmAlgorithm::Aead { key, .. } = &mut stands.algorithm {
        *key = theirs_key;
    }
    theirs.add_sa(&stands).unwrap();
    let taken = Encapsulation::Udp {
        local: SocketAddr::new(world.a.v4, 4500),
        remote: "10.9.0.4:4500".parse().unwrap(),
    };
    world.a.dp(|dp| dp.rebind(number, taken)).unwrap_err();
    world.a.event(|e| *e == Event::SaLost { child: number });
    let left = theirs.sas(|l| Some(l.sa.id)).unwrap();
    assert!(!left.contains(&moved) && left.contains(&stands.id));
    let capture = Capture::start(&world.a);
    source.send(20);
    assert_eq!(capture.settled(), (0, 0, 0));
}

/// L69: what a peer costs does not grow with their number: requests to the kernel are counted.
#[test]
fn a_thousand_peers_cost_a_thousand_times_one() {
    const PEERS: u32 = 1000;
    let mut world = bare_world();
    world.a.open(Options::default());
    let address = |i: u32| ip(&format!("10.{}.{}.1", 100 + i / 250, i % 250));
    let mut policy = overlay(&world.a, &world.b, "b", ClearTraffic::Drop);
    policy.peers = (0..PEERS)
        .map(|i| PeerTraffic {
            peer: peer(&format!("n{i:04}")),
            addresses: vec![address(i)],
            pod_cidrs: Vec::new(),
            outbound: testudo_model::Outbound::Encrypt,
        })
        .collect();
    let mut last = world.a.dp(|dp| dp.requests());
    let mut cost = |node: &mut Node| {
        let now = node.dp(|dp| dp.requests());
        now - std::mem::replace(&mut last, now)
    };
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    let policies = cost(&mut world.a);
    assert!(policies <= u64::from(2 * PEERS + 20), "{policies}");
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    assert_eq!(cost(&mut world.a), 1, "the same wish again is one look");
    let two_for_each = |node: &mut Node| {
        let counted = node.dp(|dp| dp.policies()).unwrap();
        assert_eq!(counted.len(), PEERS as usize);
        assert!(counted.values().all(|number| *number == 2), "{counted:?}");
    };
    // They block as yet.
    two_for_each(&mut world.a);
    assert_eq!(cost(&mut world.a), 1, "one listing for all peers");
    let netns = &world.a;
    let specs: Vec<_> = (0..PEERS)
        .map(|i| {
            let child = Child::new(u64::from(i) + 1);
            let (mut inbound, mut outbound) = child.specs(netns, &world.b, true);
            let remote = address(i);
            let side = TrafficSelector::prefix(remote.into());
            let encapsulation = Encapsulation::None {
                local: netns.v4,
                remote,
            };
            inbound.peer = peer(&format!("n{i:04}"));
            outbound.peer = inbound.peer.clone();
            (inbound.encapsulation, outbound.encapsulation) = (encapsulation, encapsulation);
            (inbound.remote, outbound.remote) = (vec![side], vec![side]);
            (inbound, outbound)
        })
        .collect();
    let costs: Vec<u64> = world.a.dp(|dp| {
        let install = |(inbound, outbound): (InboundSaSpec, OutboundSaSpec)| {
            let child = inbound.child;
            let before = dp.requests();
            dp.install_inbound(inbound).unwrap();
            dp.install_outbound(outbound).unwrap();
            dp.use_outbound(child).unwrap();
            dp.requests() - before
        };
        specs.into_iter().map(install).collect()
    });
    // To look for first packets, which happens now and then, counts too.
    let least = |costs: &[u64]| costs.iter().copied().min();
    // Two SAs, the policy inwards, the policy outwards.
    assert_eq!(least(&costs[..100]), Some(4));
    assert_eq!(least(&costs[900..]), Some(4));
    let stand = world.a.xfrm().sas(|l| Some(l.sa.id)).unwrap();
    assert_eq!(stand.len(), 2 * PEERS as usize);
    two_for_each(&mut world.a);
    for i in 1..=u64::from(PEERS) {
        world
            .a
            .datapath
            .as_mut()
            .unwrap()
            .remove(ChildId(i))
            .unwrap();
    }
    assert_eq!(world.a.xfrm().sas(|l| Some(l.sa.id)).unwrap(), []);
    world.a.dp(|dp| dp.clear()).unwrap();
    assert_eq!(world.a.xfrm().policies().unwrap().len(), 0);
}
