//! What the store said last, kept on disk: an agent that starts while the store is away goes on with it.
//!
//! To the rest of the agent that is a store whose news are late, which every step of a roll-out allows for.
//! What decides such a step, the policy, the CAs, who the nodes are and this node's own word, is on disk
//! before the store hears of the next word; the other nodes' statuses may be older.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use testudo_model::{
    Acknowledgement, Authorities, EncryptionPolicy, Monotonic, NodeEncryption, Now, TrustBundle,
    UnixTime,
};
use tokio::sync::Notify;

use crate::files;
use crate::objects::{Objects, Weight};

const FILE: &str = "store.json";

/// A store that says nothing is waited for so long at the start.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// What does not matter much is written so often.
const EVERY: Duration = Duration::from_secs(30);

/// After a failed write.
const RETRY: Duration = Duration::from_secs(2);

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

/// What others go by when they take a step. It is said when a restart without the store would know
/// what it rests on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Word {
    pub(crate) acknowledged: Option<Acknowledgement>,
    pub(crate) rotation: u64,
    pub(crate) authorities: Authorities,
}

/// The file, and what is not in it yet. A thread of its own writes it: a slow disk delays what this node
/// says, never packets.
pub(crate) struct Memory {
    path: PathBuf,
    /// What an earlier run left; none once it has been taken up or the store has spoken.
    left: Option<Kept>,
    /// What is in the file.
    acknowledged: Option<Acknowledgement>,
    /// When the last write began.
    begun: Option<Monotonic>,
    writing: Option<Writing>,
    /// A first write has ended, well or not.
    tried: bool,
    /// Why writing fails since it last succeeded, in the words of the first time.
    failed: Option<String>,
    /// How the file is written. A test has it fail.
    write: fn(&Path, &[u8]) -> Result<()>,
    /// Rung when a write has ended.
    bell: Arc<Notify>,
}

/// A write that goes on.
struct Writing {
    /// What may be said when it has succeeded.
    word: Word,
    ended: Receiver<Result<(), String>>,
    thread: JoinHandle<()>,
}

impl Memory {
    /// Reads what an earlier run left. A file that cannot be read is said and is as none. `bell` is rung
    /// when [`Memory::keep`] is to be called again.
    pub(crate) fn open(state_dir: &Path, bell: Arc<Notify>) -> Memory {
        let path = state_dir.join(FILE);
        let left = read(&path).unwrap_or_else(|error| {
            tracing::warn!("{error:#}; without the store nothing is opened");
            None
        });
        Memory {
            path,
            left,
            acknowledged: None,
            begun: None,
            writing: None,
            tried: false,
            failed: None,
            write: files::write_private,
            bell,
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

    /// Whether this run has written once, or tried in vain: before that there is nothing new to be said.
    pub(crate) fn has_tried(&self) -> bool {
        self.tried
    }

    /// Has written what has changed, at once if it matters. The store has spoken. What may be said now;
    /// none: no more than before, for it is being written.
    ///
    /// # Errors
    /// It could not be written, and nothing new may be said. The file is gone then: an older one may be of
    /// a laxer phase, and has fewer revocations.
    pub(crate) fn keep(
        &mut self,
        objects: &mut Objects,
        word: Word,
        now: Now,
    ) -> Result<Option<Word>, String> {
        self.left = None;
        let mut sayable = None;
        if let Some(writing) = self.writing.take() {
            match writing.ended.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.writing = Some(writing);
                    return self.failed.clone().map_or(Ok(None), Err);
                }
                Ok(Ok(())) => {
                    self.failed = None;
                    self.acknowledged = writing.word.acknowledged;
                    sayable = Some(writing.word);
                }
                Ok(Err(text)) => _ = self.failed.get_or_insert(text),
                Err(TryRecvError::Disconnected) => self.give_up("its writer has ended"),
            }
            self.tried = true;
        }
        let passed = |wait: Duration| self.begun.is_none_or(|at| now.monotonic.since(at) >= wait);
        if let Some(failed) = &self.failed
            && !passed(RETRY)
        {
            return Err(failed.clone());
        }
        let needed = match objects.weight() {
            Weight::Much => true,
            Weight::Little => passed(EVERY),
            // An earlier run's file is not left there.
            Weight::Nothing => self.begun.is_none(),
        };
        if !needed && self.acknowledged == word.acknowledged && self.failed.is_none() {
            return Ok(Some(word));
        }
        let kept = Kept {
            written: now.wall,
            acknowledged: word.acknowledged,
            policy: objects.policy.clone(),
            bundle: objects.bundle.clone(),
            nodes: objects.nodes.clone(),
        };
        self.begun = Some(now.monotonic);
        match self.begin(kept, word) {
            Ok(writing) => {
                self.writing = Some(writing);
                objects.lighten();
            }
            Err(error) => {
                self.tried = true;
                self.give_up(&format!("its writer cannot begin: {error}"));
            }
        }
        self.failed.clone().map_or(Ok(sayable), Err)
    }

    fn give_up(&mut self, why: &str) {
        let text = without(&self.path, &format!("{}: {why}", self.path.display()));
        self.failed.get_or_insert(text);
    }

