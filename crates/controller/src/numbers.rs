//! What the controller shows to Prometheus, and whether it is ready. docs/metrics.md names every metric.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use testudo_metrics::{Page, Server, Source};
use testudo_model::{CaPhase, Phase};

use crate::crowding::Fill;

/// A loop that has said nothing for so long hangs: each of its calls ends by itself long before.
const HANGS: Duration = Duration::from_secs(180);

const CA_PHASES: [CaPhase; 4] = [
    CaPhase::Settled,
    CaPhase::Trusting,
    CaPhase::Issuing,
    CaPhase::Retiring,
];

/// The numbers of this process. All clones are one.
#[derive(Clone, Default)]
pub struct Numbers(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    version: String,
    /// Whether calls of an API server are counted.
    kubernetes: bool,
    standing: Standing,
    /// The last sign of life of the loop.
    beat: Option<Instant>,
    /// Why the controller does not do its work.
    unready: Option<String>,
    state: State,
    signed: u64,
    /// By reason.
    denied: BTreeMap<&'static str, u64>,
    revoked: u64,
    /// By what was tried.
    errors: BTreeMap<&'static str, u64>,
    rounds: u64,
    gates: u64,
    events_dropped: u64,
}

/// Which part this controller has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It waits for the lead.
    #[default]
    Waits,
    /// It leads.
    Leads,
}

/// What is there now.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) target: Phase,
    pub(crate) nodes: usize,
    pub(crate) ready: usize,
    /// Nodes that have let the present step wait for long.
    pub(crate) stragglers: usize,
    pub(crate) ca_phase: CaPhase,
    pub(crate) ca_waiting: u64,
    /// How often a renewal of the nodes' certificates was asked for.
    pub(crate) certificate_rotation: u64,
    /// Nodes that have not renewed as they were asked to.
    pub(crate) certificates_waiting: u32,
    /// Common names and ends of the CAs, the one that signs first.
    pub(crate) cas: Vec<(String, u64)>,
    /// By CA.
    pub(crate) revoked: Vec<(String, usize)>,
    /// Documents that somebody has to see to.
    pub(crate) unusable: usize,
    /// How full register and lists are.
    pub(crate) fill: Fill,
}

impl Numbers {
    /// Of a process of this build. `kubernetes`: the calls of the API server are shown.
    pub fn new(version: &str, kubernetes: bool) -> Self {
        let numbers = Self::default();
        let mut inner = numbers.lock();
        inner.version = version.to_owned();
        inner.kubernetes = kubernetes;
        drop(inner);
        numbers
    }

    /// Serves them there; not at all without an address.
    pub(crate) async fn serve(&self, listen: Option<SocketAddr>) -> anyhow::Result<Option<Server>> {
        let Some(listen) = listen else {
            return Ok(None);
        };
        let started = Server::start(listen, self.clone()).await;
        let server = started.with_context(|| format!("metrics cannot be served on {listen}"))?;
        tracing::info!(address = %server.address(), "metrics are served");
        Ok(Some(server))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stands(&self, standing: Standing) {
        let mut inner = self.lock();
        inner.standing = standing;
        inner.beat = Some(Instant::now());
        if standing == Standing::Waits {
            inner.state = State::default();
        }
    }

    /// The loop goes on.
    pub(crate) fn beat(&self) {
        self.lock().beat = Some(Instant::now());
    }

    /// Rounds that were begun.
    #[cfg(test)]
    pub(crate) fn rounds(&self) -> u64 {
        self.lock().rounds
    }

    /// A round over all that is there begins.
    pub(crate) fn round(&self) {
        let mut inner = self.lock();
        inner.beat = Some(Instant::now());
        inner.rounds += 1;
    }

    /// Why the controller does not do its work; `None`: it does.
    pub(crate) fn unready(&self, why: Option<String>) {
        self.lock().unready = why;
    }

    pub(crate) fn signed(&self) {
        self.lock().signed += 1;
    }

    pub(crate) fn denied(&self, reason: &'static str) {
        *self.lock().denied.entry(reason).or_default() += 1;
    }

    pub(crate) fn revoked(&self, certificates: usize) {
        self.lock().revoked += certificates as u64;
    }

    pub(crate) fn failed(&self, what: &'static str) {
        *self.lock().errors.entry(what).or_default() += 1;
    }

    pub(crate) fn gate_opened(&self) {
        self.lock().gates += 1;
    }

    pub(crate) fn events_dropped(&self, dropped: u64) {
        self.lock().events_dropped = dropped;
    }

    pub(crate) fn is(&self, state: State) {
        self.lock().state = state;
    }

    pub(crate) fn is_hanging(&self, now: Instant) -> bool {
        let inner = self.lock();
        let silent = |beat| now.saturating_duration_since(beat) > HANGS;
        inner.standing == Standing::Leads && inner.beat.is_some_and(silent)
    }
}

impl Source for Numbers {
    async fn page(&self) -> Result<Page, String> {
        Ok(self.lock().page())
    }

