//! What a node does with the packets of protected flows: the datapath's whole wish list, handed
//! over as one value and compared with what stands.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::PeerId;

/// Which packets are protected between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProtectedFlows {
    /// An overlay's packets: UDP to this port, between nodes, either family. Transport mode.
    Overlay {
        /// The overlay's UDP port.
        port: u16,
    },
    /// Pods' own packets, routed between nodes. Tunnel mode.
    Routed {
        /// Prefixes of the pods on this node.
        local: Vec<IpNet>,
        /// Prefixes that hold all pods of the cluster, known nodes or not; may be empty.
        cluster: Vec<IpNet>,
    },
}

/// What becomes of a clear packet of a protected flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClearTraffic {
    /// It passes.
    Pass,
    /// It is dropped and counted.
    Drop,
}

/// What becomes of packets to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outbound {
    /// They leave as they are, untouched.
    Clear,
    /// They leave sealed, or not at all.
    Encrypt,
}

/// One peer's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerTraffic {
    /// The peer.
    pub peer: PeerId,
    /// Its node addresses.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of its pods (routed).
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// What becomes of packets to it.
    pub outbound: Outbound,
}

/// All of it. Serializable, because an agent keeps the last one on disk: at its next start the
/// node is closed with it before anything else is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// This node's addresses.
    pub addresses: Vec<IpAddr>,
    /// What is protected.
    pub flows: ProtectedFlows,
    /// Clear packets of protected flows that come in.
    pub clear_inbound: ClearTraffic,
    /// Clear packets of protected flows that would leave to anyone, known peer or not. `Drop` may
    /// stand beside a `clear_inbound` of `Pass`: a node that is about to be Strict sends nothing in
    /// clear any more before anybody stops accepting it.
    pub clear_outbound: ClearTraffic,
    /// The peers, in the order of their names.
    pub peers: Vec<PeerTraffic>,
}
