//! [`KubeStore`]: the trait's verbs as calls of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
};
use serde_json::{Value, json};
use testudo_crypto::{Random, SystemRandom};
use testudo_model::request::CertificateRequestKind;
use testudo_model::{API_VERSION, CertificateRequest, Kind, Object};
use testudo_store::{
    Applied, Change, Listing, Requester, Store, StoreError, Watch, check_name, check_object,
};
use tokio::sync::OnceCell;

use crate::apply::{Live, Plan, carry, parts};
use crate::convert::{self, Read};
use crate::link::{KubeOptions, Link, Writer};
use crate::{any, bound, follow, list_watch, request, verdict};

/// How often a write that nobody made conditional is tried when others write too.
const TRIES: u32 = 16;

/// Objects in an API server. See the [crate] documentation. Its calls must all be made from one
/// runtime.
#[derive(Clone)]
pub struct KubeStore {
    inner: Arc<Inner>,
}

struct Inner {
    options: KubeOptions,
    link: OnceCell<Link>,
    /// The user that agents are.
    agents: OnceLock<String>,
    /// What was said once and is not to be said again.
    said: Mutex<BTreeSet<String>>,
}

impl KubeStore {
    /// The store. Nothing is read or asked before the first call.
    pub fn new(options: KubeOptions) -> KubeStore {
        KubeStore {
            inner: Arc::new(Inner {
                options,
                link: OnceCell::new(),
                agents: OnceLock::new(),
                said: Mutex::default(),
            }),
        }
    }

    /// Its settings.
    pub fn options(&self) -> &KubeOptions {
        &self.inner.options
    }

    /// Says which user agents are: of certificate requests those of others are no node's. An agent takes it from
    /// its own token. To be said before anything is read, and once.
    pub fn agents_are(&self, user: String) {
        let _ = self.inner.agents.set(user);
    }

    /// The way to the API server, with which one can ask for more than objects of ours.
    pub async fn client(&self) -> Result<kube::Client, StoreError> {
        Ok(self.link().await?.client.clone())
    }

    pub(crate) async fn link(&self) -> Result<&Link, StoreError> {
        let Inner {
            options, agents, ..
        } = &*self.inner;
        let opening = async || {
            if let Writer::Agent(_) = options.writer
                && let Some(user) = bound::account(&options.at).await?
            {
                let _ = agents.set(user);
            }
            Link::open(&options.at).await
        };
        self.inner.link.get_or_try_init(opening).await
    }

    /// The API server's name, for people; empty where the configuration cannot be read.
    pub(crate) async fn server(&self) -> String {
        let link = self.link().await;
        link.map(|link| link.server.clone()).unwrap_or_default()
    }

    fn writer(&self) -> &Writer {
        &self.inner.options.writer
    }

    /// Which objects of a kind are looked at. `name`: those that may have this name.
    pub(crate) fn selection<K: Kind>(&self, name: Option<&str>) -> ListParams {
        let params = ListParams::default();
        if !request::is_request::<K>() {
            return params;
        }
        let params = params.fields(&request::field_selector());
        let node = match (name, self.writer()) {
            (Some(name), _) => Some(name),
            (None, Writer::Agent(node)) => Some(node.as_str()),
            (None, _) => None,
        };
        match node.and_then(request::label_selector) {
            Some(labels) => params.labels(&labels),
            None => params,
        }
    }

    /// All objects of a kind as they stand now, and the version of the whole.
    pub(crate) async fn raw_list<K: Kind>(
        &self,
        params: ListParams,
    ) -> Result<(Vec<DynamicObject>, String), kube::Error> {
        let link = self.link().await.map_err(not_configured)?;
        let api = link.api::<K>();
        list_watch::list(&api, params, &|raw| raw).await
    }

    /// Reads an object, and says once which fields of it this build does not know.
    pub(crate) fn read<K: Kind>(&self, raw: &DynamicObject) -> Read<K> {
        let agents = self.inner.agents.get().map(String::as_str);
        let read = convert::read::<K>(raw, agents);
        if !read.unknown.is_empty() {
            let fields = read.unknown.join(", ");
            self.once(format!(
                "{} \"{}\": {fields}: this build does not know it and goes on without",
                K::KIND,
                read.name
            ));
        }
        read
    }

