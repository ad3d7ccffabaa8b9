//! Documents that somebody else has removed, broken or changed: what was read last goes on, and it is said
//! in the log, in the policy's status and where news are told.

use std::collections::BTreeMap;

use testudo_model::policy::CLUSTER;
use testudo_model::{Condition, ConditionStatus, EncryptionPolicyStatus, UnixTime, condition};
use testudo_pki::CertificateFacts;
use testudo_store::{Store, StoreError};
use tracing::{error, info};

use crate::news::{About, News};
use crate::run::{Controller, seconds};
use crate::safe::{Document, Safe, Seen, Unusable};
use crate::world::World;

/// The type of the condition in the policy's status.
pub(crate) const CONDITION: &str = "SecretsUsable";

/// The type of the condition about the policy itself, where it could not be read once.
pub(crate) const READABLE: &str = "PolicyReadable";

const ALL: [Document; 3] = [Document::Authority, Document::Register, Document::Given];

/// What is known of them.
#[derive(Default)]
pub(crate) struct Documents {
    /// What was looked at last.
    seen: BTreeMap<Document, Seen>,
    /// What somebody has to see to.
    pub(crate) trouble: BTreeMap<Document, Unusable>,
    /// The CA that somebody gives to be used, as it was read last.
    pub(crate) given: Option<CertificateFacts>,
}

impl<S: Store, K: Safe> Controller<S, K> {
    /// Looks at the documents that are not as we left them.
    pub(crate) async fn see_to_documents(&mut self) -> Result<(), StoreError> {
        for document in ALL {
            let seen = self.safe.seen(document);
            let ours = match document {
                Document::Authority => Some(self.authority.version()),
                Document::Register => self.kept.version(),
                Document::Given => None,
            };
            let as_left = match &seen {
                Seen::Untold => true,
                Seen::Gone => ours.is_none() && document != Document::Given,
                Seen::Version(version) => Some(version) == ours,
            };
            // A watch is behind what we have just written: it is no news before it says something else.
            if self.documents.seen.get(&document) == Some(&seen) {
                continue;
            }
            let looked = match as_left {
                true => Ok(()),
                false => self.look_at(document).await,
            };
            match looked {
                Ok(()) => self.solved(document),
                Err(error) => match error.downcast::<Unusable>() {
                    Ok(unusable) => self.trouble(document, unusable),
                    Err(error) => {
                        return Err(StoreError::Unavailable {
                            what: format!(
                                "{} cannot be read: {error:#}",
                                self.safe.place(document)
                            ),
                            remedy: "what was read last goes on".to_owned(),
                        });
                    }
                },
            }
            self.documents.seen.insert(document, seen);
        }
        Ok(())
    }

    async fn look_at(&mut self, document: Document) -> anyhow::Result<()> {
        match document {
            Document::Authority => self.authority.take_up(&self.safe).await.map(drop),
            Document::Register => self.kept.take_up(&self.safe).await,
            Document::Given => {
                let given = self.safe.given().await?;
                self.documents.given = given.map(|ca| ca.facts().clone());
                Ok(())
            }
        }
    }

    fn trouble(&mut self, document: Document, unusable: Unusable) {
        if self.documents.trouble.get(&document) != Some(&unusable) {
            error!("{unusable}; what was read last goes on");
            self.safe.tell(news(&self.safe, document, &unusable));
            self.documents.trouble.insert(document, unusable);
        }
    }

    fn solved(&mut self, document: Document) {
        if self.documents.trouble.remove(&document).is_some() {
            let place = self.safe.place(document);
            info!("{place} is usable again");
            let about = about(&self.safe, document);
            let text = format!("{place} is usable again");
            self.safe
                .tell(News::good(about, "SecretUsable", "Read", text));
        }
    }
}

