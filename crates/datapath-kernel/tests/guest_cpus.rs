//! Outbound SAs for single CPUs (RFC 9611): each CPU seals with its own, and nothing is lost when
//! they come, are replaced and go.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::wire::{Capture, Sink, Source, Stream};
use common::*;
use testudo_datapath::{Datapath, Event};
use testudo_datapath_kernel::PRIORITY_ALLOW;
use testudo_model::ClearTraffic;
use testudo_netlink::{XfrmAction, XfrmDirection, XfrmPolicy};

/// Streams from each CPU, packets a second.
const RATE: u32 = 300;

/// The CPUs that can have SAs of their own; `None` where the kernel has none, which is right of one.
fn cpus(world: &mut World) -> Option<u32> {
    let cpus = world.a.dp(|dp| dp.cpus());
    let kernel = std::env::var("TESTUDO_GUEST").unwrap();
    let wanted = match kernel.as_str() {
        "6.1" => 0,
        "uml" => 1,
        _ => std::thread::available_parallelism().unwrap().get() as u32,
    };
    assert_eq!(cpus, wanted, "{kernel}");
    (cpus > 0).then_some(cpus)
}

/// The SPI that a's policy for packets to b names; 0: none.
fn named(world: &World) -> u32 {
    let to_b = world.b.v4.into();
    let all = world.a.xfrm().policies().unwrap();
    let mut out = all
        .iter()
        .filter(|p| p.direction == XfrmDirection::Out && p.selector.destination == to_b);
    out.next().unwrap().templates[0].spi
}

