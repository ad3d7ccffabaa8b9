//! Addresses that change, ours or a peer's: the job of MOBIKE (RFC 4555).
//!
//! No SA is moved. A new IKE SA is authenticated between the new addresses beside the old one, its
//! children are made, packets go over, and only then the old one is closed: what a new
//! certificate does, too. Until then the old IKE SA speaks from and to the new addresses, so
//! that its last words arrive also when the old address is gone.

use std::net::SocketAddr;
use std::time::Duration;

use testudo_model::{ChildId, Now, PeerId, SaMode};

use crate::config::PeerAddress;
use crate::engine::Engine;
use crate::event::{DownReason, Event, IkeId, PathChanged};
use crate::sa::{IkeSa, Phase, State};
use crate::timers::Deadline;

/// Who has moved begins at once, and so does the end that begins as a rule. The other one waits
/// so long: two would make one too many.
const OTHERS_TURN: Duration = Duration::from_secs(1);

impl Engine {
    /// Whether an IKE SA runs between other addresses than those that are configured now. Behind
    /// a NAT the peer's is the NAT's.
    fn is_strange(&self, id: IkeId) -> bool {
        let Some(sa) = self.sas.get(&id) else {
            return false;
        };
        let Some(peer) = sa.peer.as_ref().and_then(|peer| self.peers.get(peer)) else {
            return false;
        };
        let ours = peer.has(sa.local);
        let mapped = sa.nat.remote && !sa.nat.forced;
        !(ours && (mapped || peer.knows(sa.remote)))
    }

    /// The peer's addresses, or ours towards it (`ours`), are others now.
    pub(crate) fn addresses_changed(&mut self, id: &PeerId, ours: bool, now: Now) {
        let changed = self.tick();
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.address = 0;
        peer.changed = changed;
        let attempt = peer.attempt;
        let sas: Vec<IkeId> = peer.sas.iter().copied().collect();
        if let Some(attempt) = attempt.filter(|id| self.is_strange(*id)) {
            self.attempt_elsewhere(attempt, id, now);
        }
        for ike in sas {
            if self.is_strange(ike) {
                self.readdress(ike, now);
            }
        }
        let open = self.open_sas(id);
        // One between the new addresses may stand already: the peer was faster.
        if open.is_empty() || self.open_is_known(&open) {
            return;
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.reauth = true;
        peer.moving = true;
        if peer.attempt.is_none() {
            let begins = ours || peer.config.initiate;
            let wait = if begins { Duration::ZERO } else { OTHERS_TURN };
            self.timers
                .set(Deadline::Start(id.clone()), now.monotonic + wait);
        }
    }

    /// An attempt goes where nobody is any longer. One that the peer may have established already
    /// goes on, and another follows it; one that it has not is begun anew.
    fn attempt_elsewhere(&mut self, attempt: IkeId, id: &PeerId, now: Now) {
        let late = self
            .sas
            .get(&attempt)
            .is_some_and(|sa| matches!(sa.state, State::AuthSent(_)));
        if late {
            self.readdress(attempt, now);
        } else {
            self.remove_sa(attempt, DownReason::Closed, now);
            self.timers.set(Deadline::Start(id.clone()), now.monotonic);
        }
    }

    /// The old addresses, which `readdress` has replaced, still tell which SAs these are.
    fn open_is_known(&self, open: &[IkeId]) -> bool {
        open.iter().any(|id| {
            let est = self.sas.get(id).and_then(IkeSa::established);
            est.is_some_and(|est| !est.moved)
        })
    }

    /// An IKE SA that is about to be replaced speaks from and to the new addresses from now on:
    /// requests that were under way at once. Packets of its tunnels follow, since their outer
    /// addresses mean nothing to the peer; those in transport mode would be refused.
    fn readdress(&mut self, id: IkeId, now: Now) {
        let Some(sa) = self.sas.get(&id) else { return };
        let Some(peer) = sa.peer.as_ref().and_then(|peer| self.peers.get(peer)) else {
            return;
        };
        let (peer_id, mapped) = (peer.config.id.clone(), sa.nat.remote && !sa.nat.forced);
        let Some(new) = best_pair(&peer.config.addresses, sa, mapped || peer.knows(sa.remote))
        else {
            return;
        };
        let tunnels = self.tunnels_of(sa);
        let nat_port = self.config.nat_port;
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        sa.local.set_ip(new.local);
        if !mapped {
            sa.remote.set_ip(new.remote);
        }
        let (local, remote) = (sa.local, sa.remote);
        let encapsulation = sa.encapsulation(nat_port);
        if let Some(est) = sa.established_mut() {
            est.moved = true;
        }
        if sa.state.request().is_some() {
            self.timers.set(Deadline::Retransmit(id), now.monotonic);
        }
        if !tunnels.is_empty() {
            self.events.push_back(Event::PathChanged(PathChanged {
                ike: id,
                peer: peer_id,
                local,
                remote,
                encapsulation,
                children: tunnels,
            }));
        }
    }

    fn tunnels_of(&self, sa: &IkeSa) -> Vec<ChildId> {
        let Some(est) = sa
            .established()
            .filter(|e| !matches!(e.phase, Phase::Shut | Phase::Gone))
        else {
            return Vec::new();
        };
        est.children
            .iter()
            .filter_map(|id| self.children.get(id))
            .filter(|c| c.mode == SaMode::Tunnel)
            .map(|c| c.id)
            .collect()
    }

    /// A new IKE SA with the peer stands: if it is one between the new addresses, no other is
    /// wanted for their sake. One that we began before the change is not, as the peer sees it.
    pub(crate) fn arrived(&mut self, id: IkeId, peer_id: &PeerId, now: Now) {
        let strange = self.is_strange(id);
        let Some(peer) = self.peers.get_mut(peer_id) else {
            return;
        };
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        if sa.initiator && sa.born < peer.changed {
            peer.reauth = true;
            peer.moving = true;
            if let Some(est) = sa.established_mut() {
                est.moved = true;
            }
            self.timers
                .set(Deadline::Start(peer_id.clone()), now.monotonic);
            return;
        }
        if strange || !peer.moving {
            return;
        }
        peer.moving = false;
        peer.reauth = false;
        self.timers.cancel(&Deadline::Start(peer_id.clone()));
    }
}

/// The pair that an SA goes on with: its own remote end if that is still good, else the first of
/// its family, else the first.
fn best_pair(all: &[PeerAddress], sa: &IkeSa, remote_is_good: bool) -> Option<PeerAddress> {
    let same = |a: &&PeerAddress| SocketAddr::new(a.remote, sa.remote.port()) == sa.remote;
    let family = |a: &&PeerAddress| a.remote.is_ipv4() == sa.remote.is_ipv4();
    let kept = all.iter().find(same).filter(|_| remote_is_good);
    kept.or_else(|| all.iter().find(family))
        .or(all.first())
        .copied()
}
