//! Our end: the engine over real sockets. ESP is opened and sealed here, or by a datapath.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use testudo_crypto::{SecretBytes, SystemRandom};
use testudo_datapath::{Datapath, Event as PathEvent};
use testudo_ike::{
    CertificateVerifier, ChildConfig, ChildDown, Engine, EngineConfig, Event, FailedCheck, Failure,
    Identity, IkeDown, IkeId, LocalIdentity, PathChanged, PeerAddress, PeerAuth, PeerConfig,
    Retransmission, Suites, UseOutbound,
};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{
    ChildId, Encapsulation, Monotonic, Now, PeerId, PortRange, SaMode, Spi, TrafficSelector,
    UnixTime,
};
use testudo_wire::udp::{Encapsulated, NON_ESP_MARKER, classify};

use crate::carrier::{Bell, Pair, Raw};
use crate::packet;
use crate::wanted::{PATIENCE, PEER, US, Wanted, ip};

/// A child that was made.
pub struct Made {
    pub child: ChildId,
    pub replaces: Option<ChildId>,
    /// Whether we began the exchange that made it.
    pub initiator: bool,
    /// Of the SA that we receive on, and of the one that we send on.
    pub spis: [Spi; 2],
    pub mode: SaMode,
    pub esn: bool,
    pub encapsulation: Encapsulation,
    pub down: Option<ChildDown>,
    /// Where it is opened and sealed here.
    pair: Option<Pair>,
    /// Packets opened and sealed here.
    pub opened: u32,
    pub sealed: u32,
    /// Where a datapath carries it: when it could receive, since 1970, and how many packets it had
    /// received at its end.
    pub receiving: Duration,
    pub received: u64,
}

/// An IKE SA that was made.
pub struct Up {
    pub ike: IkeId,
    pub suite: String,
    pub nat: bool,
    pub remote: SocketAddr,
    pub initiator: bool,
    pub certificate: bool,
    pub down: Option<IkeDown>,
}

/// Our end.
pub struct Us {
    pub engine: Engine,
    /// On port 500, and on 4500 where that is not the datapath's.
    sockets: Vec<UdpSocket>,
    raw: Option<Raw>,
    bell: Bell,
    /// Carries the packets in our stead.
    pub datapath: Option<Box<dyn Datapath>>,
    start: Instant,
    pub peer: PeerId,
    pub ups: Vec<Up>,
    pub made: Vec<Made>,
    pub failures: Vec<Failure>,
    pub moves: Vec<PathChanged>,
    pub sending: Option<ChildId>,
    /// Fragments of IKE messages, sent and received.
    pub fragments: [usize; 2],
    /// Echo requests that were answered through an SA.
    answers: BTreeSet<u16>,
    wanted: Wanted,
    /// Of the last echo request.
    sequence: u16,
}

impl Us {
    pub fn new(wanted: &Wanted) -> Self {
        Self::with(wanted, |_| {})
    }

    /// With changes to the engine's settings.
    pub fn with(wanted: &Wanted, change: impl FnOnce(&mut EngineConfig)) -> Self {
        Self::over(wanted, None, change)
    }

