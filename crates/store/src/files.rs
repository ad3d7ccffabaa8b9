//! Files that only their owner may read, and files that are whole or not there.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use testudo_crypto::SecretBytes;

use crate::error::StoreError;

/// The largest private file that is read, in bytes.
pub const MAX_PRIVATE_BYTES: u64 = 1 << 20;

/// Writes a file that only its owner may read (0600): whole or not at all, and on the disk when
/// this returns. Blocks; call it where blocking is allowed.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_atomic(path, bytes, 0o600, true)
}

/// Reads a file that only its owner may read, and refuses one that others may, that someone else
/// owns, or that is a link. `None`: there is none.
pub fn read_private(path: &Path) -> Result<Option<SecretBytes>, StoreError> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("read", path, e)),
    };
    let metadata = file
        .metadata()
        .map_err(|e| StoreError::io("read", path, e))?;
    let refuse = |what: String, remedy: String| Err(StoreError::Unavailable { what, remedy });
    let shown = path.display();
    if !metadata.is_file() || metadata.len() > MAX_PRIVATE_BYTES {
        return refuse(
            format!("{shown} is not a file of at most {MAX_PRIVATE_BYTES} bytes"),
            "put the secret there as a plain file".to_owned(),
        );
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return refuse(
            format!("{shown} holds a secret that others may read (mode {mode:04o})"),
            format!("chmod 0600 {shown}, and replace the secret if others had access"),
        );
    }
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        return refuse(
            format!(
                "{shown} belongs to user {}, not to us, {us}",
                metadata.uid()
            ),
            format!("chown {us} {shown}"),
        );
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    file.take(MAX_PRIVATE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|e| StoreError::io("read", path, e))?;
    Ok(Some(SecretBytes::new(bytes)))
}

/// Makes a folder that only its owner may enter (0700), with all above it, or closes one that
/// is open.
pub fn private_dir(path: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(path).map_err(|e| StoreError::io("create", path, e))?;
    let metadata = std::fs::metadata(path).map_err(|e| StoreError::io("read", path, e))?;
    if metadata.mode() & 0o777 != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .map_err(|e| StoreError::io("close", path, e))?;
    }
    Ok(())
}

/// Writes a file with these permission bits: whole or not at all. With `sync` it is on the disk
/// when this returns; without, a crash of the machine may leave the old one.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32, sync: bool) -> Result<(), StoreError> {
    let temporary = temporary_beside(path);
    let written = write_temporary(&temporary, bytes, mode, sync)
        .map_err(|e| StoreError::io("write", &temporary, e))
        .and_then(|()| {
            std::fs::rename(&temporary, path).map_err(|e| StoreError::io("replace", path, e))
        });
    if let Err(error) = written {
        discard(&temporary);
        return Err(error);
    }
    if sync {
        sync_parent(path)?;
    }
    Ok(())
}

/// Removes what was written of a file, and overwrites it, as it may hold a part of a key. Best effort:
/// the name begins with a dot, so that a leftover is ignored.
fn discard(temporary: &Path) {
    let opened = OpenOptions::new().write(true).open(temporary);
    let _ = std::fs::remove_file(temporary);
    if let Ok(mut file) = opened {
        let _ = wipe(&mut file);
    }
}

/// Overwrites a file that has no name any more, from its beginning, as far as the file system writes in
/// place. One that somebody else has a link to is left alone.
pub fn wipe(file: &mut File) -> std::io::Result<()> {
    let metadata = file.metadata()?;
    if metadata.nlink() > 0 {
        return Ok(());
    }
    let mut left = metadata.len();
    let zeros = [0; 4096];
    while left > 0 {
        let some = usize::try_from(left.min(4096)).unwrap_or(4096);
        file.write_all(&zeros[..some])?;
        left -= some as u64;
    }
    file.sync_all()
}

/// Puts the change of a name (a rename, a removal) on the disk.
pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| StoreError::io("write", parent, e))
}

/// What temporary files end in; their names begin with a dot and that of the file.
pub const TEMPORARY: &str = ".testudo-tmp";

fn temporary_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Names are at most 255 bytes; the name itself does not matter.
    let short: String = name.chars().take(64).collect();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(
        ".{short}.{}.{number}{TEMPORARY}",
        std::process::id()
    ))
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32, sync: bool) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = match options.open(path) {
        // Left by a process of our number that died: its name is ours now.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            options.open(path)?
        }
        opened => opened?,
    };
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(read_private(&path).unwrap().is_none());
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(read_private(&path).unwrap().unwrap().as_bytes(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_could_not_be_written_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        write_private(&path, b"a key").unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let part = dir.path().join(".part");
        std::fs::write(&part, b"a key").unwrap();
        let mut open = File::open(&part).unwrap();
        discard(&part);
        assert!(!part.exists());
        let mut left = Vec::new();
        open.read_to_end(&mut left).unwrap();
        assert_eq!(left, [0; 5]);
    }

    #[test]
    fn what_others_may_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"x").unwrap();
        for mode in [0o644, 0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read_private(&path).err().unwrap().to_string();
            assert!(error.contains("chmod 0600"), "{error}");
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read_private(&link).is_err());
    }

    #[test]
    fn a_private_folder_is_closed_even_if_it_was_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }
}
