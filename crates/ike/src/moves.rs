//! A peer whose address or port changes behind a NAT (RFC 7296, 2.23).

use std::net::SocketAddr;

use testudo_model::ChildId;

use crate::engine::{Engine, Path};
use crate::event::{Event, IkeId, PathChanged};
use crate::peer::Peer;
use crate::sa::IkeSa;

impl Engine {
    /// Tells that a good packet of a UDP-encapsulated child, the newest so far, came from
    /// another end than the child's. Where a NAT was seen before the peer, its IKE SA and all
    /// children of that follow ([`Event::PathChanged`]); elsewhere nothing follows, or whoever
    /// delivers a packet of the peer's from another address first would divert all that is sent.
    pub fn note_moved(&mut self, child: ChildId, remote: SocketAddr) {
        let Some(ike) = self.children.get(&child).map(|c| c.ike) else {
            return;
        };
        if !self.follow(ike, remote) {
            self.count_drop("moved_without_nat");
        }
    }

    /// The newest authentic message of the peer's came from `remote`: follows it, if it may.
    pub(crate) fn follow(&mut self, id: IkeId, remote: SocketAddr) -> bool {
        let Some(sa) = self.sas.get(&id) else {
            return false;
        };
        if sa.remote == remote {
            return true;
        }
        if !self.may_move(sa, remote) {
            return false;
        }
        let nat_port = self.config.nat_port;
        let Some(sa) = self.sas.get_mut(&id) else {
            return false;
        };
        sa.remote = remote;
        let (peer, local) = (sa.peer.clone(), sa.local);
        let encapsulation = sa.encapsulation(nat_port);
        let (Some(peer), Some(est)) = (peer, sa.established()) else {
            return true;
        };
        let children = est.children.iter().copied().collect();
        self.events.push_back(Event::PathChanged(PathChanged {
            ike: id,
            peer,
            local,
            remote,
            encapsulation,
            children,
        }));
        true
    }

    /// Where an attempt to reach a peer goes: to its next address, or through the mapping of the
    /// NAT before it, which no address of ours tells (RFC 7296, 2.23: IKE may begin on port 4500).
    pub(crate) fn way_to(&self, peer: &Peer) -> Path {
        let (port, nat_port) = (self.config.port, self.config.nat_port);
        let mapped = self
            .best_ike(&peer.config.id)
            .and_then(|id| self.sas.get(&id))
            .filter(|sa| sa.nat.remote && peer.failures == 0)
            .filter(|sa| !peer.knows(sa.remote) || ![port, nat_port].contains(&sa.remote.port()));
        match mapped {
            Some(sa) => sa.path(),
            None => {
                let address = peer.next_address();
                Path {
                    local: SocketAddr::new(address.local, port),
                    remote: SocketAddr::new(address.remote, port),
                }
            }
        }
    }

    /// Only a peer behind a NAT changes its address without saying so. Encapsulation that is
    /// wanted at both ends looks like a NAT; as long as such a peer is seen at an address that it
    /// is configured with, no more than its port follows.
    fn may_move(&self, sa: &IkeSa, remote: SocketAddr) -> bool {
        let known = sa
            .peer
            .as_ref()
            .and_then(|peer| self.peers.get(peer))
            .is_some_and(|peer| peer.knows(sa.remote));
        let perhaps_none = sa.nat.forced && known;
        sa.nat.remote
            && sa.remote.is_ipv4() == remote.is_ipv4()
            && (!perhaps_none || sa.remote.ip() == remote.ip())
    }
}