    /// With a datapath that carries the packets.
    pub fn over(
        wanted: &Wanted,
        datapath: Option<Box<dyn Datapath>>,
        change: impl FnOnce(&mut EngineConfig),
    ) -> Self {
        let mut config = EngineConfig {
            suites: Suites {
                ke_methods: vec![wanted.ke],
                ..Suites::default()
            },
            liveness: wanted.liveness,
            retransmission: Retransmission {
                initial: Duration::from_millis(500),
                longest: Duration::from_secs(1),
                // Where nobody dies, a peer that is slow on a busy machine is waited for.
                tries: if wanted.liveness.is_zero() { 20 } else { 6 },
            },
            ..EngineConfig::default()
        };
        change(&mut config);
        let mut engine = Engine::new(config, Box::new(SystemRandom::new()));
        engine.set_identity(LocalIdentity {
            id: Identity::Fqdn(US.into()),
            certificate: None,
        });
        let local = ip(wanted.own(0));
        let (ports, raw): (&[u16], _) = match datapath {
            Some(_) => (&[500], None),
            None => (&[500, 4500], Raw::open(local.is_ipv4())),
        };
        let bound = ports.iter().map(|port| {
            let socket = bind(local, *port);
            socket.set_nonblocking(true).unwrap();
            socket
        });
        let sockets = bound.collect();
        let bell = Bell::new();
        let datapath = datapath.map(|mut datapath| {
            datapath.set_waker(bell.waker());
            datapath
        });
        Self {
            engine,
            sockets,
            raw,
            bell,
            datapath,
            start: Instant::now(),
            peer: PeerId::new("peer").unwrap(),
            ups: Vec::new(),
            made: Vec::new(),
            failures: Vec::new(),
            moves: Vec::new(),
            sending: None,
            fragments: [0; 2],
            answers: BTreeSet::new(),
            wanted: wanted.clone(),
            sequence: 0,
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
        Now {
            monotonic: Monotonic(self.start.elapsed()),
            wall: UnixTime(i64::try_from(since_1970().as_secs()).unwrap()),
        }
    }

    /// Makes the peer known; begins if it is wanted.
    pub fn go(&mut self) {
        let wanted = self.wanted.clone();
        let [ours, theirs] = [wanted.own(0), wanted.outer()[1]].map(ip);
        let [inner_ours, inner_theirs] = wanted.inner().map(|a| {
            let host = TrafficSelector::host(ip(a));
            vec![host.with(wanted.protocol, PortRange::ANY)]
        });
        let config = PeerConfig {
            id: self.peer.clone(),
            remote_identity: Identity::Fqdn(PEER.into()),
            auth: match wanted.secret {
                Some(text) => PeerAuth::PreSharedKey(SecretBytes::new(text.as_bytes().to_vec())),
                None => PeerAuth::Certificate,
            },
            ppk: wanted.ppk,
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
            suites: wanted.suites,
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
            self.fragments[0] += usize::from(is_fragment(&out.bytes));
            let natted = out.local.port() == 4500;
            if let (true, Some(datapath)) = (natted, &mut self.datapath) {
                let sent = match out.marker {
                    true => datapath.send_ike(out.local, out.remote, &out.bytes),
                    false => datapath.send_keepalive(out.local, out.remote),
                };
                sent.unwrap();
                continue;
            }
            let socket = &self.sockets[usize::from(natted)];
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
                let pair = match &self.datapath {
                    Some(_) => None,
                    None => Some(Pair::new(&i, &o)),
                };
                self.made.push(Made {
                    child: up.child,
                    replaces: up.replaces,
                    initiator: up.initiator,
                    spis: [i.spi, o.spi],
                    mode: i.mode,
                    esn: i.esn,
                    encapsulation: o.encapsulation,
                    down: None,
                    pair,
                    opened: 0,
                    sealed: 0,
                    receiving: Duration::ZERO,
                    received: 0,
                });
                if let Some(datapath) = &mut self.datapath {
                    datapath.install_inbound(i).unwrap();
                    let made = self.made.last_mut().expect("just pushed");
                    made.receiving = since_1970();
                    datapath.install_outbound(o).unwrap();
                }
                if up.use_outbound == UseOutbound::Now {
                    self.send_on(up.child);
                }
            }
            Event::OutboundReady { child, .. } => self.send_on(child),
            Event::ChildDown(down) => {
                let made = self
                    .made
                    .iter_mut()
                    .find(|m| m.child == down.child)
                    .unwrap();
                if self.sending == Some(down.child) {
                    self.sending = None;
                }
                let child = down.child;
                made.down = Some(down);
                if let Some(datapath) = &mut self.datapath {
                    made.received = datapath.pair_counters(child).0.packets;
                    datapath.remove(child).unwrap();
                }
            }
            Event::PathChanged(change) => {
                for made in &mut self.made {
                    if change.children.contains(&made.child) {
                        made.encapsulation = change.encapsulation;
                    }
                }
                for child in &change.children {
                    if let Some(datapath) = &mut self.datapath {
                        datapath.rebind(*child, change.encapsulation).unwrap();
                    }
                }
                self.moves.push(change);
            }
            Event::Failed(failure) => self.failures.push(failure),
            Event::Receipt(receipt) => panic!("{receipt:?} of a stranger"),
        }
    }

