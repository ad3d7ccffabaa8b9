//! Engines on virtual time, a network between them, and a datapath that watches what they do.
//!
//! ```text
//!   node 0 (10.0.0.1) --+
//!   node 1 (10.0.0.2) --+-- latency, loss, duplicates, reordering; all from one seed
//!   ...                --+
//! ```
//! Every node sends an ESP packet on each current child once a millisecond (when asked to). A
//! packet that arrives where its SPI is not installed, or was sent with another key, is lost:
//! tests count those.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testudo_crypto::{DangerousSeededRandom, KeMethod, KeyType, Random, SecretBytes, SigningKey};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{
    ChildId, Encapsulation, Monotonic, Now, PeerId, PortRange, SaMode, TrafficSelector, UnixTime,
};

use super::nat::NatBox;
use crate::*;

pub(crate) const EPOCH: i64 = 1_800_000_000;

pub(crate) fn name(n: usize) -> String {
    format!("n{n}")
}

pub(crate) fn peer_id(n: usize) -> PeerId {
    PeerId::new(name(n)).unwrap()
}

pub(crate) fn identity(n: usize) -> Identity {
    Identity::Fqdn(format!("n{n}.node.testudo"))
}

pub(crate) fn address(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, (n / 250) as u8, (n % 250) as u8 + 1))
}

/// What a child is for, as the twin calls it.
pub(crate) fn purpose(name: &str, resource: u32) -> String {
    match resource {
        0 => name.to_owned(),
        n => format!("{name}#{n}"),
    }
}

/// "Certificates": identity, issuer, notAfter, SPKI, joined. The engine knows no better.
pub(crate) fn certificate(identity: &Identity, ca: &str, not_after: i64, spki: &[u8]) -> Vec<u8> {
    let mut out = format!("{identity}|{ca}|{not_after}|").into_bytes();
    out.extend(spki);
    out
}

/// Trusts the CAs it is told.
pub(crate) struct FakeVerifier {
    pub(crate) trusted: Mutex<BTreeSet<String>>,
}

impl CertificateVerifier for FakeVerifier {
    fn verify(
        &self,
        chain: &[&[u8]],
        expected: &PeerExpectation<'_>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        let fail = |check, text: &str| {
            Err(VerifyError {
                check,
                text: text.into(),
            })
        };
        let mut parts = chain[0].splitn(4, |b| *b == b'|');
        let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let (subject, issuer) = (text(), text());
        let Ok(not_after) = text().parse::<i64>() else {
            return fail(FailedCheck::CertificateMalformed, "no certificate");
        };
        let spki = parts.next().unwrap_or_default().to_vec();
        if !self.trusted.lock().unwrap().contains(&issuer) {
            return fail(FailedCheck::CertificateUnknownCa, &issuer);
        }
        if subject != expected.identity.to_string() {
            return fail(FailedCheck::CertificateWrongIdentity, &subject);
        }
        if not_after < now.0 {
            return fail(FailedCheck::CertificateExpired, "expired");
        }
        Ok(VerifiedPeer {
            spki,
            not_after: UnixTime(not_after),
            serial: "01".into(),
            subject,
            issuer,
        })
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        vec![[7; 20]]
    }
}

/// An inbound SA as the twin sees it.
struct Installed {
    key: Vec<u8>,
    child: ChildId,
    used: bool,
}

/// An outbound SA as the twin sees it.
struct Outbound {
    spi: u32,
    key: Vec<u8>,
    encapsulation: Encapsulation,
}

/// What a datapath would hold.
#[derive(Default)]
pub(crate) struct Twin {
    inbound: BTreeMap<u32, Installed>,
    outbound: BTreeMap<ChildId, Outbound>,
    pub(crate) sending: BTreeMap<(PeerId, String), ChildId>,
    pub(crate) ikes: BTreeSet<IkeId>,
}

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) verifier: Arc<FakeVerifier>,
    pub(crate) twin: Twin,
    pub(crate) failures: Vec<Failure>,
    pub(crate) downs: Vec<ChildDown>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) log: Vec<String>,
    pub(crate) exported: Vec<(SecretBytes, SecretBytes)>,
    /// How long each IKE SA took.
    pub(crate) took: Vec<Duration>,
    pub(crate) alive: bool,
    /// So many SAs its datapath does not take.
    pub(crate) refuse: u32,
    pub(crate) refused: BTreeSet<ChildId>,
}

