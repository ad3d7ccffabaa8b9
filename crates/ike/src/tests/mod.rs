//! Engines against each other on virtual time.

mod chains;
mod childless;
mod closing;
mod followup;
mod fragments;
mod handshake;
mod hostile;
mod hybrid;
mod life;
mod nat;
mod net;
mod ppk;
mod refused;
mod rekey;
mod resources;
mod suites;
mod table;
mod unproven;
mod window;
