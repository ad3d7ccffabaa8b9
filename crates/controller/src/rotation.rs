//! Leads one CA after another: what [`testudo_plan::authority`] decides is done here, and told in the
//! status of the trust bundle.

use testudo_crypto::SystemRandom;
use testudo_model::policy::{CLUSTER, Mode, TAKE_BACK_CA};
use testudo_model::{CaWaiting, NodeEncryption, TrustBundleStatus, UnixTime};
use testudo_pki::{BACKDATE, CaOptions, CertificateTimes, Renewal, RenewalPolicy, renewal, utc};
use testudo_plan::authority::{Decision, Known, Step, decide};
use testudo_store::{Store, StoreError};
use tracing::{error, info};

use crate::run::{Controller, seconds, settings};

/// The part of its life, in tenths, at which a CA is replaced.
const DUE: u64 = 8;
/// The same when the last rotation was taken back: not at once again.
const DUE_AFTER_TAKEN_BACK: u64 = 9;

impl Controller {
    /// Takes every step of the CA's rotation that can be taken now.
    pub(crate) async fn rotate(&mut self) -> Result<(), StoreError> {
        // Bounded: a rotation has four steps, and one that was taken back some more.
        for _ in 0..8 {
            let mut decision = self.consider();
            if decision.step.is_some() {
                // The watches may be behind: a node that has just joined is seen by nobody else.
                self.world.nodes.read_again(&self.store).await?;
                self.world.policies.refresh(&self.store, CLUSTER).await?;
                decision = self.consider();
            }
            let Some(step) = decision.step else {
                return self.tell(decision.waiting_on, None).await;
            };
            let before = self.authority.ca.facts().subject.clone();
            let options = self.ca_options();
            let random = &mut SystemRandom::new();
            match self.authority.step(step, &options, seconds(), random) {
                Ok(true) => self.note(step, &before),
                Ok(false) => {}
                Err(error) => {
                    let text = format!("{step:?} is not done: {error:#}");
                    error!("rotation of the CA: {text}");
                    return self.tell(Vec::new(), Some(text)).await;
                }
            }
            // In this order: no certificate is given out before its CA is.
            self.publish_bundle().await?;
            self.answer_requests().await?;
        }
        Ok(())
    }

    /// How a CA is made.
    pub(crate) fn ca_options(&self) -> CaOptions {
        CaOptions {
            lifetime: settings(&self.world).ca_lifetime.0.as_secs(),
            ..CaOptions::default()
        }
    }

    fn consider(&self) -> Decision {
        let policy = self.world.policies.objects.get(CLUSTER);
        let take_back = policy.and_then(|p| p.metadata.annotations.get(TAKE_BACK_CA));
        let nodes: Vec<NodeEncryption> = self.world.nodes.objects.values().cloned().collect();
        decide(&Known {
            standing: &self.authority.standing,
            asked: policy.map(|p| p.spec.certificates.ca_rotation),
            take_back: take_back.and_then(|number| number.parse().ok()),
            due: self.is_due(),
            off: policy.is_none_or(|p| p.spec.mode == Mode::Disabled),
            nodes: &nodes,
            unreadable: &self.world.nodes.unreadable(),
        })
    }

    /// Whether the CA is old enough to be replaced: at four fifths of its life, or of the one that the
    /// policy gives a CA now, if that is shorter.
    fn is_due(&self) -> bool {
        let times = self.authority.ca.facts().times;
        let made = times.not_before.saturating_add(BACKDATE);
        let life = times.not_after.saturating_sub(made);
        let wanted = life.min(settings(&self.world).ca_lifetime.0.as_secs());
        let times = CertificateTimes {
            not_before: made.min(times.not_after),
            ..times
        };
        let due = match self.authority.standing.taken_back {
            true => DUE_AFTER_TAKEN_BACK,
            false => DUE,
        };
        let policy = RenewalPolicy {
            renew_after: wanted / 10 * due + wanted % 10 * due / 10,
            earlier: 0,
        };
        !matches!(renewal(&times, &policy, seconds()), Renewal::NotBefore(_))
    }

    fn note(&mut self, step: Step, before: &str) {
        let standing = &self.authority.standing;
        let signer = &standing.signer;
        let other = standing.other.as_deref().unwrap_or_default();
        let text = match step {
            Step::Note(_) => return,
            Step::Begin(_) if self.is_due() => format!(
                "begun by itself: {signer} ends on {}",
                utc(self.authority.ca.facts().times.not_after)
            ),
            Step::Begin(_) => "begun because the policy asks for it".to_owned(),
            Step::Issue => {
                return info!(ca = %signer, "rotation of the CA: {signer} signs, not {before}");
            }
            Step::TurnBack | Step::Drop => format!("taken back: {signer} stays"),
            Step::Retire => return info!(ca = %signer, "rotation of the CA: {other} is gone"),
            Step::Settle if standing.taken_back => format!("taken back: {signer} stayed"),
            Step::Settle => format!("done: {signer} has taken over"),
        };
        info!(number = standing.rotation, phase = %standing.phase, other, "rotation of the CA: {text}");
        self.rotation_note = text;
    }

    /// Writes where the rotation stands, if it is news.
    async fn tell(
        &mut self,
        waiting_on: Vec<CaWaiting>,
        trouble: Option<String>,
    ) -> Result<(), StoreError> {
        let Some(mut bundle) = self.world.bundles.objects.get(CLUSTER).cloned() else {
            return Ok(());
        };
        let standing = &self.authority.standing;
        let old = &bundle.status;
        let same = (old.phase, old.rotation) == (standing.phase, standing.rotation);
        let now = UnixTime(i64::try_from(seconds()).unwrap_or(i64::MAX));
        let status = TrustBundleStatus {
            phase: standing.phase,
            rotation: standing.rotation,
            answered: standing.answered,
            signer: standing.signer.clone(),
            other: standing.other.clone(),
            taken_back: standing.taken_back,
            since: old.since.filter(|_| same).or(Some(now)),
            message: trouble.unwrap_or_else(|| self.rotation_note.clone()),
            waiting_on,
        };
        if status == *old {
            return Ok(());
        }
        if !status.waiting_on.is_empty() && status.waiting_on != old.waiting_on {
            let on: Vec<String> = status
                .waiting_on
                .iter()
                .take(4)
                .map(|waiting| format!("{} ({})", waiting.node, waiting.reason))
                .collect();
            let all = status.waiting_on.len();
            info!(phase = %status.phase, all, "rotation of the CA waits on {}", on.join(", "));
        }
        bundle.status = status;
        match self.store.update_status(&bundle).await {
            Ok(written) => self.world.bundles.put(written),
            Err(e) if e.is_conflict() || e.is_not_found() => {
                let bundles = &mut self.world.bundles;
                bundles.refresh(&self.store, CLUSTER).await?;
                return Err(e);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}
