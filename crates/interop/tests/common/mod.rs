//! Our end: the engine over real sockets, ESP opened and sealed here.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod certificates;
pub mod packet;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use testudo_crypto::{Aead, KeMethod, SecretBytes, SystemRandom};
use testudo_esp::{HEAD_ROOM, InboundParameters, InboundSa, OutboundParameters, OutboundSa};
use testudo_ike::{
    CertificateVerifier, ChildConfig, ChildDown, Engine, EngineConfig, Event, Failure, Identity,
    IkeDown, IkeId, LocalIdentity, PeerAddress, PeerAuth, PeerConfig, Retransmission, Suites,
    UseOutbound,
};
use testudo_interop::{LINK, Peer, can_run};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{
    ChildId, Encapsulation, Monotonic, Now, PeerId, SaMode, TrafficSelector, UnixTime,
};
use testudo_wire::udp::{Encapsulated, NON_ESP_MARKER, classify};

pub const US: &str = "us.node.testudo";
pub const PEER: &str = "peer.node.testudo";
pub const SECRET: &str = "correct horse battery staple";

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs a test in a thread of its own: the namespace that the thread enters is its alone.
pub fn run_alone(name: &str, peer: Peer, body: impl FnOnce() + Send + 'static) {
    if !can_run(name, peer) {
        return;
    }
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// What one test wants. Both ends are configured from it.
#[derive(Clone)]
pub struct Wanted {
    pub v6: bool,
    pub mode: SaMode,
    pub ke: KeMethod,
    pub initiate: bool,
    pub forced: bool,
    pub secret: Option<&'static str>,
    pub liveness: Duration,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            v6: false,
            mode: SaMode::Tunnel,
            ke: KeMethod::X25519,
            initiate: true,
            forced: false,
            secret: Some(SECRET),
            liveness: Duration::ZERO,
        }
    }
}

impl Wanted {
    /// Outer addresses: ours and the peer's.
    pub fn outer(&self) -> [&'static str; 2] {
        LINK[usize::from(self.v6)]
    }

    /// What the child is for: ours and the peer's.
    pub fn inner(&self) -> [&'static str; 2] {
        match self.mode {
            SaMode::Tunnel => LINK[2 + usize::from(self.v6)],
            SaMode::Transport => self.outer(),
        }
    }
}

/// A child that was made.
pub struct Made {
    pub child: ChildId,
    pub ike: IkeId,
    pub replaces: Option<ChildId>,
    pub initiator: bool,
    pub mode: SaMode,
    pub encapsulation: Encapsulation,
    pub down: Option<ChildDown>,
    inbound: InboundSa,
    outbound: OutboundSa,
    /// Packets opened and sealed.
    pub opened: u32,
    pub sealed: u32,
}

/// An IKE SA that was made.
pub struct Up {
    pub ike: IkeId,
    pub suite: String,
    pub nat: bool,
    pub remote: SocketAddr,
    pub replaces: Option<IkeId>,
    pub initiator: bool,
    pub certificate: bool,
    pub down: Option<IkeDown>,
}

/// Our end.
pub struct Us {
    pub engine: Engine,
    sockets: [UdpSocket; 2],
    start: Instant,
    pub peer: PeerId,
    pub ups: Vec<Up>,
    pub made: Vec<Made>,
    pub failures: Vec<Failure>,
    pub sending: Option<ChildId>,
    /// Inner packets that came out of SAs.
    pub packets: Vec<Vec<u8>>,
    wanted: Wanted,
}

impl Us {
    pub fn new(wanted: &Wanted) -> Self {
        Self::with(wanted, |_| {})
    }

