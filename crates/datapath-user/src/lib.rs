//! The userspace datapath: ESP between a TUN and sockets.
//!
//! ```text
//!  overlay, pods --rules--> testudo0 --seal--> raw ESP, UDP 4500 --> peers
//!                           testudo0 <--open-- raw ESP, UDP 4500 <-- peers
//! ```
//!
//! [`UserDatapath`] is the whole; [`HostRules`] is the part that steers packets and drops clear
//! ones, and works alone. Each queue has a thread outwards and one inwards; they share nothing
//! but tables that are replaced as a whole. Per packet nothing is allocated, locked or copied
//! beyond what the sockets do; segments of large packets are the one exception, they are written
//! apart.
//!
//! When a packet thread or the whole process ends, steered packets are dropped: rules and
//! blackhole routes outlive them.

mod deliver;
mod engine;
mod event;
mod host;
mod inbound;
mod outbound;
mod segment;
mod stats;
mod sys;
mod tables;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use testudo_datapath::{Counters, Datapath, DatapathError, Event, SaCounters, Waker, inner_mtu};
use testudo_esp::{InboundParameters, InboundSa, OutboundParameters, OutboundSa, SoftLimits};
use testudo_model::{
    ChildId, Cipher, Encapsulation, InboundSaSpec, OutboundSaSpec, PeerId, ProtectedFlows,
    SaDirection, SaId, SaMode, TrafficPolicy,
};
use testudo_netlink::Netlink;

pub use host::{
    HostOptions, HostRules, PRIORITY_ALL, PRIORITY_EXEMPT, PRIORITY_PEER, PROTOCOL, TABLE,
};

use engine::Engine;
use event::{EventSink, Events};
use stats::Stats;
use tables::{Inbound, Outbound, Shared, Tables};

/// The most queues that are opened unless more are asked for.
const DEFAULT_QUEUES: usize = 4;
/// What an underlay's MTU is taken to be when its link cannot be found.
const USUAL_MTU: u32 = 1500;

/// How the datapath is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the TUN device.
    pub device: String,
    /// The UDP port for encapsulated ESP and IKE.
    pub udp_port: u16,
    /// Queues, each with two threads; `None`: one a core, four at most.
    pub queues: Option<usize>,
    /// Use segmentation and checksum offloads where the kernel has them.
    pub offloads: bool,
    /// Lower the MSS of TCP connections that are opened through a tunnel, so that their sealed
    /// packets are not sent in fragments.
    pub clamp_mss: bool,
    /// A directory that survives restarts of the agent.
    pub state_dir: PathBuf,
}

impl Options {
    /// The usual device `testudo0` and port 4500.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            device: "testudo0".into(),
            udp_port: testudo_wire::udp::NAT_T_PORT,
            queues: None,
            offloads: true,
            clamp_mss: true,
            state_dir: state_dir.into(),
        }
    }

    /// The host's rules that go with it.
    pub fn host(&self) -> HostOptions {
        HostOptions {
            device: self.device.clone(),
            ..HostOptions::new(&self.state_dir)
        }
    }

    fn clamp_mtu(
        &self,
        mode: SaMode,
        cipher: Cipher,
        encapsulation: &Encapsulation,
        path_mtu: u32,
    ) -> u32 {
        match mode {
            SaMode::Tunnel if self.clamp_mss => inner_mtu(mode, cipher, encapsulation, path_mtu),
            _ => 0,
        }
    }

    fn queue_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        self.queues
            .unwrap_or_else(|| cores().min(DEFAULT_QUEUES))
            .clamp(1, 64)
    }
}

/// The userspace datapath of one node, in the network namespace of the thread that makes it.
/// All calls must come from threads of that namespace.
pub struct UserDatapath {
    options: Options,
    host: HostRules,
    policy: Option<TrafficPolicy>,
    inbound: BTreeMap<ChildId, Arc<Inbound>>,
    outbound: BTreeMap<ChildId, (PeerId, Arc<Outbound>)>,
    /// Pairs in use, the newest last.
    in_use: Vec<ChildId>,
    shared: Arc<Shared>,
    stats: Arc<Stats>,
    /// What SAs dropped that are gone.
    past_drops: BTreeMap<String, u64>,
    sink: EventSink,
    events: Events,
    engine: Option<Engine>,
}

impl UserDatapath {
    /// Opens the device and the sockets and starts the packet threads. No traffic is steered
    /// until [`Datapath::set_traffic`].
    pub fn new(options: Options) -> Result<Self, DatapathError> {
        let stats = Arc::new(Stats::default());
        let (sink, events) = EventSink::new(Arc::clone(&stats));
        let mut datapath = Self {
            host: HostRules::new(options.host()),
            options,
            policy: None,
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            in_use: Vec::new(),
            shared: Arc::default(),
            stats,
            past_drops: BTreeMap::new(),
            sink,
            events,
            engine: None,
        };
        datapath.ensure_engine()?;
        datapath.host.split_tables()?;
        Ok(datapath)
    }

