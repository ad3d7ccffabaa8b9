//! What an agent is told at its start.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use testudo_model::NodeName;
use testudo_model::policy::DatapathChoice;
use testudo_store::Location;

use crate::keeper::KeeperOptions;

/// The options of `testudo agent`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name.
    pub node: NodeName,
    /// Where the cluster's objects are.
    pub store: Location,
    /// What must survive a restart: UID, key, certificate, the last policy. Private to the agent.
    pub state_dir: PathBuf,
    /// The UNIX socket on which the agent answers.
    pub socket: PathBuf,
    /// Addresses under which this node's IKE and ESP are reached, best first.
    pub addresses: Vec<IpAddr>,
    /// They are those of the default route ([`crate::default_addresses`]), and follow it.
    pub follow_addresses: bool,
    /// Prefixes of this node's pods.
    pub pod_cidrs: Vec<IpNet>,
    /// They are those that this node's Node names, and follow it. With an API server alone.
    pub pods_from_node: bool,
    /// The join token, hex: proves to the controller that a request is this node's. Where an API server
    /// holds the objects, that knows who writes and nothing is to be proved.
    pub join_token_file: Option<PathBuf>,
    /// Writes all keys there in Wireshark's formats. Never in production.
    pub danger_export_keys: Option<PathBuf>,
    /// Which datapath carries the packets, whatever the policy says; `None`: as it says.
    pub datapath: Option<DatapathChoice>,
    /// Where metrics, liveness and readiness are served over HTTP; nowhere if absent.
    pub metrics: Option<SocketAddr>,
    /// Counters of traffic are shown for each peer: of many nodes that is much.
    pub metrics_by_peer: bool,
    /// IKE's UDP ports.
    pub ports: Ports,
    /// Who holds the UDP sockets when the agent is gone; `None`: nobody, and what the kernel opens out
    /// of UDP waits for the next agent.
    pub keeper: Option<KeeperOptions>,
    /// The build's version, as status shows it.
    pub version: String,
}

impl Options {
    /// Where a keeper is to be found.
    pub(crate) fn keeper_socket(&self) -> Option<&Path> {
        self.keeper.as_ref().map(|keeper| keeper.socket.as_path())
    }
}

/// IKE's UDP ports, on this node and on its peers. Others than the usual ones are for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// 500.
    pub ike: u16,
    /// 4500: IKE and ESP behind a NAT.
    pub nat: u16,
}

impl Default for Ports {
    fn default() -> Ports {
        Ports {
            ike: 500,
            nat: 4500,
        }
    }
}
