//! Two engines that talk to each other, on virtual time, and all that they ever sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use testudo_crypto::{DangerousSeededRandom, SecretBytes, SigningKey};
use testudo_ike::fuzzing::{self, Sizes};
use testudo_ike::{
    CertificateCredential, CertificateVerifier, ChildConfig, Engine, EngineConfig, Event,
    FailedCheck, Identity, IkeId, LocalIdentity, PeerAddress, PeerAuth, PeerConfig,
    PeerExpectation, Suites, VerifiedPeer, VerifyError,
};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{
    ChildId, Monotonic, Now, PeerId, PortRange, SaMode, TrafficSelector, UnixTime,
};

const EPOCH: i64 = 1_800_000_000;
/// Datagrams that are kept to be replayed.
const KEPT: usize = 64;
/// Events that one run may give: more would be a loop between the two.
const MOST_EVENTS: usize = 20_000;

/// A datagram and the node that sent it.
#[derive(Clone)]
pub(crate) struct Datagram {
    pub(crate) from: usize,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// What a node's datapath would hold.
#[derive(Default)]
struct Twin {
    ikes: BTreeSet<IkeId>,
    children: BTreeMap<ChildId, u32>,
}

/// How the two prove themselves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    PreSharedKey,
    Certificate,
    /// A pre-shared key, after ML-KEM in IKE_INTERMEDIATE (RFC 9370), in fragments.
    Hybrid,
}

impl Proof {
    /// Three of four inputs go without ML-KEM, whose randomness is the library's own.
    pub(crate) fn chosen_by(byte: u8) -> Self {
        match byte % 4 {
            0 | 2 => Self::PreSharedKey,
            1 => Self::Certificate,
            _ => Self::Hybrid,
        }
    }
}

pub(crate) struct Pair {
    pub(crate) now: Duration,
    pub(crate) engines: [Engine; 2],
    /// On their way, the next one first.
    pub(crate) flying: VecDeque<Datagram>,
    /// The first and the newest that were sent.
    pub(crate) sent: Vec<Datagram>,
    twins: [Twin; 2],
    proof: Proof,
    events: usize,
}

pub(crate) fn peer_id(n: usize) -> PeerId {
    PeerId::new(format!("n{n}")).expect("a short name of letters and digits")
}

fn identity(n: usize) -> Identity {
    Identity::Fqdn(format!("n{n}.node.testudo"))
}

fn address(n: usize) -> std::net::IpAddr {
    [10, 0, 0, if n == 0 { 1 } else { 2 }].into()
}

/// "Certificates" are an identity and a key: the engine knows no better, and what reads real
/// ones has a target of its own.
struct Verifier;

impl CertificateVerifier for Verifier {
    fn verify(
        &self,
        chain: &[&[u8]],
        expected: &PeerExpectation<'_>,
        _now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        let subject = expected.identity.to_string();
        let Some(spki) = chain
            .first()
            .and_then(|c| c.strip_prefix(subject.as_bytes()))
        else {
            return Err(VerifyError {
                check: FailedCheck::CertificateWrongIdentity,
                text: "another's".into(),
            });
        };
        Ok(VerifiedPeer {
            spki: spki.to_vec(),
            not_after: UnixTime(EPOCH + 100_000_000),
            serial: "01".into(),
            subject,
            issuer: "ca".into(),
        })
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        vec![[7; 20]]
    }
}

fn engine(n: usize, seed: u8, proof: Proof) -> Engine {
    let mut suites = Suites::default();
    if proof != Proof::Hybrid {
        suites.additional_ke.clear();
    }
    let config = EngineConfig {
        suites,
        fragment_size: if proof == Proof::Hybrid { 400 } else { 1280 },
        child_lifetime: Duration::from_secs(100_000),
        ike_lifetime: Duration::from_secs(800_000),
        liveness: Duration::from_secs(10),
        ..EngineConfig::default()
    };
    let random = DangerousSeededRandom::new(u64::from(seed) << 8 | n as u64);
    let mut engine = Engine::new(config, Box::new(random));
    let certificate = (proof == Proof::Certificate).then(|| {
        // PKCS#8 of an Ed25519 key (RFC 8410, 7).
        let front = [
            0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
        ];
        let der = [&front[..], &[n as u8 + 1; 32]].concat();
        let key = SigningKey::from_pkcs8(&der).expect("any 32 bytes are a key");
        let chain = vec![[identity(n).to_string().as_bytes(), &key.public_spki()].concat()];
        CertificateCredential { chain, key }
    });
    engine.set_identity(LocalIdentity {
        id: identity(n),
        certificate,
    });
    engine.set_verifier(Arc::new(Verifier));
    engine
}

impl Pair {
    /// Two nodes that know each other; the first starts.
    pub(crate) fn new(seed: u8, proof: Proof) -> Self {
        let mut pair = Self {
            now: Duration::from_secs(1),
            engines: [engine(0, seed, proof), engine(1, seed, proof)],
            flying: VecDeque::new(),
            sent: Vec::new(),
            twins: [Twin::default(), Twin::default()],
            proof,
            events: 0,
        };
        for n in [1, 0] {
            pair.configure(n, 1);
        }
        pair.fire();
        pair
    }

