//! The controller: the CA, the signing of node certificates, the phases.
//!
//! [`run`] is all that a program needs. It watches the store, answers certificate requests, leads
//! the roll-out and one CA after another, and writes what it finds into the policy's status, only when it
//! has changed. All that it must remember stands in the store and in its [`Safe`], so that it may be killed
//! and started at any time.

mod admission;
mod authority;
mod crowding;
mod documents;
mod election;
mod external;
mod fenced;
mod gates;
mod leader;
mod news;
mod numbers;
mod pace;
mod progress;
mod register;
mod requests;
mod revocation;
mod rotation;
mod run;
mod safe;
mod signer;
mod steady;
mod stragglers;
mod world;

pub use news::{About, News};
pub use numbers::Numbers;
pub use register::Full;
pub use run::{Options, Serving, lead, run, run_on_kubernetes};
pub use safe::directory::DirSafe;
pub use safe::kube::{KubeSafe, KubeSafeOptions, KubeTerm, LEASE, TAINT};
pub use safe::{
    Document, Fence, Gated, Members, Safe, SafeError, Sealed, Seen, Term, Unusable, Version,
};
pub use signer::Denial;

#[cfg(test)]
mod tests;
