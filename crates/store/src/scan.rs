//! Reading a folder of manifests: what stands there, and the last good version of what is broken.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use testudo_model::{Kind, Object};

use crate::check::check_name;
use crate::document::{MAX_BYTES, Source};
use crate::error::{Problem, StoreError};

/// How many objects of one kind are read.
pub(crate) const MAX_OBJECTS: usize = 16_384;

/// A file that was written this shortly ago may be written again without its times changing.
const UNSETTLED: Duration = Duration::from_millis(100);

/// One file as it was found.
pub(crate) struct Seen<K: Kind> {
    /// The last good version.
    pub(crate) good: Option<Object<K>>,
    /// Why the file itself is not it.
    pub(crate) problem: Option<Problem>,
}

/// A folder as it was found.
pub(crate) struct Scan<K: Kind> {
    /// By name of object.
    pub(crate) seen: BTreeMap<String, Seen<K>>,
    /// Files that cannot hold an object.
    pub(crate) strays: Vec<Problem>,
}

/// Reads files, and remembers the last good version of each.
pub(crate) struct Reader {
    root: PathBuf,
    known: Mutex<BTreeMap<(&'static str, String), Known>>,
}

struct Known {
    signature: Option<Signature>,
    good: Option<Arc<dyn Any + Send + Sync>>,
    problem: Option<Problem>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Reader {
    pub(crate) fn new(root: PathBuf) -> Reader {
        Reader {
            root,
            known: Mutex::new(BTreeMap::new()),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn folder<K: Kind>(&self) -> PathBuf {
        self.root.join(K::PLURAL)
    }

    pub(crate) fn file<K: Kind>(&self, name: &str) -> PathBuf {
        self.folder::<K>().join(format!("{name}.yaml"))
    }

    /// One object; `None` when there is no file.
    pub(crate) fn load<K: Kind>(&self, name: &str) -> Result<Option<Seen<K>>, StoreError> {
        let file = self.file::<K>(name);
        let key = (K::PLURAL, name.to_owned());
        let read = read_file(&file);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, signature) = match read {
            Ok(read) => read,
            Err(ReadError::Gone) => {
                known.remove(&key);
                return Ok(None);
            }
            Err(ReadError::Io(e)) if e.kind() != io::ErrorKind::PermissionDenied => {
                return Err(StoreError::io("read", &file, e));
            }
            Err(error) => {
                let problem = Problem::of_file(&file, Some(name), error.reason());
                let entry = known.entry(key).or_insert_with(Known::nothing);
                entry.signature = None;
                entry.problem = Some(problem);
                return Ok(Some(entry.seen()));
            }
        };
        let entry = known.entry(key).or_insert_with(Known::nothing);
        let source = Source {
            file: &file,
            text: &text,
            lines_before: 0,
            name: Some(name),
        };
        match source.object::<K>() {
            Ok(mut object) => {
                object.metadata.resource_version = Some(version_of(&text));
                object.metadata.generation = object.metadata.generation.max(1);
                entry.good = Some(Arc::new(object));
                entry.problem = None;
            }
            Err(problem) => entry.problem = Some(problem),
        }
        entry.signature = signature;
        Ok(Some(entry.seen()))
    }

    /// As [`Reader::load`], without reading a file that has not changed since.
    fn load_if_changed<K: Kind>(&self, name: &str) -> Result<Option<Seen<K>>, StoreError> {
        if let Ok(metadata) = std::fs::metadata(self.file::<K>(name)) {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = known.get(&(K::PLURAL, name.to_owned()))
                && entry.signature == Some(Signature::of(&metadata))
            {
                return Ok(Some(entry.seen()));
            }
        }
        self.load(name)
    }

    /// All objects of a kind.
    pub(crate) fn scan<K: Kind>(&self) -> Result<Scan<K>, StoreError> {
        let folder = self.folder::<K>();
        let entries = std::fs::read_dir(&folder).map_err(|e| StoreError::io("list", &folder, e))?;
        let mut names = Vec::new();
        let mut strays = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| StoreError::io("list", &folder, e))?;
            match judge(&entry.file_name().to_string_lossy()) {
                FileName::Object(name) => names.push(name),
                FileName::Ignored => {}
                FileName::Stray(reason) => {
                    strays.push(Problem::of_file(&entry.path(), None, reason));
                }
            }
        }
        names.sort_unstable();
        strays.sort_by(|a, b| a.file.cmp(&b.file));
        strays.truncate(100);
        if names.len() > MAX_OBJECTS {
            strays.push(Problem::of_file(
                &folder,
                None,
                format!(
                    "{} objects are more than {MAX_OBJECTS}: those from \"{}\" on are left out",
                    names.len(),
                    names[MAX_OBJECTS]
                ),
            ));
            names.truncate(MAX_OBJECTS);
        }
        let mut seen = BTreeMap::new();
        for name in names {
            if let Some(one) = self.load_if_changed::<K>(&name)? {
                seen.insert(name, one);
            }
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(plural, name), _| *plural != K::PLURAL || seen.contains_key(name));
        Ok(Scan { seen, strays })
    }
}

impl Known {
    fn nothing() -> Known {
        Known {
            signature: None,
            good: None,
            problem: None,
        }
    }

