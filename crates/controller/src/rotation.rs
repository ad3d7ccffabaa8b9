//! Leads one CA after another: what [`testudo_plan::authority`] decides is done here, and told in the
//! status of the trust bundle.

use std::time::Instant;

use testudo_crypto::SystemRandom;
use testudo_model::policy::{CLUSTER, Mode, TAKE_BACK_CA};
use testudo_model::{CaPhase, CaWaiting, TrustBundleStatus, UnixTime};
use testudo_pki::{BACKDATE, CaOptions, CertificateTimes, Renewal, RenewalPolicy, renewal, utc};
use testudo_plan::authority::{Decision, Known, Life, Step, decide, irrevocable};
use testudo_store::{Store, StoreError};
use tracing::{error, info, warn};

use crate::news::{About, News};
use crate::run::{BUNDLE, Controller, seconds, settings};
use crate::safe::{Document, Safe};
use crate::stragglers::{self, Patience};

/// The part of its life, in tenths, at which a CA is replaced.
const DUE: u64 = 8;
/// The share of what is left of its life for which a CA is left alone when a rotation has been taken back.
const TAKEN_BACK: i64 = 4;
/// In the last of so many parts of its life a CA is not to become the one that signs.
const LATE: u64 = 20;
/// Of the nodes that are waited for, so many are named.
const MOST_NAMED: usize = 20;

impl<S: Store, K: Safe> Controller<S, K> {
    /// Takes every step of the CA's rotation that can be taken now.
    pub(crate) async fn rotate(&mut self) -> Result<(), StoreError> {
        self.warn_of_the_end();
        // Bounded: a rotation has four steps, and one that was taken back some more.
        for _ in 0..8 {
            let mut decision = self.consider();
            if decision.step.is_some() && self.unfit(decision.step).is_none() {
                // The watches may be behind: a node that has just joined is seen by nobody else.
                self.world.nodes.read_again(&self.store).await?;
                match self.world.policies.refresh(&self.store, CLUSTER).await {
                    // What was read of it last goes on.
                    Err(StoreError::Invalid(_)) => {}
                    refreshed => refreshed?,
                }
                decision = self.consider();
            }
            let unfit = self.unfit(decision.step);
            let Some(step) = decision.step.filter(|_| unfit.is_none()) else {
                let held = self.held_for_want_of_a_ca(unfit);
                return self.tell(decision.waiting_on, held).await;
            };
            let before = self.authority.ca.facts().subject.clone();
            let options = self.ca_options();
            let random = &mut SystemRandom::new();
            let authority = &mut self.authority;
            match authority
                .step(&self.safe, step, &options, seconds(), random)
                .await
            {
                Ok(true) => self.note(step, &before),
                Ok(false) => {}
                Err(error) => {
                    let text = format!("{step:?} is not done: {error:#}");
                    error!("rotation of the CA: {text}");
                    self.safe.tell(News::bad(
                        About::Bundle,
                        "CaRotationHeld",
                        "Step",
                        text.clone(),
                    ));
                    return self.tell(Vec::new(), Some(text)).await;
                }
            }
            // In this order: no certificate is given out before its CA is.
            self.publish_bundle().await?;
            self.answer_requests().await?;
            if step == Step::Settle {
                // Whoever follows is to see the end of this one before the next begins.
                self.tell(Vec::new(), None).await?;
            }
        }
        Ok(())
    }

    /// Says in the log from nine tenths of its life on that the CA that signs ends, or has ended.
    fn warn_of_the_end(&mut self) {
        let facts = self.authority.ca.facts();
        let end = utc(facts.times.not_after);
        let text = match life(&facts.times, 10, seconds()) {
            Life::Good => None,
            Life::Late => Some(format!(
                "the CA ends on {end}, and all certificates with it"
            )),
            Life::Ended => Some(format!("the CA ended on {end}: it can sign nothing")),
            Life::Future => Some("the CA is not valid yet: check the clock".to_owned()),
        };
        if self.end_told != text {
            if let Some(text) = &text {
                warn!(ca = %facts.subject, "{text}");
                self.safe
                    .tell(News::bad(About::Bundle, "CaEnds", "Sign", text.clone()));
            }
            self.end_told = text;
        }
    }

