//! The store in a directory: `DIR/<plural>/<name>.yaml`.
//!
//! Readers take no lock: a file is replaced by a rename, so that it is the old one or the new
//! one. Writers take the lock file of their kind, read, change, and replace; so the spec written
//! by one process and the status written by another both last. An editor takes no lock, and needs
//! none: a file it has half written is refused with its line while the last good version goes on.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use testudo_crypto::{Random, SystemRandom};
use testudo_model::{CertificateRequest, Kind, Object};

use crate::check::{check_name, check_object};
use crate::document::{MAX_BYTES, Source};
use crate::error::{Problem, StoreError};
use crate::files;
use crate::kinds::KindName;
use crate::location::Location;
use crate::requester::Requester;
use crate::scan::{Reader, Seen};
use crate::store::{Applied, Change, Listing, Store, is_as_seen};
use crate::tokens;
use crate::watch::Watch;

mod follow;

/// How long a writer waits for the others.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// What to do about a directory that cannot be used.
const OTHER_PLACE: &str =
    "run as the user who owns it, or name another place with --store dir:PATH";

/// Settings of a [`DirStore`].
#[derive(Clone, Copy, Debug)]
pub struct DirOptions {
    /// Whether new objects and specs are on the disk before a write returns. Status is not: it is
    /// observed again after a crash of the machine.
    pub sync: bool,
    /// How often a watch looks at the whole folder although nothing was told to it.
    pub relist: Duration,
    /// How long a change for the worse (a file that is gone, or broken) must last before a watch
    /// tells of it: editors move a file away for a moment, or write it in two parts.
    pub grace: Duration,
}

impl Default for DirOptions {
    fn default() -> Self {
        DirOptions {
            sync: true,
            relist: Duration::from_secs(2),
            grace: Duration::from_millis(100),
        }
    }
}

/// Objects in a directory. See the [crate] documentation.
#[derive(Clone)]
pub struct DirStore {
    inner: Arc<Inner>,
}

struct Inner {
    reader: Reader,
    secrets: PathBuf,
    options: DirOptions,
}

impl DirStore {
    /// The store in `root`, for reading and writing: what is missing of it is made, and a
    /// directory that cannot be written is refused. Blocks shortly.
    pub fn open(root: impl Into<PathBuf>) -> Result<DirStore, StoreError> {
        DirStore::with_options(root, DirOptions::default())
    }

    /// As [`DirStore::open`], with settings.
    pub fn with_options(
        root: impl Into<PathBuf>,
        options: DirOptions,
    ) -> Result<DirStore, StoreError> {
        let store = DirStore::new(root.into(), options);
        store.inner.prepare()?;
        Ok(store)
    }

    /// The store in `root` for reading, which must be there already.
    pub fn open_read_only(root: impl Into<PathBuf>) -> Result<DirStore, StoreError> {
        let root = root.into();
        match std::fs::metadata(&root) {
            Ok(metadata) if metadata.is_dir() => Ok(DirStore::new(root, DirOptions::default())),
            Ok(_) => Err(not_a_directory(&root)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(StoreError::Unavailable {
                what: format!("there is no store in {}", root.display()),
                remedy: "name the right one with --store dir:PATH, or start a controller on it"
                    .to_owned(),
            }),
            Err(e) => Err(StoreError::io("read", &root, e)),
        }
    }

    /// The store at a location, for reading and writing.
    pub fn at(location: &Location) -> Result<DirStore, StoreError> {
        match location {
            Location::Directory(root) => DirStore::open(root),
            Location::Kubernetes(_) => Err(StoreError::Unavailable {
                what: format!("{location} is no directory"),
                remedy: "name one with --store dir:PATH".to_owned(),
            }),
        }
    }

    fn new(root: PathBuf, options: DirOptions) -> DirStore {
        DirStore {
            inner: Arc::new(Inner {
                secrets: root.join("secrets"),
                reader: Reader::new(root),
                options,
            }),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.inner.reader.root()
    }

    /// The folder of secrets (0700): join tokens, the CA's key.
    pub fn secrets(&self) -> &Path {
        &self.inner.secrets
    }

    /// Everything in the store that cannot be read, and folders that hold no kind of ours. Blocks.
    pub fn problems(&self) -> Result<Vec<Problem>, StoreError> {
        let mut problems = Vec::new();
        for kind in KindName::ALL {
            kind.problems_in(&self.inner.reader, &mut problems)?;
        }
        let root = self.root();
        let entries = std::fs::read_dir(root).map_err(|e| StoreError::io("list", root, e))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name == "secrets" || KindName::ALL.iter().any(|kind| kind.plural() == name);
            let manifest = name.ends_with(".yaml");
            let folder = entry.path().is_dir() && !name.starts_with('.') && !ours;
            if manifest || folder && holds_manifests(&entry.path()) {
                let reason = "no kind of object lives here: it is not read";
                problems.push(Problem::of_file(&entry.path(), None, reason));
            }
        }
        Ok(problems)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(StoreError::Unavailable {
                what: "the store was asked while the program ends".to_owned(),
                remedy: "nothing is to be done".to_owned(),
            }),
        }
    }
}

