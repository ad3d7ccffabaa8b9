//! What the kernel tells, and what is done about it.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::wire::{Capture, Sink, Source};
use common::*;
use testudo_datapath::{Datapath, Event};
use testudo_datapath_kernel::{Options, is_our_reqid};
use testudo_model::{ClearTraffic, SaLimits};
use testudo_netlink::{Xfrm, XfrmPolicy, XfrmSaId};

fn ours(xfrm: &mut Xfrm) -> Vec<XfrmSaId> {
    xfrm.sas(|l| is_our_reqid(l.sa.reqid).then_some(l.sa.id))
        .unwrap()
}

/// Policies of the main table, sorted.
fn policies(xfrm: &mut Xfrm) -> Vec<XfrmPolicy> {
    let mut all = xfrm.policies().unwrap();
    all.sort();
    all
}

/// Until it holds, 3 seconds at most.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(3);
    while !holds() {
        assert!(Instant::now() < end, "not within 3 seconds: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn source_and_sink(world: &World) -> (Source, Sink) {
    let sink = Sink::start(&world.b, world.b.v4);
    (Source::new(&world.a, world.a.v4, world.b.v4), sink)
}

#[test]
fn the_first_packet_is_told_once_whether_one_comes_or_many() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    for (id, packets) in [(1, 1), (2, 20)] {
        let child = Child::new(id);
        world.connect(&child);
        let (mut source, _sink) = source_and_sink(&world);
        assert_eq!(world.b.events(), []);
        source.send(packets);
        let first = Event::FirstInbound {
            child: child.child(),
        };
        world.b.event(|e| *e == first);
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(world.b.events(), []);
    }
}

#[test]
fn a_soft_limit_of_packets_or_bytes_is_told_once_and_stops_nothing() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let limits = [(50, u64::MAX - 1), (u64::MAX - 1, 5000)];
    for (id, (soft_packets, soft_bytes)) in (1..).zip(limits) {
        let child = Child {
            limits: SaLimits {
                soft_packets,
                soft_bytes,
            },
            ..Child::new(id)
        };
        world.connect(&child);
        let (mut source, sink) = source_and_sink(&world);
        source.send(20);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(world.a.events(), []);
        source.send(80);
        let soft = Event::SoftLimit {
            child: child.child(),
        };
        world.a.event(|e| *e == soft);
        assert_eq!(sink.wait(100), 100);
        assert_eq!(world.a.events(), []);
    }
}

/// SAs outlive a dead agent only so long; what they carried is blocked then, and nothing asks.
#[test]
fn a_hard_end_of_time_is_a_lost_sa_and_closed() {
    let mut world = bare_world();
    let options = || Options {
        hard_time: Some(Duration::from_secs(2)),
        ..Options::default()
    };
    world.a.open(options());
    world.b.open(Options::default());
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    let (mut source, sink) = source_and_sink(&world);
    source.send(10);
    assert_eq!(sink.wait(10), 10);
    let lost = Event::SaLost {
        child: child.child(),
    };
    world.a.event(|e| *e == lost);
    let capture = Capture::start(&world.a);
    until("both SAs are gone", || ours(&mut world.a.xfrm()).is_empty());
    source.send(20);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        ours(&mut world.a.xfrm()),
        [],
        "a packet has asked for an SA"
    );
    assert_eq!(capture.finish().numbers(), (0, 0, 0));
    // A successor carries on.
    let next = Child::new(2);
    world.connect(&next);
    source.send(10);
    assert_eq!(sink.wait(20), 20);
}

/// An SA that has sealed all that it may: none more is sealed, it is told and closed.
#[test]
fn a_hard_end_of_packets_is_a_lost_sa_and_closed() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    let mut xfrm = world.a.xfrm();
    let id = XfrmSaId {
        destination: world.b.v4,
        spi: child.spis().1,
        mark: (0, 0),
    };
    // The limit that an SA gets is out of a test's reach: it is brought near.
    let mut sa = xfrm.sa(&id).unwrap().unwrap().sa;
    assert_eq!(sa.limits.hard_packets, Some(1 << 46));
    sa.limits.hard_packets = Some(10);
    xfrm.update_sa(&sa).unwrap();
    let capture = Capture::start(&world.a);
    let (mut source, sink) = source_and_sink(&world);
    source.send(10);
    assert_eq!(sink.wait(10), 10);
    source.send(10);
    let lost = Event::SaLost {
        child: child.child(),
    };
    world.a.event(|e| *e == lost);
    source.send(10);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sink.got(), 10);
    assert_eq!(capture.finish().numbers(), (10, 0, 0));
    world.remove(&child);
    let next = Child::new(2);
    world.connect(&next);
    source.send(10);
    assert_eq!(sink.wait(20), 20);
}

