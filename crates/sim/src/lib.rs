//! Two and more IKE engines on virtual time, and what must hold after every step.
//!
//! [`chaos::run`] lets one seed decide everything: topology, loss, duplicates, reordering,
//! delay, silences, restarts, commands. [`search::walk`] leaves nothing to chance: it walks every
//! order in which the datagrams of two engines can arrive, with a number of losses and
//! duplicates. Both hold a twin of each node's SAs ([`node::Twin`]) and check after each step
//! ([`rules`]):
//!
//! - no SPI and no key is given out twice; under no key is an IV used twice;
//! - nobody sends on an SA whose other half the peer has removed because it was replaced, or
//!   has not installed yet, while it knows of another that opens;
//! - a child and an IKE SA go down once, and only after they came up;
//! - no honest peer is blamed for breaking the protocol.
//!
//! Once the network is fair again, both ends must agree within a bound: one IKE SA, one child a
//! purpose, nothing left over. The seeds seal and open real ESP ([`esp`]) on the way; the search
//! compares SPIs and keys, which comes to the same. In some seeds the engines give their asymmetric
//! operations away and get the outcomes late, in whatever order.
#![forbid(unsafe_code)]

mod certificate;
pub mod chaos;
pub mod esp;
pub mod net;
pub mod node;
pub mod rules;
pub mod scene;
pub mod search;
mod side;
