//! One node: its engine, and a twin of what its datapath would hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use testudo_crypto::{Cipher, Random};
use testudo_ike::{
    ChildUp, DownReason, Engine, EngineConfig, EspCounts, Event, FailedCheck, Identity, IkeId,
    IkeStatus, Job, Receipt, UseOutbound,
};
use testudo_model::{ChildId, Monotonic, Now, PeerId, UnixTime};

use crate::certificate;

const EPOCH: i64 = 1_800_000_000;

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
pub enum Gone {
    /// The node's process died.
    Restart,
    /// The engine removed it.
    Down(DownReason),
    /// The datapath never took it.
    Refused,
}

/// Under which peer, name and resource (RFC 9611) a child is wanted.
pub type Purpose = (usize, String, u32);

/// One direction of a child as the datapath would hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// The child.
    pub child: ChildId,
    /// In the packets.
    pub spi: u32,
    /// The cipher.
    pub cipher: Cipher,
    /// Key and salt.
    pub key: Vec<u8>,
    /// 64-bit sequence numbers.
    pub esn: bool,
}

/// What a node sends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Peer and name.
    pub purpose: Purpose,
    /// The SA.
    pub half: Half,
    /// We began, and so know that the peer has it.
    pub ours: bool,
}

/// What a node's datapath would hold.
#[derive(Debug, Clone, Default)]
pub struct Twin {
    /// By SPI.
    pub inbound: BTreeMap<u32, Half>,
    /// By child.
    pub outbound: BTreeMap<ChildId, Outbound>,
    /// The child that packets go out on.
    pub sending: BTreeMap<Purpose, ChildId>,
    /// IKE SAs that are up.
    pub ikes: BTreeSet<IkeId>,
    /// Children on which a packet came in.
    pub heard: BTreeSet<ChildId>,
    /// SPIs that it received on once, and why no longer.
    pub gone: BTreeMap<u32, Gone>,
    /// Keys that it received with, ever.
    pub keys: BTreeSet<Vec<u8>>,
    /// Children that the datapath did not take, until the engine has ended them.
    pub refused: BTreeSet<ChildId>,
    /// Counts its changes.
    pub version: u64,
}

/// One node.
pub struct Node {
    /// Its number, from 0.
    pub number: usize,
    /// Its engine. After each call that changes it comes [`Node::drain`].
    pub engine: Engine,
    /// Its datapath's twin.
    pub twin: Twin,
    /// Virtual time of its last step.
    pub now: Duration,
    /// What the wall clock is wrong by, in seconds.
    pub wall_offset: i64,
    /// So many of the next children are not taken by the datapath.
    pub refuses: u32,
    /// Some datapath has refused a child: who asks for another is put off.
    pub put_off: bool,
    /// Datagrams that were sent and not yet taken by the one who drives.
    pub sent: Vec<Datagram>,
    /// Asymmetric operations that the engine has given away, not yet taken.
    pub jobs: Vec<Job>,
    /// How often its process has died.
    pub lives: u32,
    /// What happened since it was last taken, if `tells`.
    pub lines: Vec<String>,
    /// Whether lines are written.
    pub tells: bool,
    /// The first rule that the node broke by itself.
    pub broken: Option<String>,
    /// IKE keys that came up since they were last taken.
    pub ike_keys: Vec<Vec<u8>>,
}

/// The name of a node.
pub fn peer_id(n: usize) -> PeerId {
    PeerId::new(format!("n{n}")).expect("a short name of letters and digits")
}

/// The number in a node's name.
pub fn number(peer: &PeerId) -> usize {
    let digits = peer.as_str().trim_start_matches('n');
    digits.parse().expect("peer_id made the name")
}