impl Store for DirStore {
    async fn get<K: Kind>(&self, name: &str) -> Result<Option<Object<K>>, StoreError> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            inner.check_name::<K>(&name)?;
            match inner.reader.load::<K>(&name)? {
                None => Ok(None),
                Some(Seen {
                    good: Some(good), ..
                }) => Ok(Some(good)),
                Some(Seen { problem, .. }) => Err(broken(problem)),
            }
        })
        .await
    }

    async fn list<K: Kind>(&self) -> Result<Listing<K>, StoreError> {
        self.blocking(|inner| {
            let scan = inner.reader.scan::<K>()?;
            let mut listing = Listing {
                items: Vec::new(),
                problems: scan.strays,
            };
            for seen in scan.seen.into_values() {
                listing.items.extend(seen.good);
                listing.problems.extend(seen.problem);
            }
            Ok(listing)
        })
        .await
    }

    async fn create<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, StoreError> {
        self.blocking(move |inner| {
            inner.check(&object)?;
            let _lock = inner.lock::<K>()?;
            match inner.reader.load::<K>(object.name())? {
                Some(_) => Err(StoreError::AlreadyExists {
                    kind: K::KIND,
                    name: object.name().to_owned(),
                }),
                None => inner.write_new(object),
            }
        })
        .await
    }

    async fn apply<K: Kind>(&self, object: Object<K>) -> Result<Applied<K>, StoreError> {
        self.blocking(move |inner| inner.apply(object)).await
    }

    async fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        let object = object.clone();
        self.blocking(move |inner| inner.update_status(&object))
            .await
    }

    async fn delete<K: Kind>(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.blocking(move |inner| inner.delete::<K>(&name, None))
            .await
    }

    async fn delete_seen<K: Kind>(&self, object: &Object<K>) -> Result<bool, StoreError> {
        let object = object.clone();
        self.blocking(move |inner| inner.delete(object.name(), Some(&object)))
            .await
    }

    async fn watch<K: Kind>(&self) -> Result<Watch<K>, StoreError> {
        Ok(follow::start(self.clone()))
    }

    async fn requester(&self, request: &CertificateRequest) -> Result<Requester, StoreError> {
        let (node, store) = (request.spec.node.clone(), self.clone());
        self.blocking(move |_| Ok(Requester::HolderOf(tokens::read(&store, &node)?)))
            .await
    }
}

