//! What the store holds, as far as an agent cares, kept up to date by its watches.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use testudo_model::bundle::TrustBundleKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind};
use testudo_model::request::CertificateRequestKind;
use testudo_model::{
    CertificateRequest, EncryptionPolicy, Kind, NodeEncryption, NodeName, Object, TrustBundle,
};
use testudo_store::{Event, Problem, Store, StoreError, Watch};
use testudo_store_kube::NodePods;
use tokio::sync::mpsc;

use crate::memory::Kept;

/// The last good state of every object.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) policy: Option<EncryptionPolicy>,
    /// The policy's object is gone; the last one stays in force.
    pub(crate) policy_gone: bool,
    pub(crate) bundle: Option<TrustBundle>,
    /// In the order of their names.
    pub(crate) nodes: Vec<NodeEncryption>,
    pub(crate) request: Option<CertificateRequest>,
    /// The prefixes of this node's pods by its Node's word, or why that does not say; none before it is heard.
    pub(crate) pods: Option<Result<Vec<IpNet>, String>>,
    /// By file: what cannot be read.
    pub(crate) problems: BTreeMap<String, String>,
    /// By watch: why the store itself cannot be reached.
    pub(crate) away: BTreeMap<String, String>,
    unsynced: u8,
    /// What an earlier run left stands in for what the store has not told yet.
    stands_in: bool,
    told: FirstTold,
    weight: Weight,
}

/// What the watches have told before all of them had told what stood at their beginning.
#[derive(Debug, Default)]
struct FirstTold {
    policy: bool,
    nodes: BTreeSet<String>,
}

/// How much of what has changed would matter to a start without the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weight {
    #[default]
    Nothing,
    /// Statuses.
    Little,
    /// The policy and its phase, the CAs, who the nodes are.
    Much,
}

/// The watches that feed [`Objects`].
pub(crate) struct Watches {
    policies: Watch<EncryptionPolicyKind>,
    bundles: Watch<TrustBundleKind>,
    nodes: Watch<NodeEncryptionKind>,
    requests: Watch<CertificateRequestKind>,
    pods: Option<mpsc::Receiver<NodePods>>,
}

/// One event of any of the watches.
pub(crate) enum Told {
    Policy(Event<EncryptionPolicyKind>),
    Bundle(Event<TrustBundleKind>),
    Node(Event<NodeEncryptionKind>),
    Request(Event<CertificateRequestKind>),
    /// What this node's Node says of its pods.
    Pods(NodePods),
}

impl Watches {
    /// Begins. `pods`: what this node's Node says, where that counts.
    pub(crate) async fn start<S: Store>(
        store: &S,
        pods: Option<mpsc::Receiver<NodePods>>,
    ) -> Result<Watches, StoreError> {
        Ok(Watches {
            pods,
            policies: store.watch().await?,
            bundles: store.watch().await?,
            nodes: store.watch().await?,
            requests: store.watch().await?,
        })
    }

    /// The next event of any kind; none when the store has ended. Loses none when dropped.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        tokio::select! {
            event = self.policies.next() => event.map(Told::Policy),
            event = self.bundles.next() => event.map(Told::Bundle),
            event = self.nodes.next() => event.map(Told::Node),
            event = self.requests.next() => event.map(Told::Request),
            event = next(&mut self.pods) => event.map(Told::Pods),
        }
    }

    /// The next event that is there already.
    pub(crate) fn try_next(&mut self) -> Option<Told> {
        None.or_else(|| self.policies.try_next().map(Told::Policy))
            .or_else(|| self.bundles.try_next().map(Told::Bundle))
            .or_else(|| self.nodes.try_next().map(Told::Node))
            .or_else(|| self.requests.try_next().map(Told::Request))
            .or_else(|| self.pods.as_mut()?.try_recv().ok().map(Told::Pods))
    }
}

async fn next(pods: &mut Option<mpsc::Receiver<NodePods>>) -> Option<NodePods> {
    match pods {
        Some(pods) => pods.recv().await,
        None => std::future::pending().await,
    }
}

impl Objects {
    pub(crate) fn new() -> Objects {
        Objects {
            unsynced: 4,
            ..Objects::default()
        }
    }

    /// The same, whose node goes by its Node's word of its pods, which is waited for as well.
    pub(crate) fn awaiting_pods() -> Objects {
        Objects {
            unsynced: 5,
            ..Objects::default()
        }
    }

    /// Whether every watch has told what stood at its beginning: before that, a peer that was
    /// not told yet would look like one that is gone.
    pub(crate) fn is_synced(&self) -> bool {
        self.unsynced == 0
    }

    /// Whether there is something to go by: what the store tells, or what it told an earlier run.
    pub(crate) fn is_known(&self) -> bool {
        self.is_synced() || self.stands_in
    }

    /// Goes on with what an earlier run left, where the store has not told better.
    pub(crate) fn stand_in(&mut self, kept: Kept, own: &NodeName) {
        if self.is_synced() {
            return;
        }
        self.stands_in = true;
        if self.policy.is_none() {
            self.policy = kept.policy;
        }
        if self.bundle.is_none() {
            self.bundle = kept.bundle;
        }
        for mut node in kept.nodes {
            if node.name() == own.as_str() {
                node.status.acknowledged = kept.acknowledged;
            }
            if let Err(at) = self.place(node.name()) {
                self.nodes.insert(at, node);
            }
        }
    }

