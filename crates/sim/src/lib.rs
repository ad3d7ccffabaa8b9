//! Two and more IKE engines on virtual time, and what must hold after every step.
//!
//! [`chaos::run`] lets one seed decide everything: topology, loss, duplicates, reordering,
//! delay, silences, restarts, commands. [`search::walk`] leaves nothing to chance: it walks every
//! order in which the datagrams of two engines can arrive, with a number of losses and
//! duplicates. Both end in the same [`net::Net`], which holds a twin of each node's SAs and
//! checks after each step:
//!
//! - no SPI and no key is given out twice;
//! - nobody sends on an SA whose other half the peer has removed because it was replaced, or
//!   has not installed yet, while it knows of another that opens;
//! - a child and an IKE SA go down once, and only after they came up;
//! - no honest peer is blamed for breaking the protocol.
//!
//! Once the network is fair again, both ends must agree within a bound: one IKE SA, one child a
//! purpose, nothing left over.
#![forbid(unsafe_code)]

pub mod chaos;
pub mod net;
pub mod search;
