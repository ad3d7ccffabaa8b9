//! `testudo controller`: the daemon that signs and leads.

use clap::Args;

use crate::exit::Outcome;
use crate::global::Global;

/// Run the controller.
#[derive(Args)]
pub(crate) struct ControllerCommand {}

/// Runs the controller until a signal stops it.
pub(crate) fn run(_command: ControllerCommand, global: &Global) -> Outcome {
    let store = crate::store::resolve(global)?;
    anyhow::bail!("the controller cannot run on {store} yet")
}
