//! The controller: the CA, the signing of node certificates, the phases.
//!
//! [`run`] is all that a program needs. It watches the store, answers certificate requests, leads
//! the roll-out and one CA after another, and writes what it finds into the policy's status, only when it has changed. All
//! that it must remember stands in the store and in its file of CAs, so that it may be killed and started at any time.

mod authority;
mod leader;
mod rotation;
mod run;
mod signer;
mod steady;
mod world;

pub use run::{Options, run};

#[cfg(test)]
mod tests;
