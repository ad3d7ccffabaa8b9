//! The safe of a Kubernetes cluster: Secrets of the controller's namespace, a Lease, and what the API
//! server knows of nodes and of who asks.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use serde_json::json;
use testudo_crypto::{Random, SecretBytes, SystemRandom};
use testudo_model::{CertificateRequest, NodeName, UnixTime};
use testudo_pki::hex;
use testudo_store::Requester;
use testudo_store_kube::USAGES;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Document, Members, Safe, SafeError, Sealed, Term, Version};
use crate::admission::{Rules, admit};
use crate::election::{Action, Election, Record, Settings};
use crate::run::seconds;
use crate::signer::Denial;

/// Name of the Lease.
pub const LEASE: &str = "testudo-controller";
/// The key in a Secret.
const KEY: &str = "document";
/// A Secret of the API server takes a megabyte.
const MOST: usize = 1 << 20;
/// Nodes are listed this often.
const LIST: Duration = Duration::from_secs(10);
/// How many nodes come in one answer.
const PAGE: u32 = 500;
/// How long a call may take: with [`Settings::renew`] less than the Lease stands.
const CALL: Duration = Duration::from_secs(4);

/// Where a controller's secrets are, and who its agents are.
#[derive(Clone, Debug)]
pub struct KubeSafeOptions {
    /// The namespace of the controller.
    pub namespace: String,
    /// The agents' ServiceAccount in that namespace.
    pub agent: String,
    /// Who we are among the controllers: the pod's name.
    pub me: String,
}

/// Secrets, a Lease, Nodes.
pub struct KubeSafe {
    client: Client,
    options: KubeSafeOptions,
    nodes: Mutex<Option<(Instant, BTreeMap<String, String>)>>,
}

impl KubeSafe {
    /// That of the cluster that `client` speaks to.
    pub fn new(client: Client, options: KubeSafeOptions) -> Self {
        Self {
            client,
            options,
            nodes: Mutex::default(),
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    fn all_nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// The UID of the Node of this name now.
    async fn uid_of(&self, name: &str) -> anyhow::Result<Option<String>> {
        let api = self.all_nodes();
        let node = call(api.get_metadata_opt(name)).await?;
        Ok(node.and_then(|node| node.metadata.uid))
    }

    async fn list(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut nodes = BTreeMap::new();
        let mut page = ListParams::default().limit(PAGE);
        let api = self.all_nodes();
        loop {
            let listed = call(api.list_metadata(&page)).await?;
            let named = listed.items.into_iter().filter_map(|node| {
                let metadata = node.metadata;
                Some((metadata.name?, metadata.uid?))
            });
            nodes.extend(named);
            match listed.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(more) => page = page.continue_token(&more),
                None => return Ok(nodes),
            }
        }
    }

    async fn write(
        &self,
        document: Document,
        text: &SecretBytes,
        over: Option<&Version>,
    ) -> Result<Version, SafeError> {
        let place = self.place(document);
        if text.as_bytes().len() > MOST {
            let length = text.as_bytes().len();
            return Err(anyhow::anyhow!("{place} would take {length} bytes of {MOST}").into());
        }
        let mut secret = Secret {
            type_: Some("testudo.dev/safe".to_owned()),
            data: Some(BTreeMap::from([(
                KEY.to_owned(),
                ByteString(text.as_bytes().to_vec()),
            )])),
            ..Secret::default()
        };
        secret.metadata.name = Some(name(document).to_owned());
        let api = self.secrets();
        let params = PostParams::default();
        let written = match over {
            None => call(api.create(&params, &secret)).await,
            Some(version) => {
                secret.metadata.resource_version = Some(version.0.clone());
                call(api.replace(name(document), &params, &secret)).await
            }
        };
        match written {
            Ok(written) => {
                let version = written.metadata.resource_version;
                Ok(Version(version.context("a Secret without a version")?))
            }
            // Also where it is gone: a Secret that is made in its place is another one.
            Err(error) if [404, 409].contains(&code(&error)) => Err(SafeError::Changed(place)),
            Err(error) => Err(error.context(place).into()),
        }
    }
}

impl Safe for KubeSafe {
    type Term = KubeTerm;

    async fn lead(&self) -> anyhow::Result<KubeTerm> {
        KubeTerm::begin(self.client.clone(), &self.options).await
    }

