//! The cluster's CAs as they are kept: the one that signs, and the one that comes or goes beside it.
//!
//! All stands in one document (`ca.pem` of a directory), which is replaced as a whole: a rotation is before
//! or after a step, never in between, whenever the controller is killed. It begins with lines that say where
//! the rotation stands ([`state`]), then come certificate and key of the CA that signs, then those of the
//! other one, then certificates that are trusted and do not sign, and revocation lists.

mod revocation;
mod state;

use anyhow::{Context, bail, ensure};
use testudo_crypto::{Random, SecretBytes};
use testudo_model::CaPhase;
use testudo_pki::{
    Ca, CaOptions, CertificateFacts, TrustBundle, chain_from_pem, chain_to_pem, utc,
};
use testudo_plan::authority::{Standing, Step};
use tracing::{info, warn};

use crate::register::{Register, ca_of};
use crate::safe::{Document, Safe, SafeError, Unusable, Version};

pub(crate) use revocation::{MOST as MOST_IN_A_LIST, Revocation};

/// Where random numbers come from.
pub(crate) type Chance = dyn Random + Send;

/// The CA that signs, and all that are trusted.
pub(crate) struct Authority {
    version: Version,
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
    /// Takes up the CA in the safe, or makes one if there is none; what was `asked` for before that
    /// is no reason to replace it.
    ///
    /// Certificates after the first are trusted, but do not sign. Revocation lists (`X509 CRL`) of any
    /// of them are published with the bundle. It must be the CA of the certificates in the `register`.
    pub(crate) async fn open<K: Safe>(
        safe: &K,
        register: &Register,
        options: &CaOptions,
        asked: Option<u64>,
        now: u64,
        random: &mut Chance,
    ) -> anyhow::Result<Self> {
        let (authority, what) = match Self::load(safe).await? {
            Some(authority) => {
                authority.is_of(register, &safe.place(Document::Authority))?;
                (authority, "CA loaded")
            }
            None => {
                let made = Self::create(safe, options, asked, now, random).await?;
                (made, "CA made")
            }
        };
        let facts = authority.ca.facts();
        info!(ca = %facts.subject, until = %utc(facts.times.not_after), "{what}");
        if authority.standing.phase != CaPhase::Settled {
            info!(phase = %authority.standing.phase, "a rotation of the CA goes on");
        }
        Ok(authority)
    }

    async fn load<K: Safe>(safe: &K) -> anyhow::Result<Option<Self>> {
        let Some(sealed) = safe.read(Document::Authority).await? else {
            return Ok(None);
        };
        match Self::read(sealed.version, &sealed.text) {
            Ok(read) => Ok(Some(read)),
            Err(error) => Err(Unusable {
                reason: "CaUnusable",
                text: format!(
                    "{}: the CA cannot be used: {error:#}",
                    safe.place(Document::Authority)
                ),
            }
            .into()),
        }
    }

    /// An error where nodes hold certificates and none is of a CA that stands here: publishing these CAs
    /// would cut all of them off.
    fn is_of(&self, register: &Register, place: &str) -> Result<(), Unusable> {
        let known: Vec<CertificateFacts> = self.bundle.facts().collect();
        let theirs = register.good_cas();
        match theirs.is_empty() || known.iter().any(|ca| theirs.contains(ca_of(ca))) {
            true => Ok(()),
            false => Err(foreign(place)),
        }
    }

