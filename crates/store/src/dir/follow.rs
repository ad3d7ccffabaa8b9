//! Following a folder: inotify says when to look, a look says what changed.
//!
//! The folder itself is the truth. A notice is only a reason to look, so that a lost or merged one
//! does no harm; and every [`DirOptions::relist`](crate::DirOptions::relist) there is a look
//! without a notice.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use testudo_model::{Kind, Object};
use tokio::sync::{Notify, mpsc};

use super::DirStore;
use crate::error::{Problem, StoreError};
use crate::scan::Scan;
use crate::watch::{Event, Watch};

/// How often to look where inotify cannot be had.
const POLL: Duration = Duration::from_millis(500);

pub(super) fn start<K: Kind>(store: DirStore) -> Watch<K> {
    let (sender, watch) = Watch::channel();
    tokio::spawn(follow::<K>(store, sender));
    watch
}

async fn follow<K: Kind>(store: DirStore, sender: mpsc::Sender<Event<K>>) {
    let options = store.inner.options;
    let folder = store.inner.reader.folder::<K>();
    let mut told = Told::<K>::new(folder.clone());
    let mut bell = Bell::default();
    loop {
        // Before the look: what changes during it rings again.
        bell.arm(&folder);
        let scan = store.blocking(|inner| inner.reader.scan::<K>()).await;
        let mut events = Vec::new();
        told.look(scan, Instant::now(), options.grace, &mut events);
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        let longest = if bell.armed() { options.relist } else { POLL };
        let wait = told.next_look(Instant::now(), options.grace, longest);
        tokio::select! {
            () = bell.rung.notified() => {}
            () = tokio::time::sleep(wait) => {}
            () = sender.closed() => return,
        }
    }
}

/// Rings when something in the folder changes.
#[derive(Default)]
struct Bell {
    rung: Arc<Notify>,
    watcher: Option<(u64, notify::RecommendedWatcher)>,
    complained: bool,
}

impl Bell {
    fn armed(&self) -> bool {
        self.watcher.is_some()
    }

    /// Listens to the folder, again if it is another one than before.
    fn arm(&mut self, folder: &Path) {
        let Ok(inode) = std::fs::metadata(folder).map(|m| m.ino()) else {
            self.watcher = None;
            return;
        };
        if self
            .watcher
            .as_ref()
            .is_some_and(|(known, _)| *known == inode)
        {
            return;
        }
        self.watcher = None;
        let rung = Arc::clone(&self.rung);
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_err() || event.is_ok_and(|e| matters(&e)) {
                rung.notify_one();
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match made {
            Ok(watcher) => self.watcher = Some((inode, watcher)),
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::warn!(
                    folder = %folder.display(),
                    "no notices of changes, looking twice a second instead: {error}; \
                     raise fs.inotify.max_user_instances if that is the reason"
                );
            }
            Err(_) => {}
        }
    }
}

/// Our own looks open and read files: that must not ring, or the bell would never rest.
fn matters(event: &notify::Event) -> bool {
    let quiet = matches!(event.kind, EventKind::Access(kind)
        if kind != AccessKind::Close(AccessMode::Write));
    let hidden = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
    !quiet && (event.paths.is_empty() || !event.paths.iter().all(hidden))
}

/// What a watch has told, and what it holds back for a moment.
struct Told<K: Kind> {
    folder: PathBuf,
    synced: bool,
    objects: BTreeMap<String, Object<K>>,
    problems: BTreeMap<PathBuf, Problem>,
    /// Objects that are gone or broken, and since when.
    worse: BTreeMap<String, Instant>,
}

impl<K: Kind> Told<K> {
    fn new(folder: PathBuf) -> Told<K> {
        Told {
            folder,
            synced: false,
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
            worse: BTreeMap::new(),
        }
    }

