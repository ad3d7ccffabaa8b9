//! Calls of the API: objects made, looked at and removed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use serde_json::{Value, json};
use testudo_model::Kind;
use testudo_model::bundle::TrustBundleKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind};
use testudo_store::{Store, StoreError};
use testudo_store_kube::{KubeOptions, KubeStore, SIGNER, Writer, crd};

use crate::lab::Lab;

use super::access::Credentials;
use super::{LABEL, NAMESPACE};

/// The field manager of what a lab makes.
const MANAGER: &str = "testudo-lab";
/// A token is valid for so long, seconds.
const LIFETIME: u64 = 3600;
/// How long the API server may take to go by a new CRD, or to empty a namespace.
const PATIENCE: Duration = Duration::from_secs(60);

/// Group, version, kind, plural.
const NODE: Known = ("", "v1", "Node", "nodes");
const NAMESPACES: Known = ("", "v1", "Namespace", "namespaces");
const RBAC: &str = "rbac.authorization.k8s.io";
const CLUSTER_ROLE: Known = (RBAC, "v1", "ClusterRole", "clusterroles");
const ROLE: Known = (RBAC, "v1", "Role", "roles");
const ROLE_BINDING: Known = (RBAC, "v1", "RoleBinding", "rolebindings");
const BINDING: Known = (
    "rbac.authorization.k8s.io",
    "v1",
    "ClusterRoleBinding",
    "clusterrolebindings",
);
const CRD: Known = (
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
);
const REQUEST: Known = (
    "certificates.k8s.io",
    "v1",
    "CertificateSigningRequest",
    "certificatesigningrequests",
);
const ACCOUNT: Known = ("", "v1", "ServiceAccount", "serviceaccounts");

type Known = (&'static str, &'static str, &'static str, &'static str);

/// An API server, by the lab's own kubeconfig.
pub(super) struct Api {
    client: Client,
    store: KubeStore,
}

impl Api {
    /// One that answers.
    pub(super) async fn open(lab: &Lab) -> Result<Self> {
        let testudo_store::Location::Kubernetes(at) = super::location(lab) else {
            bail!("a lab of an API server is there");
        };
        let store = KubeStore::new(KubeOptions {
            at,
            writer: Writer::Cli,
        });
        // The first call says in one line what is wrong with the way there.
        store.whoami().await?;
        let client = store.client().await?;
        Ok(Self { client, store })
    }

    fn of(&self, known: Known) -> kube::Api<DynamicObject> {
        kube::Api::all_with(self.client.clone(), &resource(known))
    }

