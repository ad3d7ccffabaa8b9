//! `testudo agent`: the daemon of one node.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use testudo_agent::keeper::{self, KeeperOptions, Manner};
use testudo_agent::{Options, Ports};
use testudo_model::NodeName;
use testudo_model::policy::DatapathChoice;
use testudo_store::Location;

use crate::exit::Outcome;
use crate::global::Global;
use crate::{signals, store};

const EXAMPLES: &str = "\
Examples:
  testudo agent --node n1 --join-token-file /etc/testudo/join-token
  testudo agent --node n1 --address 10.0.0.1 --pod-cidr 10.244.1.0/24";

/// Run the agent of one node.
#[derive(Args)]
#[command(
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct AgentCommand {
    #[command(subcommand)]
    part: Option<Part>,

    #[command(flatten)]
    daemon: Option<Daemon>,
}

#[derive(Subcommand)]
enum Part {
    /// Hold the agent's UDP sockets, so that ESP inside UDP goes on while the agent is away
    ///
    /// The agent starts one by itself where it needs it. Where processes end together with the agent's
    /// (a container, a systemd unit), run this beside it, as the same user; it takes over from any other
    /// keeper of that socket, reads no packet, knows no key and needs no capability but for --opens.
    Keep(KeepCommand),
}

#[derive(Args)]
struct KeepCommand {
    /// The UNIX socket on which agents find it: the agent's --keeper-socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// A UDP port that it opens for an agent that may not bind it, in practice 500; of its capabilities it
    /// then keeps NET_BIND_SERVICE
    #[arg(long, value_name = "PORT", conflicts_with = "started")]
    opens: Option<u16>,

    /// An agent has started it: it ends when nothing needs it
    #[arg(long, hide = true)]
    started: bool,
}

#[derive(Args)]
struct Daemon {
    /// The node's name
    #[arg(long, value_name = "NAME")]
    node: NodeName,

    /// An address under which this node is reached, best first [default: that of the default
    /// route, and it is followed when it changes]
    #[arg(long = "address", value_name = "IP", value_delimiter = ',')]
    addresses: Vec<IpAddr>,

    /// A prefix of this node's pods (routed clusters)
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<IpNet>,

    /// Take the prefixes of this node's pods from its Node, and follow them: those of the annotation
    /// testudo.dev/pod-cidrs if there is one, else of spec.podCIDRs (routed clusters)
    #[arg(long, conflicts_with = "pod_cidrs")]
    pod_cidrs_from_node: bool,

    /// Where the agent keeps its key, certificate and last policy [default:
    /// /var/lib/testudo-agent/NODE]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// The UNIX socket on which it answers [default: /run/testudo/NODE.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// The UNIX socket of who holds the UDP sockets when the agent is gone, started by the agent where
    /// nobody answers there [default: that of --socket, ending in .keeper]
    #[arg(long, value_name = "PATH")]
    keeper_socket: Option<PathBuf>,

    /// The join token: proves to the controller that a request is this node's; not needed with
    /// Kubernetes, whose API server knows
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,

    /// Write all keys there in Wireshark's formats; never in production
    #[arg(long, value_name = "DIR")]
    danger_export_keys: Option<PathBuf>,

    /// Who carries the packets, whatever the policy says: auto, user or kernel [default: as the
    /// policy's spec.datapath says]
    #[arg(long, value_name = "WHICH", value_enum)]
    datapath: Option<DatapathName>,

    /// Serve metrics, liveness and readiness over HTTP there, as in 0.0.0.0:9711 [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,

    /// Show traffic counters for each peer; with many nodes that is many metrics
    #[arg(long, requires = "metrics")]
    metrics_by_peer: bool,

    /// IKE's UDP port, here and at the peers
    #[arg(long, value_name = "PORT", default_value_t = Ports::default().ike, hide = true)]
    ike_port: u16,

    /// IKE's UDP port behind a NAT, here and at the peers
    #[arg(long, value_name = "PORT", default_value_t = Ports::default().nat, hide = true)]
    nat_port: u16,
}

/// A datapath, or the choice between them.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DatapathName {
    Auto,
    User,
    Kernel,
}

impl From<DatapathName> for DatapathChoice {
    fn from(name: DatapathName) -> Self {
        match name {
            DatapathName::Auto => Self::Auto,
            DatapathName::User => Self::Userspace,
            DatapathName::Kernel => Self::Kernel,
        }
    }
}

/// Runs the agent until a signal stops it.
pub(crate) fn run(command: AgentCommand, global: &Global) -> Outcome {
    match (command.part, command.daemon) {
        (Some(Part::Keep(command)), _) => keep(&command),
        (None, Some(daemon)) => {
            let options = options(daemon, global)?;
            signals::runtime()?.block_on(testudo_agent::run(options, signals::shutdown()))
        }
        // clap asks for --node.
        (None, None) => bail!("give --node NAME"),
    }
}

fn keep(command: &KeepCommand) -> Outcome {
    keeper::confine(command.opens.is_some())?;
    let manner = match command.started {
        true => Manner::Started,
        false => Manner::Standing,
    };
    let kept = keeper::keep(
        &command.socket,
        manner,
        command.opens,
        crate::version(),
        signals::shutdown(),
    );
    signals::runtime()?.block_on(kept)
}

/// This very build as a keeper, also where another one has taken the place of its file.
fn keeper_at(socket: &Path) -> KeeperOptions {
    let words = ["/proc/self/exe", "agent", "keep", "--started", "--socket"];
    let program = words.iter().map(Into::into);
    KeeperOptions {
        socket: socket.to_owned(),
        program: program.chain([socket.into()]).collect(),
    }
}

fn options(command: Daemon, global: &Global) -> anyhow::Result<Options> {
    let node = command.node;
    let follow_addresses = command.addresses.is_empty();
    let addresses = match follow_addresses {
        false => command.addresses,
        true => testudo_agent::default_addresses(),
    };
    if addresses.is_empty() {
        bail!("this host has no default route to take the node's address from: give --address IP");
    }
    let store = store::resolve(global)?;
    if command.pod_cidrs_from_node && matches!(store, Location::Directory(_)) {
        bail!(
            "--pod-cidrs-from-node: a directory has no Nodes; give --store kube, or --pod-cidr CIDR"
        );
    }
    let state_dir = PathBuf::from("/var/lib/testudo-agent").join(node.as_str());
    let socket = PathBuf::from("/run/testudo").join(format!("{node}.sock"));
    let socket = command.socket.unwrap_or(socket);
    let keeper_socket = command.keeper_socket;
    let keeper_socket = keeper_socket.unwrap_or_else(|| socket.with_extension("keeper"));
    // It is not started in this folder.
    let keeper_socket = std::path::absolute(keeper_socket)?;
    Ok(Options {
        keeper: Some(keeper_at(&keeper_socket)),
        store,
        state_dir: command.state_dir.unwrap_or(state_dir),
        socket,
        addresses,
        follow_addresses,
        pod_cidrs: command.pod_cidrs,
        pods_from_node: command.pod_cidrs_from_node,
        join_token_file: command.join_token_file,
        danger_export_keys: command.danger_export_keys,
        datapath: command.datapath.map(DatapathChoice::from),
        metrics: command.metrics,
        metrics_by_peer: command.metrics_by_peer,
        ports: Ports {
            ike: command.ike_port,
            nat: command.nat_port,
        },
        version: crate::version().to_owned(),
        node,
    })
}
