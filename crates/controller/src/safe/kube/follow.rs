//! Objects of the API that are not ours, kept up to date by a watch: listed once, then followed, and
//! listed anew only where the API server has forgotten where the watch stood.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use testudo_store_kube::{call, pause};
use tokio::sync::Notify;
use tracing::{info, warn};

/// How many objects come in one answer to a list.
const PAGE: u32 = 500;
/// How long a call may take.
const CALL: Duration = Duration::from_secs(15);
/// After this many seconds the API server ends a watch, and it is begun anew where it stood.
const WATCH_SECONDS: u32 = 270;
/// Longest silence of a watch, in which a bookmark comes about once a minute.
const SILENCE: Duration = Duration::from_secs(150);
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
    K: Resource + Clone + DeserializeOwned + Debug,
    T: Clone + PartialEq,
{
    let mut version: Option<String> = None;
    let mut failures = 0;
    loop {
        let done = match &mut version {
            None => match list(&wish).await {
                Ok((items, listed)) => {
                    version = Some(listed);
                    lock(&state).items = Some(items);
                    news.notify_one();
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Some(version) => {
                let heard = hear(&wish, &state, &news, version, &mut failures).await;
                // Where no list can be had, what a watch says has no beginning.
                heard
            }
        };
        match done {
            Ok(()) => {
                if failures >= UNSPOKEN {
                    info!("{} are seen again", wish.what);
                }
                failures = 0;
            }
            Err(kube::Error::Api(status)) if status.code == 410 => version = None,
            Err(error) => {
                failures += 1;
                let text = format!("{} cannot be seen: {error}", wish.what);
                if failures == UNSPOKEN {
                    warn!("{text}; what was seen last goes on");
                }
                lock(&state).trouble = text;
                tokio::time::sleep(pause(failures)).await;
            }
        }
    }
}

async fn list<K, T>(wish: &Wish<K, T>) -> kube::Result<(BTreeMap<String, T>, String)>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut params = ListParams {
        limit: Some(PAGE),
        field_selector: wish.fields.clone(),
        ..ListParams::default()
    };
    let mut items = BTreeMap::new();
    loop {
        let page = call(CALL, wish.api.list(&params)).await?;
        let kept = page.items.iter();
        items.extend(kept.map(|object| (object.name_any(), (wish.keep)(object))));
        params.continue_token = page.metadata.continue_.filter(|more| !more.is_empty());
        if params.continue_token.is_none() {
            return Ok((items, page.metadata.resource_version.unwrap_or_default()));
        }
    }
}

/// One watch from its beginning to its end. `version` follows what was heard.
async fn hear<K, T>(
    wish: &Wish<K, T>,
    state: &Mutex<State<T>>,
    news: &Notify,
    version: &mut String,
    failures: &mut u32,
) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    T: Clone + PartialEq,
{
    let params = WatchParams {
        field_selector: wish.fields.clone(),
        timeout: Some(WATCH_SECONDS),
        bookmarks: true,
        ..WatchParams::default()
    };
    let stream = call(CALL, wish.api.watch(&params, version)).await?;
    let mut stream = std::pin::pin!(stream);
    if *failures >= UNSPOKEN {
        info!("{} are seen again", wish.what);
    }
    *failures = 0;
    loop {
        let Ok(next) = tokio::time::timeout(SILENCE, stream.try_next()).await else {
            return Ok(());
        };
        let object = match next? {
            None => return Ok(()),
            Some(WatchEvent::Bookmark(mark)) => {
                *version = mark.metadata.resource_version;
                continue;
            }
            Some(WatchEvent::Error(status)) => return Err(kube::Error::Api(status)),
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                let item = (wish.keep)(&object);
                let mut state = lock(state);
                let items = state.items.get_or_insert_default();
                let old = items.insert(object.name_any(), item.clone());
                // Most changes of a Node are none of what is kept.
                if old.as_ref() != Some(&item) {
                    news.notify_one();
                }
                object
            }
            Some(WatchEvent::Deleted(object)) => {
                let mut state = lock(state);
                state
                    .items
                    .get_or_insert_default()
                    .remove(&object.name_any());
                news.notify_one();
                object
            }
        };
        if let Some(newer) = object.resource_version() {
            *version = newer;
        }
    }
}