/// L90, L117, L118: somebody flushes all SAs: blocked, told, and healed by a successor.
#[test]
fn flushed_sas_are_told_and_their_traffic_waits_closed() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    let (mut source, sink) = source_and_sink(&world);
    source.send(10);
    assert_eq!(sink.wait(10), 10);
    let capture = Capture::start(&world.a);
    world.a.command("ip xfrm state flush");
    // Some are sent before anybody may have noticed: they may ask, and must not leave.
    source.send(20);
    let lost = Event::SaLost {
        child: child.child(),
    };
    world.a.event(|e| *e == lost);
    source.send(20);
    until("no larval SA stands", || {
        ours(&mut world.a.xfrm()).is_empty()
    });
    assert_eq!(capture.settled(), (0, 0, 0));
    world.remove(&child);
    let next = Child::new(2);
    world.connect(&next);
    let arrived = sink.got();
    source.send(50);
    assert_eq!(sink.wait(arrived + 50), arrived + 50);
    assert_eq!(world.a.events().iter().filter(|e| **e == lost).count(), 0);
}

#[test]
fn one_deleted_sa_is_lost_and_the_other_stays() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    let (to_a, to_b) = child.spis();
    let id = |destination, spi| XfrmSaId {
        destination,
        spi,
        mark: (0, 0),
    };
    let outbound = id(world.b.v4, to_b);
    world.a.xfrm().delete_sa(&outbound).unwrap();
    let lost = Event::SaLost {
        child: child.child(),
    };
    world.a.event(|e| *e == lost);
    assert_eq!(ours(&mut world.a.xfrm()), [id(world.a.v4, to_a)]);
    let (mut source, _sink) = source_and_sink(&world);
    source.send(20);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(ours(&mut world.a.xfrm()).len(), 1, "a larval SA stands");
}

/// Somebody flushes, deletes or changes policies: ours are put back, theirs are left alone.
#[test]
fn policies_that_others_undo_are_put_back() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    let mut xfrm = world.a.xfrm();
    let wanted = policies(&mut xfrm);
    assert!(wanted.len() > 4, "{wanted:?}");
    world.a.command("ip xfrm policy flush");
    until("policies stand again", || policies(&mut xfrm) == wanted);
    let sealing = wanted
        .iter()
        .find(|p| p.templates.iter().any(|t| t.spi != 0))
        .unwrap();
    xfrm.delete_policy(&sealing.key()).unwrap();
    until("a deleted one stands again", || {
        policies(&mut xfrm) == wanted
    });
    let mut opened = sealing.clone();
    opened.templates.clear();
    xfrm.update_policy(&opened).unwrap();
    until("a changed one is as it was", || {
        policies(&mut xfrm) == wanted
    });
    // Theirs may come and go.
    let mut theirs = opened.clone();
    theirs.selector.destination_port.value = 1;
    theirs.priority = 400_000;
    xfrm.add_policy(&theirs).unwrap();
    xfrm.delete_policy(&theirs.key()).unwrap();
    let notices = world.a.dp(|dp| dp.counters()).notices;
    assert!(notices["policies_restored"] >= 2, "{notices:?}");
    let (mut source, sink) = source_and_sink(&world);
    source.send(50);
    assert_eq!(sink.wait(50), 50);
}

/// Two programs that undo each other's work: ours does not keep the processor busy.
#[test]
fn a_policy_that_is_undone_again_and_again_is_put_back_at_a_pace() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let mut xfrm = world.a.xfrm();
    let key = policies(&mut xfrm)[0].key();
    let before = world.a.dp(|dp| dp.requests());
    let end = Instant::now() + Duration::from_secs(2);
    let mut deleted = 0;
    while Instant::now() < end {
        deleted += u32::from(xfrm.delete_policy(&key).is_ok());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!((2..=15).contains(&deleted), "put back {deleted} times");
    let requests = world.a.dp(|dp| dp.requests()) - before;
    assert!(requests < 60, "{requests} requests in 2 seconds");
    until("it stands in the end", || {
        xfrm.policy(&key).unwrap().is_some()
    });
}