    fn once(&self, text: String) {
        /// Bounded: whoever may write objects must not be able to fill our memory.
        const MOST: usize = 1024;
        let said = self.inner.said.lock();
        let mut said = said.unwrap_or_else(PoisonError::into_inner);
        if said.len() < MOST && !said.contains(&text) {
            tracing::warn!("{text}");
            said.insert(text);
        }
    }

    fn good<K: Kind>(&self, raw: &DynamicObject) -> Result<Object<K>, StoreError> {
        self.read::<K>(raw).object.map_err(StoreError::Invalid)
    }

    async fn raw_get<K: Kind>(
        &self,
        link: &Link,
        name: &str,
    ) -> Result<Option<DynamicObject>, StoreError> {
        match link.call(link.api::<K>().get(name)).await {
            Ok(raw) => Ok(Some(raw)),
            Err(error) => match verdict::refused::<K>(&link.server, name, error) {
                StoreError::NotFound { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    async fn patch<K: Kind>(
        &self,
        link: &Link,
        name: &str,
        part: Option<&'static str>,
        params: &PatchParams,
        patch: Patch<Value>,
    ) -> Result<DynamicObject, StoreError> {
        let done = self.try_patch::<K>(link, name, part, params, patch).await;
        done.map_err(|error| verdict::refused::<K>(&link.server, name, error))
    }

    async fn try_patch<K: Kind>(
        &self,
        link: &Link,
        name: &str,
        part: Option<&'static str>,
        params: &PatchParams,
        patch: Patch<Value>,
    ) -> Result<DynamicObject, kube::Error> {
        let api = link.api::<K>();
        match part {
            None => link.call(api.patch(name, params, &patch)).await,
            Some(part) => {
                link.call(api.patch_subresource(part, name, params, &patch))
                    .await
            }
        }
    }

    /// Whether an apply failed for a field that the CRDs do not have, and the rest is to be written all
    /// the same: by a whole object, of which the API server leaves out what it does not know.
    fn is_ahead(&self, error: &kube::Error) -> bool {
        let ahead = self.writer().is_daemon() && verdict::is_undeclared(error);
        if ahead {
            self.once(format!("the CRDs are older than this build: {error}"));
        }
        ahead
    }

    /// Deletes what has this name in the API; says whether there was one.
    async fn remove<K: Kind>(
        &self,
        link: &Link,
        name: &str,
        params: DeleteParams,
    ) -> Result<bool, StoreError> {
        match link.call(link.api::<K>().delete(name, &params)).await {
            Ok(_) => Ok(true),
            Err(error) => match verdict::refused::<K>(&link.server, name, error) {
                StoreError::NotFound { .. } => Ok(false),
                error => Err(error),
            },
        }
    }

    /// One try of an apply: a conflict means that somebody else was faster.
    async fn apply_once<K: Kind>(&self, object: &Object<K>) -> Result<Applied<K>, StoreError> {
        let link = self.link().await?;
        let name = object.name();
        let conflict = || StoreError::Conflict {
            kind: K::KIND,
            name: name.to_owned(),
        };
        let expected = &object.metadata.resource_version;
        let wanted = json!(object.spec);
        let labels = json!(object.metadata.labels);
        let annotations = json!(object.metadata.annotations);
        let Some(raw) = self.raw_get::<K>(link, name).await? else {
            if expected.is_some() {
                return Err(conflict());
            }
            let mut body = parts(labels, annotations, wanted);
            head::<K>(&mut body, name);
            let params = self.writer().patch(self.writer().takes());
            let made = self.try_patch::<K>(link, name, None, &params, Patch::Apply(body));
            let made = match made.await {
                Ok(made) => self.good(&made)?,
                Err(error) if self.is_ahead(&error) => self.post(link, object).await?,
                Err(error) => return Err(verdict::refused::<K>(&link.server, name, error)),
            };
            let object = self.with_status(made, object).await?;
            let change = Change::Created;
            return Ok(Applied { object, change });
        };
        let other_life = object.metadata.uid.is_some() && object.metadata.uid != raw.metadata.uid;
        if expected.is_some() && *expected != raw.metadata.resource_version || other_life {
            return Err(conflict());
        }
        let stands = raw.data.get("spec").cloned().unwrap_or_else(|| json!({}));
        let known = match self.good::<K>(&raw) {
            Ok(old) => json!(old.spec),
            // What stands there was never good: there is nothing to keep of it.
            Err(_) => stands.clone(),
        };
        let target = parts(labels, annotations, carry(&stands, &known, &wanted));
        let (manager, takes) = (self.writer().manager(), self.writer().takes());
        let written = match Live::of(&raw).plan(&target, manager, takes) {
            Plan::Nothing => {
                let object = self.good(&raw)?;
                let change = Change::Unchanged;
                return Ok(Applied { object, change });
            }
            Plan::Owned { fields, owner } => {
                return Err(StoreError::Owned {
                    kind: K::KIND,
                    name: name.to_owned(),
                    fields,
                    owner,
                });
            }
            Plan::Apply { mut fields, force } => {
                head::<K>(&mut fields, name);
                fields["metadata"]["resourceVersion"] = json!(raw.metadata.resource_version);
                let params = self.writer().patch(force);
                let patch = Patch::Apply(fields);
                match self.try_patch::<K>(link, name, None, &params, patch).await {
                    Ok(written) => written,
                    Err(error) if self.is_ahead(&error) => {
                        self.replace(link, &raw, object, &target).await?
                    }
                    Err(error) => return Err(verdict::refused::<K>(&link.server, name, error)),
                }
            }
            Plan::Replace => self.replace(link, &raw, object, &target).await?,
        };
        let change = match written.metadata.resource_version == raw.metadata.resource_version {
            true => Change::Unchanged,
            false => Change::Configured,
        };
        let object = self.good(&written)?;
        Ok(Applied { object, change })
    }

    /// Puts the whole of an object in the place of `raw`.
    async fn replace<K: Kind>(
        &self,
        link: &Link,
        raw: &DynamicObject,
        object: &Object<K>,
        target: &Value,
    ) -> Result<DynamicObject, StoreError> {
        let mut whole = raw.clone();
        whole.metadata.managed_fields = None;
        whole.metadata.labels = Some(object.metadata.labels.clone());
        whole.metadata.annotations = Some(object.metadata.annotations.clone());
        whole.data["spec"] = target["spec"].clone();
        let (api, params) = (link.api::<K>(), self.post_params());
        let done = link.call(api.replace(object.name(), &params, &whole)).await;
        done.map_err(|error| verdict::refused::<K>(&link.server, object.name(), error))
    }

    /// Puts the whole of a status in the place of what stands.
    async fn replace_status<K: Kind>(
        &self,
        link: &Link,
        object: &Object<K>,
    ) -> Result<DynamicObject, StoreError> {
        let name = object.name();
        let raw = self.raw_get::<K>(link, name).await?;
        let mut whole = raw.ok_or_else(|| StoreError::NotFound {
            kind: K::KIND,
            name: name.to_owned(),
        })?;
        whole.metadata.managed_fields = None;
        if let Some(version) = &object.metadata.resource_version {
            whole.metadata.resource_version = Some(version.clone());
        }
        if let Some(uid) = &object.metadata.uid {
            whole.metadata.uid = Some(uid.clone());
        }
        whole.data["status"] = json!(object.status);
        let (api, params) = (link.api::<K>(), self.post_params());
        let done = link.call(api.replace_status(name, &params, &whole)).await;
        done.map_err(|error| verdict::refused::<K>(&link.server, name, error))
    }

    /// Makes a new object, without its status.
    async fn post<K: Kind>(
        &self,
        link: &Link,
        object: &Object<K>,
    ) -> Result<Object<K>, StoreError> {
        let name = object.name();
        let mut body = parts(
            json!(object.metadata.labels),
            json!(object.metadata.annotations),
            json!(object.spec),
        );
        head::<K>(&mut body, name);
        let body: DynamicObject = serde_json::from_value(body)
            .map_err(|e| StoreError::Invalid(verdict::problem::<K>(name, e.to_string())))?;
        let (api, params) = (link.api::<K>(), self.post_params());
        let made = link.call(api.create(&params, &body)).await;
        let made = made.map_err(|e| verdict::refused::<K>(&link.server, name, e))?;
        self.good(&made)
    }

    /// A new object has the status that it was given.
    async fn with_status<K: Kind>(
        &self,
        made: Object<K>,
        given: &Object<K>,
    ) -> Result<Object<K>, StoreError> {
        if made.status == given.status {
            return Ok(made);
        }
        let status = given.status.clone();
        self.update_status(&Object { status, ..made }).await
    }

    fn post_params(&self) -> PostParams {
        PostParams {
            field_manager: Some(self.writer().manager().to_owned()),
            ..PostParams::default()
        }
    }

    /// Asks, unless it was asked. Where somebody has taken the name that the request is to have, it gets
    /// another.
    async fn request_apply(
        &self,
        request: &CertificateRequest,
    ) -> Result<Applied<CertificateRequestKind>, StoreError> {
        type K = CertificateRequestKind;
        let link = self.link().await?;
        let mut name = request::name_for(&request.spec);
        let unchanged = |object| {
            let change = Change::Unchanged;
            Ok(Applied { object, change })
        };
        if let Some(raw) = self.raw_get::<K>(link, &name).await? {
            let object = self.good::<K>(&raw)?;
            if self.is_asked(&object, request) {
                return unchanged(object);
            }
            // It may stand under another name.
            if let Some(object) = self.get::<K>(request.name()).await?
                && self.is_asked(&object, request)
            {
                return unchanged(object);
            }
            let mut random = [0; 8];
            SystemRandom::new().fill(&mut random);
            self.once(format!(
                "somebody has made {name}, which is to be the name of a request of ours: it gets another"
            ));
            name = request::other_name_for(&request.spec, random);
        }
        let body: DynamicObject = serde_json::from_value(request::manifest(request, &name))
            .map_err(|e| StoreError::Invalid(verdict::problem::<K>(&name, e.to_string())))?;
        let made = link
            .call(link.api::<K>().create(&self.post_params(), &body))
            .await;
        let made = made.map_err(|error| verdict::refused::<K>(&link.server, &name, error))?;
        let object = self.good(&made)?;
        let change = Change::Created;
        Ok(Applied { object, change })
    }

    /// Whether what stands there is this request: an agent's must be its node's own.
    fn is_asked(&self, there: &CertificateRequest, request: &CertificateRequest) -> bool {
        let own = match self.writer() {
            Writer::Agent(_) => there.name() == request.name(),
            _ => true,
        };
        own && there.spec == request.spec
    }

    /// The CertificateSigningRequest that a request was read from, and its name. One made anew under that
    /// name is another.
    async fn raw_request<'r>(
        &self,
        request: &'r CertificateRequest,
    ) -> Result<(&'r str, DynamicObject), StoreError> {
        type K = CertificateRequestKind;
        let missing = || StoreError::NotFound {
            kind: K::KIND,
            name: request.name().to_owned(),
        };
        let link = self.link().await?;
        let name = request::name_of(request).ok_or_else(missing)?;
        let raw = self.raw_get::<K>(link, name).await?.ok_or_else(missing)?;
        if raw.metadata.uid != request.metadata.uid {
            return Err(missing());
        }
        Ok((name, raw))
    }

    /// Approves and signs, or denies: what the status says.
    async fn request_answer(
        &self,
        request: &CertificateRequest,
    ) -> Result<CertificateRequest, StoreError> {
        type K = CertificateRequestKind;
        let link = self.link().await?;
        let (name, raw) = self.raw_request(request).await?;
        let old = self.good::<K>(&raw)?;
        if old.status == request.status {
            return Ok(old);
        }
        if request.metadata.resource_version.is_some()
            && request.metadata.resource_version != raw.metadata.resource_version
            || old.status.answers.is_some()
        {
            return Err(StoreError::Conflict {
                kind: K::KIND,
                name: request.name().to_owned(),
            });
        }
        let approved = request::condition(&raw, "Approved").is_some();
        let params = PatchParams {
            field_manager: Some(self.writer().manager().to_owned()),
            ..PatchParams::default()
        };
        let merge = |raw: &DynamicObject, status: Value| {
            Patch::Merge(json!({
                "metadata": {
                    "uid": raw.metadata.uid,
                    "resourceVersion": raw.metadata.resource_version,
                },
                "status": status,
            }))
        };
        let written = match (&request.status.denied, &request.status.certificate) {
            // Whoever approved it is not asked to take that back: it fails.
            (Some(why), _) => {
                let (part, kind) = match approved {
                    true => ("status", "Failed"),
                    false => ("approval", "Denied"),
                };
                let conditions = request::with_condition(&raw, kind, why);
                let patch = merge(&raw, json!({ "conditions": conditions }));
                self.patch::<K>(link, name, Some(part), &params, patch)
                    .await?
            }
            (None, Some(pem)) => {
                let text = "the token of whoever asks is bound to this node";
                let raw = match approved {
                    true => raw,
                    false => {
                        let conditions = request::with_condition(&raw, "Approved", text);
                        let patch = merge(&raw, json!({ "conditions": conditions }));
                        self.patch::<K>(link, name, Some("approval"), &params, patch)
                            .await?
                    }
                };
                let pem = k8s_openapi::ByteString(pem.clone().into_bytes());
                let patch = merge(&raw, json!({ "certificate": pem }));
                self.patch::<K>(link, name, Some("status"), &params, patch)
                    .await?
            }
            (None, None) => return Ok(old),
        };
        // One that was followed up by a newer one has not the name that it is read under.
        let mut answered = self.good::<K>(&written)?;
        answered.metadata.name = request.metadata.name.clone();
        Ok(answered)
    }
}

/// Apiversion, kind and name, at the head of an apply.
fn head<K: Kind>(body: &mut Value, name: &str) {
    body["apiVersion"] = json!(API_VERSION);
    body["kind"] = json!(K::KIND);
    body["metadata"]["name"] = json!(name);
}

/// A deletion of this life and version alone, where one is said: the API server refuses any other (409).
fn only(uid: Option<String>, resource_version: Option<String>) -> DeleteParams {
    let any = uid.is_none() && resource_version.is_none();
    DeleteParams {
        preconditions: (!any).then_some(Preconditions {
            uid,
            resource_version,
        }),
        ..DeleteParams::default()
    }
}

fn not_configured(error: StoreError) -> kube::Error {
    kube::Error::Service(error.to_string().into())
}

/// By name. Of several objects with one name the newest has it, and the older ones names of their own.
pub(crate) fn choose<K: Kind>(reads: Vec<Read<K>>) -> BTreeMap<String, Read<K>> {
    let mut chosen: BTreeMap<String, Read<K>> = BTreeMap::new();
    for read in reads {
        let (older, newer) = match chosen.remove(&read.name) {
            None => (None, read),
            Some(other) if other.order > read.order => (Some(read), other),
            Some(other) => (Some(other), read),
        };
        let older = older.and_then(|older| {
            let object = any::superseded(older.object.as_ref().ok()?)?;
            Some(Read {
                name: object.name().to_owned(),
                object: Ok(object),
                ..older
            })
        });
        chosen.extend(older.map(|older| (older.name.clone(), older)));
        chosen.insert(newer.name.clone(), newer);
    }
    chosen
}

fn name_checked<K: Kind>(name: &str) -> Result<(), StoreError> {
    check_name(name).map_err(|reason| {
        StoreError::Invalid(verdict::problem::<K>(
            "",
            format!("no {} has the name {reason}", K::KIND),
        ))
    })
}

fn checked<K: Kind>(object: &Object<K>) -> Result<(), StoreError> {
    name_checked::<K>(object.name())?;
    check_object(object)
        .map_err(|reason| StoreError::Invalid(verdict::problem::<K>(object.name(), reason)))
}

/// Waits a little, longer each time and never the same: those who write at once must not meet again.
async fn pause(tries: u32) {
    let mut random = [0u8; 1];
    SystemRandom::new().fill(&mut random);
    let longest = 20 * u64::from(tries.min(10));
    let millis = 5 + longest * u64::from(random[0]) / 255;
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

impl Store for KubeStore {
    async fn get<K: Kind>(&self, name: &str) -> Result<Option<Object<K>>, StoreError> {
        name_checked::<K>(name)?;
        if request::is_request::<K>() {
            let link = self.link().await?;
            let listed = self.raw_list::<K>(self.selection::<K>(Some(name))).await;
            let (raws, _) = listed.map_err(|e| verdict::refused::<K>(&link.server, name, e))?;
            let reads = raws.iter().map(|raw| self.read::<K>(raw)).collect();
            let found = choose(reads).remove(name).map(|read| read.object);
            return found.transpose().map_err(StoreError::Invalid);
        }
        match self.raw_get::<K>(self.link().await?, name).await? {
            Some(raw) => self.good(&raw).map(Some),
            None => Ok(None),
        }
    }

    async fn list<K: Kind>(&self) -> Result<Listing<K>, StoreError> {
        let link = self.link().await?;
        let listed = self.raw_list::<K>(self.selection::<K>(None)).await;
        let (raws, _) = listed.map_err(|error| verdict::refused::<K>(&link.server, "", error))?;
        let reads = raws.iter().map(|raw| self.read::<K>(raw)).collect();
        let mut listing = Listing {
            items: Vec::new(),
            problems: Vec::new(),
        };
        for read in choose(reads).into_values() {
            match read.object {
                Ok(object) => listing.items.push(object),
                Err(problem) => listing.problems.push(problem),
            }
        }
        Ok(listing)
    }

    async fn create<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, StoreError> {
        checked(&object)?;
        let exists = || StoreError::AlreadyExists {
            kind: K::KIND,
            name: object.name().to_owned(),
        };
        if request::is_request::<K>() {
            if self.get::<K>(object.name()).await?.is_some() {
                return Err(exists());
            }
            let applied = self.request_apply(&any::same(object.clone())).await?;
            return Ok(any::same(applied.object));
        }
        let made = self.post(self.link().await?, &object).await?;
        self.with_status(made, &object).await
    }

    async fn apply<K: Kind>(&self, object: Object<K>) -> Result<Applied<K>, StoreError> {
        checked(&object)?;
        if request::is_request::<K>() {
            let applied = self.request_apply(&any::same(object)).await?;
            return Ok(Applied {
                object: any::same(applied.object),
                change: applied.change,
            });
        }
        let unconditional = object.metadata.resource_version.is_none();
        let mut tries = 0;
        loop {
            match self.apply_once(&object).await {
                Err(e) if e.is_conflict() && unconditional && tries < TRIES => {
                    tries += 1;
                    pause(tries).await;
                }
                done => return done,
            }
        }
    }

    async fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        name_checked::<K>(object.name())?;
        if request::is_request::<K>() {
            let answered = self.request_answer(&any::same(object.clone())).await?;
            return Ok(any::same(answered));
        }
        let link = self.link().await?;
        let mut body = json!({ "metadata": {}, "status": object.status });
        head::<K>(&mut body, object.name());
        let metadata = &object.metadata;
        if let Some(version) = &metadata.resource_version {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        if let Some(uid) = &metadata.uid {
            body["metadata"]["uid"] = json!(uid);
        }
        // What a status says is its writer's alone.
        let params = self.writer().patch(true);
        let (name, patch) = (object.name(), Patch::Apply(body));
        let part = Some("status");
        let written = match self.try_patch::<K>(link, name, part, &params, patch).await {
            Ok(written) => written,
            Err(error) if self.is_ahead(&error) => self.replace_status(link, object).await?,
            Err(error) => return Err(verdict::refused::<K>(&link.server, name, error)),
        };
        self.good(&written)
    }

    async fn delete<K: Kind>(&self, name: &str) -> Result<bool, StoreError> {
        name_checked::<K>(name)?;
        let link = self.link().await?;
        let mut names = vec![(name.to_owned(), None)];
        if request::is_request::<K>() {
            let listed = self.raw_list::<K>(self.selection::<K>(Some(name))).await;
            let (raws, _) = listed.map_err(|e| verdict::refused::<K>(&link.server, name, e))?;
            let reads = raws.iter().map(|raw| (self.read::<K>(raw), raw));
            let named = reads.filter(|(read, raw)| {
                read.name == name || request::stranger(raw.metadata.uid.as_deref()) == name
            });
            names = named
                .map(|(read, raw)| (read.raw, raw.metadata.uid.clone()))
                .collect();
        }
        let mut found = false;
        for (name, uid) in names {
            found |= self.remove::<K>(link, &name, only(uid, None)).await?;
        }
        Ok(found)
    }

    async fn delete_seen<K: Kind>(&self, object: &Object<K>) -> Result<bool, StoreError> {
        name_checked::<K>(object.name())?;
        let link = self.link().await?;
        let metadata = &object.metadata;
        let params = only(metadata.uid.clone(), metadata.resource_version.clone());
        if request::is_request::<K>() {
            let request: CertificateRequest = any::same(object.clone());
            return match request::name_of(&request) {
                Some(name) => self.remove::<K>(link, name, params).await,
                None => Ok(false),
            };
        }
        self.remove::<K>(link, object.name(), params).await
    }

    async fn watch<K: Kind>(&self) -> Result<Watch<K>, StoreError> {
        // A configuration that cannot be read does not mend itself; an API server that is away does.
        let api = self.link().await?.api::<K>();
        Ok(follow::start(self.clone(), api))
    }

    async fn requester(&self, request: &CertificateRequest) -> Result<Requester, StoreError> {
        let (_, raw) = self.raw_request(request).await?;
        Ok(Requester::Authenticated(request::requester(&raw)))
    }
}
