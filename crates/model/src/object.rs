//! What every stored object has: version, kind, metadata, spec, status.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The API group and version of all objects here.
pub const API_VERSION: &str = "testudo.dev/v1alpha1";

/// A kind of object: its names, and which of its fields a store must find.
pub trait Kind:
    Clone + std::fmt::Debug + PartialEq + Serialize + for<'de> Deserialize<'de> + Send + Sync + 'static
{
    /// `EncryptionPolicy`.
    const KIND: &'static str;
    /// `encryptionpolicies`, the name of its folder in a directory store.
    const PLURAL: &'static str;
    /// What the user may write.
    type Spec: Clone
        + std::fmt::Debug
        + PartialEq
        + Serialize
        + for<'de> Deserialize<'de>
        + Send
        + Sync;
    /// What a controller or agent writes back.
    type Status: Clone
        + std::fmt::Debug
        + PartialEq
        + Default
        + Serialize
        + for<'de> Deserialize<'de>
        + Send
        + Sync;

    /// A rule that serde cannot state; the message names the field.
    fn validate(_name: &str, _spec: &Self::Spec) -> Result<(), String> {
        Ok(())
    }

    /// What an API server's object must fulfil to be read; nothing is written that fails [`Kind::validate`].
    /// Less than that where a controller says in the object's status what is wrong with it.
    fn readable(name: &str, spec: &Self::Spec) -> Result<(), String> {
        Self::validate(name, spec)
    }
}

/// An object of kind `K`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    bound(serialize = "K: Kind", deserialize = "K: Kind")
)]
pub struct Object<K: Kind> {
    /// Always [`API_VERSION`]; a store refuses others.
    pub api_version: String,
    /// Always `K::KIND`; a store refuses others.
    pub kind: String,
    /// Name and bookkeeping.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: K::Spec,
    /// What was observed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: K::Status,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<K: Kind> Object<K> {
    /// A new object with an empty status.
    pub fn new(name: impl Into<String>, spec: K::Spec) -> Object<K> {
        Object {
            api_version: API_VERSION.to_owned(),
            kind: K::KIND.to_owned(),
            metadata: Metadata {
                name: name.into(),
                ..Metadata::default()
            },
            spec,
            status: K::Status::default(),
        }
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }
}

/// The part of Kubernetes' ObjectMeta that matters here. Unknown fields are kept out on
/// purpose: a typing error in a manifest should be refused, not ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The name, unique in its kind.
    pub name: String,
    /// Given by the store when the object is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Counts changes of the spec that were made through a store, from 1; an editor's changes of a
    /// file are not counted. Zero: not stored yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// Changes with every write; a writer that sends it back is refused if it is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A status or spec without fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}
