//! Nodes that were removed on purpose: the trace that outlives the node's object, because an agent that
//! still runs would write that again, and because the controller may be away meanwhile.
//!
//! An empty file `secrets/removed-nodes/NAME` of a directory store. The controller takes the node's
//! certificates back and removes the file.

use std::path::{Path, PathBuf};

use testudo_model::NodeName;

use crate::dir::DirStore;
use crate::error::StoreError;
use crate::{files, tokens};

fn folder(store: &DirStore) -> PathBuf {
    store.secrets().join("removed-nodes")
}

/// Has a node removed: its join token goes, and the controller is told. Blocks shortly.
pub fn mark(store: &DirStore, node: &NodeName) -> Result<(), StoreError> {
    tokens::revoke(store, node)?;
    files::private_dir(store.secrets())?;
    files::private_dir(&folder(store))?;
    files::write_private(&folder(store).join(node.as_str()), b"")
}

/// The nodes that are to be removed. Blocks shortly.
pub fn list(store: &DirStore) -> Result<Vec<NodeName>, StoreError> {
    let folder = folder(store);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::io("read", &folder, e)),
    };
    let mut nodes = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| StoreError::io("read", &folder, e))?;
        // Names that are no node's are of somebody else, or half written.
        nodes.extend(NodeName::new(entry.file_name().to_string_lossy()).ok());
    }
    nodes.sort();
    Ok(nodes)
}

/// The node is removed. Blocks shortly.
pub fn done(store: &DirStore, node: &NodeName) -> Result<(), StoreError> {
    remove(&folder(store).join(node.as_str()))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("delete", path, e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_marked_once_and_has_no_token_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = DirStore::open(dir.path()).unwrap();
        let n1 = NodeName::new("n1").unwrap();
        assert!(list(&store).unwrap().is_empty());
        tokens::ensure(&store, &n1).unwrap();
        mark(&store, &n1).unwrap();
        mark(&store, &n1).unwrap();
        std::fs::write(dir.path().join("secrets/removed-nodes/.n2.tmp"), "").unwrap();
        assert_eq!(list(&store).unwrap(), std::slice::from_ref(&n1));
        assert!(tokens::read(&store, &n1).unwrap().is_none());
        done(&store, &n1).unwrap();
        done(&store, &n1).unwrap();
        assert!(list(&store).unwrap().is_empty());
    }
}
