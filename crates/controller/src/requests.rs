//! Answers certificate requests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use testudo_crypto::SystemRandom;
use testudo_model::{CertificateRequest, CertificateRequestSpec, CertificateRequestStatus};
use testudo_pki::{Ca, CertificateFacts, chain_to_pem, utc};
use testudo_store::{Store, StoreError};
use tracing::{debug, error, info, warn};

use crate::news::{About, News};
use crate::register::{Given, Holder, Register, ca_of};
use crate::revocation::changed;
use crate::run::{Controller, seconds, settings};
use crate::safe::{Document, Safe};
use crate::signer::{Denial, Signer};

/// How soon a request is looked at again of which it was not known whose it is.
const LATER: Duration = Duration::from_secs(3);

/// Once an answer could not be written, no more are tried in this round after this time: where each takes
/// as long as a call may take, the controller has other things to do.
const ROUND: Duration = Duration::from_secs(20);

/// The certificate that stands in the register for what a node asked last. Who asks the same again, with the
/// same key, is offered it again: its answer could not be written, or the request was deleted before its node
/// had seen it. Each new one would take room in the register for as long as it lasts; and the earlier one cannot
/// be taken back in exchange, because it may be the one that the node has taken into use.
///
/// This is not kept over a restart or a change of leader: then there is one more, once.
#[derive(Clone)]
pub(crate) struct Owed {
    /// What it was signed for.
    spec: CertificateRequestSpec,
    given: Given,
    /// In PEM.
    certificate: String,
    /// It has half of its life before it until then, seconds since 1970: it is offered no longer.
    until: u64,
    /// The UID of the object that has it as its answer.
    answered: Option<String>,
}

/// Certificates that are offered again, by the request's name, which is the node's.
pub(crate) type Debts = BTreeMap<String, Owed>;

impl Owed {
    /// Whether it is what would be signed for this request now.
    fn answers(&self, spec: &CertificateRequestSpec, ca: &Ca, lifetime: u64, now: u64) -> bool {
        let longest = now.saturating_add(lifetime);
        self.spec == *spec
            && self.given.ca == ca_of(ca.facts())
            && now < self.until
            && self.given.not_after <= longest
    }
}

