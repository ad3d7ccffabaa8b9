//! What the agent shows to Prometheus, and whether it is ready. docs/metrics.md names every metric.

mod ready;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use testudo_ike::{Counters as EngineCounters, IkeUp};
use testudo_metrics::{Durations, Page, Server, Source};
use testudo_model::{Now, Phase};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::ready::Readiness;
use crate::api::TunnelView;
use crate::node::Node;

/// A question of the HTTP server's, answered between two rounds of the agent's loop.
pub(crate) enum Question {
    Page(oneshot::Sender<Page>),
    Ready(oneshot::Sender<Result<(), String>>),
}

/// How long the authentication of peers took, by who began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handshakes {
    initiator: Durations,
    responder: Durations,
}

impl Handshakes {
    /// Counts an IKE SA that was authenticated; a rekey authenticates nobody.
    pub(crate) fn observe(&self, up: &IkeUp) {
        match (up.replaces.is_some(), up.initiator) {
            (true, _) => {}
            (false, true) => self.initiator.observe(up.took),
            (false, false) => self.responder.observe(up.took),
        }
    }
}

/// Asks the agent's loop.
#[derive(Clone)]
struct Asker(mpsc::Sender<Question>);

impl Asker {
    async fn ask<T>(&self, question: fn(oneshot::Sender<T>) -> Question) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the agent is stopping".to_owned();
        let sent = self.0.send(question(reply)).await;
        sent.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

impl Source for Asker {
    async fn page(&self) -> Result<Page, String> {
        self.ask(Question::Page).await
    }

    async fn ready(&self) -> Result<Result<(), String>, String> {
        self.ask(Question::Ready).await
    }
}

/// Serves the metrics where it is told to. What is asked comes out of the receiver; without an
/// address nothing does.
pub(crate) async fn start(
    listen: Option<SocketAddr>,
) -> anyhow::Result<(Option<Server>, mpsc::Receiver<Question>)> {
    let (asks, questions) = mpsc::channel(1);
    let Some(listen) = listen else {
        return Ok((None, questions));
    };
    let started = Server::start(listen, Asker(asks)).await;
    let server = started.with_context(|| format!("metrics cannot be served on {listen}"))?;
    tracing::info!(address = %server.address(), "metrics are served");
    Ok((Some(server), questions))
}

impl Node {
    /// Answers the HTTP server.
    pub(crate) fn answer_question(&mut self, question: Question, now: Now) {
        // Who asked may have gone.
        let _ = match question {
            Question::Page(reply) => reply.send(self.page(now)).is_ok(),
            Question::Ready(reply) => reply.send(self.ready(now)).is_ok(),
        };
    }

    fn page(&self, now: Now) -> Page {
        let mut page = Page::default();
        let status = self.status_view(now);
        let build = page.gauge("testudo_build_info", "1, with the agent's version");
        build.gauge([("version", self.options.version.clone())], 1.0);
        page.state(
            "testudo_phase",
            "Whether the node has this phase in force",
            "phase",
            &Phase::ALL,
            &status.phase,
        );
        page.state(
            "testudo_datapath",
            "Whether this datapath carries the node's packets",
            "datapath",
            &["kernel", "user", "none"],
            &status.datapath.as_str(),
        );
        let up = page.gauge(
            "testudo_tunnels_up",
            "Tunnels on which packets leave sealed",
        );
        up.gauge([], f64::from(status.tunnels_up));
        let expected = page.gauge("testudo_tunnels_expected", "Tunnels that should stand");
        expected.gauge([], f64::from(status.tunnels_expected));
        let problems = page.gauge(
            "testudo_problems",
            "What is wrong now; status has the words",
        );
        problems.gauge([], status.problems.len() as f64);
        let reachable = page.gauge(
            "testudo_store_reachable",
            "Whether the store can be reached; what it said last is in force while it cannot",
        );
        reachable.gauge([], f64::from(u8::from(status.store_away_since.is_none())));
        if let Some(mtu) = status.effective_mtu {
            let family = page.gauge(
                "testudo_effective_mtu_bytes",
                "The most that pods' MTU may be",
            );
            family.gauge([], f64::from(mtu));
        }
        self.certificates_on(&mut page);
        engine_on(&mut page, self.core.engine.counters());
        let took = page.histogram(
            "testudo_ike_handshake_seconds",
            "Time from IKE_SA_INIT to an authenticated IKE SA",
        );
        let handshakes = &self.core.handshakes;
        took.durations([("role", "initiator".to_owned())], &handshakes.initiator);
        took.durations([("role", "responder".to_owned())], &handshakes.responder);
        tunnels_on(
            &mut page,
            &self.tunnel_views(now),
            self.options.metrics_by_peer,
        );
        self.drops_on(&mut page);
        page
    }

    fn certificates_on(&self, page: &mut Page) {
        if let Some(facts) = self.certificates.facts() {
            let ends = page.gauge(
                "testudo_certificate_expiry_timestamp_seconds",
                "When the node's certificate ends, seconds since 1970",
            );
            ends.gauge([], facts.not_after.0 as f64);
        }
        let ends = page.gauge(
            "testudo_ca_expiry_timestamp_seconds",
            "When a CA that the node trusts ends, seconds since 1970",
        );
        for ca in self.trust.bundle.facts() {
            ends.gauge([("ca", ca.subject)], ca.times.not_after as f64);
        }
    }