    /// What has changed since [`Objects::lighten`].
    pub(crate) fn weight(&self) -> Weight {
        self.weight
    }

    /// All that has changed is on disk.
    pub(crate) fn lighten(&mut self) {
        self.weight = Weight::Nothing;
    }

    fn weigh(&mut self, weight: Weight) {
        self.weight = self.weight.max(weight);
    }

    /// All watches have told what stood at their beginning: what stood in and is not there any more goes.
    fn synced(&mut self) {
        let told = std::mem::take(&mut self.told);
        if !std::mem::take(&mut self.stands_in) {
            return;
        }
        self.policy_gone |= self.policy.is_some() && !told.policy;
        self.nodes.retain(|node| told.nodes.contains(node.name()));
        self.weigh(Weight::Much);
    }

    /// The node of this name.
    pub(crate) fn node(&self, name: &str) -> Option<&NodeEncryption> {
        let at = self.place(name).ok()?;
        self.nodes.get(at)
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.name().cmp(name))
    }

    /// Takes an event in. `own` is this node's name: of the requests only its own counts.
    pub(crate) fn take(&mut self, told: Told, own: &NodeName) {
        match told {
            Told::Policy(event) => match self.common(event) {
                Some(Known::There(policy)) if policy.name() == CLUSTER => {
                    let step =
                        |policy: &EncryptionPolicy| (policy.status.phase, policy.status.rollout);
                    let same = self
                        .policy
                        .as_ref()
                        .is_some_and(|old| old.spec == policy.spec && step(old) == step(&policy));
                    self.weigh(if same { Weight::Little } else { Weight::Much });
                    self.told.policy = true;
                    self.policy = Some(policy);
                    self.policy_gone = false;
                }
                // An object that is gone must not open a node: `mode: Disabled` does.
                Some(Known::Gone(policy)) if policy.name() == CLUSTER => self.policy_gone = true,
                _ => {}
            },
            Told::Bundle(event) => match self.common(event) {
                Some(Known::There(bundle)) if bundle.name() == CLUSTER => {
                    // What the controller did last stands in its status.
                    let same = self.bundle.as_ref().is_some_and(|b| b.spec == bundle.spec);
                    self.weigh(if same { Weight::Little } else { Weight::Much });
                    self.bundle = Some(bundle);
                }
                // Without it nobody could be trusted: the last one stays.
                _ => {}
            },
            Told::Node(event) => match self.common(event) {
                Some(Known::There(node)) => {
                    if !self.is_synced() {
                        self.told.nodes.insert(node.name().to_owned());
                    }
                    match self.place(node.name()) {
                        Ok(at) => {
                            let same = self.nodes[at].spec == node.spec;
                            self.weigh(if same { Weight::Little } else { Weight::Much });
                            self.nodes[at] = node;
                        }
                        Err(at) => {
                            self.weigh(Weight::Much);
                            self.nodes.insert(at, node);
                        }
                    }
                }
                Some(Known::Gone(node)) => {
                    self.told.nodes.remove(node.name());
                    self.weigh(Weight::Much);
                    if let Ok(at) = self.place(node.name()) {
                        self.nodes.remove(at);
                    }
                }
                None => {}
            },
            Told::Request(event) => match self.common(event) {
                Some(Known::There(request)) if request.name() == own.as_str() => {
                    self.request = Some(request);
                }
                Some(Known::Gone(request)) if request.name() == own.as_str() => {
                    self.request = None;
                }
                _ => {}
            },
            Told::Pods(NodePods::Are(pods)) => {
                if self.pods.replace(pods).is_none() {
                    self.one_more_synced();
                }
            }
            Told::Pods(NodePods::Away(problem)) => {
                self.away.insert(file(&problem), problem.reason);
            }
            Told::Pods(NodePods::Back(problem)) => {
                self.away.remove(&file(&problem));
            }
        }
    }

    fn common<K: Kind>(&mut self, event: Event<K>) -> Option<Known<K>> {
        match event {
            Event::Added(object) | Event::Modified(object) => Some(Known::There(object)),
            Event::Deleted(object) => Some(Known::Gone(object)),
            // All watches lose a store that is away: that is said once, by whoever asks for `away`.
            Event::Problem(problem) if problem.is_of_the_store() => {
                self.away.insert(file(&problem), problem.reason);
                None
            }
            Event::Solved(problem) if problem.is_of_the_store() => {
                self.away.remove(&file(&problem));
                None
            }
            Event::Problem(problem) => {
                tracing::warn!("{problem}; the last good version stays in force");
                self.problems.insert(file(&problem), problem.to_string());
                None
            }
            Event::Solved(problem) => {
                self.problems.remove(&file(&problem));
                None
            }
            Event::Synced => {
                self.one_more_synced();
                None
            }
        }
    }

    fn one_more_synced(&mut self) {
        self.unsynced = self.unsynced.saturating_sub(1);
        if self.unsynced == 0 {
            self.synced();
        }
    }
}

fn file(problem: &Problem) -> String {
    problem.file.display().to_string()
}

enum Known<K: Kind> {
    There(Object<K>),
    Gone(Object<K>),
}
