//! Answers certificate requests.

use std::time::{Duration, Instant};

use testudo_crypto::SystemRandom;
use testudo_model::{CertificateRequest, CertificateRequestStatus};
use testudo_pki::{CertificateFacts, chain_to_pem, utc};
use testudo_store::{Store, StoreError};
use tracing::{debug, error, info, warn};

use crate::news::{About, News};
use crate::register::{Given, Holder, Register};
use crate::revocation::changed;
use crate::run::{Controller, seconds, settings};
use crate::safe::{Document, Safe};
use crate::signer::{Denial, Signer};

/// How soon a request is looked at again of which it was not known whose it is.
const LATER: Duration = Duration::from_secs(3);

impl<S: Store, K: Safe> Controller<S, K> {
    /// Answers all that are open. Certificates are in the register before any is given out.
    pub(crate) async fn answer_requests(&mut self) -> Result<(), StoreError> {
        let open: Vec<CertificateRequest> = self
            .world
            .requests
            .objects
            .values()
            .filter(|r| r.status.answers.as_ref() != Some(&r.spec.proof))
            .cloned()
            .collect();
        let mut register = self.kept.register.clone();
        let mut answers = Vec::with_capacity(open.len());
        for mut request in open {
            self.numbers.beat();
            match self.decide(&request, &mut register).await {
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
        for (request, denied) in answers {
            let name = request.name().to_owned();
            self.numbers.beat();
            match self.store.update_status(&request).await {
                Ok(written) => {
                    self.tell_of_answer(&written, denied);
                    self.world.requests.put(written);
                }
                Err(e) if e.is_conflict() || e.is_not_found() => {
                    debug!(node = name, "the request changed meanwhile");
                    let requests = &mut self.world.requests;
                    requests.refresh(&self.store, &name).await?;
                    return Err(e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Counts an answer that was given, and tells of it.
    fn tell_of_answer(&self, request: &CertificateRequest, denied: Option<&'static str>) {
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

    /// The answer to a request, and if it is denied the word for why; `None`: not yet.
    async fn decide(
        &mut self,
        request: &CertificateRequest,
        register: &mut Register,
    ) -> Option<(CertificateRequestStatus, Option<&'static str>)> {
        let node = request.name().to_owned();
        let mut status = CertificateRequestStatus {
            answers: Some(request.spec.proof.clone()),
            ..CertificateRequestStatus::default()
        };
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
            let signer = Signer {
                ca: &self.authority.ca,
                lifetime: settings(&self.world).node_lifetime.0.as_secs(),
                nodes: &self.world.nodes.objects,
                now: seconds(),
            };
            let issued = signer.decide(request, &mut SystemRandom::new())?;
            let holder = Holder {
                name: request.spec.node.to_string(),
                uid: request.spec.uid.to_string(),
            };
            let given = Given::new(self.authority.ca.facts(), &issued.facts);
            register.give(holder, given)?;
            Ok(issued)
        });
        if let Err(denial @ Denial::Unknown(_)) = &decided {
            warn!(node, "{denial}");
            return None;
        }
        let denied = decided.as_ref().err().map(Denial::reason);
        match decided {
            Ok(issued) => {
                self.warned.remove(&node);
                status.certificate = Some(chain_to_pem(&[issued.der]));
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
