//! Errors, split by whose fault they are, and the one place that turns them into notifies.

use testudo_model::PeerId;

/// The caller asked for what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// No such peer.
    #[error("no peer {0} is configured; set_peer it first")]
    UnknownPeer(PeerId),
    /// No such child.
    #[error("child {} is not there, or is being replaced already", .0.0)]
    UnknownChild(testudo_model::ChildId),
    /// The peer has no established IKE SA.
    #[error("peer {0} has no established IKE SA; wait for IkeUp")]
    NotEstablished(PeerId),
    /// Too many commands wait for the peer.
    #[error("too many commands wait for peer {0}; try again after its answers")]
    Busy(PeerId),
    /// The peer's configuration makes no sense.
    #[error("peer {peer}: {text}")]
    BadConfig {
        /// The peer.
        peer: PeerId,
        /// What is wrong.
        text: String,
    },
}