/// An answer, and if it is denied the word for why.
type Answer = (CertificateRequestStatus, Option<&'static str>);

impl<S: Store, K: Safe> Controller<S, K> {
    /// Answers all that are open. Certificates are in the register before any is given out.
    pub(crate) async fn answer_requests(&mut self) -> Result<(), StoreError> {
        let open: Vec<CertificateRequest> = self
            .world
            .requests
            .objects
            .values()
            .filter(|request| is_open(request))
            .cloned()
            .collect();
        let there = &self.world.requests.objects;
        self.warned.retain(|name, _| there.contains_key(name));
        let nodes = &self.world.nodes.objects;
        self.owed
            .retain(|name, _| there.contains_key(name) || nodes.contains_key(name));
        if open.is_empty() {
            return Ok(());
        }
        let mut register = self.kept.register.clone();
        let mut signed = Debts::new();
        let mut answers = Vec::with_capacity(open.len());
        for mut request in open {
            self.numbers.beat();
            match self.decide(&request, &mut register, &mut signed).await {
                Some((status, denied)) => {
                    request.status = status;
                    answers.push((request, denied));
                }
                None => self.absent.look_at(Instant::now() + LATER),
            }
        }
        // What nobody has written down nobody has.
        match self.kept.put(&self.safe, register).await {
            Ok(true) => {}
            Ok(false) => return Err(changed(&self.safe)),
            Err(error) => {
                return Err(StoreError::Unavailable {
                    what: format!("no certificate is given out: {error:#}"),
                    remedy: format!("see to {}", self.safe.place(Document::Register)),
                });
            }
        }
        // Those of which it has failed before come last.
        answers.sort_by_key(|(request, _)| {
            let owed = self.owed.get(request.name());
            owed.is_some_and(|owed| owed.answered.is_none())
        });
        self.owed.append(&mut signed);
        self.give_out(answers).await
    }

    /// Writes answers. One that cannot be written keeps none of the others back; the first error is given
    /// at the end.
    async fn give_out(
        &mut self,
        answers: Vec<(CertificateRequest, Option<&'static str>)>,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut first = Ok(());
        for (request, denied) in answers {
            if first.is_err() && began.elapsed() > ROUND {
                break;
            }
            let name = request.name().to_owned();
            self.numbers.beat();
            let mut done = self.store.update_status(&request).await;
            if matches!(&done, Err(e) if e.is_conflict() || e.is_not_found()) {
                debug!(node = name, "the request changed meanwhile");
                let requests = &mut self.world.requests;
                let refreshed = requests.refresh(&self.store, &name).await;
                done = refreshed.and(done);
            }
            match done {
                Ok(written) => {
                    let uid = written.metadata.uid.clone().unwrap_or_default();
                    let owed = self.owed.get_mut(&name).filter(|_| denied.is_none());
                    let before = owed.and_then(|owed| owed.answered.replace(uid.clone()));
                    // Where a watch lags behind an object looks open that has its answer.
                    if before.as_ref() != Some(&uid) || uid.is_empty() {
                        self.tell_of_answer(&written, denied, before.is_some());
                    }
                    self.world.requests.put(written);
                }
                Err(error) => {
                    debug!(node = name, "the answer is not written: {error}");
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    /// Counts an answer that was given, and tells of it. `again`: it is a certificate that was given before.
    fn tell_of_answer(
        &self,
        request: &CertificateRequest,
        denied: Option<&'static str>,
        again: bool,
    ) {
        let node = &request.spec.node;
        let about = match testudo_store_kube::name_of(request) {
            Some(name) => About::Request(name.to_owned()),
            None => About::Node(node.to_string()),
        };
        let news = match (denied, &request.status.denied) {
            (Some(reason), why) => {
                self.numbers.denied(reason);
                let why = why.as_deref().unwrap_or_default();
                let text = format!("no certificate for node {node}: {why}");
                News::bad(about, "CertificateDenied", "Deny", text)
            }
            (None, _) if again => {
                let text = format!("node {node} asks again, and has the certificate of before");
                info!("{text}");
                News::good(about, "CertificateSigned", "Sign", text)
            }
            (None, _) => {
                self.numbers.signed();
                let pem = request.status.certificate.as_deref().unwrap_or_default();
                let chain = testudo_pki::chain_from_pem(pem).unwrap_or_default();
                if let Some(Ok(facts)) = chain.first().map(|der| CertificateFacts::read(der)) {
                    let (serial, until) = (facts.serial, utc(facts.times.not_after));
                    info!(node = %node, serial, until, "certificate signed");
                }
                let text = format!("certificate signed for node {node}");
                News::good(about, "CertificateSigned", "Sign", text)
            }
        };
        self.safe.tell(news);
    }

    /// The answer to a request; `None`: not yet. What it signs is written down in `register`, and put among
    /// `signed`.
    async fn decide(
        &mut self,
        request: &CertificateRequest,
        register: &mut Register,
        signed: &mut Debts,
    ) -> Option<Answer> {
        let node = request.name().to_owned();
        let mut status = CertificateRequestStatus {
            answers: Some(request.spec.proof.clone()),
            ..CertificateRequestStatus::default()
        };
        if let Some(why) = testudo_store_kube::unfit(request) {
            let denial = Denial::Unfit(why.to_owned());
            warn!(node, "certificate denied: {denial}");
            status.denied = Some(denial.to_string());
            return Some((status, Some(denial.reason())));
        }
        let requester = match self.store.requester(request).await {
            Ok(requester) => requester,
            Err(e) => {
                let denial = match e {
                    // On an API server that is away, or where the request is gone.
                    StoreError::Unavailable { .. } | StoreError::NotFound { .. } => {
                        debug!(node, "{e}");
                        return None;
                    }
                    e => {
                        error!(node, "{e}");
                        Denial::TokenUnreadable(e.to_string())
                    }
                };
                status.denied = Some(denial.to_string());
                return Some((status, Some(denial.reason())));
            }
        };
        let admitted = self.safe.authenticate(request, &requester).await;
        let decided = admitted.and_then(|()| {
            let holder = Holder {
                name: request.spec.node.to_string(),
                uid: request.spec.uid.to_string(),
            };
            let signer = Signer {
                ca: &self.authority.ca,
                lifetime: settings(&self.world).node_lifetime.0.as_secs(),
                nodes: &self.world.nodes.objects,
                now: seconds(),
            };
            if let Some(owed) = self.owed.get(&node)
                && owed.answers(&request.spec, signer.ca, signer.lifetime, signer.now)
                && register.has(&holder, &owed.given)
            {
                return Ok(owed.certificate.clone());
            }
            let issued = signer.decide(request, &mut SystemRandom::new())?;
            let given = Given::new(self.authority.ca.facts(), &issued.facts);
            register.give(holder, given.clone())?;
            let owed = Owed {
                spec: request.spec.clone(),
                until: signer.now.midpoint(given.not_after),
                given,
                answered: None,
                certificate: chain_to_pem(&[issued.der]),
            };
            let certificate = owed.certificate.clone();
            signed.insert(node.clone(), owed);
            Ok(certificate)
        });
        if let Err(denial @ Denial::Unknown(_)) = &decided {
            warn!(node, "{denial}");
            return None;
        }
        let denied = decided.as_ref().err().map(Denial::reason);
        match decided {
            Ok(certificate) => {
                self.warned.remove(&node);
                status.certificate = Some(certificate);
            }
            Err(denial) => {
                let text = denial.to_string();
                if self.warned.get(&node) != Some(&text) {
                    warn!(node, "certificate denied: {text}");
                    self.warned.insert(node, text.clone());
                }
                status.denied = Some(text);
            }
        }
        Some((status, denied))
    }
}

/// Whether it has no answer yet.
fn is_open(request: &CertificateRequest) -> bool {
    request.status.answers.as_ref() != Some(&request.spec.proof)
}
