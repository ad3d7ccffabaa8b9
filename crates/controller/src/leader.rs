//! Leads the roll-out: what [`testudo_plan::rollout`] decides is written into the policy's status and told.

use std::time::Instant;

use testudo_model::policy::CLUSTER;
use testudo_model::{Condition, ConditionStatus, EncryptionPolicyStatus, NodeEncryption, UnixTime};
use testudo_plan::rollout;
use testudo_store::{Store, StoreError};
use tracing::{info, warn};

use crate::news::{About, News};
use crate::numbers::State;
use crate::run::{Controller, POLICY, seconds};
use crate::safe::Safe;
use crate::stragglers::{self, first};
use crate::{documents, progress};

impl<S: Store, K: Safe> Controller<S, K> {
    /// Takes every step of the roll-out that can be taken now.
    pub(crate) async fn lead(&mut self) -> Result<(), StoreError> {
        if self.policy_is_unreadable().await? {
            return Ok(());
        }
        // Bounded: a roll-out has as many steps as there are phases.
        for _ in 0..8 {
            let Some(policy) = self.world.policies.objects.get(CLUSTER) else {
                return Ok(());
            };
            let nodes: Vec<&NodeEncryption> = self.world.nodes.objects.values().collect();
            let unreadable = self.world.nodes.unreadable();
            let now = UnixTime(i64::try_from(seconds()).unwrap_or(i64::MAX));
            let mut status = rollout::next(policy, &nodes, &unreadable, now);
            status.certificate_rotation =
                progress::of_certificates(policy, &nodes, &unreadable, now);
            let bundle = self.world.bundles.objects.get(CLUSTER);
            let all = nodes.len() + unreadable.len();
            status.ca_rotation = progress::of_the_ca(bundle.map(|b| &b.status), all);
            documents::set_where_wrong(
                &mut status,
                policy.metadata.generation,
                documents::READABLE,
                None,
            );
            let trouble = &self.documents.trouble;
            documents::set_condition(&mut status, policy.metadata.generation, trouble);
            self.absent
                .set_condition(&mut status, policy.metadata.generation);
            let mut policy = policy.clone();
            self.name_those_who_do_not_renew(&status);
            if status == policy.status {
                self.name_stragglers(&status);
                return Ok(());
            }
            if is_progress(&policy.status, &status)
                && let Some(then) = self.hold(POLICY)
            {
                self.absent.look_at(then);
                return Ok(());
            }
            let before = std::mem::replace(&mut policy.status, status);
            match self.store.update_status(&policy).await {
                Ok(mut written) => {
                    self.written[POLICY] = Some(Instant::now());
                    for news in changes(&before, &policy.status) {
                        self.safe.tell(news);
                    }
                    // CRDs of an older build leave fields of the status out. They are written all the same.
                    written.status = policy.status;
                    self.world.policies.put(written);
                }
                Err(e) if e.is_conflict() || e.is_not_found() => {
                    let policies = &mut self.world.policies;
                    policies.refresh(&self.store, CLUSTER).await?;
                    return Err(e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Says once a step who has let it wait for long.
    fn name_stragglers(&mut self, status: &EncryptionPolicyStatus) {
        let now = Instant::now();
        self.wave.take((status.phase, status.rollout), 0, now);
        let Some(until) = self.wave.until().filter(|_| !status.waiting_on.is_empty()) else {
            return;
        };
        if now < until {
            self.absent.look_at(until);
        } else if self.wave.runs_out(now) {
            let named = status.waiting_on.iter().map(|name| {
                let node = self.world.nodes.objects.get(name);
                (&**name, node.and_then(not_ready).map(str::to_owned))
            });
            let named = stragglers::nodes(status.waiting_on.len(), named);
            let text = format!("{} waits on {named}", status.phase);
            warn!("{text}");
            self.safe
                .tell(News::bad(About::Policy, "Stragglers", "Wait", text));
        }
    }

    /// Shows Prometheus what is there now.
    pub(crate) fn show(&self) {
        let policy = self.world.policies.objects.get(CLUSTER);
        let status = policy.map(|p| p.status.clone()).unwrap_or_default();
        let nodes = &self.world.nodes.objects;
        let unreadable = self.world.nodes.unreadable().len();
        let acknowledged = |node: &&NodeEncryption| rollout::acknowledged(node, &status);
        let ready = nodes.values().filter(acknowledged).count();
        let expected = nodes.len() + unreadable;
        let late = self
            .wave
            .until()
            .is_some_and(|until| until <= Instant::now());
        let bundle = &self.authority.bundle;
        let told = self.world.bundles.objects.get(CLUSTER);
        let renewal = status.certificate_rotation.as_ref();
        self.numbers.events_dropped(self.safe.untold());
        self.numbers.is(State {
            phase: status.phase,
            target: status.target,
            nodes: expected,
            ready,
            stragglers: if late { expected - ready } else { 0 },
            ca_phase: self.authority.standing.phase,
            ca_waiting: told.map_or(0, |bundle| bundle.status.waiting),
            certificate_rotation: renewal.map_or(0, |renewal| renewal.number),
            certificates_waiting: renewal.map_or(0, |renewal| renewal.waiting()),
            cas: bundle
                .facts()
                .map(|ca| (ca.subject, ca.times.not_after))
                .collect(),
            revoked: bundle
                .facts()
                .map(|ca| {
                    let (list, _) = bundle.revocations_of(&ca.spki).unwrap_or_default();
                    (ca.subject, list.revoked.len())
                })
                .collect(),
            unusable: self.documents.trouble.len(),
            fill: self.fill(),
        });
    }
}

pub(crate) fn condition<'n>(node: &'n NodeEncryption, kind: &str) -> Option<&'n Condition> {
    node.status.conditions.iter().find(|c| c.kind == kind)
}

pub(crate) fn holds(condition: &Condition) -> bool {
    condition.status == ConditionStatus::True
}

/// Why a node is not ready, in its own words.
pub(crate) fn not_ready(node: &NodeEncryption) -> Option<&str> {
    let ready = condition(node, "Ready")?;
    (!holds(ready)).then_some(ready.message.as_str())
}

/// Whether only counts have changed, of those who have done a step that still goes on or of tunnels.
fn is_progress(old: &EncryptionPolicyStatus, new: &EncryptionPolicyStatus) -> bool {
    let step = |s: &EncryptionPolicyStatus| {
        let kinds = s.conditions.iter();
        let kinds: Vec<_> = kinds
            .map(|c| (c.kind.clone(), c.status, c.reason.clone()))
            .collect();
        (
            s.phase,
            s.target,
            s.rollout,
            s.since,
            s.observed_generation,
            progress::step(s.certificate_rotation.as_ref()),
            progress::step(s.ca_rotation.as_ref()),
            kinds,
        )
    };
    let members = |s: &EncryptionPolicyStatus| (s.nodes, s.nodes_acknowledged);
    let counts = match (old.waiting_on.is_empty(), new.waiting_on.is_empty()) {
        (false, false) => true,
        (true, true) => members(old) == members(new),
        _ => false,
    };
    counts && step(old) == step(new)
}

/// Tells in the log what has changed between two statuses of the policy; what others are to hear of it.
fn changes(old: &EncryptionPolicyStatus, new: &EncryptionPolicyStatus) -> Vec<News> {
    let mut news = Vec::new();
    if old.target != new.target {
        info!(target = %new.target, "roll-out towards {}", new.target);
        let text = format!("roll-out towards {}", new.target);
        news.push(News::good(About::Policy, "RollOut", "Begin", text));
    }
    let settled = new.waiting_on.is_empty() && new.nodes > 0;
    if old.phase != new.phase {
        info!(
            rollout = new.rollout,
            nodes = new.nodes,
            "phase {}",
            new.phase
        );
        let text = format!("phase {} (step {})", new.phase, new.rollout);
        news.push(News::good(About::Policy, "Phase", "Step", text));
    } else if old.waiting_on != new.waiting_on {
        match new.waiting_on.as_slice() {
            [] => info!(phase = %new.phase, nodes = new.nodes, "acknowledged by all nodes"),
            names => info!(phase = %new.phase, "waiting on {}", first(names)),
        }
        if settled && new.phase == new.target {
            let text = format!("all {} nodes are {}", new.nodes, new.phase);
            news.push(News::good(About::Policy, "Settled", "Step", text));
        }
    }
    news.extend(progress::news(old, new));
    let complaint = |status: &EncryptionPolicyStatus| {
        let mut degraded = status.conditions.iter().filter(|c| c.kind == "Degraded");
        degraded
            .find(|c| !c.message.is_empty())
            .map(|c| (c.reason.clone(), c.message.clone()))
    };
    let (before, now) = (complaint(old), complaint(new));
    match now {
        Some((reason, text)) if before.as_ref().map(|(_, old)| old) != Some(&text) => {
            warn!("degraded: {text}");
            // What single nodes complain of changes all the time and stands in the status.
            if before.is_none() || before.is_some_and(|(old, _)| old != reason) {
                news.push(News::bad(About::Policy, "Degraded", "Wait", text));
            }
        }
        None if before.is_some() => {
            info!("no longer degraded");
            let text = "no longer degraded";
            news.push(News::good(About::Policy, "AsExpected", "Step", text));
        }
        _ => {}
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_model::Phase;
    use testudo_model::policy::RotationProgress;

    /// What is progress may be held back; a step, an end and a node more or less may not.
    #[test]
    fn counts_are_progress_and_steps_are_not() {
        let waits = EncryptionPolicyStatus {
            phase: Phase::Prepared,
            waiting_on: vec!["n1".to_owned(), "n2".to_owned()],
            nodes: 3,
            nodes_acknowledged: 1,
            tunnels_up: 4,
            ..EncryptionPolicyStatus::default()
        };
        fn rotated(status: &mut EncryptionPolicyStatus) -> &mut RotationProgress {
            status.certificate_rotation.as_mut().unwrap()
        }
        let rests = EncryptionPolicyStatus {
            waiting_on: Vec::new(),
            nodes_acknowledged: 3,
            certificate_rotation: Some(RotationProgress {
                number: 1,
                nodes: 3,
                ..RotationProgress::default()
            }),
            ..waits.clone()
        };
        type Change = fn(&mut EncryptionPolicyStatus);
        let changes: [(&EncryptionPolicyStatus, bool, Change); 12] = [
            (&waits, true, |s| s.nodes_acknowledged = 2),
            (&waits, true, |s| s.tunnels_up = 5),
            (&waits, false, |s| s.waiting_on.clear()),
            (&waits, false, |s| s.phase = Phase::Permissive),
            (&rests, true, |s| s.tunnels_up = 5),
            (&rests, false, |s| s.nodes = 2),
            (&rests, false, |s| s.waiting_on.push("n4".to_owned())),
            (&rests, false, |s| s.observed_generation = 7),
            (&rests, true, |s| rotated(s).done = 1),
            (&rests, false, |s| rotated(s).done = 3),
            (&rests, false, |s| rotated(s).number = 2),
            (&rests, false, |s| s.certificate_rotation = None),
        ];
        for (number, (old, progress, change)) in changes.into_iter().enumerate() {
            let mut new = old.clone();
            change(&mut new);
            assert_eq!(is_progress(old, &new), progress, "{number}");
        }
    }
}
