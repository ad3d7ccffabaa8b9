//! Two nodes in two network namespaces on one link, both with the kernel datapath:
//!
//! ```text
//!  a: pod network ... 10.9.0.1, fd09::1  eth0 ====== eth0  10.9.0.2, fd09::2 ... b
//! ```
#![allow(dead_code, unreachable_pub)]

pub mod wire;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use testudo_crypto::SecretBytes;
use testudo_datapath::{Datapath, Event};
use testudo_datapath_kernel::{KernelDatapath, Options};
use testudo_model::{
    ChildId, Cipher, ClearTraffic, Encapsulation, InboundSaSpec, Outbound, OutboundSaSpec, PeerId,
    PeerTraffic, ProtectedFlows, SaLimits, SaMode, Spi, TrafficPolicy, TrafficSelector,
};
use testudo_netlink::{Netlink, Xfrm, enter_netns, open_netns, run_in_netns};

/// The overlay's port.
pub const PORT: u16 = 6081;

/// These tests mean nothing without ESP.
pub fn need_guest() {
    assert!(
        std::env::var_os("TESTUDO_GUEST").is_some(),
        "this test needs a kernel with ESP: build it and run it with `cargo xtask guest -- PROGRAM` \
         (docs/guest.md)"
    );
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A network namespace of its own, with its loopback up; it goes with the last descriptor.
pub fn new_netns() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: unshare takes an integer; the thread ends right after.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "unshare");
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link_index("lo").unwrap();
        netlink.set_up(lo).unwrap();
        open_netns("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

/// One end.
pub struct Node {
    pub netns: OwnedFd,
    pub v4: IpAddr,
    pub v6: IpAddr,
    pub datapath: Option<KernelDatapath>,
}

impl Node {
    /// Runs in the node's namespace.
    pub fn run<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        run_in_netns(self.netns.as_fd(), run).unwrap()
    }

    /// A call of the node's datapath.
    pub fn dp<T: Send>(&mut self, call: impl FnOnce(&mut KernelDatapath) -> T + Send) -> T {
        let datapath = self.datapath.as_mut().expect("the datapath is open");
        run_in_netns(self.netns.as_fd(), || call(datapath)).unwrap()
    }

    pub fn open(&mut self, options: Options) {
        let opened = self.run(|| KernelDatapath::open(options));
        self.datapath = Some(opened.unwrap_or_else(|e| panic!("open: {e}")));
    }

    /// Another socket of the kernel's XFRM, as another program has.
    pub fn xfrm(&self) -> Xfrm {
        Xfrm::open_in(self.netns.as_fd()).unwrap()
    }

    /// A program in the node's namespace; its output.
    pub fn command(&self, line: &str) -> String {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let output = self.run(move || {
            std::process::Command::new(&words[0])
                .args(&words[1..])
                .output()
                .unwrap()
        });
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The next event, IKE or not, within 5 seconds, that `wanted` takes.
    pub fn event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let end = Instant::now() + Duration::from_secs(5);
        let mut others = Vec::new();
        let datapath = self.datapath.as_mut().unwrap();
        while Instant::now() < end {
            match datapath.poll_event() {
                Some(event) if wanted(&event) => return event,
                Some(other) => others.push(other),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        panic!("no such event; but {others:?}");
    }

    /// All that waits now.
    pub fn events(&mut self) -> Vec<Event> {
        let datapath = self.datapath.as_mut().unwrap();
        std::iter::from_fn(|| datapath.poll_event()).collect()
    }

    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }
    }
}

/// Two nodes.
pub struct World {
    pub a: Node,
    pub b: Node,
}

