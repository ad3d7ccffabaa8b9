//! L105: a hop in the middle of the path that takes smaller packets than the nodes' links.
//!
//! ```text
//!  pod -- a 10.9.0.1 ---- r1 ==== 1400 bytes ==== r2 ---- 10.9.2.2 b -- pod
//! ```
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use common::wire::Capture;
use common::*;
use testudo_datapath::Datapath;
use testudo_datapath_kernel::Options;
use testudo_model::{ClearTraffic, ProtectedFlows, SaMode, TrafficPolicy, TrafficSelector};
use testudo_netlink::{Netlink, Route, run_in_netns};

/// The narrow link's.
const NARROW: u32 = 1400;
/// More than a slow machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

fn router() -> OwnedFd {
    let netns = new_netns();
    run_in_netns(netns.as_fd(), forward).unwrap();
    netns
}

/// Packets are passed on; addresses can be used at once.
fn forward() {
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
    ] {
        std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
    }
}

/// One end of a link: where, the device's name, its addresses.
type End<'a> = (&'a OwnedFd, &'a str, [&'a str; 2]);

/// Joins two namespaces.
fn link(ends: [End<'_>; 2], mtu: u32) {
    let [(here, name, _), (there, other, _)] = ends;
    let mut netlink = Netlink::open_in(here.as_fd()).unwrap();
    netlink
        .create_veth(name, "joined", Some(there.as_fd()))
        .unwrap();
    let mut far = Netlink::open_in(there.as_fd()).unwrap();
    let joined = far.link_index("joined").unwrap();
    far.rename(joined, other).unwrap();
    for (netns, name, addresses) in ends {
        let mut netlink = Netlink::open_in(netns.as_fd()).unwrap();
        let device = netlink.link_index(name).unwrap();
        for address in addresses {
            let address = address.parse().unwrap();
            netlink.add_address(device, address).unwrap();
        }
        netlink.set_mtu(device, mtu).unwrap();
        netlink.set_up(device).unwrap();
    }
}

fn route(netns: &OwnedFd, to: &str, via: &str) {
    let route = Route::via(to.parse().unwrap(), via.parse().unwrap());
    let mut netlink = Netlink::open_in(netns.as_fd()).unwrap();
    netlink.add_route(&route).unwrap();
}

struct Path {
    world: World,
    pods: [OwnedFd; 2],
    _routers: [OwnedFd; 2],
}

const PODS: [[&str; 2]; 2] = [["10.244.1.2", "fd44:1::2"], ["10.244.2.2", "fd44:2::2"]];

fn path() -> Path {
    need_guest();
    let node = |v4: &str, v6: &str| Node {
        netns: router(),
        v4: ip(v4),
        v6: ip(v6),
        datapath: None,
    };
    let (a, b) = (node("10.9.0.1", "fd09::1"), node("10.9.2.2", "fd09:2::2"));
    let (r1, r2) = (router(), router());
    let pods = [router(), router()];
    let all = [
        [
            (&a.netns, "eth0", ["10.9.0.1/24", "fd09::1/64"]),
            (&r1, "to_a", ["10.9.0.254/24", "fd09::fe/64"]),
        ],
        [
            (&r2, "to_b", ["10.9.2.254/24", "fd09:2::fe/64"]),
            (&b.netns, "eth0", ["10.9.2.2/24", "fd09:2::2/64"]),
        ],
        [
            (&a.netns, "pod0", ["10.244.1.1/24", "fd44:1::1/64"]),
            (&pods[0], "eth0", ["10.244.1.2/24", "fd44:1::2/64"]),
        ],
        [
            (&b.netns, "pod0", ["10.244.2.1/24", "fd44:2::1/64"]),
            (&pods[1], "eth0", ["10.244.2.2/24", "fd44:2::2/64"]),
        ],
    ];
    for ends in all {
        link(ends, 1500);
    }
    let middle = [
        (&r1, "to_r2", ["10.9.1.1/24", "fd09:1::1/64"]),
        (&r2, "to_r1", ["10.9.1.2/24", "fd09:1::2/64"]),
    ];
    link(middle, NARROW);
    for (netns, v4, v6) in [
        (&a.netns, "10.9.0.254", "fd09::fe"),
        (&b.netns, "10.9.2.254", "fd09:2::fe"),
        (&r1, "10.9.1.2", "fd09:1::2"),
        (&r2, "10.9.1.1", "fd09:1::1"),
        (&pods[0], "10.244.1.1", "fd44:1::1"),
        (&pods[1], "10.244.2.1", "fd44:2::1"),
    ] {
        route(netns, "0.0.0.0/0", v4);
        route(netns, "::/0", v6);
    }
    let mut world = World { a, b };
    world.a.open(Options::default());
    world.b.open(Options::default());
    Path {
        world,
        pods,
        _routers: [r1, r2],
    }
}

fn net(of: usize, v6: bool) -> String {
    match v6 {
        false => format!("10.244.{}.0/24", of + 1),
        true => format!("fd44:{}::/64", of + 1),
    }
}

fn policy(own: usize, node: &Node, other: &Node, name: &str) -> TrafficPolicy {
    let nets = |of| [false, true].map(|v6| net(of, v6).parse().unwrap());
    let mut policy = overlay(node, other, name, ClearTraffic::Drop);
    policy.flows = ProtectedFlows::Routed {
        local: nets(own).into(),
        cluster: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd44::/16".parse().unwrap(),
        ],
    };
    policy.peers[0].pod_cidrs = nets(1 - own).into();
    policy
}