enum Packet {
    Ike {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    Esp {
        from: SocketAddr,
        to: SocketAddr,
        spi: u32,
        key: Vec<u8>,
    },
}

/// How the network behaves.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) latency: Duration,
    /// Up to this much is added.
    pub(crate) jitter: Duration,
    /// In percent.
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
}

pub(crate) const FAIR: Weather = Weather {
    latency: Duration::from_millis(5),
    jitter: Duration::ZERO,
    loss: 0,
    duplicates: 0,
};

pub(crate) type Filter = Box<dyn FnMut(SocketAddr, SocketAddr, &[u8]) -> Fate>;

/// What a test does to a datagram.
pub(crate) enum Fate {
    Pass,
    Drop,
    Delay(Duration),
    Change(Vec<u8>),
}

pub(crate) struct Net {
    pub(crate) seed: u64,
    pub(crate) now: Duration,
    pub(crate) nodes: Vec<Node>,
    pub(crate) weather: Weather,
    pub(crate) esp: bool,
    /// Nodes that send no ESP: traffic that goes one way.
    pub(crate) silent: BTreeSet<usize>,
    pub(crate) esp_sent: u64,
    pub(crate) esp_lost: Vec<String>,
    pub(crate) filter: Option<Filter>,
    pub(crate) nats: Vec<NatBox>,
    /// Addresses of nodes beside their first.
    pub(crate) homes: BTreeMap<IpAddr, usize>,
    /// Addresses that nothing reaches and nothing comes from.
    pub(crate) unplugged: BTreeSet<IpAddr>,
    /// Jobs are not done at once but kept.
    pub(crate) hold_jobs: bool,
    pub(crate) jobs: Vec<(usize, Job)>,
    /// Held jobs that were done.
    pub(crate) done: u64,
    /// All IKE datagrams that were sent.
    pub(crate) wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    flying: BTreeMap<(Duration, u64), Packet>,
    order: u64,
    random: DangerousSeededRandom,
    next_esp: Duration,
}

pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        child_lifetime: Duration::from_secs(100_000),
        ike_lifetime: Duration::from_secs(800_000),
        liveness: Duration::ZERO,
        suites: Suites {
            additional_ke: Vec::new(),
            ..Suites::default()
        },
        ..EngineConfig::default()
    }
}

/// The same with additional key exchanges, one a list of methods.
pub(crate) fn hybrid(rounds: &[&[KeMethod]], required: bool) -> EngineConfig {
    let mut config = EngineConfig {
        // One message is one datagram.
        fragment_size: 0,
        ..config()
    };
    config.suites.additional_ke = rounds
        .iter()
        .map(|methods| AdditionalKe {
            methods: methods.to_vec(),
            required,
        })
        .collect();
    config
}

pub(crate) fn child(n: usize, local: usize, remote: usize) -> ChildConfig {
    let port = PortRange::one(4789 + n as u16);
    ChildConfig {
        name: format!("child{n}"),
        mode: SaMode::Transport,
        local_ts: vec![TrafficSelector::host(address(local)).with(17, port)],
        remote_ts: vec![TrafficSelector::host(address(remote)).with(17, port)],
        resources: 0,
    }
}

pub(crate) fn peer_config(local: usize, remote: usize, initiate: bool) -> PeerConfig {
    PeerConfig {
        id: peer_id(remote),
        remote_identity: identity(remote),
        auth: PeerAuth::Certificate,
        ppk: None,
        addresses: vec![PeerAddress {
            local: address(local),
            remote: address(remote),
        }],
        initiate,
        encapsulation: EncapsulationMode::Auto,
        suites: None,
        children: vec![child(0, local, remote)],
    }
}

pub(crate) fn psk(text: &str) -> PeerAuth {
    PeerAuth::PreSharedKey(SecretBytes::from(text.as_bytes()))
}

