//! The kernel datapath: the kernel's own ESP carries the packets (XFRM).
//!
//! All that is put into the kernel carries a tag, so that it is found again after a restart and
//! nothing else is ever touched: request IDs of SAs and templates begin with [`REQID_BASE`],
//! policies have priorities of our own.
//!
//! [`KernelDatapath`] is the agent's end. What the agent asks for is done before its call
//! returns, each step one request to the kernel. A thread of its own hears what the kernel tells
//! (SAs that expire or vanish, policies that others change, peers that move), receives IKE on UDP
//! port 4500 and does what is due; it shares what is known with the agent's calls behind a lock
//! that is held for single steps.
//!
//! When the process ends nothing is removed: SAs go on carrying packets, policies go on blocking.
//! The next [`KernelDatapath::open`] finds them.

mod anew;
mod core;
mod count;
pub mod doctor;
mod event;
mod firewall;
mod keeper;
mod leftover;
pub mod nft;
mod pairs;
pub mod plan;
mod probe;
mod reaction;
mod sa;
mod tag;
mod timers;
mod udp;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testudo_datapath::{Counters, Datapath, DatapathError, Event, SaCounters, Waker};
use testudo_model::{ChildId, Encapsulation, InboundSaSpec, OutboundSaSpec, PeerId, TrafficPolicy};
use testudo_netlink::{Xfrm, XfrmMonitor};

pub use keeper::UdpKeeper;
pub use probe::Facts;
pub use tag::{
    PRIORITY_ALLOW, PRIORITY_BLOCK, PRIORITY_PEER, REQID_BASE, REQID_BLOCK, is_our_priority,
    is_our_reqid,
};

use crate::core::Core;
use event::Events;
use firewall::{Firewall, Progress};
use keeper::Keeping;
use udp::UdpSockets;
use worker::{Worker, lock};

/// How the datapath is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The UDP port for encapsulated ESP and IKE.
    pub udp_port: u16,
    /// The mark that sealed packets get, and the bits that are set.
    pub output_mark: Option<(u32, u32)>,
    /// The longest that an SA stands, so that SAs outlive a dead agent only so long. `None`: for
    /// ever.
    pub hard_time: Option<Duration>,
    /// The program nft: a name that is looked for in PATH, or a path.
    pub nft: PathBuf,
    /// The policy that stood when the process before ended: it says whose the SAs are that are
    /// found. `None`: they are nobody's, and go with the first [`Datapath::set_traffic`].
    pub kept: Option<TrafficPolicy>,
    /// The receive buffer for the kernel's notifications, bytes; `None`: the usual one.
    pub monitor_buffer: Option<usize>,
    /// Who holds the UDP sockets beside this process, so that ESP inside UDP outlives it.
    pub keeper: Option<Arc<dyn UdpKeeper>>,
}

impl Default for Options {
    /// Port 4500, no mark, no end of time, nft from PATH.
    fn default() -> Self {
        Self {
            udp_port: 4500,
            output_mark: None,
            hard_time: None,
            nft: "nft".into(),
            kept: None,
            monitor_buffer: None,
            keeper: None,
        }
    }
}

/// What this kernel can do, found out with one SA that is removed again.
///
/// # Errors
/// As [`KernelDatapath::open`].
pub fn probe() -> Result<Facts, DatapathError> {
    probe::probe().map(|(_, facts)| facts)
}

/// Sets policies and firewall without opening the datapath: a node is closed before anything else
/// is tried. SAs of an earlier run go on carrying the packets of the peers that are still wanted;
/// whose they are says [`Options::kept`], and else `policy`, which is then the one that was kept.
///
/// # Errors
/// The kernel lacks something, or it refused. With [`DatapathError::Partly`] the policies stand, less
/// those that the text names.
pub fn close(options: &Options, policy: &TrafficPolicy) -> Result<(), DatapathError> {
    let (xfrm, facts) = probe::probe()?;
    Core::new(xfrm, facts, kept_or(options, policy))?.set_traffic(policy)
}

fn kept_or(options: &Options, policy: &TrafficPolicy) -> Options {
    Options {
        kept: options.kept.clone().or_else(|| Some(policy.clone())),
        ..options.clone()
    }
}

/// A firewall that is still being set, after [`close_soon`]. Dropped, it is waited for.
#[derive(Default)]
pub struct Closing(Firewall);

impl Closing {
    /// Waits for its end.
    ///
    /// # Errors
    /// [`DatapathError::Partly`]: the policies stand without the firewall, and why.
    pub fn outcome(mut self) -> Result<(), DatapathError> {
        let set = self.0.wait().unwrap_or(Ok(None));
        core::firewall_set(Ok(()), set).map(|_| ())
    }
}