/// A megabyte through TCP.
fn tcp(pods: [&OwnedFd; 2], to: IpAddr) {
    const LEN: usize = 1 << 20;
    let listener = run_in_netns(pods[1].as_fd(), || {
        TcpListener::bind(SocketAddr::new(to, 8080)).unwrap()
    })
    .unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got.len()
    });
    let mut stream = run_in_netns(pods[0].as_fd(), || {
        TcpStream::connect_timeout(&SocketAddr::new(to, 8080), PATIENCE).unwrap()
    })
    .unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&vec![7; LEN]).unwrap();
    drop(stream);
    assert_eq!(receiver.join().unwrap(), LEN, "{to}");
}

/// Datagrams that fit into the pods' links and not through the hop: the first may be lost to find that
/// out, then they come in fragments.
fn udp(pods: [&OwnedFd; 2], from: IpAddr, to: IpAddr) {
    let bind = |pod: &OwnedFd, address| {
        let at = SocketAddr::new(address, 9090);
        run_in_netns(pod.as_fd(), || UdpSocket::bind(at).unwrap()).unwrap()
    };
    let (sender, receiver) = (bind(pods[0], from), bind(pods[1], to));
    receiver
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0; 2000];
    loop {
        // The kernel may say that it is too big, and then cuts it up the next time.
        let _ = sender.send_to(&[9; 1440], SocketAddr::new(to, 9090));
        match receiver.recv(&mut buffer) {
            Ok(len) => return assert_eq!(len, 1440),
            Err(_) => assert!(Instant::now() < end, "nothing of 1440 bytes came to {to}"),
        }
    }
}

/// The router's ICMP says what the hop takes, of ESP; who sent what is inside is told in turn. Each flow
/// passes, nothing is clear.
#[test]
fn every_flow_passes_a_hop_that_takes_less() {
    let mut path = path();
    let world = &mut path.world;
    let of_a = policy(0, &world.a, &world.b, "b");
    let of_b = policy(1, &world.b, &world.a, "a");
    world.a.dp(|dp| dp.set_traffic(&of_a)).unwrap();
    world.b.dp(|dp| dp.set_traffic(&of_b)).unwrap();
    for (id, v6) in [(1, false), (2, true)] {
        let side = |of| vec![TrafficSelector::prefix(net(of, v6).parse().unwrap())];
        let child = Child {
            v6,
            mode: SaMode::Tunnel,
            a_side: side(0),
            b_side: side(1),
            ..Child::new(id)
        };
        world.connect(&child);
    }
    let captures = [Capture::start(&world.a), Capture::start(&world.b)];
    let [one, two] = &path.pods;
    for family in [0, 1] {
        let [a, b] = PODS.map(|addresses| ip(addresses[family]));
        tcp([one, two], b);
        tcp([two, one], a);
        udp([one, two], a, b);
        udp([two, one], b, a);
    }
    for capture in captures {
        let seen = capture.finish();
        let (esp, _, _) = seen.numbers();
        assert!(esp > 2 * (1 << 20) / u64::from(NARROW), "{esp}");
        let other = seen.other.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(other, 0, "something was clear");
    }
}