    async fn read(&self, document: Document) -> anyhow::Result<Option<Sealed>> {
        let place = self.place(document);
        let read = call(self.secrets().get_opt(name(document))).await;
        let Some(secret) = read.with_context(|| place.clone())? else {
            return Ok(None);
        };
        let version = secret.metadata.resource_version;
        let version = Version(version.context("a Secret without a version")?);
        let text = secret.data.and_then(|mut data| data.remove(KEY));
        let text = text.with_context(|| format!("{place} has no {KEY}: restore it"))?;
        Ok(Some(Sealed {
            text: SecretBytes::new(text.0),
            version,
        }))
    }

    async fn replace(
        &self,
        document: Document,
        text: &SecretBytes,
        over: Option<&Version>,
    ) -> Result<Version, SafeError> {
        self.write(document, text, over).await
    }

    fn place(&self, document: Document) -> String {
        format!("Secret {}/{}", self.options.namespace, name(document))
    }

    async fn members(&self) -> anyhow::Result<Members> {
        let cached = || {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            let (at, nodes) = nodes.as_ref()?;
            (at.elapsed() < LIST).then(|| nodes.clone())
        };
        if let Some(nodes) = cached() {
            return Ok(Members::These(nodes));
        }
        let nodes = self.list().await.context("the Nodes cannot be listed")?;
        let mut kept = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some((Instant::now(), nodes.clone()));
        Ok(Members::These(nodes))
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
        let now = self.uid_of(name).await?;
        let mut kept = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some((_, nodes)), Some(uid)) = (kept.as_mut(), &now) {
            nodes.insert(name.to_owned(), uid.clone());
        }
        Ok(now.as_deref() != Some(uid))
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
        } = &self.options;
        let rules = Rules {
            agent: format!("system:serviceaccount:{namespace}:{agent}"),
            usages: USAGES.map(str::to_owned).to_vec(),
        };
        let node = self.uid_of(request.spec.node.as_str()).await;
        let node = node.map_err(|error| Denial::Unknown(format!("{error:#}")))?;
        admit(&rules, request, who, node.as_deref())
    }
}

fn name(document: Document) -> &'static str {
    match document {
        Document::Authority => "testudo-ca",
        Document::Register => "testudo-certificates",
    }
}

/// Does a call, and no longer than [`CALL`].
async fn call<T>(call: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(CALL, call).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => anyhow::bail!("no answer within {} s", CALL.as_secs()),
    }
}

/// The API server's code, or 0.
fn code(error: &anyhow::Error) -> u16 {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.code,
        _ => 0,
    }
}

/// The Lease that is held, and the task that renews it.
pub struct KubeTerm {
    shared: Arc<Mutex<Election>>,
    began: Instant,
    lost: watch::Receiver<Option<String>>,
    lease: Lease,
    task: tokio::task::JoinHandle<()>,
}

impl KubeTerm {
    async fn begin(client: Client, options: &KubeSafeOptions) -> anyhow::Result<Self> {
        let mut salt = [0; 4];
        SystemRandom::new().fill(&mut salt);
        let lease = Lease {
            api: Api::namespaced_with(client, &options.namespace, &resource()),
            me: format!("{}_{}", options.me, hex(&salt)),
        };
        let began = Instant::now();
        let mut election = Election::new(lease.me.as_str(), Settings::default());
        let mut told = String::new();
        loop {
            let text = match lease.turn(&mut election, began).await {
                Ok(_) if election.is_held(began.elapsed()) => break,
                Ok(_) => format!("{} leads", election.holder().unwrap_or("nobody")),
                Err(error) => format!("the Lease {LEASE} cannot be had: {error:#}"),
            };
            if text != told {
                info!("waiting for the lead: {text}");
                told = text;
            }
            tokio::time::sleep(wait(&election, began)).await;
        }
        info!(me = %lease.me, "leading");
        let shared = Arc::new(Mutex::new(election));
        let (sender, lost) = watch::channel(None);
        let task = tokio::spawn(renew(lease.clone(), shared.clone(), began, sender));
        Ok(Self {
            shared,
            began,
            lost,
            lease,
            task,
        })
    }
}

impl Term for KubeTerm {
    fn is_held(&self) -> bool {
        let election = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        election.is_held(self.began.elapsed())
    }

    async fn lost(&mut self) -> String {
        loop {
            if let Some(why) = self.lost.borrow_and_update().clone() {
                return why;
            }
            if self.lost.changed().await.is_err() {
                return "nobody renews it".to_owned();
            }
        }
    }

    async fn resign(self) {
        self.task.abort();
        if self.is_held()
            && let Err(error) = self.lease.release().await
        {
            warn!("the Lease {LEASE} is left to run out: {error:#}");
        }
    }
}