    /// Why the step cannot be taken with the CA that somebody gives, as far as that is known without reading it
    /// again: it stands there until they put another one in its place, which may be years.
    fn unfit(&self, step: Option<Step>) -> Option<String> {
        let Some(Step::Begin(_)) = step else {
            return None;
        };
        let why = match self.documents.trouble.get(&Document::Given) {
            Some(unusable) => unusable.text.clone(),
            None => {
                let given = self.documents.given.as_ref()?;
                let why = self.authority.refuses(given)?;
                format!("{} {why}", self.safe.place(Document::Given))
            }
        };
        Some(format!("the CA is not replaced: {why}"))
    }

    /// Why no rotation begins though one is wanted: the CA that is given is `unfit`, or the present one has too
    /// little room left, and it is for somebody else to give the next one, or a rotation was taken back.
    fn held_for_want_of_a_ca(&mut self, unfit: Option<String>) -> Option<String> {
        let settled = self.authority.standing.phase == CaPhase::Settled;
        let crowded = self.crowded().filter(|_| settled && !self.is_due());
        let crowded = crowded.map(|why| {
            let what = match &self.documents.given {
                Some(_) => format!("put another CA into {}", self.safe.place(Document::Given)),
                None => "a rotation was taken back; `testudo ca rotate` begins the next".to_owned(),
            };
            format!("the CA is to be replaced: {why}; {what}")
        });
        // It is told once, and again when it was over meanwhile; the share that is taken grows, and is no news.
        let (what, text) = match (unfit, crowded) {
            (Some(text), _) => (text.clone(), Some(text)),
            (None, Some(text)) => ("crowded".to_owned(), Some(text)),
            (None, None) => (String::new(), None),
        };
        if let Some(text) = text
            .as_ref()
            .filter(|_| self.held_told.as_ref() != Some(&what))
        {
            error!("rotation of the CA: {text}");
            let news = News::bad(About::Bundle, "CaRotationHeld", "Begin", text.clone());
            self.safe.tell(news);
        }
        self.held_told = text.is_some().then_some(what);
        text
    }

    /// How a CA is made.
    pub(crate) fn ca_options(&self) -> CaOptions {
        CaOptions {
            lifetime: settings(&self.world).ca_lifetime.0.as_secs(),
            ..CaOptions::default()
        }
    }

    fn consider(&mut self) -> Decision {
        self.steady.look(Instant::now(), seconds());
        let mut decision = self.with_known(decide);
        for waiting in &mut decision.waiting_on {
            let request = self.world.requests.objects.get(&waiting.node);
            if let Some(denied) = request.and_then(|r| r.status.denied.as_ref()) {
                waiting.reason += &format!("; its request is denied: {denied}");
            }
        }
        decision
    }

