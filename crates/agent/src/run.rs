//! The agent's life from start to stop.

use std::future::Future;

use anyhow::Result;

use crate::Options;

/// Runs the agent until `shutdown` is ready. An error means that the node stays closed and that
/// the agent is to be started again.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<()> {
    tracing::info!(node = %options.node, "agent starts");
    shutdown.await;
    Ok(())
}
