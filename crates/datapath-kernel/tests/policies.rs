//! The planned policies in a real kernel, with clear packets: no ESP is needed for that, so it
//! runs on any kernel with XFRM.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ipnet::IpNet;
use testudo_datapath_kernel::nft;
use testudo_datapath_kernel::plan::{Bindings, Change, changes, desired, is_ours};
use testudo_model::{ClearTraffic, Outbound, PeerId, PeerTraffic, ProtectedFlows, TrafficPolicy};
use testudo_netlink::{
    Netlink, Nft, PortMatch, Route, Xfrm, XfrmAction, XfrmDirection, XfrmPolicy, XfrmSelector,
    open_netns, run_in_netns,
};

const PORT: u16 = 6081;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Runs something in a new network namespace's thread; `None` where none can be made.
fn namespace() -> Option<OwnedFd> {
    let made = std::thread::spawn(|| {
        // SAFETY: unshare takes an integer; the thread ends right after.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 };
        done.then(|| open_netns("/proc/thread-self/ns/net").unwrap())
    });
    made.join().unwrap()
}

/// Says why and gives false where the kernel or the rights are missing; fails there in a guest.
fn can_run(test: &str) -> bool {
    let lacks = match namespace() {
        None => "root (network namespaces)".to_owned(),
        Some(netns) => match Xfrm::open_in(netns.as_fd()).and_then(|mut xfrm| xfrm.policies()) {
            Ok(_) => return true,
            Err(error) => format!("a kernel with XFRM ({error})"),
        },
    };
    assert!(std::env::var_os("TESTUDO_GUEST").is_none(), "{lacks}");
    eprintln!("SKIPPED {test}: it needs {lacks}");
    false
}

struct Node {
    netns: OwnedFd,
}

impl Node {
    fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        run_in_netns(self.netns.as_fd(), job).unwrap()
    }

    fn netlink(&self) -> Netlink {
        Netlink::open_in(self.netns.as_fd()).unwrap()
    }

    fn xfrm(&self) -> Xfrm {
        Xfrm::open_in(self.netns.as_fd()).unwrap()
    }

    fn address(&self, link: &str, address: &str) {
        let mut nl = self.netlink();
        let link = nl.link_index(link).unwrap();
        nl.add_address(link, net(address)).unwrap();
        nl.set_up(link).unwrap();
    }

    /// Makes the kernel have the policies wanted, as the datapath does.
    fn set(&self, want: &[XfrmPolicy]) {
        let mut xfrm = self.xfrm();
        let plan = changes(&xfrm.policies().unwrap(), want);
        assert_eq!(plan.conflicts, []);
        for change in &plan.changes {
            carry_out(&mut xfrm, change);
        }
    }

    fn bind(&self, address: &str, port: u16) -> UdpSocket {
        let address = SocketAddr::new(ip(address), port);
        let socket = self.run(move || UdpSocket::bind(address).unwrap());
        let limit = Some(Duration::from_millis(300));
        socket.set_read_timeout(limit).unwrap();
        socket
    }
}

fn carry_out(xfrm: &mut Xfrm, change: &Change) {
    match change {
        Change::Add(policy) => xfrm.add_policy(policy).unwrap(),
        Change::Replace(policy) => xfrm.update_policy(policy).unwrap(),
        Change::Remove(key) => xfrm.delete_policy(key).unwrap(),
    }
}

/// Whether a datagram from one end to a port of the other arrives. A refusal to send is a no.
fn arrives(from: (&Node, &str), to: (&Node, &str), port: u16) -> bool {
    let receiver = to.0.bind(to.1, port);
    let sender = from.0.bind(from.1, 0);
    let destination = SocketAddr::new(ip(to.1), port);
    if sender.send_to(b"clear", destination).is_err() {
        return false;
    }
    receiver.recv(&mut [0; 16]).is_ok()
}

/// ```text
/// pod 10.244.1.2 -- n1 10.0.0.1, fd00::1 ---- n2 10.0.0.2, fd00::2 (10.244.2.1 a pod's)
/// ```
struct World {
    n1: Node,
    n2: Node,
    pod: Node,
}

