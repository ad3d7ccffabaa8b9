//! What the store said last, kept on disk: an agent that starts while the store is away goes on with it.
//!
//! To the rest of the agent that is a store whose news are late, which every step of a roll-out allows for.
//! What decides such a step, the policy, the CAs, who the nodes are and this node's own word, is on disk
//! before the store hears of the next word; the other nodes' statuses may be older.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use testudo_model::{
    Acknowledgement, EncryptionPolicy, Monotonic, NodeEncryption, Now, TrustBundle, UnixTime,
};

use crate::files;
use crate::objects::{Objects, Weight};

const FILE: &str = "store.json";

/// A store that says nothing is waited for so long at the start.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// What does not matter much is written so often.
const EVERY: Duration = Duration::from_secs(30);

/// What is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kept {
    /// When it was written, by this node's clock.
    pub(crate) written: UnixTime,
    /// This node's own word.
    pub(crate) acknowledged: Option<Acknowledgement>,
    pub(crate) policy: Option<EncryptionPolicy>,
    pub(crate) bundle: Option<TrustBundle>,
    pub(crate) nodes: Vec<NodeEncryption>,
}

/// The file, and what is not in it yet.
pub(crate) struct Memory {
    path: PathBuf,
    /// What an earlier run left; none once it has been taken up or the store has spoken.
    left: Option<Kept>,
    acknowledged: Option<Acknowledgement>,
    written: Option<Monotonic>,
    /// The last write failed, which was said.
    failed: bool,
}

impl Memory {
    /// Reads what an earlier run left. A file that cannot be read is said and is as none.
    pub(crate) fn open(state_dir: &Path) -> Memory {
        let path = state_dir.join(FILE);
        let left = read(&path).unwrap_or_else(|error| {
            tracing::warn!("{error:#}; without the store nothing is opened");
            None
        });
        Memory {
            path,
            left,
            acknowledged: None,
            written: None,
            failed: false,
        }
    }

    /// Whether there is something to go on with.
    pub(crate) fn is_there(&self) -> bool {
        self.left.is_some()
    }

    /// What an earlier run left, once.
    pub(crate) fn take(&mut self) -> Option<Kept> {
        self.left.take()
    }

    /// Writes what has changed, at once if it matters. The store has spoken.
    pub(crate) fn keep(
        &mut self,
        objects: &mut Objects,
        acknowledged: Option<Acknowledgement>,
        now: Now,
    ) {
        self.left = None;
        let due = match self.written {
            Some(at) => now.monotonic.since(at) >= EVERY,
            None => true,
        };
        let needed = match objects.weight() {
            Weight::Much => true,
            Weight::Little => due,
            Weight::Nothing => false,
        };
        if !needed && self.acknowledged == acknowledged {
            return;
        }
        let kept = Kept {
            written: now.wall,
            acknowledged,
            policy: objects.policy.clone(),
            bundle: objects.bundle.clone(),
            nodes: objects.nodes.clone(),
        };
        let written = serde_json::to_vec(&kept)
            .context("writing what the store said")
            .and_then(|bytes| files::write_private(&self.path, &bytes));
        match written {
            Ok(()) => {
                objects.lighten();
                self.acknowledged = acknowledged;
                self.failed = false;
            }
            Err(error) if !self.failed => {
                tracing::warn!(
                    "{error:#}; a start without the store would go on with what is older"
                );
                self.failed = true;
            }
            Err(_) => {}
        }
        self.written = Some(now.monotonic);
    }
}

fn read(path: &Path) -> Result<Option<Kept>> {
    let Some(bytes) = files::read_optional(path)? else {
        return Ok(None);
    };
    let kept = serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: it is not what a store said", path.display()))?;
    Ok(Some(kept))
}
