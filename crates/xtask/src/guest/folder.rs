//! Folders that this process shares with guests, for nobody else's eyes.
//!
//! Each has a name that nobody can know beforehand, and a file that its owner holds locked while it
//! lives. Where the lock can be had the owner was killed, in whatever PID namespace it lived: the next
//! guest removes its folder.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// What their names begin with.
const PREFIX: &str = "testudo-guest-";

/// The file that is locked.
const LOCK: &str = "lock";

/// An empty folder of this process. It goes with its holder.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// A new one; those of owners that were killed go.
    pub(super) fn new() -> anyhow::Result<Self> {
        let parent = std::env::temp_dir();
        remove_orphans(&parent);
        Self::within(&parent)
    }

    fn within(parent: &Path) -> anyhow::Result<Self> {
        let mut random = [0; 8];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .context("/dev/urandom")?;
        let name = format!("{PREFIX}{:016x}", u64::from_ne_bytes(random));
        let path = parent.join(name);
        // One that is there already is somebody else's, and an error.
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| path.display().to_string())?;
        // Under its own name it is locked from the beginning.
        let unlocked = path.join("unlocked");
        let lock = private_file(&unlocked)?;
        lock.try_lock().context("a new folder's lock")?;
        std::fs::rename(&unlocked, path.join(LOCK)).context("a new folder's lock")?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A new file that its owner alone can read.
pub(super) fn private_file(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| path.display().to_string())
}

fn remove_orphans(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX));
        if is_ours && is_orphan(&entry.path()).unwrap_or(false) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether it is a folder of this user's whose owner lives no more. One without a lock is being made.
fn is_orphan(path: &Path) -> std::io::Result<bool> {
    let (folder, lock) = (path.symlink_metadata()?, path.join(LOCK));
    let mine = std::fs::metadata("/proc/self")?.uid();
    if !folder.is_dir() || folder.uid() != mine || !lock.symlink_metadata()?.is_file() {
        return Ok(false);
    }
    Ok(File::open(lock)?.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_is_its_owners_alone_and_goes_with_it() {
        let parent = tempfile::tempdir().unwrap();
        let (one, other) = (
            Folder::within(parent.path()).unwrap(),
            Folder::within(parent.path()).unwrap(),
        );
        assert_ne!(one.path(), other.path());
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(one.path()), 0o700);
        assert_eq!(mode(&one.path().join(LOCK)), 0o600);
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && other.path().exists());
    }

    #[test]
    fn only_what_nobody_holds_any_more_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let living = Folder::within(parent.path()).unwrap();
        let killed = Folder::within(parent.path()).unwrap();
        let dead = killed.path().to_owned();
        // As a kill leaves it: the lock is gone, the folder is not.
        killed._lock.unlock().unwrap();
        let begun = parent.path().join(format!("{PREFIX}begun"));
        let foreign = parent.path().join("other");
        std::fs::create_dir(&begun).unwrap();
        std::fs::create_dir(&foreign).unwrap();
        remove_orphans(parent.path());
        assert!(!dead.exists());
        assert!(living.path().exists() && begun.exists() && foreign.exists());
    }
}