impl World {
    fn new() -> Self {
        let [n1, n2, pod] = [(), (), ()].map(|()| {
            let node = Node {
                netns: namespace().unwrap(),
            };
            node.run(|| {
                // Nodes are routers; link-local addresses must not take a second.
                for (path, value) in [
                    ("ipv4/ip_forward", "1"),
                    ("ipv6/conf/all/accept_dad", "0"),
                    ("ipv6/conf/default/accept_dad", "0"),
                ] {
                    std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
                }
            });
            let mut nl = node.netlink();
            let lo = nl.link_index("lo").unwrap();
            nl.set_up(lo).unwrap();
            node
        });
        n1.netlink()
            .create_veth("eth0", "eth0", Some(n2.netns.as_fd()))
            .unwrap();
        n1.netlink()
            .create_veth("pods", "eth0", Some(pod.netns.as_fd()))
            .unwrap();
        for (node, link, address) in [
            (&n1, "eth0", "10.0.0.1/24"),
            (&n1, "eth0", "fd00::1/64"),
            (&n2, "eth0", "10.0.0.2/24"),
            (&n2, "eth0", "fd00::2/64"),
            (&n1, "pods", "10.244.1.1/24"),
            (&pod, "eth0", "10.244.1.2/24"),
            (&n2, "eth0", "10.244.2.1/24"),
        ] {
            node.address(link, address);
        }
        let route = |node: &Node, to: &str, via: &str| {
            let route = Route::via(net(to), ip(via));
            node.netlink().add_route(&route).unwrap();
        };
        route(&n1, "10.244.2.0/24", "10.0.0.2");
        route(&n2, "10.244.1.0/24", "10.0.0.1");
        route(&pod, "0.0.0.0/0", "10.244.1.1");
        let world = Self { n1, n2, pod };
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let reached = (0..20).any(|_| world.to_n2(from, to, PORT));
            assert!(reached, "{to} cannot be reached");
        }
        world
    }

    fn to_n2(&self, from: &str, to: &str, port: u16) -> bool {
        arrives((&self.n1, from), (&self.n2, to), port)
    }

    fn to_n1(&self, from: &str, to: &str, port: u16) -> bool {
        arrives((&self.n2, from), (&self.n1, to), port)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Prepared,
    Permissive,
    Strict,
}

/// n1's policy.
fn policy(flows: ProtectedFlows, step: Step) -> TrafficPolicy {
    let clear = match step {
        Step::Strict => ClearTraffic::Drop,
        _ => ClearTraffic::Pass,
    };
    TrafficPolicy {
        addresses: vec![ip("10.0.0.1"), ip("fd00::1")],
        flows,
        clear_inbound: clear,
        clear_outbound: clear,
        peers: vec![PeerTraffic {
            peer: PeerId::new("n2").unwrap(),
            addresses: vec![ip("10.0.0.2"), ip("fd00::2")],
            pod_cidrs: vec![net("10.244.2.0/24")],
            outbound: match step {
                Step::Prepared => Outbound::Clear,
                _ => Outbound::Encrypt,
            },
        }],
    }
}

fn overlay() -> ProtectedFlows {
    ProtectedFlows::Overlay { port: PORT }
}

fn routed() -> ProtectedFlows {
    ProtectedFlows::Routed {
        local: vec![net("10.244.1.0/24")],
        cluster: vec![net("10.244.0.0/16")],
    }
}

fn wanted(flows: ProtectedFlows, step: Step) -> Vec<XfrmPolicy> {
    let mut bindings = Bindings::default();
    bindings.bind(&PeerId::new("n2").unwrap()).unwrap();
    desired(&policy(flows, step), &bindings, true)
}

/// Somebody else's: another port than ours, a priority of charon's.
fn foreign() -> XfrmPolicy {
    XfrmPolicy {
        direction: XfrmDirection::Out,
        selector: XfrmSelector {
            source: net("10.0.0.1/32"),
            destination: net("10.0.0.2/32"),
            protocol: 17,
            source_port: PortMatch::ANY,
            destination_port: PortMatch::exactly(4242),
        },
        action: XfrmAction::Block,
        priority: 366_911,
        mark: (0, 0),
        if_id: 0,
        templates: Vec::new(),
    }
}

