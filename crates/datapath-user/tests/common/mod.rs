//! Nodes in network namespaces for the tests.
//!
//! ```text
//!   n1 eth0 --\                     addresses 192.0.2.N, 2001:db8::N
//!   n2 eth0 ---- br0 (switch)       overlay   vx0 10.99.0.N, fd99::N
//!   n3 eth0 --/                     pods      10.N.0.2, fd00:N::2 behind eth1
//! ```
//!
//! Namespaces have no names: they are gone with the threads and descriptors that hold them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use testudo_crypto::{Cipher, SecretBytes};
use testudo_datapath::Datapath;
use testudo_datapath_user::{Options, UserDatapath};
use testudo_model::{
    ChildId, ClearTraffic, Encapsulation, InboundSaSpec, Outbound, OutboundSaSpec, PeerId,
    PeerTraffic, PortRange, ProtectedFlows, SaLimits, SaMode, Spi, TrafficPolicy, TrafficSelector,
};
use testudo_netlink::{FdbEntry, MacAddress, Netlink, Route, Vxlan, open_netns};

pub const PORT: u16 = 4789;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Says why and gives false where namespaces cannot be made.
pub fn can_run(test: &str) -> bool {
    let root = std::thread::spawn(|| {
        // SAFETY: unshare takes an integer; the thread ends right after.
        unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 }
    });
    let tun = std::path::Path::new("/dev/net/tun").exists();
    if root.join().unwrap() && tun {
        return true;
    }
    eprintln!("SKIPPED {test}: it needs root (network namespaces) and /dev/net/tun");
    false
}

type Job = Box<dyn FnOnce(&mut Option<UserDatapath>) + Send>;

