//! What the store holds, as far as an agent cares, kept up to date by its watches.

use std::collections::BTreeMap;

use testudo_model::bundle::TrustBundleKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind};
use testudo_model::request::CertificateRequestKind;
use testudo_model::{
    CertificateRequest, EncryptionPolicy, Kind, NodeEncryption, NodeName, Object, TrustBundle,
};
use testudo_store::{Event, Problem, Store, StoreError, Watch};

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
    /// By file: what cannot be read.
    pub(crate) problems: BTreeMap<String, String>,
    unsynced: u8,
}

/// The watches that feed [`Objects`].
pub(crate) struct Watches {
    policies: Watch<EncryptionPolicyKind>,
    bundles: Watch<TrustBundleKind>,
    nodes: Watch<NodeEncryptionKind>,
    requests: Watch<CertificateRequestKind>,
}

/// One event of any of the watches.
pub(crate) enum Told {
    Policy(Event<EncryptionPolicyKind>),
    Bundle(Event<TrustBundleKind>),
    Node(Event<NodeEncryptionKind>),
    Request(Event<CertificateRequestKind>),
}

impl Watches {
    pub(crate) async fn start<S: Store>(store: &S) -> Result<Watches, StoreError> {
        Ok(Watches {
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
        }
    }

    /// The next event that is there already.
    pub(crate) fn try_next(&mut self) -> Option<Told> {
        None.or_else(|| self.policies.try_next().map(Told::Policy))
            .or_else(|| self.bundles.try_next().map(Told::Bundle))
            .or_else(|| self.nodes.try_next().map(Told::Node))
            .or_else(|| self.requests.try_next().map(Told::Request))
    }
}

impl Objects {
    pub(crate) fn new() -> Objects {
        Objects {
            unsynced: 4,
            ..Objects::default()
        }
    }

    /// Whether every watch has told what stood at its beginning: before that, a peer that was
    /// not told yet would look like one that is gone.
    pub(crate) fn is_synced(&self) -> bool {
        self.unsynced == 0
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
                    self.policy = Some(policy);
                    self.policy_gone = false;
                }
                // An object that is gone must not open a node: `mode: Disabled` does.
                Some(Known::Gone(policy)) if policy.name() == CLUSTER => self.policy_gone = true,
                _ => {}
            },
            Told::Bundle(event) => match self.common(event) {
                Some(Known::There(bundle)) if bundle.name() == CLUSTER => {
                    self.bundle = Some(bundle);
                }
                // Without it nobody could be trusted: the last one stays.
                _ => {}
            },
            Told::Node(event) => match self.common(event) {
                Some(Known::There(node)) => match self.place(node.name()) {
                    Ok(at) => self.nodes[at] = node,
                    Err(at) => self.nodes.insert(at, node),
                },
                Some(Known::Gone(node)) => {
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
        }
    }

    fn common<K: Kind>(&mut self, event: Event<K>) -> Option<Known<K>> {
        let file = |problem: &Problem| problem.file.display().to_string();
        match event {
            Event::Added(object) | Event::Modified(object) => Some(Known::There(object)),
            Event::Deleted(object) => Some(Known::Gone(object)),
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
                self.unsynced = self.unsynced.saturating_sub(1);
                None
            }
        }
    }
}

enum Known<K: Kind> {
    There(Object<K>),
    Gone(Object<K>),
}
