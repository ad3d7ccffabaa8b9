//! NodeEncryption: what a node is and how far it is; written by its agent, read by its peers.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::name::{BootId, NodeName, NodeUid};
use crate::object::{Kind, Object};
use crate::phase::Acknowledgement;
use crate::time::UnixTime;

/// Marker of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEncryptionKind;

/// One node; the object's name is the node's.
pub type NodeEncryption = Object<NodeEncryptionKind>;

impl Kind for NodeEncryptionKind {
    const KIND: &'static str = "NodeEncryption";
    const PLURAL: &'static str = "nodeencryptions";
    type Spec = NodeEncryptionSpec;
    type Status = NodeEncryptionStatus;

    fn validate(name: &str, spec: &NodeEncryptionSpec) -> Result<(), String> {
        NodeName::new(name).map_err(|e| format!("metadata.name: {e}"))?;
        if spec.addresses.is_empty() {
            return Err("spec.addresses: a node needs at least one address".to_owned());
        }
        if spec.addresses.len() > 16 {
            return Err("spec.addresses: more than 16 addresses".to_owned());
        }
        if spec.pod_cidrs.len() > 64 {
            return Err("spec.podCIDRs: more than 64 prefixes".to_owned());
        }
        Ok(())
    }
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeEncryptionSpec {
    /// Given once to a node; stands in its certificate.
    pub uid: NodeUid,
    /// The kernel's boot ID.
    pub boot_id: BootId,
    /// Addresses under which the node's IKE and ESP are reached, best first.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of the node's pods (routed clusters).
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub pod_cidrs: Vec<IpNet>,
    /// `user` or `kernel`.
    pub datapath: String,
    /// The agent's UNIX socket on its node, for `status --tunnels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_socket: Option<String>,
}

/// How far a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeEncryptionStatus {
    /// The phase in force on the node and the step it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledgement>,
    /// The certificate in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateFacts>,
    /// The rotation ([`crate::policy::Certificates::rotation`]) whose certificate is in use on
    /// all tunnels.
    pub rotation: u64,
    /// Which CAs the node trusts and uses: what a rotation of the CA waits for.
    #[serde(skip_serializing_if = "Authorities::is_empty")]
    pub authorities: Authorities,
    /// Tunnels to peers that stand.
    pub tunnels_up: u32,
    /// Tunnels that should stand: one a peer and address family that both have (overlay), or one a
    /// peer (routed pods).
    pub tunnels_expected: u32,
    /// The largest inner packet that fits each path, in bytes: what pods' MTU may be at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_mtu: Option<u32>,
    /// Why the datapath is not the kernel's, where `Auto` might have taken that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datapath_note: Option<String>,
    /// The children for single CPUs that it takes from each peer (RFC 9611).
    #[serde(skip_serializing_if = "is_none")]
    pub per_cpu: u32,
    /// The agent's process, on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_pid: Option<u32>,
    /// Build of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Ready, Degraded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

fn is_none(n: &u32) -> bool {
    *n == 0
}

/// What people need to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateFacts {
    /// Subject, as text.
    pub subject: String,
    /// Issuer, as text.
    pub issuer: String,
    /// Serial number, hex.
    pub serial: String,
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity.
    pub not_after: UnixTime,
}

/// The CAs of a node by their common names, as its agent sees them at work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Authorities {
    /// The CAs that its IKE engine trusts, the one that signs first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<String>,
    /// The CA of the certificate that it shows to every peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presented: Option<String>,
    /// While peers come to see a newer certificate: the CAs of that one and of those before it, which
    /// any of them may see. Empty when all have seen the newest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub showing: Vec<String>,
    /// The CAs of the peers' certificates on which its IKE SAs stand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// It has asked for a certificate and has not taken it up: the answer may be of any CA that has
    /// signed since.
    #[serde(skip_serializing_if = "is_false")]
    pub asking: bool,
}

impl Authorities {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Authorities::default()
    }
}

fn is_false(b: &bool) -> bool {
    !*b
}