/// A thread that lives in a namespace of its own and holds its datapath.
pub struct Node {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    pub netns: OwnedFd,
    pub state: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Self {
        let (jobs, inbox) = channel::<Job>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: unshare takes an integer and touches this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            tell.send(open_netns("/proc/thread-self/ns/net").unwrap())
                .unwrap();
            let mut datapath = None;
            for job in inbox {
                job(&mut datapath);
            }
        });
        let node = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            netns: told.recv().unwrap(),
            state: tempfile::tempdir().unwrap(),
        };
        node.run(|_| {
            // Link-local addresses, which neighbour discovery needs, would take a second.
            for which in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{which}/accept_dad");
                std::fs::write(path, "0").unwrap();
            }
            let mut nl = Netlink::open().unwrap();
            let lo = nl.link_index("lo").unwrap();
            nl.set_up(lo).unwrap();
        });
        node
    }

    /// Runs something in the namespace and gives its result.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Option<UserDatapath>) -> T + Send + 'static,
    ) -> T {
        let (tell, told) = channel();
        let job: Job = Box::new(move |datapath| {
            let _ = tell.send(job(datapath));
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        told.recv().expect("the job panicked")
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in(self.netns.as_fd()).unwrap()
    }

    /// Runs a program; gives success and output.
    pub fn command(&self, line: &str) -> (bool, String) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        self.run(move |_| {
            let out = Command::new(&words[0]).args(&words[1..]).output().unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned()
                + &String::from_utf8_lossy(&out.stderr);
            (out.status.success(), text)
        })
    }

    pub fn ping(&self, to: &str) -> bool {
        let out = self.command(&format!("ping -c 3 -i 0.05 -W 1 {to}"));
        out.0 && out.1.contains(" 0% packet loss")
    }

    pub fn sysctl(&self, path: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/net/{path}"), value.to_owned());
        self.run(move |_| std::fs::write(path, value).unwrap());
    }

    pub fn start(&self, change: impl FnOnce(&mut Options)) {
        let mut options = Options::new(self.state.path());
        options.queues = Some(2);
        change(&mut options);
        self.run(move |datapath| *datapath = Some(UserDatapath::new(options).unwrap()));
    }

    /// Does something with the datapath.
    pub fn with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut UserDatapath) -> T + Send + 'static,
    ) -> T {
        self.run(move |datapath| job(datapath.as_mut().unwrap()))
    }

    pub fn bind(&self, address: &str) -> UdpSocket {
        let address = address.to_owned();
        let socket = self.run(move |_| UdpSocket::bind(address).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let raw = socket2::SockRef::from(&socket);
        raw.set_recv_buffer_size(8 << 20).unwrap();
        socket
    }

    pub fn drops(&self, reason: &'static str) -> u64 {
        self.with(move |d| d.counters().drops.get(reason).copied().unwrap_or(0))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Nodes n1, n2, … on one underlay.
pub struct World {
    pub switch: Node,
    pub nodes: Vec<Node>,
}

impl World {
    pub fn new(count: usize) -> Self {
        let switch = Node::new();
        let mut nl = switch.netlink();
        nl.create_bridge("br0").unwrap();
        let bridge = nl.link_index("br0").unwrap();
        nl.set_up(bridge).unwrap();
        let nodes: Vec<Node> = (1..=count).map(|_| Node::new()).collect();
        for (index, node) in nodes.iter().enumerate() {
            let n = index + 1;
            let port = format!("p{n}");
            nl.create_veth(&port, "eth0", Some(node.netns.as_fd()))
                .unwrap();
            let port = nl.link_index(&port).unwrap();
            nl.set_master(port, Some(bridge)).unwrap();
            nl.set_up(port).unwrap();
            let mut own = node.netlink();
            let eth0 = own.link_index("eth0").unwrap();
            own.add_address(eth0, format!("192.0.2.{n}/24").parse().unwrap())
                .unwrap();
            own.add_address(eth0, format!("2001:db8::{n}/64").parse().unwrap())
                .unwrap();
            own.set_up(eth0).unwrap();
        }
        let world = Self { switch, nodes };
        world.wait_for("192.0.2.");
        world
    }

    /// Waits until the first node reaches the others: new links take a moment on a busy machine.
    fn wait_for(&self, prefix: &str) {
        for n in 2..=self.nodes.len() {
            let reached = (0..20).any(|_| self.nodes[0].ping(&format!("{prefix}{n}")));
            assert!(reached, "{prefix}{n} cannot be reached");
        }
    }

    /// A VXLAN over the underlay of that family.
    pub fn overlay(&self, v6: bool) {
        for (index, node) in self.nodes.iter().enumerate() {
            let mut nl = node.netlink();
            let local = Some(address(index, v6));
            let vxlan = Vxlan {
                id: 42,
                port: PORT,
                local,
                device: None,
                learning: true,
            };
            nl.create_vxlan("vx0", vxlan).unwrap();
            let vx0 = nl.link_index("vx0").unwrap();
            let n = index + 1;
            nl.set_mtu(vx0, if v6 { 1380 } else { 1400 }).unwrap();
            nl.add_address(vx0, format!("10.99.0.{n}/24").parse().unwrap())
                .unwrap();
            nl.set_up(vx0).unwrap();
            for other in (0..self.nodes.len()).filter(|other| *other != index) {
                let remote = address(other, v6);
                nl.add_fdb(FdbEntry {
                    link: vx0,
                    mac: MacAddress::ZERO,
                    remote,
                })
                .unwrap();
            }
        }
        self.wait_for("10.99.0.");
    }

    /// A pod behind each node, and routes between them.
    pub fn pods(&self) -> Vec<Node> {
        let mut pods = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let n = index + 1;
            let pod = Node::new();
            node.sysctl("ipv4/ip_forward", "1");
            node.sysctl("ipv6/conf/all/forwarding", "1");
            let mut nl = node.netlink();
            nl.create_veth("eth1", "eth0", Some(pod.netns.as_fd()))
                .unwrap();
            let eth1 = nl.link_index("eth1").unwrap();
            nl.add_address(eth1, format!("10.{n}.0.1/24").parse().unwrap())
                .unwrap();
            nl.add_address(eth1, format!("fd00:{n}::1/64").parse().unwrap())
                .unwrap();
            nl.set_up(eth1).unwrap();
            let mut own = pod.netlink();
            let eth0 = own.link_index("eth0").unwrap();
            own.add_address(eth0, format!("10.{n}.0.2/24").parse().unwrap())
                .unwrap();
            own.add_address(eth0, format!("fd00:{n}::2/64").parse().unwrap())
                .unwrap();
            own.set_up(eth0).unwrap();
            let default = |text: &str| text.parse().unwrap();
            own.add_route(&Route::via(
                default("0.0.0.0/0"),
                ip(&format!("10.{n}.0.1")),
            ))
            .unwrap();
            own.add_route(&Route::via(default("::/0"), ip(&format!("fd00:{n}::1"))))
                .unwrap();
            for other in (1..=self.nodes.len()).filter(|other| *other != n) {
                let v4 = default(&format!("10.{other}.0.0/24"));
                nl.add_route(&Route::via(v4, ip(&format!("192.0.2.{other}"))))
                    .unwrap();
                let v6 = default(&format!("fd00:{other}::/64"));
                nl.add_route(&Route::via(v6, ip(&format!("2001:db8::{other}"))))
                    .unwrap();
            }
            pods.push(pod);
        }
        pods
    }
}

pub fn address(index: usize, v6: bool) -> IpAddr {
    let n = index + 1;
    if v6 {
        ip(&format!("2001:db8::{n}"))
    } else {
        ip(&format!("192.0.2.{n}"))
    }
}

pub fn peer(index: usize) -> PeerId {
    PeerId::new(format!("n{}", index + 1)).unwrap()
}

/// How far the roll-out is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Clear,
    Permissive,
    Strict,
}

