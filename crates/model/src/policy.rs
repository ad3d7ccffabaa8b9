//! EncryptionPolicy: what the cluster wants, and how far it is.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algorithm::{self, NodeCipher, NodeKeyExchange};
use crate::bundle::CaPhase;
use crate::condition::Condition;
use crate::duration::Lifetime;
use crate::object::{Kind, Object};
use crate::phase::Phase;
use crate::time::UnixTime;

/// The most children for single CPUs with one peer and of one name: an IKE SA has 256 children at
/// most, of two families.
pub const MOST_PER_CPU: u32 = 127;

/// The one policy's name.
pub const CLUSTER: &str = "cluster";

/// Marker of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionPolicyKind;

/// The cluster's encryption: one object, named `cluster`.
pub type EncryptionPolicy = Object<EncryptionPolicyKind>;

impl Kind for EncryptionPolicyKind {
    const KIND: &'static str = "EncryptionPolicy";
    const PLURAL: &'static str = "encryptionpolicies";
    type Spec = EncryptionPolicySpec;
    type Status = EncryptionPolicyStatus;

    fn validate(name: &str, spec: &EncryptionPolicySpec) -> Result<(), String> {
        if name != CLUSTER {
            return Err(format!(
                "metadata.name: an EncryptionPolicy is named \"{CLUSTER}\", not \"{name}\""
            ));
        }
        let certificates = &spec.certificates;
        if certificates.renew_after >= certificates.node_lifetime {
            return Err(format!(
                "spec.certificates.renewAfter: {} is not before the certificate's end, nodeLifetime {}",
                certificates.renew_after, certificates.node_lifetime
            ));
        }
        if certificates.node_lifetime > certificates.ca_lifetime {
            return Err(format!(
                "spec.certificates.nodeLifetime: {} is longer than caLifetime {}",
                certificates.node_lifetime, certificates.ca_lifetime
            ));
        }
        algorithm::check("spec.ike.ciphers", &spec.ike.ciphers)?;
        algorithm::check("spec.ike.keyExchanges", &spec.ike.key_exchanges)?;
        algorithm::check("spec.esp.ciphers", &spec.esp.ciphers)?;
        if spec.esp.per_cpu > MOST_PER_CPU {
            return Err(format!(
                "spec.esp.perCpu: {} is more than {MOST_PER_CPU}",
                spec.esp.per_cpu
            ));
        }
        if spec.overlay.port == Some(0) {
            return Err("spec.overlay.port: 0 is not a port".to_owned());
        }
        Ok(())
    }
}

/// What the cluster wants. The defaults are OpenShift's where it has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EncryptionPolicySpec {
    /// Whether pod traffic is encrypted.
    pub mode: Mode,
    /// Settings of `mode: Full`.
    pub full: Full,
    /// What happens to clear packets of protected flows once the roll-out is done.
    pub enforcement: Enforcement,
    /// Where keys come from.
    pub keying: Keying,
    /// How pods' packets cross the nodes' network.
    pub overlay: Overlay,
    /// Whether host to host traffic is protected too.
    pub host_traffic: bool,
    /// Lifetimes of certificates.
    pub certificates: Certificates,
    /// IKE SAs.
    pub ike: IkeSettings,
    /// ESP SAs.
    pub esp: EspSettings,
    /// Who carries the packets.
    pub datapath: DatapathChoice,
}

/// OpenShift's `ipsecConfig.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// No encryption.
    #[default]
    Disabled,
    /// Only connections to hosts outside the cluster.
    External,
    /// Pod traffic between nodes, and connections to hosts outside.
    Full,
}

/// Settings of `mode: Full`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Full {
    /// When ESP goes inside UDP 4500.
    pub encapsulation: EncapsulationMode,
}

/// OpenShift's `ipsecConfig.full.encapsulation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EncapsulationMode {
    /// Where a NAT is seen on the way.
    #[default]
    Auto,
    /// For all traffic.
    Always,
}

