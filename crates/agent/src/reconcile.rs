//! From what the store says and what stands to what is wanted: the planner's answer in the words
//! of the engine and the datapath.

use std::time::Duration;

use testudo_ike::{
    ChildConfig, EngineConfig, Identity as IkeIdentity, PeerAddress, PeerAuth, PeerConfig, Suites,
};
use testudo_model::policy::{EncapsulationMode, PostQuantum};
use testudo_model::{
    Acknowledgement, EncryptionPolicy, EncryptionPolicySpec, NodeEncryptionSpec, NodeUid, PeerId,
    Phase, SaLimits, TrafficPolicy,
};
use testudo_pki::NODE_DNS_SUFFIX;
use testudo_plan::node::{self as plan, Decision, Known, PeerWanted, Waiting};

use crate::Options;
use crate::identity::Identity;
use crate::node::Node;
use crate::resources;

/// What is wanted of this node now.
pub(crate) struct Wish {
    /// None: everything stays as it is.
    pub(crate) plan: Option<Plan>,
    /// What is wrong with the objects in the store.
    pub(crate) problems: Vec<String>,
}

/// What is to be done: peers added, traffic, peers removed, acknowledgement.
pub(crate) struct Plan {
    pub(crate) peers: Vec<Peer>,
    /// None: nothing of ours stands.
    pub(crate) traffic: Option<TrafficPolicy>,
    pub(crate) acknowledge: Option<Acknowledgement>,
    pub(crate) waiting: Vec<Waiting>,
}

/// A peer that is wanted. [`PeerConfig`] cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) addresses: Vec<PeerAddress>,
    pub(crate) initiate: bool,
    /// Whether it is ours to begin, as a rule.
    pub(crate) leads: bool,
    pub(crate) encapsulation: EncapsulationMode,
    pub(crate) suites: Option<Suites>,
    pub(crate) children: Vec<ChildConfig>,
    /// The node's UID: one that is made anew is another peer.
    pub(crate) uid: NodeUid,
}

impl Peer {
    pub(crate) fn config(&self) -> PeerConfig {
        PeerConfig {
            id: self.id.clone(),
            remote_identity: IkeIdentity::Fqdn(format!("{}{NODE_DNS_SUFFIX}", self.id)),
            auth: PeerAuth::Certificate,
            ppk: None,
            addresses: self.addresses.clone(),
            initiate: self.initiate,
            encapsulation: self.encapsulation,
            suites: self.suites.clone(),
            children: self.children.clone(),
        }
    }
}

/// What a policy wants negotiated; `None` for what the engine does by itself. Certificates may
/// have any key that the CA signs.
fn suites(policy: &EncryptionPolicySpec) -> Option<Suites> {
    let mut suites = Suites {
        ike_ciphers: policy.ike.ciphers.iter().map(|c| c.cipher()).collect(),
        esp_ciphers: policy.esp.ciphers.iter().map(|c| c.cipher()).collect(),
        ke_methods: policy
            .ike
            .key_exchanges
            .iter()
            .map(|k| k.method())
            .collect(),
        ..Suites::default()
    };
    match policy.ike.post_quantum {
        PostQuantum::Preferred => {}
        PostQuantum::Disabled => suites.additional_ke.clear(),
        PostQuantum::Required => {
            for round in &mut suites.additional_ke {
                round.required = true;
            }
        }
    }
    (suites != Suites::default()).then_some(suites)
}

/// When a child SA has carried enough, under a policy.
pub(crate) fn limits(policy: &EncryptionPolicySpec) -> SaLimits {
    SaLimits {
        soft_bytes: policy.esp.bytes,
        soft_packets: policy.esp.packets,
    }
}

/// The engine's settings; lifetimes follow when a policy is read.
pub(crate) fn engine_config(options: &Options) -> EngineConfig {
    EngineConfig {
        port: options.ports.ike,
        nat_port: options.ports.nat,
        retry_initial: Duration::from_millis(250),
        danger_export_keys: options.danger_export_keys.is_some(),
        ..EngineConfig::default()
    }
}

/// What this node says it is.
pub(crate) fn node_spec(
    options: &Options,
    identity: &Identity,
    datapath: &str,
) -> NodeEncryptionSpec {
    NodeEncryptionSpec {
        uid: identity.uid.clone(),
        boot_id: identity.boot.clone(),
        addresses: options.addresses.clone(),
        pod_cidrs: options.pod_cidrs.clone(),
        datapath: datapath.to_owned(),
        agent_socket: Some(options.socket.display().to_string()),
    }
}

/// What is wanted now.
pub(crate) fn wish(node: &Node) -> Wish {
    let Some(policy) = &node.objects.policy else {
        let closed = node.previous().is_some();
        let problem = "there is no EncryptionPolicy in the store: the node stays as it was, closed; \
                       write one (mode: Disabled turns encryption off)";
        return Wish {
            plan: None,
            problems: closed.then(|| problem.to_owned()).into_iter().collect(),
        };
    };
    let decision = plan::plan(&Known {
        policy,
        own: &node.own(),
        nodes: &node.objects.nodes,
        facts: &node.core.tunnels.facts(),
        previous: node.previous(),
    });
    match decision {
        Decision::Refused(problems) => Wish {
            plan: None,
            problems,
        },
        Decision::Do(plan) => Wish {
            plan: Some(Plan {
                peers: plan
                    .peers
                    .iter()
                    .map(|wanted| peer(node, policy, wanted))
                    .collect(),
                traffic: plan.traffic,
                acknowledge: plan.acknowledge,
                waiting: plan.waiting,
            }),
            problems: plan.problems,
        },
    }
}

fn peer(node: &Node, policy: &EncryptionPolicy, wanted: &PeerWanted) -> Peer {
    // One that has no certificate yet could only refuse, and cost us the wait until the next try.
    let object = node.objects.node(wanted.peer.as_str());
    let can_answer = object.is_some_and(|n| n.status.certificate.is_some());
    let children = wanted.children.iter().map(|child| ChildConfig {
        name: child.name.clone(),
        mode: child.mode,
        local_ts: child.local.clone(),
        remote_ts: child.remote.clone(),
        resources: resources::wanted(&policy.spec),
    });
    let addresses = wanted.addresses.iter().map(|pair| PeerAddress {
        local: pair.local,
        remote: pair.remote,
    });
    let addresses: Vec<PeerAddress> = addresses.collect();
    let ends = addresses.iter().map(|pair| (pair.local, pair.remote));
    let forced = node.core.paths.forces(&wanted.peer, ends);
    Peer {
        id: wanted.peer.clone(),
        addresses,
        initiate: wanted.initiate && can_answer,
        leads: wanted.initiate,
        encapsulation: match forced {
            true => EncapsulationMode::Always,
            false => wanted.encapsulation,
        },
        suites: suites(&policy.spec),
        children: children.collect(),
        uid: wanted.uid.clone(),
    }
}

/// Whether a peer has said that its side is up.
pub(crate) fn is_ready(node: &Node, peer: &PeerId) -> bool {
    let given = node
        .objects
        .node(peer.as_str())
        .and_then(|n| n.status.acknowledged);
    given.is_some_and(|given| given.phase >= Phase::Prepared)
}