    /// With changes to the engine's settings.
    pub fn with(wanted: &Wanted, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let mut config = EngineConfig {
            suites: Suites {
                ke_methods: vec![wanted.ke],
                ..Suites::default()
            },
            liveness: wanted.liveness,
            retransmission: Retransmission {
                initial: Duration::from_millis(500),
                longest: Duration::from_secs(1),
                tries: 4,
            },
            ..EngineConfig::default()
        };
        change(&mut config);
        let mut engine = Engine::new(config, Box::new(SystemRandom::new()));
        engine.set_identity(LocalIdentity {
            id: Identity::Fqdn(US.into()),
            certificate: None,
        });
        let local = ip(wanted.outer()[0]);
        let sockets = [500, 4500].map(|port| {
            let socket = UdpSocket::bind((local, port)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        Self {
            engine,
            sockets,
            start: Instant::now(),
            peer: PeerId::new("peer").unwrap(),
            ups: Vec::new(),
            made: Vec::new(),
            failures: Vec::new(),
            sending: None,
            packets: Vec::new(),
            wanted: wanted.clone(),
        }
    }

    pub fn certified(
        &mut self,
        verifier: Arc<dyn CertificateVerifier + Send + Sync>,
        own: LocalIdentity,
    ) {
        self.engine.set_identity(own);
        self.engine.set_verifier(verifier);
    }

    pub fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        Now {
            monotonic: Monotonic(self.start.elapsed()),
            wall: UnixTime(i64::try_from(wall.as_secs()).unwrap()),
        }
    }

    /// Makes the peer known; begins if it is wanted.
    pub fn go(&mut self) {
        let wanted = self.wanted.clone();
        let [ours, theirs] = wanted.outer().map(ip);
        let [inner_ours, inner_theirs] = wanted.inner().map(|a| vec![TrafficSelector::host(ip(a))]);
        let config = PeerConfig {
            id: self.peer.clone(),
            remote_identity: Identity::Fqdn(PEER.into()),
            auth: match wanted.secret {
                Some(text) => PeerAuth::PreSharedKey(SecretBytes::new(text.as_bytes().to_vec())),
                None => PeerAuth::Certificate,
            },
            ppk: None,
            addresses: vec![PeerAddress {
                local: ours,
                remote: theirs,
            }],
            initiate: wanted.initiate,
            encapsulation: if wanted.forced {
                EncapsulationMode::Always
            } else {
                EncapsulationMode::Auto
            },
            suites: None,
            children: vec![ChildConfig {
                name: "net".into(),
                mode: wanted.mode,
                local_ts: inner_ours,
                remote_ts: inner_theirs,
                resources: 0,
            }],
        };
        let now = self.now();
        self.engine.set_peer(config, now).unwrap();
        self.drain();
    }

    /// Does what the engine wants done.
    pub fn drain(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            self.event(event);
        }
        while let Some(out) = self.engine.poll_transmit() {
            let socket = &self.sockets[usize::from(out.local.port() == 4500)];
            let mut bytes = Vec::new();
            if out.marker {
                bytes.extend(NON_ESP_MARKER);
            }
            bytes.extend(&out.bytes);
            // A peer that is gone answers with ICMP, which is an error at the next call.
            let _ = socket.send_to(&bytes, out.remote);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::IkeUp(up) => self.ups.push(Up {
                ike: up.ike,
                suite: up.suite,
                nat: up.nat,
                remote: up.remote,
                replaces: up.replaces,
                initiator: up.initiator,
                certificate: up.certificate.is_some(),
                down: None,
            }),
            Event::IkeDown(down) => {
                let up = self.ups.iter_mut().find(|u| u.ike == down.ike).unwrap();
                assert!(up.down.is_none(), "{:?} is down twice", down.ike);
                up.down = Some(down);
            }
            Event::ChildUp(up) => {
                let (i, o) = (up.inbound, up.outbound);
                if up.use_outbound == UseOutbound::Now {
                    self.sending = Some(up.child);
                }
                self.made.push(Made {
                    child: up.child,
                    ike: up.ike,
                    replaces: up.replaces,
                    initiator: up.initiator,
                    mode: i.mode,
                    encapsulation: o.encapsulation,
                    down: None,
                    inbound: InboundSa::new(&InboundParameters {
                        spi: i.spi.0,
                        aead: i.aead,
                        keymat: i.keymat.as_bytes(),
                        esn: i.esn,
                        replay_window: i.replay_window,
                    })
                    .unwrap(),
                    outbound: OutboundSa::new(&OutboundParameters {
                        spi: o.spi.0,
                        aead: o.aead,
                        keymat: o.keymat.as_bytes(),
                        esn: o.esn,
                        limits: testudo_esp::SoftLimits::NONE,
                    })
                    .unwrap(),
                    opened: 0,
                    sealed: 0,
                });
            }
            Event::OutboundReady { child, .. } => self.sending = Some(child),
            Event::ChildDown(down) => {
                let made = self
                    .made
                    .iter_mut()
                    .find(|m| m.child == down.child)
                    .unwrap();
                if self.sending == Some(down.child) {
                    self.sending = None;
                }
                made.down = Some(down);
            }
            Event::PathChanged(_) => {}
            Event::Failed(failure) => self.failures.push(failure),
        }
    }

    /// One round of the loop.
    pub fn step(&mut self) {
        let mut buffer = [0; 4096];
        let mut quiet = true;
        for index in 0..2 {
            let local = self.sockets[index].local_addr().unwrap();
            while let Ok((len, remote)) = self.sockets[index].recv_from(&mut buffer) {
                quiet = false;
                let bytes = &buffer[..len];
                let now = self.now();
                if index == 0 {
                    self.engine.handle_datagram(now, local, remote, bytes);
                } else {
                    match classify(bytes) {
                        Encapsulated::Ike(ike) => {
                            self.engine.handle_datagram(now, local, remote, ike);
                        }
                        Encapsulated::Esp(esp) => self.esp(esp.to_vec()),
                        Encapsulated::Keepalive | Encapsulated::Short => {}
                    }
                }
                self.drain();
            }
        }
        let now = self.now();
        if self
            .engine
            .poll_timeout()
            .is_some_and(|at| at <= now.monotonic)
        {
            self.engine.handle_timeout(now);
            self.drain();
        }
        if quiet {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn esp(&mut self, mut packet: Vec<u8>) {
        let Some(spi) = testudo_esp::spi_of(&packet) else {
            return;
        };
        let alive = |m: &&mut Made| m.inbound.spi() == spi && m.down.is_none();
        let Some(made) = self.made.iter_mut().rev().find(alive) else {
            return;
        };
        let opened = made
            .inbound
            .open(&mut packet)
            .expect("the peer's ESP opens");
        made.opened += 1;
        let child = made.child;
        self.packets.push(packet[opened.payload].to_vec());
        if opened.first {
            let now = self.now();
            self.engine.note_inbound(child, now);
        }
    }

    /// Runs until the condition holds; panics with all that is known after the time.
    pub fn until(&mut self, what: &str, seconds: u64, mut done: impl FnMut(&mut Us) -> bool) {
        let end = Instant::now() + Duration::from_secs(seconds);
        while !done(self) {
            assert!(
                Instant::now() < end,
                "{what}: not within {seconds} s: {}",
                self.story()
            );
            self.step();
        }
    }

    /// Runs for a while.
    pub fn wait(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.step();
        }
    }

    /// Runs until the program has ended; its success and what it printed.
    pub fn beside(&mut self, command: &mut Command) -> (bool, String) {
        let mut child: Child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.until("a command of the peer's", 20, |_| {
            child.try_wait().unwrap().is_some()
        });
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    /// The IKE SAs that stand.
    pub fn standing(&self) -> Vec<&Up> {
        self.ups.iter().filter(|u| u.down.is_none()).collect()
    }

    /// The children that stand.
    pub fn children(&self) -> Vec<&Made> {
        self.made.iter().filter(|m| m.down.is_none()).collect()
    }

    /// Runs until IKE SA and child stand.
    pub fn established(&mut self) {
        self.until("IKE SA and child", 10, |us| {
            us.sending.is_some() && !us.standing().is_empty()
        });
    }

    /// Sends packets through the child that is sent on and has them answered by the peer's
    /// host: real ESP in both directions.
    pub fn ping(&mut self) {
        let [from, to] = self.wanted.inner().map(ip);
        let before = self.packets.len();
        for sequence in 1..=3 {
            let echo = packet::echo(from, to, sequence);
            self.send(&echo);
            self.until("an echo through the tunnel", 5, |us| {
                us.packets[before..]
                    .iter()
                    .any(|p| packet::is_answer(p, to, from, sequence))
            });
        }
    }

    /// Seals one inner packet and sends it.
    pub fn send(&mut self, inner: &[u8]) {
        let sending = self.sending.expect("a child to send on");
        let made = self.made.iter_mut().find(|m| m.child == sending).unwrap();
        let mut buffer = vec![0; HEAD_ROOM];
        buffer.extend(inner);
        buffer.extend([0; testudo_esp::TAIL_ROOM]);
        let next = if inner[0] >> 4 == 4 { 4 } else { 41 };
        let sealed = made.outbound.seal(&mut buffer, inner.len(), next).unwrap();
        made.sealed += 1;
        let Encapsulation::Udp { remote, .. } = made.encapsulation else {
            panic!("ESP without UDP is not sent here")
        };
        self.sockets[1]
            .send_to(&buffer[..sealed.len], remote)
            .unwrap();
    }

    /// All that happened, for a failed test.
    pub fn story(&self) -> String {
        let mut text = String::new();
        for u in &self.ups {
            text += &format!(
                "\n  ike {:?} {} nat {} down {:?}",
                u.ike, u.suite, u.nat, u.down
            );
        }
        for m in &self.made {
            text += &format!(
                "\n  child {:?} replaces {:?} sealed {} opened {} down {:?}",
                m.child, m.replaces, m.sealed, m.opened, m.down
            );
        }
        for f in &self.failures {
            text += &format!("\n  failed {f:?}");
        }
        text += &format!(
            "\n  {:?}\n  {:?}",
            self.engine.counters(),
            self.engine.status()
        );
        text
    }
}

/// The only ESP cipher here.
pub const ESP: Aead = Aead::Aes256Gcm16;
