//! Small files of the state directory: 0600, and whole or not there.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

/// Makes the state directory, private to its owner.
pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| {
            format!(
                "{}: making the directory; can it be written?",
                path.display()
            )
        })
}

/// Writes a file that only its owner reads: under another name first, then renamed and synced.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    testudo_store::files::write_private(path, bytes)
        .with_context(|| format!("{}: writing it", path.display()))
}

/// The file's bytes; none if it is not there.
pub(crate) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}: reading it", path.display())),
    }
}

/// Removes a file; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: removing it", path.display()))
        }
        _ => Ok(()),
    }
}

/// The same, and it stays gone when the machine crashes.
pub(crate) fn remove_for_good(path: &Path) -> Result<()> {
    remove(path)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::File::open(parent)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("{}: syncing it", parent.display()))
}