/// The namespaces and their link; no datapath is open.
pub fn bare_world() -> World {
    need_guest();
    let node = |last: u8| Node {
        netns: new_netns(),
        v4: ip(&format!("10.9.0.{last}")),
        v6: ip(&format!("fd09::{last}")),
        datapath: None,
    };
    let world = World {
        a: node(1),
        b: node(2),
    };
    let mut one = Netlink::open_in(world.a.netns.as_fd()).unwrap();
    let mut two = Netlink::open_in(world.b.netns.as_fd()).unwrap();
    one.create_veth("eth0", "peer0", Some(world.b.netns.as_fd()))
        .unwrap();
    let other = two.link_index("peer0").unwrap();
    two.rename(other, "eth0").unwrap();
    for (netlink, node) in [(&mut one, &world.a), (&mut two, &world.b)] {
        let link = netlink.link_index("eth0").unwrap();
        for address in [format!("{}/24", node.v4), format!("{}/64", node.v6)] {
            netlink.add_address(link, address.parse().unwrap()).unwrap();
        }
        netlink.set_up(link).unwrap();
    }
    world
}

/// Two nodes with their datapaths open.
pub fn world() -> World {
    let mut world = bare_world();
    world.a.open(Options::default());
    world.b.open(Options::default());
    world
}

pub fn peer(name: &str) -> PeerId {
    PeerId::try_from(name.to_owned()).unwrap()
}

/// The overlay's policy of a node towards one peer, sealed.
pub fn overlay(node: &Node, other: &Node, name: &str, clear: ClearTraffic) -> TrafficPolicy {
    TrafficPolicy {
        addresses: vec![node.v4, node.v6],
        flows: ProtectedFlows::Overlay { port: PORT },
        clear_inbound: clear,
        clear_outbound: clear,
        peers: vec![PeerTraffic {
            peer: peer(name),
            addresses: vec![other.v4, other.v6],
            pod_cidrs: Vec::new(),
            outbound: Outbound::Encrypt,
        }],
    }
}

/// A pair of SAs between a and b, as both ends are told of it.
#[derive(Clone)]
pub struct Child {
    pub id: u64,
    pub v6: bool,
    pub udp: bool,
    pub esn: bool,
    /// The CPU of both ends that sends on it; `None`: all.
    pub cpu: Option<u32>,
    /// What b sends does not leave on it.
    pub b_opens_only: bool,
    pub mode: SaMode,
    pub limits: SaLimits,
    /// Selectors of a's and of b's side; empty: their addresses, UDP.
    pub a_side: Vec<TrafficSelector>,
    pub b_side: Vec<TrafficSelector>,
}

impl Child {
    pub fn new(id: u64) -> Self {
        Self {
            id,
            v6: false,
            udp: false,
            esn: true,
            cpu: None,
            b_opens_only: false,
            mode: SaMode::Transport,
            limits: SaLimits {
                soft_bytes: u64::MAX - 1,
                soft_packets: u64::MAX - 1,
            },
            a_side: Vec::new(),
            b_side: Vec::new(),
        }
    }

    pub fn child(&self) -> ChildId {
        ChildId(self.id)
    }

    /// SPIs towards a and towards b.
    pub fn spis(&self) -> (u32, u32) {
        (0x1000_0000 + self.id as u32, 0x2000_0000 + self.id as u32)
    }

    fn keymat(&self, towards_a: bool) -> SecretBytes {
        let mut key = vec![u8::from(towards_a); Cipher::AES_256_GCM.keymat_len()];
        key[1..9].copy_from_slice(&self.id.to_be_bytes());
        SecretBytes::new(key)
    }

    pub fn encapsulation(&self, local: &Node, remote: &Node) -> Encapsulation {
        let (local, remote) = (local.address(self.v6), remote.address(self.v6));
        match self.udp {
            false => Encapsulation::None { local, remote },
            true => Encapsulation::Udp {
                local: SocketAddr::new(local, 4500),
                remote: SocketAddr::new(remote, 4500),
            },
        }
    }

    fn side(&self, node: &Node, given: &[TrafficSelector]) -> Vec<TrafficSelector> {
        if !given.is_empty() {
            return given.to_vec();
        }
        let prefix = TrafficSelector::prefix(node.address(self.v6).into());
        vec![prefix.with(17, testudo_model::PortRange::ANY)]
    }

