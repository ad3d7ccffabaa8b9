//! The safe of a Kubernetes cluster: Secrets of the controller's namespace, a Lease, and what the API
//! server knows of nodes and of who asks.

mod events;
mod follow;
mod lease;
mod nodes;
mod secrets;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Client;
use kube::api::Api;
use testudo_crypto::SecretBytes;
use testudo_model::{CertificateRequest, NodeName};
use testudo_pki::Ca;
use testudo_store::Requester;
use testudo_store_kube::USAGES;
use tokio::sync::Notify;

use super::{Document, Fence, Gated, Members, Safe, SafeError, Sealed, Seen, Term, Version};
use crate::admission::{Rules, admit, agents};
use crate::news::News;
use crate::signer::Denial;

use events::Herald;
use follow::{Followed, Wish};
pub use lease::{KubeTerm, LEASE};
use nodes::Known;
pub use nodes::TAINT;

/// How long a call may take: with the time that a lead lasts without being renewed less than the Lease
/// stands.
const CALL: Duration = Duration::from_secs(4);
/// How long the first list of Nodes is waited for.
const FIRST: Duration = Duration::from_secs(15);

/// Where a controller's secrets are, and who its agents are.
#[derive(Clone, Debug)]
pub struct KubeSafeOptions {
    /// The namespace of the controller.
    pub namespace: String,
    /// The agents' ServiceAccount in that namespace.
    pub agent: String,
    /// Who we are among the controllers: the pod's name.
    pub me: String,
    /// Whether the start-up taint of nodes stays as it is: somebody else takes it off.
    pub keep_taint: bool,
    /// The Secret (`kubernetes.io/tls`) in that namespace with the CA to be used; none: the controller
    /// makes its own.
    pub given_ca: Option<String>,
}

/// Secrets, a Lease, Nodes. All clones are one safe.
#[derive(Clone)]
pub struct KubeSafe {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    options: KubeSafeOptions,
    herald: Herald,
    news: Arc<Notify>,
    /// Begun when there is a lead for the first time.
    watches: Mutex<Option<Arc<Watches>>>,
    fence: Mutex<Option<Fence>>,
}

/// What is followed.
struct Watches {
    nodes: Followed<Known>,
    documents: BTreeMap<Document, Followed<Version>>,
}

impl KubeSafe {
    /// That of the cluster that `client` speaks to. Must be made inside the runtime that it is used in.
    pub fn new(client: Client, options: KubeSafeOptions) -> Self {
        let herald = Herald::start(client.clone(), &options.namespace, &options.me);
        let inner = Inner {
            client,
            options,
            herald,
            news: Arc::default(),
            watches: Mutex::default(),
            fence: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.inner.client.clone(), &self.inner.options.namespace)
    }

    fn watches(&self) -> Arc<Watches> {
        let watches = self.inner.watches.lock();
        let mut watches = watches.unwrap_or_else(PoisonError::into_inner);
        let begun = watches.get_or_insert_with(|| Arc::new(self.watch()));
        Arc::clone(begun)
    }

    fn watch(&self) -> Watches {
        let news = || Arc::clone(&self.inner.news);
        let nodes = Wish {
            api: Api::all(self.inner.client.clone()),
            fields: None,
            what: "Nodes".to_owned(),
            keep: nodes::keep,
        };
        let known = [Document::Authority, Document::Register, Document::Given];
        let documents = known.into_iter().filter_map(|document| {
            let name = self.name(document)?;
            let wish = Wish {
                api: self.secrets(),
                fields: Some(format!("metadata.name={name}")),
                what: self.place(document),
                keep: secrets::version,
            };
            Some((document, Followed::start(wish, news())))
        });
        Watches {
            nodes: Followed::start(nodes, news()),
            documents: documents.collect(),
        }
    }

    /// The Secret of a document.
    fn name(&self, document: Document) -> Option<&str> {
        match document {
            Document::Authority => Some("testudo-ca"),
            Document::Register => Some("testudo-certificates"),
            Document::Given => self.inner.options.given_ca.as_deref(),
        }
    }

    /// The UID of the Node of this name now.
    async fn uid_of(&self, name: &str) -> anyhow::Result<Option<String>> {
        let api: Api<Node> = Api::all(self.inner.client.clone());
        let node = call(api.get_metadata_opt(name)).await?;
        Ok(node.and_then(|node| node.metadata.uid))
    }

    /// Whether we lead, for what is about to be written.
    fn may_write(&self) -> anyhow::Result<()> {
        let fence = self.inner.fence.lock();
        let fence = fence.unwrap_or_else(PoisonError::into_inner);
        let open = fence.as_ref().is_some_and(Fence::is_open);
        anyhow::ensure!(open, "the lead is lost: nothing is written");
        Ok(())
    }
}

impl Safe for KubeSafe {
    type Term = KubeTerm;