/// Where a roll-out ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Enforcement {
    /// Encrypts, still accepts clear.
    Permissive,
    /// Drops clear packets of protected flows both ways.
    #[default]
    Strict,
}

/// Where keys come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Keying {
    /// IKEv2 with node certificates.
    #[default]
    Certificate,
    /// Kmesh's way; not built yet, agents refuse it with that reason.
    PreSharedKey,
}

/// How pods' packets cross the nodes' network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Overlay {
    /// The encapsulation, or none.
    #[serde(rename = "type")]
    pub kind: OverlayType,
    /// The overlay's UDP port; the type's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `Routed`: the prefixes that hold all pods of all nodes, present and future. Packets to them
    /// never leave in clear under Strict, also when a node's object is gone.
    #[serde(rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub pod_cidrs: Vec<IpNet>,
}

impl Overlay {
    /// The UDP port to protect; none for routed pods.
    pub fn udp_port(&self) -> Option<u16> {
        match self.kind {
            OverlayType::Geneve => Some(self.port.unwrap_or(6081)),
            OverlayType::Vxlan => Some(self.port.unwrap_or(4789)),
            OverlayType::Auto => self.port,
            OverlayType::Routed => None,
        }
    }
}

/// The encapsulation of pods' packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OverlayType {
    /// Not found out yet by the agents: with `port` given it is that port, else they say so.
    #[default]
    Auto,
    /// UDP 6081.
    Geneve,
    /// UDP 4789.
    #[serde(rename = "VXLAN")]
    Vxlan,
    /// None: pods' packets are routed between nodes.
    Routed,
}

/// Lifetimes of certificates, and the request to renew now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Certificates {
    /// The CA's.
    pub ca_lifetime: Lifetime,
    /// A node's.
    pub node_lifetime: Lifetime,
    /// Age at which a node asks for the next.
    pub renew_after: Lifetime,
    /// Raised by one to have every node renew now (`testudo certs rotate`).
    #[serde(skip_serializing_if = "is_zero")]
    pub rotation: u64,
    /// Raised by one to have the CA replaced (`testudo ca rotate`).
    #[serde(skip_serializing_if = "is_zero")]
    pub ca_rotation: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Default for Certificates {
    fn default() -> Self {
        Certificates {
            ca_lifetime: Lifetime::years(10),
            node_lifetime: Lifetime::years(5),
            renew_after: Lifetime(std::time::Duration::from_secs(
                9 * crate::duration::YEAR / 2,
            )),
            rotation: 0,
            ca_rotation: 0,
        }
    }
}

/// Annotation of the policy that asks one node to renew: this, then the node's name; a number.
pub const NODE_ROTATION: &str = "rotation.testudo.dev/";

/// Annotation of the policy that takes a rotation of the CA back: its number
/// ([`crate::bundle::TrustBundleStatus::rotation`]), so that no later one is meant.
pub const TAKE_BACK_CA: &str = "testudo.dev/take-back-ca-rotation";

/// The rotation that a node is to be at: the cluster's and its own added up, so that either one
/// raises it.
pub fn rotation_of(policy: &EncryptionPolicy, node: &str) -> u64 {
    let own = policy
        .metadata
        .annotations
        .get(&format!("{NODE_ROTATION}{node}"))
        .and_then(|text| text.parse::<u32>().ok())
        .unwrap_or(0);
    let cluster = policy.spec.certificates.rotation;
    cluster.saturating_add(u64::from(own))
}

/// IKE SAs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IkeSettings {
    /// Ciphers of IKE messages, the preferred first.
    pub ciphers: Vec<NodeCipher>,
    /// Key exchanges of IKE SAs and their children, the preferred first.
    pub key_exchanges: Vec<NodeKeyExchange>,
    /// Age at which an IKE SA is rekeyed, less a jitter.
    pub lifetime: Lifetime,
    /// Whether keys also come from ML-KEM.
    pub post_quantum: PostQuantum,
}

