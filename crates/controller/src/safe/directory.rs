//! The safe of a directory store: files that only their owner may read, a lock, and join tokens.

use std::fs::{File, TryLockError};
use std::future::{Future, pending, ready};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use testudo_crypto::{SecretBytes, sha256};
use testudo_model::{CertificateRequest, NodeName};
use testudo_pki::hex;
use testudo_store::{DirStore, Requester, files, removed, tokens};
use tracing::warn;

use super::{Document, Fence, Members, Safe, SafeError, Sealed, Term, Version};
use crate::signer::{Denial, check_proof};

/// `secrets/` of a directory store.
pub struct DirSafe {
    store: DirStore,
}

impl DirSafe {
    /// That of this store.
    pub fn open(store: &DirStore) -> Self {
        Self {
            store: store.clone(),
        }
    }

    fn path(&self, document: Document) -> PathBuf {
        self.store.secrets().join(name(document))
    }

    fn load(&self, document: Document) -> anyhow::Result<Option<Sealed>> {
        let text = files::read_private(&self.path(document))?;
        Ok(text.map(|text| Sealed {
            version: version(&text),
            text,
        }))
    }

    fn put(
        &self,
        document: Document,
        text: &SecretBytes,
        over: Option<&Version>,
    ) -> Result<Version, SafeError> {
        let path = self.path(document);
        // What cannot be read again must not take the place of what can.
        let length = text.as_bytes().len();
        if length as u64 > files::MAX_PRIVATE_BYTES {
            return Err(SafeError::Failed(anyhow::anyhow!(
                "{} would take {length} bytes, and a file of {} is the largest that is read",
                path.display(),
                files::MAX_PRIVATE_BYTES
            )));
        }
        let stands = self.load(document)?.map(|sealed| sealed.version);
        if stands.as_ref() != over {
            return Err(SafeError::Changed(self.place(document)));
        }
        match over {
            Some(_) => replace(&path, text)?,
            None => files::write_private(&path, text.as_bytes()).map_err(anyhow::Error::from)?,
        }
        Ok(version(text))
    }
}

impl Safe for DirSafe {
    type Term = Lock;

    fn lead(&self) -> impl Future<Output = anyhow::Result<Lock>> + Send {
        let lock = only_one(&self.store).and_then(|file| {
            remove_leftovers(self.store.secrets())?;
            Ok(Lock { _file: file })
        });
        ready(lock)
    }

    fn read(
        &self,
        document: Document,
    ) -> impl Future<Output = anyhow::Result<Option<Sealed>>> + Send {
        ready(self.load(document))
    }

    fn replace(
        &self,
        document: Document,
        text: &SecretBytes,
        over: Option<&Version>,
    ) -> impl Future<Output = Result<Version, SafeError>> + Send {
        ready(self.put(document, text, over))
    }

    fn place(&self, document: Document) -> String {
        self.path(document).display().to_string()
    }

    fn members(&self) -> impl Future<Output = anyhow::Result<Members>> + Send {
        ready(Ok(Members::ThosePublished))
    }

    fn is_gone(
        &self,
        _name: &str,
        _uid: &str,
    ) -> impl Future<Output = anyhow::Result<bool>> + Send {
        ready(Ok(true))
    }

    fn removed(&self) -> impl Future<Output = anyhow::Result<Vec<NodeName>>> + Send {
        ready(removed::list(&self.store).map_err(Into::into))
    }

    fn expelled(&self, node: &str) -> impl Future<Output = anyhow::Result<()>> + Send {
        let expel = || -> anyhow::Result<()> {
            let node = NodeName::new(node)?;
            // Whoever removed it took its token then, and may have let it in again since.
            match removed::list(&self.store)?.contains(&node) {
                true => removed::done(&self.store, &node)?,
                false => {
                    tokens::revoke(&self.store, &node)?;
                }
            }
            Ok(())
        };
        ready(expel())
    }

    /// By a proof made with the node's join token.
    fn authenticate(
        &self,
        request: &CertificateRequest,
        requester: &Requester,
    ) -> impl Future<Output = Result<(), Denial>> + Send {
        ready(match requester {
            Requester::HolderOf(token) => {
                let token = token.as_ref();
                let token = token.map(|t| SecretBytes::new(t.as_bytes().to_vec()));
                check_proof(request, token.as_ref())
            }
            Requester::Authenticated(_) => Err(Denial::Stranger(
                "a directory knows nodes by their join tokens".to_owned(),
            )),
        })
    }
}

/// The lock of a directory. It ends with the process, however it ends.
pub struct Lock {
    _file: File,
}

impl Term for Lock {
    fn is_held(&self) -> bool {
        true
    }

    fn fence(&self) -> Fence {
        Fence(Arc::new(|| true))
    }

    fn lost(&mut self) -> impl Future<Output = String> + Send {
        pending()
    }

    fn resign(self) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

fn name(document: Document) -> &'static str {
    match document {
        Document::Authority => "ca.pem",
        Document::Register => "certificates",
        Document::Given => "ca-given",
    }
}

fn version(text: &SecretBytes) -> Version {
    Version(hex(&sha256(&[text.as_bytes()])))
}

/// Two controllers at once could each make a CA.
fn only_one(store: &DirStore) -> anyhow::Result<File> {
    let path = store.secrets().join("controller.lock");
    let shown = path.display();
    let opened = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path);
    let file = opened.with_context(|| format!("{shown} cannot be opened"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "another controller runs on {}: one is enough",
            store.root().display()
        ),
        Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("{shown} cannot be locked")),
    }
}

/// Replaces the file, and overwrites what stood in it: a key that is done with is not to be found on
/// the disk, as far as the file system writes in place. A copy of somebody's (another link to the file)
/// is left alone.
fn replace(path: &Path, text: &SecretBytes) -> anyhow::Result<()> {
    let old = File::options().write(true).open(path);
    let mut old = old.with_context(|| format!("{} cannot be written", path.display()))?;
    files::write_private(path, text.as_bytes())?;
    if let Err(error) = files::wipe(&mut old) {
        warn!(
            "the earlier {} could not be overwritten: {error}",
            path.display()
        );
    }
    Ok(())
}

/// A controller that was killed while it wrote may have left a part of the file beside it, with a key.
fn remove_leftovers(secrets: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(secrets)
        .with_context(|| format!("{} cannot be read", secrets.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = [".ca.pem.", ".certificates."];
        if ours.iter().any(|ours| name.starts_with(ours)) && name.ends_with(files::TEMPORARY) {
            let path = entry.path();
            if let Ok(mut file) = File::options().write(true).open(&path) {
                std::fs::remove_file(&path)?;
                files::wipe(&mut file)?;
            }
        }
    }
    Ok(())
}