/// The policy of node `me` with the peers given.
pub fn policy(me: usize, peers: &[usize], flows: ProtectedFlows, step: Step) -> TrafficPolicy {
    let clear = if step == Step::Strict {
        ClearTraffic::Drop
    } else {
        ClearTraffic::Pass
    };
    let outbound = if step == Step::Clear {
        Outbound::Clear
    } else {
        Outbound::Encrypt
    };
    let peers = peers.iter().map(|index| PeerTraffic {
        peer: peer(*index),
        addresses: vec![address(*index, false), address(*index, true)],
        pod_cidrs: vec![
            format!("10.{}.0.0/24", index + 1).parse().unwrap(),
            format!("fd00:{}::/64", index + 1).parse().unwrap(),
        ],
        outbound,
    });
    TrafficPolicy {
        addresses: vec![address(me, false), address(me, true)],
        flows,
        clear_inbound: clear,
        clear_outbound: clear,
        peers: peers.collect(),
    }
}

pub fn overlay_flows() -> ProtectedFlows {
    ProtectedFlows::Overlay { port: PORT }
}

pub fn routed_flows(me: usize) -> ProtectedFlows {
    ProtectedFlows::Routed {
        local: vec![
            format!("10.{}.0.0/24", me + 1).parse().unwrap(),
            format!("fd00:{}::/64", me + 1).parse().unwrap(),
        ],
        cluster: vec!["10.0.0.0/12".parse().unwrap(), "fd00::/16".parse().unwrap()],
    }
}

/// A pair of SAs between two nodes.
#[derive(Clone, Copy)]
pub struct Pair {
    pub child: u64,
    pub a: usize,
    pub b: usize,
    pub v6: bool,
    pub mode: SaMode,
    pub udp: bool,
    pub soft_packets: u64,
}

impl Pair {
    pub fn new(child: u64, a: usize, b: usize) -> Self {
        Self {
            child,
            a,
            b,
            v6: false,
            mode: SaMode::Transport,
            udp: false,
            soft_packets: u64::MAX,
        }
    }

    fn keymat(self, from: usize) -> SecretBytes {
        let mut key = vec![self.child as u8; 36];
        key[0] = from as u8 + 1;
        SecretBytes::new(key)
    }

    /// The SPI of packets that `to` receives.
    pub fn spi(self, to: usize) -> Spi {
        Spi(0x1000_0000 + (self.child as u32) * 0x101 + to as u32)
    }

    pub fn encapsulation(self, me: usize, other: usize) -> Encapsulation {
        let (local, remote) = (address(me, self.v6), address(other, self.v6));
        if self.udp {
            Encapsulation::Udp {
                local: (local, 4500).into(),
                remote: (remote, 4500).into(),
            }
        } else {
            Encapsulation::None { local, remote }
        }
    }

    fn selectors(self, of: usize) -> Vec<TrafficSelector> {
        match self.mode {
            SaMode::Transport => {
                vec![TrafficSelector::host(address(of, self.v6)).with(17, PortRange::ANY)]
            }
            SaMode::Tunnel => [
                format!("10.{}.0.0/24", of + 1),
                format!("fd00:{}::/64", of + 1),
            ]
            .iter()
            .map(|net| TrafficSelector::prefix(net.parse().unwrap()))
            .collect(),
        }
    }

    pub fn inbound(self, me: usize) -> InboundSaSpec {
        let other = self.a + self.b - me;
        InboundSaSpec {
            child: ChildId(self.child),
            peer: peer(other),
            spi: self.spi(me),
            cipher: Cipher::AES_256_GCM,
            keymat: self.keymat(other),
            esn: true,
            replay_window: 4096,
            mode: self.mode,
            encapsulation: self.encapsulation(me, other),
            local: self.selectors(me),
            remote: self.selectors(other),
        }
    }

