//! What the engine says, done in the datapath and noted.

use std::net::SocketAddr;
use std::time::Duration;

use testudo_datapath::DatapathError;
use testudo_ike::{
    ChildDown, ChildUp, DownReason, Event, Failure, IkeUp, PathChanged, UseOutbound,
};
use testudo_model::{ChildId, Encapsulation, Now, PeerId, SaMode};

use super::Core;
use super::outbound::Else;
use crate::resources::Sender;
use crate::tunnels::Child;

/// Log lines about strangers, at most one in this time.
const STRANGER_LOG: Duration = Duration::from_secs(1);

impl Core {
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