    /// The engine, started anew after a `clear`.
    fn ensure_engine(&mut self) -> Result<&mut Engine, DatapathError> {
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => {
                let engine = Engine::start(&self.options, &self.shared, &self.stats, &self.sink)?;
                tracing::info!(
                    "device {} is up: {} queues, offloads {:?}",
                    self.options.device,
                    self.options.queue_count(),
                    engine.offloads
                );
                engine
            }
        };
        Ok(self.engine.insert(engine))
    }

    /// Hands the packet threads what stands now.
    fn publish(&self) {
        let outbound = self
            .in_use
            .iter()
            .rev()
            .filter_map(|child| self.outbound.get(child).map(|(_, entry)| Arc::clone(entry)))
            .collect();
        let overlay = match self.policy.as_ref().map(|policy| &policy.flows) {
            Some(ProtectedFlows::Overlay { port }) => Some(*port),
            _ => None,
        };
        self.shared.replace(Tables::new(
            outbound,
            self.inbound.values().cloned(),
            overlay,
        ));
    }

    fn keep_drops(&mut self, counters: &testudo_esp::Counters) {
        add_drops(&mut self.past_drops, counters);
    }
}

impl Datapath for UserDatapath {
    fn kind(&self) -> &'static str {
        "user"
    }

    fn set_traffic(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        if self.engine.is_none() {
            // Closed first: what follows may fail.
            self.host.apply(policy)?;
            self.ensure_engine()?;
        }
        self.host.apply(policy)?;
        self.policy = Some(policy.clone());
        self.publish();
        Ok(())
    }

    fn install_inbound(&mut self, sa: InboundSaSpec) -> Result<(), DatapathError> {
        const OPERATION: &str = "install an inbound SA";
        self.ensure_engine()?;
        if self.inbound.contains_key(&sa.child) {
            return Err(misuse(OPERATION, sa.child, "has one already"));
        }
        if self
            .inbound
            .values()
            .any(|other| other.sa.spi() == sa.spi.0)
        {
            return Err(misuse(OPERATION, sa.child, "has the SPI of another SA"));
        }
        let parameters = InboundParameters {
            spi: sa.spi.0,
            cipher: sa.cipher,
            keymat: sa.keymat.as_bytes(),
            esn: sa.esn,
            replay_window: sa.replay_window,
        };
        let opened =
            InboundSa::new(&parameters).map_err(|e| misuse(OPERATION, sa.child, &e.to_string()))?;
        let entry = Inbound {
            child: sa.child,
            sa: Arc::new(opened),
            mode: sa.mode,
            encapsulation: sa.encapsulation,
            local: sa.local,
            remote: sa.remote,
            moved: Arc::default(),
        };
        self.inbound.insert(sa.child, Arc::new(entry));
        self.publish();
        Ok(())
    }

    fn install_outbound(&mut self, sa: OutboundSaSpec) -> Result<(), DatapathError> {
        const OPERATION: &str = "install an outbound SA";
        self.ensure_engine()?;
        if self.outbound.contains_key(&sa.child) {
            return Err(misuse(OPERATION, sa.child, "has one already"));
        }
        let parameters = OutboundParameters {
            spi: sa.spi.0,
            cipher: sa.cipher,
            keymat: sa.keymat.as_bytes(),
            esn: sa.esn,
            limits: SoftLimits {
                packets: sa.limits.soft_packets,
                bytes: sa.limits.soft_bytes,
            },
        };
        let sealed = OutboundSa::new(&parameters)
            .map_err(|e| misuse(OPERATION, sa.child, &e.to_string()))?;
        let path_mtu = underlay_mtu(sa.encapsulation.local());
        let entry = Outbound {
            child: sa.child,
            sa: Arc::new(sealed),
            mode: sa.mode,
            path_mtu,
            clamp_mtu: self
                .options
                .clamp_mtu(sa.mode, sa.cipher, &sa.encapsulation, path_mtu),
            encapsulation: sa.encapsulation,
            local: sa.local,
            remote: sa.remote,
            gso_limit: Arc::new(AtomicU32::new(u32::MAX)),
        };
        self.outbound.insert(sa.child, (sa.peer, Arc::new(entry)));
        Ok(())
    }

    fn use_outbound(&mut self, child: ChildId) -> Result<(), DatapathError> {
        if !self.outbound.contains_key(&child) {
            return Err(misuse("use an outbound SA", child, "has none"));
        }
        self.in_use.retain(|other| *other != child);
        self.in_use.push(child);
        self.publish();
        Ok(())
    }

    fn remove(&mut self, child: ChildId) -> Result<(), DatapathError> {
        self.in_use.retain(|other| *other != child);
        let inbound = self.inbound.remove(&child);
        let outbound = self.outbound.remove(&child);
        self.publish();
        if let Some(entry) = inbound {
            self.keep_drops(&entry.sa.counters());
        }
        if let Some((_, entry)) = outbound {
            self.keep_drops(&entry.sa.counters());
        }
        Ok(())
    }

    fn rebind(&mut self, child: ChildId, to: Encapsulation) -> Result<(), DatapathError> {
        let path_mtu = underlay_mtu(to.local());
        let clamp = |mode, cipher| self.options.clamp_mtu(mode, cipher, &to, path_mtu);
        let inbound = self.inbound.get_mut(&child).map(|entry| {
            *entry = Arc::new(Inbound {
                encapsulation: to,
                ..Inbound::clone(entry)
            });
        });
        let outbound = self.outbound.get_mut(&child).map(|(_, entry)| {
            let gso_limit = Arc::new(AtomicU32::new(u32::MAX));
            let old = Outbound::clone(entry);
            let clamp_mtu = clamp(old.mode, old.sa.cipher());
            *entry = Arc::new(Outbound {
                encapsulation: to,
                path_mtu,
                clamp_mtu,
                gso_limit,
                ..old
            });
        });
        if inbound.is_none() && outbound.is_none() {
            return Err(misuse("rebind a pair", child, "is not installed"));
        }
        self.publish();
        Ok(())
    }

    fn send_ike(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        message: &[u8],
    ) -> Result<(), DatapathError> {
        self.ensure_engine()?
            .send_ike(local.ip(), remote, message)
            .map_err(|e| DatapathError::unsent("an IKE message", local, remote, &e))
    }

    fn send_keepalive(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<(), DatapathError> {
        self.ensure_engine()?
            .send_udp(local.ip(), remote, &[0xff])
            .map_err(|e| DatapathError::unsent("a keepalive", local, remote, &e))
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.next()
    }

    fn set_waker(&mut self, waker: Waker) {
        self.sink.set_waker(waker);
    }

    fn counters(&self) -> Counters {
        let mut all = self.sa_counters();
        let drops_clear = self.policy.as_ref().is_some_and(|policy| {
            use testudo_model::ClearTraffic::Drop;
            policy.clear_inbound == Drop || policy.clear_outbound == Drop
        });
        if drops_clear {
            for (reason, packets) in self.host.drops() {
                if packets != 0 {
                    *all.drops.entry(reason.to_owned()).or_default() += packets;
                }
            }
        }
        all
    }

    /// Without the firewall's, which a program must be asked for.
    fn sa_counters(&self) -> Counters {
        let mut all = Counters {
            drops: self.past_drops.clone(),
            ..Counters::default()
        };
        for (child, entry) in &self.inbound {
            let counters = entry.sa.counters();
            add_drops(&mut all.drops, &counters);
            let id = SaId {
                child: *child,
                direction: SaDirection::Inbound,
            };
            all.sas.insert(id, sa_counters(&counters));
        }
        for (child, (_, entry)) in &self.outbound {
            let counters = entry.sa.counters();
            add_drops(&mut all.drops, &counters);
            let id = SaId {
                child: *child,
                direction: SaDirection::Outbound,
            };
            all.sas.insert(id, sa_counters(&counters));
        }
        self.stats.collect(&mut all.drops, &mut all.notices);
        all
    }

    fn pair_halves(&self, child: ChildId) -> (Option<SaCounters>, Option<SaCounters>) {
        let inbound = self.inbound.get(&child).map(|entry| entry.sa.counters());
        let outbound = self
            .outbound
            .get(&child)
            .map(|(_, entry)| entry.sa.counters());
        let shown = |c: Option<testudo_esp::Counters>| c.map(|c| sa_counters(&c));
        (shown(inbound), shown(outbound))
    }

    fn policies(&self) -> Result<BTreeMap<PeerId, u32>, DatapathError> {
        match &self.policy {
            Some(policy) => self.host.rules_of_peers(policy),
            None => Ok(BTreeMap::new()),
        }
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        // Rules first: without them nothing depends on the device.
        self.host.clear()?;
        self.engine = None;
        self.policy = None;
        self.inbound.clear();
        self.outbound.clear();
        self.in_use.clear();
        self.publish();
        Ok(())
    }
}