/// As [`close`], but returns when the policies stand: they close the host. The firewall behind them
/// is being set meanwhile; [`KernelDatapath::take_over`] takes what comes of it.
///
/// # Errors
/// As [`close`], less what the firewall says.
pub fn close_soon(
    options: &Options,
    policy: &TrafficPolicy,
) -> (Closing, Result<(), DatapathError>) {
    let mut closing = Closing::default();
    let closed = (|| {
        let (xfrm, facts) = probe::probe()?;
        let mut core = Core::new(xfrm, facts, kept_or(options, policy))?;
        let policies = core.set_policies(policy);
        if core::wants_firewall(policy, &policies) {
            closing.0.begin(&core.nft, policy);
        }
        policies?;
        core.drop_strangers(policy)
    })();
    (closing, closed)
}

/// Removes all of ours from the kernel without opening the datapath. A kernel without XFRM has
/// nothing of ours.
///
/// # Errors
/// The capability is missing, or the kernel refused.
pub fn clear(options: &Options) -> Result<(), DatapathError> {
    unopened(options, Core::clear)
}

/// The same, less the firewall's table: it is another datapath's by now.
///
/// # Errors
/// The capability is missing, or the kernel refused.
pub fn make_way(options: &Options) -> Result<(), DatapathError> {
    unopened(options, Core::clear_xfrm)
}

fn unopened(
    options: &Options,
    clear: fn(&mut Core) -> Result<(), DatapathError>,
) -> Result<(), DatapathError> {
    let xfrm = match Xfrm::open() {
        Err(error) if probe::lacks_xfrm(&error) => return Ok(()),
        other => other.map_err(|e| probe::missing(&e))?,
    };
    clear(&mut Core::new(xfrm, Facts::default(), options.clone())?)
}

/// The kernel datapath of one node, in the network namespace of the thread that makes it. All
/// calls must come from threads of that namespace.
pub struct KernelDatapath {
    core: Arc<Mutex<Core>>,
    events: Arc<Events>,
    udp: Arc<UdpSockets>,
    worker: Worker,
    keeping: Keeping,
    facts: Facts,
    /// The kernel's counters as they were at the beginning.
    before: BTreeMap<String, u64>,
    firewall: Firewall,
    /// The policy whose policies stand while its firewall is being set, and what came of them.
    begun: Option<(TrafficPolicy, Result<(), DatapathError>)>,
    waker: Option<Waker>,
}

impl KernelDatapath {
    /// Finds out what the kernel can do, what an earlier run left in it, and begins to listen. No
    /// policy and no SA is changed.
    ///
    /// # Errors
    /// [`DatapathError::Missing`] where the kernel has no XFRM, no ESP or no AES-GCM, or the
    /// capability is missing: then nothing was done, and another datapath may be taken.
    pub fn open(options: Options) -> Result<Self, DatapathError> {
        let (xfrm, facts) = probe::probe()?;
        let monitor = match options.monitor_buffer {
            Some(bytes) => XfrmMonitor::with_buffer(bytes),
            None => XfrmMonitor::open(),
        };
        let monitor = monitor.map_err(|e| probe::missing(&e))?;
        let keeper = options.keeper.clone();
        let (udp, held) = UdpSockets::open(options.udp_port, facts.ipv6, keeper.as_deref())?;
        let udp = Arc::new(udp);
        let core = Core::new(xfrm, facts, options)?;
        if core.leftovers.len() > 0 {
            tracing::info!("{} SAs of an earlier run stand", core.leftovers.len());
        }
        let events = Arc::clone(&core.events);
        let core = Arc::new(Mutex::new(core));
        let before = count::kernel_counters();
        let worker = Worker::start(
            Arc::clone(&core),
            Arc::clone(&events),
            Arc::clone(&udp),
            monitor,
        )?;
        Ok(Self {
            keeping: Keeping::new(keeper, Arc::clone(&core), held),
            core,
            events,
            udp,
            worker,
            facts,
            before,
            firewall: Firewall::default(),
            begun: None,
            waker: None,
        })
    }

    /// Takes over the firewall that is being set since the host was closed.
    pub fn take_over(&mut self, closing: Closing) {
        self.firewall = closing.0;
    }

    /// What this kernel can do.
    pub fn facts(&self) -> Facts {
        self.facts
    }

    /// SAs of an earlier run that still stand.
    pub fn leftovers(&self) -> usize {
        lock(&self.core).leftovers.len()
    }

    /// Requests to the kernel so far: the measure of what a change costs.
    pub fn requests(&self) -> u64 {
        lock(&self.core).xfrm.requests()
    }

