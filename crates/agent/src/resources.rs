//! Children for single CPUs (RFC 9611): how many there are, and who sends on them.
//!
//! Each pair of nodes has as many as the policy says, whatever CPUs the two have: each end opens what
//! comes in on all of them, and sends on those that it has a CPU for. So a node with many CPUs has
//! its packets sealed by all of them also towards one with few, or with a kernel or a datapath that
//! has no such SAs.
//!
//! They are asked for when the child for all stands, not when the kernel wants one for a CPU that has
//! none (XFRM_POLICY_CPU_ACQUIRE): while such a request is under way the kernel drops what that CPU
//! sends, though it has the SA for all.

use std::collections::BTreeMap;

use testudo_datapath::{Datapath, DatapathError};
use testudo_model::{EncryptionPolicySpec, Now, OutboundSaSpec, PeerId};

use crate::node::Node;

/// What peers have said of them.
#[derive(Default)]
pub(crate) struct Resources {
    taken: BTreeMap<PeerId, u32>,
}

impl Resources {
    /// Whether a peer now says that it takes so many, and did not before.
    fn news(&mut self, peer: &PeerId, takes: u32) -> bool {
        self.taken
            .insert(peer.clone(), takes)
            .is_some_and(|before| takes > before)
    }
}

/// How many children for CPUs a policy wants, and how many a peer may make.
pub(crate) fn wanted(policy: &EncryptionPolicySpec) -> u32 {
    policy.esp.per_cpu
}

/// Who sends on a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// All CPUs.
    All,
    /// One CPU.
    Cpu(u32),
    /// No CPU of this node: the peer alone.
    Nobody,
}

impl Sender {
    /// Of a child for a resource (0: for all), on a node where so many CPUs can have SAs of their own.
    pub(crate) fn of(resource: u32, cpus: u32) -> Sender {
        match resource.checked_sub(1) {
            None => Sender::All,
            Some(cpu) if cpu < cpus => Sender::Cpu(cpu),
            Some(_) => Sender::Nobody,
        }
    }

    /// Installs the half that seals, where there is somebody to send on it.
    pub(crate) fn install(
        self,
        datapath: &mut dyn Datapath,
        sa: OutboundSaSpec,
    ) -> Result<(), DatapathError> {
        match self {
            Sender::All => datapath.install_outbound(sa),
            Sender::Cpu(cpu) => datapath.install_outbound_for(cpu, sa),
            Sender::Nobody => Ok(()),
        }
    }
}

impl Node {
    /// A peer may have read of the policy after us and refused children meanwhile: it says when it
    /// takes them.
    pub(crate) fn update_resources(&mut self, now: Now) {
        self.resources
            .taken
            .retain(|peer, _| self.objects.node(peer.as_str()).is_some());
        let peers: Vec<PeerId> = self.peer_names().cloned().collect();
        for peer in peers {
            let takes = self
                .objects
                .node(peer.as_str())
                .map_or(0, |n| n.status.per_cpu);
            if self.resources.news(&peer, takes) && self.per_cpu() > 0 {
                self.core.engine.ask_again(&peer, now);
            }
        }
    }

    /// How many children for CPUs this node takes from each peer.
    pub(crate) fn per_cpu(&self) -> u32 {
        let policy = self.objects.policy.as_ref();
        policy.map_or(0, |policy| wanted(&policy.spec))
    }

    /// What there is to say of the datapath: why it is not the kernel's, and that it does not send on
    /// the children for CPUs.
    pub(crate) fn datapath_note(&self) -> Option<String> {
        let cpus = self
            .core
            .datapath
            .as_ref()
            .map(|datapath| (datapath.kind(), datapath.cpus()));
        let without = match cpus {
            Some((kind, 0)) if self.per_cpu() > 0 => Some(match kind {
                "kernel" => {
                    "this kernel has no SAs for single CPUs (Linux 6.13 has them): all CPUs send on one"
                }
                _ => "the userspace datapath has no SAs for single CPUs: all CPUs send on one",
            }),
            _ => None,
        };
        let notes: Vec<&str> = self.host.note().into_iter().chain(without).collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_numbered_from_one_and_cpus_from_zero() {
        assert_eq!(Sender::of(0, 0), Sender::All);
        assert_eq!(Sender::of(0, 8), Sender::All);
        assert_eq!(Sender::of(1, 2), Sender::Cpu(0));
        assert_eq!(Sender::of(2, 2), Sender::Cpu(1));
        assert_eq!(Sender::of(3, 2), Sender::Nobody);
        assert_eq!(Sender::of(1, 0), Sender::Nobody);
        assert_eq!(Sender::of(u32::MAX, 2), Sender::Nobody);
    }

    #[test]
    fn a_peer_is_asked_again_when_it_takes_more() {
        let mut resources = Resources::default();
        let peer = PeerId::new("n2").unwrap();
        assert!(!resources.news(&peer, 0), "nothing was refused yet");
        assert!(resources.news(&peer, 2));
        assert!(!resources.news(&peer, 2));
        assert!(!resources.news(&peer, 1));
        assert!(resources.news(&peer, 4));
    }
}
