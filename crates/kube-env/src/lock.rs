//! A file that one process at a time holds.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Held until it is dropped, or its process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock of a file, which is made if need be. `waits` is called once when somebody
    /// else has it.
    pub(crate) fn take(path: &Path, waits: impl FnOnce()) -> Result<Self> {
        let mut waits = Some(waits);
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .with_context(|| path.display().to_string())?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if let Some(waits) = waits.take() {
                        waits();
                    }
                    file.lock()
                        .with_context(|| format!("lock {}", path.display()))?;
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
            }
            let lock = Self {
                path: path.to_owned(),
                file,
            };
            // Who had it may have removed the file: then it guards nothing any more.
            if lock.is_the_file() {
                return Ok(lock);
            }
        }
    }

    /// Gives it back and removes its file.
    pub(crate) fn remove(self) {
        if self.is_the_file() {
            let _ = fs::remove_file(&self.path);
        }
    }

    fn is_the_file(&self) -> bool {
        let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let now = fs::metadata(&self.path).map(inode).ok();
        now.is_some() && now == self.file.metadata().map(inode).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_lock_that_is_removed_gets_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path, || panic!("nobody has it")).unwrap();
        let (said, heard) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| Lock::take(&path, || said.send(()).unwrap()).unwrap());
            heard.recv().unwrap();
            first.remove();
            assert!(second.join().unwrap().is_the_file());
        });
    }
}
