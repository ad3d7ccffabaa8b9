//! `testudo agent`: the daemon of one node.

use clap::Args;

use crate::exit::Outcome;
use crate::global::Global;

/// Run the agent of one node.
#[derive(Args)]
pub(crate) struct AgentCommand {
    /// The node's name
    #[arg(long)]
    node: String,
}

/// Runs the agent until a signal stops it.
pub(crate) fn run(command: AgentCommand, global: &Global) -> Outcome {
    let store = crate::store::resolve(global)?;
    anyhow::bail!("the agent of {} cannot run on {store} yet", command.node)
}