impl Inner {
    /// Makes what is missing, and tries whether writing works: better now than at the first need.
    fn prepare(&self) -> Result<(), StoreError> {
        let root = self.reader.root();
        match std::fs::create_dir_all(root) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(not_a_directory(root));
            }
            Err(e) => {
                return Err(StoreError::Unavailable {
                    what: format!("the store directory {} cannot be made: {e}", root.display()),
                    remedy: OTHER_PLACE.to_owned(),
                });
            }
        }
        let probe = root.join(".probe");
        files::write_atomic(&probe, b"", 0o600, false)
            .and_then(|()| {
                std::fs::remove_file(&probe).map_err(|e| StoreError::io("write", &probe, e))
            })
            .map_err(|error| match error {
                StoreError::Unavailable { what, .. } => StoreError::Unavailable {
                    what: format!(
                        "the store directory {} cannot be written: {what}",
                        root.display()
                    ),
                    remedy:
                        "run as the user who owns it, or name another place with --store dir:PATH"
                            .to_owned(),
                },
                other => other,
            })?;
        for kind in KindName::ALL {
            let folder = root.join(kind.plural());
            std::fs::create_dir_all(&folder).map_err(|e| StoreError::io("create", &folder, e))?;
            remove_leftovers(&folder);
        }
        files::private_dir(&self.secrets)
    }

    fn check_name<K: Kind>(&self, name: &str) -> Result<(), StoreError> {
        check_name(name).map_err(|reason| {
            StoreError::Invalid(Problem::of_file(
                &self.reader.folder::<K>(),
                None,
                format!("no {} has the name {reason}", K::KIND),
            ))
        })
    }

    fn check<K: Kind>(&self, object: &Object<K>) -> Result<(), StoreError> {
        self.check_name::<K>(object.name())?;
        let invalid = |reason: String| {
            let file = self.reader.file::<K>(object.name());
            StoreError::Invalid(Problem::of_file(&file, Some(object.name()), reason))
        };
        check_object(object).map_err(invalid)
    }

    fn apply<K: Kind>(&self, mut object: Object<K>) -> Result<Applied<K>, StoreError> {
        self.check(&object)?;
        let _lock = self.lock::<K>()?;
        let found = self.reader.load::<K>(object.name())?;
        let expected = object.metadata.resource_version.take();
        let Some(Seen { good, problem }) = found else {
            if expected.is_some() {
                return Err(conflict(&object));
            }
            let object = self.write_new(object)?;
            let change = Change::Created;
            return Ok(Applied { object, change });
        };
        let Some(old) = good else {
            // What stands there was never good: there is nothing to keep of it.
            let object = self.write_new(object)?;
            let change = Change::Configured;
            return Ok(Applied { object, change });
        };
        let other_life = object.metadata.uid.is_some() && object.metadata.uid != old.metadata.uid;
        if expected.is_some() && expected != old.metadata.resource_version || other_life {
            return Err(conflict(&object));
        }
        let mut new = old.clone();
        new.metadata.labels = object.metadata.labels;
        new.metadata.annotations = object.metadata.annotations;
        new.spec = object.spec;
        if new == old && problem.is_none() {
            let change = Change::Unchanged;
            return Ok(Applied {
                object: old,
                change,
            });
        }
        if new.spec != old.spec {
            new.metadata.generation = old.metadata.generation.saturating_add(1);
        }
        let object = self.write(new, self.options.sync)?;
        let change = Change::Configured;
        Ok(Applied { object, change })
    }

    fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        self.check_name::<K>(object.name())?;
        let _lock = self.lock::<K>()?;
        let mut old = match self.reader.load::<K>(object.name())? {
            None => {
                return Err(StoreError::NotFound {
                    kind: K::KIND,
                    name: object.name().to_owned(),
                });
            }
            // Someone is at work on it; writing now would undo that work.
            Some(Seen {
                problem: Some(problem),
                ..
            }) => return Err(broken(Some(problem))),
            Some(Seen {
                good: Some(good), ..
            }) => good,
            Some(Seen {
                good: None,
                problem: None,
            }) => return Err(broken(None)),
        };
        let expected = &object.metadata.resource_version;
        let uid = &object.metadata.uid;
        if expected.is_some() && *expected != old.metadata.resource_version
            || uid.is_some() && old.metadata.uid.is_some() && *uid != old.metadata.uid
        {
            return Err(conflict(object));
        }
        if old.status == object.status {
            return Ok(old);
        }
        old.status = object.status.clone();
        self.write(old, false)
    }

    /// `seen`: only while it is as it was read.
    fn delete<K: Kind>(&self, name: &str, seen: Option<&Object<K>>) -> Result<bool, StoreError> {
        self.check_name::<K>(name)?;
        let _lock = self.lock::<K>()?;
        if let Some(seen) = seen {
            match self.reader.load::<K>(name)? {
                None => return Ok(false),
                Some(Seen {
                    good: Some(good),
                    problem: None,
                }) if is_as_seen(&good, seen) => {}
                Some(_) => return Err(conflict(seen)),
            }
        }
        let file = self.reader.file::<K>(name);
        match std::fs::remove_file(&file) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(StoreError::io("delete", &file, e)),
        }
        if self.options.sync {
            files::sync_parent(&file)?;
        }
        self.reader.load::<K>(name)?;
        Ok(true)
    }

    fn write_new<K: Kind>(&self, mut object: Object<K>) -> Result<Object<K>, StoreError> {
        object.metadata.uid = Some(new_uid());
        object.metadata.generation = 1;
        self.write(object, self.options.sync)
    }

    /// Replaces the object's file. The caller holds the lock.
    fn write<K: Kind>(&self, mut object: Object<K>, sync: bool) -> Result<Object<K>, StoreError> {
        let name = object.name().to_owned();
        let file = self.reader.file::<K>(&name);
        let invalid =
            |reason: String| StoreError::Invalid(Problem::of_file(&file, Some(&name), reason));
        object.metadata.resource_version = None;
        let text = serde_saphyr::to_string(&object)
            .map_err(|e| invalid(format!("it cannot be written as YAML: {e}")))?;
        if text.len() > MAX_BYTES {
            return Err(invalid(format!(
                "it has {} bytes, {MAX_BYTES} are allowed",
                text.len()
            )));
        }
        // What is on the disk must say what was meant, or it must not get there.
        let source = Source {
            file: &file,
            text: &text,
            lines_before: 0,
            name: Some(&name),
        };
        match source.object::<K>() {
            Ok(again) if again == object => {}
            Ok(_) => {
                return Err(invalid(
                    "it reads differently after it is written".to_owned(),
                ));
            }
            Err(problem) => return Err(StoreError::Invalid(problem)),
        }
        files::write_atomic(&file, text.as_bytes(), 0o644, sync)?;
        object.metadata.resource_version = Some(crate::scan::version_of(&text));
        // So that this version is the last good one, whatever comes next.
        self.reader.load::<K>(&name)?;
        Ok(object)
    }

    /// Holds off other writers of this kind, in this process and in others, until it is dropped.
    fn lock<K: Kind>(&self) -> Result<File, StoreError> {
        let folder = self.reader.folder::<K>();
        let path = folder.join(".lock");
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).open(&path)
        };
        let file = match open() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&folder)
                    .map_err(|e| StoreError::io("create", &folder, e))?;
                open()
            }
            opened => opened,
        }
        .map_err(|e| StoreError::io("write", &path, e))?;
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(StoreError::Unavailable {
                        what: format!(
                            "another process has held {} for {} s",
                            path.display(),
                            LOCK_PATIENCE.as_secs()
                        ),
                        remedy: format!("see who with: fuser {}", path.display()),
                    });
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(StoreError::io("lock", &path, e.into())),
            }
        }
    }
}

fn conflict<K: Kind>(object: &Object<K>) -> StoreError {
    StoreError::Conflict {
        kind: K::KIND,
        name: object.name().to_owned(),
    }
}

fn broken(problem: Option<Problem>) -> StoreError {
    StoreError::Invalid(
        problem.unwrap_or_else(|| Problem::of_file(Path::new(""), None, "it cannot be read")),
    )
}

fn not_a_directory(root: &Path) -> StoreError {
    StoreError::Unavailable {
        what: format!("the store {} is not a directory", root.display()),
        remedy: "name another place with --store dir:PATH".to_owned(),
    }
}

fn holds_manifests(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|e| e.file_name().to_string_lossy().ends_with(".yaml"))
    })
}

/// Temporary files of writers that died. Young ones may belong to one that lives.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry
            .file_name()
            .to_string_lossy()
            .ends_with(files::TEMPORARY);
        let old = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|at| at.elapsed().ok())
            .is_some_and(|age| age > Duration::from_secs(600));
        if ours && old {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A random UUID (RFC 9562 5.4).
fn new_uid() -> String {
    let mut b = [0u8; 16];
    SystemRandom::new().fill(&mut b);
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests;
