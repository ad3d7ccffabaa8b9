//! A datapath in memory: it keeps what it is told, answers what would become of a packet, and
//! fails when a test says so.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use testudo_model::{
    ChildId, ClearTraffic, Encapsulation, InboundSaSpec, Outbound, OutboundSaSpec, PeerId,
    SaDirection, SaId, Spi, TrafficPolicy,
};

use crate::{Counters, Datapath, DatapathError, Event, SaCounters, Waker};

/// The operations of the trait that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`Datapath::set_traffic`].
    SetTraffic,
    /// [`Datapath::install_inbound`].
    InstallInbound,
    /// [`Datapath::install_outbound`].
    InstallOutbound,
    /// [`Datapath::use_outbound`].
    UseOutbound,
    /// [`Datapath::remove`].
    Remove,
    /// [`Datapath::rebind`].
    Rebind,
    /// [`Datapath::send_ike`].
    SendIke,
    /// [`Datapath::send_keepalive`].
    SendKeepalive,
    /// [`Datapath::policies`].
    Policies,
    /// [`Datapath::clear`].
    Clear,
}

/// One call that succeeded, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The policy.
    SetTraffic(TrafficPolicy),
    /// Child, peer, SPI.
    InstallInbound(ChildId, PeerId, Spi),
    /// Child, peer, SPI.
    InstallOutbound(ChildId, PeerId, Spi),
    /// The pair chosen.
    UseOutbound(ChildId),
    /// The pair removed.
    Remove(ChildId),
    /// The pair and its new ends.
    Rebind(ChildId, Encapsulation),
    /// Local end, remote end, message.
    SendIke(SocketAddr, SocketAddr, Vec<u8>),
    /// Local end, remote end.
    SendKeepalive(SocketAddr, SocketAddr),
    /// All removed.
    Clear,
}

/// What becomes of a packet of a protected flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves as it is.
    Clear,
    /// It leaves sealed by this SA of the peer.
    Sealed(Spi),
    /// It is dropped.
    Dropped,
}

/// The in-memory datapath. Clones share one state, so that a test keeps a handle on the datapath
/// that it gave away.
#[derive(Clone, Default)]
pub struct Twin {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    kind: Option<&'static str>,
    cpus: u32,
    /// Those for one CPU.
    of_cpu: BTreeMap<ChildId, u32>,
    policy: Option<TrafficPolicy>,
    inbound: BTreeMap<ChildId, InboundSaSpec>,
    outbound: BTreeMap<ChildId, OutboundSaSpec>,
    /// Pairs in use by peer, the newest last.
    in_use: BTreeMap<PeerId, Vec<ChildId>>,
    seen: BTreeMap<SaId, SaCounters>,
    drops: BTreeMap<String, u64>,
    events: VecDeque<Event>,
    calls: Vec<Call>,
    counts: BTreeMap<Operation, u64>,
    faults: BTreeMap<Operation, Vec<u64>>,
    waker: Option<Waker>,
    /// A policy is not in force before the test says so.
    held: bool,
    asked: u64,
}

impl Twin {
    /// A twin that was told nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes it pass for another kind of datapath.
    pub fn pass_for(&self, kind: &'static str) {
        self.state().kind = Some(kind);
    }

    /// Gives it CPUs that can have outbound SAs of their own.
    pub fn have_cpus(&self, cpus: u32) {
        self.state().cpus = cpus;
    }

