//! What the lab's store says about the cluster.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind, Mode, OverlayType};
use testudo_model::{
    Condition, ConditionStatus, EncryptionPolicy, EncryptionPolicySpec, NodeName, Phase,
    node::NodeEncryptionKind, policy,
};
use testudo_store::{DirStore, Store, tokens};
use testudo_store_kube::{AnyStore, Writer};

use crate::lab::Lab;
use crate::lifecycle::{Progress, tail};
use crate::spec::{Datapath, Overlay};

/// How long agents have to write their first word.
const FIRST_WORD: Duration = Duration::from_secs(90);

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
    /// What is wrong with the node, in its own words.
    pub degraded: Option<String>,
    /// What its paths carry at least, bytes; none while nothing is sealed.
    pub effective_mtu: Option<u32>,
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

    /// Tunnels that stand and that should stand, over all nodes.
    pub fn tunnels(&self) -> (u32, u32) {
        self.nodes.values().fold((0, 0), |(up, expected), node| {
            (up + node.tunnels_up, expected + node.tunnels_expected)
        })
    }
}

impl Lab {
    /// Reads the store.
    pub fn cluster(&self) -> Result<Cluster> {
        let store = AnyStore::open_read_only(&self.location(), Writer::Cli)?;
        block_on(async {
            let policy = store.get::<EncryptionPolicyKind>(CLUSTER).await?;
            let nodes = store.list::<NodeEncryptionKind>().await?;
            let mut cluster = Cluster::default();
            if let Some(policy) = policy {
                cluster.phase = policy.status.phase;
                cluster.target = policy.status.target;
                cluster.policy = policy.spec;
            }
            for node in nodes.items {
                let view = NodeView {
                    effective_mtu: node.status.effective_mtu,
                    tunnels_up: node.status.tunnels_up,
                    tunnels_expected: node.status.tunnels_expected,
                    degraded: degraded(&node.status.conditions),
                    datapath: node.spec.datapath,
                };
                cluster.nodes.insert(node.metadata.name, view);
            }
            Ok(cluster)
        })
    }

    /// A policy that says what the lab is like and asks for nothing, and a join token a node.
    pub(crate) fn fill_store(&self) -> Result<()> {
        let store = DirStore::open(self.store_dir())?;
        for node in &self.layout().nodes {
            self.give_token(&node.name)?;
        }
        block_on(self.fill(&store))
    }

    /// A join token for a node, and the node's own copy: only who holds it can ask for this node's name.
    pub(crate) fn give_token(&self, node: &str) -> Result<()> {
        let store = DirStore::open(self.store_dir())?;
        let token = tokens::ensure(&store, &NodeName::new(node)?)?;
        crate::place::write_atomic(&self.join_token(node), token.to_hex().as_bytes())
    }

    /// The policy.
    pub(crate) async fn fill<S: Store>(&self, store: &S) -> Result<()> {
        let mut spec = EncryptionPolicySpec {
            mode: Mode::Disabled,
            ..Default::default()
        };
        spec.overlay = policy::Overlay {
            kind: match self.spec().overlay {
                Overlay::Vxlan => OverlayType::Vxlan,
                Overlay::Geneve | Overlay::Ovn => OverlayType::Geneve,
                Overlay::Routed => OverlayType::Routed,
            },
            port: None,
            pod_cidrs: match self.spec().overlay {
                Overlay::Routed => self.layout().cluster_cidrs.clone(),
                _ => Vec::new(),
            },
        };
        let mut policy = EncryptionPolicy::new(CLUSTER, spec);
        if self.server().is_some() {
            let label = (crate::kube::LABEL.to_owned(), self.name().to_owned());
            policy.metadata.labels.extend([label]);
        }
        store.apply(policy).await?;
        Ok(())
    }

    /// A datapath that was asked for by name is there.
    fn check_datapaths(&self, cluster: &Cluster) -> Result<()> {
        for (node, view) in &cluster.nodes {
            let wanted = self.spec().datapath_of(node);
            if let (Datapath::Kernel, Some(text)) = (wanted, &view.degraded) {
                bail!("node {node}: {text}; or choose --datapath user");
            }
        }
        Ok(())
    }

    /// Waits until every agent has written what its node is.
    pub(crate) fn wait_for_agents(&self, progress: Progress<'_>) -> Result<()> {
        let start = Instant::now();
        let mut told = start;
        loop {
            let cluster = self.cluster()?;
            let silent: Vec<_> = self
                .layout()
                .nodes
                .iter()
                .filter(|node| !cluster.nodes.contains_key(&node.name))
                .map(|node| node.name.as_str())
                .collect();
            let Some(first) = silent.first() else {
                return self.check_datapaths(&cluster);
            };
            if start.elapsed() >= FIRST_WORD {
                bail!(
                    "no word from the agents of {} after {} s; log of {first}: {}",
                    silent.join(", "),
                    FIRST_WORD.as_secs(),
                    tail(&self.log_path(first))
                );
            }
            if told.elapsed() >= Duration::from_secs(2) {
                told = Instant::now();
                progress(&format!("waiting for the agents of {}", silent.join(", ")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn degraded(conditions: &[Condition]) -> Option<String> {
    let found = conditions.iter().find(|condition| {
        condition.kind == "Degraded" && condition.status == ConditionStatus::True
    });
    found.map(|condition| condition.message.clone())
}

/// Runs a short piece of asynchronous work to its end, also when the caller is inside a runtime.
pub(crate) fn block_on<T: Send>(work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let run = || -> Result<T> {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start a runtime")?
                .block_on(work)
        };
        match scope.spawn(run).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