    fn seen<K: Kind>(&self) -> Seen<K> {
        Seen {
            good: self
                .good
                .as_ref()
                .and_then(|good| good.downcast_ref::<Object<K>>())
                .cloned(),
            problem: self.problem.clone(),
        }
    }
}

impl Signature {
    fn of(metadata: &std::fs::Metadata) -> Signature {
        Signature {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What a version is called: it follows the content, so that a change made with an editor
/// changes it too.
pub(crate) fn version_of(text: &str) -> String {
    let digest = testudo_crypto::sha256(&[text.as_bytes()]);
    digest[..8].iter().map(|b| format!("{b:02x}")).collect()
}

enum FileName {
    Object(String),
    Ignored,
    Stray(String),
}

fn judge(name: &str) -> FileName {
    // Temporary files and what editors leave: .x.swp, .#x, #x#, x~, x.bak, 4913, …
    if name.starts_with('.') || name.starts_with('#') {
        return FileName::Ignored;
    }
    if let Some(stem) = name.strip_suffix(".yaml") {
        return match check_name(stem) {
            Ok(()) => FileName::Object(stem.to_owned()),
            Err(error) => FileName::Stray(format!("the file's name is no object's: {error}")),
        };
    }
    if name.ends_with(".yml") || name.ends_with(".json") {
        return FileName::Stray("only files named NAME.yaml are read: rename it".to_owned());
    }
    FileName::Ignored
}

enum ReadError {
    Gone,
    TooBig,
    NotAFile,
    NotText,
    Io(io::Error),
}

impl ReadError {
    fn reason(&self) -> String {
        match self {
            ReadError::Gone => "it is gone".to_owned(),
            ReadError::TooBig => format!("it is larger than {MAX_BYTES} bytes"),
            ReadError::NotAFile => "it is not a regular file".to_owned(),
            ReadError::NotText => "it is not UTF-8 text".to_owned(),
            ReadError::Io(error) => format!("it cannot be read: {error}"),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        match error.kind() {
            io::ErrorKind::NotFound => ReadError::Gone,
            _ => ReadError::Io(error),
        }
    }
}

/// The text, and the signature if a later change is sure to change it.
fn read_file(path: &Path) -> Result<(String, Option<Signature>), ReadError> {
    // Without blocking: a FIFO that someone put there must not hold us.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile);
    }
    if metadata.len() > MAX_BYTES as u64 {
        return Err(ReadError::TooBig);
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(ReadError::TooBig);
    }
    let text = String::from_utf8(bytes).map_err(|_| ReadError::NotText)?;
    let settled = metadata
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok())
        .is_some_and(|age| age > UNSETTLED);
    Ok((text, settled.then(|| Signature::of(&metadata))))
}

/// A whole manifest for `apply -f`, with the same bounds.
pub(crate) fn read_manifest(path: &Path) -> Result<String, Problem> {
    read_file(path)
        .map(|(text, _)| text)
        .map_err(|e| Problem::of_file(path, None, e.reason()))
}