/// Renews until the lead is lost. That it is lost is told in time, also while a call hangs.
async fn renew(
    lease: Lease,
    shared: Arc<Mutex<Election>>,
    began: Instant,
    lost: watch::Sender<Option<String>>,
) {
    let lock = || {
        shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    };
    loop {
        let mut election = lock();
        let now = began.elapsed();
        if let Action::Lost(why) = election.next(now) {
            let _ = lost.send(Some(why));
            return;
        }
        let left = election.until().unwrap_or(now).saturating_sub(now);
        let turn = tokio::time::timeout(left, lease.turn(&mut election, began)).await;
        if let Ok(Err(error)) = &turn {
            warn!("the Lease {LEASE} is not renewed: {error:#}");
        }
        if turn.is_ok() {
            *shared.lock().unwrap_or_else(PoisonError::into_inner) = election.clone();
        }
        let left = election
            .until()
            .unwrap_or(now)
            .saturating_sub(began.elapsed());
        tokio::time::sleep(wait(&election, began).min(left)).await;
    }
}

/// How long until the next turn.
fn wait(election: &Election, began: Instant) -> Duration {
    match election.next(began.elapsed()) {
        Action::Wait(time) => time.max(Duration::from_millis(50)),
        Action::Write { .. } => Duration::from_millis(50),
        Action::Lost(_) => Duration::ZERO,
    }
}

/// The Lease in the API.
#[derive(Clone)]
struct Lease {
    api: Api<DynamicObject>,
    me: String,
}

impl Lease {
    /// Reads it and writes it if that is to be done.
    async fn turn(&self, election: &mut Election, began: Instant) -> anyhow::Result<()> {
        let now = began.elapsed();
        let read = match call(self.api.get_opt(LEASE)).await {
            Ok(read) => read,
            Err(error) => {
                election.failed(now);
                return Err(error);
            }
        };
        election.read(read.as_ref().map(record), began.elapsed());
        let now = began.elapsed();
        let Action::Write { transitions } = election.next(now) else {
            return Ok(());
        };
        let object = self.object(read.as_ref(), &self.me, transitions)?;
        let params = PostParams::default();
        let written = match &read {
            None => call(self.api.create(&params, &object)).await,
            Some(_) => call(self.api.replace(LEASE, &params, &object)).await,
        };
        match written {
            Ok(written) => election.wrote(record(&written), now),
            // Somebody was faster, which is no trouble.
            Err(error) if code(&error) == 409 => election.failed(now),
            Err(error) => {
                election.failed(now);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Leaves it to whoever comes next.
    async fn release(&self) -> anyhow::Result<()> {
        let read = call(self.api.get_opt(LEASE)).await?;
        if let Some(read) = read.filter(|read| record(read).holder == self.me) {
            let transitions = record(&read).transitions;
            let object = self.object(Some(&read), "", transitions)?;
            call(self.api.replace(LEASE, &PostParams::default(), &object)).await?;
        }
        Ok(())
    }

    fn object(
        &self,
        old: Option<&DynamicObject>,
        holder: &str,
        transitions: i64,
    ) -> anyhow::Result<DynamicObject> {
        let mut object = match old {
            Some(old) => old.clone(),
            None => DynamicObject::new(LEASE, &resource()),
        };
        let time = UnixTime(i64::try_from(seconds())?).to_rfc3339();
        let time = format!("{}.000000Z", time.trim_end_matches('Z'));
        let before = old.map(record);
        let same = before.is_some_and(|record| record.holder == holder);
        let acquired = object.data.pointer("/spec/acquireTime").cloned();
        // Whoever releases it leaves a time of which only that it is positive matters.
        let lease = match holder {
            "" => 1,
            _ => Settings::default().lease.as_secs(),
        };
        object.data["spec"] = json!({
            "holderIdentity": holder,
            "leaseDurationSeconds": lease,
            "acquireTime": acquired.filter(|_| same).unwrap_or_else(|| json!(time)),
            "renewTime": time,
            "leaseTransitions": transitions,
        });
        Ok(object)
    }
}

fn record(object: &DynamicObject) -> Record {
    let spec = &object.data["spec"];
    let seconds = spec["leaseDurationSeconds"].as_u64();
    Record {
        holder: spec["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        lease: seconds.map_or(Settings::default().lease, Duration::from_secs),
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        transitions: spec["leaseTransitions"].as_i64().unwrap_or(0),
    }
}

fn resource() -> ApiResource {
    ApiResource {
        group: "coordination.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "coordination.k8s.io/v1".to_owned(),
        kind: "Lease".to_owned(),
        plural: "leases".to_owned(),
    }
}