    /// Tells a node about the other, with so many children.
    pub(crate) fn configure(&mut self, n: usize, children: usize) {
        let child = |c: usize| {
            let port = PortRange::one(4789 + c as u16);
            ChildConfig {
                name: format!("child{c}"),
                mode: SaMode::Transport,
                local_ts: vec![TrafficSelector::host(address(n)).with(17, port)],
                remote_ts: vec![TrafficSelector::host(address(1 - n)).with(17, port)],
                // The second has one more for a CPU.
                resources: u32::from(c == 1),
            }
        };
        let config = PeerConfig {
            id: peer_id(1 - n),
            remote_identity: identity(1 - n),
            auth: match self.proof {
                Proof::PreSharedKey | Proof::Hybrid => {
                    PeerAuth::PreSharedKey(SecretBytes::from(&b"secret"[..]))
                }
                Proof::Certificate => PeerAuth::Certificate,
            },
            ppk: None,
            addresses: vec![PeerAddress {
                local: address(n),
                remote: address(1 - n),
            }],
            suites: None,
            initiate: n == 0,
            encapsulation: EncapsulationMode::Auto,
            children: (0..children).map(child).collect(),
        };
        self.act(n, |engine, now| {
            engine.set_peer(config, now).expect("a good configuration");
        });
    }

    pub(crate) fn at(&self) -> Now {
        Now {
            monotonic: Monotonic(self.now),
            wall: UnixTime(EPOCH + self.now.as_secs() as i64),
        }
    }

    /// Does something to an engine and takes what it says.
    pub(crate) fn act<T>(&mut self, n: usize, f: impl FnOnce(&mut Engine, Now) -> T) -> T {
        let now = self.at();
        let out = f(&mut self.engines[n], now);
        self.drain(n);
        out
    }

    fn drain(&mut self, n: usize) {
        while let Some(event) = self.engines[n].poll_event() {
            self.events += 1;
            assert!(self.events < MOST_EVENTS, "the two never come to rest");
            let twin = &mut self.twins[n];
            match event {
                Event::IkeUp(up) => assert!(twin.ikes.insert(up.ike), "up twice"),
                Event::IkeDown(down) => assert!(twin.ikes.remove(&down.ike), "down twice"),
                Event::ChildUp(up) => {
                    let spi = up.inbound.spi.0;
                    assert!(!twin.children.values().any(|s| *s == spi), "an SPI twice");
                    assert!(twin.children.insert(up.child, spi).is_none());
                }
                Event::ChildDown(down) => {
                    assert!(twin.children.remove(&down.child).is_some(), "down twice");
                }
                Event::OutboundReady { child, .. } => {
                    assert!(twin.children.contains_key(&child), "not installed");
                }
                Event::PathChanged(_) | Event::Failed(_) | Event::Receipt(_) => {}
            }
        }
        while let Some(t) = self.engines[n].poll_transmit() {
            let datagram = Datagram {
                from: n,
                local: t.local,
                remote: t.remote,
                bytes: t.bytes,
            };
            if self.sent.len() == KEPT {
                self.sent.remove(KEPT / 2);
            }
            self.sent.push(datagram.clone());
            self.flying.push_back(datagram);
        }
    }

    /// A datagram arrives at the other node.
    pub(crate) fn deliver(&mut self, datagram: &Datagram) {
        self.act(1 - datagram.from, |engine, now| {
            engine.handle_datagram(now, datagram.remote, datagram.local, &datagram.bytes);
        });
    }

    /// Delivers what flies, in order, at most `count`.
    pub(crate) fn fly(&mut self, count: usize) {
        for _ in 0..count {
            let Some(datagram) = self.flying.pop_front() else {
                return;
            };
            self.deliver(&datagram);
        }
    }

    fn fire(&mut self) {
        for n in 0..2 {
            let due = self.engines[n].poll_timeout();
            if due.is_some_and(|at| at.0 <= self.now) {
                self.act(n, Engine::handle_timeout);
            }
        }
    }

    /// To the next deadline, if it is not far: all that flies stays where it is.
    pub(crate) fn wait(&mut self) {
        let next = self.engines.iter().filter_map(|e| e.poll_timeout()).min();
        if let Some(at) = next.filter(|at| at.0 < self.now + Duration::from_secs(3600)) {
            self.now = self.now.max(at.0);
            self.fire();
        }
    }

    /// Lets time pass on a fair network.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            while !self.flying.is_empty() {
                self.now += Duration::from_millis(1);
                self.fly(1);
            }
            let next = self.engines.iter().filter_map(|e| e.poll_timeout()).min();
            match next.filter(|at| at.0 < end) {
                Some(at) => {
                    self.now = self.now.max(at.0);
                    self.fire();
                }
                None => {
                    self.now = self.now.max(end);
                    return;
                }
            }
        }
    }

    /// Whether both hold an IKE SA with a child that the other holds too.
    pub(crate) fn connected(&self) -> bool {
        let children = |n: usize| {
            let all = self.engines[n].status().into_iter();
            all.filter(|ike| ike.state == "established")
                .flat_map(|ike| ike.children)
        };
        children(0).any(|a| {
            a.sending
                && children(1).any(|b| b.sending && b.spi_in == a.spi_out && b.spi_out == a.spi_in)
        })
    }

    /// Whatever happened: engines that are told to forget each other end up empty.
    pub(crate) fn part(mut self) {
        for n in 0..2 {
            let sizes = fuzzing::sizes(&self.engines[n]);
            assert!(sizes.sas <= 400 && sizes.children <= 1200, "{sizes:?}");
            self.act(n, |engine, now| engine.remove_peer(&peer_id(1 - n), now));
        }
        self.run(Duration::from_secs(400));
        for n in 0..2 {
            let sizes = fuzzing::sizes(&self.engines[n]);
            let status = self.engines[n].status();
            assert_eq!(sizes, Sizes::default(), "node {n} keeps {status:?}");
            assert!(self.twins[n].children.is_empty(), "a child stays installed");
            assert!(self.twins[n].ikes.is_empty(), "an IKE SA stays up");
        }
    }
}