    async fn ready(&self) -> Result<Result<(), String>, String> {
        if self.is_hanging(Instant::now()) {
            return Err("the controller's loop hangs".to_owned());
        }
        match &self.lock().unready {
            Some(why) => Ok(Err(why.clone())),
            None => Ok(Ok(())),
        }
    }
}

impl Inner {
    fn page(&self) -> Page {
        let mut page = Page::default();
        let build = page.gauge("testudo_build_info", "1, with the controller's version");
        build.gauge([("version", self.version.clone())], 1.0);
        let leads = self.standing == Standing::Leads;
        page.gauge(
            "testudo_controller_leader",
            "Whether this controller leads; the numbers of the cluster are those of the one that does",
        )
        .gauge([], f64::from(leads));
        if leads {
            self.cluster(&mut page);
        }
        page.counter(
            "testudo_controller_certificates_signed",
            "Certificates signed",
        )
        .count([], self.signed);
        let denied = page.counter(
            "testudo_controller_requests_denied",
            "Certificate requests denied, by reason",
        );
        for (reason, count) in &self.denied {
            denied.count([("reason", (*reason).to_owned())], *count);
        }
        page.counter(
            "testudo_controller_certificates_revoked",
            "Certificates taken back",
        )
        .count([], self.revoked);
        page.counter(
            "testudo_controller_rounds",
            "Rounds of the controller's loop, each over all nodes",
        )
        .count([], self.rounds);
        let errors = page.counter(
            "testudo_controller_reconcile_errors",
            "Rounds of the controller's loop that ended with an error, by what was tried",
        );
        for (what, count) in &self.errors {
            errors.count([("step", (*what).to_owned())], *count);
        }
        if self.kubernetes {
            self.api(&mut page);
        }
        page
    }

    fn cluster(&self, page: &mut Page) {
        let state = &self.state;
        let phases = [
            (
                "testudo_controller_phase",
                "The phase of the cluster",
                state.phase,
            ),
            (
                "testudo_controller_target_phase",
                "The phase that the policy asks for",
                state.target,
            ),
        ];
        for (name, help, phase) in phases {
            page.state(name, help, "phase", &Phase::ALL, &phase);
        }
        for (name, help, number) in [
            (
                "testudo_controller_nodes_expected",
                "Nodes that the controller leads",
                state.nodes,
            ),
            (
                "testudo_controller_nodes_ready",
                "Nodes that have acknowledged the present step",
                state.ready,
            ),
            (
                "testudo_controller_stragglers",
                "Nodes that have let the present step wait for more than two minutes",
                state.stragglers,
            ),
            (
                "testudo_controller_unusable_secrets",
                "Secrets that are gone or broken, while what was read last goes on",
                state.unusable,
            ),
        ] {
            page.gauge(name, help).gauge([], number as f64);
        }
        page.state(
            "testudo_controller_ca_rotation_phase",
            "Where the rotation of the CA stands",
            "phase",
            &CA_PHASES,
            &state.ca_phase,
        );
        page.gauge(
            "testudo_controller_ca_rotation_waiting",
            "Nodes that the rotation of the CA waits for",
        )
        .gauge([], state.ca_waiting as f64);
        page.gauge(
            "testudo_controller_certificate_rotation",
            "How often a rotation of the nodes' certificates was asked for",
        )
        .gauge([], state.certificate_rotation as f64);
        page.gauge(
            "testudo_controller_certificate_rotation_waiting",
            "Nodes that the rotation of the nodes' certificates waits for",
        )
        .gauge([], f64::from(state.certificates_waiting));
        let ends = page.gauge(
            "testudo_controller_ca_expiry_timestamp_seconds",
            "When a CA that is trusted ends",
        );
        for (at, (ca, end)) in state.cas.iter().enumerate() {
            let signs = if at == 0 { "true" } else { "false" };
            let labels = [("ca", ca.clone()), ("signs", signs.to_owned())];
            ends.gauge(labels, *end as f64);
        }
        let revoked = page.gauge(
            "testudo_controller_revoked_certificates",
            "Certificates that a CA's revocation list names",
        );
        for (ca, count) in &state.revoked {
            revoked.gauge([("ca", ca.clone())], *count as f64);
        }
        let fill = page.gauge(
            "testudo_controller_register_fill_ratio",
            "The share that is taken of the room for certificates that are kept track of, and for those taken back",
        );
        for (what, share) in [
            ("register", state.fill.register),
            ("revocation_list", state.fill.list),
        ] {
            fill.gauge([("room", what.to_owned())], share);
        }
    }