    fn with_known<T>(&self, ask: impl Fn(&Known<'_>) -> T) -> T {
        let policy = self.world.policies.objects.get(CLUSTER);
        let nodes = self.world.nodes.objects.iter();
        let nodes: Vec<_> = nodes
            .map(|(name, node)| (name.as_str(), &node.status.authorities))
            .collect();
        let now = seconds();
        let other = self.authority.other();
        ask(&Known {
            standing: &self.authority.standing,
            asked: policy.map(|p| p.spec.certificates.ca_rotation),
            take_back: self.take_back(),
            due: self.is_due(),
            signer_life: life(&self.authority.ca.facts().times, LATE, now),
            other_life: other.map_or(Life::Good, |ca| life(&ca.times, LATE, now)),
            sure: self.steady.is_sure(Instant::now()),
            off: policy.is_none_or(|p| p.spec.mode == Mode::Disabled),
            nodes: &nodes,
            unreadable: &self.world.nodes.broken(),
        })
    }

    /// The rotation that is to be taken back.
    fn take_back(&self) -> Option<u64> {
        let policy = self.world.policies.objects.get(CLUSTER)?;
        policy.metadata.annotations.get(TAKE_BACK_CA)?.parse().ok()
    }

    /// Whether the CA is old enough to be replaced: at four fifths of its life, or of the one that the
    /// policy gives a CA now, if that is shorter, or when there is too little room for what it has taken back;
    /// a rotation that was taken back puts it off.
    ///
    /// A CA that somebody gives is due when it is another than the one that signs.
    fn is_due(&self) -> bool {
        if let Some(given) = &self.documents.given {
            let signs = given.fingerprint == self.authority.ca.facts().fingerprint;
            return !signs && self.put_off().is_none_or(|until| until <= seconds());
        }
        let times = self.authority.ca.facts().times;
        let made = times.not_before.saturating_add(BACKDATE);
        let life = times.not_after.saturating_sub(made);
        let wanted = life.min(settings(&self.world).ca_lifetime.0.as_secs());
        let times = CertificateTimes {
            not_before: made.min(times.not_after),
            ..times
        };
        let policy = RenewalPolicy {
            renew_after: wanted / 10 * DUE + wanted % 10 * DUE / 10,
            earlier: 0,
        };
        let due = !matches!(renewal(&times, &policy, seconds()), Renewal::NotBefore(_));
        (due || self.crowded().is_some()) && self.put_off().is_none_or(|until| until <= seconds())
    }

    /// Until when nothing is begun unasked: a rotation was taken back.
    fn put_off(&self) -> Option<u64> {
        let told = &self.world.bundles.objects.get(CLUSTER)?.status;
        let standing = &self.authority.standing;
        if !standing.taken_back || standing.phase != CaPhase::Settled {
            return None;
        }
        if (told.phase, told.rotation) != (standing.phase, standing.rotation) {
            // It is to be told first; what we see of it may also be older than what we have told.
            return Some(u64::MAX);
        }
        let since = told.since?.0;
        let end = i64::try_from(self.authority.ca.facts().times.not_after).ok()?;
        let until = since.saturating_add(end.saturating_sub(since).max(0) / TAKEN_BACK);
        u64::try_from(until).ok()
    }

    fn note(&mut self, step: Step, before: &str) {
        let standing = &self.authority.standing;
        let asked = self.take_back() == Some(standing.rotation);
        let signer = &standing.signer;
        let other = standing.other.as_deref().unwrap_or_default();
        let crowded = self.crowded();
        let text = match step {
            Step::Note(_) => return,
            Step::Begin(_) if self.is_due() && self.documents.given.is_some() => {
                format!("begun because another CA is given: {other}")
            }
            Step::Begin(_) if self.is_due() && crowded.is_some() => {
                format!(
                    "begun by itself, to make room: {}",
                    crowded.unwrap_or_default()
                )
            }
            Step::Begin(_) if self.is_due() => format!(
                "begun by itself: {signer} ends on {}",
                utc(self.authority.ca.facts().times.not_after)
            ),
            Step::Begin(_) => "begun because the policy asks for it".to_owned(),
            Step::Issue => {
                let text = format!("{signer} signs, not {before}");
                return self.announce(&text);
            }
            Step::TurnBack if !standing.taken_back => {
                format!("{before} is no good any more: {signer} signs again")
            }
            Step::Drop if !asked => {
                format!("{other} is no good by the clock and is gone: {signer} stays")
            }
            Step::TurnBack | Step::Drop => format!("taken back: {signer} stays"),
            Step::Retire => {
                let text = format!("{other} is gone, {signer} stays");
                return self.announce(&text);
            }
            Step::Settle if standing.taken_back => format!("taken back: {signer} stayed"),
            Step::Settle => format!("done: {signer} has taken over"),
        };
        self.announce(&text);
        self.rotation_note = text;
    }

    /// Tells of a step.
    fn announce(&self, text: &str) {
        let standing = &self.authority.standing;
        info!(
            number = standing.rotation,
            phase = %standing.phase,
            ca = %standing.signer,
            "rotation of the CA: {text}"
        );
        let text = format!("rotation {}, {}: {text}", standing.rotation, standing.phase);
        let news = News::good(About::Bundle, "CaRotation", "Step", text);
        self.safe.tell(news);
    }

    /// Says once a step who has let it wait for long, and again when somebody else has done it meanwhile.
    fn name_stragglers_of_the_ca(&mut self, some: &[CaWaiting], all: usize) {
        let now = Instant::now();
        if !self.ca_wave.runs_out(now) {
            let until = self.ca_wave.until().filter(|until| *until > now);
            until
                .into_iter()
                .for_each(|until| self.absent.look_at(until));
            return;
        }
        let standing = &self.authority.standing;
        let some = some.iter().map(|w| (&*w.node, Some(w.reason.clone())));
        let text = format!(
            "rotation {} of the CA, {}, waits on {}",
            standing.rotation,
            standing.phase,
            stragglers::nodes(all, some)
        );
        warn!("{text}");
        self.safe
            .tell(News::bad(About::Bundle, "Stragglers", "Wait", text));
    }

    /// Writes where the rotation stands, if it is news.
    async fn tell(
        &mut self,
        mut waiting_on: Vec<CaWaiting>,
        trouble: Option<String>,
    ) -> Result<(), StoreError> {
        let Some(mut bundle) = self.world.bundles.objects.get(CLUSTER).cloned() else {
            return Ok(());
        };
        let standing = &self.authority.standing;
        let old = &bundle.status;
        let waiting = waiting_on.len();
        waiting_on.truncate(MOST_NAMED);
        let step = (standing.phase, standing.rotation);
        match waiting {
            0 => self.ca_wave = Patience::default(),
            waiting => self.ca_wave.take(step, waiting, Instant::now()),
        }
        self.name_stragglers_of_the_ca(&waiting_on, waiting);
        let standing = &self.authority.standing;
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
            waiting: u64::try_from(waiting).unwrap_or(u64::MAX),
            signer_not_after: i64::try_from(self.authority.ca.facts().times.not_after)
                .ok()
                .map(UnixTime),
            irrevocable: self.with_known(irrevocable).unwrap_or_default(),
        };
        if status == *old {
            return Ok(());
        }
        let step = |s: &TrustBundleStatus| (s.phase, s.rotation, s.answered, s.message.clone());
        let progress = status.waiting > 0 && old.waiting > 0 && step(&status) == step(old);
        if progress && let Some(then) = self.hold(BUNDLE) {
            self.absent.look_at(then);
            return Ok(());
        }
        if !status.waiting_on.is_empty() && status.waiting_on != old.waiting_on {
            let on: Vec<String> = status
                .waiting_on
                .iter()
                .take(4)
                .map(|waiting| format!("{} ({})", waiting.node, waiting.reason))
                .collect();
            let all = status.waiting;
            info!(phase = %status.phase, all, "rotation of the CA waits on {}", on.join(", "));
        }
        bundle.status = status;
        match self.store.update_status(&bundle).await {
            Ok(written) => {
                self.written[BUNDLE] = Some(Instant::now());
                self.world.bundles.put(written);
            }
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

/// Where a CA is in its life; the last of `parts` equal ones of it is late.
fn life(times: &CertificateTimes, parts: u64, now: u64) -> Life {
    let left = times.not_after.saturating_sub(now);
    let whole = times.not_after.saturating_sub(times.not_before);
    match now {
        now if now < times.not_before => Life::Future,
        now if now >= times.not_after => Life::Ended,
        _ if left <= whole / parts => Life::Late,
        _ => Life::Good,
    }
}
