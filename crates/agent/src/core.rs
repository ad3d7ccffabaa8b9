//! Drives the IKE engine: what it says is done in the datapath before what it sends goes out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use testudo_datapath::{Datapath, DatapathError, Event as PathEvent};
use testudo_ike::{
    ChildDown, ChildUp, DownReason, Engine, Event, Failure, IkeUp, PathChanged, UseOutbound,
};
use testudo_model::{ChildId, Encapsulation, Monotonic, Now, PeerId, SaMode};

use crate::keys::KeyExport;
use crate::linger::Linger;
use crate::metrics::Handshakes;
use crate::path::Paths;
use crate::resources::Sender;
use crate::sockets::{Datagram, Sockets};
use crate::tunnels::{Child, Tunnels};
use crate::unsent::Unsent;

/// Events of the datapath taken in before everything else gets its turn.
const BATCH: usize = 256;

/// A peer that sends on an SA we do not know is asked at most this often.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Log lines about strangers, at most one in this time.
const STRANGER_LOG: Duration = Duration::from_secs(1);

/// What packets leave on when the child is gone that they left on, and none waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Else {
    /// The newest old one, which the peer's kernel may still have.
    Old,
    Nothing,
}

/// The engine and everything that its events and datagrams go to.
pub(crate) struct Core {
    pub(crate) engine: Engine,
    pub(crate) tunnels: Tunnels,
    pub(crate) linger: Linger,
    pub(crate) paths: Paths,
    pub(crate) datapath: Option<Box<dyn Datapath>>,
    pub(crate) sockets: Option<Sockets>,
    pub(crate) keys: Option<KeyExport>,
    /// Which peer is behind an address.
    pub(crate) addresses: BTreeMap<IpAddr, PeerId>,
    /// The datapath has ended: the agent must, too.
    pub(crate) failed: Option<String>,
    pub(crate) drops: BTreeMap<&'static str, u64>,
    pub(crate) handshakes: Handshakes,
    /// SAs have come or gone since someone last looked.
    pub(crate) changed: bool,
    unsent: Unsent,
    probed: BTreeMap<PeerId, Monotonic>,
    stranger_logged: Option<Monotonic>,
}

impl Core {
    pub(crate) fn new(engine: Engine, keys: Option<KeyExport>) -> Core {
        Core {
            engine,
            tunnels: Tunnels::default(),
            linger: Linger::default(),
            paths: Paths::default(),
            datapath: None,
            sockets: None,
            keys,
            addresses: BTreeMap::new(),
            failed: None,
            drops: BTreeMap::new(),
            handshakes: Handshakes::default(),
            changed: false,
            unsent: Unsent::default(),
            probed: BTreeMap::new(),
            stranger_logged: None,
        }
    }

    /// Takes in what came over UDP 500.
    pub(crate) fn datagrams(&mut self, datagrams: Vec<Datagram>, now: Now) {
        for datagram in datagrams {
            let Datagram {
                local,
                remote,
                bytes,
            } = datagram;
            self.engine.handle_datagram(now, local, remote, &bytes);
            self.settle(now);
        }
    }

    /// Takes in what the datapath tells. Says whether there may be more.
    pub(crate) fn datapath_events(&mut self, now: Now) -> bool {
        for _ in 0..BATCH {
            let Some(event) = self.datapath.as_mut().and_then(|d| d.poll_event()) else {
                return false;
            };
            self.datapath_event(event, now);
            self.settle(now);
        }
        true
    }

