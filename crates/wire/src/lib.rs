//! Codecs for what is on the wire: IKEv2 messages, ESP, UDP encapsulation, IP headers.
//!
//! Everything here is pure: bytes in, values out, and back. No parser panics on any input, and
//! none allocates more than a fixed multiple of the bytes it was given.
#![forbid(unsafe_code)]

mod error;
mod numbers;
mod reader;

pub mod esp;
pub mod ike;
pub mod ip;
pub mod udp;

pub use error::{ErrorClass, Problem, WireError};
