//! `testudo controller`: the daemon that signs and leads.

use std::net::SocketAddr;

use clap::Args;
use testudo_controller::{KubeSafeOptions, Serving};
use testudo_store::Location;
use testudo_store_kube::{KubeOptions, KubeStore, Writer};

use crate::exit::Outcome;
use crate::global::Global;
use crate::{signals, store};

/// Run the controller: CA, certificates, phases.
#[derive(Args)]
#[command(after_help = "Example:\n  testudo controller --store dir:/var/lib/testudo")]
pub(crate) struct ControllerCommand {
    /// On Kubernetes: where the CA's Secret, the Lease and the agents' ServiceAccount are
    #[arg(long, env = "POD_NAMESPACE", default_value = "testudo-system")]
    namespace: String,

    /// On Kubernetes: the agents' ServiceAccount, which alone may ask for certificates
    #[arg(long, value_name = "NAME", default_value = "testudo-agent")]
    agent_service_account: String,

    /// On Kubernetes: the Secret (kubernetes.io/tls) in that namespace with the CA to use
    /// [default: the controller makes its own]
    #[arg(long, value_name = "NAME")]
    ca_secret: Option<String>,

    /// On Kubernetes: leave the taint testudo.dev/agent-not-ready on nodes whose agents are ready
    #[arg(long)]
    keep_startup_taint: bool,

    /// Serve metrics, liveness and readiness over HTTP there, as in 0.0.0.0:9712 [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

/// Runs the controller until a signal stops it.
pub(crate) fn run(command: ControllerCommand, global: &Global) -> Outcome {
    let runtime = signals::runtime()?;
    let serving = Serving {
        metrics: command.metrics,
        version: crate::version().to_owned(),
    };
    match store::resolve(global)? {
        Location::Kubernetes(at) => {
            let store = KubeStore::new(KubeOptions {
                at,
                writer: Writer::Controller,
            });
            let options = KubeSafeOptions {
                namespace: command.namespace,
                agent: command.agent_service_account,
                given_ca: command.ca_secret,
                keep_taint: command.keep_startup_taint,
                me: std::env::var("HOSTNAME").unwrap_or_else(|_| "controller".to_owned()),
            };
            let running =
                testudo_controller::run_on_kubernetes(store, options, serving, signals::shutdown());
            runtime.block_on(running)
        }
        location => {
            let options = testudo_controller::Options {
                store: location.to_string(),
                serving,
            };
            runtime.block_on(testudo_controller::run(options, signals::shutdown()))
        }
    }
}
