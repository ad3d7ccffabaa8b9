//! The IKEv2 engine (RFC 7296), without sockets, clocks or a runtime.
//!
//! [`Engine`] is told configuration, datagrams and the time; it answers with events, datagrams
//! and the time at which it wants to be called again. What it does not do: EAP, IKEv1,
//! configuration payloads, MOBIKE.
#![forbid(unsafe_code)]

mod addke;
mod addresses;
mod boxed;
mod compute;
mod config;
mod cookie;
mod duplicates;
mod engine;
mod error;
mod event;
mod exchange;
mod fragments;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod held;
mod identity;
mod intauth;
mod keys;
mod message;
mod moves;
mod nat;
mod offload;
mod peer;
mod ppk;
mod proof;
mod proposal;
mod receipt;
mod refused;
mod registry;
mod sa;
mod suites;
mod table;
#[cfg(test)]
mod tests;
mod timeouts;
mod timers;
mod ts;
mod verify;
mod window;

pub use addke::AdditionalKe;
pub use config::{
    CertificateCredential, ChildConfig, EngineConfig, Identity, Limits, LocalIdentity, PeerAddress,
    PeerAuth, PeerConfig, PpkConfig, Retransmission,
};
pub use engine::Engine;
pub use error::Misuse;
pub use event::{
    CertificateFacts, ChildDown, ChildStatus, ChildUp, Counters, DangerIkeKeys, DownReason,
    EspCounts, Event, Failure, IkeDown, IkeId, IkeStatus, IkeUp, PathChanged, Receipt, Transmit,
    UseOutbound,
};
pub use offload::{Done, Job};
pub use suites::Suites;
pub use verify::{CertificateVerifier, FailedCheck, PeerExpectation, VerifiedPeer, VerifyError};