    /// When to look again although no bell rings.
    fn next_look(&self, now: Instant, grace: Duration, longest: Duration) -> Duration {
        self.worse
            .values()
            .map(|since| (*since + grace).saturating_duration_since(now))
            .filter(|wait| !wait.is_zero())
            .min()
            .map_or(longest, |wait| wait.min(longest) + Duration::from_millis(1))
    }

    /// Compares a look at the folder with what was told.
    fn look(
        &mut self,
        scan: Result<Scan<K>, StoreError>,
        now: Instant,
        grace: Duration,
        events: &mut Vec<Event<K>>,
    ) {
        let mut scan = match scan {
            Ok(scan) => scan,
            Err(error) => {
                // A folder that is missing says nothing about the objects that were in it.
                let problem = Problem::of_file(&self.folder, None, error.to_string());
                self.problem(problem, events);
                return;
            }
        };
        let strays: BTreeMap<PathBuf, Problem> = scan
            .strays
            .drain(..)
            .map(|stray| (stray.file.clone(), stray))
            .collect();
        let solved = |path: &PathBuf, problem: &Problem| {
            problem.name.is_none() && !strays.contains_key(path)
        };
        self.solve(solved, events);
        for stray in strays.into_values() {
            self.problem(stray, events);
        }
        self.gone(&scan, now, grace, events);
        for (name, seen) in scan.seen {
            match seen.problem {
                None => {
                    self.worse.remove(&name);
                    self.solve(|_, p| p.name.as_deref() == Some(&*name), events);
                }
                Some(problem) => {
                    let since = *self.worse.entry(name.clone()).or_insert(now);
                    if !self.synced || now.duration_since(since) >= grace {
                        self.problem(problem, events);
                    }
                }
            }
            if let Some(good) = seen.good {
                self.object(name, good, events);
            }
        }
        if !self.synced {
            self.synced = true;
            events.push(Event::Synced);
        }
    }

    /// Objects and broken files that are no longer there.
    fn gone(&mut self, scan: &Scan<K>, now: Instant, grace: Duration, events: &mut Vec<Event<K>>) {
        self.solve(
            |_, p| p.name.as_ref().is_some_and(|n| !scan.seen.contains_key(n)),
            events,
        );
        let objects = &self.objects;
        self.worse
            .retain(|name, _| scan.seen.contains_key(name) || objects.contains_key(name));
        let missing: Vec<String> = self
            .objects
            .keys()
            .filter(|name| !scan.seen.contains_key(*name))
            .cloned()
            .collect();
        for name in missing {
            let since = *self.worse.entry(name.clone()).or_insert(now);
            if now.duration_since(since) >= grace {
                self.worse.remove(&name);
                events.extend(self.objects.remove(&name).map(Event::Deleted));
            }
        }
    }

    fn object(&mut self, name: String, good: Object<K>, events: &mut Vec<Event<K>>) {
        match self.objects.get(&name) {
            Some(old) if *old == good => return,
            Some(old) if old.metadata.uid != good.metadata.uid && old.metadata.uid.is_some() => {
                // Deleted and made again between two looks: another object of the same name.
                events.push(Event::Deleted(old.clone()));
                events.push(Event::Added(good.clone()));
            }
            Some(_) => events.push(Event::Modified(good.clone())),
            None => events.push(Event::Added(good.clone())),
        }
        self.objects.insert(name, good);
    }

    fn problem(&mut self, problem: Problem, events: &mut Vec<Event<K>>) {
        if self.problems.get(&problem.file) != Some(&problem) {
            self.problems.insert(problem.file.clone(), problem.clone());
            events.push(Event::Problem(problem));
        }
    }

    fn solve(&mut self, solved: impl Fn(&PathBuf, &Problem) -> bool, events: &mut Vec<Event<K>>) {
        self.problems.retain(|path, problem| {
            let keep = !solved(path, problem);
            if !keep {
                events.push(Event::Solved(problem.clone()));
            }
            keep
        });
    }
}
