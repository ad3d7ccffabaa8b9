//! The testudo command: one module a noun. A library, so that the test of an upgrade can link it once more,
//! as another build.
//!
//! What programs read goes to standard output, all else to standard error. Exit codes: 0 done,
//! 1 a check or the work failed, 2 wrong usage, 3 timed out. Under the name `kubectl-testudo` it is a
//! plugin of kubectl.

mod agent;
mod amend;
mod ca;
mod capture;
mod certs;
mod change;
mod controller;
mod crds;
mod demo;
mod difference;
mod doctor;
mod exit;
mod global;
mod lab;
mod logging;
mod nmstate;
mod objects;
mod openshift;
mod output;
mod patch;
mod pcap;
mod plugin;
mod pods;
mod policy;
mod signals;
mod status;
mod store;
mod tunnels;

use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::global::Global;

/// What this build says of itself: the package's version, unless [`main`] was told another.
static VERSION: OnceLock<&str> = OnceLock::new();

pub(crate) fn version() -> &'static str {
    VERSION.get_or_init(|| env!("CARGO_PKG_VERSION"))
}

const EXAMPLES: &str = "\
Examples:
  testudo lab up                       a cluster of three nodes on this machine
  testudo init                         turn encryption on, wait until it is strict
  testudo status --tunnels             every tunnel with its SAs and counters
  testudo certs rotate                 new certificates for all nodes
  testudo capture --node n1            what n1's link carries: ESP, IKE, clear
  testudo stop                         turn encryption off

Exit codes: 0 done, 1 a check failed, 2 usage, 3 timed out.";

/// IPsec between the nodes of a cluster.
#[derive(Parser)]
#[command(name = "testudo", after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A whole cluster in network namespaces on this machine.
    Lab(lab::LabCommand),
    /// Turn encryption on: make the policy, lead all nodes to Strict.
    Init(policy::InitCommand),
    /// Turn encryption on again after `stop`.
    Start(policy::StartCommand),
    /// Turn encryption off, in the same acknowledged steps.
    Stop(policy::StopCommand),
    /// A line a node and a summary; every tunnel with --tunnels.
    Status(status::StatusCommand),
    /// The nodes' certificates.
    Certs(certs::CertsCommand),
    /// The cluster's CAs.
    Ca(ca::CaCommand),
    /// Put the objects of a file into the store.
    Apply(objects::ApplyCommand),
    /// Change the policy by a merge or JSON patch, OpenShift's of ipsecConfig too.
    Patch(patch::PatchCommand),
    /// Remove the objects of a file from the store.
    Delete(objects::DeleteCommand),
    /// Print objects of the store.
    Get(objects::GetCommand),
    /// Watch what a node's link carries: ESP, IKE, clear.
    Capture(capture::CaptureCommand),
    /// Check this host: the kernel's IPsec, its known holes, and who else uses it.
    Doctor(doctor::DoctorCommand),
    /// Print the CustomResourceDefinitions for a Kubernetes cluster.
    Crds(crds::CrdsCommand),
    /// Run the agent of one node (a daemon).
    Agent(agent::AgentCommand),
    /// Run the controller: CA, certificates, phases (a daemon).
    Controller(controller::ControllerCommand),
}

/// Runs the command with this process's arguments, once in a process. `other`: the version of a build that is
/// not this one.
pub fn main(other: Option<&'static str>) -> ExitCode {
    if let Some(other) = other {
        // Nobody has asked before the arguments were read.
        let _ = VERSION.set(other);
    }
    let command = Cli::command().version(version());
    let matches = plugin::dressed(command).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let daemon = matches!(cli.command, Command::Agent(_) | Command::Controller(_));
    logging::start(daemon, cli.global.verbose);
    let global = &cli.global;
    let outcome = match cli.command {
        Command::Lab(command) => lab::run(command, global),
        Command::Init(command) => policy::init(&command, global),
        Command::Start(command) => policy::start(&command, global),
        Command::Stop(command) => policy::stop(&command, global),
        Command::Status(command) => status::run(&command, global),
        Command::Certs(command) => certs::run(&command, global),
        Command::Ca(command) => ca::run(&command, global),
        Command::Apply(command) => objects::apply(&command, global),
        Command::Patch(command) => patch::run(&command, global),
        Command::Delete(command) => objects::delete(&command, global),
        Command::Get(command) => objects::get(&command, global),
        Command::Capture(command) => capture::run(&command, global),
        Command::Doctor(command) => doctor::run(&command, global),
        Command::Crds(command) => crds::run(&command, global),
        Command::Agent(command) => agent::run(command, global),
        Command::Controller(command) => controller::run(command, global),
    };
    exit::code(outcome)
}