    /// Nothing of what a lab makes is there of somebody else.
    pub(super) async fn check_ours(&self, lab: &Lab) -> Result<()> {
        let server = lab.server().unwrap_or_default();
        let ours = |labels: Option<&BTreeMap<String, String>>| {
            labels
                .and_then(|labels| labels.get(LABEL))
                .map(String::as_str)
                == Some(lab.name())
        };
        let mut wanted = vec![(NAMESPACES, NAMESPACE)];
        wanted.extend(
            lab.layout()
                .nodes
                .iter()
                .map(|node| (NODE, node.name.as_str())),
        );
        for (known, name) in wanted {
            let found = self.of(known).get_metadata_opt(name).await;
            let found = found.with_context(|| format!("look for {} {name}", known.2))?;
            if let Some(object) = found {
                ensure!(
                    ours(object.metadata.labels.as_ref()),
                    "{} {name} of {server} is not of a lab {:?}: there is a Testudo, another lab or \
                     a real node; give the lab an API server of its own (cargo xtask kube up)",
                    known.2,
                    lab.name()
                );
            }
        }
        match self.store.get::<EncryptionPolicyKind>(CLUSTER).await {
            Ok(Some(policy)) => ensure!(
                ours(Some(&policy.metadata.labels)),
                "{server} has an EncryptionPolicy already: there is a Testudo, or another lab"
            ),
            // Without the CRDs there is none.
            Ok(None) | Err(StoreError::Unavailable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Installs the CRDs of this build and waits until the API server goes by them.
    /// What somebody else has installed is left as it is.
    pub(super) async fn define(&self, lab: &str) -> Result<()> {
        let api = self.of(CRD);
        for mut definition in crd::all() {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default();
            let name = name.to_owned();
            let there = api.get_metadata_opt(&name).await;
            if there.with_context(|| name.clone())?.is_none() {
                definition["metadata"]["labels"][LABEL] = json!(lab);
                self.apply(&definition).await?;
            }
            let start = Instant::now();
            loop {
                let raw = api.get(&name).await.with_context(|| name.clone())?;
                if holds(&raw, "Established") {
                    break;
                }
                ensure!(start.elapsed() < PATIENCE, "{name} is not established");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Makes an object what the manifest says; its UID.
    pub(super) async fn apply(&self, manifest: &Value) -> Result<String> {
        let text = |at: &str| {
            manifest
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: text("/apiVersion").to_owned(),
            kind: kind.to_owned(),
            plural: format!("{}s", kind.to_ascii_lowercase()),
        };
        let api: kube::Api<DynamicObject> = match text("/metadata/namespace") {
            "" => kube::Api::all_with(self.client.clone(), &resource),
            namespace => kube::Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let params = PatchParams::apply(MANAGER).force();
        let made = api.patch(name, &params, &Patch::Apply(manifest)).await;
        let made = made.with_context(|| format!("make {kind} {name}"))?;
        Ok(made.metadata.uid.unwrap_or_default())
    }

    /// Gets a token and keeps it.
    pub(super) async fn renew(&self, lab: &Lab, credentials: &Credentials) -> Result<()> {
        let api: kube::Api<DynamicObject> =
            kube::Api::namespaced_with(self.client.clone(), NAMESPACE, &resource(ACCOUNT));
        let request = credentials.request(LIFETIME);
        let account = credentials.account;
        let params = PostParams::default();
        let answer: Value = api
            .create_subresource("token", account, &params, &request)
            .await
            .with_context(|| format!("ask for a token of {account}"))?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        let token = token.with_context(|| format!("no token of {account}"))?;
        credentials.keep(lab, token)
    }

    /// The UIDs of the lab's Nodes, by name.
    pub(super) async fn nodes(&self, lab: &str) -> Result<BTreeMap<String, String>> {
        let params = ListParams::default().labels(&format!("{LABEL}={lab}"));
        let listed = self.of(NODE).list_metadata(&params).await;
        let nodes = listed.context("list the Nodes")?.items.into_iter();
        let named = nodes.filter_map(|node| Some((node.metadata.name?, node.metadata.uid?)));
        Ok(named.collect())
    }

    /// Removes a Node.
    pub(super) async fn delete_node(&self, name: &str) -> Result<()> {
        gone(self.of(NODE).delete(name, &DeleteParams::default()).await)
            .with_context(|| format!("delete Node {name}"))
    }

    /// Removes all that labs of this name have made.
    pub(super) async fn remove(&self, lab: &Lab) -> Result<()> {
        let labelled = ListParams::default().labels(&format!("{LABEL}={}", lab.name()));
        let mut nodes = self.nodes(lab.name()).await?;
        let own = lab.layout().nodes.iter();
        nodes.extend(own.map(|node| (node.name.clone(), String::new())));
        // First what the daemons wrote: they do not run any more.
        for name in nodes.keys() {
            self.delete::<NodeEncryptionKind>(name).await?;
        }
        self.delete::<TrustBundleKind>(CLUSTER).await?;
        self.delete::<EncryptionPolicyKind>(CLUSTER).await?;
        let params = DeleteParams::default();
        // Also of nodes that went before.
        let requests = ListParams::default().fields(&format!("spec.signerName={SIGNER}"));
        gone(self.of(REQUEST).delete_collection(&params, &requests).await)
            .context("delete the certificate requests")?;
        // Those in the lab's namespace go with that.
        let elsewhere = |known| -> kube::Api<DynamicObject> {
            kube::Api::namespaced_with(self.client.clone(), "default", &resource(known))
        };
        for known in [ROLE_BINDING, ROLE] {
            gone(elsewhere(known).delete_collection(&params, &labelled).await)
                .with_context(|| format!("delete {}s", known.2))?;
        }
        for known in [NODE, BINDING, CLUSTER_ROLE] {
            gone(self.of(known).delete_collection(&params, &labelled).await)
                .with_context(|| format!("delete {}s", known.2))?;
        }
        self.clear(NAMESPACES, &labelled).await?;
        self.remove_definitions(&labelled).await
    }

    async fn delete<K: Kind>(&self, name: &str) -> Result<()> {
        match self.store.delete::<K>(name).await {
            Ok(_) => Ok(()),
            // No CRD, no object.
            Err(StoreError::Unavailable { what, .. }) if what.contains(" knows no ") => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes what carries the label and waits until it is gone: what is emptied first stays a while.
    async fn clear(&self, known: Known, labelled: &ListParams) -> Result<()> {
        let api = self.of(known);
        let start = Instant::now();
        loop {
            let found = api.list_metadata(labelled).await;
            let found = found.with_context(|| format!("list {}", known.3))?.items;
            let Some(first) = found.first().and_then(|first| first.metadata.name.clone()) else {
                return Ok(());
            };
            ensure!(
                start.elapsed() < PATIENCE,
                "{} {first} is not gone after {} s",
                known.2,
                PATIENCE.as_secs()
            );
            let stand = found
                .into_iter()
                .filter(|one| one.metadata.deletion_timestamp.is_none());
            for name in stand.filter_map(|one| one.metadata.name) {
                gone(api.delete(&name, &DeleteParams::default()).await)
                    .with_context(|| format!("delete {} {name}", known.2))?;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// CRDs that a lab has made go with the last object.
    async fn remove_definitions(&self, labelled: &ListParams) -> Result<()> {
        let empty = self.is_empty::<EncryptionPolicyKind>().await?
            && self.is_empty::<NodeEncryptionKind>().await?
            && self.is_empty::<TrustBundleKind>().await?;
        match empty {
            true => self.clear(CRD, labelled).await,
            false => Ok(()),
        }
    }

    async fn is_empty<K: Kind>(&self) -> Result<bool> {
        match self.store.list::<K>().await {
            Ok(listed) => Ok(listed.items.is_empty() && listed.problems.is_empty()),
            Err(StoreError::Unavailable { what, .. }) if what.contains(" knows no ") => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn resource((group, version, kind, plural): Known) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        },
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// What is gone already is removed.
fn gone<T>(done: kube::Result<T>) -> kube::Result<()> {
    match done {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

fn holds(raw: &DynamicObject, kind: &str) -> bool {
    let conditions = raw.data.pointer("/status/conditions");
    let conditions = conditions.and_then(Value::as_array);
    conditions.is_some_and(|all| {
        all.iter()
            .any(|condition| condition["type"] == kind && condition["status"] == "True")
    })
}