    /// One step under the lock; the worker looks at its deadlines after it.
    fn with<T>(&self, step: impl FnOnce(&mut Core) -> T) -> T {
        let result = step(&mut lock(&self.core));
        self.worker.wake();
        result
    }
}

impl Datapath for KernelDatapath {
    fn kind(&self) -> &'static str {
        "kernel"
    }

    fn begin_traffic(&mut self, policy: &TrafficPolicy) -> Result<bool, DatapathError> {
        if self.begun.as_ref().is_none_or(|(begun, _)| begun != policy) {
            let policies = self.with(|core| core.set_policies(policy));
            if !core::wants_firewall(policy, &policies) {
                self.begun = None;
                return policies.map(|()| false);
            }
            self.begun = Some((policy.clone(), policies));
        }
        let set = loop {
            match self.firewall.poll(self.waker.as_ref()) {
                Progress::Running => return Ok(false),
                Progress::Done(of, set) if of == *policy => break set,
                // Of a policy that is not wanted any more.
                Progress::Done(..) => {}
                Progress::Idle => {
                    let nft = lock(&self.core).nft.clone();
                    self.firewall.begin(&nft, policy);
                }
            }
        };
        let policies = self.begun.take().map_or(Ok(()), |(_, policies)| policies);
        let set = core::firewall_set(policies, set);
        self.with(|core| core.traffic_set(policy, set))
            .map(|()| true)
    }

    fn set_traffic(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        let _ = self.firewall.wait();
        self.begun = None;
        let (policies, nft) = self.with(|core| (core.set_policies(policy), core.nft.clone()));
        // nft may take seconds; the worker hears the kernel meanwhile.
        let set = core::set_firewall(&nft, policy, policies);
        self.with(|core| core.traffic_set(policy, set))
    }

    fn install_inbound(&mut self, sa: InboundSaSpec) -> Result<(), DatapathError> {
        if let Encapsulation::Udp { .. } = sa.encapsulation {
            self.keeping.hold(&self.udp);
        }
        self.with(|core| core.install_inbound(&sa))
    }

    fn install_outbound(&mut self, sa: OutboundSaSpec) -> Result<(), DatapathError> {
        self.with(|core| core.install_outbound(&sa, None))
    }

    fn cpus(&self) -> u32 {
        self.facts.cpus
    }

    fn install_outbound_for(&mut self, cpu: u32, sa: OutboundSaSpec) -> Result<(), DatapathError> {
        self.with(|core| core.install_outbound(&sa, Some(cpu)))
    }

    fn use_outbound(&mut self, child: ChildId) -> Result<(), DatapathError> {
        self.with(|core| core.use_outbound(child))
    }

    fn follows_earlier_run(&self, child: ChildId) -> bool {
        lock(&self.core).follows_leftover(child)
    }

    fn remove(&mut self, child: ChildId) -> Result<(), DatapathError> {
        self.with(|core| core.remove(child))
    }

    fn rebind(&mut self, child: ChildId, to: Encapsulation) -> Result<(), DatapathError> {
        self.with(|core| core.rebind(child, to))
    }

    fn send_ike(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        message: &[u8],
    ) -> Result<(), DatapathError> {
        self.udp
            .send_ike(local.ip(), remote, message)
            .map_err(|e| DatapathError::unsent("an IKE message", local, remote, &e))
    }

    fn send_keepalive(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<(), DatapathError> {
        self.udp
            .send(local.ip(), remote, &[0xff])
            .map_err(|e| DatapathError::unsent("a keepalive", local, remote, &e))
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.next()
    }

    fn set_waker(&mut self, waker: Waker) {
        self.waker = Some(Arc::clone(&waker));
        self.events.set_waker(waker);
    }

    fn counters(&self) -> Counters {
        let (mut all, firewall) = {
            let mut core = lock(&self.core);
            (core.counters(&self.before), core.firewall_counts())
        };
        if firewall {
            for (reason, number) in nft::drops() {
                count::add(&mut all.drops, reason, number);
            }
        }
        all
    }

    fn sa_counters(&self) -> Counters {
        lock(&self.core).counters(&self.before)
    }

    fn pair_halves(&self, child: ChildId) -> (Option<SaCounters>, Option<SaCounters>) {
        lock(&self.core).pair_halves(child)
    }

    fn policies(&self) -> Result<BTreeMap<PeerId, u32>, DatapathError> {
        lock(&self.core).policies_of_peers()
    }

    fn set_hard_lifetime(&mut self, hard: Duration) {
        self.keeping.set_patience(hard);
        self.with(|core| core.options.hard_time = Some(hard));
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        let _ = self.firewall.wait();
        self.begun = None;
        self.with(Core::clear)?;
        self.keeping.release();
        Ok(())
    }
}