    fn drops_on(&self, page: &mut Page) {
        let drops = self.drops();
        let (xfrm, packets): (BTreeMap<_, _>, BTreeMap<_, _>) = drops
            .datapath
            .into_iter()
            .partition(|(reason, _)| reason.starts_with("xfrm_"));
        for (name, help, label, counts) in [
            (
                "testudo_dropped_packets",
                "Packets dropped by datapath and firewall; clear_inbound and clear_outbound were in clear",
                "reason",
                packets,
            ),
            (
                "testudo_xfrm_errors",
                "The kernel's errors of IPsec since the agent began",
                "error",
                xfrm,
            ),
            (
                "testudo_ike_dropped_messages",
                "IKE messages dropped by the engine",
                "reason",
                drops.ike,
            ),
            (
                "testudo_ike_failures",
                "Negotiations that failed, by the check that failed",
                "check",
                drops.failures,
            ),
            (
                "testudo_agent_dropped_datagrams",
                "Datagrams and requests dropped by the agent",
                "reason",
                drops.agent,
            ),
        ] {
            let family = page.counter(name, help);
            for (reason, number) in counts {
                family.count([(label, reason)], number);
            }
        }
    }
}

fn engine_on(page: &mut Page, engine: &EngineCounters) {
    for (name, help, value) in [
        (
            "testudo_ike_attempts",
            "IKE_SA_INIT exchanges begun by this node",
            engine.attempts,
        ),
        (
            "testudo_ike_authentications",
            "IKE SAs authenticated",
            engine.ike_established,
        ),
        ("testudo_ike_rekeys", "IKE SAs rekeyed", engine.ike_rekeys),
        (
            "testudo_child_rekeys",
            "Child SAs rekeyed",
            engine.child_rekeys,
        ),
        (
            "testudo_ike_retransmits",
            "IKE requests sent again",
            engine.retransmits,
        ),
        (
            "testudo_ike_cookies",
            "Cookies asked for under load",
            engine.cookies_sent,
        ),
    ] {
        page.counter(name, help).count([], value);
    }
}

/// What two directions count.
#[derive(Clone, Copy, Default)]
struct Carried {
    packets: [u64; 2],
    bytes: [u64; 2],
}

impl Carried {
    fn of(view: &TunnelView) -> Self {
        Self {
            packets: [view.packets_in, view.packets_out],
            bytes: [view.bytes_in, view.bytes_out],
        }
    }

    fn plus(self, other: Self) -> Self {
        let sum = |a: [u64; 2], b: [u64; 2]| [a[0] + b[0], a[1] + b[1]];
        Self {
            packets: sum(self.packets, other.packets),
            bytes: sum(self.bytes, other.bytes),
        }
    }
}

/// Of many nodes each has a tunnel with each: by peer they are shown only where that was asked for.
fn tunnels_on(page: &mut Page, views: &[TunnelView], by_peer: bool) {
    let labels = |view: &TunnelView, direction: &str| {
        [
            ("peer", view.peer.to_string()),
            ("family", view.address_family.clone()),
            ("direction", direction.to_owned()),
        ]
    };
    let all = views.iter().map(Carried::of);
    let all = all.fold(Carried::default(), Carried::plus);
    for (name, help, pick) in [
        (
            "testudo_esp_packets",
            "Packets sealed (out) and opened (in)",
            (|carried: &Carried| carried.packets) as fn(&Carried) -> [u64; 2],
        ),
        (
            "testudo_esp_bytes",
            "Bytes of the packets sealed (out) and opened (in)",
            |carried| carried.bytes,
        ),
    ] {
        let family = page.counter(name, help);
        for (index, direction) in ["in", "out"].into_iter().enumerate() {
            if by_peer {
                for view in views {
                    family.count(labels(view, direction), pick(&Carried::of(view))[index]);
                }
            } else {
                family.count([("direction", direction.to_owned())], pick(&all)[index]);
            }
        }
    }
    if by_peer {
        let up = page.gauge(
            "testudo_tunnel_up",
            "Whether packets to the peer leave sealed",
        );
        for view in views {
            let [peer, family, _] = labels(view, "");
            up.gauge([peer, family], f64::from(view.up));
        }
    }
    let ike = views
        .iter()
        .filter_map(|v| v.ike.as_ref().map(|ike| ike.age));
    let children = views.iter().flat_map(|v| v.children.iter().map(|c| c.age));
    let count = page.gauge("testudo_sas", "Security associations that stand");
    for (kind, ages) in [
        ("ike", ike.clone().count()),
        ("child", children.clone().count()),
    ] {
        count.gauge([("kind", kind.to_owned())], ages as f64);
    }
    let oldest = page.gauge(
        "testudo_oldest_sa_age_seconds",
        "Age of the oldest security association",
    );
    for (kind, age) in [("ike", ike.max()), ("child", children.max())] {
        let age = Duration::from_secs(age.unwrap_or(0));
        oldest.gauge([("kind", kind.to_owned())], age.as_secs_f64());
    }
}
