//! Our end has the kernel datapath: one kernel's ESP at either end, each steered by another
//! daemon. UDP to the overlay's port passes both ways all the time.

use std::time::Duration;

use testudo_datapath::Datapath;
use testudo_datapath_kernel::{KernelDatapath, Options};
use testudo_interop::Peer;
use testudo_model::{
    ClearTraffic, Outbound, PeerId, PeerTraffic, ProtectedFlows, SaMode, TrafficPolicy,
};

use crate::accounts::{self, Flow};
use crate::alike::{Tell, Them};
use crate::nodes::wire::{Sink, Source, Stream};
use crate::nodes::{Node, PORT};
use crate::ours::Us;
use crate::trace::{Frame, Kind, Trace};
use crate::wanted::{Wanted, ip};
use crate::{charon, in_guest, pluto, soon_over};

/// Packets a second, each way.
const RATE: u32 = 500;

/// Our end in the calling thread's namespace, closed but for ESP.
fn us(wanted: &Wanted) -> Us {
    let [inner_ours, inner_theirs] = wanted.inner();
    let host = |text: &str| ip(text).into();
    let (flows, pod_cidrs) = match wanted.mode {
        SaMode::Transport => (ProtectedFlows::Overlay { port: PORT }, Vec::new()),
        SaMode::Tunnel => {
            own_inner_address(wanted);
            let local = vec![host(inner_ours)];
            let cluster = vec![host(inner_ours), host(inner_theirs)];
            let flows = ProtectedFlows::Routed { local, cluster };
            (flows, vec![host(inner_theirs)])
        }
    };
    let policy = TrafficPolicy {
        addresses: vec![ip(wanted.own(0))],
        flows,
        clear_inbound: ClearTraffic::Drop,
        clear_outbound: ClearTraffic::Drop,
        peers: vec![PeerTraffic {
            peer: PeerId::new("peer").unwrap(),
            addresses: vec![ip(wanted.outer()[1])],
            pod_cidrs,
            outbound: Outbound::Encrypt,
        }],
    };
    let mut datapath = KernelDatapath::open(Options::default()).unwrap();
    datapath.set_traffic(&policy).unwrap();
    Us::over(wanted, Some(Box::new(datapath)), soon_over)
}

/// The host's own packets come from its inner address.
fn own_inner_address(wanted: &Wanted) {
    let [ours, theirs] = wanted.inner();
    let (family, bits) = if wanted.v6 { ("-6", 128) } else { ("-4", 32) };
    let gateway = wanted.outer()[1];
    let script = format!(
        "ip address add {ours}/{bits} dev lo; \
         ip {family} route add {theirs}/{bits} via {gateway} dev ti0 src {ours}"
    );
    let status = std::process::Command::new("sh")
        .args(["-ec", &script])
        .status();
    assert!(status.unwrap().success(), "{script}");
}

/// Numbered packets both ways while `body` runs. On the wire is ESP alone, and none is lost but what
/// a daemon that is `hasty` costs: `accounts` says what that is.
fn under_traffic(
    us: &mut Us,
    nodes: &[Node; 2],
    wanted: &Wanted,
    hasty: bool,
    body: impl FnOnce(&mut Us),
) {
    let addresses = wanted.inner().map(ip);
    let traces = [0, 1].map(|n| Trace::start(&nodes[n]));
    let sinks = [1, 0].map(|n| Sink::start(&nodes[n], addresses[n]));
    let streams = [0, 1].map(|n| {
        let source = Source::new(&nodes[n], addresses[n], addresses[1 - n]);
        Stream::start(source, RATE)
    });
    body(us);
    us.wait(Duration::from_millis(500));
    let sources = streams.map(Stream::stop);
    let ends = sources.into_iter().zip(sinks);
    let flows: Vec<Flow> = ends
        .map(|(source, sink)| Flow::finish(source, sink))
        .collect();
    let traces = traces.map(Trace::finish);
    let dropped = [0, 1].map(|n| accounts::drops(&nodes[n]));
    for (n, (flow, trace)) in flows.iter().zip(&traces).enumerate() {
        println!(
            "end {n}: {} passed, {} refused by the sender's kernel, {} lost; dropped here: {:?}",
            flow.passed,
            flow.refused.len(),
            flow.lost(),
            dropped[n]
        );
        assert!(flow.passed > u64::from(RATE), "only {}", flow.passed);
        only_esp(trace, flow.passed, wanted.forced);
    }
    accounts::ours(us, &flows[0], &traces[0], &dropped[1], hasty);
    // A daemon that removes an SA the moment it has another catches a packet between the search for
    // its SA and its use: one for each, as one thread sends. The kernel tells the sender.
    let refused = flows[1].refused.len();
    let invalid = dropped[1].get("XfrmOutStateInvalid").copied();
    assert_eq!(
        refused as u64,
        invalid.unwrap_or(0),
        "{:?}",
        flows[1].refused
    );
    assert!(refused < us.made.len(), "{:?}", flows[1].refused);
    accounts::theirs(us, &flows[1], &traces[1], &dropped[0], hasty);
}

