//! Nodes with their engines, the datagrams between them, and the invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use testudo_crypto::{DangerousSeededRandom, Random, SecretBytes};
use testudo_ike::{
    ChildConfig, ChildUp, DownReason, Engine, EngineConfig, Event, FailedCheck, Identity, IkeId,
    IkeStatus, LocalIdentity, PeerAddress, PeerAuth, PeerConfig, UseOutbound,
};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{
    ChildId, Monotonic, Now, PeerId, PortRange, SaMode, TrafficSelector, UnixTime,
};

const EPOCH: i64 = 1_800_000_000;

/// Lines of the story that a failure shows.
const STORY: usize = 160;

/// A datagram on its way.
#[derive(Clone)]
pub struct Datagram {
    /// Its sender.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// The IKE message.
    pub bytes: Vec<u8>,
}

/// Why a node no longer receives on an SPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// The node's process died.
    Restart,
    /// The engine removed it.
    Down(DownReason),
}

/// Under which peer and name a child is wanted.
type Purpose = (usize, String);

/// An outbound SA as the datapath would hold it.
struct Outbound {
    purpose: Purpose,
    spi: u32,
    key: Vec<u8>,
    /// We began, and so know that the peer has it.
    ours: bool,
}

/// What a node's datapath would hold.
#[derive(Default)]
struct Twin {
    /// SPI to key and child.
    inbound: BTreeMap<u32, (Vec<u8>, ChildId)>,
    outbound: BTreeMap<ChildId, Outbound>,
    sending: BTreeMap<Purpose, ChildId>,
    ikes: BTreeSet<IkeId>,
    /// Children on which a packet came in.
    heard: BTreeSet<ChildId>,
}

/// One node.
pub struct Node {
    /// Its engine; after each call to it comes [`Net::drain`].
    pub engine: Engine,
    twin: Twin,
    gone: BTreeMap<u32, Gone>,
}

/// An ESP packet as far as it matters here.
pub struct Esp {
    /// The receiving node.
    pub to: usize,
    spi: u32,
    key: Vec<u8>,
}

/// The nodes, their time, and what became of it.
pub struct Net {
    /// Virtual time.
    pub now: Duration,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Datagrams that were sent and not yet taken by the one who drives.
    pub sent: Vec<Datagram>,
    /// No SA may be replaced before its sender has another. Not so where the network is silent
    /// for longer than a handover waits.
    pub strict: bool,
    /// The network was silent for long: who heard nothing may have removed what was replaced.
    pub silenced: bool,
    /// The first invariant that was broken.
    pub broken: Option<String>,
    story: Vec<String>,
    keys: BTreeSet<Vec<u8>>,
    random: DangerousSeededRandom,
    config: EngineConfig,
}

/// The name of a node.
pub fn peer_id(n: usize) -> PeerId {
    PeerId::new(format!("n{n}")).expect("a short name of letters and digits")
}