    /// What a node (a: `is_a`) is to install, inbound and outbound.
    pub fn specs(&self, a: &Node, b: &Node, is_a: bool) -> (InboundSaSpec, OutboundSaSpec) {
        let (node, other, name) = if is_a { (a, b, "b") } else { (b, a, "a") };
        let sides = (self.side(a, &self.a_side), self.side(b, &self.b_side));
        let (local, remote) = if is_a { sides } else { (sides.1, sides.0) };
        let (to_a, to_b) = self.spis();
        let (own, others) = if is_a { (to_a, to_b) } else { (to_b, to_a) };
        let encapsulation = self.encapsulation(node, other);
        let inbound = InboundSaSpec {
            child: self.child(),
            peer: peer(name),
            spi: Spi(own),
            cipher: Cipher::AES_256_GCM,
            keymat: self.keymat(is_a),
            esn: self.esn,
            replay_window: 1024,
            mode: self.mode,
            encapsulation,
            local: local.clone(),
            remote: remote.clone(),
        };
        let outbound = OutboundSaSpec {
            child: self.child(),
            peer: peer(name),
            spi: Spi(others),
            cipher: Cipher::AES_256_GCM,
            keymat: self.keymat(!is_a),
            esn: self.esn,
            mode: self.mode,
            encapsulation,
            local,
            remote,
            limits: self.limits,
        };
        (inbound, outbound)
    }
}

impl World {
    /// Both nodes seal the overlay towards each other.
    pub fn seal(&mut self, clear: ClearTraffic) {
        let (of_a, of_b) = (
            overlay(&self.a, &self.b, "b", clear),
            overlay(&self.b, &self.a, "a", clear),
        );
        self.a.dp(|dp| dp.set_traffic(&of_a)).unwrap();
        self.b.dp(|dp| dp.set_traffic(&of_b)).unwrap();
    }

    /// The agent of `a` is killed, which removes nothing, and its successor closes the host with the
    /// policy that was kept: what it opens the datapath with, and that policy.
    pub fn kill_and_close(&mut self) -> (Options, TrafficPolicy) {
        self.a.datapath = None;
        std::thread::sleep(Duration::from_millis(300));
        let policy = overlay(&self.a, &self.b, "b", ClearTraffic::Drop);
        let options = Options {
            kept: Some(policy.clone()),
            ..Options::default()
        };
        let closed = self
            .a
            .run(|| testudo_datapath_kernel::close(&options, &policy));
        closed.unwrap();
        (options, policy)
    }

    /// Installs a pair at both ends, inbound first.
    pub fn install(&mut self, child: &Child) {
        let (a_in, a_out) = child.specs(&self.a, &self.b, true);
        let (b_in, b_out) = child.specs(&self.a, &self.b, false);
        self.a.dp(|dp| dp.install_inbound(a_in)).unwrap();
        self.b.dp(|dp| dp.install_inbound(b_in)).unwrap();
        let outbound = |dp: &mut KernelDatapath, spec| match child.cpu {
            None => dp.install_outbound(spec),
            Some(cpu) => dp.install_outbound_for(cpu, spec),
        };
        self.a.dp(|dp| outbound(dp, a_out)).unwrap();
        if !child.b_opens_only {
            self.b.dp(|dp| outbound(dp, b_out)).unwrap();
        }
    }

    pub fn use_outbound(&mut self, child: &Child) {
        let id = child.child();
        self.a.dp(|dp| dp.use_outbound(id)).unwrap();
        if !child.b_opens_only {
            self.b.dp(|dp| dp.use_outbound(id)).unwrap();
        }
    }

    pub fn remove(&mut self, child: &Child) {
        let id = child.child();
        self.a.dp(|dp| dp.remove(id)).unwrap();
        self.b.dp(|dp| dp.remove(id)).unwrap();
    }

    /// Installs and uses a pair at both ends.
    pub fn connect(&mut self, child: &Child) {
        self.install(child);
        self.use_outbound(child);
    }
}

/// Enters a namespace for the rest of a thread.
pub fn enter(netns: &OwnedFd) {
    enter_netns(netns.as_fd()).unwrap();
}
