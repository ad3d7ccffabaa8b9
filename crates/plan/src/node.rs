//! The agent's side: peers wanted, packets, acknowledgement.

use std::collections::BTreeMap;
use std::net::IpAddr;

use testudo_model::policy::{EncapsulationMode, Overlay, OverlayType};
use testudo_model::{
    Acknowledgement, EncryptionPolicy, NodeEncryption, NodeName, NodeUid, Outbound, PeerId, Phase,
    ProtectedFlows, SaMode, TrafficPolicy, TrafficSelector,
};

use crate::traffic;
use crate::{disputes, peers};

/// What an agent knows.
pub struct Known<'a> {
    /// The policy as last read. When its object is deleted an agent goes on with the last one:
    /// encryption is switched off by `mode: Disabled`, never by a missing file.
    pub policy: &'a EncryptionPolicy,
    /// The agent's own node, with the status it last wrote.
    pub own: &'a NodeEncryption,
    /// All nodes that are known; the agent's own among them or not.
    pub nodes: &'a [NodeEncryption],
    /// The SAs that stand.
    pub facts: &'a Facts,
    /// What the datapath does now, from memory or, after a start, from the disk. `None`: nothing
    /// of ours, and nothing was ever kept.
    pub previous: Option<&'a TrafficPolicy>,
}

/// The SAs that stand, by peer.
pub type Facts = BTreeMap<PeerId, PeerFacts>;

/// A peer's SAs that stand, by the child's name.
pub type PeerFacts = BTreeMap<String, ChildFacts>;

/// A child's SAs. They stand when the datapath has them, not when IKE has agreed on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChildFacts {
    /// At least one inbound SA of the child is installed.
    pub inbound: bool,
    /// An outbound SA of the child is installed and may be used.
    pub outbound: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The policy asks for what this build cannot do: leave peers, SAs and packets as they are,
    /// acknowledge nothing, and show the reasons.
    Refused(Vec<String>),
    /// Do this.
    Do(NodePlan),
}

/// What is to be done, in this order: peers and traffic first; then, when the datapath has taken
/// `traffic` and it is kept on disk, the acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// The peers wanted, in the order of their names. All others are to be removed, after
    /// `traffic` is in force.
    pub peers: Vec<PeerWanted>,
    /// What becomes of packets; `None`: clear away all that the datapath put into the host.
    pub traffic: Option<TrafficPolicy>,
    /// What the node may acknowledge once `traffic` is in force; write it if it differs from what
    /// stands there. `None`: nothing new, what was acknowledged stands.
    ///
    /// Under `Permissive` it may name a phase before `Permissive`: so far is the node, and it
    /// accepts clear. That lets peers without an SA go on sending, and does not move the cluster.
    pub acknowledge: Option<Acknowledgement>,
    /// Why the present step cannot be acknowledged yet. Empty: `acknowledge` is of this step.
    pub waiting: Vec<Waiting>,
    /// Tunnels that should stand: children of all peers.
    pub tunnels_expected: u32,
    /// Those that stand in both directions.
    pub tunnels_up: u32,
    /// What is wrong with the objects that others wrote; for people.
    pub problems: Vec<String>,
}

/// A peer that holds up this node's acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The peer.
    pub peer: PeerId,
    /// What is missing.
    pub reason: String,
}

/// A peer to negotiate with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerWanted {
    /// What to call it.
    pub peer: PeerId,
    /// The name that its certificate must show.
    pub node: NodeName,
    /// The UID that its certificate must show.
    pub uid: NodeUid,
    /// Address pairs under which it may be reached, best first.
    pub addresses: Vec<AddressPair>,
    /// Whether this node begins: the one with the smaller UID does.
    pub initiate: bool,
    /// When ESP goes inside UDP.
    pub encapsulation: EncapsulationMode,
    /// The children wanted; the first goes with IKE_AUTH. Never empty.
    pub children: Vec<ChildWanted>,
}

/// Our address and the peer's, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressPair {
    /// Ours.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
}

/// A child SA pair to have with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildWanted {
    /// `v4` or `v6` for an overlay, `pods` where pods are routed.
    pub name: String,
    /// Transport for an overlay, tunnel where pods are routed.
    pub mode: SaMode,
    /// Our side.
    pub local: Vec<TrafficSelector>,
    /// The peer's side.
    pub remote: Vec<TrafficSelector>,
}

