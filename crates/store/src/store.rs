//! The trait that every store fulfils.

use std::future::Future;

use testudo_model::{CertificateRequest, Kind, Object};

use crate::error::{Problem, StoreError};
use crate::requester::Requester;
use crate::watch::Watch;

/// Objects by kind and name.
///
/// Writers agree by `metadata.resourceVersion`: it changes with every change of an object. A write
/// that carries one succeeds only while it is the object's present one, else it is a
/// [`StoreError::Conflict`]; a write that carries none is not checked. Spec and status are written
/// apart: [`apply`](Store::apply) never touches the status, and
/// [`update_status`](Store::update_status) nothing but the status.
///
/// A handle is cheap to clone, and all clones are one store.
pub trait Store: Clone + Send + Sync + 'static {
    /// The object, in its last good version; `None` when there is none.
    ///
    /// An error of kind [`StoreError::Invalid`]: something stands there that cannot be read, and
    /// no good version of it has been seen.
    fn get<K: Kind>(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<Option<Object<K>>, StoreError>> + Send;

    /// All objects of a kind in the order of their names, each in its last good version, and
    /// what could not be read.
    fn list<K: Kind>(&self) -> impl Future<Output = Result<Listing<K>, StoreError>> + Send;

    /// Puts a new object there, with the status it has.
    fn create<K: Kind>(
        &self,
        object: Object<K>,
    ) -> impl Future<Output = Result<Object<K>, StoreError>> + Send;

    /// Makes the object's spec, labels and annotations what they are in `object`; creates it if
    /// there is none (then with the status it has). Writing what stands already writes nothing.
    fn apply<K: Kind>(
        &self,
        object: Object<K>,
    ) -> impl Future<Output = Result<Applied<K>, StoreError>> + Send;

    /// Makes the status what it is in `object`, and leaves all else alone.
    fn update_status<K: Kind>(
        &self,
        object: &Object<K>,
    ) -> impl Future<Output = Result<Object<K>, StoreError>> + Send;

    /// Removes an object, whoever has written it meanwhile; says whether there was one.
    fn delete<K: Kind>(&self, name: &str) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes an object that is still as it was read, by UID and resourceVersion; says whether there was one.
    /// A [`StoreError::Conflict`] where it is another by now. This default looks first and removes then;
    /// the stores do both at once.
    fn delete_seen<K: Kind>(
        &self,
        object: &Object<K>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        async move {
            match self.get::<K>(object.name()).await? {
                None => Ok(false),
                Some(stands) if is_as_seen(&stands, object) => {
                    self.delete::<K>(object.name()).await
                }
                Some(_) => Err(StoreError::Conflict {
                    kind: K::KIND,
                    name: object.name().to_owned(),
                }),
            }
        }
    }

    /// All objects of a kind, then [`crate::Event::Synced`], then every change. Changes that
    /// follow each other quickly may be told as one; the last one is always told.
    fn watch<K: Kind>(&self) -> impl Future<Output = Result<Watch<K>, StoreError>> + Send;

    /// Who stands behind a request that this store holds: what the signer goes by.
    fn requester(
        &self,
        request: &CertificateRequest,
    ) -> impl Future<Output = Result<Requester, StoreError>> + Send;
}

/// Whether what stands is of the life and version that was seen, as far as that is known.
pub(crate) fn is_as_seen<K: Kind>(stands: &Object<K>, seen: &Object<K>) -> bool {
    let same = |seen: &Option<String>, stands: &Option<String>| seen.is_none() || seen == stands;
    same(&seen.metadata.uid, &stands.metadata.uid)
        && same(
            &seen.metadata.resource_version,
            &stands.metadata.resource_version,
        )
}

/// What [`Store::list`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing<K: Kind> {
    /// The objects, in the order of their names.
    pub items: Vec<Object<K>>,
    /// What could not be read. An object of which a good version was seen is among `items` too.
    pub problems: Vec<Problem>,
}

/// What [`Store::apply`] did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied<K: Kind> {
    /// The object as it stands now.
    pub object: Object<K>,
    /// What changed.
    pub change: Change,
}

/// What a write changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There was none before.
    Created,
    /// It was another before.
    Configured,
    /// It was the same before.
    Unchanged,
}

impl Change {
    /// As `apply` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Created => "created",
            Change::Configured => "configured",
            Change::Unchanged => "unchanged",
        }
    }
}

/// Reads the object, lets `change` work on its status, writes it back; begins again when someone
/// else was faster, eight times at most. `None`: there is no such object.
pub async fn change_status<S: Store, K: Kind>(
    store: &S,
    name: &str,
    mut change: impl FnMut(&Object<K>, &mut K::Status) + Send,
) -> Result<Option<Object<K>>, StoreError> {
    const TRIES: usize = 8;
    let mut tries = 0;
    loop {
        let Some(mut object) = store.get::<K>(name).await? else {
            return Ok(None);
        };
        let mut status = object.status.clone();
        change(&object, &mut status);
        if status == object.status {
            return Ok(Some(object));
        }
        object.status = status;
        tries += 1;
        match store.update_status(&object).await {
            Err(error) if error.is_conflict() && tries < TRIES => {}
            Err(error) if error.is_not_found() => return Ok(None),
            done => return done.map(Some),
        }
    }
}