impl<S: Store, K: Safe> Controller<S, K> {
    /// Whether the policy cannot be read as it stands now: a build that is newer has written it, or somebody has
    /// broken its file. No step is taken then, for agents read no step of it either; what was read last goes
    /// on. It is told once, also in its status where that is known.
    pub(crate) async fn policy_is_unreadable(&mut self) -> Result<bool, StoreError> {
        let Some(problem) = self.world.policies.problem(CLUSTER) else {
            if self.unreadable_told.take().is_some() {
                let text = "the policy can be read again";
                info!("{text}");
                let news = News::good(About::Policy, "PolicyReadable", "Read", text);
                self.safe.tell(news);
            }
            return Ok(false);
        };
        let text = format!("the policy cannot be read, and what was read last goes on: {problem}");
        if self.unreadable_told.as_ref() == Some(&text) {
            return Ok(true);
        }
        if let Some(policy) = self.world.policies.objects.get(CLUSTER) {
            let mut policy = policy.clone();
            // Ours is older than what stands there, and its status is the last one all the same: nobody else
            // writes it.
            policy.metadata.resource_version = None;
            let wrong = Some(("PolicyUnreadable", text.clone()));
            let generation = policy.metadata.generation;
            set_where_wrong(&mut policy.status, generation, READABLE, wrong);
            match self.store.update_status(&policy).await {
                Ok(written) => self.world.policies.put(written),
                // It is written, and still cannot be read. A directory's file is left to whoever broke it.
                Err(StoreError::Invalid(_)) => {}
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        error!("{text}");
        let news = News::bad(
            About::Policy,
            "PolicyUnreadable",
            "GoOnWithTheLast",
            text.clone(),
        );
        self.safe.tell(news);
        self.unreadable_told = Some(text);
        Ok(true)
    }
}

/// Says why the controller cannot begin, where that is for somebody to see to.
pub(crate) async fn tell_of_the_start<S: Store, K: Safe>(
    store: &S,
    safe: &K,
    world: &World,
    trouble: &anyhow::Error,
) {
    let Some(unusable) = trouble.downcast_ref::<Unusable>() else {
        return;
    };
    let document = match unusable.reason {
        reason if reason.starts_with("Register") => Document::Register,
        reason if reason.starts_with("Given") => Document::Given,
        _ => Document::Authority,
    };
    safe.tell(news(safe, document, unusable));
    let Some(policy) = world.policies.objects.get(CLUSTER) else {
        return;
    };
    let mut policy = policy.clone();
    let told = BTreeMap::from([(document, unusable.clone())]);
    let before = policy.status.clone();
    set_condition(&mut policy.status, policy.metadata.generation, &told);
    // Whoever cannot write it now tries again when the controller does.
    if policy.status != before
        && let Err(error) = store.update_status(&policy).await
    {
        tracing::debug!("the condition is not written: {error}");
    }
}

/// The condition about the documents. Where nothing ever was wrong there is none.
pub(crate) fn set_condition(
    status: &mut EncryptionPolicyStatus,
    generation: u64,
    trouble: &BTreeMap<Document, Unusable>,
) {
    let texts: Vec<&str> = trouble.values().map(|one| one.text.as_str()).collect();
    let first = trouble.values().next();
    let wrong = first.map(|one| (one.reason, texts.join("; ")));
    set_where_wrong(status, generation, CONDITION, wrong);
}

/// Sets a condition that is false with a reason and a sentence while something is `wrong`, and of which there
/// is none where nothing ever was.
pub(crate) fn set_where_wrong(
    status: &mut EncryptionPolicyStatus,
    generation: u64,
    kind: &str,
    wrong: Option<(&str, String)>,
) {
    let there = status.conditions.iter().any(|c| c.kind == kind);
    if wrong.is_none() && !there {
        return;
    }
    let holds = match wrong {
        None => ConditionStatus::True,
        Some(_) => ConditionStatus::False,
    };
    let (reason, message) = wrong.unwrap_or(("AsExpected", String::new()));
    let condition = Condition {
        kind: kind.to_owned(),
        status: holds,
        reason: reason.to_owned(),
        message,
        last_transition_time: UnixTime(i64::try_from(seconds()).unwrap_or(i64::MAX)),
        observed_generation: generation,
    };
    condition::set(&mut status.conditions, condition);
}

fn news<K: Safe>(safe: &K, document: Document, unusable: &Unusable) -> News {
    News::bad(
        about(safe, document),
        unusable.reason,
        "GoOnWithTheLast",
        unusable.text.clone(),
    )
}

/// The Secret itself: its name is the last part of its place.
fn about<K: Safe>(safe: &K, document: Document) -> About {
    let place = safe.place(document);
    About::Secret(place.rsplit('/').next().unwrap_or_default().to_owned())
}
