//! The register in the safe: read at the start, written before anything rests on it.

use anyhow::Context;
use testudo_crypto::SecretBytes;
use tracing::warn;

use super::Register;
use super::text::HEAD;
use crate::safe::{Document, Safe, SafeError, Unusable, Version};

/// The register as it is kept.
pub(crate) struct Kept {
    pub(crate) register: Register,
    version: Option<Version>,
}

impl Kept {
    /// Takes it up at the start. Where no CA was ever `published` an empty one is made, before any node can
    /// trust what is signed; where one was, a register that is not there was lost, and an empty one in its
    /// place would forget who holds what: [`Unusable`].
    pub(crate) async fn begin<K: Safe>(safe: &K, published: bool) -> anyhow::Result<Self> {
        let mut kept = Self::open(safe).await?;
        if kept.version.is_none() {
            if published {
                return Err(missing(safe).into());
            }
            let text = SecretBytes::new(kept.register.to_text().into_bytes());
            kept.version = Some(safe.replace(Document::Register, &text, None).await?);
        }
        Ok(kept)
    }

    /// As it stands; one that cannot be read is not replaced by an empty one.
    async fn open<K: Safe>(safe: &K) -> anyhow::Result<Self> {
        let Some(sealed) = safe.read(Document::Register).await? else {
            return Ok(Self {
                register: Register::default(),
                version: None,
            });
        };
        let text = std::str::from_utf8(sealed.text.as_bytes()).context("it is not text");
        let read = text.and_then(Register::from_text);
        let register = read.map_err(|error| Unusable {
            reason: "RegisterUnusable",
            text: format!(
                "{}: the register of certificates cannot be used; restore it, or move it away if \
                 no node was ever deleted: {error:#}",
                safe.place(Document::Register)
            ),
        })?;
        Ok(Self {
            register,
            version: Some(sealed.version),
        })
    }

    /// Which text of the document this is; `None` where there is none.
    pub(crate) fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// Takes up what stands in the safe. What is gone or broken is not taken up: [`Unusable`].
    pub(crate) async fn take_up<K: Safe>(&mut self, safe: &K) -> anyhow::Result<()> {
        let fresh = Self::open(safe).await?;
        if fresh.version.is_none() && self.version.is_some() {
            return Err(missing(safe).into());
        }
        *self = fresh;
        Ok(())
    }

    /// Keeps `next` if it differs; `false`: somebody has changed it, and it was read again.
    pub(crate) async fn put<K: Safe>(&mut self, safe: &K, next: Register) -> anyhow::Result<bool> {
        if next == self.register {
            return Ok(true);
        }
        let text = SecretBytes::new(next.to_text().into_bytes());
        let over = self.version.as_ref();
        match safe.replace(Document::Register, &text, over).await {
            Ok(version) => {
                self.version = Some(version);
                self.register = next;
                Ok(true)
            }
            Err(error @ SafeError::Changed(_)) => {
                warn!("{error}");
                self.take_up(safe).await?;
                Ok(false)
            }
            Err(SafeError::Failed(error)) => Err(error),
        }
    }
}

/// The register is gone, and nobody but a person can say that an empty one may take its place.
fn missing<K: Safe>(safe: &K) -> Unusable {
    Unusable {
        reason: "RegisterMissing",
        text: format!(
            "{} with the register of certificates is gone: restore it. To begin with an empty one, which \
             knows of no certificate but those that nodes show, make it with the one line \"{HEAD}\"",
            safe.place(Document::Register)
        ),
    }
}
