//! What an agent hears of other nodes. An agent makes objects of it; here no more is read than a watch needs, so
//! that it is not this process that is measured.

use std::borrow::Cow;
use std::sync::Arc;

use kube::api::{Api, ListParams, ObjectMeta};
use kube::core::{ClusterResourceScope, Resource};
use serde::{Deserialize, Deserializer};
use testudo_model::node::NodeEncryptionKind;
use testudo_model::{API_VERSION, Kind};
use testudo_store_kube::{Heard, KubeStore, ListWatch};

use super::agent::Progress;

/// A NodeEncryption without what stands in it.
#[derive(Clone, Debug)]
struct Peer(ObjectMeta);

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Whole {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            name: Option<String>,
            resource_version: Option<String>,
        }
        let Whole { metadata } = Whole::deserialize(from)?;
        Ok(Self(ObjectMeta {
            name: metadata.name,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        }))
    }
}

impl Resource for Peer {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        NodeEncryptionKind::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        API_VERSION
            .split_once('/')
            .map_or("", |(group, _)| group)
            .into()
    }

    fn version((): &()) -> Cow<'_, str> {
        API_VERSION
            .split_once('/')
            .map_or("", |(_, version)| version)
            .into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        NodeEncryptionKind::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0
    }
}

/// Follows them by the list and the watch of the store, and ends when it is dropped.
pub(super) struct Peers(tokio::task::JoinHandle<()>);

impl Peers {
    pub(super) async fn follow(store: &KubeStore, progress: Arc<Progress>) -> anyhow::Result<Self> {
        let api: Api<Peer> = Api::all(store.client().await?);
        let mut peers = ListWatch::new(api, ListParams::default(), drop);
        Ok(Self(tokio::spawn(async move {
            loop {
                if let Heard::Failed(error) = peers.next().await {
                    progress.failed(|| format!("the watch of nodes: {error}"));
                }
            }
        })))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::WatchEvent;

    #[test]
    fn of_an_event_only_what_a_watch_needs_is_read() {
        let event = r#"{"type":"MODIFIED","object":{"apiVersion":"testudo.dev/v1alpha1","kind":"NodeEncryption",
            "metadata":{"name":"n1","resourceVersion":"7","managedFields":[{"fieldsV1":{"f:spec":{}}}]},
            "spec":{"uid":"u"},"status":{"rotation":1}}}"#;
        let Ok(WatchEvent::Modified(Peer(metadata))) = serde_json::from_str(event) else {
            panic!("{event}");
        };
        assert_eq!(metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(metadata.name.as_deref(), Some("n1"));
        assert_eq!(metadata.managed_fields, None);
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"NodeEncryption","apiVersion":"testudo.dev/v1alpha1",
            "metadata":{"resourceVersion":"9","creationTimestamp":null},"spec":{}}}"#;
        let read = serde_json::from_str::<WatchEvent<Peer>>(bookmark);
        assert!(matches!(read, Ok(WatchEvent::Bookmark(_))), "{read:?}");
        let url = Peer::url_path(&(), None);
        assert_eq!(url, "/apis/testudo.dev/v1alpha1/nodeencryptions");
    }
}
