//! What both ends have in common: engines, their clock, and how one is drained.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use testudo_crypto::{KeMethod, Random, SystemRandom};
use testudo_ike::{
    AdditionalKe, CertificateVerifier, ChildConfig, Done, Engine, EngineConfig, Event,
    LocalIdentity, PeerAddress, PeerAuth, PeerConfig,
};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{Monotonic, Now, PortRange, SaMode, TrafficSelector, UnixTime};

use crate::ends::link::{Kind, Link};
use crate::ends::pool::Pool;
use crate::ends::{Exchange, Load, Seen, trust};
use crate::usage;

/// A measurement that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(180);

/// The children are those of an overlay.
const UDP: u8 = 17;

/// Where the hub is.
pub(crate) const HUB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 1));

/// Where a spoke is.
pub(crate) fn spoke(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(
        Ipv4Addr::new(10, 0, 0, 1).to_bits() + number,
    ))
}

/// An engine that trusts what `verifier` trusts.
pub(crate) fn engine(
    load: Load,
    identity: LocalIdentity,
    verifier: Arc<dyn CertificateVerifier + Send + Sync>,
) -> Engine {
    let mut config = EngineConfig::default();
    // The window is ours to choose: no cookies.
    config.limits.cookie_threshold = usize::MAX;
    config.offload = load.threads > 0;
    config.suites.additional_ke = match load.exchange {
        Exchange::X25519 => Vec::new(),
        Exchange::Hybrid => vec![AdditionalKe {
            methods: vec![KeMethod::MlKem768],
            required: true,
        }],
    };
    let mut engine = Engine::new(config, Box::new(SystemRandom::new()));
    engine.set_identity(identity);
    engine.set_verifier(verifier);
    engine
}

/// A peer with one child; neither end begins before it is told to.
pub(crate) fn peer(name: &str, local: IpAddr, remote: IpAddr) -> anyhow::Result<PeerConfig> {
    let side = |address| vec![TrafficSelector::host(address).with(UDP, PortRange::ANY)];
    Ok(PeerConfig {
        id: trust::peer(name)?,
        remote_identity: trust::identity(name),
        auth: PeerAuth::Certificate,
        addresses: vec![PeerAddress { local, remote }],
        initiate: false,
        encapsulation: EncapsulationMode::Auto,
        suites: None,
        ppk: None,
        children: vec![ChildConfig {
            name: "overlay".into(),
            mode: SaMode::Transport,
            local_ts: side(local),
            remote_ts: side(remote),
            resources: 0,
        }],
    })
}

/// Both clocks.
pub(crate) struct Clock {
    origin: Instant,
    wall: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
            wall: trust::wall(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        let elapsed = self.origin.elapsed();
        let wall = self.wall + elapsed.as_secs();
        Now {
            monotonic: Monotonic(elapsed),
            wall: UnixTime(i64::try_from(wall).unwrap_or(i64::MAX)),
        }
    }
}

/// What is outside of an end's engines: the other end, and the threads that compute for them.
pub(crate) struct Outside {
    pub(crate) link: Link,
    pub(crate) pool: Option<Pool>,
}

impl Outside {
    pub(crate) fn new(link: Link, load: Load) -> anyhow::Result<Self> {
        let pool = Pool::start(load.threads)?;
        Ok(Self { link, pool })
    }

    /// Waits until there is something to do.
    pub(crate) fn wait(&self) -> anyhow::Result<()> {
        let bell = self.pool.as_ref().map(Pool::bell);
        self.link.wait(Duration::from_millis(20), bell)
    }

    /// What the threads have done, and for which engine.
    pub(crate) fn done(&self) -> Option<(u32, Done)> {
        self.pool.as_ref().and_then(Pool::done)
    }
}

/// How far the connections are.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) ikes: u32,
    pub(crate) children: u32,
    /// Begun by us and established.
    pub(crate) ours: u32,
}

impl Progress {
    /// Drains an engine, which is the end's `which`th: the connection's number goes with each
    /// datagram.
    pub(crate) fn drain(
        &mut self,
        which: u32,
        engine: &mut Engine,
        outside: &mut Outside,
        number: impl Fn(SocketAddr) -> u32,
    ) -> anyhow::Result<()> {
        while let Some(event) = engine.poll_event() {
            match event {
                Event::IkeUp(up) => {
                    self.ikes += 1;
                    self.ours += u32::from(up.initiator);
                }
                Event::ChildUp(_) => self.children += 1,
                Event::Failed(failure) => bail!("{:?}: {}", failure.check, failure.text),
                Event::IkeDown(down) => bail!("{} went: {:?}", down.peer, down.reason),
                Event::ChildDown(down) => bail!("a child of {} went: {:?}", down.peer, down.reason),
                Event::OutboundReady { .. } | Event::PathChanged(_) | Event::Receipt(_) => {}
            }
        }
        while let Some(datagram) = engine.poll_transmit() {
            let kind = Kind::Datagram(number(datagram.remote));
            outside.link.send(kind, &datagram.bytes)?;
        }
        if let Some(pool) = &mut outside.pool {
            while let Some(job) = engine.poll_job() {
                pool.give(which, job)?;
            }
        }
        Ok(())
    }

    /// Whether all connections stand, each with its child.
    pub(crate) fn is_done(&self, load: Load) -> bool {
        self.ikes == load.connections && self.children == load.connections
    }
}

/// Which of the connections an end begins, and how many may be under way.
pub(crate) struct Begin {
    next: u32,
    begun: u32,
    load: Load,
}

impl Begin {
    /// Every other connection from `first` on.
    pub(crate) fn new(first: u32, load: Load) -> Self {
        Self {
            next: first,
            begun: 0,
            load,
        }
    }

    /// The next connection to begin, while `ours` of those begun stand.
    pub(crate) fn next(&mut self, ours: u32) -> Option<u32> {
        let under_way = self.begun - ours;
        if self.next >= self.load.connections || under_way >= (self.load.window / 2).max(1) {
            return None;
        }
        let number = self.next;
        self.next += 2;
        self.begun += 1;
        Some(number)
    }
}

/// What an end has used since a moment.
pub(crate) struct Meter {
    start: Instant,
    cpu: Duration,
    resident: u64,
}

impl Meter {
    /// Whether there is hope.
    pub(crate) fn is_in_time(&self) -> bool {
        self.start.elapsed() < LONGEST
    }

    pub(crate) fn start() -> anyhow::Result<Self> {
        // The random generator seeds itself at its first use, once in a process's life.
        SystemRandom::new().fill(&mut [0; 32]);
        usage::trim();
        let resident = usage::resident("self")?;
        Ok(Self {
            start: Instant::now(),
            cpu: usage::cpu(),
            resident,
        })
    }

    pub(crate) fn stop(&self, outside: &Outside) -> anyhow::Result<Seen> {
        let (elapsed, cpu) = (self.start.elapsed(), usage::cpu() - self.cpu);
        let resident = usage::resident("self")?;
        Ok(Seen {
            cpu,
            elapsed,
            grown: i64::try_from(resident)? - i64::try_from(self.resident)?,
            jobs: outside.pool.as_ref().map_or(0, Pool::given),
        })
    }
}
