//! What the datapath tells.

use testudo_datapath::Event;
use testudo_model::{ChildId, Now};

use super::Core;
use super::outbound::Else;

/// Events taken in before everything else gets its turn.
const BATCH: usize = 256;

impl Core {
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

    fn datapath_event(&mut self, event: Event, now: Now) {
        match event {
            Event::Ike {
                local,
                remote,
                message,
            } => self.engine.handle_datagram(now, local, remote, &message),
            Event::FirstInbound { child } => {
                self.proven(child, now);
                self.engine.note_inbound(child, now);
            }
            Event::SoftLimit { child } => {
                if let Err(error) = self.engine.rekey_child(child, now) {
                    tracing::debug!("a rekey that a limit asks for is not begun: {error}");
                }
            }
            Event::PeerMoved { child, remote } => {
                self.engine.note_moved(child, remote);
                if let Some(peer) = self.tunnels.child(child).map(|c| c.peer.clone()) {
                    tracing::info!(%peer, %remote, "the peer's packets come from a new address");
                    self.probe(&peer, now);
                }
            }
            Event::UnknownSpi { spi, remote } => {
                self.count("unknown_spi_events");
                if let Some(peer) = self.addresses.get(&remote).cloned() {
                    tracing::debug!(%peer, %spi, "the peer sends on an SA that is not ours");
                    self.probe(&peer, now);
                }
            }
            Event::SaLost { child } => self.sa_lost(child, now),
            Event::Failed { reason } => {
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
}
