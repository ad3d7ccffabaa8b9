//! The node's certificate: the key is made here and never leaves; the request goes out with the
//! join token's proof; the answer is checked before it replaces what is in use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use testudo_crypto::{KeyType, SecretBytes, SigningKey};
use testudo_ike::{CertificateCredential, Identity as IkeIdentity, LocalIdentity};
use testudo_model::{CertificateFacts, CertificateRequestSpec, CertificateRequestStatus, UnixTime};
use testudo_pki as pki;
use testudo_pki::{CertificateCheck, ExpectedPeer, TrustBundle};
use testudo_plan::renewal::{Reason, Turn};
use zeroize::{Zeroize, Zeroizing};

use crate::clock::{seconds, unix};
use crate::files;
use crate::identity::Identity;

const CURRENT: &str = "certificate.json";
const PENDING: &str = "request.json";

/// A certificate serves so long, seconds, before its age can be a reason for the next: one that
/// comes old out of a controller whose clock is wrong must not be asked for all the time.
const LEAST_SERVICE: i64 = 10;

/// A denied request is made anew after this long, seconds.
const DENIED_RETRY: u64 = 30;

/// Removes what was made for another UID of the node.
pub(crate) fn forget(state_dir: &Path) -> Result<()> {
    [CURRENT, PENDING]
        .iter()
        .try_for_each(|file| files::remove(&state_dir.join(file)))
}

/// Key and chain, in one file so that they can never fall apart.
#[derive(Serialize, Deserialize)]
struct CurrentFile {
    /// PKCS#8 in hex.
    key: String,
    /// PEM.
    chain: String,
    /// The rotation it was asked for under.
    rotation: u64,
}

#[derive(Serialize, Deserialize)]
struct PendingFile {
    key: String,
    /// DER in hex.
    request: String,
    rotation: u64,
}

impl Drop for CurrentFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// A certificate in use.
pub(crate) struct Current {
    key: SecretBytes,
    chain: Vec<Vec<u8>>,
    /// The rotation that it answers.
    pub(crate) rotation: u64,
    pub(crate) facts: pki::CertificateFacts,
}

struct Pending {
    key: SecretBytes,
    spec: CertificateRequestSpec,
    rotation: u64,
    denied: Option<(String, u64)>,
    /// Since when the answer stands there and cannot be used.
    unusable: Option<u64>,
}

/// What shows that a request is this node's.
pub(crate) enum Voucher {
    /// The join token in this file.
    Token(Option<PathBuf>),
    /// The store: its API server knows who writes.
    Store,
}

/// What [`Certificates::consider`] found to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Put this request into the store.
    pub(crate) ask: Option<CertificateRequestSpec>,
    /// A new certificate is in use from now on.
    pub(crate) renewed: bool,
    /// Consider again at this time, whatever else happens.
    pub(crate) again: Option<UnixTime>,
}

/// All about this node's certificate.
pub(crate) struct Certificates {
    dir: PathBuf,
    identity: Identity,
    voucher: Voucher,
    current: Option<Current>,
    pending: Option<Pending>,
    problem: Option<String>,
    /// When this run took the one in use.
    taken: Option<UnixTime>,
    /// The one in use was not of the CA that signed when it was taken.
    of_another: bool,
}

impl Certificates {
    /// Takes up what an earlier run left. A file that cannot be read is said and left behind:
    /// a new certificate heals it.
    pub(crate) fn open(state_dir: &Path, identity: Identity, voucher: Voucher) -> Certificates {
        let mut this = Certificates {
            dir: state_dir.to_owned(),
            identity,
            voucher,
            current: None,
            pending: None,
            problem: None,
            taken: None,
            of_another: false,
        };
        match this.load_current() {
            Ok(current) => this.current = current,
            Err(error) => tracing::warn!("{error:#}; a new certificate will be asked for"),
        }
        match this.load_pending() {
            Ok(pending) => this.pending = pending,
            Err(error) => tracing::warn!("{error:#}; a new request will be made"),
        }
        this
    }

    /// The certificate in use.
    pub(crate) fn current(&self) -> Option<&Current> {
        self.current.as_ref()
    }