impl Default for IkeSettings {
    fn default() -> Self {
        IkeSettings {
            ciphers: vec![NodeCipher::Aes256Gcm],
            key_exchanges: NodeKeyExchange::ALL.to_vec(),
            lifetime: Lifetime::hours(8),
            post_quantum: PostQuantum::default(),
        }
    }
}

/// ML-KEM-768 beside the elliptic curve, in the key exchanges of IKE SAs and of their children
/// (RFC 9370): who records packets today cannot read them with a quantum computer later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PostQuantum {
    /// Neither asked for nor taken.
    Disabled,
    /// With every node that has it.
    #[default]
    Preferred,
    /// A node that does not do it is refused.
    Required,
}

/// ESP SAs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EspSettings {
    /// Ciphers of packets, the preferred first.
    pub ciphers: Vec<NodeCipher>,
    /// Age at which a child SA is rekeyed, less a jitter.
    pub lifetime: Lifetime,
    /// Bytes after which a child SA is rekeyed.
    pub bytes: u64,
    /// Packets after which a child SA is rekeyed.
    pub packets: u64,
    /// Children for single CPUs beside the one for all, with each peer (RFC 9611): packets that the
    /// CPUs numbered below it send are sealed at once, each by its own CPU. 0: none.
    #[serde(skip_serializing_if = "is_none")]
    pub per_cpu: u32,
}

fn is_none(n: &u32) -> bool {
    *n == 0
}

impl Default for EspSettings {
    fn default() -> Self {
        EspSettings {
            ciphers: vec![NodeCipher::Aes256Gcm],
            lifetime: Lifetime::hours(1),
            bytes: 1 << 40,
            packets: 1 << 32,
            per_cpu: 0,
        }
    }
}

/// Who carries the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DatapathChoice {
    /// The kernel's where it can be had, else ours; the node says which and why.
    #[default]
    Auto,
    /// The kernel's XFRM. A node that cannot have it says so and opens nothing; one that has another
    /// datapath open goes on with that.
    Kernel,
    /// ESP in the agent.
    Userspace,
}

/// How far the cluster is; written by the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EncryptionPolicyStatus {
    /// The phase agents must be in now.
    pub phase: Phase,
    /// Where the roll-out goes.
    pub target: Phase,
    /// Counts the steps taken and the changes of `target`; agents acknowledge it with the phase.
    pub rollout: u64,
    /// The value of `rollout` when the cluster last left `Disabled`: acknowledgements from before
    /// speak of SAs that are gone.
    #[serde(skip_serializing_if = "is_zero")]
    pub since: u64,
    /// The nodes whose acknowledgement is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting_on: Vec<String>,
    /// The generation of the spec this speaks of.
    pub observed_generation: u64,
    /// Nodes known.
    pub nodes: u32,
    /// Nodes that acknowledged `phase`.
    pub nodes_acknowledged: u32,
    /// Tunnels that stand, counted once a direction as the agents report them.
    pub tunnels_up: u32,
    /// Tunnels that should stand.
    pub tunnels_expected: u32,
    /// The renewal of the nodes' certificates that was asked for last. Absent before the first, and while
    /// encryption is off, for nodes renew when it is on again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_rotation: Option<RotationProgress>,
    /// The last rotation of the CA. The TrustBundle's status says more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_rotation: Option<RotationProgress>,
    /// Ready, Progressing, Degraded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// How far a rotation is, in which every node does its part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RotationProgress {
    /// Which one it is. Of certificates: how often one was asked for, of all nodes and of single ones; of
    /// the CA: its number.
    pub number: u64,
    /// The step of it, where it has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<CaPhase>,
    /// Nodes that have done their part.
    pub done: u32,
    /// Nodes that have a part in it.
    pub nodes: u32,
    /// The nodes that have not; of many the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting_on: Vec<String>,
    /// When it began, or its step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<UnixTime>,
}

impl RotationProgress {
    /// How many nodes have not done their part.
    pub fn waiting(&self) -> u32 {
        self.nodes.saturating_sub(self.done)
    }
}
