//! The cluster's CAs on disk: the one that signs, and the one that comes or goes beside it.
//!
//! All stands in one file, `ca.pem`, which is replaced as a whole: a rotation is before or after a step,
//! never in between, whenever the controller is killed. It begins with lines that say where the rotation
//! stands ([`state`]), then come certificate and key of the CA that signs, then those of the other one,
//! then certificates that are trusted and do not sign, and revocation lists.

mod state;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use testudo_crypto::{Random, SecretBytes};
use testudo_model::CaPhase;
use testudo_pki::{
    Ca, CaOptions, CertificateFacts, TrustBundle, chain_from_pem, chain_to_pem, utc,
};
use testudo_plan::authority::{Standing, Step};
use testudo_store::files;
use tracing::{info, warn};

/// The CA that signs, and all that are trusted.
pub(crate) struct Authority {
    path: PathBuf,
    /// Signs.
    pub(crate) ca: Ca,
    /// Comes or goes; it has its key while both are trusted.
    other: Option<Ca>,
    /// Is published: the signing CA first.
    pub(crate) bundle: TrustBundle,
    /// Where the rotation stands.
    pub(crate) standing: Standing,
}

impl Authority {
    /// Takes up the CA in `secrets`, or makes one if there is none; what was `asked` for before that
    /// is no reason to replace it.
    ///
    /// Certificates after the first are trusted, but do not sign. Revocation lists (`X509 CRL`) of any
    /// of them are published with the bundle.
    pub(crate) fn open(
        secrets: &Path,
        options: &CaOptions,
        asked: Option<u64>,
        now: u64,
        random: &mut dyn Random,
    ) -> anyhow::Result<Self> {
        let path = secrets.join("ca.pem");
        remove_leftovers(secrets)?;
        let (authority, what) = match Self::load(&path)? {
            Some(authority) => (authority, "CA loaded"),
            None => (Self::create(&path, options, asked, now, random)?, "CA made"),
        };
        let facts = authority.ca.facts();
        info!(ca = %facts.subject, until = %utc(facts.times.not_after), "{what}");
        if authority.standing.phase != CaPhase::Settled {
            info!(phase = %authority.standing.phase, "a rotation of the CA goes on");
        }
        Ok(authority)
    }

    fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        let Some(text) = files::read_private(path)? else {
            return Ok(None);
        };
        let read = Self::read(path, &text);
        let context = || format!("{}: the CA cannot be used", path.display());
        read.map(Some).with_context(context)
    }

    fn read(path: &Path, text: &SecretBytes) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(text.as_bytes()).context("it is not text")?;
        let certificates = chain_from_pem(text)?;
        let first = certificates.first().context("it holds no certificate")?;
        let mut keys = testudo_pki::keys_from_pem(text.as_bytes())?;
        let (ca, own) = with_its_key(first, &keys)?.context(
            "the CA key does not belong to the CA certificate: restore both from one backup",
        )?;
        keys.remove(own);
        let mut other = None;
        for certificate in &certificates[1..] {
            if let Some((found, key)) = with_its_key(certificate, &keys)? {
                keys.remove(key);
                ensure!(
                    other.replace(found).is_none(),
                    "it holds more than two CAs with keys"
                );
            }
        }
        ensure!(
            keys.is_empty(),
            "it holds a key without a certificate: remove it"
        );
        let mut bundle = TrustBundle::new();
        for der in &certificates {
            bundle.add(der)?;
        }
        let lists = bundle.add_revocation_lists_from_pem(text);
        if let Some(error) = lists.into_iter().next() {
            return Err(error.into());
        }
        let name = |ca: &Ca| ca.facts().subject.clone();
        let standing = state::read(text, &name(&ca), other.as_ref().map(name))?;
        Ok(Self {
            path: path.to_owned(),
            ca,
            other,
            bundle,
            standing,
        })
    }

    fn create(
        path: &Path,
        options: &CaOptions,
        asked: Option<u64>,
        now: u64,
        random: &mut dyn Random,
    ) -> anyhow::Result<Self> {
        let ca = Ca::generate(options, now, random)?;
        let mut bundle = TrustBundle::new();
        bundle.add(ca.certificate())?;
        let mut standing = Standing::settled(ca.facts().subject.clone());
        standing.answered = asked.unwrap_or(0);
        let made = Self {
            path: path.to_owned(),
            ca,
            other: None,
            bundle,
            standing,
        };
        let text = made.text(&made.standing, &made.ca, None, &made.bundle)?;
        files::write_private(path, text.as_bytes())?;
        Ok(made)
    }

    /// What the certificate of the CA that comes or goes says, while it has its key.
    pub(crate) fn other(&self) -> Option<&CertificateFacts> {
        self.other.as_ref().map(Ca::facts)
    }

    /// Takes a step: one write. A file that somebody has changed meanwhile (a revocation list was
    /// added) is taken up first; `false`: the rotation does not stand there where it did, so that
    /// nothing was done.
    pub(crate) fn step(
        &mut self,
        step: Step,
        options: &CaOptions,
        now: u64,
        random: &mut dyn Random,
    ) -> anyhow::Result<bool> {
        let fresh = Self::load(&self.path)?;
        let fresh =
            fresh.with_context(|| format!("{} is gone: restore it", self.path.display()))?;
        let moved = fresh.standing != self.standing;
        *self = fresh;
        if moved {
            warn!("{} was changed by somebody else", self.path.display());
            return Ok(false);
        }
        let made = match step {
            Step::Begin(_) => Some(self.successor(options, now, random)?),
            _ => None,
        };
        let next = made.as_ref().map(|ca| ca.facts().subject.as_str());
        let standing = self.standing.after(step, next);
        let mut bundle = self.bundle.clone();
        let (signer, other) = match (step, &self.other) {
            (Step::Begin(_), _) => (&self.ca, made.as_ref()),
            (Step::Issue | Step::TurnBack, Some(other)) => (other, Some(&self.ca)),
            (Step::Drop | Step::Retire, Some(other)) => {
                bundle
                    .remove(&other.facts().fingerprint, &Default::default())
                    .context("dropping the CA")?;
                (&self.ca, None)
            }
            (Step::Note(_) | Step::Settle, _) => (&self.ca, None),
            (_, None) => bail!("there is no other CA to {step:?}"),
        };
        let text = self.text(&standing, signer, other, &bundle)?;
        // What cannot be read again must not take the place of what can.
        ensure!(
            text.as_bytes().len() as u64 <= files::MAX_PRIVATE_BYTES,
            "the CAs and revocation lists would take {} bytes, and a file of {} is the largest that is read",
            text.as_bytes().len(),
            files::MAX_PRIVATE_BYTES
        );
        let next = Self::read(&self.path, &text).context("the step would spoil the file")?;
        replace(&self.path, &text)?;
        *self = next;
        Ok(true)
    }

    /// A new CA whose name no CA of the bundle has: nodes tell them apart by it.
    fn successor(
        &self,
        options: &CaOptions,
        now: u64,
        random: &mut dyn Random,
    ) -> anyhow::Result<Ca> {
        ensure!(
            self.bundle.len() < testudo_pki::MAX_ANCHORS,
            "the bundle holds {} CAs already: remove some that nobody uses from {}",
            self.bundle.len(),
            self.path.display()
        );
        loop {
            let made = Ca::generate(options, now, random)?;
            let taken = |facts: CertificateFacts| facts.subject == made.facts().subject;
            if !self.bundle.facts().any(taken) {
                return Ok(made);
            }
        }
    }

    /// The file's text.
    fn text(
        &self,
        standing: &Standing,
        signer: &Ca,
        other: Option<&Ca>,
        bundle: &TrustBundle,
    ) -> anyhow::Result<SecretBytes> {
        let keyed: Vec<&Ca> = std::iter::once(signer).chain(other).collect();
        // With room for all from the start: what grows leaves copies behind.
        let mut text = Vec::with_capacity(64 * 1024 + bundle.revocation_lists_to_pem().len());
        text.extend_from_slice(state::write(standing).as_bytes());
        for ca in &keyed {
            text.extend_from_slice(ca.certificate_pem().as_bytes());
            text.extend_from_slice(ca.key_pem()?.as_bytes());
        }
        for der in bundle.anchors() {
            if !keyed.iter().any(|ca| ca.certificate() == der) {
                text.extend_from_slice(chain_to_pem(&[der]).as_bytes());
            }
        }
        text.extend_from_slice(bundle.revocation_lists_to_pem().as_bytes());
        Ok(SecretBytes::new(text))
    }
}

/// The CA of this certificate (DER), and which of `keys` is its own.
fn with_its_key(der: &[u8], keys: &[SecretBytes]) -> anyhow::Result<Option<(Ca, usize)>> {
    let pem = chain_to_pem(&[der]);
    for (index, key) in keys.iter().enumerate() {
        match Ca::load(&pem, key.as_bytes()) {
            Ok(ca) => return Ok(Some((ca, index))),
            Err(testudo_pki::PkiError::KeyMismatch) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Replaces the file, and overwrites what stood in it: a key that is done with is not to be found on
/// the disk, as far as the file system writes in place. A copy of somebody's (another link to the file)
/// is left alone.
fn replace(path: &Path, text: &SecretBytes) -> anyhow::Result<()> {
    let old = File::options().write(true).open(path);
    let mut old = old.with_context(|| format!("{} cannot be written", path.display()))?;
    files::write_private(path, text.as_bytes())?;
    if let Err(error) = wipe(&mut old) {
        warn!(
            "the earlier {} could not be overwritten: {error}",
            path.display()
        );
    }
    Ok(())
}

fn wipe(file: &mut File) -> std::io::Result<()> {
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

/// A controller that was killed while it wrote may have left a part of the file beside it, with a key.
fn remove_leftovers(secrets: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(secrets)
        .with_context(|| format!("{} cannot be read", secrets.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".ca.pem.") && name.ends_with(files::TEMPORARY) {
            let path = entry.path();
            if let Ok(mut file) = File::options().write(true).open(&path) {
                std::fs::remove_file(&path)?;
                wipe(&mut file)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
