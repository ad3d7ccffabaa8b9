//! The cluster's CA on disk: made once, read at every start, never replaced by accident.

use std::path::{Path, PathBuf};

use anyhow::Context;
use testudo_crypto::{Random, SecretBytes};
use testudo_pki::{Ca, CaOptions, TrustBundle, chain_from_pem, utc};
use testudo_store::files;
use tracing::info;

/// The CA that signs, and all CAs that are trusted.
pub(crate) struct Authority {
    /// Signs.
    pub(crate) ca: Ca,
    /// Is published: the signing CA first.
    pub(crate) bundle: TrustBundle,
}

impl Authority {
    /// Takes up the CA in `secrets`, or makes one if there is none.
    ///
    /// Certificates and key stand in one file, so that there is no moment at which a crash
    /// leaves one without the other. Certificates after the first are trusted, but do not sign.
    /// Revocation lists (`X509 CRL`) of any of them are published with the bundle.
    pub(crate) fn open(
        secrets: &Path,
        options: &CaOptions,
        now: u64,
        random: &mut dyn Random,
    ) -> anyhow::Result<Self> {
        let path = file(secrets);
        let (authority, what) = match files::read_private(&path)? {
            Some(text) => {
                let read = Self::read(&text);
                let context = || format!("{}: the CA cannot be used", path.display());
                (read.with_context(context)?, "CA loaded")
            }
            None => (Self::create(&path, options, now, random)?, "CA made"),
        };
        let facts = authority.ca.facts();
        info!(ca = %facts.subject, until = %utc(facts.times.not_after), "{what}");
        Ok(authority)
    }

    fn read(text: &SecretBytes) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(text.as_bytes()).context("it is not text")?;
        let ca = Ca::load(text, text.as_bytes())?;
        let mut bundle = TrustBundle::new();
        for der in chain_from_pem(text)? {
            bundle.add(&der)?;
        }
        match bundle
            .add_revocation_lists_from_pem(text)
            .into_iter()
            .next()
        {
            None => Ok(Self { ca, bundle }),
            Some(error) => Err(error.into()),
        }
    }

    fn create(
        path: &Path,
        options: &CaOptions,
        now: u64,
        random: &mut dyn Random,
    ) -> anyhow::Result<Self> {
        let ca = Ca::generate(options, now, random)?;
        let mut text = ca.certificate_pem().into_bytes();
        text.extend_from_slice(ca.key_pem()?.as_bytes());
        let text = SecretBytes::new(text);
        files::write_private(path, text.as_bytes())?;
        let mut bundle = TrustBundle::new();
        bundle.add(ca.certificate())?;
        Ok(Self { ca, bundle })
    }
}

fn file(secrets: &Path) -> PathBuf {
    secrets.join("ca.pem")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use testudo_crypto::SystemRandom;

    const NOW: u64 = 1_800_000_000;

    fn open(dir: &Path) -> anyhow::Result<Authority> {
        Authority::open(dir, &CaOptions::default(), NOW, &mut SystemRandom::new())
    }

    #[test]
    fn the_ca_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let mode = std::fs::metadata(file(dir.path())).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let second = open(dir.path()).unwrap();
        assert_eq!(first.ca.certificate(), second.ca.certificate());
        assert_eq!(second.bundle.len(), 1);
    }

    #[test]
    fn a_damaged_or_open_ca_stops_the_controller_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let path = file(dir.path());
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        let error = open(dir.path()).err().unwrap();
        assert!(format!("{error:#}").contains("ca.pem"), "{error:#}");
        assert_eq!(std::fs::read(&path).unwrap().len(), good.len() / 2);

        std::fs::write(&path, &good).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = open(dir.path()).err().unwrap();
        assert!(format!("{error:#}").contains("chmod 0600"), "{error:#}");
    }

    #[test]
    fn revocation_lists_are_read_and_a_strange_one_stops_the_controller() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let path = file(dir.path());
        let good = std::fs::read(&path).unwrap();
        let with = |ca: &Ca| {
            let list = ca.revocation_list(&[], 1, NOW, NOW + 1000).unwrap();
            let block = testudo_pki::revocation_list_to_pem(&list);
            std::fs::write(&path, [good.as_slice(), block.as_bytes()].concat()).unwrap();
        };
        with(&first.ca);
        let read = open(dir.path()).unwrap();
        assert!(read.bundle.revocation_lists_to_pem().contains("X509 CRL"));

        with(&Ca::generate(&CaOptions::default(), NOW, &mut SystemRandom::new()).unwrap());
        let error = open(dir.path()).err().unwrap();
        assert!(
            format!("{error:#}").contains("no CA of the bundle"),
            "{error:#}"
        );
    }

    #[test]
    fn further_certificates_are_trusted_and_do_not_sign() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let other = Ca::generate(&CaOptions::default(), NOW, &mut SystemRandom::new()).unwrap();
        let path = file(dir.path());
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(other.certificate_pem().as_bytes());
        std::fs::write(&path, &text).unwrap();
        let read = open(dir.path()).unwrap();
        assert_eq!(read.bundle.len(), 2);
        assert_eq!(read.ca.certificate(), first.ca.certificate());
    }
}