/// The packets left sealed, each once, and no others.
fn only_esp(trace: &[Frame], passed: u64, in_udp: bool) {
    let count = |wanted: fn(Kind) -> bool| trace.iter().filter(|f| wanted(f.kind)).count() as u64;
    let esp = count(|kind| matches!(kind, Kind::Esp { .. }));
    let esp_in_udp = count(|kind| matches!(kind, Kind::EspInUdp { .. }));
    let others = count(|kind| matches!(kind, Kind::Clear | Kind::Other));
    let expected = if in_udp { (0, passed) } else { (passed, 0) };
    assert_eq!(((esp, esp_in_udp), others), (expected, 0));
}

/// Children and IKE SAs rekeyed by us and by the daemon, twice each, under traffic.
fn rekeys<T: Tell>(wanted: &Wanted, told: T, hasty: bool) {
    let mut them = T::Them::start(wanted, told);
    let mut us = us(wanted);
    us.go();
    them.begin(&mut us, wanted);
    us.established();
    them.settles(&mut us, 1, 1);
    let nodes = [Node::us(), Node::of(them.daemon())];
    under_traffic(&mut us, &nodes, wanted, hasty, |us| {
        for ours in [true, false, true, false] {
            let old = us.sending.unwrap();
            match ours {
                true => us.rekey_child(),
                false => them.rekey_child(us),
            }
            us.until("a successor of the child", |us| {
                us.sending.is_some_and(|c| c != old) && us.children().len() == 1
            });
            let count = us.ups.len();
            match ours {
                true => us.rekey_ike(),
                false => them.rekey_ike(us),
            }
            us.until("a successor of the IKE SA", |us| {
                us.ups.len() > count && us.standing().len() == 1
            });
        }
        assert_eq!(us.failures, []);
    });
    them.settles(&mut us, 1, 1);
}

fn with_charon(wanted: &Wanted) {
    charon_of(Peer::StrongSwan, wanted);
}

fn with_pluto(wanted: &Wanted) {
    pluto_of(Peer::Libreswan, wanted);
}

fn charon_of(peer: Peer, wanted: &Wanted) {
    let mut told = charon::Told::on_a_kernel(wanted);
    told.peer = peer;
    if wanted.mode == SaMode::Transport {
        told.child = "local_ts = dynamic[17]\n remote_ts = dynamic[17]\n".into();
    }
    rekeys(wanted, told, false);
}

fn pluto_of(peer: Peer, wanted: &Wanted) {
    let mut told = pluto::Told::on_a_kernel(wanted);
    told.peer = peer;
    if wanted.mode == SaMode::Transport {
        told.more = " leftprotoport=udp\n rightprotoport=udp\n".into();
    }
    rekeys(wanted, told, true);
}

/// Either family, as ESP and in UDP, either end beginning.
fn each(mode: SaMode, one: fn(&Wanted)) {
    for (v6, forced, initiate) in [
        (false, false, true),
        (true, false, false),
        (false, true, false),
        (true, true, true),
    ] {
        one(&wish(mode, v6, forced, initiate));
    }
}

fn wish(mode: SaMode, v6: bool, forced: bool, initiate: bool) -> Wanted {
    Wanted {
        v6,
        mode,
        forced,
        protocol: match mode {
            SaMode::Transport => 17,
            SaMode::Tunnel => 0,
        },
        ..Wanted::begun_by_us(initiate)
    }
}

/// The overlay over IPv4 as ESP, and in UDP.
fn next_release(one: impl Fn(&Wanted)) {
    for (forced, initiate) in [(false, true), (true, false)] {
        one(&wish(SaMode::Transport, false, forced, initiate));
    }
}

#[test]
fn the_overlay_with_charon() {
    in_guest(Peer::StrongSwan, || each(SaMode::Transport, with_charon));
}

#[test]
fn the_overlay_with_pluto() {
    in_guest(Peer::Libreswan, || each(SaMode::Transport, with_pluto));
}

#[test]
fn tunnels_with_charon() {
    in_guest(Peer::StrongSwan, || each(SaMode::Tunnel, with_charon));
}

#[test]
fn tunnels_with_pluto() {
    in_guest(Peer::Libreswan, || each(SaMode::Tunnel, with_pluto));
}

#[test]
fn the_overlay_with_the_next_charon() {
    let peer = Peer::NextStrongSwan;
    in_guest(peer, move || next_release(|wanted| charon_of(peer, wanted)));
}

#[test]
fn the_overlay_with_the_next_pluto() {
    let peer = Peer::NextLibreswan;
    in_guest(peer, move || next_release(|wanted| pluto_of(peer, wanted)));
}