    pub fn outbound(self, me: usize) -> OutboundSaSpec {
        let other = self.a + self.b - me;
        OutboundSaSpec {
            child: ChildId(self.child),
            peer: peer(other),
            spi: self.spi(other),
            cipher: Cipher::AES_256_GCM,
            keymat: self.keymat(me),
            esn: true,
            mode: self.mode,
            encapsulation: self.encapsulation(me, other),
            local: self.selectors(me),
            remote: self.selectors(other),
            limits: SaLimits {
                soft_bytes: u64::MAX,
                soft_packets: self.soft_packets,
            },
        }
    }

    /// Inbound on both nodes, then outbound on both.
    pub fn install(self, world: &World) {
        for me in [self.a, self.b] {
            world.nodes[me].with(move |d| d.install_inbound(self.inbound(me)).unwrap());
        }
        for me in [self.a, self.b] {
            world.nodes[me].with(move |d| d.install_outbound(self.outbound(me)).unwrap());
        }
    }

    pub fn switch(self, world: &World) {
        for me in [self.a, self.b] {
            world.nodes[me].with(move |d| d.use_outbound(ChildId(self.child)).unwrap());
        }
    }

    pub fn remove(self, world: &World) {
        for me in [self.a, self.b] {
            world.nodes[me].with(move |d| d.remove(ChildId(self.child)).unwrap());
        }
    }
}

/// Counts what passes on the underlay.
pub struct Tap {
    pub esp: Arc<AtomicU64>,
    pub udp_esp: Arc<AtomicU64>,
    pub clear: Arc<AtomicU64>,
    /// Clear packets of the overlay from the first node.
    pub first: Arc<AtomicU64>,
    /// Clear packets of the third node, which has no datapath where this counts.
    pub third: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Counts ESP, ESP in UDP, and clear packets: the overlay's, or between pods.
    pub fn new(switch: &Node) -> Self {
        let socket = switch.run(|_| {
            let all = Protocol::from(i32::from(0x0003u16.to_be()));
            Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).unwrap()
        });
        socket.set_recv_buffer_size(32 << 20).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let mut tap = Self {
            esp: Arc::default(),
            udp_esp: Arc::default(),
            clear: Arc::default(),
            first: Arc::default(),
            third: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        let (esp, udp_esp, clear) = (tap.esp.clone(), tap.udp_esp.clone(), tap.clear.clone());
        let (stop, third) = (Arc::clone(&tap.stop), Arc::clone(&tap.third));
        let first = Arc::clone(&tap.first);
        let thread = std::thread::spawn(move || {
            let mut packet = vec![0; 70_000];
            let mut socket = socket;
            while !stop.load(Ordering::Relaxed) {
                let Ok(len) = socket.read(&mut packet) else {
                    continue;
                };
                let Ok(header) = testudo_wire::ip::IpHeader::parse(&packet[..len]) else {
                    continue;
                };
                let port = header.ports(&packet[..len]).map_or(0, |p| p.destination);
                let pods = match header.destination {
                    IpAddr::V4(a) => a.octets()[0] == 10,
                    IpAddr::V6(a) => a.segments()[0] == 0xfd00,
                };
                let ours = [address(0, false), address(0, true)].contains(&header.source);
                if (header.protocol, port, ours) == (17, PORT, true) {
                    first.fetch_add(1, Ordering::Relaxed);
                }
                match (header.protocol, port) {
                    (50, _) => esp.fetch_add(1, Ordering::Relaxed),
                    (17, 4500) => udp_esp.fetch_add(1, Ordering::Relaxed),
                    (17, PORT) if header.source == address(2, false) => {
                        third.fetch_add(1, Ordering::Relaxed)
                    }
                    (17, PORT) => clear.fetch_add(1, Ordering::Relaxed),
                    _ if pods => clear.fetch_add(1, Ordering::Relaxed),
                    _ => 0,
                };
            }
        });
        tap.thread = Some(thread);
        tap
    }

    pub fn clear(&self) -> u64 {
        self.settle();
        self.clear.load(Ordering::Relaxed)
    }

    pub fn esp(&self) -> u64 {
        self.settle();
        self.esp.load(Ordering::Relaxed)
    }