    /// The outbound SAs that stand for single CPUs: peer and CPU.
    pub fn of_cpus(&self) -> Vec<(PeerId, u32)> {
        let state = self.state();
        let found = state.of_cpu.iter().filter_map(|(child, cpu)| {
            let sa = state.outbound.get(child)?;
            Some((sa.peer.clone(), *cpu))
        });
        let mut all: Vec<_> = found.collect();
        all.sort();
        all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere must not hide its reason behind a poisoned lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the `nth` call of an operation from now on fail; 1 is the next.
    pub fn fail(&self, operation: Operation, nth: u64) {
        let mut state = self.state();
        let done = state.counts.get(&operation).copied().unwrap_or(0);
        state.faults.entry(operation).or_default().push(done + nth);
    }

    /// Makes [`Datapath::begin_traffic`] go on until this is called with `false`, which wakes.
    pub fn hold_traffic(&self, held: bool) {
        let mut state = self.state();
        state.held = held;
        let waker = state.waker.clone().filter(|_| !held);
        drop(state);
        if let Some(wake) = waker {
            wake();
        }
    }

    /// How often [`Datapath::begin_traffic`] was called.
    pub fn traffic_asked(&self) -> u64 {
        self.state().asked
    }

    /// The calls that succeeded so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// The policy in force.
    pub fn policy(&self) -> Option<TrafficPolicy> {
        self.state().policy.clone()
    }

    /// The pairs of which at least one SA stands.
    pub fn children(&self) -> Vec<ChildId> {
        let state = self.state();
        let mut all: Vec<ChildId> = state
            .inbound
            .keys()
            .chain(state.outbound.keys())
            .copied()
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Lets an event happen.
    pub fn push_event(&self, event: Event) {
        let waker = {
            let mut state = self.state();
            state.events.push_back(event);
            state.waker.clone()
        };
        if let Some(wake) = waker {
            wake();
        }
    }

    /// What becomes of a packet of a protected flow to this peer now.
    pub fn send(&self, peer: &PeerId) -> Verdict {
        let mut state = self.state();
        let Some(policy) = &state.policy else {
            return Verdict::Clear;
        };
        let wanted = policy
            .peers
            .iter()
            .find(|p| &p.peer == peer)
            .map(|p| p.outbound);
        let sealed =
            wanted == Some(Outbound::Encrypt) || policy.clear_outbound == ClearTraffic::Drop;
        if !sealed {
            return Verdict::Clear;
        }
        let child = state.in_use.get(peer).and_then(|used| used.last()).copied();
        let Some((child, spi)) =
            child.and_then(|child| Some((child, state.outbound.get(&child)?.spi)))
        else {
            *state.drops.entry("no_outbound_sa".into()).or_default() += 1;
            return Verdict::Dropped;
        };
        let counters = state
            .seen
            .entry(SaId {
                child,
                direction: SaDirection::Outbound,
            })
            .or_default();
        counters.packets += 1;
        counters.sequence += 1;
        Verdict::Sealed(spi)
    }

    /// Whether a packet of a protected flow that comes in is accepted: in clear (`None`) or sealed
    /// for an SPI of ours. The first one of an SA raises [`Event::FirstInbound`].
    pub fn receive(&self, spi: Option<Spi>) -> bool {
        let mut state = self.state();
        let Some(spi) = spi else {
            let clear = state.policy.as_ref().map(|p| p.clear_inbound);
            if clear == Some(ClearTraffic::Drop) {
                *state.drops.entry("clear_inbound".into()).or_default() += 1;
                return false;
            }
            return true;
        };
        let Some(child) = state
            .inbound
            .iter()
            .find(|(_, sa)| sa.spi == spi)
            .map(|(id, _)| *id)
        else {
            *state.drops.entry("unknown_spi".into()).or_default() += 1;
            return false;
        };
        let counters = state
            .seen
            .entry(SaId {
                child,
                direction: SaDirection::Inbound,
            })
            .or_default();
        counters.packets += 1;
        counters.sequence += 1;
        let first = counters.packets == 1;
        drop(state);
        if first {
            self.push_event(Event::FirstInbound { child });
        }
        true
    }

    fn enter(
        &self,
        operation: Operation,
        name: &'static str,
    ) -> Result<MutexGuard<'_, State>, DatapathError> {
        let mut state = self.state();
        let count = state.counts.entry(operation).or_default();
        *count += 1;
        let count = *count;
        if state
            .faults
            .get(&operation)
            .is_some_and(|nths| nths.contains(&count))
        {
            return Err(DatapathError::Refused {
                operation: name.into(),
                reason: format!("the test asked call {count} to fail"),
            });
        }
        Ok(state)
    }
}

fn misuse(operation: &'static str, child: ChildId, what: &str) -> DatapathError {
    DatapathError::Misuse {
        operation,
        reason: format!("child {} {what}", child.0),
    }
}

impl Datapath for Twin {
    fn kind(&self) -> &'static str {
        self.state().kind.unwrap_or("twin")
    }