    fn send_on(&mut self, child: ChildId) {
        self.sending = Some(child);
        if let Some(datapath) = &mut self.datapath {
            datapath.use_outbound(child).unwrap();
        }
    }

    /// What the datapath tells. Whether it told something.
    fn datapath_events(&mut self) -> bool {
        let mut some = false;
        while let Some(event) = self.datapath.as_mut().and_then(|d| d.poll_event()) {
            some = true;
            let now = self.now();
            match event {
                PathEvent::Ike {
                    local,
                    remote,
                    message,
                } => {
                    self.fragments[1] += usize::from(is_fragment(&message));
                    self.engine.handle_datagram(now, local, remote, &message);
                }
                PathEvent::FirstInbound { child } => self.engine.note_inbound(child, now),
                PathEvent::PeerMoved { child, remote } => self.engine.note_moved(child, remote),
                // Of an SA that has just gone: its last packets.
                PathEvent::UnknownSpi { .. } => {}
                PathEvent::SoftLimit { .. }
                | PathEvent::SaLost { .. }
                | PathEvent::Failed { .. } => panic!("{event:?}: {}", self.story()),
            }
            self.drain();
        }
        some
    }

    /// One round of the loop.
    pub fn step(&mut self) {
        let mut buffer = [0; 4096];
        let mut quiet = !self.datapath_events();
        while let Some(packet) = self.raw.as_ref().and_then(Raw::receive) {
            quiet = false;
            self.esp(packet);
            self.drain();
        }
        for index in 0..self.sockets.len() {
            let local = self.sockets[index].local_addr().unwrap();
            while let Ok((len, remote)) = self.sockets[index].recv_from(&mut buffer) {
                quiet = false;
                let bytes = &buffer[..len];
                let now = self.now();
                if index == 0 {
                    self.fragments[1] += usize::from(is_fragment(bytes));
                    self.engine.handle_datagram(now, local, remote, bytes);
                } else {
                    match classify(bytes) {
                        Encapsulated::Ike(ike) => {
                            self.fragments[1] += usize::from(is_fragment(ike));
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
            let sockets = self
                .sockets
                .iter()
                .chain(self.raw.as_ref().map(Raw::socket));
            self.bell.wait(sockets, Duration::from_millis(2));
        }
    }

    fn esp(&mut self, mut packet: Vec<u8>) {
        let Some(spi) = testudo_esp::spi_of(&packet) else {
            return;
        };
        let fits =
            |m: &Made| m.down.is_none() && m.pair.as_ref().is_some_and(|p| p.inbound.spi() == spi);
        let Some(made) = self.made.iter_mut().rev().find(|m| fits(m)) else {
            return;
        };
        let pair = made.pair.as_ref().expect("it fits");
        let opened = pair
            .inbound
            .open(&mut packet)
            .expect("the peer's ESP opens");
        made.opened += 1;
        let child = made.child;
        let [us, peer] = self.wanted.inner().map(ip);
        let inner = &packet[opened.payload];
        self.answers.extend(match made.mode {
            SaMode::Tunnel => packet::answer(inner, peer, us),
            SaMode::Transport => packet::answer_body(inner, opened.next_header),
        });
        if opened.first {
            let now = self.now();
            self.engine.note_inbound(child, now);
        }
    }

    /// Runs until the condition holds; panics with all that is known when it never does.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Us) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "{what}: not yet: {}", self.story());
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
        self.until("a command of the peer's", |_| {
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

    /// Whether one IKE SA and one child stand.
    pub fn is_tidy(&mut self) -> bool {
        self.standing().len() == 1 && self.children().len() == 1 && self.sending.is_some()
    }

    /// Runs until IKE SA and child stand.
    pub fn established(&mut self) {
        self.until("IKE SA and child", |us| {
            us.sending.is_some() && !us.standing().is_empty()
        });
    }

    /// Sends packets through the child that is sent on and has them answered by the peer's
    /// host: real ESP in both directions.
    pub fn ping(&mut self) {
        let [from, to] = self.wanted.inner().map(ip);
        for _ in 0..3 {
            self.sequence += 1;
            let sequence = self.sequence;
            self.send(&packet::echo(from, to, sequence));
            self.until("an echo through the tunnel", |us| us.answered(sequence));
        }
    }

    fn answered(&self, sequence: u16) -> bool {
        self.answers.contains(&sequence)
    }

    /// Sends an echo request each few milliseconds until the condition holds and some have been
    /// answered since; the numbers of those sent and of those never answered.
    pub fn flow(&mut self, what: &str, mut done: impl FnMut(&Us) -> bool) -> (usize, Vec<u16>) {
        let [from, to] = self.wanted.inner().map(ip);
        let first = self.sequence + 1;
        let end = Instant::now() + PATIENCE;
        let mut next = Instant::now();
        let mut last = None;
        loop {
            assert!(Instant::now() < end, "{what}: not yet: {}", self.story());
            if last.is_none() && done(self) {
                last = Some(self.sequence + 50);
            }
            if Some(self.sequence) == last {
                break;
            }
            if self.sending.is_some() && Instant::now() >= next {
                next = Instant::now() + Duration::from_millis(5);
                self.sequence += 1;
                self.send(&packet::echo(from, to, self.sequence));
            }
            self.step();
        }
        let missing = |us: &Us| -> Vec<u16> {
            let sent = first..=us.sequence;
            sent.filter(|n| !us.answered(*n)).collect()
        };
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end && !missing(self).is_empty() {
            self.step();
        }
        (usize::from(self.sequence - first) + 1, missing(self))
    }

    /// Asks for a successor of the child that is sent on. One that has a successor already, of
    /// the peer's making, gives way to it first.
    pub fn rekey_child(&mut self) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let now = self.now();
            let child = self.sending.expect("a child to rekey");
            match self.engine.rekey_child(child, now) {
                Ok(()) => break,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            self.step();
        }
        self.drain();
    }

    /// Asks for a successor of the IKE SA.
    pub fn rekey_ike(&mut self) {
        let now = self.now();
        self.engine.rekey_ike(&self.peer.clone(), now).unwrap();
        self.drain();
    }

    /// Whether some failure names the check.
    pub fn failed(&self, check: FailedCheck) -> bool {
        self.failures.iter().any(|f| f.check == check)
    }

    /// Seals one inner packet and sends it.
    pub fn send(&mut self, inner: &[u8]) {
        let sending = self.sending.expect("a child to send on");
        let made = self.made.iter_mut().find(|m| m.child == sending).unwrap();
        let pair = made.pair.as_mut().expect("no datapath carries it");
        let sealed = pair.seal(made.mode, inner);
        made.sealed += 1;
        let sent = match made.encapsulation {
            Encapsulation::Udp { remote, .. } => self.sockets[1].send_to(&sealed, remote),
            Encapsulation::None { remote, .. } => {
                let raw = self.raw.as_ref().expect("root may send ESP without UDP");
                raw.send(remote, &sealed)
            }
        };
        sent.unwrap();
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
                "\n  child {:?} by us {} replaces {:?} SPIs {:?} sealed {} opened {} down {:?}",
                m.child, m.initiator, m.replaces, m.spis, m.sealed, m.opened, m.down
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

fn since_1970() -> Duration {
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// Whether the first payload of a message is an Encrypted Fragment (RFC 7383, 2.5).
fn is_fragment(message: &[u8]) -> bool {
    message.get(16) == Some(&53)
}

/// A former end's sockets live on for a moment in what other tests are just starting.
fn bind(local: IpAddr, port: u16) -> UdpSocket {
    let end = Instant::now() + PATIENCE;
    loop {
        match UdpSocket::bind((local, port)) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < end, "{local}:{port}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