    async fn lead(&self) -> anyhow::Result<KubeTerm> {
        let term = KubeTerm::begin(self.inner.client.clone(), &self.inner.options).await?;
        let fence = self.inner.fence.lock();
        *fence.unwrap_or_else(PoisonError::into_inner) = Some(term.fence());
        self.watches();
        Ok(term)
    }

    async fn read(&self, document: Document) -> anyhow::Result<Option<Sealed>> {
        let name = self.name(document).context("there is no such document")?;
        let empty = match document {
            Document::Register => "RegisterUnusable",
            _ => "CaUnusable",
        };
        secrets::read(&self.secrets(), name, &self.place(document), empty).await
    }

    async fn replace(
        &self,
        document: Document,
        text: &SecretBytes,
        over: Option<&Version>,
    ) -> Result<Version, SafeError> {
        let name = self.name(document).context("there is no such document")?;
        let (secrets, place) = (self.secrets(), self.place(document));
        secrets::write(&secrets, name, &place, text, over, || self.may_write()).await
    }

    fn place(&self, document: Document) -> String {
        let namespace = &self.inner.options.namespace;
        format!("Secret {namespace}/{}", self.name(document).unwrap_or("-"))
    }

    async fn members(&self) -> anyhow::Result<Members> {
        let watches = self.watches();
        let began = Instant::now();
        loop {
            let look = watches.nodes.look(|nodes| {
                let uids = nodes
                    .iter()
                    .map(|(name, node)| (name.clone(), node.uid.clone()));
                uids.collect()
            });
            match look {
                Ok(nodes) => return Ok(Members::These(nodes)),
                Err(why) if began.elapsed() >= FIRST => anyhow::bail!(why),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Whoever removes a node removes its Node.
    async fn removed(&self) -> anyhow::Result<Vec<NodeName>> {
        Ok(Vec::new())
    }

    /// Without its Node it gets nothing.
    async fn expelled(&self, _node: &str) -> anyhow::Result<()> {
        Ok(())
    }

    async fn is_gone(&self, name: &str, uid: &str) -> anyhow::Result<bool> {
        Ok(self.uid_of(name).await?.as_deref() != Some(uid))
    }

    async fn changed(&self) {
        self.inner.news.notified().await;
    }

    fn seen(&self, document: Document) -> Seen {
        let watches = self.watches();
        let Some(followed) = watches.documents.get(&document) else {
            return Seen::Untold;
        };
        match followed.look(|secrets| secrets.values().next().cloned()) {
            Ok(Some(version)) => Seen::Version(version),
            Ok(None) => Seen::Gone,
            Err(_) => Seen::Untold,
        }
    }

    async fn given(&self) -> anyhow::Result<Option<Ca>> {
        let Some(name) = self.name(Document::Given) else {
            return Ok(None);
        };
        let place = self.place(Document::Given);
        secrets::given(&self.secrets(), name, &place)
            .await
            .map(Some)
    }

    fn gated(&self) -> Vec<Gated> {
        if self.inner.options.keep_taint {
            return Vec::new();
        }
        let look = self.watches().nodes.look(|nodes| {
            let tainted = nodes.iter().filter(|(_, node)| node.tainted);
            let gated = tainted.map(|(name, node)| Gated {
                name: name.clone(),
                uid: node.uid.clone(),
                boot: node.boot.clone(),
            });
            gated.collect()
        });
        look.unwrap_or_default()
    }

    async fn open_gate(&self, node: &Gated) -> anyhow::Result<()> {
        let client = self.inner.client.clone();
        nodes::untaint(client, &node.name, &node.uid, || self.may_write()).await
    }

    fn tell(&self, news: News) {
        self.inner.herald.tell(news);
    }

    fn untold(&self) -> u64 {
        self.inner.herald.dropped()
    }

    async fn authenticate(
        &self,
        request: &CertificateRequest,
        requester: &Requester,
    ) -> Result<(), Denial> {
        let Requester::Authenticated(who) = requester else {
            return Err(Denial::Stranger(
                "nobody has authenticated who asks".to_owned(),
            ));
        };
        let KubeSafeOptions {
            namespace, agent, ..
        } = &self.inner.options;
        let rules = Rules {
            agent: agents(namespace, agent),
            usages: USAGES.map(str::to_owned).to_vec(),
        };
        let node = self.uid_of(request.spec.node.as_str()).await;
        let node = node.map_err(|error| Denial::Unknown(format!("{error:#}")))?;
        admit(&rules, request, who, node.as_deref())
    }
}

/// Does a call, and no longer than [`CALL`].
async fn call<T>(call: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    Ok(testudo_store_kube::call(CALL, call).await?)
}

/// The API server's code, or 0.
fn code(error: &anyhow::Error) -> u16 {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.code,
        _ => 0,
    }
}
