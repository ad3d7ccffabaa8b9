//! `testudo lab`: a whole cluster on this machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::exit::Outcome;
use crate::global::Global;

/// A whole cluster in network namespaces on this machine.
#[derive(Args)]
pub(crate) struct LabCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {}

/// A lab that runs.
pub(crate) struct Running {
    /// Its name.
    pub(crate) name: String,
    /// Its store's directory.
    pub(crate) store: PathBuf,
}

/// Runs the verb.
pub(crate) fn run(command: LabCommand, _global: &Global) -> Outcome {
    match command.verb {}
}

/// The labs that run on this machine, by name.
pub(crate) fn running() -> Vec<Running> {
    Vec::new()
}