    fn set_traffic(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::SetTraffic, "set_traffic")?;
        state.policy = Some(policy.clone());
        state.calls.push(Call::SetTraffic(policy.clone()));
        Ok(())
    }

    fn begin_traffic(&mut self, policy: &TrafficPolicy) -> Result<bool, DatapathError> {
        let mut state = self.state();
        state.asked += 1;
        if state.held {
            return Ok(false);
        }
        drop(state);
        self.set_traffic(policy).map(|()| true)
    }

    fn install_inbound(&mut self, sa: InboundSaSpec) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::InstallInbound, "install_inbound")?;
        if state.inbound.contains_key(&sa.child) {
            return Err(misuse(
                "install_inbound",
                sa.child,
                "has an inbound SA already",
            ));
        }
        if state.inbound.values().any(|other| other.spi == sa.spi) {
            return Err(misuse(
                "install_inbound",
                sa.child,
                "has the SPI of another SA",
            ));
        }
        state
            .calls
            .push(Call::InstallInbound(sa.child, sa.peer.clone(), sa.spi));
        state.inbound.insert(sa.child, sa);
        Ok(())
    }

    fn install_outbound(&mut self, sa: OutboundSaSpec) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::InstallOutbound, "install_outbound")?;
        if state.outbound.contains_key(&sa.child) {
            return Err(misuse(
                "install_outbound",
                sa.child,
                "has an outbound SA already",
            ));
        }
        state
            .calls
            .push(Call::InstallOutbound(sa.child, sa.peer.clone(), sa.spi));
        state.outbound.insert(sa.child, sa);
        Ok(())
    }

    fn cpus(&self) -> u32 {
        self.state().cpus
    }

    fn install_outbound_for(&mut self, cpu: u32, sa: OutboundSaSpec) -> Result<(), DatapathError> {
        let child = sa.child;
        if cpu >= self.state().cpus {
            return Err(misuse("install_outbound_for", child, "has no such CPU"));
        }
        self.install_outbound(sa)?;
        self.state().of_cpu.insert(child, cpu);
        Ok(())
    }

    /// What [`Twin::send`] sends is another CPU's.
    fn use_outbound(&mut self, child: ChildId) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::UseOutbound, "use_outbound")?;
        let Some(peer) = state.outbound.get(&child).map(|sa| sa.peer.clone()) else {
            return Err(misuse("use_outbound", child, "has no outbound SA"));
        };
        if !state.of_cpu.contains_key(&child) {
            let used = state.in_use.entry(peer).or_default();
            used.retain(|other| *other != child);
            used.push(child);
        }
        state.calls.push(Call::UseOutbound(child));
        Ok(())
    }

    fn remove(&mut self, child: ChildId) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::Remove, "remove")?;
        state.inbound.remove(&child);
        state.outbound.remove(&child);
        state.of_cpu.remove(&child);
        for direction in [SaDirection::Inbound, SaDirection::Outbound] {
            state.seen.remove(&SaId { child, direction });
        }
        for used in state.in_use.values_mut() {
            used.retain(|other| *other != child);
        }
        state.calls.push(Call::Remove(child));
        Ok(())
    }

    fn rebind(&mut self, child: ChildId, to: Encapsulation) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::Rebind, "rebind")?;
        let inbound = state
            .inbound
            .get_mut(&child)
            .map(|sa| sa.encapsulation = to)
            .is_some();
        let outbound = state
            .outbound
            .get_mut(&child)
            .map(|sa| sa.encapsulation = to)
            .is_some();
        if !inbound && !outbound {
            return Err(misuse("rebind", child, "is not installed"));
        }
        state.calls.push(Call::Rebind(child, to));
        Ok(())
    }

    fn send_ike(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        message: &[u8],
    ) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::SendIke, "send_ike")?;
        state
            .calls
            .push(Call::SendIke(local, remote, message.to_vec()));
        Ok(())
    }

    fn send_keepalive(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::SendKeepalive, "send_keepalive")?;
        state.calls.push(Call::SendKeepalive(local, remote));
        Ok(())
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.state().events.pop_front()
    }

    fn set_waker(&mut self, waker: Waker) {
        self.state().waker = Some(waker);
    }

    fn counters(&self) -> Counters {
        let state = self.state();
        let mut sas: BTreeMap<SaId, SaCounters> = BTreeMap::new();
        for child in state.inbound.keys() {
            sas.insert(
                SaId {
                    child: *child,
                    direction: SaDirection::Inbound,
                },
                SaCounters::default(),
            );
        }
        for child in state.outbound.keys() {
            sas.insert(
                SaId {
                    child: *child,
                    direction: SaDirection::Outbound,
                },
                SaCounters::default(),
            );
        }
        sas.extend(state.seen.iter().map(|(id, counters)| (*id, *counters)));
        Counters {
            sas,
            drops: state.drops.clone(),
            notices: BTreeMap::new(),
        }
    }

    /// One for packets to each peer that is not sent to in clear.
    fn policies(&self) -> Result<BTreeMap<PeerId, u32>, DatapathError> {
        let state = self.enter(Operation::Policies, "list policies")?;
        let peers = state.policy.iter().flat_map(|policy| &policy.peers);
        let sealed = peers.filter(|peer| peer.outbound == Outbound::Encrypt);
        Ok(sealed.map(|peer| (peer.peer.clone(), 1)).collect())
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        let mut state = self.enter(Operation::Clear, "clear")?;
        state.policy = None;
        state.inbound.clear();
        state.outbound.clear();
        state.in_use.clear();
        state.seen.clear();
        state.calls.push(Call::Clear);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_model::{PeerTraffic, ProtectedFlows, SaLimits, SaMode};

    fn peer() -> PeerId {
        PeerId::new("n2").unwrap()
    }

    fn policy(outbound: Outbound, clear: ClearTraffic) -> TrafficPolicy {
        TrafficPolicy {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            flows: ProtectedFlows::Overlay { port: 4789 },
            clear_inbound: clear,
            clear_outbound: clear,
            peers: vec![PeerTraffic {
                peer: peer(),
                addresses: vec!["192.0.2.2".parse().unwrap()],
                pod_cidrs: Vec::new(),
                outbound,
            }],
        }
    }

    fn encapsulation() -> Encapsulation {
        Encapsulation::None {
            local: "192.0.2.1".parse().unwrap(),
            remote: "192.0.2.2".parse().unwrap(),
        }
    }

    fn keymat() -> (testudo_crypto::Cipher, testudo_crypto::SecretBytes) {
        (
            testudo_crypto::Cipher::AES_256_GCM,
            testudo_crypto::SecretBytes::new(vec![7; 36]),
        )
    }

    fn inbound(child: u64, spi: u32) -> InboundSaSpec {
        let (cipher, keymat) = keymat();
        InboundSaSpec {
            child: ChildId(child),
            peer: peer(),
            spi: Spi(spi),
            cipher,
            keymat,
            esn: true,
            replay_window: 1024,
            mode: SaMode::Transport,
            encapsulation: encapsulation(),
            local: Vec::new(),
            remote: Vec::new(),
        }
    }

    fn outbound(child: u64, spi: u32) -> OutboundSaSpec {
        let (cipher, keymat) = keymat();
        OutboundSaSpec {
            child: ChildId(child),
            peer: peer(),
            spi: Spi(spi),
            cipher,
            keymat,
            esn: true,
            mode: SaMode::Transport,
            encapsulation: encapsulation(),
            local: Vec::new(),
            remote: Vec::new(),
            limits: SaLimits {
                soft_bytes: u64::MAX,
                soft_packets: u64::MAX,
            },
        }
    }

    #[test]
    fn a_rekey_make_before_break_never_drops() {
        let handle = Twin::new();
        let mut twin = handle.clone();
        assert_eq!(handle.send(&peer()), Verdict::Clear);
        twin.set_traffic(&policy(Outbound::Encrypt, ClearTraffic::Drop))
            .unwrap();
        assert_eq!(handle.send(&peer()), Verdict::Dropped);
        assert!(!handle.receive(None));
        twin.install_inbound(inbound(1, 0x101)).unwrap();
        twin.install_outbound(outbound(1, 0x201)).unwrap();
        assert_eq!(handle.send(&peer()), Verdict::Dropped);
        twin.use_outbound(ChildId(1)).unwrap();
        assert_eq!(handle.send(&peer()), Verdict::Sealed(Spi(0x201)));
        twin.install_inbound(inbound(2, 0x102)).unwrap();
        twin.install_outbound(outbound(2, 0x202)).unwrap();
        assert_eq!(handle.send(&peer()), Verdict::Sealed(Spi(0x201)));
        twin.use_outbound(ChildId(2)).unwrap();
        assert_eq!(handle.send(&peer()), Verdict::Sealed(Spi(0x202)));
        assert!(handle.receive(Some(Spi(0x101))) && handle.receive(Some(Spi(0x102))));
        twin.remove(ChildId(1)).unwrap();
        assert!(!handle.receive(Some(Spi(0x101))));
        assert_eq!(handle.children(), [ChildId(2)]);
        assert_eq!(
            twin.poll_event(),
            Some(Event::FirstInbound { child: ChildId(1) })
        );
        assert_eq!(
            twin.poll_event(),
            Some(Event::FirstInbound { child: ChildId(2) })
        );
        assert_eq!(twin.counters().drops["unknown_spi"], 1);
    }

    #[test]
    fn the_nth_call_fails_and_changes_nothing() {
        let handle = Twin::new();
        let mut twin = handle.clone();
        handle.fail(Operation::InstallInbound, 2);
        twin.install_inbound(inbound(1, 0x101)).unwrap();
        assert!(twin.install_inbound(inbound(2, 0x102)).is_err());
        twin.install_inbound(inbound(2, 0x102)).unwrap();
        assert_eq!(handle.calls().len(), 2);
        assert!(twin.use_outbound(ChildId(9)).is_err());
        assert!(twin.install_inbound(inbound(3, 0x102)).is_err());
    }
}
