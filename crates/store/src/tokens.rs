//! Join tokens: what a node proves its name with when it asks for a certificate.
//!
//! One a node, 32 random bytes, in hex under `secrets/node-tokens/NAME` of a directory store. The
//! controller's side makes it; the node is given its own and no other.

use std::path::{Path, PathBuf};

use testudo_crypto::{Random, SecretBytes, SystemRandom};
use testudo_model::NodeName;

use crate::dir::DirStore;
use crate::error::StoreError;
use crate::files;

/// Length of a token in bytes.
pub const TOKEN_BYTES: usize = 32;

/// A node's join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken(SecretBytes);

impl JoinToken {
    /// The key for the proof of a certificate request.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// As it is written and given to a node.
    pub fn to_hex(&self) -> String {
        self.as_bytes().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Reads 64 hex digits; white space around them does not matter.
    pub fn from_hex(text: &str) -> Option<JoinToken> {
        let digits = text.trim().as_bytes();
        if digits.len() != 2 * TOKEN_BYTES {
            return None;
        }
        let digit = |b: u8| char::from(b).to_digit(16);
        let bytes: Option<Vec<u8>> = digits
            .chunks_exact(2)
            .map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8))
            .collect();
        bytes.map(|b| JoinToken(SecretBytes::new(b)))
    }
}

/// Where a node's token stands.
pub fn path(store: &DirStore, node: &NodeName) -> PathBuf {
    store.secrets().join("node-tokens").join(node.as_str())
}

/// Makes a token for a node, in place of the one it may have had. Blocks shortly.
pub fn create(store: &DirStore, node: &NodeName) -> Result<JoinToken, StoreError> {
    let mut bytes = vec![0; TOKEN_BYTES];
    SystemRandom::new().fill(&mut bytes);
    let token = JoinToken(SecretBytes::new(bytes));
    let path = path(store, node);
    files::private_dir(store.secrets())?;
    files::private_dir(path.parent().unwrap_or(store.secrets()))?;
    files::write_private(&path, format!("{}\n", token.to_hex()).as_bytes())?;
    Ok(token)
}

/// The node's token, made if there is none yet. Blocks shortly.
pub fn ensure(store: &DirStore, node: &NodeName) -> Result<JoinToken, StoreError> {
    match read(store, node)? {
        Some(token) => Ok(token),
        None => create(store, node),
    }
}

/// The node's token; `None` if it has none. Blocks shortly.
pub fn read(store: &DirStore, node: &NodeName) -> Result<Option<JoinToken>, StoreError> {
    read_file(&path(store, node))
}

/// A token in a file of its own, as a node is given it; `None` if there is no such file.
pub fn read_file(path: &Path) -> Result<Option<JoinToken>, StoreError> {
    let Some(bytes) = files::read_private(path)? else {
        return Ok(None);
    };
    let token = std::str::from_utf8(bytes.as_bytes())
        .ok()
        .and_then(JoinToken::from_hex);
    match token {
        Some(token) => Ok(Some(token)),
        None => Err(StoreError::Unavailable {
            what: format!("{} is not a token of 64 hex digits", path.display()),
            remedy: "delete it and have a new one made".to_owned(),
        }),
    }
}

/// Takes a node's token away: it cannot ask for certificates any more.
pub fn revoke(store: &DirStore, node: &NodeName) -> Result<bool, StoreError> {
    let path = path(store, node);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StoreError::io("delete", &path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_token_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = DirStore::open(dir.path()).unwrap();
        let n1 = NodeName::new("n1").unwrap();
        assert!(read(&store, &n1).unwrap().is_none());
        let token = ensure(&store, &n1).unwrap();
        assert!(ensure(&store, &n1).unwrap() == token);
        assert!(read(&store, &n1).unwrap().unwrap() == token);
        let metadata = std::fs::metadata(path(&store, &n1)).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(create(&store, &n1).unwrap() != token);
        assert!(revoke(&store, &n1).unwrap());
        assert!(!revoke(&store, &n1).unwrap());
    }

    #[test]
    fn a_broken_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        for text in ["", "00", "zz", &"0".repeat(63), &"g".repeat(64)] {
            files::write_private(&file, text.as_bytes()).unwrap();
            assert!(read_file(&file).is_err(), "{text}");
        }
    }
}
