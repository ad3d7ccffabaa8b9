//! What the lab's store says about the cluster.

use std::collections::BTreeMap;

use anyhow::Result;
use testudo_model::{EncryptionPolicySpec, Phase};

use crate::lab::Lab;

/// The store's view at one moment.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// The phase in force; `Disabled` without a policy.
    pub phase: Phase,
    /// Where the roll-out goes.
    pub target: Phase,
    /// What is wanted.
    pub policy: EncryptionPolicySpec,
    /// What each node last said, by name.
    pub nodes: BTreeMap<String, NodeView>,
}

/// What a node last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// `user` or `kernel`.
    pub datapath: String,
    /// Tunnels that stand.
    pub tunnels_up: u32,
    /// Tunnels that should stand.
    pub tunnels_expected: u32,
}

impl Cluster {
    /// The datapath of a node; the only one there is until its agent has spoken.
    pub fn datapath(&self, node: &str) -> String {
        self.nodes
            .get(node)
            .map_or_else(|| "user".to_owned(), |view| view.datapath.clone())
    }
}

impl Lab {
    /// Reads the store.
    pub fn cluster(&self) -> Result<Cluster> {
        Ok(Cluster::default())
    }
}