fn misuse(operation: &'static str, child: ChildId, reason: &str) -> DatapathError {
    DatapathError::Misuse {
        operation,
        reason: format!("child {}: {reason}", child.0),
    }
}

fn sa_counters(counters: &testudo_esp::Counters) -> SaCounters {
    SaCounters {
        packets: counters.packets,
        bytes: counters.bytes,
        sequence: counters.sequence,
    }
}

fn add_drops(drops: &mut BTreeMap<String, u64>, counters: &testudo_esp::Counters) {
    for (reason, number) in counters.drops().filter(|(_, number)| *number != 0) {
        *drops.entry(reason.as_str().to_owned()).or_default() += number;
    }
}

/// The MTU of the link that has this address. Good enough to count fragments and to keep GSO
/// within what the link takes.
fn underlay_mtu(local: IpAddr) -> u32 {
    let find = || -> testudo_netlink::Result<Option<u32>> {
        let mut netlink = Netlink::open()?;
        let own = netlink
            .addresses()?
            .into_iter()
            .find(|own| own.address.addr() == local);
        let links = netlink.links()?;
        let mtu = own.and_then(|own| links.into_iter().find(|link| link.index == own.link));
        Ok(mtu.map(|link| link.mtu))
    };
    find().ok().flatten().unwrap_or(USUAL_MTU)
}
