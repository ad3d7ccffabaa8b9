//! `testudo agent`: the daemon of one node.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use ipnet::IpNet;
use testudo_agent::{Options, Ports};
use testudo_model::NodeName;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Outcome;
use crate::global::Global;

/// Run the agent of one node.
#[derive(Args)]
pub(crate) struct AgentCommand {
    /// The node's name
    #[arg(long)]
    node: NodeName,

    /// Where the node keeps what must survive a restart: UID, key, certificate, last policy
    #[arg(long, value_name = "DIR", default_value = "/var/lib/testudo-agent")]
    state_dir: PathBuf,

    /// The UNIX socket on which the agent answers
    #[arg(long, value_name = "PATH", default_value = "/run/testudo/agent.sock")]
    socket: PathBuf,

    /// An address of this node, best first; may be given several times
    #[arg(long = "address", value_name = "IP", required = true)]
    addresses: Vec<IpAddr>,

    /// A prefix of this node's pods; may be given several times
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<IpNet>,

    /// The file with the node's join token
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,

    /// Write all keys to DIR in Wireshark's formats: whoever reads them reads the traffic
    #[arg(long, value_name = "DIR")]
    danger_export_keys: Option<PathBuf>,
}

/// Runs the agent until a signal stops it.
pub(crate) fn run(command: AgentCommand, global: &Global) -> Outcome {
    let options = Options {
        node: command.node,
        store: crate::store::resolve(global)?.to_string(),
        state_dir: command.state_dir,
        socket: command.socket,
        addresses: command.addresses,
        pod_cidrs: command.pod_cidrs,
        join_token_file: command.join_token_file,
        danger_export_keys: command.danger_export_keys,
        ports: Ports::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        testudo_agent::run(options, shutdown).await
    })
}
