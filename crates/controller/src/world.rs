//! What the store holds, kept up to date by its watches.

use std::collections::BTreeMap;
use std::path::PathBuf;

use testudo_model::bundle::TrustBundleKind;
use testudo_model::external::ExternalConnectionKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::EncryptionPolicyKind;
use testudo_model::request::CertificateRequestKind;
use testudo_model::{Kind, Object};
use testudo_store::{Event, Problem, Store, StoreError, Watch};
use tracing::{info, warn};

/// All objects that the controller looks at.
pub(crate) struct World {
    pub(crate) policies: Watched<EncryptionPolicyKind>,
    pub(crate) nodes: Watched<NodeEncryptionKind>,
    pub(crate) requests: Watched<CertificateRequestKind>,
    pub(crate) bundles: Watched<TrustBundleKind>,
    pub(crate) connections: Watched<ExternalConnectionKind>,
}

impl World {
    /// Starts the watches and reads all that is there.
    pub(crate) async fn open<S: Store>(store: &S) -> Result<Self, StoreError> {
        Ok(Self {
            policies: Watched::open(store).await?,
            nodes: Watched::open(store).await?,
            requests: Watched::open(store).await?,
            bundles: Watched::open(store).await?,
            // A cluster whose CRDs are older does not have the kind, and nothing waits for it.
            connections: Watched::begin(store).await?,
        })
    }

    /// Waits for a change and takes in all that have come; `false` when the store has ended.
    pub(crate) async fn changed(&mut self) -> bool {
        let alive = tokio::select! {
            alive = self.policies.next() => alive,
            alive = self.nodes.next() => alive,
            alive = self.requests.next() => alive,
            alive = self.bundles.next() => alive,
            alive = self.connections.next() => alive,
        };
        self.policies.drain();
        self.nodes.drain();
        self.requests.drain();
        self.bundles.drain();
        self.connections.drain();
        alive
    }
}

/// The objects of one kind by name.
pub(crate) struct Watched<K: Kind> {
    watch: Watch<K>,
    pub(crate) objects: BTreeMap<String, Object<K>>,
    /// Files that cannot be read.
    broken: BTreeMap<PathBuf, Problem>,
    synced: bool,
}

impl<K: Kind> Watched<K> {
    async fn open<S: Store>(store: &S) -> Result<Self, StoreError> {
        let mut watched = Self::begin(store).await?;
        while !watched.synced && watched.next().await {}
        Ok(watched)
    }

    /// Starts the watch and does not wait for what it tells.
    async fn begin<S: Store>(store: &S) -> Result<Self, StoreError> {
        Ok(Self {
            watch: store.watch::<K>().await?,
            objects: BTreeMap::new(),
            broken: BTreeMap::new(),
            synced: false,
        })
    }

    async fn next(&mut self) -> bool {
        match self.watch.next().await {
            Some(event) => {
                self.take(event);
                true
            }
            None => false,
        }
    }

    fn drain(&mut self) {
        while let Some(event) = self.watch.try_next() {
            self.take(event);
        }
    }

    fn take(&mut self, event: Event<K>) {
        match event {
            Event::Added(object) | Event::Modified(object) => {
                // What was noted as broken by a listing is told as mended by nobody else.
                let name = object.name();
                self.broken
                    .retain(|_, broken| broken.name.as_deref() != Some(name));
                self.put(object);
            }
            Event::Deleted(object) => {
                self.objects.remove(object.name());
            }
            Event::Problem(problem) => {
                warn!("{problem}");
                self.broken.insert(problem.file.clone(), problem);
            }
            Event::Solved(problem) => {
                info!("{}: mended", problem.file.display());
                self.broken.remove(&problem.file);
            }
            Event::Synced => self.synced = true,
        }
    }

    /// Names of objects that stand there, but of which no good version has been seen.
    pub(crate) fn unreadable(&self) -> Vec<String> {
        let mut names = self.broken();
        names.retain(|name| !self.objects.contains_key(name));
        names
    }

    /// Names of all objects that cannot be read as they stand now, also where an earlier version could.
    pub(crate) fn broken(&self) -> Vec<String> {
        let named = self.broken.values();
        named.filter_map(|problem| problem.name.clone()).collect()
    }

    /// Why the object of this name cannot be read as it stands now; `None`: it can, or is not there.
    pub(crate) fn problem(&self, name: &str) -> Option<&Problem> {
        let mut problems = self.broken.values();
        problems.find(|problem| problem.name.as_deref() == Some(name))
    }

    /// Takes in what we have just written, before the watch tells it.
    pub(crate) fn put(&mut self, object: Object<K>) {
        self.objects.insert(object.name().to_owned(), object);
    }

    /// Reads all objects again, as they stand in the store now.
    pub(crate) async fn read_again<S: Store>(&mut self, store: &S) -> Result<(), StoreError> {
        let listing = store.list::<K>().await?;
        let named = listing
            .items
            .into_iter()
            .map(|object| (object.name().to_owned(), object));
        self.objects = named.collect();
        self.broken.clear();
        for problem in listing.problems {
            self.broken.insert(problem.file.clone(), problem);
        }
        Ok(())
    }

    /// Reads one object again: ours was out of date.
    pub(crate) async fn refresh<S: Store>(
        &mut self,
        store: &S,
        name: &str,
    ) -> Result<(), StoreError> {
        match store.get::<K>(name).await? {
            Some(object) => self.put(object),
            None => {
                self.objects.remove(name);
            }
        }
        Ok(())
    }
}
