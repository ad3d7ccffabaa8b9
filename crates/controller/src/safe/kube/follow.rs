//! Objects of the API that are not ours, kept up to date by a watch.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::api::{Api, ListParams};
use kube::core::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use testudo_store_kube::{Heard, ListWatch};
use tokio::sync::Notify;
use tracing::{info, warn};

/// So many tries fail before it is said.
const UNSPOKEN: u32 = 4;

/// What was seen last of some objects. The watch ends with it.
pub(super) struct Followed<T> {
    state: Arc<Mutex<State<T>>>,
    task: tokio::task::JoinHandle<()>,
}

struct State<T> {
    /// By name; none before the first list.
    items: Option<BTreeMap<String, T>>,
    trouble: String,
}

/// Which objects to follow, and what to keep of each.
pub(super) struct Wish<K, T> {
    pub(super) api: Api<K>,
    /// `metadata.name=x`, or all.
    pub(super) fields: Option<String>,
    /// For the log.
    pub(super) what: String,
    pub(super) keep: fn(&K) -> T,
}

impl<T: Clone + PartialEq + Send + 'static> Followed<T> {
    /// Begins. `news` is told of every change.
    pub(super) fn start<K>(wish: Wish<K, T>, news: Arc<Notify>) -> Self
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let state = Arc::new(Mutex::new(State {
            items: None,
            trouble: "nothing was heard yet".to_owned(),
        }));
        let task = tokio::spawn(follow(wish, Arc::clone(&state), news));
        Self { state, task }
    }

    /// Looks at them; an error says why there is nothing to look at.
    pub(super) fn look<R>(&self, at: impl FnOnce(&BTreeMap<String, T>) -> R) -> Result<R, String> {
        let state = lock(&self.state);
        match &state.items {
            Some(items) => Ok(at(items)),
            None => Err(state.trouble.clone()),
        }
    }
}

impl<T> Drop for Followed<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow<K, T>(wish: Wish<K, T>, state: Arc<Mutex<State<T>>>, news: Arc<Notify>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    T: Clone + PartialEq + Send + 'static,
{
    let Wish { what, keep, .. } = wish;
    let selection = ListParams {
        field_selector: wish.fields,
        ..ListParams::default()
    };
    let mut objects = ListWatch::new(wish.api, selection, move |object: K| {
        (object.name_any(), keep(&object))
    });
    let mut failures = 0;
    loop {
        let heard = objects.next().await;
        let mut state = lock(&state);
        if let Heard::Listed(_) | Heard::Watching = heard {
            if failures >= UNSPOKEN {
                info!("{what} are seen again");
            }
            failures = 0;
        }
        match heard {
            Heard::Listed(all) => {
                state.items = Some(all.into_iter().collect());
                news.notify_one();
            }
            Heard::Watching => {}
            Heard::Changed((name, item)) => {
                let items = state.items.get_or_insert_default();
                let old = items.insert(name, item.clone());
                // Most changes of a Node are none of what is kept.
                if old.as_ref() != Some(&item) {
                    news.notify_one();
                }
            }
            Heard::Gone((name, _)) => {
                state.items.get_or_insert_default().remove(&name);
                news.notify_one();
            }
            Heard::Failed(error) => {
                failures += 1;
                let text = format!("{what} cannot be seen: {error}");
                if failures == UNSPOKEN {
                    warn!("{text}; what was seen last goes on");
                }
                state.trouble = text;
            }
        }
    }
}
