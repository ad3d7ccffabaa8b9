//! Writes what the agent has to say into the store, beside the engine: a slow store delays news,
//! never packets.

use std::time::Duration;

use anyhow::{Context, Result};
use testudo_crypto::{Random, SystemRandom};
use testudo_model::node::NodeEncryptionKind;
use testudo_model::{
    Acknowledgement, CertificateRequest, CertificateRequestSpec, NodeEncryption,
    NodeEncryptionSpec, NodeEncryptionStatus, NodeName,
};
use testudo_store::{Store, StoreError, change_status};
use testudo_store_kube::pause;
use tokio::sync::watch;
use tokio::time::Instant;

/// What nobody waits for (counts, words for people) is held back for so long for each other node, to which
/// each write goes: a small cluster sees it at once, and in a large one such writes do not grow with its square.
/// Of a thousand nodes whose tunnels come up each would else write many times, and every write go to a thousand.
const CALM_EACH: Duration = Duration::from_millis(50);
/// And at most for about so long.
const CALM: Duration = Duration::from_secs(60);

/// In a large cluster the steps of a roll-out are told over so long for each node beyond the first few: all
/// agents take a step in the same second, and what each writes goes to every other.
const SPREAD_EACH: Duration = Duration::from_millis(50);
/// So many nodes may write in one second.
const CROWD: u32 = 50;
/// And over no longer than this.
const SPREAD: Duration = Duration::from_secs(60);

fn spread(news: &News) -> Duration {
    SPREAD_EACH
        .saturating_mul(news.status.tunnels_expected.saturating_sub(CROWD))
        .min(SPREAD)
}

/// When news are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Haste {
    /// Nobody waits for it.
    None,
    /// Others wait for it, and all write the like: within [`spread`].
    Crowd,
    /// Others wait for it.
    Now,
}

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
    fn haste(&self, last: &News) -> Haste {
        if self.differs(last, last.status.acknowledged) {
            return Haste::Now;
        }
        match self.differs(last, self.status.acknowledged) {
            true => Haste::Crowd,
            false => Haste::None,
        }
    }

    /// Whether it differs in what others wait for, with this word for its own.
    fn differs(&self, last: &News, acknowledged: Option<Acknowledgement>) -> bool {
        let calm = NodeEncryptionStatus {
            tunnels_up: last.status.tunnels_up,
            tunnels_expected: last.status.tunnels_expected,
            effective_mtu: last.status.effective_mtu,
            datapath_note: last.status.datapath_note.clone(),
            conditions: last.status.conditions.clone(),
            acknowledged,
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
    // When it is this node's turn among all that write.
    let mut crowd_due = None;
    let mut words_due = None;
    loop {
        let now = news.borrow_and_update().clone();
        let Some(now) = now.filter(|now| written.as_ref() != Some(now)) else {
            match news.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        let haste = match &written {
            Some(last) => now.haste(last),
            None => Haste::Now,
        };
        let due = match haste {
            Haste::Now => retry_due,
            Haste::Crowd => {
                let share = || Instant::now() + share(spread(&now));
                retry_due.max(*crowd_due.get_or_insert_with(share))
            }
            Haste::None => {
                // What one has to say all have, as a rule: that a step has begun, or the policy has changed.
                let share = || Instant::now() + share(calm(&now));
                retry_due.max(calm_due.max(*words_due.get_or_insert_with(share)))
            }
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
                (crowd_due, words_due) = (None, None);
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
    time.mul_f64(0.8) + share(time.mul_f64(0.4))
}

/// A part of it by chance.
fn share(time: Duration) -> Duration {
    let mut random = [0; 2];
    SystemRandom::new().fill(&mut random);
    time.mul_f64(f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX))
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
