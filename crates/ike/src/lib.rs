//! The IKEv2 engine (RFC 7296), without sockets, clocks or a runtime.
#![forbid(unsafe_code)]

mod config;
mod engine;
mod error;
mod event;
mod verify;

pub use config::{
    CertificateCredential, ChildConfig, EngineConfig, Identity, Limits, LocalIdentity, PeerAddress,
    PeerAuth, PeerConfig, Retransmission,
};
pub use engine::Engine;
pub use error::Misuse;
pub use event::{
    CertificateFacts, ChildDown, ChildStatus, ChildUp, Counters, DangerIkeKeys, DownReason, Event,
    Failure, IkeDown, IkeId, IkeStatus, IkeUp, PathChanged, Transmit, UseOutbound,
};
pub use verify::{CertificateVerifier, FailedCheck, PeerExpectation, VerifiedPeer, VerifyError};