    fn datapath_event(&mut self, event: PathEvent, now: Now) {
        match event {
            PathEvent::Ike {
                local,
                remote,
                message,
            } => self.engine.handle_datagram(now, local, remote, &message),
            PathEvent::FirstInbound { child } => {
                self.proven(child, now);
                self.engine.note_inbound(child, now);
            }
            PathEvent::SoftLimit { child } => {
                if let Err(error) = self.engine.rekey_child(child, now) {
                    tracing::debug!("a rekey that a limit asks for is not begun: {error}");
                }
            }
            PathEvent::PeerMoved { child, remote } => {
                self.engine.note_moved(child, remote);
                if let Some(peer) = self.tunnels.child(child).map(|c| c.peer.clone()) {
                    tracing::info!(%peer, %remote, "the peer's packets come from a new address");
                    self.probe(&peer, now);
                }
            }
            PathEvent::UnknownSpi { spi, remote } => {
                self.count("unknown_spi_events");
                if let Some(peer) = self.addresses.get(&remote).cloned() {
                    tracing::debug!(%peer, %spi, "the peer sends on an SA that is not ours");
                    self.probe(&peer, now);
                }
            }
            PathEvent::SaLost { child } => self.sa_lost(child, now),
            PathEvent::Failed { reason } => {
                tracing::error!("the datapath has ended: {reason}; the node stays closed");
                self.failed.get_or_insert(reason);
            }
        }
    }

    /// Somebody removed an SA of ours from the kernel, or its time was over. A successor is made at
    /// once; the half that still stands carries packets until then.
    fn sa_lost(&mut self, child: ChildId, now: Now) {
        self.count("sas_lost");
        if self.linger.is_old(child) {
            return self.retire(child, Else::Old, now);
        }
        let Some(peer) = self.tunnels.child(child).map(|c| c.peer.clone()) else {
            return;
        };
        tracing::warn!(%peer, "an SA is gone from the datapath, and not by us: it is made anew");
        let text = "an SA was gone from the datapath and is made anew".to_owned();
        self.tunnels.failed(&peer, text, now.wall);
        if let Err(error) = self.engine.rekey_child(child, now) {
            tracing::debug!(%peer, "no rekey is begun: {error}");
        }
    }

    /// Asks a peer for a sign of life; one without an IKE SA is called.
    fn probe(&mut self, peer: &PeerId, now: Now) {
        let last = self.probed.get(peer).copied();
        if last.is_some_and(|at| now.monotonic.since(at) < PROBE_EVERY) {
            return;
        }
        self.probed.insert(peer.clone(), now.monotonic);
        let asked = match self.tunnels.connected(peer) {
            true => self.engine.probe(peer, now),
            false => self.engine.reauthenticate(peer, now),
        };
        if let Err(error) = asked {
            tracing::debug!(%peer, "not probed: {error}");
        }
    }

    /// Everything whose time has come.
    pub(crate) fn handle_timeout(&mut self, now: Now) {
        if let Some(sockets) = &mut self.sockets {
            let send = |local, remote, bytes: &[u8]| sockets.send(local, remote, bytes);
            self.unsent.again(now.monotonic, send);
        }
        self.engine.handle_timeout(now);
        self.settle(now);
        for (child, peer) in self.linger.due(now.monotonic) {
            self.switch(child, &peer, now);
        }
        for child in self.linger.over(now.monotonic) {
            self.retire(child, Else::Old, now);
        }
        self.settle(now);
        self.watch_paths(now);
    }

