//! A store of either sort, for programs that learn at run time which one it is; and types that are
//! known to be one.

use std::any::Any;

use testudo_model::{CertificateRequest, Kind, Object};
use testudo_store::{Applied, DirStore, Listing, Location, Requester, Store, StoreError, Watch};

use crate::link::{KubeOptions, Writer};
use crate::request;
use crate::store::KubeStore;

/// A directory or an API server.
#[derive(Clone)]
pub enum AnyStore {
    /// A directory.
    Dir(DirStore),
    /// An API server.
    Kube(KubeStore),
}

impl AnyStore {
    /// The store at a location, for reading and writing. A directory is made if it is not there; an API
    /// server is asked nothing yet.
    pub fn open(location: &Location, writer: Writer) -> Result<AnyStore, StoreError> {
        match location {
            Location::Directory(root) => Ok(AnyStore::Dir(DirStore::open(root)?)),
            Location::Kubernetes(at) => Ok(AnyStore::kube(at, writer)),
        }
    }

    /// As [`AnyStore::open`], for reading: a directory must be there.
    pub fn open_read_only(location: &Location, writer: Writer) -> Result<AnyStore, StoreError> {
        match location {
            Location::Directory(root) => Ok(AnyStore::Dir(DirStore::open_read_only(root)?)),
            Location::Kubernetes(at) => Ok(AnyStore::kube(at, writer)),
        }
    }

    fn kube(at: &testudo_store::Kubernetes, writer: Writer) -> AnyStore {
        let at = at.clone();
        AnyStore::Kube(KubeStore::new(KubeOptions { at, writer }))
    }

    /// The directory, if it is one.
    pub fn dir(&self) -> Option<&DirStore> {
        match self {
            AnyStore::Dir(store) => Some(store),
            AnyStore::Kube(_) => None,
        }
    }

    /// Where it is, for people.
    pub fn location(&self) -> Location {
        match self {
            AnyStore::Dir(store) => Location::Directory(store.root().to_owned()),
            AnyStore::Kube(store) => Location::Kubernetes(store.options().at.clone()),
        }
    }
}

macro_rules! either {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            AnyStore::Dir($store) => $call.await,
            AnyStore::Kube($store) => $call.await,
        }
    };
}

impl Store for AnyStore {
    async fn get<K: Kind>(&self, name: &str) -> Result<Option<Object<K>>, StoreError> {
        either!(self, store => store.get::<K>(name))
    }

    async fn list<K: Kind>(&self) -> Result<Listing<K>, StoreError> {
        either!(self, store => store.list::<K>())
    }

    async fn create<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, StoreError> {
        either!(self, store => store.create(object))
    }

    async fn apply<K: Kind>(&self, object: Object<K>) -> Result<Applied<K>, StoreError> {
        either!(self, store => store.apply(object))
    }

    async fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        either!(self, store => store.update_status(object))
    }

    async fn delete<K: Kind>(&self, name: &str) -> Result<bool, StoreError> {
        either!(self, store => store.delete::<K>(name))
    }

    async fn delete_seen<K: Kind>(&self, object: &Object<K>) -> Result<bool, StoreError> {
        either!(self, store => store.delete_seen(object))
    }

    async fn watch<K: Kind>(&self) -> Result<Watch<K>, StoreError> {
        either!(self, store => store.watch::<K>())
    }

    async fn requester(&self, request: &CertificateRequest) -> Result<Requester, StoreError> {
        either!(self, store => store.requester(request))
    }
}

/// A value as what it is: `A` and `B` are one type wherever this is called, which only the caller's
/// comparison of kinds shows and the compiler cannot see.
pub(crate) fn same<A: 'static, B: 'static>(value: A) -> B {
    let value: Box<dyn Any> = Box::new(value);
    match value.downcast::<B>() {
        Ok(value) => *value,
        Err(_) => unreachable!("one kind has one type"),
    }
}

/// An object that a newer one of its name has followed up, as it is told: of a request with a name of its own;
/// of nothing else are there several.
pub(crate) fn superseded<K: Kind>(older: &Object<K>) -> Option<Object<K>> {
    let told = || same(request::superseded(same(older.clone())));
    request::is_request::<K>().then(told)
}
