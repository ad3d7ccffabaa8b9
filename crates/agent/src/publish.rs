//! Writes what the agent has to say into the store, beside the engine: a slow store delays news,
//! never packets.

use std::time::Duration;

use anyhow::{Context, Result};
use testudo_crypto::{Random, SystemRandom};
use testudo_model::node::NodeEncryptionKind;
use testudo_model::{
    CertificateRequest, CertificateRequestSpec, NodeEncryption, NodeEncryptionSpec,
    NodeEncryptionStatus, NodeName,
};
use testudo_store::{Store, StoreError, change_status};
use testudo_store_kube::pause;
use tokio::sync::watch;
use tokio::time::Instant;

/// What nobody waits for (counts, words for people) is held back for so long for each other node, to which
/// each write goes: a small cluster sees it at once, and in a large one such writes do not grow with its square.
const CALM_EACH: Duration = Duration::from_millis(20);
/// And at most for about so long.
const CALM: Duration = Duration::from_secs(5);

fn calm(news: &News) -> Duration {
    CALM_EACH
        .saturating_mul(news.status.tunnels_expected)
        .min(CALM)
}

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

impl News {
    /// Whether others wait for what has changed since `last`: the next step of a roll-out or of a rotation,
    /// or a peer.
    fn is_urgent(&self, last: &News) -> bool {
        let calm = NodeEncryptionStatus {
            tunnels_up: last.status.tunnels_up,
            tunnels_expected: last.status.tunnels_expected,
            effective_mtu: last.status.effective_mtu,
            datapath_note: last.status.datapath_note.clone(),
            conditions: last.status.conditions.clone(),
            ..self.status.clone()
        };
        let same = News {
            status: calm,
            ..self.clone()
        };
        same != *last
    }
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
            task: tokio::spawn(publish(store, node, calm, receiver)),
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

async fn publish<S: Store>(
    store: S,
    node: NodeName,
    calm: impl Fn(&News) -> Duration,
    mut news: watch::Receiver<Option<News>>,
) {
    let mut written: Option<News> = None;
    let mut failures = Failures::default();
    // Not before this time: what nobody waits for, and everything after a failed write.
    let mut calm_due = Instant::now();
    let mut retry_due = calm_due;
    loop {
        let now = news.borrow_and_update().clone();
        let Some(now) = now.filter(|now| written.as_ref() != Some(now)) else {
            match news.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        let urgent = written.as_ref().is_none_or(|last| now.is_urgent(last));
        let due = match urgent {
            true => retry_due,
            false => retry_due.max(calm_due),
        };
        if due > Instant::now() {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                changed = news.changed() => if changed.is_err() { return },
            }
            continue;
        }
        match write(&store, &node, &now, written.as_ref()).await {
            Ok(()) => {
                calm_due = Instant::now() + jittered(calm(&now));
                written = Some(now);
                failures = Failures::default();
            }
            Err(error) => retry_due = Instant::now() + failures.another(&error),
        }
    }
}

/// Writes that failed, one after the other.
#[derive(Default)]
struct Failures {
    count: u32,
    complained: String,
    /// The last one was the store's absence.
    away: bool,
}

impl Failures {
    /// Says what is new about it. How long to wait then.
    fn another(&mut self, error: &anyhow::Error) -> Duration {
        let text = format!("{error:#}");
        // The words of single failures differ while a store is away.
        let unavailable = error
            .downcast_ref::<StoreError>()
            .is_some_and(|error| matches!(error, StoreError::Unavailable { .. }));
        let again = std::mem::replace(&mut self.away, unavailable) && unavailable;
        if text != self.complained && !again {
            tracing::warn!("{text}; trying on");
            self.complained = text;
        }
        self.count = self.count.saturating_add(1);
        pause(self.count)
    }
}

/// From four to six fifths of it: a thousand agents that began together do not go on together.
fn jittered(time: Duration) -> Duration {
    let mut random = [0];
    SystemRandom::new().fill(&mut random);
    time.mul_f64(0.8 + 0.4 * f64::from(random[0]) / 255.0)
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

#[cfg(test)]
mod tests;