    fn begin(&self, kept: Kept, word: Word) -> std::io::Result<Writing> {
        let (path, write, bell) = (self.path.clone(), self.write, Arc::clone(&self.bell));
        let (sender, ended) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store.json".to_owned())
            .spawn(move || {
                let written = replace(&path, &kept, write);
                let _ = sender.send(written);
                bell.notify_one();
            })?;
        Ok(Writing {
            word,
            ended,
            thread,
        })
    }
}

impl Drop for Memory {
    /// The next agent must not find a file that changes under it.
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            let _ = writing.thread.join();
        }
    }
}

/// Writes the file anew. What cannot be replaced goes.
fn replace(path: &Path, kept: &Kept, write: fn(&Path, &[u8]) -> Result<()>) -> Result<(), String> {
    let written = serde_json::to_vec(kept)
        .context("writing what the store said")
        .and_then(|bytes| write(path, &bytes));
    written.map_err(|error| without(path, &format!("{error:#}")))
}

/// Removes the file, which cannot be written. What to tell of it and of `why`.
fn without(path: &Path, why: &str) -> String {
    let mut text = format!("{why}; this node acknowledges nothing new meanwhile");
    if let Err(error) = files::remove_for_good(path) {
        text.push_str(&format!("; what is older stays there: {error:#}"));
    }
    text
}

fn read(path: &Path) -> Result<Option<Kept>> {
    let Some(bytes) = files::read_optional(path)? else {
        return Ok(None);
    };
    let kept = serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: it is not what a store said", path.display()))?;
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use testudo_model::policy::CLUSTER;
    use testudo_model::{NodeName, Phase};
    use testudo_store::Event;

    use super::*;
    use crate::objects::Told;

    fn at(seconds: u64) -> Now {
        Now {
            monotonic: Monotonic(Duration::from_secs(seconds)),
            wall: UnixTime(1_000_000),
        }
    }

    fn word(rollout: u64) -> Word {
        Word {
            acknowledged: Some(Acknowledgement {
                phase: Phase::Strict,
                rollout,
            }),
            ..Word::default()
        }
    }

    fn open(dir: &Path) -> Memory {
        Memory::open(dir, Arc::default())
    }

    /// What may be said, or what failed, when no write goes on any more.
    fn keep(
        memory: &mut Memory,
        objects: &mut Objects,
        rollout: u64,
        seconds: u64,
    ) -> Result<u64, String> {
        loop {
            let kept = memory.keep(objects, word(rollout), at(seconds));
            if memory.writing.is_some() {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let said = kept?.expect("nothing is being written");
            return Ok(said.acknowledged.unwrap().rollout);
        }
    }

    #[test]
    fn what_cannot_be_written_takes_what_is_older_away_and_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = open(dir.path());
        let mut objects = Objects::new();
        assert_eq!(keep(&mut memory, &mut objects, 1, 1), Ok(1));
        assert!(open(dir.path()).is_there());

        memory.write = |_, _| bail!("no space left");
        let error = keep(&mut memory, &mut objects, 2, 10).unwrap_err();
        assert!(error.contains("no space left"), "{error}");
        assert!(!dir.path().join(FILE).exists(), "the old one is there");

        // Also what was on disk once must be there again before it counts.
        memory.write = files::write_private;
        keep(&mut memory, &mut objects, 1, 11).unwrap_err();
        assert_eq!(keep(&mut memory, &mut objects, 1, 12), Ok(1));
        let kept = open(dir.path()).take().unwrap();
        assert_eq!(kept.acknowledged, word(1).acknowledged);
    }

    #[test]
    fn a_word_is_said_when_it_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = open(dir.path());
        let mut objects = Objects::new();
        memory.write = |path, bytes| {
            std::thread::sleep(Duration::from_millis(300));
            files::write_private(path, bytes)
        };
        assert!(memory.keep(&mut objects, word(1), at(1)).unwrap().is_none());
        assert!(!memory.has_tried());
        // It was another word when that write began.
        let said = loop {
            if let Some(said) = memory.keep(&mut objects, word(2), at(1)).unwrap() {
                break said.acknowledged;
            }
        };
        assert_eq!(said, word(1).acknowledged);
        drop(memory);
        let kept = open(dir.path()).take().unwrap();
        assert_eq!(kept.acknowledged, word(2).acknowledged, "a write is ended");
    }

    #[test]
    fn a_bundle_whose_status_alone_has_changed_is_no_reason_to_write() {
        let own = NodeName::new("n1").unwrap();
        let mut objects = Objects::new();
        let mut bundle = TrustBundle::new(CLUSTER, Default::default());
        let mut tell = |bundle: &TrustBundle| {
            objects.lighten();
            objects.take(Told::Bundle(Event::Modified(bundle.clone())), &own);
            objects.weight()
        };
        assert_eq!(tell(&bundle), Weight::Much);
        bundle.metadata.resource_version = Some("2".to_owned());
        assert_eq!(tell(&bundle), Weight::Little);
        bundle.spec.revocation_lists = "another".to_owned();
        assert_eq!(tell(&bundle), Weight::Much);
    }
}
