//! Writes what the agent has to say into the store, beside the engine: a slow store delays news,
//! never packets.

use std::time::Duration;

use anyhow::{Context, Result};
use testudo_model::node::NodeEncryptionKind;
use testudo_model::{
    CertificateRequest, CertificateRequestSpec, NodeEncryption, NodeEncryptionSpec,
    NodeEncryptionStatus, NodeName,
};
use testudo_store::{Store, StoreError, change_status};
use tokio::sync::watch;

/// After a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// All that is to stand in the store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct News {
    pub(crate) spec: NodeEncryptionSpec,
    pub(crate) status: NodeEncryptionStatus,
    pub(crate) request: Option<CertificateRequestSpec>,
    /// The node was removed from the cluster: it says no more than that it asks to be let in again.
    pub(crate) removed: bool,
    /// Raised when what was written is gone from the store.
    pub(crate) again: u64,
}

/// Takes news; only the newest matters.
pub(crate) struct Publisher {
    news: watch::Sender<Option<News>>,
    task: tokio::task::JoinHandle<()>,
}

impl Publisher {
    pub(crate) fn start<S: Store>(store: S, node: NodeName) -> Publisher {
        let (news, receiver) = watch::channel(None);
        Publisher {
            news,
            task: tokio::spawn(publish(store, node, receiver)),
        }
    }

    /// Has this written, unless it was.
    pub(crate) fn tell(&self, news: News) {
        self.news.send_if_modified(|last| {
            let changed = last.as_ref() != Some(&news);
            *last = Some(news);
            changed
        });
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish<S: Store>(store: S, node: NodeName, mut news: watch::Receiver<Option<News>>) {
    let mut written: Option<News> = None;
    let mut complained = String::new();
    let mut away = false;
    while news.changed().await.is_ok() {
        loop {
            let Some(now) = news.borrow_and_update().clone() else {
                break;
            };
            match write(&store, &node, &now, written.as_ref()).await {
                Ok(()) => {
                    written = Some(now);
                    complained.clear();
                    away = false;
                    break;
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    // The words of single failures differ while a store is away.
                    let unavailable = error
                        .downcast_ref::<StoreError>()
                        .is_some_and(|error| matches!(error, StoreError::Unavailable { .. }));
                    let again = std::mem::replace(&mut away, unavailable) && unavailable;
                    if text != complained && !again {
                        tracing::warn!("{text}; trying on");
                        complained = text;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

async fn write<S: Store>(
    store: &S,
    node: &NodeName,
    news: &News,
    written: Option<&News>,
) -> Result<()> {
    let again = written.is_none_or(|w| w.again != news.again);
    let again_all = again || written.is_some_and(|w| w.removed);
    if !news.removed && (again_all || written.is_none_or(|w| w.spec != news.spec)) {
        let mut object = NodeEncryption::new(node.as_str(), news.spec.clone());
        // Counts only if the object is new: a status is never without its spec.
        object.status = news.status.clone();
        store
            .apply(object)
            .await
            .context("writing this node's NodeEncryption")?;
    }
    if !news.removed && (again_all || written.is_none_or(|w| w.status != news.status)) {
        change_status::<_, NodeEncryptionKind>(store, node.as_str(), |_, status| {
            status.clone_from(&news.status);
        })
        .await
        .context("writing this node's status")?;
    }
    if let Some(request) = &news.request
        && (again || written.is_none_or(|w| w.request.as_ref() != Some(request)))
    {
        store
            .apply(CertificateRequest::new(node.as_str(), request.clone()))
            .await
            .context("writing the certificate request")?;
    }
    Ok(())
}
