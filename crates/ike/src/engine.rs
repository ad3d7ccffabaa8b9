//! The engine: what the agent drives.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use testudo_crypto::Random;
use testudo_model::{ChildId, Monotonic, Now, PeerId, SaLimits};
use testudo_wire::ike::{ExchangeType, Header, Notify, NotifyType, Payload};

use crate::boxed::BoxedMap;
use crate::config::{CertificateCredential, EngineConfig, Identity, LocalIdentity, PeerConfig};
use crate::cookie::Cookies;
use crate::error::Misuse;
use crate::event::{ChildStatus, Counters, DownReason, Event, IkeId, IkeStatus, Transmit};
use crate::fragments::Incomplete;
use crate::message;
use crate::offload::{Offload, Place};
use crate::peer::{self, Peer};
use crate::sa::{Child, IkeSa, InitKey, Source, Task};
use crate::suites::AtAddress;
use crate::table::{Action, action};
use crate::timers::{Deadline, Timers};
use crate::verify::CertificateVerifier;

/// Between which of our addresses and which of a peer's a datagram travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// Who we are; a job may hold the credential too.
pub(crate) struct OurIdentity {
    pub(crate) id: Identity,
    pub(crate) certificate: Option<Arc<CertificateCredential>>,
}

/// Why a datagram was dropped: the name of its counter.
pub(crate) type Dropped = &'static str;

/// An IKEv2 engine for any number of peers, without sockets, clocks or a runtime.
///
/// The contract is one mutation, then drain: after each call that takes `now`, call
/// [`Engine::poll_event`] until it is empty, then [`Engine::poll_transmit`] until it is empty,
/// then arm a timer for [`Engine::poll_timeout`]. With [`EngineConfig::offload`], fetch the jobs
/// too ([`Engine::poll_job`]). Events come before datagrams so that an
/// inbound SA stands before the peer learns that it may send on it.
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) random: Box<dyn Random + Send>,
    pub(crate) identity: Option<OurIdentity>,
    /// Changes of the identity, and of the verifier: what was computed before one is not used
    /// after it.
    pub(crate) identity_epoch: u64,
    pub(crate) verifier_epoch: u64,
    pub(crate) verifier: Option<Arc<dyn CertificateVerifier + Send + Sync>>,
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    pub(crate) by_identity: BTreeMap<Identity, PeerId>,
    pub(crate) sas: BoxedMap<IkeId, IkeSa>,
    pub(crate) by_spi: BTreeMap<u64, IkeId>,
    pub(crate) inits: BTreeMap<InitKey, IkeId>,
    pub(crate) children: BoxedMap<ChildId, Child>,
    pub(crate) by_spi_in: BTreeMap<u32, ChildId>,
    pub(crate) half_open: BTreeMap<Source, usize>,
    /// What the peers at an address want, before it is known which one asks.
    pub(crate) at_address: BTreeMap<IpAddr, AtAddress>,
    /// Peers with a PPK.
    pub(crate) ppk_peers: usize,
    pub(crate) half_open_total: usize,
    pub(crate) cookies: Cookies,
    pub(crate) incomplete: Incomplete,
    pub(crate) timers: Timers,
    pub(crate) offload: Offload,
    pub(crate) events: VecDeque<Event>,
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) counters: Counters,
    /// Orders all that happens; also the source of ids.
    pub(crate) sequence: u64,
}

impl Engine {
    /// An engine without identity and peers.
    pub fn new(config: EngineConfig, random: Box<dyn Random + Send>) -> Self {
        Self {
            config,
            random,
            identity: None,
            identity_epoch: 0,
            verifier_epoch: 0,
            verifier: None,
            peers: BTreeMap::new(),
            by_identity: BTreeMap::new(),
            sas: BoxedMap::new(),
            by_spi: BTreeMap::new(),
            inits: BTreeMap::new(),
            children: BoxedMap::new(),
            by_spi_in: BTreeMap::new(),
            half_open: BTreeMap::new(),
            at_address: BTreeMap::new(),
            ppk_peers: 0,
            half_open_total: 0,
            cookies: Cookies::new(),
            incomplete: Incomplete::default(),
            timers: Timers::default(),
            offload: Offload::default(),
            events: VecDeque::new(),
            transmits: VecDeque::new(),
            counters: Counters::default(),
            sequence: 0,
        }
    }

