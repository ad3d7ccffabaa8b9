//! Engines against each other on virtual time.

mod handshake;
mod net;