    fn read(version: Version, text: &SecretBytes) -> anyhow::Result<Self> {
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
            version,
            ca,
            other,
            bundle,
            standing,
        })
    }

    async fn create<K: Safe>(
        safe: &K,
        options: &CaOptions,
        asked: Option<u64>,
        now: u64,
        random: &mut Chance,
    ) -> anyhow::Result<Self> {
        let ca = match safe.given().await? {
            Some(given) => given,
            None => Ca::generate(options, now, random)?,
        };
        let mut bundle = TrustBundle::new();
        bundle.add(ca.certificate())?;
        let mut standing = Standing::settled(ca.facts().subject.clone());
        standing.answered = asked.unwrap_or(0);
        let text = text(&standing, &ca, None, &bundle)?;
        let version = safe.replace(Document::Authority, &text, None).await?;
        Ok(Self {
            version,
            ca,
            other: None,
            bundle,
            standing,
        })
    }

    /// Which text of the document this is.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// What the certificate of the CA that comes or goes says, while it has its key.
    pub(crate) fn other(&self) -> Option<&CertificateFacts> {
        self.other.as_ref().map(Ca::facts)
    }

    /// Takes a step: one write. A document that somebody has changed meanwhile (a revocation list was
    /// added) is taken up first; `false`: the rotation does not stand there where it did, so that
    /// nothing was done.
    pub(crate) async fn step<K: Safe>(
        &mut self,
        safe: &K,
        step: Step,
        options: &CaOptions,
        now: u64,
        random: &mut Chance,
    ) -> anyhow::Result<bool> {
        if !self.take_up(safe).await? {
            return Ok(false);
        }
        let made = match step {
            Step::Begin(_) => Some(self.successor(safe, options, now, random).await?),
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
        let text = text(&standing, signer, other, &bundle)?;
        self.put(safe, &text).await
    }

    /// Has each CA that can sign say what is taken back: by `register`, and by the lists that somebody
    /// put here by hand. Signs only where that is not what its list says, or the list is due. `sure`: the
    /// clock is believed. Says how many certificates found no room, and whether all is as it should be:
    /// `false` if somebody has changed the document meanwhile.
    pub(crate) async fn revoke<K: Safe>(
        &mut self,
        safe: &K,
        register: &Register,
        now: u64,
        sure: bool,
    ) -> anyhow::Result<Revocation> {
        let mut outcome = Revocation::default();
        let due = |ca| revocation::due(ca, &self.bundle, register, now, sure).is_some();
        if !self.keyed().into_iter().any(due) {
            let surplus = |ca| revocation::surplus(ca, &self.bundle, register, now, sure);
            outcome.left_out = self.keyed().into_iter().map(surplus).sum();
            outcome.done = true;
            return Ok(outcome);
        }
        if !self.take_up(safe).await? {
            return Ok(outcome);
        }
        let mut bundle = self.bundle.clone();
        for ca in self.keyed() {
            if let Some(list) = revocation::due(ca, &self.bundle, register, now, sure) {
                outcome.left_out += list.left_out;
                let der = ca.revocation_list(&list.revoked, list.number, now, list.next_update)?;
                bundle.replace_revocation_list(&der)?;
                outcome.signed += 1;
            }
        }
        let text = text(&self.standing, &self.ca, self.other.as_ref(), &bundle)?;
        outcome.done = self.put(safe, &text).await?;
        Ok(outcome)
    }

    /// The CAs that can sign.
    pub(crate) fn keyed(&self) -> Vec<&Ca> {
        std::iter::once(&self.ca).chain(&self.other).collect()
    }

    /// Takes up what stands in the safe; whether the rotation stands there where it did. What is gone, or
    /// broken, or holds CAs that are not those that nodes trust is not taken up: [`Unusable`].
    pub(crate) async fn take_up<K: Safe>(&mut self, safe: &K) -> anyhow::Result<bool> {
        let fresh = Self::load(safe).await?;
        let place = safe.place(Document::Authority);
        let fresh = fresh.ok_or_else(|| Unusable {
            reason: "CaMissing",
            text: format!("{place} is gone: restore it"),
        })?;
        if !fresh
            .bundle
            .anchors()
            .any(|der| der == self.ca.certificate())
        {
            return Err(foreign(&place).into());
        }
        let moved = fresh.standing != self.standing;
        *self = fresh;
        if moved {
            warn!("{place} was changed by somebody else");
        }
        Ok(!moved)
    }

    /// Replaces what stands in the safe; `false`: somebody else was faster.
    async fn put<K: Safe>(&mut self, safe: &K, text: &SecretBytes) -> anyhow::Result<bool> {
        let unread = Version(String::new());
        let mut next = Self::read(unread, text).context("the step would spoil the file")?;
        let over = Some(&self.version);
        match safe.replace(Document::Authority, text, over).await {
            Ok(version) => next.version = version,
            Err(error @ SafeError::Changed(_)) => {
                warn!("{error}");
                return Ok(false);
            }
            Err(SafeError::Failed(error)) => return Err(error),
        }
        *self = next;
        Ok(true)
    }

    /// A new CA whose name no CA of the bundle has: nodes tell them apart by it.
    async fn successor<K: Safe>(
        &self,
        safe: &K,
        options: &CaOptions,
        now: u64,
        random: &mut Chance,
    ) -> anyhow::Result<Ca> {
        ensure!(
            self.bundle.len() < testudo_pki::MAX_ANCHORS,
            "the bundle holds {} CAs already: remove some that nobody uses from {}",
            self.bundle.len(),
            safe.place(Document::Authority)
        );
        if let Some(given) = safe.given().await? {
            if let Some(why) = self.refuses(given.facts()) {
                bail!("{} {why}", safe.place(Document::Given));
            }
            return Ok(given);
        }
        loop {
            let made = Ca::generate(options, now, random)?;
            if self.refuses(made.facts()).is_none() {
                return Ok(made);
            }
        }
    }

    /// Why this CA cannot follow the one that signs; `None`: it can. Goes on after the name of the place where
    /// it stands.
    pub(crate) fn refuses(&self, next: &CertificateFacts) -> Option<String> {
        if next.fingerprint == self.ca.facts().fingerprint {
            return Some("holds the CA that signs now: put the next one there".to_owned());
        }
        let known = || self.bundle.facts();
        if known().any(|ca| ca.subject == next.subject) {
            return Some(format!(
                "holds another CA of the name {:?}, which is trusted already, and nodes tell CAs apart by \
                 their names: give the next one another (commonName)",
                next.subject
            ));
        }
        // Who replaces a CA wants to be rid of its key.
        let of_the_key = known().find(|ca| ca.spki == next.spki)?;
        Some(format!(
            "holds the key of {:?}, which is trusted already: the next CA needs a key of its own (with \
             cert-manager rotationPolicy: Always)",
            of_the_key.subject
        ))
    }
}

fn foreign(place: &str) -> Unusable {
    Unusable {
        reason: "CaForeign",
        text: format!(
            "{place} holds other CAs than those whose certificates nodes have: restore it (to change \
             the CA, `testudo ca rotate`)"
        ),
    }
}

/// The document's text.
fn text(
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

#[cfg(test)]
mod tests;
