//! Engines against each other on virtual time.

mod addresses;
mod chains;
mod childless;
mod closing;
mod crossing;
mod flood;
mod followup;
mod fragments;
mod handshake;
mod hostile;
mod hybrid;
mod left_out;
mod life;
mod nat;
mod net;
mod ppk;
mod proofs;
mod refused;
mod rekey;
mod resources;
mod suites;
mod table;
mod unproven;
mod values;
mod voice;
mod window;