/// SAs open packets to the overlay's port alone; when it changes they want successors.
#[test]
fn another_port_of_the_overlay_wants_new_sas() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    assert_eq!(world.a.events(), []);
    let mut policy = overlay(&world.a, &world.b, "b", ClearTraffic::Drop);
    policy.flows = testudo_model::ProtectedFlows::Overlay { port: 4789 };
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    let wanted = Event::SoftLimit {
        child: child.child(),
    };
    assert_eq!(world.a.events(), [wanted]);
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    assert_eq!(world.a.events(), []);
}

/// L72: a node whose tunnels stand asks the kernel for nothing.
#[test]
fn an_idle_node_asks_the_kernel_for_nothing() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    let back = Sink::start(&world.a, world.a.v4);
    let (mut source, sink) = source_and_sink(&world);
    source.send(10);
    Source::new(&world.b, world.b.v4, world.a.v4).send(10);
    assert_eq!((sink.wait(10), back.wait(10)), (10, 10));
    for node in [&mut world.a, &mut world.b] {
        node.event(|e| matches!(e, Event::FirstInbound { .. }));
        let before = node.dp(|dp| dp.requests());
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(node.dp(|dp| dp.requests()), before);
    }
}

/// L95: pairs come and go, forty times, peers too: nothing is left behind.
#[test]
fn what_comes_and_goes_leaves_nothing() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let mut xfrm = world.a.xfrm();
    let closed = policies(&mut xfrm).len();
    for id in 1..=40 {
        let child = Child::new(id);
        world.connect(&child);
        world.remove(&child);
        assert_eq!(ours(&mut xfrm), []);
        if id % 10 == 0 {
            let mut policy = overlay(&world.a, &world.b, "b", ClearTraffic::Drop);
            policy.peers.clear();
            world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
            world.seal(ClearTraffic::Drop);
            assert_eq!(policies(&mut xfrm).len(), closed);
        }
    }
}

/// L71: the notifications overflow: one look at the whole, nothing is missed, nothing spins.
#[test]
fn an_overrun_is_one_resync_and_no_loss_goes_unseen() {
    let mut world = bare_world();
    world.a.open(Options {
        monitor_buffer: Some(4096),
        ..Options::default()
    });
    world.b.open(Options::default());
    world.seal(ClearTraffic::Drop);
    let child = Child::new(1);
    world.connect(&child);
    let mut xfrm = world.a.xfrm();
    let wanted = policies(&mut xfrm);
    let mut noise = wanted[0].clone();
    noise.priority = 400_000;
    noise.selector.destination_port.value = 7;
    // More than the buffer holds, with what matters in the middle.
    let flood = |xfrm: &mut Xfrm, noise: &XfrmPolicy| {
        for _ in 0..300 {
            xfrm.update_policy(noise).unwrap();
        }
    };
    let start = Instant::now();
    for _ in 0..5 {
        flood(&mut xfrm, &noise);
    }
    let (_, to_b) = child.spis();
    let outbound = XfrmSaId {
        destination: world.b.v4,
        spi: to_b,
        mark: (0, 0),
    };
    xfrm.delete_sa(&outbound).unwrap();
    for _ in 0..5 {
        flood(&mut xfrm, &noise);
    }
    let lost = Event::SaLost {
        child: child.child(),
    };
    world.a.event(|e| *e == lost);
    std::thread::sleep(Duration::from_millis(500));
    let resyncs = world.a.dp(|dp| dp.counters()).notices["resyncs"];
    std::thread::sleep(Duration::from_secs(1));
    let notices = world.a.dp(|dp| dp.counters()).notices;
    assert_eq!(notices["resyncs"], resyncs, "it does not come to rest");
    assert!(notices["netlink_overruns"] >= 1, "{notices:?}");
    // One at the end, and on the way there no more than five a second.
    let most = start.elapsed().as_millis() as u64 / 200 + 2;
    assert!(notices["resyncs"] <= most, "{notices:?}");
    assert_eq!(world.a.events(), [], "told twice");
}