/// Waits until a's packets go to the SAs of their CPUs.
fn spread(world: &World) {
    let end = Instant::now() + Duration::from_secs(20);
    while named(world) != 0 {
        assert!(Instant::now() < end, "SPI {:#x} is named", named(world));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The one for all CPUs and one for each, of which b uses none when it `opens_only`.
fn children(first: u64, cpus: u32, opens_only: bool) -> Vec<Child> {
    let of_cpus = (0..cpus).map(|cpu| Child {
        cpu: Some(cpu),
        b_opens_only: opens_only,
        ..Child::new(first + 1 + u64::from(cpu))
    });
    std::iter::once(Child::new(first)).chain(of_cpus).collect()
}

/// Packets that a sealed with a child, and that b opened.
fn counted(world: &mut World, child: &Child) -> (u64, u64) {
    let id = child.child();
    let (_, out) = world.a.dp(|dp| dp.pair_counters(id));
    let (inbound, _) = world.b.dp(|dp| dp.pair_counters(id));
    (out.packets, inbound.packets)
}

/// A stream from each CPU of a to one sink of b's.
fn streams(world: &World, cpus: u32) -> (Vec<Stream>, Sink) {
    let (a, b) = (world.a.v4, world.b.v4);
    let sink = Sink::start(&world.b, b);
    let start = |cpu: u32| {
        let source = Source::new(&world.a, a, b).among(cpu.into(), cpus.into());
        Stream::start_on(Some(cpu), source, RATE)
    };
    ((0..cpus).map(start).collect(), sink)
}

/// Ends the streams: all that they sent has come, once.
fn all_came(streams: Vec<Stream>, sink: Sink) -> u64 {
    let sources: Vec<Source> = streams.into_iter().map(Stream::stop).collect();
    for source in &sources {
        assert!(source.refused.is_empty(), "{:?}", source.refused);
        assert!(source.sent() > 100, "only {} packets", source.sent());
    }
    let sent = sources.iter().map(Source::sent).sum();
    assert_eq!(sink.wait(sent), sent);
    sink.finish();
    sent
}

#[test]
fn a_kernel_without_sas_for_cpus_refuses_them_and_nothing_is_left() {
    let mut world = world();
    world.seal(ClearTraffic::Drop);
    let cpus = cpus(&mut world).unwrap_or(0);
    let (_, out) = Child::new(1).specs(&world.a, &world.b, true);
    let refused = world.a.dp(|dp| dp.install_outbound_for(cpus, out));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains(&format!("CPU {cpus}")), "{text}");
    assert_eq!(world.a.xfrm().sas(|sa| Some(sa.sa.id)).unwrap(), []);
}

/// A peer that has no such SAs opens those of all CPUs and answers on the one for all.
#[test]
fn each_cpu_seals_with_its_own_and_a_peer_without_opens_them() {
    let mut world = world();
    let Some(cpus) = cpus(&mut world) else { return };
    world.seal(ClearTraffic::Drop);
    let children = children(1, cpus, true);
    world.connect(&children[0]);
    let sinks = [
        Sink::start(&world.b, world.b.v4),
        Sink::start(&world.a, world.a.v4),
    ];
    let mut source = Source::new(&world.a, world.a.v4, world.b.v4);
    source.send_from(0, 10);
    assert_eq!(named(&world), children[0].spis().1);
    for child in &children[1..] {
        world.install(child);
        assert_eq!(named(&world), children[0].spis().1, "one is not in use yet");
        world.use_outbound(child);
        assert_eq!(named(&world), 0);
    }
    for cpu in 0..cpus {
        source.send_from(cpu, 100 + u64::from(cpu));
    }
    assert_eq!(sinks[0].wait(source.sent()), source.sent());
    assert_eq!(counted(&mut world, &children[0]), (10, 10));
    for (cpu, child) in (0..).zip(&children[1..]) {
        assert_eq!(counted(&mut world, child), (100 + cpu, 100 + cpu));
    }
    let mut back = Source::new(&world.b, world.b.v4, world.a.v4);
    for cpu in 0..cpus {
        back.send_from(cpu, 50);
    }
    assert_eq!(sinks[1].wait(back.sent()), back.sent());
    let id = children[0].child();
    let (_, out) = world.b.dp(|dp| dp.pair_counters(id));
    assert_eq!(out.packets, back.sent());
}

/// Each is replaced under traffic, the one for all as well; then they go one by one.
#[test]
fn successors_and_removals_lose_nothing_and_leave_nothing() {
    let mut world = world();
    let Some(cpus) = cpus(&mut world) else { return };
    world.seal(ClearTraffic::Drop);
    let closed = world.a.xfrm().policies().unwrap().len();
    let capture = Capture::start(&world.a);
    let mut standing = children(100, cpus, false);
    standing.iter().for_each(|child| world.connect(child));
    let (streams, sink) = streams(&world, cpus);
    std::thread::sleep(Duration::from_millis(300));
    let mut sealed: BTreeMap<Option<u32>, u64> = BTreeMap::new();
    for round in 2..=3 {
        for (old, next) in standing
            .clone()
            .iter()
            .zip(children(100 * round, cpus, false))
        {
            spread(&world);
            std::thread::sleep(Duration::from_millis(200));
            world.install(&next);
            world.use_outbound(&next);
            std::thread::sleep(Duration::from_millis(50));
            *sealed.entry(old.cpu).or_default() += counted(&mut world, old).0;
            world.remove(old);
            *standing.iter_mut().find(|c| c.cpu == old.cpu).unwrap() = next;
        }
    }
    spread(&world);
    std::thread::sleep(Duration::from_millis(300));
    // In the end CPUs have none again.
    for child in standing.drain(1..) {
        *sealed.entry(child.cpu).or_default() += counted(&mut world, &child).0;
        world.remove(&child);
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(named(&world), standing[0].spis().1);
    *sealed.entry(None).or_default() += counted(&mut world, &standing[0]).0;
    let sent = all_came(streams, sink);
    assert_eq!(capture.finish().numbers().2, 0, "clear packets");
    // While one is replaced everything leaves on the one for all.
    assert_eq!(sealed.len(), 1 + cpus as usize);
    assert!(
        sealed.values().all(|packets| *packets > 100),
        "{sealed:?} of {sent}"
    );
    assert_eq!(world.a.xfrm().sas(|sa| Some(sa.sa.id)).unwrap().len(), 2);
    world.remove(&standing[0]);
    assert_eq!(world.a.xfrm().sas(|sa| Some(sa.sa.id)).unwrap(), []);
    let left = world.a.xfrm().policies().unwrap();
    assert_eq!(left.len(), closed);
    let blocks = |p: &XfrmPolicy| p.action == XfrmAction::Block || p.priority == PRIORITY_ALLOW;
    let mut out = left.iter().filter(|p| p.direction == XfrmDirection::Out);
    assert!(out.all(blocks), "{left:?}");
}

/// An agent that is killed: its packets go on, on the SA for all CPUs when it is back.
#[test]
fn a_restart_loses_nothing_and_comes_back_to_each_cpus_own() {
    let mut world = world();
    let Some(cpus) = cpus(&mut world) else { return };
    world.seal(ClearTraffic::Drop);
    let old = children(100, cpus, false);
    old.iter().for_each(|child| world.connect(child));
    let (streams, sink) = streams(&world, cpus);
    std::thread::sleep(Duration::from_millis(300));
    let (options, policy) = world.kill_and_close();
    assert_eq!(named(&world), old[0].spis().1);
    world.a.open(options);
    assert_eq!(world.a.dp(|dp| dp.leftovers()), 2 * old.len());
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let new = children(200, cpus, false);
    for child in &new {
        world.install(child);
        world.use_outbound(child);
        std::thread::sleep(Duration::from_millis(100));
    }
    old.iter().for_each(|child| {
        let id = child.child();
        world.b.dp(|dp| dp.remove(id)).unwrap();
    });
    spread(&world);
    let before: Vec<u64> = new[1..].iter().map(|c| counted(&mut world, c).0).collect();
    std::thread::sleep(Duration::from_millis(500));
    for (child, before) in new[1..].iter().zip(before) {
        assert!(counted(&mut world, child).0 > before, "CPU {:?}", child.cpu);
    }
    all_came(streams, sink);
    let seals = world.a.xfrm().sas(|l| {
        let out = l.sa.id.destination == world.b.v4;
        out.then_some(l.sa.id.spi)
    });
    let mut seals = seals.unwrap();
    seals.sort_unstable();
    let wanted: Vec<u32> = new.iter().map(|child| child.spis().1).collect();
    assert_eq!(seals, wanted);
}

/// Somebody removes a CPU's SA, then all: the first costs nothing, the rest is closed until there is
/// a successor, and no larval SA is in its way (L117).
#[test]
fn one_that_is_lost_costs_nothing_and_all_of_them_are_closed() {
    let mut world = world();
    let Some(cpus) = cpus(&mut world) else { return };
    world.seal(ClearTraffic::Drop);
    let lost = children(100, cpus, false);
    lost.iter().for_each(|child| world.connect(child));
    let capture = Capture::start(&world.a);
    let (streams, sink) = streams(&world, cpus);
    std::thread::sleep(Duration::from_millis(300));
    let (b, spi) = (world.b.v4, lost[1].spis().1);
    world
        .a
        .command(&format!("ip xfrm state delete dst {b} proto esp spi {spi}"));
    let child = lost[1].child();
    world.a.event(|e| *e == Event::SaLost { child });
    std::thread::sleep(Duration::from_millis(300));
    all_came(streams, sink);
    world.a.command("ip xfrm state flush");
    let sink = Sink::start(&world.b, b);
    let mut source = Source::new(&world.a, world.a.v4, b);
    for cpu in 0..cpus {
        source.send_from(cpu, 20);
    }
    let child = lost[0].child();
    world.a.event(|e| *e == Event::SaLost { child });
    for cpu in 0..cpus {
        source.send_from(cpu, 20);
    }
    assert_eq!(sink.got(), 0);
    lost.iter().for_each(|child| world.remove(child));
    let next = children(200, cpus, false);
    next.iter().for_each(|child| world.connect(child));
    spread(&world);
    let before = source.sent();
    for cpu in 0..cpus {
        source.send_from(cpu, 20);
    }
    let came = source.sent() - before;
    assert_eq!(sink.wait(came), came);
    assert_eq!(capture.finish().numbers().2, 0, "clear packets");
    let end = Instant::now() + Duration::from_secs(3);
    let grown = 2 * next.len();
    while world.a.xfrm().sas(|sa| Some(sa.sa.id)).unwrap().len() != grown {
        assert!(Instant::now() < end, "more than {grown} SAs stand");
        std::thread::sleep(Duration::from_millis(50));
    }
}
