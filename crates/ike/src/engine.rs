//! The engine: what the agent drives.

use std::net::SocketAddr;
use std::sync::Arc;

use testudo_crypto::Random;
use testudo_model::{ChildId, Monotonic, Now, PeerId};

use crate::config::{EngineConfig, LocalIdentity, PeerConfig};
use crate::error::Misuse;
use crate::event::{Counters, Event, IkeStatus, Transmit};
use crate::verify::CertificateVerifier;

/// An IKEv2 engine for any number of peers, without sockets, clocks or a runtime.
///
/// The contract is one mutation, then drain: after each call that takes `now`, call
/// [`Engine::poll_event`] until it is empty, then [`Engine::poll_transmit`] until it is empty,
/// then arm a timer for [`Engine::poll_timeout`]. Events come before datagrams so that an
/// inbound SA stands before the peer learns that it may send on it.
pub struct Engine {
    config: EngineConfig,
    counters: Counters,
}

impl Engine {
    /// An engine without identity and peers.
    pub fn new(config: EngineConfig, random: Box<dyn Random + Send>) -> Self {
        let _ = random;
        Self {
            config,
            counters: Counters::default(),
        }
    }

    /// The settings it was made with.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Sets or changes who we are. Standing SAs stay; new ones use the new identity
    /// ([`Engine::reauthenticate`] renews a standing one).
    pub fn set_identity(&mut self, identity: LocalIdentity) {
        let _ = identity;
    }

    /// Sets or changes who judges certificates. Call [`Engine::recheck_peers`] after a change
    /// that takes trust away.
    pub fn set_verifier(&mut self, verifier: Arc<dyn CertificateVerifier + Send + Sync>) {
        let _ = verifier;
    }

    /// Judges the peers of all standing SAs anew and closes those that fail.
    pub fn recheck_peers(&mut self, now: Now) {
        let _ = now;
    }

    /// Adds or changes a peer. With the data that it has already, nothing happens; new children
    /// are negotiated on the standing IKE SA, missing ones are closed.
    pub fn set_peer(&mut self, peer: PeerConfig, now: Now) -> Result<(), Misuse> {
        let _ = (peer, now);
        Ok(())
    }

    /// Removes a peer: its SAs are deleted, its attempts end.
    pub fn remove_peer(&mut self, peer: &PeerId, now: Now) {
        let _ = (peer, now);
    }

    /// Takes in an IKE message, without the non-ESP marker. Never fails: what is wrong with it
    /// is counted ([`Engine::counters`]) or becomes an event.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) {
        let _ = (now, local, remote, bytes);
    }

    /// Fires the deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        let _ = now;
    }

    /// Rekeys a child, as when the datapath says that a byte or packet limit is near.
    pub fn rekey_child(&mut self, child: ChildId, now: Now) -> Result<(), Misuse> {
        let _ = (child, now);
        Ok(())
    }

    /// Rekeys the peer's IKE SA.
    pub fn rekey_ike(&mut self, peer: &PeerId, now: Now) -> Result<(), Misuse> {
        let _ = (peer, now);
        Ok(())
    }

    /// Makes a new IKE SA with the peer, authenticated anew, and moves the children over
    /// before the old one is closed. Also starts a peer that is not `initiate`.
    pub fn reauthenticate(&mut self, peer: &PeerId, now: Now) -> Result<(), Misuse> {
        let _ = (peer, now);
        Ok(())
    }

    /// Closes the peer's SAs. A peer that is `initiate` starts again after the retry wait.
    pub fn close(&mut self, peer: &PeerId, now: Now) -> Result<(), Misuse> {
        let _ = (peer, now);
        Ok(())
    }

    /// Tells that the first ESP packet came in on a child: the peer has installed it.
    pub fn note_inbound(&mut self, child: ChildId, now: Now) {
        let _ = (child, now);
    }

    /// Asks the peer for a sign of life now.
    pub fn probe(&mut self, peer: &PeerId, now: Now) -> Result<(), Misuse> {
        let _ = (peer, now);
        Ok(())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }

    /// When [`Engine::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        None
    }

    /// Numbers since the engine began.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// All IKE SAs, for status.
    pub fn status(&self) -> Vec<IkeStatus> {
        Vec::new()
    }
}