/// RFC 7296 2.23: the peer's packets come from another port; told, and answered there when asked.
#[test]
fn a_peer_behind_another_port_is_told_of_and_followed() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let child = Child {
        udp: true,
        ..Child::new(1)
    };
    world.install(&child);
    // a's end as a NAT would show it: port 4501.
    let mut xfrm = world.a.xfrm();
    let outbound = XfrmSaId {
        destination: world.b.v4,
        spi: child.spis().1,
        mark: (0, 0),
    };
    let mut listed = xfrm.sa(&outbound).unwrap().unwrap();
    listed.sa.encapsulation.as_mut().unwrap().source_port = 4501;
    xfrm.update_sa(&listed.sa).unwrap();
    world.use_outbound(&child);
    let (mut source, sink) = source_and_sink(&world);
    source.send(100);
    assert_eq!(sink.wait(100), 100);
    let remote = std::net::SocketAddr::new(world.a.v4, 4501);
    let moved = Event::PeerMoved {
        child: child.child(),
        remote,
    };
    world.b.event(|e| *e == moved);
    // Not at each packet.
    assert!(!world.b.events().contains(&moved));
    let to = testudo_model::Encapsulation::Udp {
        local: std::net::SocketAddr::new(world.b.v4, 4500),
        remote,
    };
    let id = child.child();
    world.b.dp(|dp| dp.rebind(id, to)).unwrap();
    source.send(10);
    assert_eq!(sink.wait(110), 110);
    std::thread::sleep(Duration::from_millis(1500));
    source.send(10);
    assert_eq!(sink.wait(120), 120);
    assert!(!world.b.events().contains(&moved));
    // In transport mode another address takes another child.
    let elsewhere = testudo_model::Encapsulation::Udp {
        local: std::net::SocketAddr::new(world.b.v4, 4500),
        remote: "10.9.0.77:4500".parse().unwrap(),
    };
    let refused = world.b.dp(|dp| dp.rebind(id, elsewhere)).unwrap_err();
    assert!(refused.to_string().contains("10.9.0.77"), "{refused}");
    let back = XfrmSaId {
        destination: world.a.v4,
        spi: child.spis().0,
        mark: (0, 0),
    };
    let listed = world.b.xfrm().sa(&back).unwrap().unwrap();
    let ports = listed.sa.encapsulation.unwrap();
    assert_eq!((ports.source_port, ports.destination_port), (4500, 4501));
}

/// IKE on UDP 4500 goes through, marker and all, while everything else is closed.
#[test]
fn ike_passes_through_the_udp_port() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    for v6 in [false, true] {
        let local = std::net::SocketAddr::new(world.a.address(v6), 4500);
        let remote = std::net::SocketAddr::new(world.b.address(v6), 4500);
        world
            .a
            .dp(|dp| dp.send_ike(local, remote, b"hello"))
            .unwrap();
        world.a.dp(|dp| dp.send_keepalive(local, remote)).unwrap();
        let event = world.b.event(|e| matches!(e, Event::Ike { .. }));
        let wanted = Event::Ike {
            local: remote,
            remote: local,
            message: b"hello".to_vec(),
        };
        assert_eq!(event, wanted);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(world.b.events(), [], "a keepalive came up");
    }
}

/// L89: policies of anybody that drop everything leave IKE alone, and ours leave a neighbour's
/// discovery alone.
#[test]
fn no_policy_catches_ike_or_a_neighbours_discovery() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    for v6 in [false, true] {
        match v6 {
            false => {
                let all = "src 0.0.0.0/0 dst 0.0.0.0/0";
                for (node, direction) in [(&world.a, "out"), (&world.b, "in")] {
                    let add = format!("ip xfrm policy add {all} dir {direction} action block");
                    node.command(&add);
                }
            }
            true => {
                world.a.command("ip -6 neigh flush dev eth0");
                world.b.command("ip -6 neigh flush dev eth0");
            }
        }
        let end = |node: &Node| std::net::SocketAddr::new(node.address(v6), 4500);
        let (local, remote) = (end(&world.a), end(&world.b));
        world
            .a
            .dp(|dp| dp.send_ike(local, remote, b"hello"))
            .unwrap();
        let wanted = Event::Ike {
            local: remote,
            remote: local,
            message: b"hello".to_vec(),
        };
        world.b.event(|e| *e == wanted);
    }
}
