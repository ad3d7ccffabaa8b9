//! `testudo controller`: the daemon that signs and leads.

use anyhow::bail;
use clap::Args;
use testudo_store::Location;

use crate::exit::Outcome;
use crate::global::Global;
use crate::{signals, store};

/// Run the controller: CA, certificates, phases.
#[derive(Args)]
#[command(after_help = "Example:\n  testudo controller --store dir:/var/lib/testudo")]
pub(crate) struct ControllerCommand {}

/// Runs the controller until a signal stops it.
pub(crate) fn run(_command: ControllerCommand, global: &Global) -> Outcome {
    let location = store::resolve(global)?;
    if let Location::Kubernetes(_) = location {
        bail!("this build's controller works on a directory store: name one with --store dir:PATH");
    }
    let options = testudo_controller::Options {
        store: location.to_string(),
    };
    signals::runtime()?.block_on(testudo_controller::run(options, signals::shutdown()))
}
