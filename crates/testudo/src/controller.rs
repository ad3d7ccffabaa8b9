//! `testudo controller`: the daemon that signs and leads.

use std::path::PathBuf;

use clap::Args;

use crate::exit::Outcome;
use crate::global::Global;
use crate::{signals, store};

/// Run the controller: CA, certificates, phases.
#[derive(Args)]
#[command(after_help = "Example:\n  testudo controller --store dir:/var/lib/testudo")]
pub(crate) struct ControllerCommand {
    /// Kept for callers that give every daemon a directory; the controller's state is the store's
    #[arg(long, value_name = "DIR", hide = true)]
    state_dir: Option<PathBuf>,
}

/// Runs the controller until a signal stops it.
pub(crate) fn run(_command: ControllerCommand, global: &Global) -> Outcome {
    let options = testudo_controller::Options {
        store: store::resolve(global)?.to_string(),
    };
    signals::runtime()?.block_on(testudo_controller::run(options, signals::shutdown()))
}