    /// The settings it was made with.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Changes lifetimes and limits. SAs that stand keep theirs; their successors have the new.
    pub fn set_lifetimes(&mut self, ike: Duration, child: Duration, limits: SaLimits) {
        self.config.ike_lifetime = ike;
        self.config.child_lifetime = child;
        self.config.soft_limits = limits;
    }

    /// Sets or changes who we are. Standing SAs stay; new ones use the new identity
    /// ([`Engine::reauthenticate`] renews a standing one).
    pub fn set_identity(&mut self, identity: LocalIdentity) {
        self.identity = Some(OurIdentity {
            id: identity.id,
            certificate: identity.certificate.map(Arc::new),
        });
        self.identity_epoch += 1;
    }

    /// Sets or changes who judges certificates. Call [`Engine::recheck_peers`] after a change
    /// that takes trust away.
    pub fn set_verifier(&mut self, verifier: Arc<dyn CertificateVerifier + Send + Sync>) {
        self.verifier = Some(verifier);
        self.verifier_epoch += 1;
    }

    /// Judges the peers of all standing SAs anew and closes those that fail.
    pub fn recheck_peers(&mut self, now: Now) {
        let ids: Vec<_> = self.sas.keys().copied().collect();
        for id in ids {
            self.recheck(id, now);
        }
    }

    /// Adds or changes a peer. With the data that it has already, nothing happens; new children
    /// are negotiated on the standing IKE SA, missing ones are closed, changed ones when others
    /// stand in their place. Where addresses changed, ours
    /// or the peer's, a new IKE SA is made between the new ones before the old is closed.
    pub fn set_peer(&mut self, peer: PeerConfig, now: Now) -> Result<(), Misuse> {
        peer::validate(&peer, &self.config)?;
        let identity = peer.remote_identity.normal();
        if let Some(other) = self.by_identity.get(&identity).filter(|o| **o != peer.id) {
            let text = format!("peer {other} has the same identity");
            return Err(Misuse::BadConfig {
                peer: peer.id,
                text,
            });
        }
        let id = peer.id.clone();
        let mut other_ways = false;
        match self.peers.get(&id).map(|old| old.compare(&peer)) {
            None => {
                self.peers.insert(id.clone(), Peer::new(peer));
                self.index(&id);
            }
            Some(change) => {
                self.unindex(&id);
                if let Some(known) = self.peers.get_mut(&id) {
                    known.config = peer;
                }
                self.index(&id);
                other_ways = change.restart || change.reauth || change.addresses;
                self.apply_change(&id, change, now);
            }
        }
        self.keep_up(&id, other_ways, now);
        Ok(())
    }

    /// Removes a peer: its SAs are deleted, its attempts end.
    pub fn remove_peer(&mut self, peer: &PeerId, now: Now) {
        if !self.peers.contains_key(peer) {
            return;
        }
        self.shut_all(peer, DownReason::Closed, now);
        self.end_attempt(peer, now);
        self.finish_lingering(peer);
        self.timers.cancel_peer(peer);
        self.unindex(peer);
        self.peers.remove(peer);
    }

