//! Drives the IKE engine: what it says is done in the datapath before what it sends goes out.

mod datapath;
mod events;
mod outbound;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use testudo_datapath::{Datapath, DatapathError};
use testudo_ike::{Engine, Event};
use testudo_model::{Monotonic, Now, PeerId};

use crate::keys::KeyExport;
use crate::linger::Linger;
use crate::metrics::Handshakes;
use crate::path::Paths;
use crate::sockets::{Datagram, Sockets};
use crate::tunnels::Tunnels;
use crate::unsent::Unsent;
use outbound::Else;

/// A peer that sends on an SA we do not know is asked at most this often.
const PROBE_EVERY: Duration = Duration::from_secs(1);

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

#[cfg(test)]
mod tests;
