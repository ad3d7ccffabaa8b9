//! The node agent: store, plan, IKE engine and datapath in one event loop.
//!
//! [`run`] is all that a program needs. Its first act, before the store, a socket or a TUN is
//! opened, is to close the host with the last policy in force: a node that starts never speaks in
//! clear what it protected before. Other programs on the node ask the agent over a UNIX socket
//! ([`api`]).

pub mod api;
mod authorities;
mod bound;
mod certificates;
mod choice;
mod clock;
mod core;
mod enforcement;
mod files;
#[cfg(test)]
mod fixtures;
mod host;
mod identity;
pub mod keeper;
mod kernel;
mod keys;
mod linger;
mod memory;
mod metrics;
mod node;
mod objects;
mod options;
mod path;
mod publish;
mod receipts;
mod reconcile;
mod report;
mod resources;
mod rotation;
mod run;
mod sockets;
mod tunnels;
mod unsent;
mod user;
mod verifier;

#[cfg(test)]
mod tests;

pub use host::default_addresses;
pub use options::{Options, Ports};
pub use run::run;
