//! What the agent says about itself: to the store, and to those who ask on the socket.

use std::collections::BTreeMap;

use testudo_datapath::Counters;
use testudo_model::condition::{self, Condition, ConditionStatus};
use testudo_model::policy::OverlayType;
use testudo_model::{NodeEncryptionStatus, Now, PeerId, Phase};

use crate::api::{
    ActionResult, Actions, Drops, Gettable, Request, Response, StatusView, TunnelView,
};
use crate::node::Node;
use crate::tunnels::Child;
use crate::tunnels::Common;

/// Ethernet, overlay and UDP headers: what VXLAN and Geneve add inside the node's IP packet.
const OVERLAY: u32 = 14 + 8 + 8;

impl Node {
    /// The status of this node's object.
    pub(crate) fn status(&self, now: Now) -> NodeEncryptionStatus {
        let (tunnels_up, tunnels_expected) = self.core.tunnels.count();
        let mut conditions = self.news.status.conditions.clone();
        for new in self.conditions(now) {
            condition::set(&mut conditions, new);
        }
        NodeEncryptionStatus {
            acknowledged: self.word.acknowledged,
            certificate: self.certificates.facts(),
            rotation: self.word.rotation,
            authorities: self.word.authorities.clone(),
            tunnels_up,
            tunnels_expected,
            effective_mtu: self.effective_mtu(),
            datapath_note: self.datapath_note(),
            per_cpu: self.per_cpu(),
            agent_pid: Some(std::process::id()),
            agent_version: Some(self.options.version.clone()),
            conditions,
        }
    }

    fn conditions(&self, now: Now) -> [Condition; 3] {
        let problems = self.problems();
        let phase = self.acknowledged.map_or(Phase::Disabled, |a| a.phase);
        let waits = self.objects.policy.as_ref().is_some_and(|policy| {
            self.acknowledged.map(|a| (a.phase, a.rollout))
                != Some((policy.status.phase, policy.status.rollout))
        });
        let generation = self
            .objects
            .policy
            .as_ref()
            .map_or(0, |policy| policy.metadata.generation);
        let make = |kind: &str, holds: bool, reason: &str, message: String| Condition {
            kind: kind.to_owned(),
            status: match holds {
                true => ConditionStatus::True,
                false => ConditionStatus::False,
            },
            reason: reason.to_owned(),
            message,
            last_transition_time: now.wall,
            observed_generation: generation,
        };
        let degraded = match problems.is_empty() {
            true => make("Degraded", false, "AsExpected", String::new()),
            false => make("Degraded", true, "Problems", problems.join("; ")),
        };
        let ready = match (problems.is_empty(), waits) {
            (true, false) => make(
                "Ready",
                true,
                "PhaseInForce",
                format!("{phase} is in force"),
            ),
            (true, true) => make("Ready", false, "Progressing", self.progress(phase)),
            (false, _) => make("Ready", false, "Degraded", problems.join("; ")),
        };
        // Written when it is back, mostly: then it says how long nobody could hear of this node.
        let reachable = match (&self.away, self.was_away) {
            (Some((since, why)), _) => make(
                "StoreReachable",
                false,
                "Away",
                format!("not reachable since {since}: {why}"),
            ),
            (None, Some((at, seconds))) => make(
                "StoreReachable",
                true,
                "Back",
                format!("back at {at} after {seconds} s"),
            ),
            (None, None) => make("StoreReachable", true, "AsExpected", String::new()),
        };
        [ready, degraded, reachable]
    }

    /// What the present step waits for.
    fn progress(&self, phase: Phase) -> String {
        const NAMED: usize = 4;
        let mut text = format!("leaving {phase}");
        for (index, waiting) in self.waiting.iter().take(NAMED).enumerate() {
            let colon = if index == 0 { ": " } else { "; " };
            text.push_str(&format!("{colon}{}: {}", waiting.peer, waiting.reason));
        }
        if self.waiting.len() > NAMED {
            text.push_str(&format!("; and {} more", self.waiting.len() - NAMED));
        }
        text
    }

    /// Everything that is wrong, a sentence each, in a fixed order.
    fn problems(&self) -> Vec<String> {
        let mut all: Vec<String> = self.problems.values().cloned().collect();
        all.extend(self.certificates.problem().map(str::to_owned));
        all.extend(self.objects.problems.values().cloned());
        if self.objects.policy_gone {
            all.push(
                "the EncryptionPolicy is gone from the store: the last one stays in force; \
                 write one with mode: Disabled to turn encryption off"
                    .to_owned(),
            );
        }
        all
    }

    /// What pods' MTU may be at most: the smallest over all tunnels.
    fn effective_mtu(&self) -> Option<u32> {
        let overlay = self
            .objects
            .policy
            .as_ref()
            .is_some_and(|policy| policy.spec.overlay.kind != OverlayType::Routed);
        let children = self.core.tunnels.sending_children();
        children
            .filter_map(|(_, child)| self.pod_mtu(child, overlay))
            .min()
    }

    fn pod_mtu(&self, child: &Child, overlay: bool) -> Option<u32> {
        let path = &child.encapsulation;
        let datapath = self.core.datapath.as_ref()?;
        let path_mtu = self.host.path_mtu(path.local(), path.remote())?;
        let inner = datapath.inner_mtu(child.mode, child.cipher, path, path_mtu);
        if !overlay {
            return Some(inner);
        }
        let ip = if path.remote().is_ipv4() { 20 } else { 40 };
        Some(inner.saturating_sub(ip + OVERLAY))
    }