    /// Whether a request was made whose answer was not taken yet.
    pub(crate) fn is_asking(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether there is something to be done about it also while encryption is off: a request is under
    /// way, or another CA signs.
    pub(crate) fn is_open(&self, signer: Option<&str>) -> bool {
        let of_another = |current: &Current| signer.is_some_and(|s| current.facts.issuer != s);
        self.is_asking() || self.current.as_ref().is_some_and(of_another)
    }

    /// Whether the one in use was taken back: this node was removed from the cluster.
    pub(crate) fn is_revoked(&self, bundle: &TrustBundle, now: UnixTime) -> bool {
        let checked = |current: &Current| self.check(&current.chain, bundle, now);
        let current = self.current.as_ref().filter(|_| bundle.has_revocations());
        let result = current.map(checked);
        matches!(result, Some(Err(error)) if error.check == CertificateCheck::Revoked)
    }

    /// Whether the request that is under way was denied.
    pub(crate) fn is_denied(&self) -> bool {
        let pending = self.pending.as_ref();
        pending.is_some_and(|pending| pending.denied.is_some())
    }

    /// What keeps the node from a good certificate.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// For the engine.
    pub(crate) fn local_identity(&self) -> Result<Option<LocalIdentity>> {
        let Some(current) = &self.current else {
            return Ok(None);
        };
        let key = SigningKey::from_pkcs8(current.key.as_bytes())
            .context("the node's key cannot be read")?;
        Ok(Some(LocalIdentity {
            id: IkeIdentity::Fqdn(self.identity.node.dns_name()),
            certificate: Some(CertificateCredential {
                chain: current.chain.clone(),
                key,
            }),
        }))
    }

    /// Facts for status.
    pub(crate) fn facts(&self) -> Option<CertificateFacts> {
        let facts = &self.current.as_ref()?.facts;
        Some(CertificateFacts {
            subject: facts.subject.clone(),
            issuer: facts.issuer.clone(),
            serial: facts.serial.clone(),
            not_before: unix(facts.times.not_before),
            not_after: unix(facts.times.not_after),
        })
    }

    /// Facts for the planner. Certificates are dated back because clocks differ: their age counts
    /// from when they were made.
    pub(crate) fn facts_by_age(&self) -> Option<CertificateFacts> {
        let mut facts = self.facts()?;
        let made = facts.not_before + Duration::from_secs(pki::BACKDATE);
        facts.not_before = made.min(facts.not_after);
        Some(facts)
    }

    /// Looks at everything that bears on the certificate and says what is to be done. Called at
    /// each change of the policy, the bundle or the request, and at the time it named itself.
    /// `turn` is the planner's word, `rotation` the one that is wanted.
    pub(crate) fn consider(
        &mut self,
        turn: &Turn,
        rotation: u64,
        bundle: &TrustBundle,
        stored: Option<(&CertificateRequestSpec, &CertificateRequestStatus)>,
        now: UnixTime,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        self.problem = None;
        if let Err(error) = self.step(turn, rotation, bundle, stored, now, &mut outcome) {
            self.problem = Some(format!("{error:#}"));
            outcome.again = Some(UnixTime(now.0 + 10));
        }
        outcome
    }

    fn step(
        &mut self,
        turn: &Turn,
        rotation: u64,
        bundle: &TrustBundle,
        stored: Option<(&CertificateRequestSpec, &CertificateRequestStatus)>,
        now: UnixTime,
        outcome: &mut Outcome,
    ) -> Result<()> {
        self.give_up_unusable(now)?;
        if let Some((_, status)) = stored {
            outcome.renewed = self.take_answer(status, bundle, now)?;
        }
        if outcome.renewed {
            // The planner spoke of the certificate before: it is asked again at once.
            self.taken = Some(now);
            let signer = bundle.facts().next().map(|ca| ca.subject);
            self.of_another = self.is_open(signer.as_deref());
            outcome.again = Some(now);
            return Ok(());
        }
        let denied = self.pending.as_ref().and_then(|p| p.denied.clone());
        if let Some((reason, since)) = denied {
            if seconds(now) < since + DENIED_RETRY {
                self.problem = Some(format!("the certificate request was denied: {reason}"));
                outcome.again = Some(unix(since + DENIED_RETRY));
                return Ok(());
            }
            // The same request would get the same answer.
            self.pending = None;
        }
        if self.pending.is_none() {
            match self.wanted(turn, bundle, now) {
                Wanted::No { again } => {
                    outcome.again = Some(again);
                    return Ok(());
                }
                Wanted::Yes(why) => {
                    tracing::info!(node = %self.identity.name, "asking for a certificate: {why}");
                    self.make_request(rotation)?;
                }
            }
        }
        if let Some(pending) = &self.pending
            && stored.map(|(spec, _)| spec) != Some(&pending.spec)
        {
            outcome.ask = Some(pending.spec.clone());
        }
        Ok(())
    }

    fn wanted(&self, turn: &Turn, bundle: &TrustBundle, now: UnixTime) -> Wanted {
        let Some(current) = &self.current else {
            return Wanted::Yes("the node has none");
        };
        let again = match turn {
            Turn::Now(Reason::Missing) => return Wanted::Yes("the node has none"),
            Turn::Now(Reason::Age) => match self.taken {
                Some(taken) if now.0 < taken.0.saturating_add(LEAST_SERVICE) => {
                    UnixTime(taken.0 + LEAST_SERVICE)
                }
                _ => return Wanted::Yes("it is due for renewal"),
            },
            Turn::Now(Reason::Rotation(_)) => return Wanted::Yes("a rotation was asked for"),
            // What the controller signs may be ahead of the bundle, or behind it: not all the time.
            Turn::Now(Reason::Authority) => match self.taken.filter(|_| self.of_another) {
                Some(taken) if now.0 < taken.0.saturating_add(LEAST_SERVICE) => {
                    UnixTime(taken.0 + LEAST_SERVICE)
                }
                _ => return Wanted::Yes("another CA signs now"),
            },
            Turn::Later(again) => *again,
            Turn::After { until, .. } => *until,
        };
        let lost = [CertificateCheck::UnknownCa, CertificateCheck::BadSignature];
        match self.check(&current.chain, bundle, now) {
            Err(error) if !bundle.is_empty() && lost.contains(&error.check) => {
                Wanted::Yes("peers no longer trust the CA of the one in use")
            }
            Err(error) if error.check == CertificateCheck::Revoked => {
                Wanted::Yes("the one in use was revoked")
            }
            _ => Wanted::No { again },
        }
    }

    fn make_request(&mut self, rotation: u64) -> Result<()> {
        let token = self.token()?;
        let key = SigningKey::generate(KeyType::EcdsaP256).context("making the node's key")?;
        let request = pki::certificate_request(&key, &self.identity.node)?;
        let key = key.to_pkcs8().context("writing the node's key")?;
        let file = PendingFile {
            key: pki::hex(key.as_bytes()),
            request: pki::hex(&request),
            rotation,
        };
        let bytes = Zeroizing::new(serde_json::to_vec(&file).context("writing the request")?);
        files::write_private(&self.dir.join(PENDING), &bytes)?;
        self.pending = Some(Pending {
            key,
            spec: self.request_spec(token.as_ref(), &request),
            rotation,
            denied: None,
            unusable: None,
        });
        Ok(())
    }

    fn request_spec(&self, token: Option<&SecretBytes>, request: &[u8]) -> CertificateRequestSpec {
        let (name, uid) = (self.identity.name.as_str(), self.identity.uid.as_str());
        let proof = match token {
            Some(token) => pki::join_proof(token, name, uid, request),
            // It proves nothing then; the answer is still known by it.
            None => testudo_crypto::sha256(&[request]).to_vec(),
        };
        CertificateRequestSpec {
            node: self.identity.name.clone(),
            uid: self.identity.uid.clone(),
            request: pki::request_to_pem(request),
            proof: pki::hex(&proof),
        }
    }

    /// The join token, where one is needed.
    fn token(&self) -> Result<Option<SecretBytes>> {
        let path = match &self.voucher {
            Voucher::Store => return Ok(None),
            Voucher::Token(Some(path)) => path,
            Voucher::Token(None) => bail!(
                "no join token: start the agent with --join-token-file FILE to get a certificate"
            ),
        };
        let text = std::fs::read(path).map(Zeroizing::new).with_context(|| {
            format!(
                "{}: reading the join token; get it from whoever runs the controller",
                path.display()
            )
        })?;
        let token = pki::token_from_hex(&text).with_context(|| path.display().to_string())?;
        Ok(Some(token))
    }

    /// Whether the answer was a good certificate, which is then in use.
    fn take_answer(
        &mut self,
        status: &CertificateRequestStatus,
        bundle: &TrustBundle,
        now: UnixTime,
    ) -> Result<bool> {
        let Some(pending) = &mut self.pending else {
            return Ok(false);
        };
        if status.answers.as_deref() != Some(pending.spec.proof.as_str()) {
            return Ok(false);
        }
        if let Some(reason) = &status.denied {
            if pending.denied.is_none() {
                tracing::warn!("the certificate request was denied: {reason}");
                pending.denied = Some((reason.clone(), seconds(now)));
            }
            return Ok(false);
        }
        let Some(pem) = &status.certificate else {
            return Ok(false);
        };
        let chain = pki::chain_from_pem(pem)?;
        // Not in the bundle yet: the bundle's change brings us here again.
        let checked = self.check(&chain, bundle, now);
        if let Some(pending) = &mut self.pending {
            let first = pending.unusable.unwrap_or(seconds(now));
            pending.unusable = checked.is_err().then_some(first);
        }
        checked.context("the certificate that came back is not usable")?;
        let Some(pending) = self.pending.take() else {
            return Ok(false);
        };
        match self.install(&pending, chain) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.pending = Some(pending);
                Err(error)
            }
        }
    }

    /// An answer that is of no use for so long will never be of any: the CA that signed it has left the
    /// bundle, say, or a clock was wrong. It is asked for anew.
    fn give_up_unusable(&mut self, now: UnixTime) -> Result<()> {
        let since = self.pending.as_ref().and_then(|pending| pending.unusable);
        if since.is_some_and(|since| seconds(now) >= since + DENIED_RETRY) {
            tracing::warn!(node = %self.identity.name, "the answer stays unusable and is given up");
            self.pending = None;
            files::remove(&self.dir.join(PENDING))?;
        }
        Ok(())
    }

    fn install(&mut self, pending: &Pending, chain: Vec<Vec<u8>>) -> Result<()> {
        let leaf = chain.first().context("the answer holds no certificate")?;
        let facts = pki::CertificateFacts::read(leaf)?;
        let key = SigningKey::from_pkcs8(pending.key.as_bytes())
            .context("the key of the request cannot be read")?;
        ensure!(
            key.public_spki() == facts.spki,
            "the certificate that came back is for another key"
        );
        let file = CurrentFile {
            key: pki::hex(pending.key.as_bytes()),
            chain: pki::chain_to_pem(&chain),
            rotation: pending.rotation,
        };
        let bytes = Zeroizing::new(serde_json::to_vec(&file).context("writing the certificate")?);
        files::write_private(&self.dir.join(CURRENT), &bytes)?;
        files::remove(&self.dir.join(PENDING))?;
        tracing::info!(
            node = %self.identity.name,
            serial = facts.serial,
            not_after = %unix(facts.times.not_after),
            "a new certificate is in use"
        );
        self.current = Some(Current {
            key: pending.key.clone(),
            chain,
            rotation: pending.rotation,
            facts,
        });
        Ok(())
    }

    fn check(
        &self,
        chain: &[Vec<u8>],
        bundle: &TrustBundle,
        now: UnixTime,
    ) -> Result<(), pki::CertificateError> {
        let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        let expected = ExpectedPeer::Node(&self.identity.node);
        pki::verify_chain(&chain, bundle, expected, seconds(now)).map(drop)
    }

    fn load_current(&self) -> Result<Option<Current>> {
        let path = self.dir.join(CURRENT);
        let Some(bytes) = files::read_optional(&path)?.map(Zeroizing::new) else {
            return Ok(None);
        };
        let unusable = || format!("{}: not usable", path.display());
        let file: CurrentFile = serde_json::from_slice(&bytes).with_context(unusable)?;
        let key = SecretBytes::new(unhex(&file.key).with_context(unusable)?);
        let chain = pki::chain_from_pem(&file.chain).with_context(unusable)?;
        let leaf = chain.first().with_context(unusable)?;
        let facts = pki::CertificateFacts::read(leaf).with_context(unusable)?;
        let own = facts.node_name.as_deref() == Some(self.identity.name.as_str())
            && facts.node_uid.as_deref() == Some(self.identity.uid.as_str());
        ensure!(own, "{}: of another node or an earlier UID", path.display());
        SigningKey::from_pkcs8(key.as_bytes()).with_context(unusable)?;
        Ok(Some(Current {
            key,
            chain,
            rotation: file.rotation,
            facts,
        }))
    }

    fn load_pending(&self) -> Result<Option<Pending>> {
        let path = self.dir.join(PENDING);
        let Some(bytes) = files::read_optional(&path)?.map(Zeroizing::new) else {
            return Ok(None);
        };
        let unusable = || format!("{}: not usable", path.display());
        let file: PendingFile = serde_json::from_slice(&bytes).with_context(unusable)?;
        let key = SecretBytes::new(unhex(&file.key).with_context(unusable)?);
        let request = unhex(&file.request).with_context(unusable)?;
        let token = self.token()?;
        Ok(Some(Pending {
            key,
            spec: self.request_spec(token.as_ref(), &request),
            rotation: file.rotation,
            denied: None,
            unusable: None,
        }))
    }
}

enum Wanted {
    No { again: UnixTime },
    Yes(&'static str),
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(2), "odd number of hex digits");
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for pair in text.as_bytes().chunks_exact(2) {
        let digit = |b: u8| char::from(b).to_digit(16).context("not a hex digit");
        bytes.push((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
