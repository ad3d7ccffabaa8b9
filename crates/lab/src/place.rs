//! Where labs live: their directories, and whether they are root's or a user's.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Access, FlockOperation};
use serde::{Serialize, de::DeserializeOwned};

use crate::namespaces::{NAMED, Namespaces};

/// Set in processes inside a user's lab: the base directory, since they look like root there.
pub(crate) const INSIDE: &str = "TESTUDO_LAB_BASE";

/// Where this caller's labs live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Root: `/run/testudo/labs`, namespaces that `ip netns` knows.
    Machine,
    /// A user outside of the lab: the labs are in user namespaces.
    User {
        /// The directory of the labs.
        base: PathBuf,
    },
    /// Inside a user's lab.
    Inside {
        /// The directory of the labs.
        base: PathBuf,
    },
}

impl Place {
    /// The caller's.
    pub fn current() -> Result<Self> {
        if let Some(base) = std::env::var_os(INSIDE) {
            return Ok(Self::Inside { base: base.into() });
        }
        let uid = rustix::process::geteuid();
        // Root of a user namespace cannot write to the machine's /run: it is a user.
        if uid.is_root() && rustix::fs::access("/run", Access::WRITE_OK).is_ok() {
            return Ok(Self::Machine);
        }
        if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
            && fs::metadata(&runtime).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid.as_raw())
        {
            return Ok(Self::User {
                base: runtime.join("testudo/labs"),
            });
        }
        let own = std::env::temp_dir().join(format!("testudo-{}", uid.as_raw()));
        own_directory(&own, uid.as_raw())?;
        Ok(Self::User {
            base: own.join("labs"),
        })
    }

    /// The directory of all labs.
    pub fn base(&self) -> &Path {
        match self {
            Self::Machine => Path::new("/run/testudo/labs"),
            Self::User { base } | Self::Inside { base } => base,
        }
    }

    /// The directory of one lab.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.base().join(name)
    }

    /// The namespaces of one lab.
    pub fn namespaces(&self, name: &str) -> Namespaces {
        match self {
            Self::Machine => Namespaces::new(NAMED),
            Self::User { .. } | Self::Inside { .. } => {
                Namespaces::new(self.directory(name).join("netns"))
            }
        }
    }

    /// Locks the directory of all labs while one is made or removed.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let base = self.base();
        // A `down` may remove the directory between the two steps.
        for _ in 0..100 {
            make_directory(base)?;
            let Ok(file) = fs::File::open(base) else {
                continue;
            };
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("lock {}", base.display()))?;
            let same = fs::metadata(base).is_ok_and(|now| {
                file.metadata()
                    .is_ok_and(|locked| locked.ino() == now.ino())
            });
            if same {
                return Ok(Lock { _file: file });
            }
        }
        anyhow::bail!("{}: it is removed again and again", base.display())
    }

    /// The names of the labs that have a directory, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.base())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| crate::spec::check_name(name).is_ok())
            .collect();
        names.sort();
        names
    }

    /// Removes the directories above the labs once they are empty.
    pub(crate) fn remove_empty(&self) {
        if fs::remove_dir(self.base()).is_ok()
            && let Some(parent) = self.base().parent()
        {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Held while a lab is made or removed.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: fs::File,
}

/// Makes a directory that only its owner may enter, and those above it.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make {}: choose a user who may write there", path.display()))
}

/// Writes a file in one step: a reader sees the old or the new one, whole.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    let name = path
        .file_name()
        .context("a file has a name")?
        .to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| {
        // Best effort; what is written holds a join token or so.
        let _ = fs::remove_file(&temporary);
        format!("write {}", path.display())
    })
}

/// Writes a value as JSON in one step.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).context("encode JSON")?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Reads a value; none if there is no file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("read {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// In a directory that everyone may write to, another user could have been there first.
fn own_directory(path: &Path, uid: u32) -> Result<()> {
    make_directory(path)?;
    let meta = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    ensure!(
        meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0,
        "{}: not a directory of uid {uid} with mode 0700: remove it, or set XDG_RUNTIME_DIR",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_could_not_be_written_leaves_nothing() {
        let top = std::env::temp_dir().join(format!("testudo-whole-{}", std::process::id()));
        let taken = top.join("taken");
        fs::create_dir_all(&taken).unwrap();
        write_atomic(&taken, b"a token").unwrap_err();
        let left = fs::read_dir(&top).unwrap().count();
        fs::remove_dir_all(&top).unwrap();
        assert_eq!(left, 1);
    }

    #[test]
    fn a_lock_makes_its_directory_and_empty_ones_go_away() {
        let top = std::env::temp_dir().join(format!("testudo-place-{}", std::process::id()));
        let place = Place::User {
            base: top.join("labs"),
        };
        let lock = place.lock().unwrap();
        make_directory(&place.directory("a")).unwrap();
        drop(lock);
        assert_eq!(place.names(), ["a"]);
        place.remove_empty();
        assert!(top.exists());
        fs::remove_dir(place.directory("a")).unwrap();
        place.remove_empty();
        assert!(!top.exists());
    }
}