#[test]
fn the_kernel_gives_back_what_was_planned() {
    if !can_run("the_kernel_gives_back_what_was_planned") {
        return;
    }
    let world = World::new();
    let mut xfrm = world.n1.xfrm();
    xfrm.add_policy(&foreign()).unwrap();
    let steps = [
        Step::Prepared,
        Step::Permissive,
        Step::Strict,
        Step::Permissive,
    ];
    for flows in [overlay(), routed()] {
        for step in steps {
            let mut want = wanted(flows.clone(), step);
            world.n1.set(&want);
            let mut have = xfrm.policies().unwrap();
            assert_eq!(have.iter().filter(|p| is_ours(p)).count(), want.len());
            want.push(foreign());
            have.sort();
            want.sort();
            assert_eq!(have, want, "{step:?}");
        }
    }
    world.n1.set(&[]);
    assert_eq!(xfrm.policies().unwrap(), [foreign()]);
}

#[test]
fn an_overlays_clear_packets_end_where_the_policy_says() {
    if !can_run("an_overlays_clear_packets_end_where_the_policy_says") {
        return;
    }
    let world = World::new();
    for (ours, theirs) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        for step in [Step::Prepared, Step::Permissive, Step::Strict] {
            world.n1.set(&wanted(overlay(), step));
            let closed_out = step != Step::Prepared;
            let closed_in = step == Step::Strict;
            let case = format!("{step:?}, {ours}");
            assert_eq!(world.to_n2(ours, theirs, PORT), !closed_out, "out: {case}");
            assert_eq!(world.to_n1(theirs, ours, PORT), !closed_in, "in: {case}");
            // Other ports, IKE's among them, and the node's packets to itself.
            assert!(world.to_n2(ours, theirs, 500) && world.to_n1(theirs, ours, 500));
            let itself = arrives((&world.n1, ours), (&world.n1, ours), PORT);
            assert!(itself, "to itself: {case}");
        }
        let localhost = if ours.contains(':') {
            "::1"
        } else {
            "127.0.0.1"
        };
        let n1 = &world.n1;
        assert!(arrives((n1, localhost), (n1, localhost), PORT));
        world.n1.set(&[]);
        assert!(world.to_n2(ours, theirs, PORT) && world.to_n1(theirs, ours, PORT));
    }
    // L117: nobody was asked for an SA, none is larval.
    let larval = world.n1.xfrm().sas(|sa| Some(sa.sa.id)).unwrap();
    assert!(larval.is_empty(), "{larval:?}");
}

#[test]
fn pods_clear_packets_end_where_the_policy_says() {
    if !can_run("pods_clear_packets_end_where_the_policy_says") {
        return;
    }
    let world = World::new();
    let (n1, n2, pod) = (&world.n1, &world.n2, &world.pod);
    let (pod1, pod2, host1, host2) = ("10.244.1.2", "10.244.2.1", "10.0.0.1", "10.0.0.2");
    let bridge = "10.244.1.1";
    for step in [
        Step::Prepared,
        Step::Permissive,
        Step::Strict,
        Step::Permissive,
    ] {
        n1.set(&wanted(routed(), step));
        let out = step == Step::Prepared;
        let inward = step != Step::Strict;
        for (from, to, expected) in [
            ((pod, pod1), (n2, pod2), out),
            ((pod, pod1), (n2, host2), out),
            ((n1, host1), (n2, pod2), out),
            ((n1, bridge), (n2, pod2), out),
            ((n2, pod2), (pod, pod1), inward),
            ((n2, host2), (pod, pod1), inward),
            ((n2, pod2), (n1, host1), inward),
            ((n2, pod2), (n1, bridge), inward),
            // Hosts among themselves, and what stays on the node.
            ((n1, host1), (n2, host2), true),
            ((n2, host2), (n1, host1), true),
            ((pod, pod1), (n1, bridge), true),
            ((pod, pod1), (n1, host1), true),
            ((n1, bridge), (pod, pod1), true),
            ((n1, host1), (pod, pod1), true),
        ] {
            let seen = arrives(from, to, 7777);
            assert_eq!(seen, expected, "{step:?}: {} to {}", from.1, to.1);
        }
    }
}