/// The address of a node.
pub fn address(n: usize) -> IpAddr {
    let last = u8::try_from(n + 1).unwrap_or(u8::MAX);
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

/// What `local` is told about `remote`. Pre-shared keys: a signature more or less changes no
/// order of messages, and the time is better spent on orders.
pub fn peer_config(local: usize, remote: usize, initiate: bool, children: usize) -> PeerConfig {
    let child = |n: usize| {
        let port = PortRange::one(4789 + u16::try_from(n).unwrap_or(0));
        ChildConfig {
            name: format!("child{n}"),
            mode: SaMode::Transport,
            local_ts: vec![TrafficSelector::host(address(local)).with(17, port)],
            remote_ts: vec![TrafficSelector::host(address(remote)).with(17, port)],
            resources: 0,
        }
    };
    PeerConfig {
        id: peer_id(remote),
        remote_identity: identity(remote),
        auth: PeerAuth::PreSharedKey(SecretBytes::from(&b"a secret that both know"[..])),
        addresses: vec![PeerAddress {
            local: address(local),
            remote: address(remote),
        }],
        initiate,
        encapsulation: EncapsulationMode::Auto,
        suites: None,
        children: (0..children).map(child).collect(),
    }
}

fn identity(n: usize) -> Identity {
    Identity::Fqdn(format!("n{n}.node.testudo"))
}

impl Net {
    /// Nodes that know nobody yet. `seed` decides every nonce, key and jitter.
    pub fn new(seed: u64, nodes: usize, config: EngineConfig) -> Self {
        let mut net = Self {
            now: Duration::from_secs(1),
            nodes: Vec::new(),
            sent: Vec::new(),
            strict: false,
            silenced: false,
            broken: None,
            story: Vec::new(),
            keys: BTreeSet::new(),
            random: DangerousSeededRandom::new(seed),
            config,
        };
        for n in 0..nodes {
            let node = Node {
                engine: net.engine(n),
                twin: Twin::default(),
                gone: BTreeMap::new(),
            };
            net.nodes.push(node);
        }
        net
    }

    fn engine(&mut self, n: usize) -> Engine {
        let mut seed = [0; 8];
        self.random.fill(&mut seed);
        let random = DangerousSeededRandom::new(u64::from_be_bytes(seed));
        let mut engine = Engine::new(self.config.clone(), Box::new(random));
        engine.set_identity(LocalIdentity {
            id: identity(n),
            certificate: None,
        });
        engine
    }

    /// The node's process dies and another starts: nothing is remembered.
    pub fn restart(&mut self, n: usize) {
        self.tell(n, "restarts");
        let engine = self.engine(n);
        let node = &mut self.nodes[n];
        node.engine = engine;
        let twin = std::mem::take(&mut node.twin);
        for spi in twin.inbound.into_keys() {
            node.gone.insert(spi, Gone::Restart);
        }
    }

    /// A number below `limit`, from the seed.
    pub fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_be_bytes(bytes) % limit.max(1)
    }

    /// Both clocks.
    pub fn at(&self) -> Now {
        let seconds = i64::try_from(self.now.as_secs()).unwrap_or(i64::MAX);
        Now {
            monotonic: Monotonic(self.now),
            wall: UnixTime(EPOCH.saturating_add(seconds)),
        }
    }

    /// Does something to a node's engine, takes what it says, and checks.
    pub fn act<T>(&mut self, n: usize, f: impl FnOnce(&mut Engine, Now) -> T) -> T {
        let now = self.at();
        let out = f(&mut self.nodes[n].engine, now);
        self.drain(n);
        self.check_sending();
        out
    }

    /// Hands a datagram to the node that has its address.
    pub fn deliver(&mut self, datagram: &Datagram) {
        let to = datagram.to;
        if let Some(n) = (0..self.nodes.len()).find(|n| address(*n) == to.ip()) {
            if datagram.bytes.len() > 24 {
                let kind = datagram.bytes[18];
                let flags = datagram.bytes[19];
                let id = datagram.bytes[23];
                self.tell(
                    n,
                    &format!("<- exchange {kind} flags {flags:02x} message {id}"),
                );
            }
            self.act(n, |e, now| {
                e.handle_datagram(now, to, datagram.from, &datagram.bytes);
            });
        }
    }

    /// When the next deadline of any node is.
    pub fn next_timeout(&self) -> Option<Duration> {
        let all = self.nodes.iter().filter_map(|n| n.engine.poll_timeout());
        all.map(|at| at.0).min()
    }

    /// Fires what is due at all nodes.
    pub fn fire(&mut self) {
        for n in 0..self.nodes.len() {
            let due = self.nodes[n].engine.poll_timeout();
            if due.is_some_and(|at| at.0 <= self.now) {
                self.act(n, Engine::handle_timeout);
            }
        }
    }

    /// A packet for each child that a node sends on.
    pub fn esp(&self) -> Vec<Esp> {
        let mut all = Vec::new();
        for node in &self.nodes {
            for child in node.twin.sending.values() {
                if let Some(out) = node.twin.outbound.get(child) {
                    all.push(Esp {
                        to: out.purpose.0,
                        spi: out.spi,
                        key: out.key.clone(),
                    });
                }
            }
        }
        all
    }

    /// A packet arrives.
    pub fn deliver_esp(&mut self, packet: &Esp) {
        let node = &mut self.nodes[packet.to];
        match node.twin.inbound.get(&packet.spi) {
            Some((key, child)) if *key == packet.key => {
                let child = *child;
                if node.twin.heard.insert(child) {
                    self.act(packet.to, |e, now| e.note_inbound(child, now));
                }
            }
            Some(_) => self.break_rule(packet.to, "an SPI with another key".into()),
            None => {
                let why = node.gone.get(&packet.spi).copied();
                if self.strict && why == Some(Gone::Down(DownReason::Replaced)) {
                    let text = format!("lost a late packet on {:08x}: {why:?}", packet.spi);
                    self.break_rule(packet.to, text);
                }
            }
        }
    }

    /// Takes events and datagrams out of a node's engine.
    fn drain(&mut self, n: usize) {
        while let Some(event) = self.nodes[n].engine.poll_event() {
            self.note(n, event);
        }
        while let Some(t) = self.nodes[n].engine.poll_transmit() {
            self.sent.push(Datagram {
                from: t.local,
                to: t.remote,
                bytes: t.bytes,
            });
        }
    }

    fn note(&mut self, n: usize, event: Event) {
        match event {
            Event::IkeUp(up) => {
                self.tell(
                    n,
                    &format!(
                        "ike {} up, replaces {:?}, ours {}",
                        up.ike.0, up.replaces, up.initiator
                    ),
                );
                if !self.nodes[n].twin.ikes.insert(up.ike) {
                    self.break_rule(n, format!("{:?} came up twice", up.ike));
                }
            }
            Event::IkeDown(down) => {
                self.tell(n, &format!("ike {} down: {:?}", down.ike.0, down.reason));
                if !self.nodes[n].twin.ikes.remove(&down.ike) {
                    self.break_rule(
                        n,
                        format!("{:?} went down without having been up", down.ike),
                    );
                }
            }
            Event::ChildUp(up) => self.child_up(n, &up),
            Event::OutboundReady {
                child, peer, name, ..
            } => {
                self.tell(n, &format!("child {} sends", child.0));
                let purpose = (number(&peer), name);
                if self.nodes[n].twin.outbound.contains_key(&child) {
                    self.nodes[n].twin.sending.insert(purpose, child);
                } else {
                    self.break_rule(n, format!("is to send on {child:?}, which is not up"));
                }
            }
            Event::ChildDown(down) => {
                self.tell(
                    n,
                    &format!("child {} down: {:?}", down.child.0, down.reason),
                );
                self.child_down(n, down.child, down.reason);
            }
            Event::PathChanged(path) => self.tell(n, &format!("path is {}", path.remote)),
            Event::Failed(failure) => {
                self.tell(n, &format!("failed: {} {}", failure.check, failure.text));
                if !matches!(
                    failure.check,
                    FailedCheck::NoAnswer | FailedCheck::TrafficSelectors | FailedCheck::Limit
                ) {
                    self.break_rule(n, format!("blames its peer: {}", failure.text));
                }
            }
        }
    }

    fn child_up(&mut self, n: usize, up: &ChildUp) {
        let (spi_in, spi_out) = (up.inbound.spi.0, up.outbound.spi.0);
        self.tell(
            n,
            &format!(
                "child {} ({}) up on ike {}, in {spi_in:08x} out {spi_out:08x}, {:?}, replaces {:?}, ours {}",
                up.child.0, up.name, up.ike.0, up.use_outbound, up.replaces, up.initiator
            ),
        );
        let key = up.inbound.keymat.as_bytes().to_vec();
        if !self.keys.insert(key.clone()) {
            self.break_rule(n, format!("a key twice, with SPI {spi_in:08x}"));
        }
        let node = &mut self.nodes[n];
        let again = node.gone.contains_key(&spi_in);
        let old = node.twin.inbound.insert(spi_in, (key, up.child));
        let purpose = (number(&up.peer), up.name.clone());
        let outbound = Outbound {
            purpose: purpose.clone(),
            spi: spi_out,
            key: up.outbound.keymat.as_bytes().to_vec(),
            ours: up.initiator,
        };
        node.twin.outbound.insert(up.child, outbound);
        if up.use_outbound == UseOutbound::Now {
            node.twin.sending.insert(purpose, up.child);
        }
        if again || old.is_some() {
            self.break_rule(n, format!("SPI {spi_in:08x} twice"));
        }
    }

    fn child_down(&mut self, n: usize, child: ChildId, reason: DownReason) {
        let node = &mut self.nodes[n];
        let known = node.twin.outbound.remove(&child).is_some();
        node.twin.sending.retain(|_, c| *c != child);
        let gone = &mut node.gone;
        node.twin.inbound.retain(|spi, (_, of)| {
            if *of == child {
                gone.insert(*spi, Gone::Down(reason));
            }
            *of != child
        });
        if !known {
            self.break_rule(n, format!("{child:?} went down without having been up"));
        }
    }

    /// Whether the peer can open what is sent on this SA now.
    fn opens(&self, out: &Outbound) -> bool {
        let inbound = &self.nodes[out.purpose.0].twin.inbound;
        inbound
            .get(&out.spi)
            .is_some_and(|(key, _)| *key == out.key)
    }

    /// Whatever is sent now opens at the peer, unless the peer closed it on purpose, died, or
    /// nothing better is known.
    fn check_sending(&mut self) {
        let mut found = None;
        for (n, node) in self.nodes.iter().enumerate() {
            for (purpose, child) in &node.twin.sending {
                let Some(out) = node.twin.outbound.get(child).filter(|o| !self.opens(o)) else {
                    continue;
                };
                let why = self.nodes[purpose.0].gone.get(&out.spi).copied();
                // One of which this node has seen that the peer has it, and that it has not
                // closed: what lingers is for late packets only.
                let status = node.engine.status();
                let stands = |id| {
                    let mut all = status.iter().flat_map(|s| &s.children);
                    all.any(|c| c.child == id)
                };
                let better = node.twin.outbound.iter().any(|(id, o)| {
                    let known = o.ours || node.twin.heard.contains(id);
                    o.purpose == *purpose && known && self.opens(o) && stands(*id)
                });
                // A child that is not wanted any longer ends in whatever order.
                let wanted = self.strict || purpose.1 == "child0";
                let better = better && wanted;
                let replaced = why == Some(Gone::Down(DownReason::Replaced));
                if (replaced && !self.silenced && (better || self.strict))
                    || (why.is_none() && better)
                {
                    found = Some((
                        n,
                        format!(
                            "sends on child {} (SPI {:08x}), which n{} cannot open: {why:?}",
                            child.0, out.spi, purpose.0
                        ),
                    ));
                }
            }
        }
        if let Some((n, text)) = found {
            self.break_rule(n, text);
        }
    }

    /// Why two nodes do not agree yet: each must hold one IKE SA with the other, the same
    /// children on it, send on them, and hold nothing else. `None`: they do.
    pub fn disagreement(&self, a: usize, b: usize, children: usize) -> Option<String> {
        let of = |n: usize, peer: usize| -> Vec<IkeStatus> {
            let id = peer_id(peer);
            let mut all = self.nodes[n].engine.status();
            all.retain(|s| s.peer.as_ref() == Some(&id));
            all
        };
        let (x, y) = (of(a, b), of(b, a));
        if (x.len(), y.len()) != (1, 1) {
            let (x, y) = (x.len(), y.len());
            return Some(format!("n{a} holds {x} IKE SAs with n{b}, which holds {y}"));
        }
        for (n, peer, own, other) in [(a, b, &x[0], &y[0]), (b, a, &y[0], &x[0])] {
            if own.state != "established" || own.children.len() != children {
                let (state, number) = (own.state, own.children.len());
                return Some(format!("n{n}: {state}, {number} children with n{peer}"));
            }
            for child in &own.children {
                let paired = other.children.iter().any(|o| {
                    o.spi_in == child.spi_out && o.spi_out == child.spi_in && o.name == child.name
                });
                let purpose = (peer, child.name.clone());
                let sends = self.nodes[n].twin.sending.get(&purpose) == Some(&child.child);
                if !paired || !sends || !child.sending {
                    let number = child.child.0;
                    return Some(format!(
                        "n{n}, child {number}: paired {paired}, sends {sends}"
                    ));
                }
            }
            let twin = &self.nodes[n].twin;
            let held = twin.outbound.values().filter(|o| o.purpose.0 == peer);
            let held = held.count();
            if held != children {
                return Some(format!("n{n} has {held} SAs installed towards n{peer}"));
            }
        }
        None
    }

    /// What no pair accounts for.
    pub fn leak(&self) -> Option<String> {
        self.nodes.iter().enumerate().find_map(|(n, node)| {
            let status = node.engine.status();
            let children: usize = status.iter().map(|s| s.children.len()).sum();
            let (ikes, twin) = (status.len(), &node.twin);
            let held = (twin.ikes.len(), twin.inbound.len(), twin.outbound.len());
            (held != (ikes, children, children)).then(|| {
                format!("n{n}: engine has {ikes} IKE SAs, {children} children; installed {held:?}")
            })
        })
    }

    /// Adds a line to the story.
    pub fn tell(&mut self, n: usize, text: &str) {
        self.story.push(format!("{:?} n{n} {text}", self.now));
    }

    /// Notes the first breach.
    pub fn break_rule(&mut self, n: usize, text: String) {
        self.tell(n, &format!("BREACH: {text}"));
        self.broken
            .get_or_insert_with(|| format!("n{n} {text} (at {:?})", self.now));
    }

    /// The last lines of what happened.
    pub fn story(&self) -> String {
        let skip = self.story.len().saturating_sub(STORY);
        self.story[skip..].join("\n  ")
    }
}

fn number(peer: &PeerId) -> usize {
    let digits = peer.as_str().trim_start_matches('n');
    digits.parse().expect("peer_id made the name")
}