/// The address of a node.
pub fn address(n: usize) -> IpAddr {
    let last = u8::try_from(n + 1).unwrap_or(u8::MAX);
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

/// The identity of a node.
pub fn identity(n: usize) -> Identity {
    Identity::Fqdn(format!("n{n}.node.testudo"))
}

impl Node {
    /// A node that knows nobody yet.
    pub fn new(number: usize, config: EngineConfig, random: Box<dyn Random + Send>) -> Self {
        Self {
            number,
            engine: engine(number, config, random),
            twin: Twin::default(),
            now: Duration::ZERO,
            wall_offset: 0,
            refuses: 0,
            put_off: false,
            sent: Vec::new(),
            jobs: Vec::new(),
            lives: 0,
            lines: Vec::new(),
            tells: true,
            broken: None,
            ike_keys: Vec::new(),
        }
    }

    /// The process dies and another starts: nothing is remembered.
    pub fn restart(&mut self, config: EngineConfig, random: Box<dyn Random + Send>) {
        self.tell("restarts");
        self.engine = engine(self.number, config, random);
        self.jobs.clear();
        self.lives += 1;
        let old = std::mem::take(&mut self.twin);
        self.twin.gone = old.gone;
        self.twin.version = old.version + 1;
        self.twin.keys = old.keys;
        for spi in old.inbound.into_keys() {
            self.twin.gone.insert(spi, Gone::Restart);
        }
    }

    /// Both clocks of this node.
    pub fn at(&self, now: Duration) -> Now {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        Now {
            monotonic: Monotonic(now),
            wall: UnixTime(
                EPOCH
                    .saturating_add(seconds)
                    .saturating_add(self.wall_offset),
            ),
        }
    }

    /// Does something to the engine and takes what it says.
    pub fn act<T>(&mut self, now: Duration, f: impl FnOnce(&mut Engine, Now) -> T) -> T {
        self.now = now;
        let at = self.at(now);
        let out = f(&mut self.engine, at);
        self.drain();
        out
    }

    /// When its next deadline is.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.engine.poll_timeout().map(|at| at.0)
    }

    /// Fires what is due.
    pub fn fire(&mut self, now: Duration) {
        if self.next_timeout().is_some_and(|at| at <= now) {
            self.act(now, Engine::handle_timeout);
        }
    }

    /// A datagram arrives.
    pub fn deliver(&mut self, now: Duration, datagram: &Datagram) {
        self.now = now;
        if self.tells && datagram.bytes.len() > 24 {
            let (kind, flags) = (datagram.bytes[18], datagram.bytes[19]);
            let text = format!(
                "<- {} {} {}, ike {:02x}{:02x}",
                exchange(kind),
                if flags & 0x20 != 0 {
                    "answer"
                } else {
                    "request"
                },
                datagram.bytes[23],
                datagram.bytes[0],
                datagram.bytes[1],
            );
            self.tell(&text);
        }
        self.act(now, |e, at| {
            e.handle_datagram(at, datagram.to, datagram.from, &datagram.bytes);
        });
    }

    /// An ESP packet was opened on a child.
    pub fn hear(&mut self, now: Duration, child: ChildId) {
        if self.twin.heard.insert(child) {
            self.twin.version += 1;
            self.act(now, |e, at| e.note_inbound(child, at));
        }
    }

    /// Its IKE SAs with a peer, those on their way out too.
    pub fn status(&self, peer: usize) -> Vec<IkeStatus> {
        let id = peer_id(peer);
        let mut all = self.engine.status();
        all.retain(|s| s.peer.as_ref() == Some(&id));
        all
    }

    /// Takes events and datagrams out of the engine.
    pub fn drain(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            let refused = match &event {
                Event::ChildUp(up) if self.refuses > 0 => Some(up.child),
                _ => None,
            };
            if let Some(child) = refused {
                self.refuse(child, event);
            } else {
                self.note(event);
            }
        }
        while let Some(t) = self.engine.poll_transmit() {
            self.sent.push(Datagram {
                from: t.local,
                to: t.remote,
                bytes: t.bytes,
            });
        }
        while let Some(job) = self.engine.poll_job() {
            self.jobs.push(job);
        }
    }

    /// The datapath does not take a child.
    fn refuse(&mut self, child: ChildId, event: Event) {
        self.refuses -= 1;
        self.twin.version += 1;
        self.tell(&format!("child {} is refused by the datapath", child.0));
        if let Event::ChildUp(up) = event {
            self.twin.gone.insert(up.inbound.spi.0, Gone::Refused);
        }
        self.twin.refused.insert(child);
        let at = self.at(self.now);
        if self.engine.refuse_child(child, at).is_err() {
            self.break_rule(format!("child {} was told and is not known", child.0));
        }
    }

    fn note(&mut self, event: Event) {
        self.twin.version += 1;
        match event {
            Event::IkeUp(up) => {
                let (ike, replaces) = (up.ike.0, up.replaces.map(|r| r.0));
                self.tell(&format!(
                    "ike {ike} up, replaces {replaces:?}, ours {}",
                    up.initiator
                ));
                if let Some(keys) = &up.danger_keys {
                    self.ike_keys.push(keys.sk_ei.as_bytes().to_vec());
                    self.ike_keys.push(keys.sk_er.as_bytes().to_vec());
                }
                if !self.twin.ikes.insert(up.ike) {
                    self.break_rule(format!("ike {ike} came up twice"));
                }
            }
            Event::IkeDown(down) => {
                self.tell(&format!("ike {} down: {:?}", down.ike.0, down.reason));
                if !self.twin.ikes.remove(&down.ike) {
                    self.break_rule(format!("ike {} went down without up", down.ike.0));
                }
            }
            Event::ChildUp(up) => self.child_up(&up),
            Event::OutboundReady {
                child,
                peer,
                name,
                resource,
            } => {
                self.tell(&format!("child {} sends", child.0));
                if self.twin.refused.contains(&child) {
                    // Told before it was refused.
                } else if self.twin.outbound.contains_key(&child) {
                    let purpose = (number(&peer), name, resource);
                    self.twin.sending.insert(purpose, child);
                } else {
                    self.break_rule(format!("is to send on child {}, not up", child.0));
                }
            }
            Event::ChildDown(down) => {
                self.tell(&format!("child {} down: {:?}", down.child.0, down.reason));
                self.child_down(down.child, down.reason);
            }
            Event::Receipt(receipt) => self.receipt(receipt),
            Event::PathChanged(path) => self.tell(&format!("path is {}", path.remote)),
            Event::Failed(failure) => {
                self.tell(&format!("failed: {} {}", failure.check, failure.text));
                let put_off = self.put_off && failure.text.contains("TEMPORARY_FAILURE");
                let fair = matches!(
                    failure.check,
                    FailedCheck::NoAnswer | FailedCheck::TrafficSelectors | FailedCheck::Limit
                );
                if !fair && !put_off {
                    self.break_rule(format!("blames its peer: {}", failure.text));
                }
            }
        }
    }

    /// Whoever is asked about a child answers with its number, so that whoever asked can tell whose
    /// counts they are.
    fn receipt(&mut self, receipt: Receipt) {
        self.tell(&format!("hears {receipt:?}"));
        match receipt {
            Receipt::Asked { child, number, .. } => {
                let Some(spi) = self.twin.outbound.get(&child).map(|out| out.half.spi) else {
                    return self.break_rule(format!("asked of child {}, not up", child.0));
                };
                let counts = EspCounts {
                    received: spi.into(),
                    sent: u64::MAX,
                };
                let at = self.at(self.now);
                if self.engine.tell_esp(child, number, counts, at).is_err() {
                    self.break_rule(format!("asked of child {}, not known", child.0));
                }
            }
            Receipt::Counts { child, counts, .. } => {
                let inbound = self.twin.inbound.values();
                let spi = inbound
                    .filter(|half| half.child == child)
                    .map(|half| u64::from(half.spi))
                    .next();
                let wanted = spi.map(|received| EspCounts {
                    received,
                    sent: u64::MAX,
                });
                if wanted != Some(counts) {
                    self.break_rule(format!("counts of another child than {}", child.0));
                }
            }
            Receipt::Filtered { .. } => {}
        }
    }

    fn child_up(&mut self, up: &ChildUp) {
        let (spi_in, spi_out) = (up.inbound.spi.0, up.outbound.spi.0);
        self.tell(&format!(
            "child {} ({}) up on ike {}, in {spi_in:08x} out {spi_out:08x}, {:?}, replaces {:?}, \
             ours {}",
            up.child.0,
            up.name,
            up.ike.0,
            up.use_outbound,
            up.replaces.map(|r| r.0),
            up.initiator
        ));
        let key = up.inbound.keymat.as_bytes().to_vec();
        if !self.twin.keys.insert(key.clone()) {
            self.break_rule(format!("a key twice, with SPI {spi_in:08x}"));
        }
        let again = self.twin.gone.contains_key(&spi_in);
        let inbound = Half {
            child: up.child,
            spi: spi_in,
            cipher: up.inbound.cipher,
            key,
            esn: up.inbound.esn,
        };
        let old = self.twin.inbound.insert(spi_in, inbound);
        let purpose = (number(&up.peer), up.name.clone(), up.resource);
        let outbound = Outbound {
            purpose: purpose.clone(),
            half: Half {
                child: up.child,
                spi: spi_out,
                cipher: up.outbound.cipher,
                key: up.outbound.keymat.as_bytes().to_vec(),
                esn: up.outbound.esn,
            },
            ours: up.initiator,
        };
        self.twin.outbound.insert(up.child, outbound);
        if up.use_outbound == UseOutbound::Now {
            self.twin.sending.insert(purpose, up.child);
        }
        if again || old.is_some() {
            self.break_rule(format!("SPI {spi_in:08x} twice"));
        }
    }

    fn child_down(&mut self, child: ChildId, reason: DownReason) {
        let twin = &mut self.twin;
        if twin.refused.remove(&child) {
            return;
        }
        let known = twin.outbound.remove(&child).is_some();
        twin.sending.retain(|_, c| *c != child);
        let gone = &mut twin.gone;
        twin.inbound.retain(|spi, half| {
            if half.child == child {
                gone.insert(*spi, Gone::Down(reason));
            }
            half.child != child
        });
        if !known {
            self.break_rule(format!("child {} went down without up", child.0));
        }
    }

    /// Adds a line to the story.
    pub fn tell(&mut self, text: &str) {
        if self.tells {
            let (now, n) = (self.now, self.number);
            self.lines.push(format!("{now:?} n{n} {text}"));
        }
    }

    fn break_rule(&mut self, text: String) {
        self.tell(&format!("BREACH: {text}"));
        let n = self.number;
        self.broken.get_or_insert_with(|| format!("n{n} {text}"));
    }
}

fn engine(n: usize, config: EngineConfig, random: Box<dyn Random + Send>) -> Engine {
    let mut engine = Engine::new(config, random);
    engine.set_identity(certificate::of(n, identity(n)));
    engine.set_verifier(std::sync::Arc::new(certificate::Trusting));
    engine
}

fn exchange(kind: u8) -> String {
    match kind {
        34 => "IKE_SA_INIT".into(),
        35 => "IKE_AUTH".into(),
        36 => "CREATE_CHILD_SA".into(),
        37 => "INFORMATIONAL".into(),
        43 => "IKE_INTERMEDIATE".into(),
        44 => "IKE_FOLLOWUP_KE".into(),
        other => format!("exchange {other}"),
    }
}
