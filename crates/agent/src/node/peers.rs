//! Peers come to the engine and go, and are called when they do not begin themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use testudo_model::{Now, PeerId};

use super::{Node, OPEN_RETRY, Retry, later};
use crate::reconcile;

/// Between two calls to a peer that usually begins itself, first and at most.
const CALL_RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

impl Node {
    /// Removes the peers that are not wanted.
    pub(super) fn remove_peers(&mut self, wanted: &[reconcile::Peer], now: Now) {
        let names: BTreeSet<&PeerId> = wanted.iter().map(|p| &p.id).collect();
        let gone = self.peers.keys().filter(|peer| !names.contains(peer));
        for peer in gone.cloned().collect::<Vec<PeerId>>() {
            tracing::info!(%peer, "the peer is gone");
            self.core.engine.remove_peer(&peer, now);
            self.core.settle(now);
            self.core.forget(&peer);
            self.peers.remove(&peer);
            self.calls.remove(&peer);
        }
        self.unset.retain(|peer, _| names.contains(peer));
    }

    pub(super) fn add_peers(&mut self, wanted: &[reconcile::Peer], now: Now) {
        for peer in wanted {
            if self.peers.get(&peer.id) == Some(peer) {
                continue;
            }
            let first = !self.peers.contains_key(&peer.id);
            let children = peer.children.iter().map(|c| c.name.clone()).collect();
            self.core.tunnels.want(&peer.id, children);
            if !self.set_peer(peer, now) {
                continue;
            }
            self.peers.insert(peer.id.clone(), peer.clone());
            if first && !peer.leads {
                // A peer that has its side ready waits for us alone when we have just started.
                let due = match reconcile::is_ready(self, &peer.id) {
                    true => now.monotonic,
                    false => now.monotonic + CALL_RETRY.0,
                };
                let wait = CALL_RETRY.0;
                self.calls.insert(peer.id.clone(), Retry { due, wait });
            }
        }
        for peer in wanted {
            for address in &peer.addresses {
                self.core.addresses.insert(address.remote, peer.id.clone());
            }
        }
    }

    /// Gives a peer to the engine. One that it does not take (its identity is another peer's, say,
    /// which is yet to go) is given to it again, later each time.
    fn set_peer(&mut self, peer: &reconcile::Peer, now: Now) -> bool {
        let last = self.unset.get(&peer.id).copied();
        if last.is_some_and(|retry| now.monotonic < retry.due) {
            return false;
        }
        let Err(error) = self.core.engine.set_peer(peer.config(), now) else {
            self.unset.remove(&peer.id);
            return true;
        };
        let text = format!("the peer cannot be set up: {error}");
        tracing::warn!(peer = %peer.id, "{text}");
        self.core.tunnels.failed(&peer.id, text, now.wall);
        let retry = later(last, OPEN_RETRY, now);
        self.unset.insert(peer.id.clone(), retry);
        false
    }

    /// Calls peers that usually begin themselves and do not: whoever was restarted must not wait
    /// for the other side to notice.
    pub(super) fn call_peers(&mut self, now: Now) {
        if !self.has_identity {
            return;
        }
        for (id, peer) in self.peers.iter().filter(|(_, peer)| !peer.leads) {
            if self.core.tunnels.connected(id) {
                self.calls.remove(id);
                continue;
            }
            let soon = Retry {
                due: now.monotonic + CALL_RETRY.0,
                wait: CALL_RETRY.0,
            };
            let retry = self.calls.entry(peer.id.clone()).or_insert(soon);
            if retry.due <= now.monotonic {
                *retry = later(Some(*retry), CALL_RETRY, now);
                if let Err(error) = self.core.engine.reauthenticate(id, now) {
                    tracing::debug!(peer = %id, "not called: {error}");
                }
            }
        }
    }
}