    /// Makes a peer known by its identity and addresses.
    fn index(&mut self, id: &PeerId) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        self.by_identity
            .insert(peer.config.remote_identity.normal(), id.clone());
        self.ppk_peers += usize::from(peer.config.ppk.is_some());
        let (forced, suites) = (peer.forced(), peer.config.suites.as_ref());
        for address in &peer.config.addresses {
            let there = self.at_address.entry(address.remote).or_default();
            there.add(forced, suites);
        }
    }

    fn unindex(&mut self, id: &PeerId) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        self.by_identity
            .remove(&peer.config.remote_identity.normal());
        self.ppk_peers -= usize::from(peer.config.ppk.is_some());
        let (forced, suites) = (peer.forced(), peer.config.suites.as_ref());
        for address in &peer.config.addresses {
            if let Some(there) = self.at_address.get_mut(&address.remote) {
                there.remove(forced, suites);
                if there.is_empty() {
                    self.at_address.remove(&address.remote);
                }
            }
        }
    }

    /// Takes in an IKE message, without the non-ESP marker. With
    /// [`EngineConfig::offload`] it may wait for jobs ([`Engine::poll_job`]). Never fails: what is wrong with it
    /// is counted ([`Engine::counters`]) or becomes an event.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) {
        self.counters.datagrams_in += 1;
        self.take_in_new(now, Path { local, remote }, bytes);
    }

    pub(crate) fn route(&mut self, now: Now, from: Path, bytes: &[u8]) -> Result<(), Dropped> {
        let header = Header::parse(bytes).map_err(|_| "short")?;
        if header.major > 2 {
            return self.refuse_version(from, &header);
        }
        header.check(bytes.len()).map_err(|e| e.reason())?;
        let flags = header.flags;
        if header.exchange == ExchangeType::IKE_SA_INIT
            && flags.initiator
            && !flags.response
            && header.responder_spi == 0
        {
            return self.init_request(now, from, bytes, &header);
        }
        let (ours, theirs) = if flags.initiator {
            (header.responder_spi, header.initiator_spi)
        } else {
            (header.initiator_spi, header.responder_spi)
        };
        let id = *self.by_spi.get(&ours).ok_or("unknown_spi")?;
        let sa = self.sas.get(&id).ok_or("unknown_spi")?;
        // The I flag is the sender's role, so it is never ours.
        if flags.initiator == sa.initiator {
            return Err("wrong_role");
        }
        if sa.spi_peer != 0 && sa.spi_peer != theirs {
            return Err("wrong_peer_spi");
        }
        let action = action(&sa.state, header.exchange, flags.response)?;
        let response = flags.response;
        self.at_place(Place::Sa { ike: id, response }, header.message_id)?;
        match action {
            Action::InitAnswer => self.init_answer(now, id, from, bytes),
            Action::IntermediateRequest => self.intermediate_request(now, id, from, bytes, &header),
            Action::IntermediateAnswer => self.intermediate_answer(now, id, from, bytes, &header),
            Action::AuthRequest => self.auth_request(now, id, from, bytes, &header),
            Action::AuthAnswer => self.auth_answer(now, id, from, bytes, &header),
            Action::EarlyDelete => self.early_delete(now, id, from, bytes, &header),
            Action::RefusingAnswer => self.refusing_answer(now, id, bytes, &header),
            Action::Request => self.request(now, id, from, bytes, &header),
            Action::Answer => self.answer(now, id, from, bytes, &header),
        }
    }

    /// INVALID_MAJOR_VERSION, in clear and without state (RFC 7296, 2.5).
    fn refuse_version(&mut self, from: Path, header: &Header) -> Result<(), Dropped> {
        if !header.flags.response && header.initiator_spi != 0 {
            let answer = Header::new(
                header.initiator_spi,
                header.responder_spi,
                header.exchange,
                !header.flags.initiator,
                true,
                header.message_id,
            );
            let notify = Notify::new(NotifyType::INVALID_MAJOR_VERSION, []);
            if let Ok(bytes) = message::clear(&answer, &[Payload::Notify(notify)]) {
                self.transmit(from, bytes);
            }
        }
        Err("major_version")
    }

    /// Fires the deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(deadline) = self.timers.pop(now.monotonic) {
            self.fire(deadline, now);
        }
    }

    /// Rekeys a child, as when the datapath says that a byte or packet limit is near.
    pub fn rekey_child(&mut self, child: ChildId, now: Now) -> Result<(), Misuse> {
        let known = self
            .children
            .get(&child)
            .filter(|c| c.is_up() && !self.has_successor(child))
            .ok_or(Misuse::UnknownChild(child))?;
        let (ike, peer) = (known.ike, known.peer.clone());
        self.command(ike, &peer, Task::RekeyChild(child), now)
    }

    /// Rekeys the peer's IKE SA.
    pub fn rekey_ike(&mut self, peer: &PeerId, now: Now) -> Result<(), Misuse> {
        let ike = self.main_sa(peer)?;
        self.command(ike, peer, Task::RekeyIke, now)
    }

    /// Makes a new IKE SA with the peer, authenticated anew, and moves the children over
    /// before the old one is closed. Also starts a peer that is not `initiate`: an agent that
    /// starts does so for all its peers, so that those who still hold SAs with its former life
    /// learn at once.
    pub fn reauthenticate(&mut self, peer: &PeerId, now: Now) -> Result<(), Misuse> {
        let known = self
            .peers
            .get_mut(peer)
            .ok_or_else(|| Misuse::UnknownPeer(peer.clone()))?;
        known.reauth = true;
        if known.attempt.is_none() {
            self.timers.cancel(&Deadline::Start(peer.clone()));
            self.begin(peer, now);
        }
        Ok(())
    }

    /// Closes the peer's SAs. A peer that is `initiate` starts again after the retry wait.
    pub fn close(&mut self, peer: &PeerId, now: Now) -> Result<(), Misuse> {
        if !self.peers.contains_key(peer) {
            return Err(Misuse::UnknownPeer(peer.clone()));
        }
        self.end_attempt(peer, now);
        self.shut_all(peer, DownReason::Closed, now);
        // Where nothing stood but an attempt, no loss of an SA starts the next one.
        self.after_loss(peer, DownReason::Closed, now);
        Ok(())
    }

    /// Tells that the first ESP packet came in on a child: the peer has installed it.
    pub fn note_inbound(&mut self, child: ChildId, now: Now) {
        self.confirm_child(child, now);
    }

    /// Asks the peer for a sign of life now.
    pub fn probe(&mut self, peer: &PeerId, now: Now) -> Result<(), Misuse> {
        let ike = self.main_sa(peer)?;
        self.command(ike, peer, Task::Probe, now)
    }

    /// Whether the peer is known to have installed a child: we began it and have the answer, or the
    /// peer has used it, or its IKE SA, since.
    pub fn is_confirmed(&self, child: ChildId) -> bool {
        let known = self.children.get(&child);
        known.is_some_and(|child| child.confirmed && child.is_up())
    }

    /// Uses the IKE SA of a child at once, by a probe. The end that began the child tells the other
    /// so that it has it; the other end asks for it where that is the first child of its IKE SA.
    pub fn probe_child(&mut self, child: ChildId, now: Now) -> Result<(), Misuse> {
        let known = self
            .children
            .get(&child)
            .filter(|c| c.is_up())
            .ok_or(Misuse::UnknownChild(child))?;
        let (ike, peer) = (known.ike, known.peer.clone());
        self.command(ike, &peer, Task::Probe, now)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            let event = self.events.pop_front()?;
            if !self.is_past(&event) {
                return Some(event);
            }
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// When [`Engine::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        self.timers.next()
    }

    /// Numbers since the engine began.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// All IKE SAs, for status.
    pub fn status(&self) -> Vec<IkeStatus> {
        self.sas.values().map(|sa| self.sa_status(sa)).collect()
    }

    fn sa_status(&self, sa: &IkeSa) -> IkeStatus {
        let est = sa.established();
        let sending = |child: &Child| {
            self.peers
                .get(&child.peer)
                .is_some_and(|p| p.sending.get(&child.slot) == Some(&child.id))
        };
        let children = est.map_or_else(Vec::new, |est| {
            est.children
                .iter()
                .filter_map(|id| self.children.get(id))
                .map(|c| ChildStatus {
                    child: c.id,
                    name: c.slot.name.clone(),
                    resource: c.slot.resource,
                    spi_in: testudo_model::Spi(c.spi_in),
                    spi_out: testudo_model::Spi(c.spi_out),
                    established: c.since,
                    rekeys: c.rekeys,
                    cipher: c.cipher,
                    sending: sending(c),
                    deleting: !c.is_up(),
                })
                .collect()
        });
        IkeStatus {
            ike: sa.id,
            peer: sa.peer.clone(),
            state: sa.state.name(),
            initiator: sa.initiator,
            local: sa.local,
            remote: sa.remote,
            established: est.map(|e| e.since),
            suite: est.map_or_else(String::new, |e| e.keys.suite.name()),
            rekeys: est.map_or(0, |e| e.rekeys),
            peer_window: est.map_or(1, |e| e.peer_window),
            children,
        }
    }

    /// Queues a command of the agent's on an IKE SA.
    pub(crate) fn command(
        &mut self,
        ike: IkeId,
        peer: &PeerId,
        task: Task,
        now: Now,
    ) -> Result<(), Misuse> {
        let limit = self.config.limits.pending_commands;
        let est = self
            .sas
            .get(&ike)
            .and_then(IkeSa::established)
            .ok_or_else(|| Misuse::NotEstablished(peer.clone()))?;
        if est.tasks.len() >= limit {
            return Err(Misuse::Busy(peer.clone()));
        }
        self.push_task(ike, task, now);
        Ok(())
    }

    /// The open IKE SA that commands for a peer go to.
    fn main_sa(&self, peer: &PeerId) -> Result<IkeId, Misuse> {
        if !self.peers.contains_key(peer) {
            return Err(Misuse::UnknownPeer(peer.clone()));
        }
        self.best_ike(peer)
            .ok_or_else(|| Misuse::NotEstablished(peer.clone()))
    }
}