    fn settle(&self) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Numbered datagrams at a steady rate from one node to another.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<u64>>,
    receiver: Option<JoinHandle<(HashSet<u64>, u64)>>,
    sent: Arc<Mutex<Option<u64>>>,
}

impl Flood {
    /// So many packets a second.
    pub fn start(from: UdpSocket, to: UdpSocket, rate: u64) -> Self {
        let target = to.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let halt = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let started = Instant::now();
            let mut number = 0u64;
            let mut packet = [0u8; 300];
            while !halt.load(Ordering::Relaxed) {
                let due = started.elapsed().as_micros() as u64 * rate / 1_000_000;
                while number < due {
                    packet[..8].copy_from_slice(&number.to_be_bytes());
                    // Drops are what is counted; an error here is one.
                    let _ = from.send_to(&packet, target);
                    number += 1;
                }
                std::thread::sleep(Duration::from_micros(300));
            }
            number
        });
        let sent = Arc::new(Mutex::new(None::<u64>));
        let total = Arc::clone(&sent);
        let receiver = std::thread::spawn(move || {
            let (mut seen, mut repeated) = (HashSet::new(), 0);
            let mut packet = [0u8; 400];
            // On a busy machine the last packets may come long after the sender's end.
            let mut idle = 0;
            loop {
                match to.recv(&mut packet) {
                    Ok(len) if len >= 8 => {
                        idle = 0;
                        let number = u64::from_be_bytes(packet[..8].try_into().unwrap());
                        repeated += u64::from(!seen.insert(number));
                    }
                    Ok(_) => {}
                    Err(_) => {
                        let sent = *total.lock().unwrap();
                        idle = sent.map_or(0, |_| idle + 1);
                        if idle > 0 && (idle >= 15 || sent == Some(seen.len() as u64)) {
                            return (seen, repeated);
                        }
                    }
                }
            }
        });
        Self {
            stop,
            sender: Some(sender),
            receiver: Some(receiver),
            sent,
        }
    }

    /// Ends it; gives sent, lost and repeated.
    pub fn finish(mut self) -> (u64, u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.take().unwrap().join().unwrap();
        *self.sent.lock().unwrap() = Some(sent);
        let (seen, repeated) = self.receiver.take().unwrap().join().unwrap();
        (sent, sent - seen.len() as u64, repeated)
    }
}

/// Both directions between the overlay addresses of two nodes.
pub fn flood_both(a: &Node, b: &Node, addresses: (&str, &str), rate: u64) -> [Flood; 2] {
    let bind = |node: &Node, address: &str, port: u16| node.bind(&format!("{address}:{port}"));
    [
        Flood::start(bind(a, addresses.0, 7001), bind(b, addresses.1, 7002), rate),
        Flood::start(bind(b, addresses.1, 7003), bind(a, addresses.0, 7004), rate),
    ]
}

pub fn assert_no_loss(floods: [Flood; 2], least: u64) {
    for flood in floods {
        let (sent, lost, repeated) = flood.finish();
        assert!(sent >= least, "only {sent} packets were sent");
        assert_eq!((lost, repeated), (0, 0), "lost and repeated of {sent}");
    }
}

pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

const BYTES: usize = 64 << 20;

fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

/// Sends a pattern over one TCP connection and checks every byte; gives Mbit a second.
pub fn transfer(from: &Node, to: &Node, address: &str) -> f64 {
    let bind = address.to_owned();
    let listener = to.run(move |_| TcpListener::bind(bind).unwrap());
    let address = listener.local_addr().unwrap();
    let sender = from.run(move |_| {
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3)).unwrap();
            let chunk: Vec<u8> = (0..251 * 1024).map(pattern).collect();
            let mut left = BYTES;
            while left > 0 {
                let part = left.min(chunk.len());
                stream.write_all(&chunk[..part]).unwrap();
                left -= part;
            }
        })
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let started = Instant::now();
    let (mut at, mut buffer) = (0, vec![0; 1 << 18]);
    while at < BYTES {
        let len = stream.read(&mut buffer).unwrap();
        assert_ne!(len, 0, "the stream ended after {at} bytes");
        for (offset, byte) in buffer[..len].iter().enumerate() {
            assert_eq!(*byte, pattern(at + offset), "byte {}", at + offset);
        }
        at += len;
    }
    sender.join().unwrap();
    BYTES as f64 * 8.0 / 1e6 / started.elapsed().as_secs_f64()
}
