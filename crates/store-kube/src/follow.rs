//! A watch that does not end, told as the difference to what was told before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{Api, DynamicObject};
use testudo_model::{Kind, Object};
use testudo_store::{Event, Problem, Watch};
use tokio::sync::mpsc;

use crate::convert::Read;
use crate::list_watch::{Heard, ListWatch};
use crate::store::KubeStore;
use crate::{any, link, verdict};

/// An API server that is away for less is not spoken of: one that restarts is.
const UNSPOKEN: Duration = Duration::from_secs(3);

pub(crate) fn start<K: Kind>(store: KubeStore, api: Api<DynamicObject>) -> Watch<K> {
    let (sender, watch) = Watch::channel();
    let closed = sender.clone();
    let objects = ListWatch::new(api, store.selection::<K>(None), |raw| raw);
    tokio::spawn(async move {
        tokio::select! {
            () = follow::<K>(store, objects, sender) => {}
            () = closed.closed() => {}
        }
    });
    watch
}

/// Ends when nobody listens any more.
async fn follow<K: Kind>(
    store: KubeStore,
    mut objects: ListWatch<DynamicObject, DynamicObject>,
    sender: mpsc::Sender<Event<K>>,
) {
    let mut told = Told::<K>::default();
    let mut trouble = Trouble::default();
    loop {
        let mut events = Vec::new();
        match objects.next().await {
            Heard::Listed(raws) => {
                events.extend(trouble.over().map(Event::Solved));
                let reads = raws.iter().map(|raw| store.read::<K>(raw));
                told.listed(reads, &mut events);
            }
            Heard::Watching => events.extend(trouble.over().map(Event::Solved)),
            Heard::Changed(raw) => told.changed(store.read::<K>(&raw), &mut events),
            Heard::Gone(raw) => {
                let name = raw.metadata.name.as_deref().unwrap_or_default();
                told.gone(name, &mut events);
            }
            Heard::Failed(error) => {
                let server = store.server().await;
                let problem = trouble.more(told.synced, || {
                    let reason = verdict::refused::<K>(&server, "", error).to_string();
                    of_the_store(&server, &link::resource::<K>().plural, reason)
                });
                events.extend(problem.map(Event::Problem));
            }
        }
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// That the API server is away, from the first failure to the next success.
#[derive(Default)]
pub(crate) struct Trouble {
    since: Option<Instant>,
    told: Option<Problem>,
}

impl Trouble {
    /// One more failure; what is to be told of it, if none was told before: the words of single failures
    /// differ. `synced`: what stood at the beginning has been told, and a short absence is not spoken of.
    pub(crate) fn more(
        &mut self,
        synced: bool,
        problem: impl FnOnce() -> Problem,
    ) -> Option<Problem> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.told.is_some() || (synced && since.elapsed() < UNSPOKEN) {
            return None;
        }
        self.told = Some(problem());
        self.told.clone()
    }

    /// It answers again; what was told of it.
    pub(crate) fn over(&mut self) -> Option<Problem> {
        std::mem::take(self).told
    }
}

/// That the API server does not give objects of this resource.
pub(crate) fn of_the_store(server: &str, plural: &str, reason: String) -> Problem {
    Problem {
        file: PathBuf::from(format!("{server}/{plural}")),
        name: None,
        line: 0,
        column: 0,
        reason,
    }
}

/// What was told, and what of it stands in the API under which name.
struct Told<K: Kind> {
    synced: bool,
    /// By the name in the API: the name in the store and the order among those that share it.
    standing: BTreeMap<String, (String, String)>,
    /// By the name in the store, then by order and name in the API: the last good version of each. The
    /// last of them is the one that counts.
    groups: BTreeMap<String, Group<K>>,
    /// By the name in the store: the names of older ones, which are told as well.
    older: BTreeMap<String, BTreeSet<String>>,
    objects: BTreeMap<String, Arc<Object<K>>>,
    problems: BTreeMap<PathBuf, Problem>,
}

/// Objects of one name in the store.
type Group<K> = BTreeMap<(String, String), Option<Arc<Object<K>>>>;

impl<K: Kind> Default for Told<K> {
    fn default() -> Told<K> {
        Told {
            synced: false,
            standing: BTreeMap::new(),
            groups: BTreeMap::new(),
            older: BTreeMap::new(),
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }
}

impl<K: Kind> Told<K> {
    /// All that stands now.
    fn listed(&mut self, reads: impl Iterator<Item = Read<K>>, events: &mut Vec<Event<K>>) {
        let reads: Vec<Read<K>> = reads.collect();
        let mut gone: BTreeSet<String> = self.standing.keys().cloned().collect();
        for read in &reads {
            gone.remove(&read.raw);
        }
        for raw in gone {
            self.gone(&raw, events);
        }
        for read in reads {
            self.changed(read, events);
        }
        if !self.synced {
            self.synced = true;
            events.push(Event::Synced);
        }
    }

    fn changed(&mut self, read: Read<K>, events: &mut Vec<Event<K>>) {
        let file = verdict::problem::<K>(&read.raw, "").file;
        let old = self.take(&read.raw);
        let good = match read.object {
            Ok(object) => {
                events.extend(self.problems.remove(&file).map(Event::Solved));
                Some(Arc::new(object))
            }
            Err(problem) => {
                if self.problems.get(&file) != Some(&problem) {
                    self.problems.insert(file, problem.clone());
                    events.push(Event::Problem(problem));
                }
                old.as_ref().and_then(|(_, good)| good.clone())
            }
        };
        let key = (read.order.clone(), read.raw.clone());
        let group = self.groups.entry(read.name.clone()).or_default();
        group.insert(key, good);
        self.standing
            .insert(read.raw, (read.name.clone(), read.order));
        if let Some((name, _)) = old
            && name != read.name
        {
            self.settle(&name, events);
        }
        self.settle(&read.name, events);
    }

    fn gone(&mut self, raw: &str, events: &mut Vec<Event<K>>) {
        let file = verdict::problem::<K>(raw, "").file;
        events.extend(self.problems.remove(&file).map(Event::Solved));
        if let Some((name, _)) = self.take(raw) {
            self.settle(&name, events);
        }
    }

    /// Forgets what stands under a name in the API; its name in the store and last good version.
    fn take(&mut self, raw: &str) -> Option<(String, Option<Arc<Object<K>>>)> {
        let (name, order) = self.standing.remove(raw)?;
        let group = self.groups.get_mut(&name)?;
        let good = group.remove(&(order, raw.to_owned()))?;
        if group.is_empty() {
            self.groups.remove(&name);
        }
        Some((name, good))
    }

    /// Tells what has become of the objects that share this name in the store.
    fn settle(&mut self, name: &str, events: &mut Vec<Event<K>>) {
        let group = self.groups.get(name).into_iter().flatten();
        let mut good: Vec<_> = group.filter_map(|(_, good)| good.clone()).collect();
        let newest = good.pop();
        let older = good.iter().filter_map(|good| any::superseded(good));
        let older: Vec<Object<K>> = older.collect();
        let names: BTreeSet<String> = older.iter().map(|o| o.name().to_owned()).collect();
        let before = match names.is_empty() {
            true => self.older.remove(name),
            false => self.older.insert(name.to_owned(), names.clone()),
        };
        for gone in before.unwrap_or_default().difference(&names) {
            self.tell(gone, None, events);
        }
        self.tell(name, newest, events);
        for object in older {
            let name = object.name().to_owned();
            self.tell(&name, Some(Arc::new(object)), events);
        }
    }

    /// Tells what has become of one object.
    fn tell(&mut self, name: &str, good: Option<Arc<Object<K>>>, events: &mut Vec<Event<K>>) {
        let Some(good) = good else {
            let old = self.objects.remove(name);
            events.extend(old.map(|old| Event::Deleted(Arc::unwrap_or_clone(old))));
            return;
        };
        let object = Object::clone(&good);
        match self.objects.insert(name.to_owned(), good) {
            Some(old) if *old == object => {}
            Some(old) if old.metadata.uid != object.metadata.uid => {
                // Deleted and made again between two looks: another object of the same name.
                events.push(Event::Deleted(Arc::unwrap_or_clone(old)));
                events.push(Event::Added(object));
            }
            Some(_) => events.push(Event::Modified(object)),
            None => events.push(Event::Added(object)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use testudo_model::policy::{EncryptionPolicyKind, Mode};
    use testudo_model::request::CertificateRequestKind;

    fn policy(version: u32, uid: &str, mode: &str) -> Read<EncryptionPolicyKind> {
        let raw: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "testudo.dev/v1alpha1",
            "kind": "EncryptionPolicy",
            "metadata": { "name": "cluster", "uid": uid, "resourceVersion": version.to_string() },
            "spec": { "mode": mode },
        }))
        .unwrap();
        crate::convert::read(&raw, None)
    }

    fn request(name: &str, minute: u32, node: &str) -> Read<CertificateRequestKind> {
        let raw: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {
                "name": name, "uid": name,
                "creationTimestamp": format!("2026-11-28T12:{minute:02}:00Z"),
                "annotations": { "testudo.dev/node": "n1", "testudo.dev/proof": name },
            },
            "spec": {
                "request": "UEVN",
                "extra": { "authentication.kubernetes.io/node-name": [node] },
            },
        }))
        .unwrap();
        crate::convert::read(&raw, None)
    }

    fn told<K: Kind>(told: &mut Told<K>, reads: Vec<Read<K>>) -> Vec<Event<K>> {
        let mut events = Vec::new();
        told.listed(reads.into_iter(), &mut events);
        events
    }

    #[test]
    fn after_a_lost_watch_only_the_difference_is_told() {
        let mut state = Told::default();
        let first = told(&mut state, vec![policy(1, "a", "Full")]);
        assert!(matches!(&first[..], [Event::Added(_), Event::Synced]));
        assert_eq!(told(&mut state, vec![policy(1, "a", "Full")]), []);
        let changed = told(&mut state, vec![policy(2, "a", "Disabled")]);
        assert!(matches!(&changed[..], [Event::Modified(o)] if o.spec.mode == Mode::Disabled));
        // Deleted and made again while nobody listened.
        let again = told(&mut state, vec![policy(9, "b", "Full")]);
        assert!(matches!(&again[..], [Event::Deleted(_), Event::Added(_)]));
        let gone = told(&mut state, vec![]);
        assert!(matches!(&gone[..], [Event::Deleted(o)] if o.spec.mode == Mode::Full));
    }

    #[test]
    fn an_event_that_comes_again_is_not_told_again() {
        let mut state = Told::default();
        told(&mut state, vec![policy(1, "a", "Full")]);
        let mut events = Vec::new();
        state.changed(policy(1, "a", "Full"), &mut events);
        assert_eq!(events, []);
        for _ in 0..2 {
            state.gone("cluster", &mut events);
        }
        assert!(matches!(&events[..], [Event::Deleted(_)]), "{events:?}");
    }

    #[test]
    fn the_last_good_version_goes_on_until_the_object_is_mended_or_gone() {
        let mut state = Told::default();
        told(&mut state, vec![policy(1, "a", "Full")]);
        let broken = told(&mut state, vec![policy(2, "a", "Half")]);
        assert!(matches!(&broken[..], [Event::Problem(p)] if p.reason.contains("Half")));
        assert_eq!(told(&mut state, vec![policy(3, "a", "Half")]), []);
        let mended = told(&mut state, vec![policy(4, "a", "External")]);
        assert!(matches!(
            &mended[..],
            [Event::Solved(_), Event::Modified(_)]
        ));
        told(&mut state, vec![policy(5, "a", "Half")]);
        let gone = told(&mut state, vec![]);
        assert!(matches!(&gone[..], [Event::Solved(_), Event::Deleted(_)]));
    }

    #[test]
    fn of_a_nodes_requests_the_newest_counts_and_neither_strangers_nor_older_ones() {
        let mut state = Told::default();
        let events = told(
            &mut state,
            vec![
                request("z", 1, "n1"),
                request("a", 2, "n1"),
                request("s", 3, "n2"),
            ],
        );
        let names: Vec<_> = state.objects.keys().map(String::as_str).collect();
        assert_eq!(names, ["n1", "stranger.s", "stranger.z"]);
        assert_eq!(state.objects["n1"].spec.proof, "a");
        assert_eq!(state.objects["stranger.z"].spec.proof, "z");
        let unfit = |state: &Told<_>, name: &str| {
            let why = crate::request::unfit(&state.objects[name]).map(str::to_owned);
            why.unwrap_or_default()
        };
        assert_eq!(unfit(&state, "n1"), "");
        assert!(unfit(&state, "stranger.z").contains("asked again"));
        assert!(matches!(events.last(), Some(Event::Synced)));
        // Nothing has changed.
        let same = vec![
            request("a", 2, "n1"),
            request("z", 1, "n1"),
            request("s", 3, "n2"),
        ];
        assert_eq!(told(&mut state, same), []);
        // The newest is cleaned away: the one before it is told again, under the node's name alone.
        let events = told(
            &mut state,
            vec![request("z", 1, "n1"), request("s", 3, "n2")],
        );
        assert!(
            matches!(&events[..], [Event::Deleted(_), Event::Deleted(_), Event::Added(o)] if o.spec.proof == "z"),
            "{events:?}"
        );
        let names: Vec<_> = state.objects.keys().map(String::as_str).collect();
        assert_eq!(names, ["n1", "stranger.s"]);
        assert_eq!(unfit(&state, "n1"), "");
        let events = told(&mut state, vec![]);
        assert!(matches!(
            &events[..],
            [Event::Deleted(_), Event::Deleted(_)]
        ));
    }
}