    /// Answers a request from the socket.
    pub(crate) fn answer(&mut self, request: &Request, now: Now) -> Response {
        let mut response = Response {
            ok: true,
            ..Response::default()
        };
        match request {
            Request::Get { get } => match get {
                Gettable::Tunnels => response.tunnels = Some(self.tunnel_views(now)),
                Gettable::Status => response.status = Some(self.status_view(now)),
                Gettable::Drops => response.drops = Some(self.drops()),
            },
            Request::Do { action, peer } => match self.act(*action, peer.as_ref(), now) {
                Ok(result) => response.action = Some(result),
                Err(error) => return Response::error(error),
            },
        }
        response
    }

    pub(crate) fn tunnel_views(&self, now: Now) -> Vec<TunnelView> {
        let kind = match self.objects.policy.as_ref().map(|p| p.spec.overlay.kind) {
            Some(OverlayType::Vxlan) => "vxlan",
            Some(OverlayType::Geneve) => "geneve",
            Some(OverlayType::Routed) => "routed",
            _ => "udp",
        };
        let common = Common {
            node: self.identity.name.as_str(),
            interface: self.host.interface(),
            tunnel_type: kind,
            certificate: self.certificates.facts().map(|f| (f.subject, f.issuer)),
            policies: self.policies(),
            filtered: self.core.paths.all_filtered(),
        };
        let datapath = self.core.datapath.as_ref();
        let counters = datapath.map_or_else(Counters::default, |d| d.sa_counters());
        let mtu = |child: &Child| self.pod_mtu(child, kind != "routed");
        self.core.tunnels.views(&common, &counters, mtu, now)
    }

    /// The host's policies for each peer, as it says itself; `None`: it does not say.
    fn policies(&self) -> Option<BTreeMap<PeerId, u32>> {
        let Some(datapath) = &self.core.datapath else {
            return Some(BTreeMap::new());
        };
        let listed = datapath.policies();
        listed
            .inspect_err(|error| tracing::warn!("policies are not counted: {error}"))
            .ok()
    }

    pub(crate) fn status_view(&self, now: Now) -> StatusView {
        let (tunnels_up, tunnels_expected) = self.core.tunnels.count();
        let acknowledged = self.acknowledged.unwrap_or_default();
        StatusView {
            node: self.identity.name.to_string(),
            pid: std::process::id(),
            phase: acknowledged.phase,
            rollout: acknowledged.rollout,
            datapath: match &self.core.datapath {
                Some(datapath) => datapath.kind().to_owned(),
                None => "none".to_owned(),
            },
            datapath_note: self.datapath_note(),
            tunnels_up,
            tunnels_expected,
            effective_mtu: self.effective_mtu(),
            rotation: self.rotation_done,
            certificate_not_after: self.certificates.facts().map(|f| f.not_after),
            problems: self.problems(),
            store_away_since: self.away.as_ref().map(|(since, _)| *since),
            uptime: now.monotonic.0.as_secs(),
        }
    }

    pub(crate) fn drops(&self) -> Drops {
        let named = |map: &BTreeMap<&'static str, u64>| {
            map.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
        };
        let engine = self.core.engine.counters();
        let mut agent: BTreeMap<String, u64> = named(&self.core.drops);
        if let Some(sockets) = &self.core.sockets {
            agent.insert("ike_datagrams_unsent_500".to_owned(), sockets.unsent);
        }
        Drops {
            datapath: self.counters().drops,
            ike: named(&engine.drops),
            failures: named(&engine.failures),
            agent,
        }
    }

    fn counters(&self) -> Counters {
        match &self.core.datapath {
            Some(datapath) => datapath.counters(),
            None => Counters::default(),
        }
    }

    fn act(
        &mut self,
        action: Actions,
        peer: Option<&PeerId>,
        now: Now,
    ) -> Result<ActionResult, String> {
        if let Some(peer) = peer
            && !self.knows(peer)
        {
            return Err(format!(
                "no peer \"{peer}\"; ask for tunnels to see their names"
            ));
        }
        let meant = |other: &PeerId| peer.is_none_or(|peer| peer == other);
        let engine = &mut self.core.engine;
        let results: Vec<Result<(), testudo_ike::Misuse>> = match action {
            Actions::RekeyChild => {
                let children: Vec<_> = self
                    .core
                    .tunnels
                    .sending_children()
                    .filter(|(_, child)| meant(&child.peer))
                    .map(|(id, _)| id)
                    .collect();
                children
                    .into_iter()
                    .map(|child| engine.rekey_child(child, now))
                    .collect()
            }
            Actions::RekeyIke | Actions::Reauthenticate => {
                let peers: Vec<PeerId> = self.peer_names().filter(|p| meant(p)).cloned().collect();
                let engine = &mut self.core.engine;
                let begin = |peer: PeerId| match action {
                    Actions::RekeyIke => engine.rekey_ike(&peer, now),
                    _ => engine.reauthenticate(&peer, now),
                };
                peers.into_iter().map(begin).collect()
            }
        };
        self.core.settle(now);
        let begun = results.iter().filter(|r| r.is_ok()).count();
        Ok(ActionResult {
            begun: u32::try_from(begun).unwrap_or(u32::MAX),
            refused: results
                .into_iter()
                .filter_map(|r| r.err().map(|e| e.to_string()))
                .collect(),
        })
    }
}