    fn api(&self, page: &mut Page) {
        page.counter(
            "testudo_controller_taints_removed",
            "Nodes whose start-up taint was taken off",
        )
        .count([], self.gates);
        page.counter(
            "testudo_controller_events_dropped",
            "Events that were not made, because there were too many or the API server was away",
        )
        .count([], self.events_dropped);
        let calls = page.counter(
            "testudo_controller_api_calls",
            "Calls of the API server by outcome; a watch is one call",
        );
        for (outcome, count) in testudo_store_kube::calls() {
            calls.count([("outcome", outcome.to_owned())], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_leader_shows_the_cluster_and_one_that_waits_does_not() {
        let numbers = Numbers::new("1", true);
        numbers.denied("stranger");
        let text = numbers.page().await.unwrap().encode();
        assert!(text.contains("testudo_controller_leader 0.0"), "{text}");
        assert!(
            !text.contains("testudo_controller_nodes_expected"),
            "{text}"
        );
        numbers.stands(Standing::Leads);
        numbers.is(State {
            phase: Phase::Prepared,
            target: Phase::Strict,
            nodes: 3,
            ready: 2,
            stragglers: 1,
            certificate_rotation: 4,
            certificates_waiting: 2,
            cas: vec![("Testudo CA 1".to_owned(), 77), ("old".to_owned(), 7)],
            revoked: vec![("Testudo CA 1".to_owned(), 4)],
            fill: Fill {
                register: 0.5,
                ..Fill::default()
            },
            ..State::default()
        });
        let text = numbers.page().await.unwrap().encode();
        for line in [
            "testudo_controller_leader 1.0",
            "testudo_controller_phase{phase=\"Prepared\"} 1.0",
            "testudo_controller_target_phase{phase=\"Strict\"} 1.0",
            "testudo_controller_stragglers 1.0",
            "testudo_controller_certificate_rotation 4.0",
            "testudo_controller_certificate_rotation_waiting 2.0",
            "testudo_controller_ca_expiry_timestamp_seconds{ca=\"Testudo CA 1\",signs=\"true\"} 77.0",
            "testudo_controller_revoked_certificates{ca=\"Testudo CA 1\"} 4.0",
            "testudo_controller_register_fill_ratio{room=\"register\"} 0.5",
            "testudo_controller_register_fill_ratio{room=\"revocation_list\"} 0.0",
            "testudo_controller_requests_denied_total{reason=\"stranger\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.contains("testudo_controller_api_calls_total{outcome=\"ok\"}"));
    }

    #[tokio::test]
    async fn a_loop_that_says_nothing_hangs_and_one_that_waits_does_not() {
        let numbers = Numbers::new("1", false);
        let later = Instant::now() + HANGS * 2;
        assert!(!numbers.is_hanging(later));
        numbers.stands(Standing::Leads);
        assert!(!numbers.is_hanging(Instant::now()));
        assert!(numbers.is_hanging(later));
        numbers.unready(Some("no Secret".to_owned()));
        assert_eq!(numbers.ready().await, Ok(Err("no Secret".to_owned())));
    }
}
