//! The controller: the CA, the signing of node certificates, the phases.
//!
//! [`run`] is all that a program needs. It watches the store, answers certificate requests, leads
//! the roll-out and one CA after another, and writes what it finds into the policy's status, only when it
//! has changed. All that it must remember stands in the store and in its [`Safe`], so that it may be killed
//! and started at any time.

mod admission;
mod authority;
mod election;
mod leader;
mod register;
mod revocation;
mod rotation;
mod run;
mod safe;
mod signer;
mod steady;
mod world;

pub use register::Full;
pub use run::{Options, lead, run, run_on_kubernetes};
pub use safe::directory::DirSafe;
pub use safe::kube::{KubeSafe, KubeSafeOptions, LEASE};
pub use safe::{Document, Members, Safe, SafeError, Sealed, Term, Version};
pub use signer::Denial;

#[cfg(test)]
mod tests;
