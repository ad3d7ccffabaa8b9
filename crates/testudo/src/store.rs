//! Which store a verb works on.

use std::path::PathBuf;

use testudo_store::{DirStore, Location};

use crate::exit::Usage;
use crate::global::Global;

/// Where a node keeps its store when nothing else is said.
pub(crate) const DEFAULT_DIR: &str = "/var/lib/testudo";

/// The store to use: the flag or `TESTUDO_STORE`, else that of the lab that runs, else
/// [`DEFAULT_DIR`].
pub(crate) fn resolve(global: &Global) -> anyhow::Result<Location> {
    if let Some(location) = &global.store {
        return Ok(location.clone());
    }
    let mut labs = crate::lab::running();
    match labs.len() {
        0 => Ok(Location::Directory(PathBuf::from(DEFAULT_DIR))),
        1 => Ok(Location::Directory(labs.remove(0).store)),
        _ => {
            let choices: Vec<String> = labs
                .iter()
                .map(|lab| format!("  --store dir:{}   (lab {})", lab.store.display(), lab.name))
                .collect();
            Err(anyhow::Error::new(Usage(format!(
                "{} labs run; say which one is meant:\n{}",
                labs.len(),
                choices.join("\n")
            ))))
        }
    }
}

/// Opens the store for reading; it must be there.
pub(crate) fn open_to_read(global: &Global) -> anyhow::Result<DirStore> {
    let Location::Directory(root) = resolve(global)?;
    Ok(DirStore::open_read_only(root)?)
}

/// Opens the store for writing, and makes it if it is not there.
pub(crate) fn open_to_write(global: &Global) -> anyhow::Result<DirStore> {
    Ok(DirStore::at(&resolve(global)?)?)
}