impl Net {
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        Self::with(seed, nodes, config())
    }

    pub(crate) fn with(seed: u64, nodes: usize, config: EngineConfig) -> Self {
        // Shown when the test fails.
        println!("seed {seed}");
        let mut net = Self {
            seed,
            now: Duration::from_secs(1),
            nodes: Vec::new(),
            weather: FAIR,
            esp: false,
            silent: BTreeSet::new(),
            esp_sent: 0,
            esp_lost: Vec::new(),
            filter: None,
            nats: Vec::new(),
            homes: BTreeMap::new(),
            unplugged: BTreeSet::new(),
            hold_jobs: false,
            jobs: Vec::new(),
            done: 0,
            wire: Vec::new(),
            flying: BTreeMap::new(),
            order: 0,
            random: DangerousSeededRandom::new(seed),
            next_esp: Duration::ZERO,
        };
        for n in 0..nodes {
            let node = net.make_node(n, config.clone());
            net.nodes.push(node);
        }
        net
    }

    /// Every other engine gives its asymmetric operations away, which makes no difference.
    fn make_node(&mut self, n: usize, mut config: EngineConfig) -> Node {
        config.offload |= (n as u64 + self.seed) % 2 == 1;
        let mut seed = [0; 8];
        self.random.fill(&mut seed);
        let random = DangerousSeededRandom::new(u64::from_be_bytes(seed));
        let mut engine = Engine::new(config, Box::new(random));
        let verifier = Arc::new(FakeVerifier {
            trusted: Mutex::new(["ca".to_owned()].into()),
        });
        engine.set_verifier(verifier.clone());
        engine.set_identity(local_identity(
            n,
            "ca",
            EPOCH + 100_000_000,
            KeyType::Ed25519,
        ));
        Node {
            engine,
            verifier,
            twin: Twin::default(),
            failures: Vec::new(),
            downs: Vec::new(),
            receipts: Vec::new(),
            log: Vec::new(),
            exported: Vec::new(),
            took: Vec::new(),
            alive: true,
            refuse: 0,
            refused: BTreeSet::new(),
        }
    }

    /// The node's process dies and another starts: nothing is remembered.
    pub(crate) fn restart(&mut self, n: usize) {
        let config = self.nodes[n].engine.config().clone();
        self.nodes[n] = self.make_node(n, config);
    }

    pub(crate) fn at(&self) -> Now {
        Now {
            monotonic: Monotonic(self.now),
            wall: UnixTime(EPOCH + self.now.as_secs() as i64),
        }
    }

    /// Configures both ends; `a` starts, and `b` too if `both`.
    pub(crate) fn connect(&mut self, a: usize, b: usize, both: bool) {
        let now = self.at();
        let (pa, pb) = (peer_config(a, b, true), peer_config(b, a, both));
        self.nodes[b].engine.set_peer(pb, now).unwrap();
        self.nodes[a].engine.set_peer(pa, now).unwrap();
        for n in [a, b] {
            self.act(n, |e, now| e.handle_timeout(now));
        }
    }

    /// Does something to a node's engine, then drains it.
    pub(crate) fn act<T>(&mut self, n: usize, f: impl FnOnce(&mut Engine, Now) -> T) -> T {
        let now = self.at();
        let out = f(&mut self.nodes[n].engine, now);
        self.drain(n);
        out
    }

    fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.below(100) < percent
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_be_bytes(bytes) % limit.max(1)
    }

    fn fly(&mut self, packet: Packet, extra: Duration) {
        let jitter = self.below(self.weather.jitter.as_micros() as u64 + 1);
        let at = self.now + self.weather.latency + Duration::from_micros(jitter) + extra;
        self.order += 1;
        self.flying.insert((at, self.order), packet);
    }

    pub(crate) fn drain(&mut self, n: usize) {
        loop {
            while let Some(event) = self.nodes[n].engine.poll_event() {
                if let Some(child) = self.refuses(n, &event) {
                    let now = self.at();
                    self.nodes[n].engine.refuse_child(child, now).unwrap();
                    continue;
                }
                self.note(n, event);
            }
            while let Some(t) = self.nodes[n].engine.poll_transmit() {
                assert_eq!(t.marker, t.local.port() == 4500 && t.bytes != [0xff]);
                self.send(t.local, t.remote, t.bytes);
            }
            let Some(job) = self.nodes[n].engine.poll_job() else {
                return;
            };
            if self.hold_jobs {
                self.jobs.push((n, job));
                continue;
            }
            let now = self.at();
            self.nodes[n].engine.handle_done(now, job.run());
        }
    }

    /// Does the held job with that index, for the node that gave it away.
    pub(crate) fn finish(&mut self, index: usize) {
        let (n, job) = self.jobs.remove(index);
        self.done += 1;
        self.act(n, |engine, now| engine.handle_done(now, job.run()));
    }

    pub(crate) fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.wire.push((from, to, bytes.clone()));
        let fate = match &mut self.filter {
            Some(filter) => filter(from, to, &bytes),
            None => Fate::Pass,
        };
        let (bytes, extra) = match fate {
            Fate::Pass => (bytes, Duration::ZERO),
            Fate::Drop => return,
            Fate::Delay(extra) => (bytes, extra),
            Fate::Change(bytes) => (bytes, Duration::ZERO),
        };
        let Some((from, to)) = self.translate(from, to) else {
            return;
        };
        if self.chance(self.weather.duplicates) {
            let bytes = bytes.clone();
            self.fly(Packet::Ike { from, to, bytes }, extra);
        }
        if !self.chance(self.weather.loss) {
            self.fly(Packet::Ike { from, to, bytes }, extra);
        }
    }

    /// A child that the datapath does not take; later events about it say nothing to it.
    fn refuses(&mut self, n: usize, event: &Event) -> Option<ChildId> {
        let node = &mut self.nodes[n];
        let child = match event {
            Event::ChildUp(up) if node.refuse > 0 => {
                node.refuse -= 1;
                node.refused.insert(up.child);
                up.child
            }
            Event::OutboundReady { child, .. } => *child,
            _ => return None,
        };
        node.refused.contains(&child).then_some(child)
    }

    fn note(&mut self, n: usize, event: Event) {
        let at = self.now;
        let node = &mut self.nodes[n];
        let twin = &mut node.twin;
        let line = match event {
            Event::IkeUp(up) => {
                twin.ikes.insert(up.ike);
                node.took.push(up.took);
                let keys = up.danger_keys.map(|k| (k.sk_ei, k.sk_er));
                node.exported.extend(keys);
                format!(
                    "ike {} up, replaces {:?}, ours {}",
                    up.ike.0, up.replaces, up.initiator
                )
            }
            Event::IkeDown(down) => {
                let known = twin.ikes.remove(&down.ike);
                assert!(known, "{down:?} without up: {:#?}", node.log);
                format!("ike {} down: {:?}", down.ike.0, down.reason)
            }
            Event::ChildUp(up) => {
                let key = up.inbound.keymat.as_bytes().to_vec();
                let old = twin.inbound.insert(
                    up.inbound.spi.0,
                    Installed {
                        key,
                        child: up.child,
                        used: false,
                    },
                );
                assert!(old.is_none(), "an SPI twice");
                let key = up.outbound.keymat.as_bytes().to_vec();
                let purpose = purpose(&up.name, up.resource);
                let out = Outbound {
                    spi: up.outbound.spi.0,
                    key,
                    encapsulation: up.outbound.encapsulation,
                };
                twin.outbound.insert(up.child, out);
                if up.use_outbound == UseOutbound::Now {
                    twin.sending
                        .insert((up.peer.clone(), purpose.clone()), up.child);
                }
                format!(
                    "child {} ({}) up {:?}, replaces {:?}, ours {}",
                    up.child.0, purpose, up.use_outbound, up.replaces, up.initiator
                )
            }
            Event::OutboundReady {
                child,
                peer,
                name,
                resource,
            } => {
                assert!(
                    twin.outbound.contains_key(&child),
                    "unknown child to send on"
                );
                twin.sending.insert((peer, purpose(&name, resource)), child);
                format!("child {} sends", child.0)
            }
            Event::ChildDown(down) if node.refused.remove(&down.child) => {
                format!("child {} was refused: {:?}", down.child.0, down.reason)
            }
            Event::ChildDown(down) => {
                assert!(twin.outbound.remove(&down.child).is_some());
                twin.inbound.retain(|_, i| i.child != down.child);
                twin.sending.retain(|_, c| *c != down.child);
                let line = format!("child {} down: {:?}", down.child.0, down.reason);
                node.downs.push(down);
                line
            }
            Event::PathChanged(p) => {
                for child in &p.children {
                    let out = twin.outbound.get_mut(child);
                    out.expect("a child that stands").encapsulation = p.encapsulation;
                }
                format!("path of {} is {}", p.ike.0, p.remote)
            }
            Event::Failed(f) => {
                let line = format!("failed: {} {}", f.check, f.text);
                node.failures.push(f);
                line
            }
            Event::Receipt(receipt) => {
                let line = format!("receipt: {receipt:?}");
                node.receipts.push(receipt);
                line
            }
        };
        node.log.push(format!("{at:?} {line}"));
    }

    fn node_at(&self, ip: IpAddr) -> Option<usize> {
        if self.unplugged.contains(&ip) {
            return None;
        }
        let main = (0..self.nodes.len()).find(|n| address(*n) == ip);
        main.or_else(|| self.homes.get(&ip).copied())
    }

    /// What NATs make of a packet's ends; `None`: one drops it.
    fn translate(&mut self, from: SocketAddr, to: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
        let now = self.now;
        let (mut from, mut to) = (from, to);
        if self.unplugged.contains(&from.ip()) {
            return None;
        }
        for nat in &mut self.nats {
            from = nat.outwards(from, to, now)?;
        }
        for nat in &mut self.nats {
            to = nat.inwards(to, now)?;
        }
        Some((from, to))
    }

    fn deliver(&mut self, packet: Packet) {
        match packet {
            Packet::Ike { from, to, bytes } => {
                let now = self.at();
                let Some(n) = self.node_at(to.ip()).filter(|n| self.nodes[*n].alive) else {
                    return;
                };
                self.nodes[n].engine.handle_datagram(now, to, from, &bytes);
                self.drain(n);
            }
            Packet::Esp { from, to, spi, key } => {
                let at = self.now;
                let Some(n) = self.node_at(to.ip()) else {
                    self.esp_lost.push(format!("{at:?} {spi:08x} to {to}"));
                    return;
                };
                let twin = &mut self.nodes[n].twin;
                let Some(sa) = twin.inbound.get_mut(&spi).filter(|sa| sa.key == key) else {
                    self.esp_lost.push(format!("{at:?} {spi:08x} at node {n}"));
                    return;
                };
                let (child, first) = (sa.child, !std::mem::replace(&mut sa.used, true));
                let end = twin.outbound.get(&child).map(|out| out.encapsulation);
                if first {
                    self.act(n, |e, now| e.note_inbound(child, now));
                }
                if let Some(Encapsulation::Udp { remote, .. }) = end
                    && remote != from
                {
                    self.act(n, |e, _| e.note_moved(child, from));
                }
            }
        }
    }

    fn send_esp(&mut self) {
        let mut all = Vec::new();
        let speaks = |(n, _): &(usize, &Node)| !self.silent.contains(n);
        for (_, node) in self.nodes.iter().enumerate().filter(speaks) {
            for child in node.twin.sending.values() {
                let out = &node.twin.outbound[child];
                all.push((out.encapsulation, out.spi, out.key.clone()));
            }
        }
        for (encapsulation, spi, key) in all {
            self.esp_sent += 1;
            let (from, to) = match encapsulation {
                Encapsulation::None { local, remote } => ((local, 0).into(), (remote, 0).into()),
                Encapsulation::Udp { local, remote } => (local, remote),
            };
            let Some((from, to)) = self.translate(from, to) else {
                let at = self.now;
                self.esp_lost
                    .push(format!("{at:?} {spi:08x} {from} to {to}"));
                continue;
            };
            let packet = Packet::Esp { from, to, spi, key };
            self.fly(packet, Duration::ZERO);
        }
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let mut next = end;
            if let Some((at, _)) = self.flying.keys().next() {
                next = next.min(*at);
            }
            for node in self.nodes.iter().filter(|n| n.alive) {
                if let Some(at) = node.engine.poll_timeout() {
                    next = next.min(at.0);
                }
            }
            if self.esp {
                next = next.min(self.next_esp.max(self.now));
            }
            self.now = self.now.max(next);
            if self.now >= end {
                self.now = end;
                return;
            }
            if self.esp && self.next_esp <= self.now {
                self.next_esp = self.now + Duration::from_millis(1);
                self.send_esp();
            }
            while let Some(entry) = self.flying.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let packet = entry.remove();
                self.deliver(packet);
            }
            for n in 0..self.nodes.len() {
                let due = self.nodes[n]
                    .engine
                    .poll_timeout()
                    .is_some_and(|at| at.0 <= self.now);
                if due && self.nodes[n].alive {
                    self.act(n, |e, now| e.handle_timeout(now));
                }
            }
        }
    }

    pub(crate) fn run_ms(&mut self, ms: u64) {
        self.run(Duration::from_millis(ms));
    }

    /// Open IKE SAs of a node with a peer.
    pub(crate) fn ikes(&self, n: usize, peer: usize) -> Vec<IkeStatus> {
        let id = peer_id(peer);
        let mut all = self.nodes[n].engine.status();
        all.retain(|s| s.peer.as_ref() == Some(&id) && s.state == "established");
        all
    }

    /// Both ends hold the same `children` children on one IKE SA, and send on them.
    pub(crate) fn assert_connected(&self, a: usize, b: usize, children: usize) {
        let (x, y) = (self.ikes(a, b), self.ikes(b, a));
        let context = || self.story();
        assert_eq!((x.len(), y.len()), (1, 1), "IKE SAs\n{}", context());
        let (x, y) = (&x[0], &y[0]);
        assert_eq!(x.children.len(), children, "children at {a}\n{}", context());
        assert_eq!(y.children.len(), children, "children at {b}\n{}", context());
        for c in &x.children {
            let other = y.children.iter().find(|o| o.spi_in == c.spi_out);
            let other = other.unwrap_or_else(|| panic!("unpaired child\n{}", context()));
            assert_eq!(other.spi_out, c.spi_in);
            assert_eq!((&other.name, other.resource), (&c.name, c.resource));
            assert!(c.sending && other.sending, "not sending\n{}", context());
        }
        for (n, peer, status) in [(a, b, x), (b, a, y)] {
            for c in &status.children {
                let key = (peer_id(peer), purpose(&c.name, c.resource));
                assert_eq!(self.nodes[n].twin.sending.get(&key), Some(&c.child));
            }
        }
    }

    /// No child but those that stand is installed.
    pub(crate) fn assert_tidy(&self, n: usize, children: usize) {
        let node = &self.nodes[n];
        assert_eq!(node.twin.outbound.len(), children, "{}", self.story());
        assert_eq!(node.twin.inbound.len(), children);
        assert_eq!(node.engine.children.len(), children);
        assert_eq!(node.engine.by_spi_in.len(), children);
    }

    /// For messages: what happened, and the seed that repeats it.
    pub(crate) fn story(&self) -> String {
        let mut out = format!("seed {}\n", self.seed);
        for (n, node) in self.nodes.iter().enumerate() {
            for line in node.log.iter().rev().take(60).rev() {
                out += &format!("  node {n}: {line}\n");
            }
            out += &format!("  node {n}: {:?}\n", node.engine.counters());
            for sa in node.engine.sas.values() {
                let est = sa.established();
                out += &format!(
                    "  node {n}: {:?} {} {:?}\n",
                    sa.id,
                    sa.state.name(),
                    est.map(|e| (&e.children, &e.tasks, &e.lineage)),
                );
            }
            for c in node.engine.children.values() {
                out += &format!("  node {n}: {:?} {:?} on {:?}\n", c.id, c.state, c.ike);
            }
        }
        out
    }

    pub(crate) fn assert_no_esp_lost(&self) {
        assert!(self.esp_sent > 0);
        assert!(
            self.esp_lost.is_empty(),
            "{} of {} lost: {:?}\n{}",
            self.esp_lost.len(),
            self.esp_sent,
            self.esp_lost.first(),
            self.story()
        );
    }
}

pub(crate) fn local_identity(n: usize, ca: &str, not_after: i64, kind: KeyType) -> LocalIdentity {
    let key = SigningKey::generate(kind).unwrap();
    let chain = vec![certificate(&identity(n), ca, not_after, &key.public_spki())];
    LocalIdentity {
        id: identity(n),
        certificate: Some(CertificateCredential { chain, key }),
    }
}