    /// When that is due.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        let all = [
            self.engine.poll_timeout(),
            self.linger.deadline(),
            self.paths.deadline(),
            self.unsent.deadline(),
        ];
        all.into_iter().flatten().min()
    }

    /// A peer is not wanted any more: its last SAs go.
    pub(crate) fn forget(&mut self, peer: &PeerId) {
        for child in self.linger.forget(peer) {
            self.drop_child(child);
        }
        self.tunnels.forget(peer);
        self.paths.forget(peer);
        self.addresses.retain(|_, other| other != peer);
    }

    /// What peers were judged by has changed. Those that are connected were judged anew; what is left of
    /// `doubted` ones that are not goes.
    pub(crate) fn distrust(&mut self, doubted: impl Fn(&PeerId) -> bool) {
        let tunnels = &self.tunnels;
        let gone = self
            .linger
            .distrust(|peer| doubted(peer) && !tunnels.connected(peer));
        for child in gone {
            tracing::info!(
                child = child.0,
                "an absent peer's SA goes: its certificate cannot be judged anew"
            );
            self.drop_child(child);
        }
    }

    /// The engine's contract: after each mutation all events, then all datagrams.
    pub(crate) fn settle(&mut self, now: Now) {
        loop {
            let events: Vec<Event> = std::iter::from_fn(|| self.engine.poll_event()).collect();
            if events.is_empty() && !self.switch_to_proven(now) {
                break;
            }
            self.events(events, now);
        }
        while let Some(out) = self.engine.poll_transmit() {
            if out.local.port() == self.engine.config().nat_port {
                let Some(datapath) = &mut self.datapath else {
                    self.count("ike_datagrams_without_datapath");
                    continue;
                };
                let sent = match out.marker {
                    true => datapath.send_ike(out.local, out.remote, &out.bytes),
                    // The mapping that it keeps alive is this socket's.
                    false => datapath.send_keepalive(out.local, out.remote),
                };
                if let Err(error) = sent {
                    tracing::debug!(remote = %out.remote, "IKE datagram not sent: {error}");
                    self.count("ike_datagrams_unsent");
                }
            } else if let Some(sockets) = &mut self.sockets {
                self.unsent.forget(out.remote);
                let sent = sockets.send(out.local, out.remote, &out.bytes);
                if !sent && self.addresses.contains_key(&out.remote.ip()) {
                    let (local, remote) = (out.local, out.remote);
                    self.unsent.keep(local, remote, out.bytes, now.monotonic);
                }
            } else {
                self.count("ike_datagrams_without_socket");
            }
        }
    }

    /// What goes because the peer's agent was away is known before what takes its place.
    pub(crate) fn events(&mut self, events: Vec<Event>, now: Now) {
        for event in &events {
            if let Event::ChildDown(down) = event {
                self.consider_old(down, now);
            }
        }
        for event in events {
            self.event(event, now);
        }
    }

    fn event(&mut self, event: Event, now: Now) {
        self.changed = true;
        match event {
            Event::IkeUp(up) => self.ike_up(&up, now),
            Event::IkeDown(down) => {
                match down.reason {
                    DownReason::Replaced => {}
                    reason => tracing::info!(peer = %down.peer, ?reason, "IKE SA is gone"),
                }
                self.tunnels.ike_down(&down);
                let unexpected = match down.reason {
                    DownReason::Dead => "the peer stopped answering",
                    DownReason::Expired => "the SA's or the certificate's time ended",
                    DownReason::Untrusted => "the peer's certificate no longer verifies",
                    DownReason::Error => "the peer broke the protocol",
                    _ => return,
                };
                if !self.tunnels.connected(&down.peer) {
                    self.tunnels
                        .failed(&down.peer, unexpected.to_owned(), now.wall);
                }
            }
            Event::ChildUp(up) => self.child_up(*up, now),
            Event::OutboundReady { child, peer, .. } => self.use_outbound(child, &peer, now),
            Event::ChildDown(down) => self.child_down(&down, now),
            Event::PathChanged(path) => self.path_changed(&path, now),
            Event::Failed(failure) => self.negotiation_failed(&failure, now),
            Event::Receipt(receipt) => self.receipt(receipt, now),
        }
    }

    fn ike_up(&mut self, up: &IkeUp, now: Now) {
        tracing::info!(
            peer = %up.peer,
            remote = %up.remote,
            suite = up.suite,
            initiator = up.initiator,
            rekey = up.replaces.is_some(),
            "IKE SA is up"
        );
        if let Some(Err(error)) = self.keys.as_ref().map(|keys| keys.ike(up)) {
            tracing::warn!("{error:#}");
        }
        self.handshakes.observe(up);
        self.tunnels.ike_up(up, now);
        self.tell_verdict(up, now);
    }

    fn child_up(&mut self, mut up: ChildUp, now: Now) {
        own_family(&mut up);
        if let Some(Err(error)) = self.keys.as_ref().map(|keys| keys.child(&up)) {
            tracing::warn!("{error:#}");
        }
        self.tunnels.child_up(&up, now);
        let path = &up.outbound.encapsulation;
        self.paths.came_up(&up.peer, path, now.monotonic);
        let (child, peer) = (up.child, up.peer.clone());
        tracing::debug!(%peer, spi_in = %up.inbound.spi, spi_out = %up.outbound.spi, "child SA is up");
        let Some(datapath) = &mut self.datapath else {
            self.count("children_without_datapath");
            return;
        };
        let sender = Sender::of(up.resource, datapath.cpus());
        let installed = datapath
            .install_inbound(up.inbound)
            .and_then(|()| sender.install(datapath.as_mut(), up.outbound));
        if let Err(error) = installed {
            return self.refused(child, &peer, &error, now);
        }
        if sender == Sender::Nobody {
            self.tunnels.opens_only(child);
        }
        if up.use_outbound == UseOutbound::Now {
            self.use_outbound(child, &peer, now);
        }
    }

    /// What the peer has begun waits until the peer is known to have it, while packets leave on what
    /// the peer's kernel still knows: a child of before its restart, or an SA of before ours. The peer
    /// installs the new child when our answer has reached it, however long that takes; it is asked
    /// with a probe, for packets may go one way only. Of the first child that we have begun we tell the
    /// peer in the same way: it may be waiting.
    fn use_outbound(&mut self, child: ChildId, peer: &PeerId, now: Now) {
        if self.tunnels.child(child).is_some_and(|c| c.opens_only) {
            return;
        }
        for other in self.tunnels.fellows(child) {
            // The engine has chosen anew.
            self.linger.passed_over(other);
        }
        let before = self.tunnels.sends_before(child);
        let slot = self.tunnels.slot(child);
        let waits = match before {
            _ if self.engine.is_confirmed(child) => false,
            Some(before) => self.linger.is_old(before),
            // A CPU's packets leave on the child for all CPUs until the peer has the CPU's own.
            None if slot.as_ref().is_some_and(|(_, cpu)| *cpu != 0) => true,
            None => self.follows_earlier_run(child),
        };
        match slot.filter(|_| waits) {
            Some(slot) => self.linger.wait(child, peer, slot, now.monotonic),
            None => self.switch(child, peer, now),
        }
        if self.engine.is_confirmed(child) {
            self.proven(child, now);
        }
        let began = self.tunnels.child(child).is_some_and(|c| c.initiator);
        if (waits || began && before.is_none())
            && let Err(error) = self.engine.probe_child(child, now)
        {
            tracing::debug!(%peer, "not probed: {error}");
        }
    }

    fn follows_earlier_run(&self, child: ChildId) -> bool {
        let datapath = self.datapath.as_ref();
        datapath.is_some_and(|datapath| datapath.follows_earlier_run(child))
    }

    /// Switches to the new children of which it is known by now that the peer has them. Whether there
    /// were any.
    fn switch_to_proven(&mut self, now: Now) -> bool {
        let engine = &self.engine;
        let unproven = self.linger.unproven();
        let proven: Vec<ChildId> = unproven
            .filter(|child| engine.is_confirmed(*child))
            .collect();
        for child in &proven {
            self.proven(*child, now);
        }
        !proven.is_empty()
    }

    /// The peer is known to have a child: it is sent on if it waited for that, and what it follows has
    /// less time.
    fn proven(&mut self, child: ChildId, now: Now) {
        let switches = self.linger.proven(child);
        if self.linger.is_old(child) {
            return;
        }
        let peer = self.tunnels.child(child).map(|c| c.peer.clone());
        if let (Some(peer), Some(slot)) = (peer, self.tunnels.slot(child)) {
            if switches {
                self.switch(child, &peer, now);
            }
            self.linger.succeeded(&peer, &slot, now.monotonic);
        }
    }

    fn switch(&mut self, child: ChildId, peer: &PeerId, now: Now) {
        let Some(datapath) = &mut self.datapath else {
            return;
        };
        match datapath.use_outbound(child) {
            Ok(()) => self.tunnels.sending(child),
            Err(error) => self.refused(child, peer, &error, now),
        }
    }

    /// The host took one half or none: nothing of the pair may stay, and the peer must know
    /// (libreswan#1602: no tunnel after tunnel; the engine waits longer each time). What else stands
    /// with the peer stays.
    fn refused(&mut self, child: ChildId, peer: &PeerId, error: &DatapathError, now: Now) {
        tracing::warn!(%peer, "the datapath refused an SA: {error}");
        self.with_datapath(|d| d.remove(child));
        self.tunnels.child_down(child, Default::default());
        self.tunnels.failed(
            peer,
            format!("the datapath refused an SA: {error}"),
            now.wall,
        );
        self.count("children_refused");
        if let Err(error) = self.engine.refuse_child(child, now) {
            tracing::debug!(%peer, "not refused: {error}");
        }
    }

    fn child_down(&mut self, down: &ChildDown, now: Now) {
        let stays = self.linger.is_old(down.child);
        tracing::debug!(peer = %down.peer, name = down.name, reason = ?down.reason, stays, "child SA is gone");
        if !stays {
            self.linger.gone(down.child);
            let after = match down.reason {
                DownReason::Dead | DownReason::InitialContact => Else::Old,
                // The peer's agent lives and will not have it, or we will not.
                _ => Else::Nothing,
            };
            self.retire(down.child, after, now);
        }
    }

    fn consider_old(&mut self, down: &ChildDown, now: Now) {
        if down.reason == DownReason::Untrusted {
            // With it goes all that the same peer's trust once allowed.
            for child in self.linger.distrust(|peer| *peer == down.peer) {
                self.drop_child(child);
            }
        }
        if self.tunnels.child(down.child).is_none() {
            return;
        }
        let mut fellows = self.tunnels.fellows(down.child).into_iter();
        let succeeded = fellows.any(|other| self.engine.is_confirmed(other));
        let valid = self.tunnels.valid_until(&down.peer);
        let gone = self.linger.keeps(down, valid, succeeded, now);
        for child in gone.unwrap_or_default() {
            self.retire(child, Else::Old, now);
        }
    }

    /// A child goes for good. What leaves on it goes on on one that waits, though nobody knows whether
    /// the peer has it.
    fn retire(&mut self, child: ChildId, or: Else, now: Now) {
        self.linger.lost(child);
        let sending = self.tunnels.child(child).filter(|c| c.sending);
        if let Some(peer) = sending.map(|c| c.peer.clone()) {
            let fellows = self.tunnels.fellows(child);
            let mut all = fellows.iter().copied();
            let waits = all.find(|id| self.linger.hurry(*id).is_some());
            let mut all = fellows.iter().copied().filter(|_| or == Else::Old);
            let old = all.rfind(|id| self.linger.is_old(*id));
            if let Some(next) = waits.or(old) {
                self.switch(next, &peer, now);
            }
        }
        self.drop_child(child);
    }

    /// A child's SAs go, with their last counters.
    fn drop_child(&mut self, child: ChildId) {
        self.changed = true;
        let counters = self.datapath.as_ref().map(|d| d.pair_counters(child));
        self.tunnels.child_down(child, counters.unwrap_or_default());
        self.with_datapath(|d| d.remove(child));
    }

    fn path_changed(&mut self, path: &PathChanged, now: Now) {
        tracing::info!(peer = %path.peer, remote = %path.remote, "the peer has moved");
        self.tunnels.moved(path);
        let v4 = path.encapsulation.local().is_ipv4();
        for &child in &path.children {
            let same = |c: &Child| c.encapsulation.local().is_ipv4() == v4;
            let Some(datapath) = &mut self.datapath else {
                return;
            };
            if !self.tunnels.child(child).is_some_and(same) {
                continue;
            }
            match datapath.rebind(child, path.encapsulation) {
                Ok(()) => self.tunnels.rebound(child, path.encapsulation),
                Err(error) => self.not_rebound(child, &path.peer, &error, now),
            }
        }
    }

    /// The child's packets go on to where the peer is not any more. A successor has the new ends
    /// from its beginning.
    fn not_rebound(&mut self, child: ChildId, peer: &PeerId, error: &DatapathError, now: Now) {
        tracing::warn!(%peer, "an SA does not follow the peer, and is made anew: {error}");
        self.count("children_not_rebound");
        let text = format!("an SA does not follow the peer, and is made anew: {error}");
        self.tunnels.failed(peer, text, now.wall);
        if let Err(error) = self.engine.rekey_child(child, now) {
            tracing::debug!(%peer, "no rekey is begun: {error}");
        }
    }

    /// Every failure is counted by the engine. A peer's own failure is said; a stranger's too,
    /// but only so often: whoever floods us must not fill the log.
    fn negotiation_failed(&mut self, failure: &Failure, now: Now) {
        let Failure {
            remote,
            check,
            text,
            ..
        } = failure;
        let at_its_address = failure
            .peer
            .as_ref()
            .filter(|peer| self.addresses.get(&remote.ip()) == Some(peer));
        let shown = match failure.authenticated {
            true => failure.peer.as_ref(),
            false => at_its_address,
        };
        match shown {
            Some(peer) => {
                tracing::warn!(%peer, %remote, %check, "negotiation failed: {text}");
                let text = format!("{check}: {text}");
                self.tunnels.failed(peer, text, now.wall);
            }
            None => {
                let quiet = self
                    .stranger_logged
                    .is_some_and(|at| now.monotonic.since(at) < STRANGER_LOG);
                if !quiet {
                    self.stranger_logged = Some(now.monotonic);
                    let claimed = failure.peer.as_ref().map_or("unknown", PeerId::as_str);
                    tracing::warn!(claimed, %remote, %check, "negotiation failed: {text}");
                }
            }
        }
    }

    fn with_datapath(&mut self, act: impl FnOnce(&mut dyn Datapath) -> Result<(), DatapathError>) {
        if let Some(datapath) = &mut self.datapath
            && let Err(error) = act(datapath.as_mut())
        {
            tracing::warn!("datapath: {error}");
        }
    }

    pub(crate) fn count(&mut self, reason: &'static str) {
        *self.drops.entry(reason).or_default() += 1;
    }
}

/// In transport mode packets keep their addresses. A child of the other family than its IKE SA
/// (a dual-stack overlay on one IKE SA) travels between the addresses of its selectors.
fn own_family(up: &mut ChildUp) {
    let out = &up.outbound;
    let (Some(local), Some(remote)) = (out.local.first(), out.remote.first()) else {
        return;
    };
    let other = local.first.is_ipv4() != out.encapsulation.local().is_ipv4();
    if out.mode != SaMode::Transport || !other {
        return;
    }
    let path = match out.encapsulation {
        Encapsulation::None { .. } => Encapsulation::None {
            local: local.first,
            remote: remote.first,
        },
        Encapsulation::Udp {
            local: our,
            remote: their,
        } => Encapsulation::Udp {
            local: SocketAddr::new(local.first, our.port()),
            remote: SocketAddr::new(remote.first, their.port()),
        },
    };
    up.inbound.encapsulation = path;
    up.outbound.encapsulation = path;
}

#[cfg(test)]
mod tests;