#[test]
fn the_firewall_alone_drops_clear_packets_and_counts_them() {
    if !can_run("the_firewall_alone_drops_clear_packets_and_counts_them") {
        return;
    }
    let world = World::new();
    let strict = policy(overlay(), Step::Strict);
    let nft = Nft::new("nft");
    match world.n1.run(|| nft::apply(&nft, &strict)) {
        Ok(None) => {}
        Ok(Some(notice)) => {
            // A kernel without tables says so, and nothing else is wrong.
            assert!(notice.contains("no nftables for IP"), "{notice}");
            eprintln!("SKIPPED the_firewall_alone_drops_clear_packets_and_counts_them: {notice}");
            assert!(world.n1.run(|| nft::remove(&nft)).is_ok());
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let drops = || world.n1.run(nft::drops);
    assert_eq!(drops(), [("clear_inbound", 0), ("clear_outbound", 0)]);
    for (ours, theirs) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        assert!(!world.to_n2(ours, theirs, PORT) && !world.to_n1(theirs, ours, PORT));
        assert!(world.to_n2(ours, theirs, 500) && world.to_n1(theirs, ours, 500));
        assert!(arrives((&world.n1, ours), (&world.n1, ours), PORT));
    }
    assert_eq!(drops(), [("clear_inbound", 2), ("clear_outbound", 2)]);
    let permissive = policy(overlay(), Step::Permissive);
    assert_eq!(
        world.n1.run(|| nft::apply(&nft, &permissive)).unwrap(),
        None
    );
    assert!(drops().is_empty());
    assert!(world.to_n2("10.0.0.1", "10.0.0.2", PORT));
}

#[test]
fn somebody_elses_policy_is_named_and_never_overwritten() {
    if !can_run("somebody_elses_policy_is_named_and_never_overwritten") {
        return;
    }
    let world = World::new();
    let want = wanted(overlay(), Step::Strict);
    let mut xfrm = world.n1.xfrm();
    let theirs: Vec<XfrmPolicy> = want
        .iter()
        .filter(|policy| policy.direction == XfrmDirection::Out)
        .map(|policy| XfrmPolicy {
            priority: 366_911,
            action: XfrmAction::Block,
            templates: Vec::new(),
            ..policy.clone()
        })
        .collect();
    for policy in &theirs {
        xfrm.add_policy(policy).unwrap();
    }
    let plan = changes(&xfrm.policies().unwrap(), &want);
    assert_eq!(plan.conflicts.len(), theirs.len());
    let text = plan.conflicts[0].to_string();
    assert!(text.contains("priority 366911 action block"), "{text}");
    for change in &plan.changes {
        carry_out(&mut xfrm, change);
    }
    let have = xfrm.policies().unwrap();
    assert!(theirs.iter().all(|policy| have.contains(policy)));
    assert!(
        !world.to_n1("10.0.0.2", "10.0.0.1", PORT),
        "closed as far as can be"
    );
    // The kernel itself refuses a second one, should it have come in between.
    let refused = want.iter().find(|p| p.key() == theirs[0].key()).unwrap();
    assert!(xfrm.add_policy(refused).unwrap_err().is_exists());
    world_ends_with(&mut xfrm, &theirs);
}

/// What is ours goes, what is theirs stays.
fn world_ends_with(xfrm: &mut Xfrm, theirs: &[XfrmPolicy]) {
    for change in changes(&xfrm.policies().unwrap(), &[]).changes {
        carry_out(xfrm, &change);
    }
    let mut left = xfrm.policies().unwrap();
    let mut theirs = theirs.to_vec();
    left.sort();
    theirs.sort();
    assert_eq!(left, theirs);
}
