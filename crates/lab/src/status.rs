//! What a lab is like now, for other programs.

use serde::Serialize;
use testudo_model::Phase;

use crate::lab::Lab;
use crate::layout::INTERFACE;

/// `testudo lab status -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabStatus {
    /// The lab's name.
    pub name: String,
    /// The phase of the roll-out.
    pub phase: Phase,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// The controller's process; none while it is not running.
    pub controller_pid: Option<i32>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its namespace: for `ip netns exec` as root, else a path for `nsenter --net=`.
    pub netns: String,
    /// The link to the underlay.
    pub interface: String,
    /// Its address there; the overlay tunnel's where there are two.
    pub address: String,
    /// The agent's process; none while it is not running.
    pub agent_pid: Option<i32>,
    /// `user` or `kernel`.
    pub datapath: String,
    /// Its pods.
    pub pods: Vec<PodStatus>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodStatus {
    /// Its name.
    pub name: String,
    /// Its namespace, as the node's.
    pub netns: String,
    /// Its first address.
    pub address: String,
}

impl Lab {
    /// What the lab is like now: processes as they run, the phase as the store has it.
    pub fn status(&self) -> anyhow::Result<LabStatus> {
        let cluster = self.cluster()?;
        let nodes = self.layout().nodes.iter().map(|node| NodeStatus {
            name: node.name.clone(),
            netns: self.netns_for_others(&node.netns),
            interface: INTERFACE.to_owned(),
            address: node.primary().to_string(),
            agent_pid: self.agent_process(&node.name).map(|process| process.pid),
            datapath: cluster.datapath(&node.name),
            pods: node
                .pods
                .iter()
                .map(|pod| PodStatus {
                    name: pod.name.clone(),
                    netns: self.netns_for_others(&pod.netns),
                    address: pod.addresses[0].to_string(),
                })
                .collect(),
        });
        Ok(LabStatus {
            name: self.name().to_owned(),
            phase: cluster.phase,
            nodes: nodes.collect(),
            controller_pid: self.controller_process().map(|process| process.pid),
        })
    }
}