/// What the agent has to do now. Pure: the same arguments, the same plan.
pub fn plan(known: &Known<'_>) -> Decision {
    let spec = &known.policy.spec;
    let refusals = crate::refusals(spec);
    if !refusals.is_empty() {
        return Decision::Refused(refusals);
    }
    let status = &known.policy.status;
    let asked = Acknowledgement {
        phase: status.phase,
        rollout: status.rollout,
    };
    let given = known.own.status.acknowledged.map_or(0, |word| word.rollout);
    if status.rollout == 0 && given > 0 {
        // Without this, a policy written anew without its status would open every node at once.
        return Decision::Refused(vec![format!(
            "the policy has lost its status, and this node has acknowledged step {given}: \
             it stays as it is until the controller has set the status again"
        )]);
    }
    if status.phase == Phase::Disabled {
        return Decision::Do(NodePlan {
            peers: Vec::new(),
            traffic: None,
            acknowledge: Some(asked),
            waiting: Vec::new(),
            tunnels_expected: 0,
            tunnels_up: 0,
            problems: Vec::new(),
        });
    }
    let Some(overlay) = overlay(known) else {
        return Decision::Refused(vec![
            "spec.overlay.type: the overlay that is encrypted now is not named; \
             write it until the cluster is Disabled"
                .to_owned(),
        ]);
    };
    let mut problems = Vec::new();
    let claimed = peers::others(known.own, known.nodes);
    peers::quarrels(known.own, &claimed, &mut problems);
    peers::strange_pods(&overlay, known.own, &claimed, &mut problems);
    let nodes = disputes::settled(known, &overlay);
    let others = peers::others(known.own, &nodes);
    let wanted = peers::wanted(&overlay, spec.full.encapsulation, known.own, &others);
    let standing = Standing {
        known,
        overlay: &overlay,
        others: &others,
        wanted: &wanted,
    };
    let traffic = traffic::decide(&standing);
    let waiting = waiting(&standing, &traffic);
    let acknowledge = acknowledgement(&standing, asked, &waiting);
    let expected = wanted.iter().map(|peer| peer.children.len()).sum();
    let up = wanted.iter().map(|peer| standing.up(peer)).sum();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Decision::Do(NodePlan {
        traffic: Some(traffic),
        acknowledge,
        waiting,
        tunnels_expected: number(expected),
        tunnels_up: number(up),
        problems,
        peers: wanted,
    })
}

/// The overlay that the spec names. On the way to `Disabled` it may name none any more: then it is
/// the one that is protected now.
fn overlay(known: &Known<'_>) -> Option<Overlay> {
    let overlay = &known.policy.spec.overlay;
    if overlay.udp_port().is_some() || overlay.kind == OverlayType::Routed {
        return Some(overlay.clone());
    }
    Some(match &known.previous?.flows {
        ProtectedFlows::Overlay { port } => Overlay {
            port: Some(*port),
            ..Overlay::default()
        },
        ProtectedFlows::Routed { cluster, .. } => Overlay {
            kind: OverlayType::Routed,
            port: None,
            pod_cidrs: cluster.clone(),
        },
    })
}

/// What is known, put in order.
pub(crate) struct Standing<'a> {
    pub(crate) known: &'a Known<'a>,
    /// The overlay to protect.
    pub(crate) overlay: &'a Overlay,
    /// The other nodes, by name.
    pub(crate) others: &'a [&'a NodeEncryption],
    wanted: &'a [PeerWanted],
}

impl Standing<'_> {
    fn child(&self, peer: &PeerWanted, child: &ChildWanted) -> ChildFacts {
        self.known
            .facts
            .get(&peer.peer)
            .and_then(|children| children.get(&child.name))
            .copied()
            .unwrap_or_default()
    }

    fn up(&self, peer: &PeerWanted) -> usize {
        let stands = |child: &&ChildWanted| {
            let facts = self.child(peer, child);
            facts.inbound && facts.outbound
        };
        peer.children.iter().filter(stands).count()
    }

    /// Children of a peer whose inbound SA is missing; `None` where nothing is to be had.
    fn inbound_missing(&self, peer: &PeerId) -> Option<Vec<&str>> {
        let wanted = self.wanted.iter().find(|w| w.peer == *peer)?;
        Some(
            wanted
                .children
                .iter()
                .filter(|child| !self.child(wanted, child).inbound)
                .map(|child| child.name.as_str())
                .collect(),
        )
    }

    /// Whether everything to a peer can be sealed.
    pub(crate) fn outbound(&self, peer: &PeerId) -> bool {
        self.wanted
            .iter()
            .find(|w| w.peer == *peer)
            .is_some_and(|w| w.children.iter().all(|child| self.child(w, child).outbound))
    }
}

fn waiting(standing: &Standing<'_>, traffic: &TrafficPolicy) -> Vec<Waiting> {
    let status = &standing.known.policy.status;
    let rising = status.target > Phase::Prepared;
    match status.phase {
        Phase::Prepared if rising => inbound_missing(standing),
        Phase::Permissive if rising => traffic
            .peers
            .iter()
            .filter(|peer| peer.outbound != Outbound::Encrypt)
            .map(|peer| Waiting {
                peer: peer.peer.clone(),
                reason: match standing.outbound(&peer.peer) {
                    true => "it has not acknowledged that it can open packets".to_owned(),
                    false => "there is no outbound SA to it".to_owned(),
                },
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn inbound_missing(standing: &Standing<'_>) -> Vec<Waiting> {
    let own = standing.known.own;
    let missing = |node: &&NodeEncryption| {
        let peer = peers::id(node);
        let reason = match standing.inbound_missing(&peer) {
            Some(missing) if missing.is_empty() => return None,
            Some(missing) => format!("no inbound SA from it yet ({})", missing.join(", ")),
            None if peers::nothing_to_protect(standing.overlay, own, node) => return None,
            None => "it has no address of a family that this node has".to_owned(),
        };
        Some(Waiting { peer, reason })
    };
    standing.others.iter().filter_map(missing).collect()
}

fn acknowledgement(
    standing: &Standing<'_>,
    asked: Acknowledgement,
    waiting: &[Waiting],
) -> Option<Acknowledgement> {
    // A word that was given stands, also when an SA is lost afterwards: the rules for the steps
    // that follow do not count on it.
    if waiting.is_empty() || standing.known.own.status.acknowledged == Some(asked) {
        return Some(asked);
    }
    if asked.phase != Phase::Permissive {
        return None;
    }
    let phase = match inbound_missing(standing).is_empty() {
        true => Phase::Prepared,
        false => Phase::Disabled,
    };
    Some(Acknowledgement { phase, ..asked })
}

#[cfg(test)]
mod tests;
