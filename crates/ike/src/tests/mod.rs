//! Engines against each other on virtual time.

mod closing;
mod fragments;
mod handshake;
mod hostile;
mod life;
mod net;
mod rekey;
mod resources;
mod table;
mod unproven;
